"""The manifest of a batch: one JSON file beside the images that says what became of every item.

It is written anew whenever something was saved, so a later phase learns from it which results it need not look at. It
is no more than a hint: anybody may have changed it, or removed an image.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kie_provider.files import storage
from kie_provider.files.provenance import plain

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    from kie_provider.files.provenance import RunFacts

FORMAT = 1
#: A larger one is not read; a batch of ten thousand items takes 15 MB.
_LARGEST = 2**28


def manifest_path(folder: ObjectStoragePath, run: RunFacts) -> ObjectStoragePath:
    """Return the manifest's place: a name that tells the task and run, and that no other task instance has."""
    readable = re.sub(r"[^\w.-]+", "_", f"{run.task_id}-{run.run_id}")[:100]
    unique = hashlib.sha256(repr((run.dag_id, run.run_id, run.task_id, run.map_index)).encode()).hexdigest()[:8]
    return folder / f"{readable}-{unique}.json"


def read_items(path: ObjectStoragePath) -> list[dict[str, Any]]:
    """Return what a manifest says of every item; of a saved one, its result dict. Nothing, if it makes no sense."""
    content = storage.read_bytes(path, _LARGEST)
    try:
        told = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        return []
    items = told.get("items") if isinstance(told, dict) else None
    return [plain(item) for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def is_saved(item: Mapping[str, Any]) -> bool:
    """Whether this item of a manifest is a result dict."""
    return item.get("outcome") == "saved" and isinstance(item.get("kie_task_id"), str)


def write(path: ObjectStoragePath, content: Mapping[str, Any]) -> None:
    """Write the manifest.

    :raises KieTargetError: it cannot be written there.
    :raises KieStorageError: the storage failed.
    """
    text = json.dumps(plain({"v": FORMAT, **content}), indent=1, ensure_ascii=False) + "\n"
    with storage.storage_errors(tempfile.gettempdir()), tempfile.TemporaryDirectory(prefix="kie-") as folder:
        local = Path(folder, "manifest.json")
        local.write_text(text, encoding="utf-8")
        storage.put(local, path)
