"""Where a file comes from: the content of the JSON file (sidecar) beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast

import pendulum

from kie_provider import __version__
from kie_provider.client.plain import storable
from kie_provider.client.prices import PriceTable
from kie_provider.files.metadata.xmp import DIGITAL_SOURCE_TYPE

if TYPE_CHECKING:
    from airflow.sdk.types import RuntimeTaskInstanceProtocol

FORMAT = 1
_DEEPEST = 50
T = TypeVar("T")


class Result(TypedDict):
    """A result dict that came through XCom: these fields were checked; all others may hold anything, or be missing."""

    kie_task_id: str
    urls: list[str]


class FileDict(TypedDict):
    """One of ``files`` in a result dict: the JSON of a :class:`SavedFile`."""

    path: str
    sha256: str
    stored_sha256: str
    bytes: int
    media_type: str
    width: int | None
    height: int | None
    sidecar: str
    thumbnail: str | None


class SavedResult(Result):
    """A result dict with the files that were saved."""

    files: list[FileDict]


@dataclass(frozen=True)
class SavedFile:
    """One saved file, as in ``files`` of the result dict.

    :param path: in the form that Airflow's ``ObjectStoragePath`` reads.
    :param sha256: of the bytes that Kie delivered, in hexadecimal.
    :param stored_sha256: of the bytes that were stored; differs only if provenance was embedded.
    :param bytes: size as stored.
    :param media_type: by content.
    :param width: in pixels, as displayed; None: not a decoded image.
    :param height: likewise.
    :param sidecar: path of the JSON file beside it.
    :param thumbnail: path of a small JPEG; None: not a decoded image, or the thumbnail could not be made.
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

    def to_json(self) -> FileDict:
        """Return it as JSON."""
        return cast("FileDict", asdict(self))

    @classmethod
    def from_json(cls, value: object) -> SavedFile | None:
        """Read back what :meth:`to_json` returned and anybody may have changed since; None: it is not valid."""
        if not isinstance(value, Mapping):
            return None
        # Checked below: a class call cannot take values that are objects.
        values: dict[str, Any] = {field.name: value.get(field.name) for field in fields(cls)}
        file = cls(**values)
        texts = (file.path, file.sha256, file.stored_sha256, file.media_type, file.sidecar, file.thumbnail or "")
        numbers = [file.bytes, *(each for each in (file.width, file.height) if each is not None)]
        is_valid = all(isinstance(each, str) for each in texts) and all(type(each) is int for each in numbers)
        return file if is_valid else None


@dataclass(frozen=True)
class RunFacts:
    """The task instance that saves a file."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int

    @classmethod
    def of(cls, ti: RuntimeTaskInstanceProtocol) -> RunFacts:
        """Read them from Airflow's task instance."""
        map_index = -1 if ti.map_index is None else ti.map_index
        return cls(ti.dag_id, ti.run_id, ti.task_id, map_index, ti.try_number)


def input_of(result: Mapping[str, object]) -> Mapping[str, object]:
    """Return the ``input`` of a result dict, as Kie recorded it; empty if there is none."""
    task_input = result.get("input")
    return task_input if isinstance(task_input, Mapping) else {}


def plain(value: T) -> T:
    """Return ``value`` as plain JSON values that can be stored anywhere, whatever its content and depth."""
    return cast("T", storable(_plain(value, _DEEPEST)))


def _plain(value: object, levels: int) -> object:
    if isinstance(value, Mapping):
        return {str(name): _plain(each, levels - 1) for name, each in value.items()} if levels else "..."
    if isinstance(value, list | tuple):
        return [_plain(each, levels - 1) for each in value] if levels else "..."
    return value if value is None or isinstance(value, str | int | float) else str(value)


def sidecar(
    result: Result,
    index: int,
    file: SavedFile,
    run: RunFacts,
    prices: PriceTable,
    *,
    redact_prompt: bool,
    embedded: bool,
) -> dict[str, object]:
    """Return the content of the JSON file beside a result.

    :param result: the result dict.
    :param index: of the file among the result's URLs.
    :param redact_prompt: write the prompt's sha256 instead of the prompt.
    :param embedded: whether provenance was also embedded in the file itself.
    """
    task_input = dict(input_of(result))
    prompt = task_input.get("prompt")
    facts: dict[str, object] = {"prompt": prompt}
    if redact_prompt:
        task_input.pop("prompt", None)
        facts = {"prompt": None, "prompt_sha256": prompt_sha256(prompt)}
    credits_used = prices.cost_of(result)
    content: dict[str, object] = {
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
    return plain(content)


def prompt_sha256(prompt: object) -> str | None:
    """Return the hash that replaces a redacted prompt, in hexadecimal; None: there is no prompt."""
    return hashlib.sha256(prompt.encode("utf-8", "replace")).hexdigest() if isinstance(prompt, str) else None
