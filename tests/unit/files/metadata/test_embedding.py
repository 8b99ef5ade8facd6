from __future__ import annotations

import io
import json
import re
import shutil
import struct
import subprocess
import tracemalloc
import zlib
from xml.etree import ElementTree as ET

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageDraw, PngImagePlugin

from kie_provider.files.metadata.embedding import EmbeddingRefusedError, Provenance, embed

MODEL = "flux-2/pro-text-to-image"
TASK = "ee9c2715375b7837f8bb51d641ff5863"
PROMPT = "Ein Bär 🐻 & <b>\"Tür\"</b> ]]> {x} 'é'\nzweite Zeile"


def provenance(prompt=PROMPT, task_id=TASK):
    return Provenance("Kie.ai", MODEL, task_id, prompt)


FACTS = provenance()
TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
DESCRIPTION, SOFTWARE, ORIENTATION, EXIF_IFD, UNIQUE_ID = 0x010E, 0x0131, 0x0112, 0x8769, 0xA420
XMP_HEADER = b"http://ns.adobe.com/xap/1.0/\0"
NAMES = {
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "iptc": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
}


def picture(mode="RGB", size=(37, 23)):
    image = Image.new("RGBA", size, (200, 30, 90, 120))
    ImageDraw.Draw(image).ellipse((3, 4, 30, 20), fill=(10, 250, 60, 255))
    return image.convert(mode)


def orientation():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[0x010F] = "Vendor"
    exif.get_ifd(EXIF_IFD)[0x9003] = "2026:01:02 03:04:05"
    exif.get_ifd(0x8825)[1] = "N"
    return exif


def saved(mode="RGB", size=(37, 23), kind="png", **options):
    buffer = io.BytesIO()
    picture(mode, size).save(buffer, {"jpg": "JPEG"}.get(kind, kind.upper()), **options)
    return buffer.getvalue()


def png_text():
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "kept")
    text.add_itxt("Comment", "kept 🐻")
    text.add_text("Author", "kept", zip=True)
    return text


def without_jfif(data):
    assert data[2:4] == b"\xff\xe0"
    return data[:2] + data[4 + int.from_bytes(data[4:6], "big") :]


def png_with_late_exif():
    """eXIf may stand after the image data."""
    data = saved(exif=orientation())
    at = data.index(b"eXIf") - 4
    chunk = data[at : at + 12 + int.from_bytes(data[at : at + 4], "big")]
    data = data.replace(chunk, b"")
    return data[:-12] + chunk + data[-12:]


def riff(*chunks):
    body = b"".join(name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def animated():
    buffer = io.BytesIO()
    frames = [picture("RGBA"), picture("RGBA").rotate(90)]
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    return buffer.getvalue()


MADE = {
    "rgb.png": saved,
    "rgba.png": lambda: saved("RGBA"),
    "palette.png": lambda: saved("P", transparency=0),
    "grey-icc.png": lambda: saved("L", icc_profile=b"x" * 200),
    "text.png": lambda: saved(pnginfo=png_text()),
    "exif.png": lambda: saved(exif=orientation()),
    "late-exif.png": png_with_late_exif,
    "trailing.png": lambda: saved() + b"more",
    "jfif.jpg": lambda: saved(kind="jpg"),
    "jfif-extended.jpg": lambda: saved(kind="jpg")[:20] + b"\xff\xe0\0\x08JFXX\0\x10" + saved(kind="jpg")[20:],
    "progressive.jpg": lambda: saved(kind="jpg", progressive=True, comment=b"kept", icc_profile=b"x" * 200),
    "no-jfif.jpg": lambda: without_jfif(saved(kind="jpg")),
    "exif.jpg": lambda: saved(kind="jpg", exif=orientation()),
    "exif-no-jfif.jpg": lambda: without_jfif(saved(kind="jpg", exif=orientation())),
    "cmyk.jpg": lambda: saved("CMYK", kind="jpg"),
    "fill-bytes.jpg": lambda: saved(kind="jpg")[:20] + b"\xff\xff" + saved(kind="jpg")[20:],
    "trailing.jpg": lambda: saved(kind="jpg") + b"more",
    "lossy.webp": lambda: saved(kind="webp"),
    "lossy-alpha.webp": lambda: saved("RGBA", kind="webp"),
    "lossless.webp": lambda: saved(kind="webp", lossless=True, size=(300, 1)),
    "lossless-alpha.webp": lambda: saved("RGBA", kind="webp", lossless=True, size=(1, 299)),
    "exif.webp": lambda: saved(kind="webp", exif=orientation()),
    "icc.webp": lambda: saved(kind="webp", icc_profile=b"x" * 201),
    "animated.webp": animated,
    "trailing.webp": lambda: saved(kind="webp") + b"more",
}
EVERY_FILE = pytest.mark.parametrize("name", MADE)
EVERY_TYPE = pytest.mark.parametrize("kind", TYPES)


@pytest.fixture
def run(tmp_path):
    """Embed in bytes; the result must be the only new file."""

    folder = tmp_path / "run"
    folder.mkdir()

    def run(data, kind, facts=FACTS):
        source, target = folder / f"source.{kind}", folder / f"target.{kind}"
        source.write_bytes(data)
        try:
            embed(source, target, TYPES[kind], facts)
        except EmbeddingRefusedError:
            assert list(folder.iterdir()) == [source]
            raise
        else:
            assert sorted(folder.iterdir()) == [source, target]
            assert source.read_bytes() == data
            return target.read_bytes()
        finally:
            shutil.rmtree(folder)
            folder.mkdir()

    return run


def refused(run, data, kind, match, facts=FACTS):
    with pytest.raises(EmbeddingRefusedError, match=match):
        run(data, kind, facts)


def png_chunks(data):
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    found, at = [], 8
    while not found or found[-1][0] != b"IEND":
        length, name = struct.unpack(">I4s", data[at : at + 8])
        content = data[at + 8 : at + 8 + length]
        assert data[at + 8 + length : at + 12 + length] == struct.pack(">I", zlib.crc32(name + content)), name
        found.append((name, content))
        at += 12 + length
    return found, data[at:]


def jpeg_segments(data):
    """The segments before the image data, and everything from there."""
    assert data[:2] == b"\xff\xd8"
    found, at = [], 2
    while data[at : at + 2] != b"\xff\xda":
        if data[at : at + 2] == b"\xff\xff":
            at += 1
            continue
        marker, length = struct.unpack(">HH", data[at : at + 4])
        found.append((marker, data[at + 4 : at + 2 + length]))
        at += 2 + length
    return found, data[at:]


def webp_chunks(data):
    magic, length, form = struct.unpack("<4sI4s", data[:12])
    assert (magic, form, length % 2) == (b"RIFF", b"WEBP", 0)
    found, at = [], 12
    while at < 8 + length:
        name, size = struct.unpack("<4sI", data[at : at + 8])
        found.append((name, data[at + 8 : at + 8 + size]))
        assert data[at + 8 + size : at + 8 + size + size % 2] in (b"", b"\0")
        at += 8 + size + size % 2
    assert at == 8 + length
    return found, data[at:]


PARTS = {"png": png_chunks, "jpg": jpeg_segments, "webp": webp_chunks}


def xmp_packet(data, kind):
    header = b"XML:com.adobe.xmp\0\0\0\0\0" if kind == "png" else XMP_HEADER if kind == "jpg" else b""
    name = {"png": b"iTXt", "jpg": 0xFFE1, "webp": b"XMP "}[kind]
    found = [c[len(header) :] for n, c in PARTS[kind](data)[0] if n == name and c.startswith(header)]
    assert len(found) == 1
    return found[0]


def xmp_facts(packet):
    root = ET.fromstring(packet)
    (about,) = root.findall("rdf:RDF/rdf:Description", NAMES)
    return {
        "source": about.findtext("iptc:DigitalSourceType", None, NAMES),
        "system": about.findtext("iptc:AISystemUsed", None, NAMES),
        "tool": about.findtext("xmp:CreatorTool", None, NAMES),
        "id": about.findtext("dc:identifier", None, NAMES),
        "prompt": about.findtext("iptc:AIPromptInformation", None, NAMES),
        "description": about.findtext("dc:description/rdf:Alt/rdf:li", None, NAMES),
    }


def exif_of(data):
    with Image.open(io.BytesIO(data)) as image:
        exif = image.getexif()
        exif.get_ifd(EXIF_IFD)
        return exif


def utf8(value):
    """Pillow reads ASCII fields as Latin-1."""
    return value.encode("latin-1").decode()


@EVERY_FILE
def test_every_pixel_and_every_other_byte_stays(run, name):
    kind = name.rpartition(".")[2]
    before = MADE[name]()
    after = run(before, kind)

    with Image.open(io.BytesIO(before)) as old, Image.open(io.BytesIO(after)) as new:
        assert (new.mode, new.size, getattr(new, "n_frames", 1)) == (old.mode, old.size, getattr(old, "n_frames", 1))
        for frame in range(getattr(old, "n_frames", 1)):
            old.seek(frame)
            new.seek(frame)
            assert new.tobytes() == old.tobytes()
            assert new.convert("RGBA").tobytes() == old.convert("RGBA").tobytes()
        assert new.info.get("icc_profile") == old.info.get("icc_profile")

    (old_parts, old_rest), (new_parts, new_rest) = PARTS[kind](before), PARTS[kind](after)
    assert new_rest == old_rest  # for JPEG: from the image data on
    replaced = {b"eXIf", b"EXIF", b"VP8X"}
    kept = [(n, c) for n, c in old_parts if n not in replaced and not c.startswith(b"Exif\0\0")]
    assert [part for part in new_parts if part in kept] == kept


@EVERY_FILE
def test_the_facts_are_there_to_be_read(run, name):
    kind = name.rpartition(".")[2]
    after = run(MADE[name](), kind)

    assert xmp_facts(xmp_packet(after, kind)) == {
        "source": "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
        "system": f"{MODEL} (Kie.ai)",
        "tool": MODEL,
        "id": TASK,
        "prompt": PROMPT,
        "description": PROMPT,
    }
    exif = exif_of(after)
    assert (exif[SOFTWARE], utf8(exif[DESCRIPTION])) == (MODEL, PROMPT)
    assert exif.get_ifd(EXIF_IFD)[UNIQUE_ID] == TASK
    if "exif" in name:
        assert (exif[ORIENTATION], exif[0x010F], exif.get_ifd(0x8825)[1]) == (6, "Vendor", "N")
        assert exif.get_ifd(EXIF_IFD)[0x9003] == "2026:01:02 03:04:05"


@EVERY_FILE
def test_the_same_provenance_gives_the_same_bytes_and_twice_is_once(run, name):
    kind = name.rpartition(".")[2]
    once = run(MADE[name](), kind)
    assert run(MADE[name](), kind) == once
    assert run(once, kind) == once


@EVERY_TYPE
def test_the_source_may_be_the_target(tmp_path, run, kind):
    expected = run(saved(kind=kind), kind)
    file = tmp_path / "same"
    file.write_bytes(saved(kind=kind))
    embed(file, file, TYPES[kind], FACTS)
    assert file.read_bytes() == expected


@EVERY_TYPE
def test_an_older_target_is_replaced_and_survives_a_refusal(tmp_path, kind):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(saved(kind=kind))
    target.write_bytes(b"older")
    embed(source, target, TYPES[kind], FACTS)
    done = target.read_bytes()
    assert done != b"older"
    source.write_bytes(saved(kind=kind)[:-9])
    with pytest.raises(EmbeddingRefusedError):
        embed(source, target, TYPES[kind], FACTS)
    assert target.read_bytes() == done
    assert sorted(tmp_path.iterdir()) == [source, target]


@EVERY_TYPE
def test_nothing_is_left_behind_when_the_disk_is_full(tmp_path, monkeypatch, kind):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(saved(kind=kind))

    def full(*_):
        yield b"half"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kie_provider.files.metadata.embedding._blocks", full)
    if kind == "jpg":  # its plan reads the image data with the same function
        monkeypatch.setattr("kie_provider.files.metadata.embedding._jpeg_parts", lambda *_: iter(()))
    with pytest.raises(OSError, match="No space"):
        embed(source, target, TYPES[kind], FACTS)
    assert list(tmp_path.iterdir()) == [source]


def test_a_file_that_does_not_exist_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        embed(tmp_path / "no", tmp_path / "target", "image/png", FACTS)


@pytest.mark.parametrize("media_type", ["image/gif", "image/jpg", "", "text/html"])
def test_other_types_are_refused(tmp_path, media_type):
    with pytest.raises(EmbeddingRefusedError, match=r"not supported; supported are image/png, image/jpeg, image/webp$"):
        embed(tmp_path / "no", tmp_path / "target", media_type, FACTS)


# --- Where things go ---


def test_png_facts_follow_ihdr_in_chunks_that_plain_tools_show(run):
    after = run(MADE["text.png"](), "png")
    names = [name for name, _ in png_chunks(after)[0]]
    assert names[:6] == [b"IHDR", b"eXIf", b"iTXt", b"tEXt", b"tEXt", b"iTXt"]
    with Image.open(io.BytesIO(after)) as image:
        text = image.text
    assert {key: str(value) for key, value in text.items() if not key.startswith("XML")} == {
        "Title": "kept",
        "Comment": "kept 🐻",
        "Author": "kept",
        "Software": MODEL,
        "Source": f"Kie.ai task {TASK}",
        "Description": PROMPT,
    }


@pytest.mark.parametrize(
    ("prompt", "chunk"),
    [
        ("plain", b"tEXt"),
        ("Bär é\n\xa0", b"tEXt"),
        ("", b"tEXt"),
        ("Bär 🐻", b"iTXt"),
        ("tab\t", b"iTXt"),
        ("\x85", b"iTXt"),
        ("\x7f", b"iTXt"),
    ],
)
def test_png_text_is_latin_1_where_that_can_say_it(run, prompt, chunk):
    after = run(saved(), "png", provenance(prompt))
    assert [name for name, content in png_chunks(after)[0] if content.startswith(b"Description\0")] == [chunk]
    with Image.open(io.BytesIO(after)) as image:
        assert image.text["Description"] == prompt


@pytest.mark.parametrize(
    ("name", "before"),
    [("jfif.jpg", 1), ("jfif-extended.jpg", 2), ("no-jfif.jpg", 0), ("exif.jpg", 1), ("exif-no-jfif.jpg", 0)],
)
def test_jpeg_exif_comes_first_or_right_after_jfif(run, name, before):
    found = jpeg_segments(run(MADE[name](), "jpg"))[0]
    assert [marker for marker, _ in found[:before]] == [0xFFE0] * before
    assert (found[before][0], found[before][1][:6]) == (0xFFE1, b"Exif\0\0")
    assert (found[before + 1][0], found[before + 1][1][:29]) == (0xFFE1, XMP_HEADER)
    assert sum(content.startswith(b"Exif\0\0") for _, content in found) == 1


@pytest.mark.parametrize(
    ("name", "flags", "names"),
    [
        ("lossy.webp", 0x0C, [b"VP8X", b"VP8 ", b"EXIF", b"XMP "]),
        ("lossless.webp", 0x0C, [b"VP8X", b"VP8L", b"EXIF", b"XMP "]),
        ("lossless-alpha.webp", 0x1C, [b"VP8X", b"VP8L", b"EXIF", b"XMP "]),
        ("lossy-alpha.webp", 0x1C, [b"VP8X", b"ALPH", b"VP8 ", b"EXIF", b"XMP "]),
        ("exif.webp", 0x0C, [b"VP8X", b"VP8 ", b"EXIF", b"XMP "]),
        ("icc.webp", 0x2C, [b"VP8X", b"ICCP", b"VP8 ", b"EXIF", b"XMP "]),
        ("animated.webp", 0x1E, [b"VP8X", b"ANIM", b"ANMF", b"ANMF", b"EXIF", b"XMP "]),
    ],
)
def test_webp_is_extended_and_says_what_it_holds(run, name, flags, names):
    before = MADE[name]()
    found = webp_chunks(run(before, "webp"))[0]
    with Image.open(io.BytesIO(before)) as image:
        width, height = image.size
    assert [name for name, _ in found] == names
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    assert found[0][1] == bytes([flags, 0, 0, 0]) + canvas


@pytest.mark.parametrize(("width", "height"), [(1, 1), (16383, 1), (1, 16383), (257, 513)])
@pytest.mark.parametrize("lossless", [True, False])
def test_webp_canvas_has_the_size_of_the_image(run, width, height, lossless):
    after = run(saved(size=(width, height), kind="webp", lossless=lossless), "webp")
    assert webp_chunks(after)[0][0][1][4:] == (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    with Image.open(io.BytesIO(after)) as image:
        image.load()
        assert image.size == (width, height)


def test_webp_scale_bits_are_not_taken_for_size(run):
    data = bytearray(saved(kind="webp"))
    data[27] |= 0x80  # two bits above the width
    assert webp_chunks(run(bytes(data), "webp"))[0][0][1][4:7] == (36).to_bytes(3, "little")


# --- Texts ---


@pytest.mark.parametrize(
    ("prompt", "written"),
    [
        ("a\0b\x01c\x0bd\x1be", "abcde"),
        ("half \ud83d and \udc3b", "half  and "),
        ("\ufffe\uffff\ufffd", "\ufffd"),
        ("a\r\nb\rc\n", "a\nb\nc\n"),
        ("</rdf:li>&amp;<![CDATA[ ]]> --> ?>", "</rdf:li>&amp;<![CDATA[ ]]> --> ?>"),
        ("\tindented  text ", "\tindented  text "),
        ("{model} {0} {", "{model} {0} {"),
        ("", ""),
        ("👩‍👩‍👧 Ünï 漢字 \U0010ffff", "👩‍👩‍👧 Ünï 漢字 \U0010ffff"),
        ("🐻" * 5000, "🐻" * 5000),
    ],
)
@EVERY_TYPE
def test_any_prompt_can_be_written(run, kind, prompt, written):
    after = run(saved(kind=kind), kind, provenance(prompt))
    facts = xmp_facts(xmp_packet(after, kind))
    assert (facts["prompt"], facts["description"]) == (written, written)
    exif = exif_of(after)
    assert (utf8(exif[DESCRIPTION]), exif[SOFTWARE], exif.get_ifd(EXIF_IFD)[UNIQUE_ID]) == (written, MODEL, TASK)
    if kind == "png":
        with Image.open(io.BytesIO(after)) as image:
            assert image.text["Description"] == written


@EVERY_TYPE
def test_model_and_id_may_hold_anything_too(run, kind):
    after = run(saved(kind=kind), kind, Provenance("Kie.ai", "m<&>\0ö🐻", "i<&>\0ö🐻", "p"))
    facts = xmp_facts(xmp_packet(after, kind))
    assert (facts["tool"], facts["id"]) == ("m<&>ö🐻", "i<&>ö🐻")
    exif = exif_of(after)
    assert utf8(exif[SOFTWARE]) == "m<&>ö🐻"
    assert utf8(exif.get_ifd(EXIF_IFD)[UNIQUE_ID]) == "i<&>ö🐻"


NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    prompt=st.text(st.characters(exclude_categories=()) | st.sampled_from("<>&\"'\r\n\t\0{}\ud83d]"), max_size=60),
    kind=st.sampled_from(list(TYPES)),
)
def test_every_prompt_comes_back(run, prompt, kind):
    facts = provenance(prompt)
    after = run(saved(kind=kind), kind, facts)
    expected = NOT_XML.sub("", prompt).replace("\r\n", "\n").replace("\r", "\n")
    read = xmp_facts(xmp_packet(after, kind))
    assert (read["prompt"], read["description"]) == (expected, expected)
    assert utf8(exif_of(after)[DESCRIPTION]) == expected
    assert run(saved(kind=kind), kind, facts) == after
    assert run(after, kind, facts) == after


@EVERY_TYPE
def test_a_redacted_prompt_leaves_no_trace(run, kind):
    after = run(saved(kind=kind), kind, provenance(None))
    packet = xmp_packet(after, kind)
    facts = xmp_facts(packet)
    assert (facts["prompt"], facts["description"], facts["id"]) == (None, None, TASK)
    assert b"rompt" not in after
    assert b"escription" not in after.replace(b"rdf:Description", b"")
    exif = exif_of(after)
    assert DESCRIPTION not in exif
    assert exif[SOFTWARE] == MODEL


# --- EXIF that is there already ---


def tiff(order="<", extra=()):
    """IFD0 (orientation, a link to an Exif IFD with a maker note, ``extra``) and a thumbnail IFD behind it."""
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    note = b"offsets in here count from the start"
    entries = [(0x0112, 3, 1, struct.pack(order + "HH", 8, 0)), (EXIF_IFD, 4, 1, struct.pack(order + "I", 150)), *extra]
    ifd0 = struct.pack(order + "H", len(entries))
    ifd0 += b"".join(struct.pack(order + "HHI", *entry[:3]) + entry[3] for entry in sorted(entries))
    block = mark + struct.pack(order + "I", 8) + ifd0 + struct.pack(order + "I", 100)
    block = block.ljust(100, b"\0") + struct.pack(order + "HHHIHHI", 1, 0x0103, 3, 1, 6, 0, 0)
    block = block.ljust(150, b"\0") + struct.pack(order + "HHHIII", 1, 0x927C, 7, len(note), 200, 0)
    return block.ljust(200, b"\0") + note


@pytest.mark.parametrize("order", "<>")
@EVERY_TYPE
def test_exif_is_appended_to_so_that_offsets_stay_right(run, kind, order):
    before = tiff(order)
    after = exif_of(run(saved(kind=kind, exif=b"Exif\0\0" + before), kind))
    block = after._loaded_exif.removeprefix(b"Exif\0\0")
    assert block[:4] + block[8 : len(before)] == before[:4] + before[8:]
    assert after[ORIENTATION] == 8
    assert after[SOFTWARE] == MODEL
    assert after.get_ifd(EXIF_IFD)[0x927C].startswith(b"offsets")
    assert after.get_ifd(EXIF_IFD)[UNIQUE_ID] == TASK
    assert after.get_ifd(ExifTags.IFD.IFD1) == {0x0103: 6}


@EVERY_TYPE
def test_exif_tags_that_are_there_keep_their_values(run, kind):
    exif = Image.Exif()
    exif[DESCRIPTION], exif[SOFTWARE] = "the vendor's", "v"
    exif.get_ifd(EXIF_IFD)[UNIQUE_ID] = "theirs"
    exif.get_ifd(EXIF_IFD)[0x9000] = b"0300"
    after = run(saved(kind=kind, exif=exif), kind)
    found = exif_of(after)
    assert (found[DESCRIPTION], found[SOFTWARE]) == ("the vendor's", "v")
    assert found.get_ifd(EXIF_IFD) == {UNIQUE_ID: "theirs", 0x9000: b"0300"}
    assert xmp_facts(xmp_packet(after, kind))["prompt"] == PROMPT


def test_exif_prefix_in_webp_is_dropped(run):
    data = riff(*(webp_chunks(saved(kind="webp", exif=b"Exif\0\0" + tiff()))[0]))
    found = dict(webp_chunks(data)[0])
    found[b"EXIF"] = b"Exif\0\0" + tiff()
    after = dict(webp_chunks(run(riff(*found.items()), "webp"))[0])
    assert after[b"EXIF"].startswith(b"II*\0")


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"II",
        b"II*\0",
        b"XX*\0\x08\0\0\0\0\0\0\0\0\0",
        b"II+\0\x08\0\0\0\0\0\0\0\0\0",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\x05\0",
        tiff()[:40],
        tiff(extra=[(0x0112, 3, 1, b"\1\0\0\0")]),  # the same tag twice
        tiff().replace(struct.pack("<HHII", EXIF_IFD, 4, 1, 150), struct.pack("<HHII", EXIF_IFD, 4, 1, 2**32 - 1)),
    ],
)
@EVERY_TYPE
def test_malformed_exif_is_refused(run, kind, block):
    marker = struct.pack(">H", len(block) + 8)
    data = saved(kind=kind)
    made = {
        "png": lambda: data[:33] + chunk(b"eXIf", block) + data[33:],
        "jpg": lambda: data[:20] + b"\xff\xe1" + marker + b"Exif\0\0" + block + data[20:],
        "webp": lambda: riff((b"VP8X", b"\x08\0\0\0" + b"\x24\0\0\x16\0\0"), *webp_chunks(data)[0], (b"EXIF", block)),
    }
    refused(run, made[kind](), kind, "EXIF block is malformed|a field of the file is malformed")


# --- Refusals ---


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def segment(marker, data):
    return struct.pack(">HH", marker, len(data) + 2) + data


def with_part(kind, png, jpg, webp, data=None):
    data = data or saved(kind=kind)
    if kind == "png":
        return data[:33] + chunk(*png) + data[33:]
    if kind == "jpg":
        return data[:20] + segment(*jpg) + data[20:]
    return riff((b"VP8X", b"\0\0\0\0" + b"\x24\0\0\x16\0\0"), *webp_chunks(data)[0], webp)


C2PA_UUID = bytes.fromhex("6332706100110010800000aa00389b71")


def manifest(kind, data=None):
    label = C2PA_UUID + b"\x03c2pa\0"
    box = struct.pack(">I4s", 8 + 8 + len(label), b"jumb") + struct.pack(">I4s", 8 + len(label), b"jumd") + label
    return with_part(kind, (b"caBX", box), (0xFFEB, b"JP\0\1\0\0\0\1" + box), (b"C2PA", box), data)


@EVERY_TYPE
def test_a_c2pa_manifest_is_not_broken(run, kind):
    refused(run, manifest(kind), kind, "C2PA")


@EVERY_TYPE
def test_a_c2pa_manifest_is_not_copied_as_done_either(run, kind):
    once = run(saved(kind=kind), kind)
    found, _ = PARTS[kind](once)
    data = riff(*found, (b"C2PA", b"x")) if kind == "webp" else manifest(kind, once)
    refused(run, data, kind, "C2PA")


def test_other_jumbf_is_copied(run):
    data = with_part("jpg", None, (0xFFEB, b"JP\0\1\0\0\0\1" + b"\0\0\0\x10jumb" + b"somebody"), None)
    assert b"jumbsomebody" in run(data, "jpg")


@EVERY_TYPE
def test_xmp_of_others_is_not_lost(run, kind):
    packet = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
    data = with_part(
        kind, (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet), (0xFFE1, XMP_HEADER + packet), (b"XMP ", packet)
    )
    refused(run, data, kind, "another XMP packet")


def test_extended_xmp_is_not_lost(run):
    data = with_part("jpg", None, (0xFFE1, b"http://ns.adobe.com/xmp/extension/\0" + b"x" * 50), None)
    refused(run, data, "jpg", "another XMP packet")


@EVERY_TYPE
@pytest.mark.parametrize("facts", [provenance(None), provenance(task_id=TASK[::-1])])
def test_other_facts_do_not_go_on_top(run, kind, facts):
    refused(run, run(saved(kind=kind), kind), kind, "another XMP packet", facts)


@pytest.mark.parametrize("keyword", [b"Raw profile type exif", b"Raw profile type APP1", b"Raw profile type xmp"])
def test_png_metadata_in_imagemagicks_place_is_refused(run, keyword):
    refused(run, with_part("png", (b"zTXt", keyword + b"\0\0x"), None, None), "png", "cannot be merged")


@EVERY_TYPE
def test_two_exif_blocks_are_refused(run, kind):
    data = saved(kind=kind, exif=orientation())
    block = tiff()
    if kind == "webp":
        data = riff(*webp_chunks(data)[0], (b"EXIF", block))
    else:
        data = with_part(kind, (b"eXIf", block), (0xFFE1, b"Exif\0\0" + block), None, data)
    refused(run, data, kind, "more than one EXIF block")


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_a_huge_exif_block_is_refused(run, kind):
    block = tiff().ljust((1 << 20) + 1, b"\0")
    refused(run, with_part(kind, (b"eXIf", block), None, (b"EXIF", block)), kind, "oversized")
    assert run(with_part(kind, (b"eXIf", block[:-1]), None, (b"EXIF", block[:-1])), kind)


def test_several_pictures_in_one_jpeg_are_refused(run):
    refused(run, with_part("jpg", None, (0xFFE2, b"MPF\0II*\0"), None), "jpg", "several images")
    assert run(with_part("jpg", None, (0xFFE2, b"FPXR\0"), None), "jpg")


@pytest.mark.parametrize("length", [10918, 65534 - 200])
def test_facts_that_no_jpeg_segment_can_hold_are_refused(run, length):
    refused(run, saved(kind="jpg"), "jpg", "a JPEG segment holds 65533", provenance("<é>" * length))


def test_a_jpeg_segment_may_be_full(run):
    def packet_of(length):
        return provenance("x" * (length // 2), TASK + "x" * (length % 2))

    spare = 65533 - len(jpeg_segments(run(saved(kind="jpg"), "jpg", packet_of(0)))[0][2][1])
    full = jpeg_segments(run(saved(kind="jpg"), "jpg", packet_of(spare)))[0][2][1]
    assert (full[:29], len(full)) == (XMP_HEADER, 65533)
    refused(run, saved(kind="jpg"), "jpg", "takes 65534 bytes", packet_of(spare + 1))


@pytest.mark.parametrize("name", [name for name in MADE if not name.startswith("trailing")])
def test_every_truncated_file_is_refused(run, name):
    kind = name.rpartition(".")[2]
    data = MADE[name]()
    for length in {*range(min(len(data), 300)), *range(0, len(data), 17), len(data) - 1}:
        refused(run, data[:length], kind, "truncated|malformed|not a|no image data")


def test_a_truncated_file_is_not_copied_as_done_either(run):
    found, _ = webp_chunks(run(saved(kind="webp"), "webp"))
    data = riff(*found, (b"more", b"x" * 50))
    assert run(data, "webp") == data
    refused(run, data[:-20], "webp", f"truncated: by its header it has {len(data)} bytes, in fact {len(data) - 20}")


@EVERY_TYPE
def test_other_content_than_the_type_says_is_refused(run, kind):
    for other in TYPES:
        if other != kind:
            refused(run, saved(kind=other), kind, r"^it is not a (PNG|JPEG|WebP) file$")
    refused(run, b"<html>" * 9, kind, r"^it is not a (PNG|JPEG|WebP) file$")


PNG, JPG, WEBP, EXTENDED = saved(), saved(kind="jpg"), saved(kind="webp"), saved("RGBA", kind="webp")
IMAGE = webp_chunks(WEBP)[0][0][1]
LOSSLESS = webp_chunks(saved(kind="webp", lossless=True))[0][0][1]


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("png", PNG[:8] + PNG[33:]),  # no IHDR
        ("png", PNG[:33] + PNG[8:]),  # IHDR twice
        ("png", PNG[:8] + chunk(b"IHDR", b"x") + PNG[33:]),
        ("png", PNG[:33] + PNG[-12:]),  # no image
        ("png", PNG[:33] + chunk(b"ID\0T", b"") + PNG[33:]),
        ("png", PNG[:33] + struct.pack(">I", 2**32 - 1) + b"IDAT" + PNG[33:]),
        ("jpg", JPG[:20] + b"\xff\xe1\0\1" + JPG[20:]),  # a length that does not cover itself
        ("jpg", JPG[:20] + b"\xff\xe1\0\0" + JPG[20:]),
        ("jpg", JPG[:20] + b"\xff\xd8\0\2" + JPG[20:]),  # SOI
        ("jpg", JPG[:20] + b"\xff\xd9\0\2" + JPG[20:]),  # EOI
        ("jpg", JPG[:20] + b"\xff\xd0\0\2" + JPG[20:]),  # RST
        ("jpg", JPG[:20] + b"\xff\xbf\0\2" + JPG[20:]),
        ("jpg", JPG[:20] + b"\0\0\0\2" + JPG[20:]),
        ("jpg", JPG[:2] + b"\xff" * 20),
        ("webp", riff()),
        ("webp", riff((b"VP8X", bytes(10)))),  # no image
        ("webp", riff((b"VP8X", b""), (b"VP8 ", IMAGE))),
        ("webp", riff((b"VP8X", bytes(9)), (b"VP8 ", IMAGE))),
        ("webp", riff((b"VP8 ", IMAGE), (b"ICCP", b"xx"))),
        ("webp", riff((b"ICCP", b"xx"), (b"VP8 ", IMAGE))),
        ("webp", riff((b"VP8 ", IMAGE[:9]))),
        ("webp", riff((b"VP8 ", IMAGE[:3] + b"xxx" + IMAGE[6:]))),
        ("webp", riff((b"VP8 ", IMAGE[:6] + bytes(4) + IMAGE[10:]))),  # no width
        ("webp", riff((b"VP8L", b"x" + LOSSLESS[1:]))),
        ("webp", riff((b"VP8L", LOSSLESS[:4]))),
        ("webp", EXTENDED[:4] + struct.pack("<I", len(EXTENDED) - 10) + EXTENDED[8:]),  # the last chunk sticks out
        ("webp", b"RIFF" + struct.pack("<I", len(WEBP) - 7) + WEBP[8:] + b"x"),  # half a chunk at the end
    ],
)
def test_malformed_files_are_refused(run, kind, data):
    refused(run, data, kind, "malformed|truncated|no image data|does not|has no VP8X")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(st.data())
def test_a_damaged_file_is_refused_or_edited_but_breaks_nothing(run, data):
    name = data.draw(st.sampled_from(["exif.png", "text.png", "exif.jpg", "exif.webp", "lossless-alpha.webp"]))
    damaged = bytearray(MADE[name]())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    kind = name.rpartition(".")[2]
    try:
        after = run(bytes(damaged), kind)
    except EmbeddingRefusedError:
        return
    assert run(after, kind) == after


# --- Memory ---


@EVERY_TYPE
def test_a_large_file_takes_little_memory(tmp_path, kind):
    source, target = tmp_path / "large", tmp_path / "target"
    head, tail = {
        "png": (PNG[:33] + struct.pack(">I", 60 << 20) + b"IDAT", b"\0\0\0\0" + PNG[-12:]),
        "jpg": (JPG[:-2], JPG[-2:]),
        "webp": (b"RIFF" + struct.pack("<I", (60 << 20) + 12) + b"WEBPVP8 " + struct.pack("<I", 60 << 20), b""),
    }[kind]
    with source.open("wb") as out:
        out.write(head + (IMAGE[:10] if kind == "webp" else b""))
        out.seek(len(head) + (60 << 20) - 1)
        out.write(b"\0" + tail)
    tracemalloc.start()
    try:
        embed(source, target, TYPES[kind], FACTS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert target.stat().st_size > source.stat().st_size > 60 << 20
    assert peak < 4 << 20


def test_a_png_of_very_many_chunks_takes_little_memory(tmp_path):
    source = tmp_path / "many"
    source.write_bytes(PNG[:-12] + chunk(b"juNk", b"") * 100_000 + PNG[-12:])
    tracemalloc.start()
    try:
        embed(source, tmp_path / "target", "image/png", FACTS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize("position", [-1, 0, 1, 2])
def test_the_end_of_jpeg_image_data_is_found_across_pieces(run, monkeypatch, position):
    """The two bytes of the end marker fall into different pieces."""
    monkeypatch.setattr("kie_provider.files.metadata.embedding.BLOCK", 64)
    scan = len(jpeg_segments(JPG)[1]) - 2  # from the image data's own segment, whose length is 12 here
    padding = -(scan - 2 - 10 + position) % 64
    run(JPG[:-2] + b"\0" * padding + JPG[-2:], "jpg")


# --- ExifTool, the yardstick ---

needs_exiftool = pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")


def exiftool(tmp_path, data, kind):
    file = tmp_path / f"read.{kind}"
    file.write_bytes(data)
    command = ["exiftool", "-json", "-G1", "-struct", "-validate", "-warning", "-error", "-all", str(file)]
    answer = subprocess.run(command, capture_output=True, check=True, timeout=60)
    return json.loads(answer.stdout)[0]


@needs_exiftool
@pytest.mark.parametrize(
    "name",
    ["text.png", "exif.png", "jfif.jpg", "no-jfif.jpg", "exif.jpg", "lossy.webp", "lossless-alpha.webp", "exif.webp"],
)
def test_exiftool_reads_every_fact(tmp_path, run, name):
    kind = name.rpartition(".")[2]
    read = exiftool(tmp_path, run(MADE[name](), kind), kind)
    assert read["IFD0:ImageDescription"] == PROMPT
    assert read["IFD0:Software"] == MODEL
    assert read["ExifIFD:ImageUniqueID"] == TASK
    assert read["XMP-iptcExt:DigitalSourceType"].endswith("/trainedAlgorithmicMedia")
    assert read["XMP-iptcExt:AISystemUsed"] == f"{MODEL} (Kie.ai)"
    assert read["XMP-iptcExt:AIPromptInformation"] == PROMPT
    assert read["XMP-xmp:CreatorTool"] == MODEL
    assert read["XMP-dc:Identifier"] == TASK
    assert read["XMP-dc:Description"] == PROMPT
    if kind == "png":
        assert (read["PNG:Description"], read["PNG:Software"]) == (PROMPT, MODEL)
        assert read["PNG:Source"] == f"Kie.ai task {TASK}"
    if "exif" in name:
        assert read["IFD0:Orientation"] == "Rotate 90 CW"
        assert read["ExifIFD:DateTimeOriginal"] == "2026:01:02 03:04:05"


@needs_exiftool
@EVERY_FILE
def test_exiftool_has_no_more_to_complain_of_than_before(tmp_path, run, name):
    kind = name.rpartition(".")[2]

    def complaints(data):
        read = exiftool(tmp_path, data, kind)
        found = {value for key, value in read.items() if "Warning" in key or "Error" in key}
        # Says how the channels are stored, which is the encoder's knowledge; required once there is an Exif IFD.
        found.discard("Missing required JPEG ExifIFD tag 0x9101 ComponentsConfiguration")
        return {re.sub(r"APP\d", "APPn", value) for value in found}

    assert complaints(run(MADE[name](), kind)) <= complaints(MADE[name]())
