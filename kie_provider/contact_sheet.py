"""One page, one picture and one list that show all images of a run: :func:`write_contact_sheet`.

A sheet is a report: what is wrong with one result (no file, a file that cannot be read) is shown in its tile and
never stops the others. Results come from Kie and through XCom, so nothing in them is trusted.
"""

from __future__ import annotations

import base64
import html
import json
import logging
import math
import os
import shutil
import statistics
import tempfile
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote

from kie_provider.client.errors import clean_text, storable
from kie_provider.client.models import is_blank, is_http_url

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

log = logging.getLogger(__name__)

#: US dollars for one credit.
USD_PER_CREDIT = 0.005
#: Longest side of a thumbnail, in pixels.
THUMBNAIL_SIZE = 320
#: Images with more pixels are not decoded: one may take 4 bytes per pixel, in each thread.
MAX_IMAGE_PIXELS = 64_000_000
#: The picture gets smaller thumbnails rather than more pixels than this.
MAX_SHEET_PIXELS = 12_000_000
#: Decoding uses a core per thread and one decoded image of memory.
THREADS = 2

_JPEG_QUALITY = 80
# Pillow knows more formats, but some of them start other programs (EPS) or are attacked often.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "AVIF")
_READ_BLOCK = 4 * 2**20

_PAGE, _PANEL, _WELL, _LINE = "#111216", "#191a20", "#0c0d10", "#2b2d36"
_INK, _MUTED, _ALARM = "#e9e7e2", "#8f919c", "#d9897f"
_SEPARATOR = " \u00b7 "


def write_contact_sheet(
    results: Iterable[Any] | Mapping[str, Any] | None,
    folder: ObjectStoragePath | str,
    *,
    prompts: Iterable[Any] | None = (),
    title: str = "Contact sheet",
    name: str = "contact_sheet",
    usd_per_credit: float = USD_PER_CREDIT,
) -> dict[str, Any]:
    """Show results and gaps as ``<name>.html``, ``<name>.png`` and ``<name>.json`` in ``folder``; needs Pillow.

    The page holds its thumbnails, so it can be moved and mailed; only its links to the full images are relative. The
    JSON has ``title``, ``results``, ``prompts_without_result`` and ``totals`` (``images``, ``missing``, ``unreadable``,
    ``other``, ``credits``, ``usd``). Each file appears only when it is complete.

    :param results: result dicts, also nested in lists, or a single one; what is not a dict is left out: Airflow 3.1
        fills the places of failed mapped tasks with such things. Saved images are those of ``files``.
    :param folder: where the three files go, as ObjectStoragePath or its text: a local folder, which is created, or
        ``s3://conn@bucket/prefix``.
    :param prompts: all prompts that were asked for, in the order to show them; those that no result answers
        (``result["input"]["prompt"]``; white space around it does not count, each result answers one) show as gaps.
        Results that answer none of them come last. Default: no gaps.
    :param title: heading of the page and the picture.
    :param name: file name without suffix.
    :param usd_per_credit: US dollars for one credit, default 0.005.
    :return: ``html``, ``png``, ``manifest`` (paths as text), ``images`` (those shown), ``missing`` (prompts without
        an image) and ``credits`` (sum over all results).
    :raises ValueError: ``name`` or ``folder`` cannot be used.
    :raises OSError: the folder cannot be written; the message names the file.
    :raises ImportError: Pillow is not installed.
    """
    _require_pillow()
    folder = _folder(folder)
    if not name or name != PurePosixPath(name).name or name == ".." or "\\" in name:
        raise ValueError(f"name: must be a file name without folder and suffix, got {name!r}")
    title = clean_text(title)
    made = result_dicts(results)
    rows = _match(made, [clean_text(str(p)).strip() for p in _flat(prompts) if p is not None])
    without_result = [prompt for prompt, result in rows if result is None]
    tiles = _with_thumbnails([tile for prompt, result in rows for tile in _tiles(prompt, result, folder)])
    totals = _totals(tiles, made, usd_per_credit)
    manifest = {"title": title, "results": made, "prompts_without_result": without_result, "totals": totals}
    with tempfile.TemporaryDirectory(prefix="kie-sheet-") as scratch:
        page, picture, listing = (Path(scratch, f"sheet.{suffix}") for suffix in ("html", "png", "json"))
        page.write_text(_page(tiles, title, totals, usd_per_credit), encoding="utf-8")
        _draw(tiles, title, _headline(totals), picture)
        listing.write_text(json.dumps(manifest, ensure_ascii=False, indent=2), encoding="utf-8")
        # The page comes last: who sees it, sees the others too.
        paths = {
            key: _publish(file, folder / f"{name}{file.suffix}")
            for key, file in (("manifest", listing), ("png", picture), ("html", page))
        }
    return {
        "html": paths["html"],
        "png": paths["png"],
        "manifest": paths["manifest"],
        "images": totals["images"],
        "missing": totals["missing"],
        "credits": totals["credits"],
    }


def result_dicts(results: Iterable[Any] | Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return the dicts in ``results``, however nested, as plain JSON; anything else in it is left out."""
    found = [dict(item) for item in _flat(results) if isinstance(item, Mapping)]
    return list(storable(json.loads(json.dumps(found, default=str, skipkeys=True))))


def _flat(value: Any) -> Iterator[Any]:
    """Yield what is in ``value`` and in the sequences within; text and mappings count as one item."""
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def _match(results: Sequence[dict[str, Any]], prompts: Sequence[str]) -> list[tuple[str, dict[str, Any] | None]]:
    """Pair every prompt with its result, or None; results that answer no prompt follow with their own."""
    waiting: dict[str, deque[int]] = {}
    for index, result in enumerate(results):
        waiting.setdefault(_prompt(result), deque()).append(index)
    chosen = [waiting[prompt].popleft() if waiting.get(prompt) else None for prompt in prompts]
    rest = sorted(index for indexes in waiting.values() for index in indexes)
    rows = [(prompt, None if i is None else results[i]) for prompt, i in zip(prompts, chosen, strict=True)]
    return [*rows, *((_prompt(results[i]), results[i]) for i in rest)]


def _prompt(result: Mapping[str, Any]) -> str:
    task_input = result.get("input")
    return _text(task_input.get("prompt")).strip() if isinstance(task_input, dict) else ""


@dataclass(frozen=True)
class _Tile:
    """One place of the sheet.

    :param kind: ``image``; ``missing`` (there is none), ``unreadable`` (there is a file, but it cannot be shown) or
        ``other`` (not saved, or not an image).
    :param note: what stands in place of the thumbnail.
    :param problem: why the file cannot be shown, in full: for the log, a sheet may be mailed to anybody.
    :param credits: what its result cost; only with the first file of a result.
    :param file: the saved file.
    :param where: path or URL of the full image, as text.
    :param link: the same for a browser, if one can follow it; ``sidecar`` likewise, for the JSON.
    :param thumbnail: JPEG.
    """

    prompt: str
    kind: str = "missing"
    note: str = "no image"
    problem: str = ""
    model: str = ""
    state: str = ""
    credits: float | None = None
    seconds: float | None = None
    number: str = ""
    size: tuple[int, int] | None = None
    file: ObjectStoragePath | None = None
    where: str = ""
    link: str | None = None
    sidecar: str | None = None
    thumbnail: bytes | None = None

    def facts(self, usd_per_credit: float | None = None) -> list[str]:
        """Return what is known of the result, and what it cost in dollars if their rate is given."""
        facts = [self.number] if self.number else []
        if self.credits is not None:
            facts.append(_count(self.credits, "credit"))
            if usd_per_credit is not None:
                facts.append(_dollars(self.credits * usd_per_credit))
        if self.seconds is not None:
            facts.append(f"{self.seconds:g} s")
        if self.size:
            facts.append(f"{self.size[0]} \u00d7 {self.size[1]}")
        return facts


def _tiles(prompt: str, result: Mapping[str, Any] | None, folder: ObjectStoragePath) -> list[_Tile]:
    """Return a tile for every file of a result, or every URL if none was saved; one tile if there is neither."""
    if result is None:
        return [_Tile(prompt)]
    base = _Tile(
        prompt,
        model=_text(result.get("model")),
        state=_text(result.get("state")),
        credits=_number(result.get("credits_consumed")),
        seconds=_number(result.get("cost_seconds")),
    )
    tiles = [_file_tile(base, file, folder) for file in _list(result.get("files")) if isinstance(file, dict)]
    if not tiles:
        urls = [url for url in _list(result.get("urls")) if is_http_url(url)]
        tiles = [replace(base, kind="other", note="not saved", where=url, link=url) for url in urls]
    if len(tiles) > 1:
        tiles = [
            replace(tile, number=f"{n + 1} of {len(tiles)}", credits=None if n else tile.credits)
            for n, tile in enumerate(tiles)
        ]
    return tiles or [base]


def _file_tile(base: _Tile, file: Mapping[str, Any], folder: ObjectStoragePath) -> _Tile:
    path, media_type = _text(file.get("path")), _text(file.get("media_type"))
    width, height = _number(file.get("width")), _number(file.get("height"))
    where = _storage_path(path)
    tile = replace(
        base,
        kind="image",
        note="",
        size=(int(width), int(height)) if width and height else None,
        file=where,
        where=path,
        link=_link(path, where, folder),
        sidecar=_link(sidecar := _text(file.get("sidecar")), _storage_path(sidecar), folder),
    )
    if media_type and not media_type.startswith("image/"):
        return replace(tile, kind="other", note=media_type)
    return tile


def _link(path: str, file: ObjectStoragePath | None, folder: ObjectStoragePath) -> str | None:
    """Return the link from a page in ``folder``: relative for what is below it, else a URL or local path, or None."""
    if is_http_url(path):
        return path
    if file is None or _store(file) != _store(folder):
        return None
    below = PurePosixPath(file.path)
    if below.is_relative_to(folder.path):
        # With the dot, and colons quoted, no file name is taken for a scheme.
        return f"./{quote(below.relative_to(folder.path).as_posix())}"
    # Two slashes would start the name of a host.
    return f"/{quote(file.path.lstrip('/'))}" if _is_local(file) else None


def _with_thumbnails(tiles: Sequence[_Tile]) -> list[_Tile]:
    """Read the images, in threads; what cannot be read becomes a tile that says so, and a warning."""
    # Looked up here: a task's connections are asked for by its main thread.
    systems = [_file_system(tile) for tile in tiles]
    with ThreadPoolExecutor(THREADS, thread_name_prefix="kie-sheet") as pool:
        done = list(pool.map(_with_thumbnail, tiles, systems))
    for tile in done:
        if tile.kind == "unreadable":
            log.warning("The contact sheet cannot show %s: %s", tile.where or "a file without path", tile.problem)
    return done


def _file_system(tile: _Tile) -> Any:
    """Return the fsspec file system of a tile's image, or the error that came instead."""
    if tile.kind != "image" or tile.file is None or _is_local(tile.file):
        return None
    try:
        return tile.file.fs
    except Exception as error:  # noqa: BLE001  # a missing connection, package or permission: the tile says so
        return error


def _with_thumbnail(tile: _Tile, system: Any) -> _Tile:
    if tile.kind != "image":
        return tile
    try:
        if isinstance(system, Exception):
            raise system
        with _open(tile, system) as stream:
            thumbnail, size = _shrink(stream)
    except Exception as error:  # noqa: BLE001  # decoders raise anything; it is this tile's matter only
        problem = f"{type(error).__name__}: {error}"
        return replace(tile, kind="unreadable", note=_why(error), problem=clean_text(problem))
    return replace(tile, thumbnail=thumbnail, size=size)


def _open(tile: _Tile, system: Any) -> BinaryIO:
    if tile.file is None:
        raise ValueError("not a path of a known storage")
    if system is None:
        return Path(tile.file.path).open("rb")
    stream: BinaryIO = system.open(tile.file.path, "rb", block_size=_READ_BLOCK)
    return stream


class _TooLargeError(Exception):
    """An image has more pixels than are decoded."""


def _shrink(stream: BinaryIO) -> tuple[bytes, tuple[int, int]]:
    """Return an image's thumbnail as JPEG, and the size of the image.

    :raises Exception: it is too large, or no image that can be decoded.
    """
    from io import BytesIO

    from PIL import Image

    Image.init()
    with Image.open(stream, formats=[f for f in _FORMATS if f in Image.OPEN]) as image:
        width, height = size = image.size
        if width * height > MAX_IMAGE_PIXELS:
            raise _TooLargeError(f"{width} \u00d7 {height} pixels")
        small = image
        if image.mode not in ("RGB", "RGBA", "L", "LA", "CMYK", "YCbCr"):  # others shrink badly, or not at all
            small = image.convert("RGBA" if "transparency" in image.info else "RGB")
        # The gap lets JPEG decode at reduced size and averages whole pixels of the others first: a third of the time.
        small.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.BICUBIC, reducing_gap=1.0)
        canvas = Image.new("RGB", small.size, _WELL)  # takes no metadata along
        canvas.paste(small, mask=small.getchannel("A") if small.mode in ("RGBA", "LA") else None)
    buffer = BytesIO()
    canvas.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue(), size


def _why(error: Exception) -> str:
    """Say in a few words why an image is not shown."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, _TooLargeError | Image.DecompressionBombError | Image.DecompressionBombWarning):
        return "too large"
    if isinstance(error, FileNotFoundError):
        return "file not found"
    return "not an image" if isinstance(error, UnidentifiedImageError) else "cannot be read"


def _totals(tiles: Sequence[_Tile], results: Sequence[Mapping[str, Any]], usd_per_credit: float) -> dict[str, Any]:
    charged = sum(_number(result.get("credits_consumed")) or 0 for result in results)
    kinds = [tile.kind for tile in tiles]
    return {
        "images": kinds.count("image"),
        "missing": kinds.count("missing"),
        "unreadable": kinds.count("unreadable"),
        "other": kinds.count("other"),
        "credits": round(charged, 6),
        "usd": round(charged * usd_per_credit, 6),
    }


def _headline(totals: Mapping[str, Any]) -> str:
    return _SEPARATOR.join(
        [
            _count(totals["images"], "image"),
            *([_count(totals["missing"], "gap")] if totals["missing"] else []),
            *([f"{totals['unreadable']} unreadable"] if totals["unreadable"] else []),
            *([f"{totals['other']} without preview"] if totals["other"] else []),
            _count(totals["credits"], "credit"),
            _dollars(totals["usd"]),
        ]
    )


# The page


def _page(tiles: Sequence[_Tile], title: str, totals: Mapping[str, Any], usd_per_credit: float) -> str:
    """Return the sheet as one HTML page that loads nothing: thumbnails are in it, and there are no scripts."""
    figures = "\n".join(_figure(tile, usd_per_credit) for tile in tiles)
    heading = html.escape(title)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{heading}</title>
<style>{_STYLE}  :root {{ --ratio: {1 / _height_ratio(tiles):.4f}; }}
</style>
</head>
<body>
<header>
<h1>{heading}</h1>
<p>{html.escape(_headline(totals))}</p>
</header>
<main>
{figures}
</main>
</body>
</html>
"""


def _figure(tile: _Tile, usd_per_credit: float) -> str:
    prompt = html.escape(tile.prompt)
    if tile.thumbnail is None:
        view = f'<div class="view {tile.kind}"><span>{html.escape(tile.note)}</span></div>'
    else:
        data = base64.b64encode(tile.thumbnail).decode()
        view = f'<div class="view"><img src="data:image/jpeg;base64,{data}" alt="{prompt}"></div>'
    if tile.link:
        view = f'<a href="{html.escape(tile.link)}">{view}</a>'
    rows = [f'<p class="prompt" dir="auto" title="{prompt}">{prompt}</p>']
    if facts := _SEPARATOR.join(tile.facts(usd_per_credit)):
        rows.append(f'<p class="facts">{html.escape(facts)}</p>')
    if tile.model or tile.state:
        state = "" if tile.state in ("", "success") else ' class="alarm"'
        rows.append(
            f'<p class="model"><span>{html.escape(tile.model)}</span> <b{state}>{html.escape(tile.state)}</b></p>'
        )
    links = [
        f'<a href="{html.escape(href)}">{label}</a>'
        for label, href in (("full image" if tile.kind != "other" else "file", tile.link), ("JSON", tile.sidecar))
        if href
    ]
    if tile.where and not tile.link:
        links.insert(0, f'<span class="where" title="{html.escape(tile.where)}">{html.escape(tile.where)}</span>')
    if links:
        rows.append(f'<p class="links">{" ".join(links)}</p>')
    return f"<figure>{view}<figcaption>{''.join(rows)}</figcaption></figure>"


_STYLE = f"""
  :root {{ color-scheme: dark; }}
  * {{ box-sizing: border-box; margin: 0; }}
  body {{ padding: clamp(1.25rem, 4vw, 3.5rem); background: {_PAGE}; color: {_INK};
    font: 14px/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }}
  header {{ padding-bottom: 1.25rem; margin-bottom: 2rem; border-bottom: 1px solid {_LINE}; }}
  h1 {{ font-size: 2rem; font-weight: 300; line-height: 1.2; letter-spacing: -.02em; overflow-wrap: anywhere; }}
  header p {{ margin-top: .5rem; color: {_MUTED}; font-variant-numeric: tabular-nums; }}
  main {{ display: grid; gap: 2rem 1.5rem; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); }}
  figure {{ min-width: 0; content-visibility: auto; contain-intrinsic-size: auto 340px; }}
  a {{ color: inherit; text-decoration: none; }}
  .view {{ display: grid; place-items: center; aspect-ratio: var(--ratio); background: {_WELL}; border-radius: 4px;
    overflow: hidden; }}
  .view img {{ display: block; width: 100%; height: 100%; min-height: 0; object-fit: contain; }}
  a .view {{ transition: opacity .15s; }}
  a:hover .view {{ opacity: .85; }}
  a:focus-visible {{ outline: 2px solid {_INK}; outline-offset: 2px; }}
  .view span {{ padding: 1rem; max-width: 100%; text-align: center; color: {_MUTED}; overflow-wrap: anywhere; }}
  .missing {{ background: none; border: 1px dashed {_LINE}; }}
  .unreadable span, .alarm {{ color: {_ALARM}; }}
  .other {{ background: {_PANEL}; }}
  figcaption {{ padding-top: .7rem; }}
  .prompt {{ display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden;
    overflow-wrap: anywhere; }}
  .facts, .model, .links {{ margin-top: .3rem; font-size: 12px; color: {_MUTED}; font-variant-numeric: tabular-nums; }}
  .model, .links {{ display: flex; gap: .75rem; margin-top: 0; min-width: 0; }}
  .model span, .where {{ overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }}
  .model b {{ font-weight: inherit; }}
  .links a {{ flex: none; color: {_INK}; border-bottom: 1px solid {_LINE}; }}
  .links a:hover {{ border-color: {_INK}; }}
"""


# The picture


@dataclass(frozen=True)
class _Layout:
    """Measures of the picture in pixels: a grid of ``columns``, each with a thumbnail box and lines of text."""

    columns: int
    rows: int
    box: tuple[int, int]
    prompt_lines: int

    margin = 28
    head = 84
    gap = 18
    line = 17

    @property
    def cell(self) -> tuple[int, int]:
        """What a tile takes, with the gap after it."""
        return self.box[0] + self.gap, self.box[1] + (self.prompt_lines + 1) * self.line + 8 + self.gap

    @property
    def size(self) -> tuple[int, int]:
        columns = max(self.columns, 2)  # room for the heading
        return (
            2 * self.margin - self.gap + columns * self.cell[0],
            2 * self.margin - self.gap + self.head + self.rows * self.cell[1],
        )

    def place(self, index: int) -> tuple[int, int]:
        """Return the left upper corner of a tile."""
        row, column = divmod(index, self.columns)
        return self.margin + column * self.cell[0], self.margin + self.head + row * self.cell[1]


def _layout(count: int, height_ratio: float) -> _Layout:
    """Return the layout for ``count`` tiles: as large as MAX_SHEET_PIXELS allows, a bit wider than high.

    From some 1000 tiles on it takes what the smallest thumbnails need.
    """
    layout = _Layout(1, 0, (THUMBNAIL_SIZE, round(THUMBNAIL_SIZE * height_ratio)), 2)
    for width in (320, 280, 240, 200, 160, 120, 80):
        layout = _Layout(1, 0, (width, round(width * height_ratio)), 2 if width >= 200 else 1)
        fitting = math.ceil(math.sqrt(count * 1.25 * layout.cell[1] / layout.cell[0]))
        columns = max(fitting, min(count, 4), 1)
        layout = replace(layout, columns=columns, rows=-(-count // columns))
        if math.prod(layout.size) <= MAX_SHEET_PIXELS:
            break
    return layout


def _height_ratio(tiles: Sequence[_Tile]) -> float:
    """Return height / width that suits most images, within reason."""
    ratios = [tile.size[1] / tile.size[0] for tile in tiles if tile.thumbnail and tile.size]
    return min(max(statistics.median(ratios or [0.75]), 0.5), 1.25)


def _draw(tiles: Sequence[_Tile], title: str, headline: str, path: Path) -> None:
    """Draw the sheet as a PNG."""
    from io import BytesIO

    from PIL import Image, ImageDraw, ImageFont

    layout = _layout(len(tiles), _height_ratio(tiles))
    sheet = Image.new("RGB", layout.size, _PAGE)
    draw = ImageDraw.Draw(sheet)
    large, medium, small = (ImageFont.load_default(size) for size in (30, 14, 12))

    def write(left: int, top: int, text: str, font: Any, fill: str, width: int, lines: int = 1) -> int:
        """Write lines of text and return where the next one would be."""
        # The font has no multiplication sign.
        for line in _wrap(text.replace("\u00d7", "x"), font, width, lines):
            draw.text((left, top), line, fill=fill, font=font)
            top += layout.line
        return top

    margin, (width, height) = layout.margin, layout.box
    inner = layout.size[0] - 2 * margin
    write(margin, margin - 6, title, large, _INK, inner)
    write(margin, margin + 36, headline, medium, _MUTED, inner)
    draw.line((margin, margin + 64, margin + inner - 1, margin + 64), fill=_LINE)
    for index, tile in enumerate(tiles):
        left, top = layout.place(index)
        draw.rectangle(
            (left, top, left + width - 1, top + height - 1),
            fill={"missing": _PAGE, "other": _PANEL}.get(tile.kind, _WELL),
            outline=_LINE if tile.kind == "missing" else None,
        )
        if tile.thumbnail is None:
            [note] = _wrap(tile.note, small, width - 8, 1) or [""]
            fill = _ALARM if tile.kind == "unreadable" else _MUTED
            draw.text((left + width // 2, top + height // 2), note, fill=fill, font=small, anchor="mm")
        else:
            with Image.open(BytesIO(tile.thumbnail)) as image:
                image.thumbnail(layout.box)
                sheet.paste(image, (left + (width - image.width) // 2, top + (height - image.height) // 2))
        below = write(left, top + height + 6, tile.prompt, small, _INK, width, layout.prompt_lines)
        write(left, below, _SEPARATOR.join(tile.facts()), small, _MUTED, width)
    sheet.save(path, "PNG", compress_level=2)


def _wrap(text: str, font: Any, width: int, lines: int) -> list[str]:
    """Break text into at most ``lines`` lines of ``width`` pixels; what does not fit becomes an ellipsis.

    Characters that do not print become blanks: they would end the line, or turn its direction.
    """
    rest = " ".join("".join(c if c.isprintable() else " " for c in text[:2000]).split())
    wrapped: list[str] = []
    while rest and len(wrapped) < lines:
        fits = _fitting(rest, font, width)
        if fits < len(rest) and len(wrapped) == lines - 1:
            wrapped.append(f"{rest[: _fitting(rest, font, width, '...')].rstrip()}...")
            break
        at = rest.rfind(" ", 1, fits + 1) if fits < len(rest) else fits
        at = at if at > 0 else max(fits, 1)
        wrapped.append(rest[:at])
        rest = rest[at:].lstrip()
    return wrapped


def _fitting(text: str, font: Any, width: int, tail: str = "") -> int:
    """Return how many characters of ``text``, followed by ``tail``, are at most ``width`` pixels wide."""
    low, high = 0, min(len(text), width)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle] + tail) <= width else (low, middle - 1)
    return low


# Values and storage


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _count(number: float, noun: str) -> str:
    text = f"{number:,.2f}".rstrip("0").rstrip(".")
    return f"{text} {noun}{'' if number == 1 else 's'}"


def _dollars(amount: float) -> str:
    text = f"${amount:,.3f}"  # an image may cost half a cent
    return text.removesuffix("0")


def _require_pillow() -> None:
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise ImportError("The contact sheet needs Pillow: pip install 'airflow-provider-kie[images]'") from None


def _folder(folder: ObjectStoragePath | str) -> ObjectStoragePath:
    if is_blank(str(folder)):
        raise ValueError("target: must be a folder, got nothing")
    try:
        return _absolute(folder)
    except Exception as error:
        raise ValueError(f"target: {str(folder)!r} cannot be used: {error}") from error


def _storage_path(path: str) -> ObjectStoragePath | None:
    """Return the storage path that a result names; None if it names none."""
    try:
        return _absolute(path) if path else None
    except Exception:  # noqa: BLE001  # an unknown scheme, or text that is no path
        return None


def _absolute(path: ObjectStoragePath | str) -> ObjectStoragePath:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    found = ObjectStoragePath(path) if isinstance(path, str) else path
    # Paths without scheme are relative to the worker's folder, which nobody knows later.
    return found if found.protocol else ObjectStoragePath(os.path.abspath(found.path))  # noqa: PTH100  # resolves ".."


def _is_local(path: ObjectStoragePath) -> bool:
    return path.protocol in ("", "file", "local")


def _store(path: ObjectStoragePath) -> tuple[str, str | None]:
    return ("file", None) if _is_local(path) else (path.protocol, path.conn_id)


def _publish(local: Path, target: ObjectStoragePath) -> str:
    """Copy a finished file to ``target``, where it appears whole or not at all; return its path as text.

    :raises OSError: it cannot be written.
    """
    try:
        if _is_local(target):
            final = Path(target.path)
            final.parent.mkdir(parents=True, exist_ok=True)
            part = final.with_name(f".{uuid.uuid4().hex}.part")
            try:
                shutil.copyfile(local, part)
                part.replace(final)
            finally:
                part.unlink(missing_ok=True)
        else:
            target.fs.put_file(str(local), target.path)
    except Exception as error:
        raise OSError(f"Cannot write {target}: {error}") from error
    return str(target)


# The earlier sheet, which the example DAG still draws

THUMBNAIL = 320
COLUMNS = 4
_GAP = 16
_CAPTION_HEIGHT = 44
_BACKGROUND = "#14141c"
_INK = "#f2f0fa"


@dataclass(frozen=True)
class SheetItem:
    """One image of the sheet, or the reason why there is none.

    :param prompt: what was asked for.
    :param file: the local image; None if it failed.
    :param note: shown under the prompt: credits, time, or what went wrong.
    """

    prompt: str
    file: Path | None = None
    note: str = ""


def write_html(items: Sequence[SheetItem], path: Path, title: str) -> Path:
    """Write the sheet as one HTML page that refers to the images by paths relative to it."""
    cards = "\n".join(_card(item, path.parent) for item in items)
    path.write_text(
        f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title>
<style>
  body {{ margin: 2rem; background: {_BACKGROUND}; color: {_INK}; font: 15px/1.45 system-ui, sans-serif; }}
  h1 {{ font-weight: 600; }}
  main {{ display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fill, minmax({THUMBNAIL}px, 1fr)); }}
  figure {{ margin: 0; background: #1f1f2b; border-radius: 10px; overflow: hidden; }}
  img, .failed {{ display: block; width: 100%; aspect-ratio: 1; object-fit: contain; }}
  .failed {{ display: grid; place-items: center; background: #3a1d26; }}
  figcaption {{ padding: .75rem 1rem; }}
  small {{ color: #a9a4c0; }}
</style>
<h1>{html.escape(title)}</h1>
<main>
{cards}
</main>
</html>
""",
        encoding="utf-8",
    )
    return path


def _card(item: SheetItem, base: Path) -> str:
    caption = f"<figcaption>{html.escape(item.prompt)}<br><small>{html.escape(item.note)}</small></figcaption>"
    if item.file is None:
        return f'<figure><div class="failed">no image</div>{caption}</figure>'
    link = html.escape(item.file.relative_to(base).as_posix())
    alt = html.escape(item.prompt)
    return f'<figure><a href="{link}"><img src="{link}" alt="{alt}" loading="lazy"></a>{caption}</figure>'


def write_png(items: Sequence[SheetItem], path: Path) -> Path:
    """Draw the sheet as one PNG, four images in a row; needs Pillow (extra ``images``).

    One image is in memory at a time.
    """
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    columns = min(COLUMNS, max(len(items), 1))
    rows = max(-(-len(items) // columns), 1)
    cell_width, cell_height = THUMBNAIL + _GAP, THUMBNAIL + _CAPTION_HEIGHT + _GAP
    sheet = Image.new("RGB", (columns * cell_width + _GAP, rows * cell_height + _GAP), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font: Any = ImageFont.load_default(size=14)
    for index, item in enumerate(items):
        left = _GAP + index % columns * cell_width
        top = _GAP + index // columns * cell_height
        if item.file is None:
            draw.rectangle((left, top, left + THUMBNAIL, top + THUMBNAIL), fill="#3a1d26")
            draw.text((left + 12, top + 12), "no image", fill=_INK, font=font)
        else:
            with Image.open(item.file) as image:
                image.draft("RGB", (THUMBNAIL, THUMBNAIL))  # lets JPEG decode at reduced size
                sheet.paste(ImageOps.pad(image.convert("RGB"), (THUMBNAIL, THUMBNAIL), color=_BACKGROUND), (left, top))
        for line, text in enumerate((item.prompt, item.note)):
            draw.text((left, top + THUMBNAIL + 5 + 18 * line), _fit(draw, text, font), fill=_INK, font=font)
    sheet.save(path, "PNG")
    return path


def _fit(draw: Any, text: str, font: Any) -> str:
    """Cut ``text`` to the width of a thumbnail."""
    text = " ".join(text.split())
    if draw.textlength(text, font=font) <= THUMBNAIL:
        return text
    while text and draw.textlength(f"{text}...", font=font) > THUMBNAIL:
        text = text[:-1]
    return f"{text}..."
