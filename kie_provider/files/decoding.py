"""Decode a whole image in bounded memory and time, however Pillow is configured in this process.

PNG is inflated here, with zlib: Pillow rejects valid images because of their text chunks, and accepts truncated ones if
a DAG file has told it to. Pillow decodes the other formats, after a scan for what would keep it busy for too long.
"""

from __future__ import annotations

import contextlib
import mmap
import re
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kie_provider.client.errors import KieFileError, KieResultError
from kie_provider.client.plain import counted
from kie_provider.files.metadata.exif import PREFIX as EXIF_PREFIX
from kie_provider.files.metadata.exif import orientation

#: Media types that are decoded. Pillow reads AVIF and HEIC only in some builds.
DECODED_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")
#: Bytes. Pillow reads a whole WebP or GIF file into memory; larger files are not decoded.
_LARGEST_ANIMATION = 16 * 2**20
_MAX_FRAMES = 256
#: Of all frames together, unless ``max_pixels`` allows more.
_MAX_TOTAL_PIXELS = 2**28
#: Every scan of a JPEG visits all its pixels. 1 to 12 are common.
_MAX_SCANS = 64
#: Limit on the chunks of a PNG or the segments of a JPEG; every KiB of the file allows one more.
_MAX_PARTS = 10_000
#: Bytes that are read at a time.
_BLOCK = 2**18
#: Bytes; a larger EXIF block is ignored.
_LARGEST_EXIF = 2**20


def decode(path: Path, media_type: str, max_pixels: int) -> tuple[int, int]:
    """Decode a whole image and return its width and height as displayed, with its EXIF orientation applied.

    :param media_type: one of :data:`DECODED_TYPES`.
    :raises KieFileError: it is damaged or truncated.
    :raises KieResultError: it has more than ``max_pixels``, or takes far more work to decode than ordinary images do.
    """
    if media_type == "image/png":
        (width, height), turned = _decode_png(path, max_pixels)
    else:
        exif = b""
        if media_type == "image/jpeg":
            exif = _scan_jpeg(path)
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
        f"the image has {how_many} max_pixels={max_pixels}; it was not decoded. If that is what you requested, raise "
        "max_pixels (each pixel takes 4 bytes of memory) and clear this task: nothing is paid again"
    )


def _check_parts(kind: str, parts: int, size: int) -> None:
    if parts > _MAX_PARTS + size // 1024:
        raise KieResultError(f"it is a {kind} file of more than {parts - 1} tiny parts; such files are not decoded")


# --- PNG ---

_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PNG_BITS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
# First column and row of each pass, and the steps to the next.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def _decode_png(path: Path, max_pixels: int) -> tuple[tuple[int, int], int]:
    """Return size and orientation. All checksums are verified; of an animation, only the first frame is inflated."""
    size, parts, exif, pixels, seen = path.stat().st_size, 0, b"", None, b""
    with path.open("rb") as file:
        file.seek(8)
        while True:
            header = file.read(8)
            length, name = int.from_bytes(header[:4], "big"), header[4:]
            _check_parts("PNG", parts := parts + 1, size)
            # Only the first unbroken run of IDAT chunks is image data.
            reads_pixels = name == b"IDAT" and (seen == b"IDAT" or pixels is None or not pixels.has_begun)
            keeps = name in (b"IHDR", b"eXIf") and length <= _LARGEST_EXIF
            content, checksum, left = b"", zlib.crc32(name), length
            while left and (piece := file.read(min(left, _BLOCK))):
                checksum, left = zlib.crc32(piece, checksum), left - len(piece)
                if reads_pixels and pixels:
                    pixels.add(piece)
                elif keeps:
                    content += piece
            ending = file.read(4)
            if len(header) < 8 or left or len(ending) < 4:
                raise KieFileError("it is a truncated PNG file")
            if int.from_bytes(ending, "big") != checksum:
                raise KieFileError(f"it is a damaged PNG file (wrong checksum of chunk {name!r})")
            if (name == b"IHDR") != (pixels is None):
                raise KieFileError("it is a broken PNG file (its header is missing or repeated)")
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
                raise KieFileError(f"it is a broken PNG file (unknown chunk {name!r})")
            pixels.check()
            seen = name


class _PngPixels:
    """The pixels of a PNG: they are inflated and counted, but not kept.

    :param header: content of IHDR.
    """

    def __init__(self, header: bytes, max_pixels: int) -> None:
        if len(header) != 13:
            raise KieFileError(f"it is a broken PNG file (its header has {len(header)} bytes, not 13)")
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
            raise KieFileError("it is a broken PNG file (its header holds impossible values)")
        _check_pixels(self.width, self.height, max_pixels)
        self.has_palette = self.has_begun = False
        self._passes = self._rows(bits * _PNG_SAMPLES[self._colours], is_interlaced=bool(interlace))
        self._end = self._passes[-1][1]
        self._at = 0
        self._inflater = zlib.decompressobj()
        self._problem = ""

    def _rows(self, bits_per_pixel: int, *, is_interlaced: bool) -> Sequence[tuple[int, int, int]]:
        """Return the start and end of every pass within the inflated bytes, and the length of its rows."""
        passes, at = [], 0
        for left, top, across, down in _ADAM7 if is_interlaced else ((0, 0, 1, 1),):
            columns, rows = -((left - self.width) // across), -((top - self.height) // down)
            if columns > 0 and rows > 0:
                length = 1 + (columns * bits_per_pixel + 7) // 8
                passes.append((at, at := at + rows * length, length))
        return passes

    def add(self, piece: bytes) -> None:
        """Inflate some bytes of IDAT. Errors in them are raised by :meth:`check`, after the checksum was verified."""
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
        """Check the first byte of every row, which names one of the five filters."""
        for begin, end, length in self._passes:
            first = begin + max(0, -((begin - self._at) // length)) * length
            if max(data[first - self._at : max(0, end - self._at) : length], default=0) > 4:
                self._problem = "unknown filter"

    def check(self, *, is_complete: bool = False) -> None:
        """Raise KieFileError if something is wrong with the data so far."""
        if self._colours == 3 and self.has_begun and not self.has_palette:
            self._problem = "no palette"
        if is_complete and self._at < self._end and not self._problem:
            self._problem = f"{self._at} of {self._end} bytes of image data"
        if self._problem:
            raise KieFileError(f"it is a broken PNG file ({self._problem})")


# --- JPEG ---

# A marker, but neither a stuffed 0xFF in the data of a scan nor a restart marker.
_JPEG_MARKER = re.compile(rb"\xff([\x01\xc0-\xcf\xd8-\xfe])")
_SOI, _EOI, _SOS, _APP1, _TEM = b"\xd8", b"\xd9", b"\xda", b"\xe1", b"\x01"


def _scan_jpeg(path: Path) -> bytes:
    """Check that a JPEG is complete and can be decoded in reasonable time; return its EXIF block, or ``b""``.

    :raises KieFileError: it is truncated.
    :raises KieResultError: decoding would take too long.
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
                raise KieResultError(f"it is a JPEG file of more than {_MAX_SCANS} scans; such files are not decoded")
            end = position + int.from_bytes(data[position : position + 2], "big")
            if found[1] == _APP1 and not exif and data[position + 2 : position + 8] == EXIF_PREFIX:
                exif = data[position + 8 : end]
            position = max(end, position + 2)
    if not found:
        raise KieFileError("it is a truncated JPEG file")
    return exif


# --- with Pillow ---

_SETTINGS_LOCK = threading.Lock()


@contextlib.contextmanager
def pillow_settings(max_pixels: int) -> Iterator[None]:
    """Set Pillow's process-wide settings to what is needed here: a DAG file may have changed them."""
    from PIL import Image, ImageFile

    with _SETTINGS_LOCK:
        before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = max_pixels, False
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


def _decode_with_pillow(path: Path, media_type: str, max_pixels: int) -> tuple[tuple[int, int], bytes]:
    """Return size and EXIF block."""
    from PIL import GifImagePlugin, Image, ImageFile, JpegImagePlugin, WebPImagePlugin

    readers: Mapping[str, type[ImageFile.ImageFile]] = {
        "image/jpeg": JpegImagePlugin.JpegImageFile,
        "image/webp": WebPImagePlugin.WebPImageFile,
        "image/gif": GifImagePlugin.GifImageFile,
    }
    try:
        # Not Image.open: it tries other registered formats too, reads some JPEGs as albums, and has its own limit.
        with pillow_settings(max_pixels), path.open("rb") as file, readers[media_type](file) as image:
            for frame in range(_MAX_FRAMES + 1):
                try:
                    image.seek(frame)
                except EOFError:
                    break
                width, height = image.size
                _check_pixels(width, height, max_pixels)
                if frame == _MAX_FRAMES or width * height * (frame + 1) > max(max_pixels, _MAX_TOTAL_PIXELS):
                    raise KieResultError(
                        f"it is an animation of more than {counted(frame, 'frame')} of {width} x {height} pixels; "
                        "such files are not decoded"
                    )
                image.load()
            return image.size, image.info.get("exif", b"")
    except KieResultError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels("more pixels than", max_pixels) from None
    except Exception as error:
        # Pillow raises all sorts on bad files: OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError ...
        raise KieFileError(f"it is a broken {_name(media_type)} file ({type(error).__name__}: {error})") from error
