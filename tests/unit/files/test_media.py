"""What a file is: real pictures in all their forms, broken ones, and such as would keep a worker busy for ever."""

from __future__ import annotations

import io
import struct
import time
import warnings
import zlib

import pytest
from PIL import Image, ImageFile, PngImagePlugin

from kie_provider.client.errors import KieFileError, KieResultError
from kie_provider.files.media import inspect, media_type_of, size_problem

MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]
PAGE = "<html><body>抱歉，文件已过期</body></html>"


def noise(size=(160, 120), mode="RGB"):
    """Return a picture that does not compress to nothing."""
    grey = Image.effect_noise(size, 80)
    return Image.merge("RGB", [grey, grey.rotate(90, expand=False), grey.rotate(180)]).convert(mode)


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def chunk(name, content=b""):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width, height, bits, colours, rows, *, interlace=0, before=b"", after=b""):
    """Return a PNG of these inflated rows."""
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, interlace)
    parts = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(rows)) + after + chunk(b"IEND")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.fixture
def look(tmp_path):
    def look(content, *, max_pixels=12_000_000, **options):
        path = tmp_path / "file"
        path.write_bytes(content)
        media = inspect(path, max_pixels=max_pixels, **options)
        return media.media_type, media.width, media.height

    return look


class TestGoodPictures:
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("size", [(1, 1), (7, 5), (160, 120)])
    def test_png_of_every_mode(self, look, mode, size):
        picture = Image.new(mode, size, 1) if mode == "I;16" else noise(size).convert(mode)
        assert look(encoded(picture, "PNG")) == ("image/png", *size)

    @pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4), (5, 1), (8, 8), (9, 17), (33, 21)])
    @pytest.mark.parametrize(("bits", "colours", "samples"), [(1, 0, 1), (4, 3, 1), (8, 2, 3), (16, 6, 4)])
    def test_interlaced_png(self, look, size, bits, colours, samples):
        """Pillow cannot write these; that it reads them shows that they are right."""
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
        rows = b""
        for left, top, across, down in passes:
            columns, lines = len(range(left, size[0], across)), len(range(top, size[1], down))
            rows += (b"\2" + b"\x11" * ((columns * bits * samples + 7) // 8)) * lines if columns else b""
        palette = chunk(b"PLTE", bytes(48)) if colours == 3 else b""
        content = png(*size, bits, colours, rows, interlace=1, before=palette)
        Image.open(io.BytesIO(content)).load()
        assert look(content) == ("image/png", *size)
        with pytest.raises(KieFileError, match="bytes of image data"):
            look(png(*size, bits, colours, rows[:-1], interlace=1, before=palette))

    @pytest.mark.parametrize(
        ("kind", "options"),
        [
            ("JPEG", {}),
            ("JPEG", {"progressive": True}),
            ("JPEG", {"restart_marker_rows": 1}),
            ("JPEG", {"comment": b"\xff\xd9" * 9, "exif": b"Exif\0\0\xff\xd9nonsense", "icc_profile": b"x" * 200_000}),
            ("WEBP", {}),
            ("WEBP", {"lossless": True, "exif": b"nonsense"}),
            ("GIF", {}),
        ],
    )
    def test_other_formats(self, look, kind, options):
        content = encoded(noise(), kind, **options)
        assert look(content, must_be_image=True) == (f"image/{kind.lower()}", 160, 120)
        assert look(content + b"\0trailing", must_be_image=True)[1:] == (160, 120)

    def test_png_with_much_text(self, look):
        info = PngImagePlugin.PngInfo()
        info.add_text("workflow", "a node " * 450_000, zip=True)
        info.add_itxt("parameters", "steps " * 4_000_000)
        content = encoded(noise(), "PNG", pnginfo=info, icc_profile=bytes(2_000_000))
        with pytest.raises(ValueError, match="too large"):
            Image.open(io.BytesIO(content)).load()
        assert look(content) == ("image/png", 160, 120)

    def test_an_animated_png(self, look):
        frames = [noise() for _ in range(3)]
        assert look(encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])) == ("image/png", 160, 120)

    def test_an_album_whose_second_picture_was_cut_off(self, look):
        album = encoded(noise(), "MPO", save_all=True, append_images=[noise((320, 240))])
        first = album[: album.index(b"\xff\xd8\xff", 3)]
        assert look(album) == look(first) == ("image/jpeg", 160, 120)

    def test_animations(self, look):
        frames = [noise() for _ in range(5)]
        for kind in ("GIF", "WEBP"):
            content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
            assert look(content)[1:] == (160, 120)
            with pytest.raises(KieFileError, match=f"it is a broken {kind} file"):
                look(content[: len(content) * 2 // 3])

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
    def test_the_orientation_counts(self, look, kind):
        for turn in range(10):
            exif = Image.Exif()
            exif[0x0112] = turn
            content = encoded(noise(), kind, exif=exif)
            assert look(content)[1:] == ((120, 160) if turn in (5, 6, 7, 8) else (160, 120)), turn


class TestBrokenPictures:
    @pytest.mark.parametrize(
        ("kind", "options"), [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("GIF", {})]
    )
    @pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9, 0.999])
    def test_a_part_is_never_sound_whatever_a_dag_file_has_told_pillow(self, look, monkeypatch, kind, options, share):
        whole = encoded(noise((320, 240)), kind, **options)
        part = whole[: int(len(whole) * share)]
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        with pytest.raises(KieFileError):
            look(part)
        assert look(whole)[1:] == (320, 240)
        assert ImageFile.LOAD_TRUNCATED_IMAGES is True

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
    def test_other_switches_of_pillow(self, look, monkeypatch, kind):
        content = encoded(noise(), kind)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        monkeypatch.setattr(Image, "OPEN", {})
        monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert look(content)[1:] == (160, 120)
        assert Image.MAX_IMAGE_PIXELS == 10

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (png(2, 2, 8, 0, b"\0ab\0c"), "5 of 6 bytes of image data"),
            (png(2, 2, 8, 0, b"\0ab\5cd"), "unknown filter"),
            (png(2, 2, 8, 3, b"\0ab\0cd"), "no palette"),
            (png(2, 2, 3, 0, b"\0ab\0cd"), "its header holds impossible values"),
            (png(0, 2, 8, 0, b""), "its header holds impossible values"),
            (png(2, 2, 8, 0, b"\0ab\0cd", before=chunk(b"ABCD")), "unknown chunk b'ABCD'"),
            (png(2, 2, 8, 0, b"", after=chunk(b"tEXt") + chunk(b"IDAT", zlib.compress(b"\0ab\0cd"))), "0 of 6 bytes"),
            (b"\x89PNG\r\n\x1a\n" + chunk(b"IDAT") + chunk(b"IEND"), "its header is missing"),
            (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", b"short") + chunk(b"IEND"), "its header has 5 bytes, not 13"),
            (png(2, 2, 8, 0, b"").replace(zlib.compress(b""), b"nonsense"), "wrong checksum"),
            (b"\x89PNG\r\n\x1a\n" + png(2, 2, 8, 0, b"")[8:33] + chunk(b"IDAT", b"x") + chunk(b"IEND"), "broken PNG"),
        ],
    )
    def test_png_that_is_no_picture(self, look, content, message):
        with pytest.raises(KieFileError, match=message):
            look(content)

    def test_what_follows_the_last_row_does_not_matter(self, look):
        assert look(png(2, 2, 8, 0, b"\0ab\0cd" + bytes(5_000_000))) == ("image/png", 2, 2)


class TestLimits:
    def test_the_only_limit_on_pixels_is_ours(self, look):
        """Beyond twice Pillow's own, which it refuses whatever one does about its warning."""
        content = encoded(Image.new("1", (16384, 16384)), "PNG")
        assert look(content, max_pixels=300_000_000) == ("image/png", 16384, 16384)
        with pytest.raises(KieResultError, match=r"16384 x 16384 = 268435456 pixels, more than max_pixels=12000000;"):
            look(content)

    @pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF"])
    def test_of_other_formats_too(self, look, monkeypatch, kind):
        content = encoded(noise((400, 300)), kind)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
        assert look(content, max_pixels=120_000)[1:] == (400, 300)
        with pytest.raises(KieResultError, match=r"max_pixels=40000"):
            look(content, max_pixels=40_000)

    def test_where_pillow_is_the_first_to_count(self, look):
        content = encoded(noise((40, 30)), "GIF")
        frame = content.index(struct.pack("<BHHHH", 0x2C, 0, 0, 40, 30))
        larger = content[:frame] + struct.pack("<BHHHH", 0x2C, 0, 0, 30_000, 30_000) + content[frame + 9 :]
        with pytest.raises(KieResultError, match=r"more pixels than max_pixels=12000000; .* nothing is paid again"):
            look(larger)

    def test_a_jpeg_of_many_scans(self, look):
        content = encoded(Image.new("L", (2000, 1500), 99), "JPEG", progressive=True)
        scan = content.rindex(b"\xff\xda")
        refined = content[:scan] + content[scan:-2] * 10_000 + content[-2:]
        assert_refused_soon(lambda: look(refined), "more than 64 scans")

    def test_a_png_of_many_chunks(self, look):
        content = png(2, 2, 8, 0, b"\0ab\0cd", before=chunk(b"teXt") * 2_000_000)
        assert_refused_soon(lambda: look(content), "tiny parts")

    def test_a_jpeg_of_many_segments(self, look):
        content = encoded(noise(), "JPEG")
        assert_refused_soon(lambda: look(content[:2] + b"\xff\xfe\0\2" * 5_000_000 + content[2:]), "tiny parts")

    def test_a_jpeg_of_nothing_but_fill_bytes(self, look):
        began = time.process_time()
        with pytest.raises(KieFileError, match="truncated JPEG"):
            look(b"\xff\xd8" + b"\xff" * 20_000_000)
        assert time.process_time() - began < 5

    @pytest.mark.parametrize("kind", ["GIF", "WEBP"])
    def test_an_animation_of_many_frames(self, look, kind):
        frames = [noise((8, 8)) for _ in range(300)]
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=20)
        assert_refused_soon(lambda: look(content), "more than 256 frames of 8 x 8 pixels")

    def test_an_animation_of_large_frames(self, look):
        frame = encoded(Image.new("P", (3000, 3000), 7), "GIF")
        content = frame[:-1] + frame[frame.index(b"\x2c\0\0\0\0\xb8\x0b") : -1] * 60 + b";"
        assert_refused_soon(lambda: look(content), "more than 29 frames of 3000 x 3000 pixels")


def assert_refused_soon(look, message):
    began = time.process_time()
    with pytest.raises(KieResultError, match=message):
        look()
    assert time.process_time() - began < 5


class TestText:
    @pytest.mark.parametrize(
        "encoding",
        [
            "utf-8",
            "utf-8-sig",
            "gbk",
            "gb18030",
            "big5hkscs",
            "utf-16",
            "utf-16-le",
            "utf-16-be",
            "utf-32",
            "utf-32-le",
        ],
    )
    def test_in_any_encoding_is_no_file(self, encoding):
        for text in (PAGE, PAGE * 2000):
            assert media_type_of(text.encode(encoding, "replace")) is None
            assert media_type_of(text.encode(encoding, "replace")[:-1]) is None

    @pytest.mark.parametrize(
        ("text", "encoding"),
        [
            ("お探しのファイルは見つかりません", "shift_jis"),
            ("お探しのファイルは見つかりません", "euc_jp"),
            ("お探しのファイルは見つかりません", "iso2022_jp"),
            ("파일을 찾을 수 없습니다", "euc_kr"),
            ("Файл не найден", "cp1251"),
            ("Файл не найден", "koi8_r"),
            ("Datei nicht verfügbar\n", "latin-1"),
            ("File not found\n", "cp500"),
            ("RIFF and ID3 tags are missing", "ascii"),
            ("ID3: no such file", "ascii"),
            ("The ftyp box is missing", "ascii"),
            ("OggS", "ascii"),
            ("%!PS-Adobe", "ascii"),
        ],
    )
    def test_of_other_languages(self, text, encoding):
        assert media_type_of(text.encode(encoding)) is None

    @pytest.mark.parametrize(
        ("head", "media_type"),
        [
            (b"glTF\2\0\0\0" + b'{"asset":{"version":"2.0"}}' * 400, "application/octet-stream"),
            (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n" + b"text " * 2000 + b"\0\1\2", "application/octet-stream"),
            (b"PK\3\4\x14\0\0\0\x08\0", "application/octet-stream"),
            (b"\x80\2\xff\xfe" * 1000, "application/octet-stream"),
            (b"\xff\xfe\x90\0\1\2\3" * 1000, "application/octet-stream"),
            (b"\0\0\0\x18ftypmp42\0\0\0\0", "video/mp4"),
            (b"ID3\4\0\0\0\0\0\x23", "audio/mpeg"),
            (b"RIFF\x24\x08\0\0WAVEfmt ", "audio/wav"),
            (b"OggS\0\2" + bytes(8) + b"\x9a\x1d", "audio/ogg"),
        ],
    )
    def test_other_files_are_not_text(self, head, media_type):
        assert media_type_of(head) == media_type

    @pytest.mark.parametrize(
        "content", [b"\0\0\0\x18ftypmp42" + b"\xff" * 99, b"\x80\2\xff\xfe" * 9, PAGE.encode("gbk")]
    )
    def test_where_an_image_was_ordered_nothing_else_will_do(self, look, content):
        with pytest.raises(KieFileError):
            look(content, must_be_image=True)


@pytest.mark.parametrize(
    "odd",
    [1.78, 1, True, ["16:9"], {"x": 1}, None, "", "16:0", "0:9", "1:" + "9" * 5000, "²:1", "x:y", "-1:1", float("nan")],
)
def test_an_odd_ratio_or_resolution_is_no_problem(odd):
    assert size_problem(1000, 10, odd, odd) is None
