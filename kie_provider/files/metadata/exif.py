"""EXIF blocks (TIFF directories as in Exif 2.32): read the orientation, and add tags without moving existing data."""

from __future__ import annotations

import struct
from collections.abc import Mapping

#: Precedes the block in JPEG.
PREFIX = b"Exif\0\0"

_ORIENTATION, _SHORT = 0x0112, 3
_EMPTY = b"II*\0\0\0\0\0"
_ASCII, _LONG, _UNDEFINED = 2, 4, 7  # TIFF field types
_DESCRIPTION, _SOFTWARE, _EXIF_IFD, _EXIF_VERSION, _UNIQUE_ID = 0x010E, 0x0131, 0x8769, 0x9000, 0xA420


def orientation(block: bytes) -> int:
    """Return the orientation, 1 to 8: how to rotate and mirror the image for display.

    1: it is displayed as stored. From 5 on, width and height are swapped.
    """
    block = block.removeprefix(PREFIX)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", block, 4)
        kind, count, value = struct.unpack_from(order + "HIH", _ifd(block, order, start)[0][_ORIENTATION], 2)
    except (KeyError, ValueError, struct.error):
        return 1
    return value if (kind, count) == (_SHORT, 1) and 1 <= value <= 8 else 1


def merged(old: bytes | None, *, software: str, description: str | None, unique_id: str) -> bytes:
    """Return an EXIF block (without JPEG's prefix) with these tags added; tags that it already has keep their values.

    The block is only appended to, so offsets in it (thumbnail, maker notes) stay valid. Text is UTF-8 under the type
    ASCII, as most software writes it and ExifTool reads it; hardly any reader knows Exif 3.0's own type for UTF-8.

    :param old: None: make a new block.
    :param description: None: do not add the tag.
    :raises ValueError: the block is malformed.
    :raises struct.error: likewise: an offset in it points outside.
    """
    # Some writers keep the prefix in WebP and PNG, too.
    block = bytearray((_EMPTY if old is None else old).removeprefix(PREFIX))
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(block[:4]))
    if order is None:
        raise ValueError("its EXIF block is malformed")
    texts = {_SOFTWARE: software, _DESCRIPTION: description}
    values = {tag: (_ASCII, text.encode() + b"\0") for tag, text in texts.items() if text is not None}
    details = {_EXIF_VERSION: (_UNDEFINED, b"0232"), _UNIQUE_ID: (_ASCII, unique_id.encode() + b"\0")}

    (start,) = struct.unpack_from(order + "I", block, 4)
    pointer = _ifd(block, order, start)[0].get(_EXIF_IFD)
    (exif_start,) = struct.unpack(order + "I", pointer[8:]) if pointer else (0,)
    exif_start = _with_values(block, order, exif_start, details)
    link = struct.pack(order + "HHII", _EXIF_IFD, _LONG, 1, exif_start)
    start = _with_values(block, order, start, values, {_EXIF_IFD: link})
    block[4:8] = struct.pack(order + "I", start)
    return bytes(block)


def _ifd(block: bytes | bytearray, order: str, start: int) -> tuple[dict[int, bytes], int]:
    """Return the entries (12 bytes each) of a TIFF directory by tag, and the offset of the next directory; 0: none."""
    if start == 0:
        return {}, 0
    (count,) = struct.unpack_from(order + "H", block, start)
    (following,) = struct.unpack_from(order + "I", block, start + 2 + 12 * count)
    raw = [bytes(block[at : at + 12]) for at in range(start + 2, start + 2 + 12 * count, 12)]
    entries = {struct.unpack(order + "H", entry[:2])[0]: entry for entry in raw}
    if len(entries) < count:
        raise ValueError("its EXIF block is malformed: a tag occurs twice")
    return entries, following


def _with_values(
    block: bytearray, order: str, start: int, values: Mapping[int, tuple[int, bytes]], links: Mapping[int, bytes] = {}
) -> int:
    """Append to ``block`` a copy of the directory at ``start``, plus the ``values`` it lacks; return its offset.

    :param values: by tag: a type whose items take one byte each, and the value.
    :param links: complete entries by tag; these replace existing ones.
    """
    entries, following = _ifd(block, order, start)
    for tag, (kind, value) in values.items():
        if tag in entries:
            continue
        stored = value.ljust(4, b"\0")
        if len(value) > 4:  # longer values are stored elsewhere, at an even offset
            block.extend(b"\0" * (len(block) % 2))
            stored = struct.pack(order + "I", len(block))
            block.extend(value)
        entries[tag] = struct.pack(order + "HHI", tag, kind, len(value)) + stored
    entries.update(links)
    block.extend(b"\0" * (len(block) % 2))
    offset = len(block)
    block.extend(struct.pack(order + "H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)))
    block.extend(struct.pack(order + "I", following))
    return offset
