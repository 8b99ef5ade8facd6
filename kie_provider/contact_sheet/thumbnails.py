"""Small versions of images that nobody has looked at yet."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from kie_provider.client.errors import clean_text
from kie_provider.contact_sheet.look import WELL
from kie_provider.contact_sheet.tiles import Tile

log = logging.getLogger(__name__)

#: Longest side of a thumbnail, in pixels.
THUMBNAIL_SIZE = 320
#: Images with more pixels are not decoded: one may take 4 bytes per pixel, in each thread.
MAX_IMAGE_PIXELS = 64_000_000
#: Decoding uses a core per thread and one decoded image of memory.
THREADS = 2

#: What stands in place of an image whose file is not there.
NOT_FOUND = "file not found"

_JPEG_QUALITY = 80
# Pillow knows more formats, but some of them start other programs (EPS) or are attacked often.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "AVIF")
_READ_BLOCK = 4 * 2**20
#: EXIF orientation -> what shows the image as it is meant.
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def with_thumbnails(tiles: Sequence[Tile]) -> list[Tile]:
    """Read the images, in threads; what cannot be read becomes a tile that says so, and a warning."""
    # Looked up here: a task's connections are asked for by its main thread.
    systems = [_file_system(tile) for tile in tiles]
    with ThreadPoolExecutor(THREADS, thread_name_prefix="kie-sheet") as pool:
        done = list(pool.map(_with_thumbnail, tiles, systems))
    for tile in done:
        if tile.kind == "unreadable":
            log.warning("The contact sheet cannot show %s: %s", tile.where or "a file without path", tile.problem)
    return done


def _file_system(tile: Tile) -> Any:
    """Return the fsspec file system of a tile's image, or the error that came instead."""
    if tile.kind != "image" or tile.file is None:
        return None
    try:
        return tile.file.fs
    except Exception as error:  # noqa: BLE001  # a missing connection, package or permission: the tile says so
        return error


def _with_thumbnail(tile: Tile, system: Any) -> Tile:
    if tile.kind != "image":
        return tile
    try:
        if isinstance(system, Exception):
            raise system
        with _open(tile, system) as stream:
            thumbnail, size = _shrink(stream)
    except Exception as error:  # noqa: BLE001  # decoders raise anything; it is this tile's matter only
        problem = f"{type(error).__name__}: {error}"
        return replace(tile, kind="unreadable", note=_why(error), problem=clean_text(problem))
    return replace(tile, thumbnail=thumbnail, size=size)


def _open(tile: Tile, system: Any) -> IO[bytes]:
    from kie_provider.files import storage

    if tile.file is None:
        raise ValueError("not a path of a known storage")
    if storage.is_local(tile.file):
        return storage.open_regular(Path(tile.file.path))
    stream: IO[bytes] = system.open(tile.file.path, "rb", block_size=_READ_BLOCK)
    return stream


class _TooLargeError(Exception):
    """An image has more pixels than are decoded."""


def _shrink(stream: IO[bytes]) -> tuple[bytes, tuple[int, int]]:
    """Return an image's thumbnail as JPEG, and the size of the image, both as its EXIF orientation has it.

    :raises Exception: it is too large, or no image that can be decoded.
    """
    from PIL import Image

    from kie_provider.files.exif import orientation

    Image.init()
    with Image.open(stream, formats=[f for f in _FORMATS if f in Image.OPEN]) as image:
        width, height = size = image.size
        if width * height > MAX_IMAGE_PIXELS:
            raise _TooLargeError(f"{width} \u00d7 {height} pixels")
        small: Image.Image = image
        if image.mode not in ("RGB", "RGBA", "L", "LA", "CMYK", "YCbCr"):  # others shrink badly, or not at all
            small = image.convert("RGBA" if "transparency" in image.info else "RGB")
        # The gap lets JPEG decode at reduced size and averages whole pixels of the others first: a third of the time.
        small.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.BICUBIC, reducing_gap=1.0)
        turned = orientation(image.info.get("exif", b""))
        if turned > 1:
            small = small.transpose(Image.Transpose[_TURNS[turned]])
        canvas = Image.new("RGB", small.size, WELL)  # takes no metadata along
        canvas.paste(small, mask=small.getchannel("A") if small.mode in ("RGBA", "LA") else None)
    buffer = BytesIO()
    canvas.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue(), size[::-1] if turned >= 5 else size


def _why(error: Exception) -> str:
    """Say in a few words why an image is not shown."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, _TooLargeError | Image.DecompressionBombError | Image.DecompressionBombWarning):
        return "too large"
    if isinstance(error, FileNotFoundError):
        return NOT_FOUND
    return "not an image" if isinstance(error, UnidentifiedImageError) else "cannot be read"
