"""From what task instances have left to what the page shows: a picture or a gap for every image. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from kie_provider.airflow_errors import FAILURE_KEY
from kie_provider.client.errors import clean_text
from kie_provider.client.results import is_http_url
from kie_provider.contact_sheet.results import list_of, number_of, prompt_of, text_of
from kie_provider.contact_sheet.tiles import Tile
from kie_provider.plugin.outputs import FOLLOWERS, TaskOutput

State = Literal["image", "failed", "running"]
STATES: tuple[State, ...] = ("image", "failed", "running")
#: Which of several tiles of one Kie task is shown: creating, waiting and saving may be three task instances.
_RUNNING, _LINKED, _FAILED, _SAVED = range(4)
_UNFINISHED = frozenset(
    {
        *("scheduled", "queued", "running", "restarting", "up_for_retry", "up_for_reschedule", "deferred"),
        "awaiting_input",
    }
)

#: Reads a batch's manifest: its items, or a text that says why there are none.
ReadItems = Callable[[TaskOutput, str], "Sequence[Mapping[str, Any]] | str"]


@dataclass(frozen=True)
class Picture:
    """A place of the page.

    :param tile: what is shown there; its ``where`` is the path or URL of the full image.
    :param output: the task instance it is from.
    :param item: which item of a batch it is; -1: it is from no batch.
    :param number: which file of its result, from 0; -1: there is no file.
    :param version: changes when the file does.
    :param thumbnail: whether there is one.
    """

    tile: Tile
    output: TaskOutput
    state: State = "image"
    item: int = -1
    number: int = -1
    version: str = ""
    thumbnail: bool = False
    kie_task_id: str = ""
    rank: int = _SAVED

    def matches(self, text: str) -> bool:
        """Whether a text is in the prompt, or is the Kie task id."""
        return text in self.tile.prompt.casefold() or text == self.kie_task_id.casefold()


@dataclass(frozen=True)
class File:
    """A saved file, as a result names it.

    :param path: of the image; ``thumbnail`` of its small version.
    """

    kie_task_id: str
    path: str
    thumbnail: str = ""
    version: str = ""


def pictures_of(outputs: Iterable[TaskOutput], read_items: ReadItems) -> list[Picture]:
    """Return the pictures and gaps of task instances, in their order.

    Of a Kie task that several of them speak of, the one that knows most is shown.
    """
    found = [picture for output in outputs for picture in _pictures(output, read_items)]
    best: dict[str, int] = {}
    for picture in found:
        if picture.kie_task_id:
            best[picture.kie_task_id] = max(best.get(picture.kie_task_id, 0), picture.rank)
    return [picture for picture in found if picture.rank >= best.get(picture.kie_task_id, 0)]


def file_of(output: TaskOutput, item: int, number: int, read_items: ReadItems) -> File | None:
    """Return a saved file of a task instance; None: there is none."""
    result = output.values.get("return_value")
    if item >= 0:
        items = read_items(output, manifest_of(output) or "")
        result = (
            next((each for each in items if each.get("item") == item), None) if not isinstance(items, str) else None
        )
    if not isinstance(result, Mapping):
        return None
    files = list_of(result.get("files"))
    file = files[number] if 0 <= number < len(files) else None
    if not isinstance(file, Mapping) or not text_of(file.get("path")):
        return None
    return File(
        text_of(result.get("kie_task_id")),
        text_of(file.get("path")),
        text_of(file.get("thumbnail")),
        text_of(file.get("stored_sha256"))[:16],
    )


def manifest_of(output: TaskOutput) -> str | None:
    """Return the path of a batch's manifest; None: it is no batch, or has none yet."""
    for key in ("return_value", "progress"):
        told = output.values.get(key)
        if isinstance(told, Mapping) and (path := text_of(told.get("manifest"))):
            return path
    return None


def _pictures(output: TaskOutput, read_items: ReadItems) -> Iterator[Picture]:
    result, path = output.values.get("return_value"), manifest_of(output)
    if path is not None:
        yield from _of_batch(output, path, read_items)
    elif isinstance(result, Mapping) and isinstance(result.get("urls"), list):
        yield from _of_result(output, result)
    elif result is not None and output.state == "success":
        yield from _of_unknown(output, result)
    else:
        yield from _without_result(output)


def _of_result(output: TaskOutput, result: Mapping[str, Any], item: int = -1) -> Iterator[Picture]:
    """Yield a picture for every file, or URL if none was saved."""
    base = Picture(
        Tile(
            clean_text(prompt_of(result)),
            kind="other",
            model=clean_text(text_of(result.get("model"))),
            seconds=number_of(result.get("cost_seconds")),
            credits=number_of(result.get("credits_consumed")),
        ),
        output,
        item=item,
        kie_task_id=text_of(result.get("kie_task_id")),
    )
    made = [file for file in list_of(result.get("files")) if isinstance(file, Mapping)]
    pictures = [_of_file(base, file, number) for number, file in enumerate(made)]
    if not pictures:
        note = "not saved; Kie keeps it for 24 hours or some more, at its own address"
        urls = [url for url in list_of(result.get("urls")) if is_http_url(url)]
        pictures = [
            replace(base, rank=_LINKED, tile=replace(base.tile, note=note, where=url, link=url)) for url in urls
        ] or [replace(base, rank=_LINKED, tile=replace(base.tile, note="no image, but another result"))]
    for n, picture in enumerate(pictures):
        number = f"{n + 1} of {len(pictures)}" if len(pictures) > 1 else ""
        yield replace(picture, tile=replace(picture.tile, number=number, credits=None if n else picture.tile.credits))


def _of_file(base: Picture, file: Mapping[str, Any], number: int) -> Picture:
    width, height = number_of(file.get("width")), number_of(file.get("height"))
    media_type = text_of(file.get("media_type"))
    is_image = media_type.startswith("image/")
    tile = replace(
        base.tile,
        kind="image" if is_image else "other",
        note="" if is_image else media_type,
        size=(int(width), int(height)) if width and height else None,
        where=clean_text(text_of(file.get("path"))),
    )
    return replace(
        base,
        tile=tile,
        number=number,
        version=text_of(file.get("stored_sha256"))[:16],
        thumbnail=bool(text_of(file.get("thumbnail"))),
    )


def _of_batch(output: TaskOutput, path: str, read_items: ReadItems) -> Iterator[Picture]:
    items = read_items(output, path)
    if isinstance(items, str):
        told = next(v for key in ("return_value", "progress") if isinstance(v := output.values.get(key), Mapping))
        counts = [f"{told.get(name)} {name}" for name in ("images", "saved", "failed") if number_of(told.get(name))]
        if output.state in _UNFINISHED:
            yield Picture(
                _gap("", f"{', '.join(counts)} so far", is_open=True, model=_model(output)), output, "running"
            )
            return
        note = f"The list of this batch ({', '.join(counts)}) cannot be shown: {items}"
        yield Picture(Tile("", kind="unreadable", note=clean_text(note), where=path), output, "failed")
        return
    for item in items:
        index = item.get("item")
        if not isinstance(index, int):
            continue
        if item.get("outcome") == "saved":
            yield from _of_result(output, item, index)
            continue
        outcome = text_of(item.get("outcome")).replace("_", " ")
        is_open = outcome in ("running", "not ordered") and output.state in _UNFINISHED
        reason = text_of(item.get("reason"))
        yield Picture(
            _gap(prompt_of(item), reason or outcome, is_open=is_open, model=_input(item).get("model")),
            output,
            "running" if is_open else "failed",
            item=index,
            kie_task_id=text_of(item.get("kie_task_id")),
            rank=_RUNNING if is_open else _FAILED,
        )


def _of_unknown(output: TaskOutput, result: Any) -> Iterator[Picture]:
    """Yield what stands for a value that is no result: a Kie task id, or what another XCom backend has stored."""
    if output.operator not in FOLLOWERS and isinstance(result, str) and result.isalnum():
        tile = _gap(_prompt(output), "created; nothing here waits for it", is_open=True, model=_model(output))
        yield Picture(tile, output, "running", kie_task_id=result, rank=_RUNNING)
    elif not isinstance(result, Mapping) or "html" not in result:  # a contact sheet is no image of its own
        note = "The result is kept by a custom XCom backend, which this page cannot read"
        yield Picture(Tile(_prompt(output), kind="other", note=note, model=_model(output)), output)


def _without_result(output: TaskOutput) -> Iterator[Picture]:
    """Yield a gap: the task instance is at work, or has failed."""
    told = output.values.get(FAILURE_KEY)
    failure = told if isinstance(told, Mapping) else {}
    reason, state = text_of(failure.get("reason")), output.state or "to come"
    kie_task_id = text_of(failure.get("kie_task_id")) or text_of(output.values.get("kie_task_id"))
    is_open = output.state is None or output.state in _UNFINISHED
    if (output.operator in FOLLOWERS and state != "failed") or state in ("removed", "success"):
        return
    if state == "up_for_retry" and reason:
        state = f"to be tried again: {reason}"
    elif state == "failed":
        state = reason or "failed; the log says why"
    tile = _gap(_prompt(output), state.replace("_", " "), is_open=is_open, model=_model(output))
    yield Picture(
        tile,
        output,
        "running" if is_open else "failed",
        kie_task_id=kie_task_id,
        rank=_RUNNING if is_open else _FAILED,
    )


def _gap(prompt: str, note: str, *, is_open: bool, model: Any) -> Tile:
    return Tile(
        clean_text(prompt),
        kind="running" if is_open else "failed",
        note=clean_text(note),
        model=clean_text(text_of(model)),
        state="running" if is_open else "failed",
    )


def _input(item: Mapping[str, Any]) -> Mapping[str, Any]:
    told = item.get("input")
    return told if isinstance(told, Mapping) else {}


def _prompt(output: TaskOutput) -> str:
    prompt = output.rendered.get("prompt")
    return text_of(prompt) or text_of(_input(output.rendered).get("prompt"))


def _model(output: TaskOutput) -> str:
    return text_of(output.rendered.get("model"))
