"""The contact sheet: what it shows, what it survives, and what it leaves on disk."""

from __future__ import annotations

import base64
import errno
import json
import logging
import os
import re
import shutil
import threading
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from unittest.mock import patch
from urllib.parse import unquote

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath
from airflow.sdk.io import attach
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image, ImageOps

from kie_provider.client.errors import KieStorageError, KieTargetError
from kie_provider.client.prices import PriceTable
from kie_provider.contact_sheet import picture as drawing
from kie_provider.contact_sheet import thumbnails, write_contact_sheet
from kie_provider.contact_sheet.results import result_dicts
from tests.support.versions import finds_no_connection

RED, GREEN, BLUE = (200, 30, 30), (30, 200, 30), (30, 30, 200)


def picture(file: Path, colour=RED, size=(400, 300)) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file)
    return file


def result(prompt: str, *files: object, **fields) -> dict:
    """Return a result dict as operators push it, with files that have been saved."""
    saved = [
        f if isinstance(f, dict) else {"path": str(f), "media_type": "image/png", "width": 400, "height": 300}
        for f in files
    ]
    return {
        "kie_task_id": "task-1",
        "model": "flux-2/pro-text-to-image",
        "state": "success",
        "urls": ["https://files.example/1.png"],
        "result": None,
        "credits_consumed": 5.0,
        "cost_seconds": 12,
        "input": {"prompt": prompt, "aspect_ratio": "4:3"},
        **({"files": saved} if saved else {}),
        **fields,
    }


class Page(HTMLParser):
    """What a browser makes of a sheet: ``tiles`` with their texts, links and images, and all tags."""

    def __init__(self, sheet: dict) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.tiles: list[dict] = []
        self.head = ""
        self._in_head = False
        self.feed(Path(sheet["html"]).read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in_head = tag == "header" or (self._in_head and tag not in ("main", "figure"))
        if tag == "figure":
            self.tiles.append({"texts": [], "links": [], "images": [], "classes": [], "titles": []})
        if not self.tiles:
            return
        tile = self.tiles[-1]
        for kind, name in (("links", "href"), ("images", "src"), ("classes", "class"), ("titles", "title")):
            if name in dict(attrs):
                tile[kind].append(dict(attrs)[name])

    def handle_data(self, data):
        if self._in_head:
            self.head += data
        if self.tiles and data.strip():
            self.tiles[-1]["texts"].append(data)

    def prompts(self) -> list[str]:
        return [tile["titles"][0] for tile in self.tiles]


def embedded(source: str) -> Image.Image:
    kind, _, data = source.partition(",")
    assert kind == "data:image/jpeg;base64"
    return Image.open(BytesIO(base64.b64decode(data)))


def close(colour, expected) -> bool:
    return all(abs(a - b) < 6 for a, b in zip(colour, expected, strict=True))


def shown(sheet: dict, count: int, at: float = 0.5) -> list[tuple[int, int, int]]:
    """Return the colours in the middle of the picture's tiles, made of 4:3 images; 0 and 1 are their corners."""
    with Image.open(sheet["png"]) as image:
        layout = drawing._layout(count, 0.75)
        assert image.size == layout.size
        corners = [layout.corner(n) for n in range(count)]
        right, down = (round(at * (length - 1)) for length in layout.box)
        return [image.getpixel((x + right, y + down)) for x, y in corners]


def test_page_shows_what_is_known_of_every_image(tmp_path):
    file = picture(tmp_path / "a.png", size=(1152, 864))
    page = Page(write_contact_sheet([result("a red fox", file)], str(tmp_path), title="A & B"))

    [tile] = page.tiles
    assert tile["texts"] == [
        "a red fox",
        "5 credits · $0.025 · 12 s · 1152 × 864",
        "flux-2/pro-text-to-image",
        "success",
        "full image",
    ]
    assert page.head.split("\n")[1:3] == ["A & B", "1 image · 5 credits · $0.025"]


def test_page_holds_its_thumbnails_and_loads_nothing(tmp_path):
    file = picture(tmp_path / "a.png", GREEN, (1152, 864))
    page = Page(write_contact_sheet([result("fox", file)], str(tmp_path)))

    [source] = page.tiles[0]["images"]
    thumbnail = embedded(source)
    assert thumbnail.size == (320, 240)
    assert close(thumbnail.getpixel((160, 120)), GREEN)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert "default-src 'none'" in next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)


def test_picture_shows_every_image_in_its_place(tmp_path):
    colours = [RED, GREEN, BLUE, (200, 200, 30), (30, 200, 200)]
    files = [picture(tmp_path / f"{n}.png", colour) for n, colour in enumerate(colours)]
    sheet = write_contact_sheet([result(str(n), f) for n, f in enumerate(files)], str(tmp_path))

    for at in (0, 0.5, 1):
        assert all(map(close, shown(sheet, 5, at), colours))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("turned", [0, *range(1, 10)])
def test_a_thumbnail_stands_as_its_orientation_says(tmp_path, suffix, turned):
    exif = Image.Exif()
    exif[0x0112] = turned
    source = Image.new("RGB", (400, 300), BLUE)
    source.paste(RED, (0, 0, 200, 150))
    source.save(tmp_path / f"a.{suffix}", exif=exif)

    sheet = write_contact_sheet([result("a red fox", tmp_path / f"a.{suffix}")], tmp_path)

    [tile] = Page(sheet).tiles
    thumbnail = embedded(*tile["images"])
    upright = ImageOps.exif_transpose(Image.open(tmp_path / f"a.{suffix}"))
    assert thumbnail.size == ((240, 320) if 5 <= turned <= 8 else (320, 240))
    for x, y in ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)):
        assert close(
            thumbnail.getpixel((int(x * thumbnail.width), int(y * thumbnail.height))),
            upright.convert("RGB").getpixel((int(x * upright.width), int(y * upright.height))),
        )
    assert f"{upright.width} \u00d7 {upright.height}" in " ".join(tile["texts"])


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_regular_file_is_not_read(tmp_path, make):
    make(tmp_path / "a.png")

    sheet = write_contact_sheet([result("a red fox", tmp_path / "a.png")], tmp_path / "sheet")

    [tile] = Page(sheet).tiles
    assert "cannot be read" in tile["texts"]


def test_picture_of_many_images_gets_smaller_thumbnails(tmp_path):
    files = [picture(tmp_path / "red.png"), picture(tmp_path / "green.png", GREEN)]
    sheet = write_contact_sheet([result(str(n), files[n % 2]) for n in range(300)], str(tmp_path))

    assert all(close(colour, (RED, GREEN)[n % 2]) for n, colour in enumerate(shown(sheet, 300)))
    with Image.open(sheet["png"]) as image:
        assert image.width * image.height <= drawing.MAX_SHEET_PIXELS
    assert sheet["images"] == 300


@pytest.mark.parametrize("ratio", [0.5, 0.75, 1.25])
@pytest.mark.parametrize("count", [1, 4, 40, 200, 1000])
def test_picture_stays_below_25_megapixels(count, ratio):
    width, height = drawing._layout(count, ratio).size
    assert width * height < 25_000_000


def test_links_are_relative_below_the_folder_and_survive_moving_it(tmp_path):
    below = picture(tmp_path / "run" / "images" / "50% #1: a?b.png")
    sidecar = below.with_suffix(".json")
    sidecar.write_text("{}")
    outside = picture(tmp_path / "elsewhere.png")
    saved = {"path": str(below), "media_type": "image/png", "sidecar": str(sidecar)}
    sheet = write_contact_sheet([result("below", saved), result("outside", outside)], str(tmp_path / "run"))

    inner, outer = Page(sheet).tiles
    moved = shutil.move(tmp_path / "run", tmp_path / "moved")
    for link, name in zip(inner["links"], [below.name, below.name, sidecar.name], strict=True):
        assert link.startswith("./images/")
        assert ":" not in link
        assert (moved / unquote(link)).name == name
        assert (moved / unquote(link)).exists()
    assert outer["links"] == [str(outside)] * 2


def test_relative_folder_counts_from_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "out" / "a.png")
    sheet = write_contact_sheet([result("fox", "out/a.png")], "out")

    assert sheet["html"] == str(tmp_path / "out" / "contact_sheet.html")
    assert Page(sheet).tiles[0]["links"] == ["./a.png"] * 2


EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>"


def test_nothing_in_a_result_becomes_markup(tmp_path):
    file = {"path": f"/tmp/{EVIL}", "sidecar": f"/tmp/{EVIL}.json", "media_type": f"video/{EVIL}"}
    unreadable = {"path": f"s3://{EVIL}@bucket/{EVIL}", "sidecar": f"nope://{EVIL}"}
    results = [
        result(EVIL, file, model=EVIL, state=EVIL),
        result(EVIL, unreadable),
        result(EVIL, urls=[f"https://host/{EVIL}"]),
    ]
    page = Page(write_contact_sheet(results, str(tmp_path), prompts=[EVIL] * 4, title=EVIL))

    assert page.prompts() == [EVIL] * 4
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img"})
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


@pytest.mark.parametrize(
    "address",
    [
        "javascript:alert(1)",
        "JavaScript:alert(1)",
        " javascript:alert(1)",
        "data:text/html,<script>alert(1)</script>",
        "vbscript:x",
        "//evil.example/x.png",
        "file://evil.example/x.png",
    ],
)
def test_only_paths_and_http_are_links(tmp_path, address):
    files = [result("saved", {"path": address, "sidecar": address}), result("not saved", urls=[address])]
    page = Page(write_contact_sheet(files, str(tmp_path)))

    assert len(page.tiles) == 2
    for link in [link for tile in page.tiles for link in tile["links"]]:
        assert re.match(r"(https?://|\./|/(?!/))", link), link
        assert "script:" not in link


def test_prompts_without_result_show_as_gaps_in_their_place(tmp_path):
    one, two, extra = (picture(tmp_path / f"{n}.png", c) for n, c in (("1", RED), ("2", GREEN), ("3", BLUE)))
    results = [result("  fox ", one), result("unasked", extra), result("hen", two)]
    sheet = write_contact_sheet(results, str(tmp_path), prompts=["owl", "fox", "fox\n", "hen", "fox"])

    page = Page(sheet)
    assert page.prompts() == ["owl", "fox", "fox", "hen", "fox", "unasked"]
    assert ["no image" in tile["texts"] for tile in page.tiles] == [True, False, True, False, True, False]
    assert (sheet["images"], sheet["missing"]) == (3, 3)
    assert "3 images · 3 gaps · 15 credits · $0.075" in page.head
    assert json.loads(Path(sheet["manifest"]).read_text())["prompts_without_result"] == ["owl", "fox", "fox"]
    colours = shown(sheet, 6)
    assert [close(colours[n], c) for n, c in ((1, RED), (3, GREEN), (5, BLUE))] == [True] * 3


def broken(folder: Path, kind: str) -> str:
    file = folder / "broken.png"
    if kind == "truncated":
        noise = Image.effect_noise((300, 300), 90)
        noise.save(file)
        file.write_bytes(file.read_bytes()[:9000])
    elif kind == "not an image":
        file.write_text("<html>")
    elif kind == "postscript":
        file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    elif kind == "empty":
        file.touch()
    elif kind == "too large":
        picture(file, size=(2000, 1001))
    elif kind == "unknown storage":
        return "nope://bucket/a.png"
    elif kind == "folder":
        file.mkdir()
    return str(file)


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        ("missing", "file not found"),
        ("truncated", "cannot be read"),
        ("not an image", "not an image"),
        ("postscript", "not an image"),
        ("empty", "not an image"),
        ("too large", "too large"),
        ("unknown storage", "cannot be read"),
        ("folder", "cannot be read"),
    ],
)
def test_file_that_cannot_be_shown_is_a_tile_and_a_warning(tmp_path, monkeypatch, caplog, kind, note):
    monkeypatch.setattr("kie_provider.files.thumbnails.MAX_IMAGE_PIXELS", 2_000_000)
    good, path = picture(tmp_path / "good.png"), broken(tmp_path, kind)
    with caplog.at_level(logging.WARNING):
        sheet = write_contact_sheet([result("bad", path), result("good", good)], str(tmp_path))

    bad, fine = Page(sheet).tiles
    assert bad["texts"][0] == note
    assert "unreadable" in " ".join(bad["classes"])
    assert fine["images"]
    assert (sheet["images"], sheet["missing"], sheet["credits"]) == (1, 0, 10)
    assert ("1 file not found" if kind == "missing" else "1 unreadable") in Page(sheet).head
    assert sheet["not_found"] == (kind == "missing")
    [warning] = [r.getMessage() for r in caplog.records if r.name == thumbnails.log.name]
    assert path in warning


def test_image_of_exactly_the_limit_is_shown(tmp_path, monkeypatch):
    monkeypatch.setattr("kie_provider.files.thumbnails.MAX_IMAGE_PIXELS", 120_000)
    assert write_contact_sheet([result("fox", picture(tmp_path / "a.png"))], str(tmp_path))["images"] == 1


def test_video_and_what_was_not_saved_have_no_thumbnail(tmp_path, caplog):
    video = tmp_path / "clip.mp4"
    results = [result("moves", {"path": str(video), "media_type": "video/mp4"}), result("unsaved"), result("", urls=[])]
    sheet = write_contact_sheet(results, str(tmp_path))

    moves, unsaved, nothing = Page(sheet).tiles
    assert moves["texts"][0] == "video/mp4"
    assert moves["links"] == ["./clip.mp4"] * 2
    assert unsaved["texts"][0] == "not saved"
    assert unsaved["links"] == ["https://files.example/1.png"] * 2
    assert nothing["texts"][0] == "no image"
    assert (sheet["images"], sheet["missing"]) == (0, 1)
    assert not caplog.records


def test_result_with_several_files_costs_once(tmp_path):
    files = [picture(tmp_path / f"{n}.png") for n in range(3)]
    sheet = write_contact_sheet([result("three", *files)], str(tmp_path))

    facts = [tile["texts"][1] for tile in Page(sheet).tiles]
    assert [("credits" in text, text[:6]) for text in facts] == [
        (True, "1 of 3"),
        (False, "2 of 3"),
        (False, "3 of 3"),
    ]
    assert (sheet["images"], sheet["credits"]) == (3, 5)


@pytest.mark.parametrize("nothing", [[], None, [None, None]])
def test_empty_sheet_is_still_a_sheet(tmp_path, nothing):
    sheet = write_contact_sheet(nothing, str(tmp_path / "new" / "folder"), prompts=None)

    assert Page(sheet).tiles == []
    assert "0 images · 0 credits · $0.00" in Page(sheet).head
    with Image.open(sheet["png"]) as image:
        image.load()
    assert json.loads(Path(sheet["manifest"]).read_text())["results"] == []
    assert sheet["images"] == sheet["missing"] == sheet["credits"] == 0


def test_manifest_is_for_programs(tmp_path):
    file = picture(tmp_path / "a.png")
    odd = result("fox", file, credits_consumed=float("nan"), cost_seconds="soon")
    sheet = write_contact_sheet([odd, "skipped"], str(tmp_path), prompts=["hen"], title="T", name="list")

    assert sheet["manifest"] == str(tmp_path / "list.json")
    assert json.loads(Path(sheet["manifest"]).read_text(), parse_constant=pytest.fail) == {
        "title": "T",
        "results": [odd | {"credits_consumed": None}],
        "prompts_without_result": ["hen"],
        "totals": {"images": 1, "missing": 1, "not_found": 0, "unreadable": 0, "other": 0, "credits": 0, "usd": 0},
    }


@pytest.mark.parametrize(
    "prompt",
    [
        "🦊🔥 夜の市場 مرحبا",
        "cut emoji \ud83e",
        "nul \x00, bell \x07, turned \u202e round",
        "word" * 1500,
        "many words " * 500,
        "",
    ],
)
def test_any_prompt_can_be_drawn(tmp_path, prompt):
    sheet = write_contact_sheet([result(prompt, picture(tmp_path / "a.png"))], str(tmp_path), title=prompt)

    assert sheet["images"] == 1
    assert json.loads(Path(sheet["manifest"]).read_text())["results"]


def test_long_text_is_cut_to_its_lines():
    from PIL import ImageFont

    font = ImageFont.load_default(12)
    lines = drawing._wrap("a fox in the snow " * 20, font, 200, 2)

    assert len(lines) == 2
    assert lines[1].endswith("...")
    assert all(100 < font.getlength(line) <= 200 for line in lines)
    assert drawing._wrap("a fox", font, 200, 2) == ["a fox"]


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("RGB", "jpg"),
        ("CMYK", "jpg"),
        ("L", "jpg"),
        ("RGBA", "png"),
        ("LA", "png"),
        ("P", "png"),
        ("1", "png"),
        ("I;16", "png"),
        ("RGBA", "webp"),
        ("P", "gif"),
    ],
)
def test_every_kind_of_image_has_a_thumbnail(tmp_path, mode, suffix):
    file = tmp_path / f"a.{suffix}"
    Image.new(mode, (900, 600)).save(file)
    page = Page(write_contact_sheet([result("fox", file)], str(tmp_path)))

    assert embedded(page.tiles[0]["images"][0]).size == (320, 213)


def test_transparent_parts_show_the_background(tmp_path):
    file = tmp_path / "a.png"
    Image.new("RGBA", (200, 100), (255, 255, 255, 0)).save(file)
    page = Page(write_contact_sheet([result("fox", file)], str(tmp_path)))

    assert max(embedded(page.tiles[0]["images"][0]).getpixel((100, 50))) < 40


def test_two_threads_at_most_decode(tmp_path, monkeypatch):
    file, shrink = picture(tmp_path / "a.png"), thumbnails.shrink
    at_work, most, two = set(), [], threading.Barrier(2)

    def watched(stream):
        at_work.add(threading.get_ident())
        most.append(len(at_work))
        two.wait(30)
        try:
            return shrink(stream)
        finally:
            at_work.discard(threading.get_ident())

    monkeypatch.setattr(thumbnails, "shrink", watched)
    assert write_contact_sheet([result(str(n), file) for n in range(8)], str(tmp_path))["images"] == 8
    assert max(most) == 2


def test_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(KieTargetError, match=f"{tmp_path}/file/sheets/contact_sheet.json: Not a directory"):
        write_contact_sheet([], str(tmp_path / "file" / "sheets"))


def test_broken_copy_leaves_the_earlier_sheet_and_nothing_else(tmp_path, monkeypatch):
    write_contact_sheet([], str(tmp_path))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert len(before) == 3

    def full_disk(source, target, length):
        target.write(source.read(10))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full_disk)
    with pytest.raises(KieStorageError, match=r"contact_sheet.json: No space left"):
        write_contact_sheet([result("new")], str(tmp_path))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_later_sheet_replaces_the_earlier(tmp_path):
    write_contact_sheet([result("old")], str(tmp_path))
    sheet = write_contact_sheet([result("new")], str(tmp_path))

    assert Page(sheet).prompts() == ["new"]
    assert sorted(f.name for f in tmp_path.iterdir()) == [f"contact_sheet.{s}" for s in ("html", "json", "png")]


class Bucket(MemoryFileSystem):
    """An object store in memory that counts uploads."""

    cachable = False
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.store, self.uploads, self.error = {}, [], error

    def put_file(self, lpath, rpath, **kwargs):
        if self.error:
            raise self.error
        self.uploads.append(rpath)
        self.pipe_file(rpath, Path(lpath).read_bytes())


def attached(bucket: Bucket, name: str, monkeypatch) -> str:
    """Make ``bucket`` the store of a connection; return what paths in it begin with."""
    monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", "aws://")
    attach("s3", name, fs=bucket)
    return f"s3://{name}@shop"


def test_sheet_in_an_object_store(tmp_path, request, monkeypatch):
    bucket = Bucket()
    root = attached(bucket, request.node.name, monkeypatch)
    bucket.pipe_file("shop/run/img/a b.png", picture(tmp_path / "a.png", BLUE).read_bytes())
    bucket.pipe_file("shop/other.png", picture(tmp_path / "b.png", GREEN).read_bytes())
    folder = f"{root}/run"
    files = [f"{folder}/img/a b.png", f"{root}/other.png", f"{folder}/gone.png"]
    sheet = write_contact_sheet([result(str(n), f) for n, f in enumerate(files)], ObjectStoragePath(folder))

    assert [sheet[key] for key in ("html", "png", "manifest")] == [
        f"{folder}/contact_sheet.{suffix}" for suffix in ("html", "png", "json")
    ]
    assert sorted(bucket.uploads) == [f"shop/run/contact_sheet.{suffix}" for suffix in ("html", "json", "png")]
    page = tmp_path / "downloaded.html"
    page.write_bytes(bucket.cat_file("shop/run/contact_sheet.html"))
    below, outside, gone = Page(sheet | {"html": str(page)}).tiles
    assert close(embedded(below["images"][0]).getpixel((160, 120)), BLUE)
    assert below["links"] == ["./img/a%20b.png"] * 2
    assert close(embedded(outside["images"][0]).getpixel((160, 120)), GREEN)
    assert outside["links"] == []
    assert files[1] in outside["texts"]
    assert gone["texts"][0] == "file not found"


def test_object_store_that_cannot_be_written_is_named(request, monkeypatch):
    folder = attached(Bucket(RuntimeError("no such bucket")), request.node.name, monkeypatch)
    with pytest.raises(KieStorageError, match=f"{folder}/contact_sheet.json: no such bucket"):
        write_contact_sheet([], folder)


def test_image_whose_connection_is_missing_is_a_tile(tmp_path):
    saved, good = "s3://gone_conn@shop/a.png", picture(tmp_path / "good.png")
    sheet = write_contact_sheet([result("gone", saved), result("good", good)], str(tmp_path))

    gone, fine = Page(sheet).tiles
    assert gone["texts"][0] == "cannot be read"
    assert gone["links"] == []
    assert fine["images"]


def test_three_files_are_reported_as_lineage(tmp_path):
    with patch("kie_provider.files.storage.get_hook_lineage_collector") as collector:
        sheet = write_contact_sheet([result("fox", picture(tmp_path / "a.png"))], str(tmp_path))

    told = [call.kwargs["uri"] for call in collector.return_value.add_output_asset.call_args_list]
    assert told == [f"file://{sheet[key]}" for key in ("manifest", "png", "html")]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "a\\b", "/etc/passwd"])
def test_name_is_no_path(tmp_path, name):
    with pytest.raises(KieTargetError, match="name: must be a file name"):
        write_contact_sheet([], str(tmp_path / "sheets"), name=name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["", "  ", "None", "nope://bucket/folder"])
def test_folder_that_is_none_is_named(folder):
    with pytest.raises(KieTargetError, match="target: "):
        write_contact_sheet([], folder)


@finds_no_connection
def test_folder_whose_connection_is_not_found_may_be_found_later():
    with pytest.raises(KieStorageError, match=r"target: .* names a connection that Airflow does not find"):
        write_contact_sheet([], "s3://gone_conn@bucket/folder")


def test_without_pillow_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("kie_provider.files.media.importlib.util.find_spec", lambda name: None)
    with pytest.raises(KieTargetError, match=r"airflow-provider-kie\[images\]"):
        write_contact_sheet([], tmp_path)


def test_results_may_come_nested_and_with_gaps():
    one, two = result("1"), result("2")
    assert result_dicts(one) == [one]
    assert result_dicts([one, None, "placeholder", [two, [None]], 3]) == [one, two]
    assert result_dicts({"at": Path("/a")}) == [{"at": "/a"}]
    assert result_dicts(None) == []


def test_price_of_a_credit_can_be_given(tmp_path):
    sheet = write_contact_sheet([result("fox")], str(tmp_path), prices=PriceTable.parse(usd_per_credit=0.5))

    assert "$2.50" in Page(sheet).head
    assert json.loads(Path(sheet["manifest"]).read_text())["totals"]["usd"] == 2.5
