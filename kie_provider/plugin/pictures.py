"""From the output of task instances to what the page shows: a picture or a gap for every image. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Literal

from kie_provider.client.plain import is_http_url
from kie_provider.client.prices import PriceTable
from kie_provider.contact_sheet.results import list_of, number_of, prompt_of, text_of
from kie_provider.contact_sheet.tiles import Tile
from kie_provider.failures import FAILURE_KEY
from kie_provider.plugin.outputs import FOLLOWERS, RESULT_KEY, TaskOutput

#: How long a link of Kie's is shown; it can expire sooner, but not much later.
_LINK_LIFETIME = timedelta(hours=24)

State = Literal["image", "failed", "running"]
STATES: tuple[State, ...] = ("image", "failed", "running")
#: Ranks: of several pictures of one Kie task the highest is shown. Creating, waiting and saving may be three task
#: instances.
_RUNNING, _LINKED, _FAILED, _SAVED = range(4)
UNFINISHED = frozenset(
    {
        *("scheduled", "queued", "running", "restarting", "up_for_retry", "up_for_reschedule", "deferred"),
        "awaiting_input",
    }
)

#: Reads a batch's manifest: its items, or a text that says why there are none.
ReadItems = Callable[[TaskOutput, str], "Sequence[Mapping[str, object]] | str"]


@dataclass
class Picture:
    """An image or a gap on the page. There may be thousands, of which few are shown.

    :param kind: as in :class:`~kie_provider.contact_sheet.tiles.Tile`; likewise ``note``, ``credits`` and ``seconds``.
    :param item: index in its batch; -1: not from a batch.
    :param number: index among the files or URLs of its result; -1: it has none.
    :param count: number of files or URLs of its result.
    :param file: the entry in the result's ``files``; None: it is not saved.
    :param link: Kie's own link, unless it has expired.
    :param where: path or URL, as text.
    """

    output: TaskOutput
    prompt: str = ""
    kind: str = "image"
    note: str = ""
    state: State = "image"
    model: object = ""
    kie_task_id: str = ""
    rank: int = _SAVED
    item: int = -1
    number: int = -1
    count: int = 1
    credits: float | None = None
    seconds: object = None
    file: Mapping[str, object] | None = None
    link: str | None = None
    where: object = ""

    def matches(self, text: str) -> bool:
        """Whether a text (case-folded) is in the prompt, or is the Kie task id."""
        return text in self.prompt.casefold() or text == self.kie_task_id.casefold()

    @property
    def version(self) -> str:
        """A text that changes when the file does."""
        return version_of(self.file) if self.file else ""

    @property
    def has_thumbnail(self) -> bool:
        """Whether the file has a thumbnail."""
        return self.file is not None and bool(text_of(self.file.get("thumbnail")))

    def tile(self) -> Tile:
        """Return the tile that shows it."""
        file = self.file or {}
        width, height = number_of(file.get("width")), number_of(file.get("height"))
        return Tile(
            self.prompt,
            kind=self.kind,
            note=self.note,
            model=text_of(self.model),
            state="" if self.state == "image" else self.state,
            credits=self.credits,
            seconds=number_of(self.seconds),
            number=f"{self.number + 1} of {self.count}" if self.count > 1 else "",
            size=(int(width), int(height)) if width and height else None,
            where=text_of(self.where),
            link=self.link,
        )


@dataclass(frozen=True)
class File:
    """A saved file, as named in a result.

    :param path: of the image.
    :param thumbnail: path of its thumbnail; empty: there is none.
    :param version: a text that changes when the file does.
    """

    kie_task_id: str
    path: str
    thumbnail: str = ""
    version: str = ""


def pictures_of(outputs: Iterable[TaskOutput], read_items: ReadItems, prices: PriceTable) -> list[Picture]:
    """Return the pictures and gaps of task instances, in their order.

    If several task instances are about one Kie task, the one furthest along is shown.

    :param read_items: reads the manifest of a batch.
    :param prices: what results cost where Kie does not say.
    """
    found = [picture for output in outputs for picture in _pictures(output, read_items, prices)]
    best: dict[str, int] = {}
    for picture in found:
        if picture.kie_task_id:
            best[picture.kie_task_id] = max(best.get(picture.kie_task_id, 0), picture.rank)
    return [picture for picture in found if picture.rank >= best.get(picture.kie_task_id, 0)]


def file_of(output: TaskOutput, item: int, number: int, read_items: ReadItems) -> File | None:
    """Return a saved file of a task instance; None: it has no such file.

    :param item: index in a batch; -1: not a batch.
    :param number: index among the files of the result.
    """
    result = output.values.get(RESULT_KEY)
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
        version_of(file),
    )


def manifest_of(output: TaskOutput) -> str | None:
    """Return the path of a batch's manifest; None: not a batch, or no manifest yet."""
    for key in (RESULT_KEY, "progress"):
        value = output.values.get(key)
        if isinstance(value, Mapping) and (path := text_of(value.get("manifest"))):
            return path
    return None


def version_of(file: Mapping[str, object]) -> str:
    """Return a text that changes when a file does."""
    return re.sub(r"\W", "", text_of(file.get("stored_sha256")), flags=re.ASCII)[:16]


def _pictures(output: TaskOutput, read_items: ReadItems, prices: PriceTable) -> Iterator[Picture]:
    result, path = output.values.get(RESULT_KEY), manifest_of(output)
    if path is not None:
        yield from _of_batch(output, path, read_items, prices)
    elif isinstance(result, Mapping) and isinstance(result.get("urls"), list):
        yield from _of_result(output, result, prices)
    elif result is not None and output.state == "success":
        yield from _of_unknown(output, result)
    else:
        yield from _without_result(output)


def _of_result(
    output: TaskOutput, result: Mapping[str, object], prices: PriceTable, item: int = -1
) -> Iterator[Picture]:
    """Yield a picture for every file, or for every URL if no file was saved."""
    picture = partial(
        Picture,
        output,
        prompt=prompt_of(result),
        model=result.get("model"),
        kie_task_id=text_of(result.get("kie_task_id")),
        seconds=result.get("cost_seconds"),
        item=item,
    )
    cost = prices.cost_of(result)
    files = [file for file in list_of(result.get("files")) if isinstance(file, Mapping)]
    for number, file in enumerate(files):
        media_type = text_of(file.get("media_type"))
        is_image = media_type.startswith("image/")
        yield picture(
            kind="image" if is_image else "other",
            note="" if is_image else media_type,
            number=number,
            count=len(files),
            credits=None if number else cost,
            file=file,
            where=file.get("path"),
        )
    if files:
        return
    is_alive = _age(result.get("completed_at")) < _LINK_LIFETIME
    note = "not saved; Kie's own link works for a day" if is_alive else "not saved, link expired"
    urls = [url for url in list_of(result.get("urls")) if is_http_url(url)]
    for number, url in enumerate(urls):
        yield picture(
            kind="other",
            note=note,
            rank=_LINKED,
            number=number,
            count=len(urls),
            credits=None if number else cost,
            link=url if is_alive else None,
            where=url,
        )
    if not urls:
        yield picture(kind="other", note="the result is not an image", rank=_LINKED, credits=cost)


def _age(moment: object) -> timedelta:
    """Return the age of an ISO 8601 time; 0 if the text is not one."""
    try:
        return datetime.now(timezone.utc) - datetime.fromisoformat(text_of(moment).replace("Z", "+00:00"))
    except (ValueError, TypeError):
        return timedelta(0)


def _of_batch(output: TaskOutput, path: str, read_items: ReadItems, prices: PriceTable) -> Iterator[Picture]:
    items = read_items(output, path)
    if isinstance(items, str):
        progress = next(v for key in (RESULT_KEY, "progress") if isinstance(v := output.values.get(key), Mapping))
        counts = [
            f"{progress.get(name)} {name}" for name in ("images", "saved", "failed") if number_of(progress.get(name))
        ]
        if output.state in UNFINISHED:
            yield _gap(output, f"{', '.join(counts)} so far", "running", model=_model(output))
        else:
            note = f"The manifest of this batch ({', '.join(counts)}) cannot be shown: {items}"
            yield Picture(output, kind="unreadable", note=note, state="failed", where=path)
        return
    for item in items:
        index, outcome = item.get("item"), text_of(item.get("outcome")).replace("_", " ")
        if not isinstance(index, int):
            continue
        if outcome == "saved":
            yield from _of_result(output, item, prices, index)
        else:
            is_open = outcome in ("running", "not submitted") and output.state in UNFINISHED
            yield _gap(
                output,
                text_of(item.get("reason")) or outcome,
                "running" if is_open else "failed",
                prompt=prompt_of(item),
                model=_input(item).get("model"),
                item=index,
                kie_task_id=text_of(item.get("kie_task_id")),
            )


def _of_unknown(output: TaskOutput, result: object) -> Iterator[Picture]:
    """Yield a gap for a value that is not a result: a Kie task id, or a reference of a custom XCom backend."""
    prompt, model = _prompt(output), _model(output)
    if output.operator not in FOLLOWERS and isinstance(result, str) and result.isalnum():
        yield _gap(
            output, "created; no task here waits for it yet", "running", kie_task_id=result, prompt=prompt, model=model
        )
    elif not isinstance(result, Mapping) or "html" not in result:  # a contact sheet is not an image of a Kie task
        note = "The result is stored by a custom XCom backend, which this page cannot read"
        yield Picture(output, kind="other", note=note, prompt=prompt, model=model)


def _without_result(output: TaskOutput) -> Iterator[Picture]:
    """Yield a gap: the task instance has not finished, or has failed."""
    value = output.values.get(FAILURE_KEY)
    failure = value if isinstance(value, Mapping) else {}
    reason, state = text_of(failure.get("reason")), output.state or "to come"
    if (output.operator in FOLLOWERS and state != "failed") or state in ("removed", "success"):
        return
    note = state.replace("_", " ")
    if state == "up_for_retry" and reason:
        note = f"waiting for a retry: {reason}"
    elif state == "failed":
        note = reason or "failed; see the log"
    yield _gap(
        output,
        note,
        "running" if output.state is None or output.state in UNFINISHED else "failed",
        prompt=_prompt(output),
        model=_model(output),
        kie_task_id=text_of(failure.get("kie_task_id")) or text_of(output.values.get("kie_task_id")),
    )


def _gap(
    output: TaskOutput,
    note: str,
    state: State,
    *,
    prompt: str = "",
    model: object = "",
    kie_task_id: str = "",
    item: int = -1,
) -> Picture:
    return Picture(
        output,
        prompt=prompt,
        kind=state,
        note=note,
        state=state,
        model=model,
        kie_task_id=kie_task_id,
        rank=_RUNNING if state == "running" else _FAILED,
        item=item,
    )


def _input(item: Mapping[str, object]) -> Mapping[str, object]:
    task_input = item.get("input")
    return task_input if isinstance(task_input, Mapping) else {}


def _prompt(output: TaskOutput) -> str:
    return text_of(output.rendered.get("prompt")) or text_of(_input(output.rendered).get("prompt"))


def _model(output: TaskOutput) -> str:
    return text_of(output.rendered.get("model"))
