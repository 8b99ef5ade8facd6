"""Write into an image file how it was made, without changing a pixel.

Only the container is edited: PNG chunks, JPEG segments, WebP (RIFF) chunks. All other bytes are copied unchanged, in
blocks, so memory use is small however large the file is. The same file and provenance always give the same bytes: no
imaging library takes part, whose next version might write different ones.

Existing metadata is kept:

* EXIF is merged. Its block is only appended to, so offsets in it (thumbnail, maker notes) stay valid; an existing tag
  keeps its value, and the new value is then in the XMP alone.
* XMP is not merged: a file with a different XMP packet is refused. A file with exactly the packet to be written was
  processed before and is copied unchanged, so embedding is idempotent.
* PNG text chunks are added; the format allows a keyword more than once.

Sources: XMP specification part 3 (locations and headers), PNG third edition, JFIF 1.02, RFC 9649 (WebP), C2PA 2.1
appendix A (location of manifests).
"""

from __future__ import annotations

import re
import secrets
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from kie_provider.files.metadata import xmp
from kie_provider.files.metadata.exif import PREFIX as EXIF_PREFIX
from kie_provider.files.metadata.exif import merged

#: Bytes that are copied at a time.
BLOCK = 1 << 20
#: Bytes; a larger EXIF block is refused. JPEG, the origin of the format, allows 64 KiB.
LARGEST_EXIF = 1 << 20

_JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_JPEG_MORE_XMP = b"http://ns.adobe.com/xmp/extension/\0"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_XMP = b"XML:com.adobe.xmp"

# Characters that XML 1.0 (production 2) does not allow, not even escaped.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Characters that PNG's tEXt, which is Latin-1, defines.
_LATIN_1 = re.compile("[\n\x20-\x7e\xa0-\xff]*")


@dataclass(frozen=True)
class Provenance:
    """How an image was made. Characters that XML cannot hold are dropped when written; line ends become line feeds.

    :param service: who ran the model, for example ``Kie.ai``.
    :param model: for example ``flux-2/pro-text-to-image``.
    :param task_id: the service's id of the task that made the image.
    :param prompt: None: redacted; no prompt is written. A prompt that the file already carries stays.
    """

    service: str
    model: str
    task_id: str
    prompt: str | None


class EmbeddingRefusedError(ValueError):
    """The file cannot be edited safely; the message says why. Nothing is written."""


class _Part(NamedTuple):
    """A chunk or segment: bytes ``start`` to ``end`` of the file; ``data`` to ``data_end`` are its content."""

    kind: str
    start: int
    end: int
    data: int
    data_end: int


class _Splice(NamedTuple):
    """An edit: ``new`` replaces bytes ``start`` to ``end`` of the file."""

    start: int
    end: int
    new: bytes


def embed(source: Path, target: Path, media_type: str, provenance: Provenance) -> None:
    """Copy ``source`` to ``target`` with its provenance embedded; the two may be the same file.

    ``target`` appears complete or not at all.

    :param media_type: ``image/png``, ``image/jpeg`` or ``image/webp``.
    :raises EmbeddingRefusedError: the media type is another one; the file has a C2PA manifest, whose signature any edit
        would break, or other XMP; it is truncated or malformed.
    :raises OSError: a file cannot be read or written.
    """
    plan = _PLANS.get(media_type)
    if plan is None:
        raise EmbeddingRefusedError(f"{media_type} is not supported; supported are {', '.join(_PLANS)}")
    part = target.with_name(f".{secrets.token_hex(8)}.part")  # random: two attempts may overlap
    with source.open("rb") as file:
        try:
            splices = plan(file, file.seek(0, 2), _cleaned(provenance))
        except struct.error as error:
            raise EmbeddingRefusedError(f"a field of the file is malformed: {error}") from error
        try:
            _write(file, sorted(splices), part)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)


def _write(file: BinaryIO, splices: Iterable[_Splice], target: Path) -> None:
    with target.open("xb") as out:
        position = 0
        for splice in splices:
            for block in _blocks(file, position, splice.start):
                out.write(block)
            out.write(splice.new)
            position = splice.end
        for block in _blocks(file, position, file.seek(0, 2)):
            out.write(block)


def _blocks(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    for position in range(start, end, BLOCK):
        yield _read(file, position, min(BLOCK, end - position))


def _read(file: BinaryIO, position: int, length: int) -> bytes:
    file.seek(position)
    data = file.read(length)
    if len(data) < length:
        raise EmbeddingRefusedError(f"the file is truncated: it ends before byte {position + length}")
    return data


def _survey(file: BinaryIO, parts: Iterable[_Part], packet: bytes) -> tuple[_Part | None, bool]:
    """Return the EXIF part, and whether the file already has ``packet``, the XMP part to be written.

    :raises EmbeddingRefusedError: the file has a part that must not be edited.
    """
    exif, done = None, False
    for part in parts:
        if part.kind == "C2PA":
            raise EmbeddingRefusedError("it carries a C2PA manifest, whose signature any edit would break")
        if part.kind == "XMP":
            length = part.end - part.start
            if length != len(packet) or _read(file, part.start, length) != packet:
                raise EmbeddingRefusedError("it already carries another XMP packet, which would be lost")
            done = True
        if part.kind == "EXIF":
            if exif or part.data_end - part.data > LARGEST_EXIF:
                raise EmbeddingRefusedError("it carries more than one EXIF block, or an oversized one")
            exif = part
    return exif, done


# --- PNG ---


def _png_plan(file: BinaryIO, size: int, provenance: Provenance) -> list[_Splice]:
    if _read(file, 0, 8) != _PNG_SIGNATURE:
        raise EmbeddingRefusedError("it is not a PNG file")
    packet = _png_text(_PNG_XMP, _xmp(provenance), force_utf8=True)
    exif, done = _survey(file, _png_parts(file, size), packet)
    if done:
        return []
    texts = {
        b"Software": provenance.model,
        b"Source": f"{provenance.service} task {provenance.task_id}",
        b"Description": provenance.prompt,
    }
    new = _png_chunk(b"eXIf", _merged_exif(file, exif, provenance)) + packet
    new += b"".join(_png_text(keyword, text) for keyword, text in texts.items() if text is not None)
    after_ihdr = 8 + 12 + 13
    return [_Splice(after_ihdr, after_ihdr, new), *_dropped(exif)]


def _png_parts(file: BinaryIO, size: int) -> Iterator[_Part]:
    kinds = {b"eXIf": "EXIF", b"caBX": "C2PA"}
    position, seen, name = 8, set(), b""
    while name != b"IEND":
        length, name = struct.unpack(">I4s", _read(file, position, 8))
        data, end = position + 8, position + 12 + length
        if not name.isalpha() or end > size or (position == 8) != (name == b"IHDR" and length == 13):
            raise EmbeddingRefusedError(f"the PNG chunk at {position} is malformed or truncated")
        kind = kinds.get(name, "")
        if name in (b"tEXt", b"zTXt", b"iTXt"):
            keyword = _read(file, data, min(length, 80)).partition(b"\0")[0]
            kind = "XMP" if keyword == _PNG_XMP else kind
            # Where ImageMagick kept EXIF and XMP before PNG had chunks for them.
            if keyword in (b"Raw profile type exif", b"Raw profile type APP1", b"Raw profile type xmp"):
                raise EmbeddingRefusedError(f"it carries metadata as {keyword.decode()!r}, which cannot be merged")
        yield _Part(kind, position, end, data, end - 4)
        seen.add(name)
        position = end
    if b"IDAT" not in seen:
        raise EmbeddingRefusedError("the PNG file has no image data")


def _png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png_text(keyword: bytes, text: str, *, force_utf8: bool = False) -> bytes:
    if _LATIN_1.fullmatch(text) and not force_utf8:
        return _png_chunk(b"tEXt", keyword + b"\0" + text.encode("latin-1"))
    # Not compressed, no language, no translated keyword.
    return _png_chunk(b"iTXt", keyword + b"\0\0\0\0\0" + text.encode())


# --- JPEG ---


def _jpeg_plan(file: BinaryIO, size: int, provenance: Provenance) -> list[_Splice]:
    if _read(file, 0, 2) != b"\xff\xd8":
        raise EmbeddingRefusedError("it is not a JPEG file")
    packet = _jpeg_app1(_JPEG_XMP + _xmp(provenance).encode())
    exif, done = _survey(file, _jpeg_parts(file, size), packet)
    if done:
        return []
    position = 2
    for part in _jpeg_parts(file, size):
        if part.kind != "JFIF":  # JFIF must come first, its extension right after it, then EXIF
            break
        position = part.end
    new = _jpeg_app1(EXIF_PREFIX + _merged_exif(file, exif, provenance)) + packet
    return [_Splice(position, position, new), *_dropped(exif)]


def _jpeg_parts(file: BinaryIO, size: int) -> Iterator[_Part]:
    """Yield the segments before the image data; then check that the image data has an end."""
    position, marker = 2, 0
    while marker != 0xFFDA:
        marker, length = struct.unpack(">HH", _read(file, position, 4))
        if marker == 0xFFFF:  # a fill byte
            position += 1
            continue
        end = position + 2 + length
        if not 0xFFC0 <= marker <= 0xFFFE or 0xFFD0 <= marker <= 0xFFD9 or length < 2 or end > size:
            raise EmbeddingRefusedError(f"the JPEG segment at {position} is malformed or truncated")
        content = _read(file, position + 4, length - 2)
        kind, data = "", position + 4
        if marker == 0xFFE0:
            kind = "JFIF"
        elif marker == 0xFFE1 and content.startswith(EXIF_PREFIX):
            kind, data = "EXIF", data + len(EXIF_PREFIX)
        elif marker == 0xFFE1 and content.startswith((_JPEG_XMP, _JPEG_MORE_XMP)):
            kind = "XMP"
        elif marker == 0xFFE2 and content.startswith(b"MPF\0"):
            raise EmbeddingRefusedError("it holds several images (MPF), whose index would become wrong")
        elif marker == 0xFFEB and content.startswith(b"JP") and b"c2pa" in content:
            kind = "C2PA"  # JUMBF; both the type and the label of its box begin with these four letters
        yield _Part(kind, position, end, data, end)
        position = end
    tail = b""
    for block in _blocks(file, position, size):
        if b"\xff\xd9" in tail + block:  # the end marker, which image data never contains
            return
        tail = block[-1:]
    raise EmbeddingRefusedError("the JPEG file is truncated: its image data has no end")


def _jpeg_app1(content: bytes) -> bytes:
    if len(content) > 65533:
        raise EmbeddingRefusedError(f"the metadata takes {len(content)} bytes; a JPEG segment holds 65533")
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


# --- WebP ---


def _webp_plan(file: BinaryIO, size: int, provenance: Provenance) -> list[_Splice]:
    magic, length, form = struct.unpack("<4sI4s", _read(file, 0, 12))
    if (magic, form) != (b"RIFF", b"WEBP"):
        raise EmbeddingRefusedError("it is not a WebP file")
    end = 8 + length
    if end > size:
        raise EmbeddingRefusedError(f"the WebP file is truncated: by its header it has {end} bytes, in fact {size}")
    packet = _riff_chunk(b"XMP ", _xmp(provenance).encode())
    exif, done = _survey(file, _webp_parts(file, end), packet)
    if done:
        return []
    new = _riff_chunk(b"EXIF", _merged_exif(file, exif, provenance)) + packet
    splices = [_webp_header(file, end), *_dropped(exif), _Splice(end, end, new)]
    length += sum(len(splice.new) - (splice.end - splice.start) for splice in splices)
    return [_Splice(4, 8, struct.pack("<I", length)), *splices]


def _webp_parts(file: BinaryIO, riff_end: int) -> Iterator[_Part]:
    kinds = {b"EXIF": "EXIF", b"XMP ": "XMP", b"C2PA": "C2PA"}
    position, has_image = 12, False
    while position < riff_end:
        name, length = struct.unpack("<4sI", _read(file, position, 8))
        data_end = position + 8 + length
        end = data_end + length % 2
        if end > riff_end:
            raise EmbeddingRefusedError(f"the WebP chunk at {position} is malformed or truncated")
        yield _Part(kinds.get(name, name.decode("latin-1")), position, end, position + 8, data_end)
        has_image = has_image or name in (b"VP8 ", b"VP8L", b"ANMF")
        position = end
    if not has_image:
        raise EmbeddingRefusedError("the WebP file has no image data")


def _webp_header(file: BinaryIO, riff_end: int) -> _Splice:
    """Return the edit that sets the EXIF and XMP flags in VP8X; a file without VP8X gets one."""
    first = next(_webp_parts(file, riff_end))
    has_exif_and_xmp, has_alpha = 0x08 | 0x04, 0x10
    head = _read(file, first.data, min(10, first.data_end - first.data))
    if first.kind == "VP8X" and len(head) == 10:
        return _Splice(first.data, first.data + 1, struct.pack("B", head[0] | has_exif_and_xmp))
    if first.end != riff_end:
        raise EmbeddingRefusedError("the WebP file has no VP8X chunk, but other chunks beside its image")
    if first.kind == "VP8 " and head[3:6] == b"\x9d\x01\x2a":  # RFC 6386, 9.1: the upper two bits are a scale
        flags, width, height = 0, *(side & 0x3FFF for side in struct.unpack("<HH", head[6:]))
    elif first.kind == "VP8L" and head[:1] == b"\x2f":  # RFC 9649, 3.4: 14 bits, 14 bits, 1 bit
        (bits,) = struct.unpack("<I", head[1:5])
        flags, width, height = bits >> 28 & 1 and has_alpha, (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        raise EmbeddingRefusedError("the WebP file does not begin with an image")
    canvas = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    header = _riff_chunk(b"VP8X", struct.pack("<I", flags | has_exif_and_xmp) + canvas)
    return _Splice(first.start, first.start, header)


def _riff_chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


_PLANS: Mapping[str, Callable[[BinaryIO, int, Provenance], list[_Splice]]] = {
    "image/png": _png_plan,
    "image/jpeg": _jpeg_plan,
    "image/webp": _webp_plan,
}


# --- What is written ---


def _cleaned(provenance: Provenance) -> Provenance:
    """Return the provenance without the characters that XML cannot hold.

    Line ends become what XML parsers (XML 1.0, 2.11) and PNG make of them anyway.
    """

    def clean(text: str) -> str:
        return _NOT_XML.sub("", text).replace("\r\n", "\n").replace("\r", "\n")

    prompt = None if provenance.prompt is None else clean(provenance.prompt)
    return Provenance(clean(provenance.service), clean(provenance.model), clean(provenance.task_id), prompt)


def _xmp(provenance: Provenance) -> str:
    return xmp.packet(provenance.service, provenance.model, provenance.task_id, provenance.prompt)


def _merged_exif(file: BinaryIO, exif: _Part | None, provenance: Provenance) -> bytes:
    old = _read(file, exif.data, exif.data_end - exif.data) if exif else None
    try:
        return merged(old, software=provenance.model, description=provenance.prompt, unique_id=provenance.task_id)
    except ValueError as error:
        raise EmbeddingRefusedError(str(error)) from error


def _dropped(exif: _Part | None) -> list[_Splice]:
    return [_Splice(exif.start, exif.end, b"")] if exif else []
