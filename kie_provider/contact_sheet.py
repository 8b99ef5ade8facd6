"""One page, and one picture, that show all images of a run."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
