"""The sheet as a PNG image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import TYPE_CHECKING

from kie_provider.contact_sheet.style import ALARM, INK, LINE, MUTED, PAGE, PANEL, SEPARATOR, WELL
from kie_provider.contact_sheet.tiles import Tile, height_ratio
from kie_provider.files.thumbnails import THUMBNAIL_SIZE

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Font = FreeTypeFont | ImageFont

#: Pixels of the whole image; many tiles get smaller thumbnails instead of exceeding this.
MAX_SHEET_PIXELS = 12_000_000


@dataclass(frozen=True)
class _Layout:
    """Dimensions of the image, in pixels: a grid of tiles, each with a box for the thumbnail and lines of text."""

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
        """Width and height of a tile, including the gap after it."""
        return self.box[0] + self.gap, self.box[1] + (self.prompt_lines + 1) * self.line + 8 + self.gap

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the whole image."""
        columns = max(self.columns, 2)  # room for the heading
        return (
            2 * self.margin - self.gap + columns * self.cell[0],
            2 * self.margin - self.gap + self.head + self.rows * self.cell[1],
        )

    def corner(self, index: int) -> tuple[int, int]:
        """Return the upper left corner of a tile."""
        row, column = divmod(index, self.columns)
        return self.margin + column * self.cell[0], self.margin + self.head + row * self.cell[1]


def _layout(count: int, ratio: float) -> _Layout:
    """Return the layout for ``count`` tiles: the largest that MAX_SHEET_PIXELS allows, slightly wider than high.

    From about 1000 tiles on, the smallest thumbnails are used, and the image may exceed that limit.
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

    def write(left: int, top: int, text: str, font: Font, fill: str, width: int, lines: int = 1) -> int:
        """Draw lines of text, and return the top of the line that would follow."""
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
        left, top = layout.corner(index)
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


def _wrap(text: str, font: Font, width: int, lines: int) -> list[str]:
    """Break text into at most ``lines`` lines of ``width`` pixels; the rest is cut off with an ellipsis.

    Unprintable characters become spaces: they could end the line or reverse its direction.
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


def _fitting(text: str, font: Font, width: int, tail: str = "") -> int:
    """Return how many characters of ``text``, followed by ``tail``, are at most ``width`` pixels wide."""
    low, high = 0, min(len(text), width)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle] + tail) <= width else (low, middle - 1)
    return low
