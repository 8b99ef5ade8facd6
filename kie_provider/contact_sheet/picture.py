"""The sheet as a PNG picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

from kie_provider.contact_sheet.style import ALARM, INK, LINE, MUTED, PAGE, PANEL, SEPARATOR, WELL
from kie_provider.contact_sheet.tiles import Tile, height_ratio
from kie_provider.files.thumbnails import THUMBNAIL_SIZE

#: The picture gets smaller thumbnails rather than more pixels than this.
MAX_SHEET_PIXELS = 12_000_000


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


def _layout(count: int, ratio: float) -> _Layout:
    """Return the layout for ``count`` tiles: as large as MAX_SHEET_PIXELS allows, a bit wider than high.

    From some 1000 tiles on it takes what the smallest thumbnails need.
    """
    layout = _Layout(1, 0, (THUMBNAIL_SIZE, round(THUMBNAIL_SIZE * ratio)), 2)
    for width in (320, 280, 240, 200, 160, 120, 80):
        layout = _Layout(1, 0, (width, round(width * ratio)), 2 if width >= 200 else 1)
        fitting = math.ceil(math.sqrt(count * 1.25 * layout.cell[1] / layout.cell[0]))
        columns = max(fitting, min(count, 4), 1)
        layout = replace(layout, columns=columns, rows=-(-count // columns))
        if math.prod(layout.size) <= MAX_SHEET_PIXELS:
            break
    return layout


def draw_picture(tiles: Sequence[Tile], title: str, headline: str) -> bytes:
    """Return the sheet as a PNG."""
    from PIL import Image, ImageDraw, ImageFont

    layout = _layout(len(tiles), height_ratio(tiles))
    sheet = Image.new("RGB", layout.size, PAGE)
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
    write(margin, margin - 6, title, large, INK, inner)
    write(margin, margin + 36, headline, medium, MUTED, inner)
    draw.line((margin, margin + 64, margin + inner - 1, margin + 64), fill=LINE)
    for index, tile in enumerate(tiles):
        left, top = layout.place(index)
        draw.rectangle(
            (left, top, left + width - 1, top + height - 1),
            fill={"missing": PAGE, "other": PANEL}.get(tile.kind, WELL),
            outline=LINE if tile.kind == "missing" else None,
        )
        if tile.thumbnail is None:
            [note] = _wrap(tile.note, small, width - 8, 1) or [""]
            fill = ALARM if tile.kind == "unreadable" else MUTED
            draw.text((left + width // 2, top + height // 2), note, fill=fill, font=small, anchor="mm")
        else:
            with Image.open(BytesIO(tile.thumbnail)) as image:
                image.thumbnail(layout.box)
                sheet.paste(image, (left + (width - image.width) // 2, top + (height - image.height) // 2))
        below = write(left, top + height + 6, tile.prompt, small, INK, width, layout.prompt_lines)
        write(left, below, SEPARATOR.join(tile.facts()), small, MUTED, width)
    buffer = BytesIO()
    sheet.save(buffer, "PNG", compress_level=2)
    return buffer.getvalue()


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
