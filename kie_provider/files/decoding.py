"""Decode an image whole, in bounded memory and time, whatever else this process does with Pillow.

PNG is inflated here, with zlib: Pillow gives up on good pictures for the text in them, and takes bad ones where a DAG
file has told it to. Pillow decodes the others, after a look at what would keep it busy for ever.
"""

from __future__ import annotations

import contextlib
import mmap
import re
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kie_provider.client.errors import KieFileError, KieResultError
from kie_provider.client.plain import counted
from kie_provider.files.metadata.exif import PREFIX as EXIF_PREFIX
from kie_provider.files.metadata.exif import orientation

#: What is decoded. Pillow reads AVIF and HEIC only in some builds.
DECODED_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")
#: Pillow reads all of a WebP or GIF into memory; larger ones are not decoded.
_LARGEST_ANIMATION = 16 * 2**20
_MAX_FRAMES = 256
#: All frames together; ``max_pixels`` may be more.
_MAX_PIXELS_IN_ALL = 2**28
#: Every scan of a JPEG goes over all its pixels. Usual are 1 to 12.
_MAX_SCANS = 64
#: Chunks or segments: so many, and one more for every KiB of the file.
_MAX_PARTS = 10_000
_PIECE = 2**18
#: An EXIF block that is larger is none.
_LARGEST_EXIF = 2**20


def decode(path: Path, media_type: str, max_pixels: int) -> tuple[int, int]:
    """Decode all of an image, and return its width and height as it is shown: its EXIF orientation counts.

    :param media_type: one of :data:`DECODED_TYPES`.
    :raises KieFileError: it is broken, or ends too early.
    :raises KieResultError: it has more than ``max_pixels``, or takes more work than any sensible image.
    """
    if media_type == "image/png":
        (width, height), turned = _decode_png(path, max_pixels)
    else:
        exif = b""
        if media_type == "image/jpeg":
            exif = _look_at_jpeg(path)
        elif (size := path.stat().st_size) > _LARGEST_ANIMATION:
            raise KieResultError(f"it is a {_name(media_type)} file of {size} bytes, too large to be decoded here")
        (width, height), exif_of_webp = _decode_with_pillow(path, media_type, max_pixels)
        turned = orientation(exif or exif_of_webp)
    return (height, width) if turned >= 5 else (width, height)


def _name(media_type: str) -> str:
    return media_type.rpartition("/")[2].upper()


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise _too_many_pixels(f"{width} x {height} = {width * height} pixels, more than", max_pixels)


def _too_many_pixels(how_many: str, max_pixels: int) -> KieResultError:
    return KieResultError(
        f"the image has {how_many} max_pixels={max_pixels}; it was not decoded. If that is what you ordered, raise "
        "max_pixels (4 bytes of memory each) and clear this task: nothing is paid again"
    )


def _check_parts(kind: str, parts: int, size: int) -> None:
    if parts > _MAX_PARTS + size // 1024:
        raise KieResultError(f"it is a {kind} file of more than {parts - 1} tiny parts, which is not decoded")


# --- PNG ---

_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PNG_BITS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
# First column and row of each pass, and the steps to the next.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def _decode_png(path: Path, max_pixels: int) -> tuple[tuple[int, int], int]:
    """Return size and orientation. All checksums are verified; of an animation, the first picture is inflated."""
    size, parts, exif, pixels, seen = path.stat().st_size, 0, b"", None, b""
    with path.open("rb") as file:
        file.seek(8)
        while True:
            header = file.read(8)
            length, name = int.from_bytes(header[:4], "big"), header[4:]
            _check_parts("PNG", parts := parts + 1, size)
            # Picture data counts where it is in one piece.
            reads_pixels = name == b"IDAT" and (seen == b"IDAT" or pixels is None or not pixels.has_begun)
            keeps = name in (b"IHDR", b"eXIf") and length <= _LARGEST_EXIF
            content, checksum, left = b"", zlib.crc32(name), length
            while left and (piece := file.read(min(left, _PIECE))):
                checksum, left = zlib.crc32(piece, checksum), left - len(piece)
                if reads_pixels and pixels:
                    pixels.add(piece)
                elif keeps:
                    content += piece
            ending = file.read(4)
            if len(header) < 8 or left or len(ending) < 4:
                raise KieFileError("it is a PNG file that ends too early")
            if int.from_bytes(ending, "big") != checksum:
                raise KieFileError(f"it is a PNG file whose part {name!r} was damaged (wrong checksum)")
            if (name == b"IHDR") != (pixels is None):
                raise KieFileError("it is a broken PNG file (its header is missing, or there twice)")
            if pixels is None:
                pixels = _PngPixels(content, max_pixels)
            elif name == b"PLTE":
                pixels.has_palette = True
            elif name == b"eXIf":
                exif = content
            elif name == b"IEND":
                pixels.check(is_complete=True)
                return (pixels.width, pixels.height), orientation(exif)
            elif name != b"IDAT" and not name[0] & 0x20:
                raise KieFileError(f"it is a broken PNG file (nobody knows its part {name!r})")
            pixels.check()
            seen = name


class _PngPixels:
    """The pixels of a PNG, which are inflated and counted, not kept.

    :param header: content of IHDR.
    """

    def __init__(self, header: bytes, max_pixels: int) -> None:
        if len(header) != 13:
            raise KieFileError("it is a broken PNG file (its header does not have 13 bytes)")
        self.width, self.height, bits, self._colours, compression, filters, interlace = struct.unpack(
            ">IIBBBBB", header
        )
        if (
            not self.width
            or not self.height
            or bits not in _PNG_BITS.get(self._colours, ())
            or compression
            or filters
            or interlace > 1
        ):
            raise KieFileError("it is a broken PNG file (its header makes no sense)")
        _check_pixels(self.width, self.height, max_pixels)
        self.has_palette = self.has_begun = False
        self._passes = self._rows(bits * _PNG_SAMPLES[self._colours], is_interlaced=bool(interlace))
        self._end = self._passes[-1][1]
        self._at = 0
        self._inflater = zlib.decompressobj()
        self._problem = ""

    def _rows(self, bits_per_pixel: int, *, is_interlaced: bool) -> Sequence[tuple[int, int, int]]:
        """Return begin and end of every pass among the inflated bytes, and the length of its rows."""
        passes, at = [], 0
        for left, top, across, down in _ADAM7 if is_interlaced else ((0, 0, 1, 1),):
            columns, rows = -((left - self.width) // across), -((top - self.height) // down)
            if columns > 0 and rows > 0:
                length = 1 + (columns * bits_per_pixel + 7) // 8
                passes.append((at, at := at + rows * length, length))
        return passes

    def add(self, piece: bytes) -> None:
        """Inflate some bytes of IDAT. What is wrong with them is told later: first their checksum is looked at."""
        self.has_begun = True
        while self._at < self._end and not self._problem:
            try:
                data = self._inflater.decompress(piece, 2**20)
            except zlib.error as error:
                self._problem = str(error)
                return
            if not data:
                return
            self._check_filters(data)
            self._at += len(data)
            piece = self._inflater.unconsumed_tail

    def _check_filters(self, data: bytes) -> None:
        """Look at the first byte of every row: there are five ways to filter one."""
        for begin, end, length in self._passes:
            first = begin + max(0, -((begin - self._at) // length)) * length
            if max(data[first - self._at : max(0, end - self._at) : length], default=0) > 4:
                self._problem = "unknown filter"

    def check(self, *, is_complete: bool = False) -> None:
        """Raise KieFileError if something is wrong with what there is so far."""
        if self._colours == 3 and self.has_begun and not self.has_palette:
            self._problem = "no palette"
        if is_complete and self._at < self._end and not self._problem:
            self._problem = f"{self._at} of {self._end} bytes of picture data"
        if self._problem:
            raise KieFileError(f"it is a broken PNG file ({self._problem})")


# --- JPEG ---

# A marker, but not a 0xFF in the data of a scan, nor one that restarts a scan.
_JPEG_MARKER = re.compile(rb"\xff([\x01\xc0-\xcf\xd8-\xfe])")
_SOI, _EOI, _SOS, _APP1, _TEM = b"\xd8", b"\xd9", b"\xda", b"\xe1", b"\x01"


def _look_at_jpeg(path: Path) -> bytes:
    """Return the EXIF block of a JPEG that ends where it should and can be decoded in sensible time.

    :raises KieFileError: it is broken.
    :raises KieResultError: it would take too long.
    """
    size, exif, parts, scans = path.stat().st_size, b"", 0, 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        position = 2
        while (found := _JPEG_MARKER.search(data, position)) and found[1] != _EOI:
            position = found.end()
            _check_parts("JPEG", parts := parts + 1, size)
            if found[1] in (_SOI, _TEM):
                continue
            if found[1] == _SOS and (scans := scans + 1) > _MAX_SCANS:
                raise KieResultError(f"it is a JPEG file of more than {_MAX_SCANS} scans, which is not decoded")
            end = position + int.from_bytes(data[position : position + 2], "big")
            if found[1] == _APP1 and not exif and data[position + 2 : position + 8] == EXIF_PREFIX:
                exif = data[position + 8 : end]
            position = max(end, position + 2)
    if not found:
        raise KieFileError("it is a broken JPEG file (it ends too early)")
    return exif


# --- with Pillow ---

_ONE_AT_A_TIME = threading.Lock()


@contextlib.contextmanager
def pillow_as_it_was_made(max_pixels: int) -> Iterator[None]:
    """Set Pillow's switches, which are the whole process's, as they must be here: a DAG file may have turned them."""
    from PIL import Image, ImageFile

    with _ONE_AT_A_TIME:
        before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = max_pixels, False
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


def _decode_with_pillow(path: Path, media_type: str, max_pixels: int) -> tuple[tuple[int, int], bytes]:
    """Return size and EXIF block."""
    from PIL import GifImagePlugin, Image, JpegImagePlugin, WebPImagePlugin

    reader: Any = {
        "image/jpeg": JpegImagePlugin.JpegImageFile,
        "image/webp": WebPImagePlugin.WebPImageFile,
        "image/gif": GifImagePlugin.GifImageFile,
    }[media_type]
    try:
        # Not Image.open: it follows what else is registered, takes some JPEGs for albums, and has a limit of its own.
        with pillow_as_it_was_made(max_pixels), path.open("rb") as file, reader(file) as image:
            for frame in range(_MAX_FRAMES + 1):
                try:
                    image.seek(frame)
                except EOFError:
                    break
                width, height = image.size
                _check_pixels(width, height, max_pixels)
                if frame == _MAX_FRAMES or width * height * (frame + 1) > max(max_pixels, _MAX_PIXELS_IN_ALL):
                    raise KieResultError(
                        f"it is an animation of more than {counted(frame, 'frame')} of {width} x {height} pixels, "
                        "which is not decoded"
                    )
                image.load()
            return image.size, image.info.get("exif", b"")
    except KieResultError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels("more pixels than", max_pixels) from None
    except Exception as error:
        # What Pillow raises on bad files: OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError ...
        raise KieFileError(f"it is a broken {_name(media_type)} file ({type(error).__name__}: {error})") from error
