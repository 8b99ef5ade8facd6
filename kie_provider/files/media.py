"""What a file really is: its type by its first bytes, its size in pixels, and whether all of it decodes."""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kie_provider.client.errors import KieFileError, KieResultError, KieTargetError

#: Pillow reads some parts of a file, and all of a WebP or GIF, into memory; larger ones are not decoded.
_LARGEST_PART = 16 * 2**20
_MAX_FRAMES = 256
_HEAD_BYTES = 4096

EXTENSIONS: Mapping[str, str] = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
    "image/gif": "gif",
    "image/avif": "avif",
    "image/heic": "heic",
    "video/mp4": "mp4",
    "video/quicktime": "mov",
    "video/webm": "webm",
    "audio/mpeg": "mp3",
    "audio/wav": "wav",
    "audio/flac": "flac",
    "audio/ogg": "ogg",
    "audio/mp4": "m4a",
    "application/octet-stream": "bin",
}
#: What is decoded in full. Pillow reads AVIF and HEIC only in some builds; they are saved like a video, unread.
DECODED_TYPES: Mapping[str, str] = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP", "image/gif": "GIF"}

#: Longer side in pixels that a resolution stands for. Kie does not publish the exact sizes; those seen are 1024 to
#: 1360 pixels at 1K, and twice that at 2K.
_LONGER_SIDE = {"1K": (900, 1700), "2K": (1800, 3400)}
_RATIO_TOLERANCE = 0.05


@dataclass(frozen=True)
class Media:
    """A file that is sound.

    :param media_type: by its content, such as ``image/png``.
    :param width: pixels; None if it is no image, or one that is not decoded here.
    :param height: pixels; likewise.
    """

    media_type: str
    width: int | None = None
    height: int | None = None

    @property
    def extension(self) -> str:
        """The file name extension of the type, without a dot."""
        return EXTENSIONS[self.media_type]


def inspect(path: Path, *, max_pixels: int) -> Media:
    """Look at a file: its type, and for an image its size, decoding all of it.

    :param max_pixels: refuse an image with more; each takes four bytes of memory.
    :raises KieFileError: it is a web page, JSON or other text, or an image that does not decode to the end.
    :raises KieResultError: the image has more than ``max_pixels``.
    :raises KieTargetError: it is an image, and Pillow is not installed.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    media_type = media_type_of(head)
    if media_type is None:
        raise KieFileError(f"it is no image, video or audio file; it begins with {_excerpt(head)}")
    if media_type not in DECODED_TYPES:
        return Media(media_type)
    width, height = _decode(path, media_type, max_pixels)
    return Media(media_type, width, height)


def media_type_of(head: bytes) -> str | None:
    """Return the media type that the first bytes of a file tell; None for text, or for nothing."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if head.startswith(b"RIFF"):
        return {b"WEBP": "image/webp", b"WAVE": "audio/wav"}.get(head[8:12], "application/octet-stream")
    if head[4:8] == b"ftyp":
        return _ISO_BRANDS.get(head[8:12], "video/mp4")
    for magic, media_type in _OTHER_MAGIC.items():
        if head.startswith(magic):
            return media_type
    return None if _is_text(head) else "application/octet-stream"


_ISO_BRANDS = {
    b"qt  ": "video/quicktime",
    b"M4A ": "audio/mp4",
    b"avif": "image/avif",
    b"avis": "image/avif",
    b"heic": "image/heic",
    b"mif1": "image/heic",
}
_OTHER_MAGIC = {
    b"\x1aE\xdf\xa3": "video/webm",
    b"ID3": "audio/mpeg",
    b"\xff\xfb": "audio/mpeg",
    b"\xff\xf3": "audio/mpeg",
    b"\xff\xf2": "audio/mpeg",
    b"fLaC": "audio/flac",
    b"OggS": "audio/ogg",
}


def _is_text(head: bytes) -> bool:
    """Whether this is text, of which no result file is made: error pages of file hosts come in all spellings."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True  # UTF-16
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # not just a character that was cut at the end
            return False
        text = head[: error.start].decode()
    return all(character.isprintable() or character in "\t\r\n\f\ufeff" for character in text)


def _excerpt(head: bytes) -> str:
    text = " ".join(head[:200].decode("utf-8", "replace").split())
    return repr(f"{text[:80]}..." if len(text) > 80 else text)


def require_pillow() -> None:
    """Make sure that images can be decoded.

    :raises KieTargetError: Pillow is not installed.
    """
    if importlib.util.find_spec("PIL") is None:
        raise KieTargetError("this needs Pillow: pip install 'airflow-provider-kie[images]'")


def _decode(path: Path, media_type: str, max_pixels: int) -> tuple[int, int]:
    require_pillow()
    from PIL import Image

    kind = DECODED_TYPES[media_type]
    if media_type == "image/png":
        _check_png(path)
    elif media_type != "image/jpeg" and path.stat().st_size > _LARGEST_PART:
        raise KieResultError(f"it is a {kind} file of {path.stat().st_size} bytes, too large to be decoded here")
    try:
        with Image.open(path, formats=[kind]) as image:
            width, height = image.size
            frames = getattr(image, "n_frames", 1)
            if width * height <= max_pixels and frames <= _MAX_FRAMES:
                for frame in range(frames):
                    image.seek(frame)
                    image.load()
                return width, height
    except Image.DecompressionBombError as error:
        raise KieResultError(f"{error}; max_pixels={max_pixels}") from None
    except Exception as error:
        # What Pillow raises on bad files: OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError ...
        raise KieFileError(f"it is a broken {kind} file ({type(error).__name__}: {error})") from error
    raise KieResultError(
        f"the image has {width} x {height} = {width * height} pixels in {frames} frames, more than "
        f"max_pixels={max_pixels} (and {_MAX_FRAMES} frames); it was not decoded. If that is what you ordered, raise "
        "max_pixels (4 bytes of memory each) and clear this task: nothing is paid again"
    )


def _check_png(path: Path) -> None:
    """Check that a PNG file is complete and none of its bytes has changed: Pillow does not look at all checksums."""
    with path.open("rb") as file:
        file.seek(8)
        while True:
            header = file.read(8)
            length, name = int.from_bytes(header[:4], "big"), header[4:]
            if length > _LARGEST_PART and name != b"IDAT":
                raise KieResultError(f"it is a PNG file with a part {name!r} of {length} bytes, which is not decoded")
            checksum, left = zlib.crc32(name), length
            while left and (piece := file.read(min(left, 2**20))):
                checksum, left = zlib.crc32(piece, checksum), left - len(piece)
            ending = file.read(4)
            if len(header) < 8 or left or len(ending) < 4:
                raise KieFileError("it is a PNG file that ends too early")
            if int.from_bytes(ending, "big") != checksum:
                raise KieFileError(f"it is a PNG file whose part {name!r} was damaged (wrong checksum)")
            if name == b"IEND":
                return


def size_problem(width: int, height: int, aspect_ratio: str | None, resolution: str | None) -> str | None:
    """Say how an image differs from what was ordered; None: it does not.

    :param aspect_ratio: as ``16:9``; None or ``auto``: any.
    :param resolution: ``1K`` or ``2K``; None: any.
    """
    ordered, _, rest = (aspect_ratio or "").partition(":")
    if ordered.isdigit() and rest.isdigit() and int(rest) and int(ordered):
        wanted = int(ordered) / int(rest)
        if abs(width / height / wanted - 1) > _RATIO_TOLERANCE:
            return f"{width} x {height} pixels are not {aspect_ratio}"
    shortest, longest = _LONGER_SIDE.get(resolution or "", (0, max(width, height)))
    if not shortest <= max(width, height) <= longest:
        return f"{width} x {height} pixels are not {resolution} (a longer side of {shortest} to {longest} pixels)"
    return None
