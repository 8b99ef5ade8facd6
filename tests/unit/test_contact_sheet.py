from __future__ import annotations

import re

from PIL import Image

from kie_provider.contact_sheet import COLUMNS, THUMBNAIL, SheetItem, write_html, write_png


def items(folder, count=5):
    made = []
    for n in range(count):
        file = folder / f"image {n}.png"
        Image.new("RGB", (400, 300), (40 * n, 200, 30)).save(file)
        made.append(SheetItem(f"prompt <{n}> & more", file, f"{n} credits"))
    return [*made, SheetItem("the one that failed", note="failed: 501")]


def test_html_links_every_image_and_names_the_gap(tmp_path):
    page = write_html(items(tmp_path), tmp_path / "sheet.html", "A & B").read_text()

    assert re.findall(r'<img src="([^"]+)"', page) == [f"image {n}.png" for n in range(5)]
    assert "prompt &lt;3&gt; &amp; more" in page
    assert "<title>A &amp; B</title>" in page
    assert page.count('class="failed"') == 1


def test_png_shows_every_image_in_its_cell(tmp_path):
    with Image.open(write_png(items(tmp_path), tmp_path / "sheet.png")) as sheet:
        assert sheet.width > COLUMNS * THUMBNAIL
        centres = [sheet.getpixel((16 + (n % COLUMNS) * 336 + 160, 16 + (n // COLUMNS) * 380 + 160)) for n in range(6)]
    assert centres[:5] == [(40 * n, 200, 30) for n in range(5)]
    assert centres[5] == (58, 29, 38)


def test_empty_sheet_is_still_a_sheet(tmp_path):
    assert write_png([], tmp_path / "sheet.png").exists()
    assert "<main>" in write_html([], tmp_path / "sheet.html", "none").read_text()
