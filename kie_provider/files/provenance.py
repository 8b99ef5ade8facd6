"""Where a file comes from: the JSON file beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import pendulum

from kie_provider import __version__
from kie_provider.client.plain import storable
from kie_provider.client.prices import PriceTable
from kie_provider.files.metadata.xmp import DIGITAL_SOURCE_TYPE

FORMAT = 1
_DEEPEST = 50


@dataclass(frozen=True)
class SavedFile:
    """One stored result, as it stands in the result dict's ``files``.

    :param path: as Airflow's ``ObjectStoragePath`` reads it.
    :param sha256: of the bytes as Kie delivered them, in hexadecimal.
    :param stored_sha256: of the bytes as stored; the same, unless provenance was embedded.
    :param bytes: size as stored.
    :param media_type: by content.
    :param width: pixels, as it is shown; None if it is no image.
    :param height: pixels; likewise.
    :param sidecar: path of the JSON file beside it.
    :param thumbnail: path of a small JPEG of it; None if it is no image, or none could be made.
    """

    path: str
    sha256: str
    stored_sha256: str
    bytes: int
    media_type: str
    width: int | None
    height: int | None
    sidecar: str
    thumbnail: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> SavedFile | None:
        """Read back what :meth:`to_json` gave, and anybody may have changed since; None: it makes no sense."""
        if not isinstance(value, Mapping):
            return None
        told: dict[str, Any] = {field.name: value.get(field.name) for field in fields(cls)}
        file = cls(**told)
        texts = (file.path, file.sha256, file.stored_sha256, file.media_type, file.sidecar, file.thumbnail or "")
        numbers = [file.bytes, *(each for each in (file.width, file.height) if each is not None)]
        makes_sense = all(isinstance(each, str) for each in texts) and all(type(each) is int for each in numbers)
        return file if makes_sense else None


@dataclass(frozen=True)
class RunFacts:
    """The task instance that saves."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int

    @classmethod
    def of(cls, ti: Any) -> RunFacts:
        """Read them from Airflow's task instance."""
        return cls(ti.dag_id, ti.run_id, ti.task_id, ti.map_index, ti.try_number)


def input_of(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the input that Kie says it was given; empty if it says nothing of the kind."""
    task_input = result.get("input")
    return task_input if isinstance(task_input, Mapping) else {}


def plain(value: Any) -> Any:
    """Return ``value`` as JSON that can be written, read and stored anywhere, whatever is in it and how deep."""
    return storable(_plain(value, _DEEPEST))


def _plain(value: Any, levels: int) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(each, levels - 1) for name, each in value.items()} if levels else "..."
    if isinstance(value, list | tuple):
        return [_plain(each, levels - 1) for each in value] if levels else "..."
    return value if value is None or isinstance(value, str | int | float) else str(value)


def sidecar(
    result: Mapping[str, Any],
    index: int,
    file: SavedFile,
    run: RunFacts,
    prices: PriceTable,
    *,
    redact_prompt: bool,
    embedded: bool,
) -> dict[str, Any]:
    """Return the content of the JSON file beside a result.

    :param result: the result dict.
    :param index: which of its URLs this is.
    :param redact_prompt: give the prompt's sha256 in place of the prompt.
    :param embedded: whether the file itself carries provenance too.
    """
    task_input = dict(input_of(result))
    prompt = task_input.get("prompt")
    facts: dict[str, Any] = {"prompt": prompt}
    if redact_prompt:
        task_input.pop("prompt", None)
        facts = {"prompt": None, "prompt_sha256": prompt_sha256(prompt)}
    credits_used = prices.cost_of(result)
    content = {
        "v": FORMAT,
        "kie_task_id": result["kie_task_id"],
        "index": index,
        "model": result.get("model"),
        **facts,
        "input": task_input,
        "url": result["urls"][index],
        "credits": credits_used,
        "usd": prices.usd(credits_used),
        "created_at": result.get("created_at"),
        "completed_at": result.get("completed_at"),
        "cost_seconds": result.get("cost_seconds"),
        "saved_at": pendulum.now("UTC").to_iso8601_string(),
        "file": file.to_json(),
        "embedded_provenance": embedded,
        "digital_source_type": DIGITAL_SOURCE_TYPE,
        "airflow": asdict(run),
        "provider": f"airflow-provider-kie {__version__}",
    }
    return dict(plain(content))


def prompt_sha256(prompt: Any) -> str | None:
    """Return what stands for a redacted prompt: enough to compare, not to read."""
    return hashlib.sha256(prompt.encode("utf-8", "replace")).hexdigest() if isinstance(prompt, str) else None
