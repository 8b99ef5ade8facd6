"""The manifest of a batch: one JSON file beside the images that says what became of every item.

It is rewritten as images are saved, so that a later phase need not poll and save them again. It is only a hint: anybody
may have changed it, or removed an image.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kie_provider.client.plain import counted
from kie_provider.files import storage
from kie_provider.files.provenance import plain

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    from kie_provider.files.provenance import RunFacts

FORMAT = 1
#: What follows a problem, wherever it is noticed.
ANOTHER_DISK = (
    "as this worker sees it: it was changed or removed, or another worker has written it on a disk of its own. A local "
    "target must be a disk that all workers share"
)
#: Bytes. A larger manifest is not read; that of a batch of ten thousand items has 15 MB.
_LARGEST = 2**28


def manifest_path(folder: ObjectStoragePath, run: RunFacts) -> ObjectStoragePath:
    """Return the path of the manifest: readable, and unique to the task instance."""
    readable = re.sub(r"[^\w.-]+", "_", f"{run.task_id}-{run.run_id}")[:100]
    unique = hashlib.sha256(repr((run.dag_id, run.run_id, run.task_id, run.map_index)).encode()).hexdigest()[:8]
    return folder / f"{readable}-{unique}.json"


def read(path: ObjectStoragePath) -> dict[str, object]:
    """Return the content of a manifest. One that is missing or invalid has none."""
    try:
        content = json.loads(storage.read_bytes(path, _LARGEST) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def items_of(content: Mapping[str, object]) -> list[dict[str, object]]:
    """Return the entries of a manifest; that of a saved item is its result dict."""
    items = content.get("items")
    return [plain(item) for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def problem(content: Mapping[str, object], told: Mapping[str, object]) -> str | None:
    """Say why this is not the manifest that a batch has told of, nor a later one; None: it may be.

    :param told: ``try_number`` of the batch and how many images it has ``saved``, as far as that is known.
    """
    if not items_of(content):
        return "is not there, or makes no sense"
    run = content.get("airflow")
    here, there = _number(run if isinstance(run, Mapping) else {}, "try_number"), _number(told, "try_number")
    if here < there:
        return f"is of try {here}, and not of try {there}"
    saved, told_saved = _number(content, "saved"), _number(told, "saved")
    if here == there and saved < told_saved:
        return f"tells of {counted(saved, 'saved image')}, and not of {told_saved}"
    return None


def _number(content: Mapping[str, object], name: str) -> int:
    number = content.get(name)
    return number if isinstance(number, int) else 0


def is_saved(item: Mapping[str, object]) -> bool:
    """Whether this entry of a manifest is a result dict."""
    return item.get("outcome") == "saved" and isinstance(item.get("kie_task_id"), str)


def write(path: ObjectStoragePath, content: Mapping[str, object]) -> None:
    """Write the manifest.

    :raises KieTargetError: it cannot be written there.
    :raises KieStorageError: the storage failed.
    """
    text = json.dumps(plain({"v": FORMAT, **content}), indent=1, ensure_ascii=False) + "\n"
    with storage.storage_errors(tempfile.gettempdir()), tempfile.TemporaryDirectory(prefix="kie-") as folder:
        local = Path(folder, "manifest.json")
        local.write_text(text, encoding="utf-8")
        storage.put(local, path)
