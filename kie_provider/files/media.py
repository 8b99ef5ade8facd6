"""What a file really is: its media type by content, its size in pixels, and whether all of it decodes."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kie_provider.client.errors import KieFileError, KieTargetError
from kie_provider.files.decoding import DECODED_TYPES, decode

_HEAD_BYTES = 2**16

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
#: Longer side, in pixels, of each resolution: shortest and longest. Kie does not publish exact sizes; those seen are
#: 1024 to 1360 pixels at 1K, and twice that at 2K.
_LONGER_SIDE = {"1K": (900, 1700), "2K": (1800, 3400)}
_RATIO_TOLERANCE = 0.05


@dataclass(frozen=True)
class Media:
    """A file that was checked.

    :param media_type: by content, such as ``image/png``.
    :param width: in pixels, as displayed (with the EXIF orientation applied). None: not an image, or one that is not
        decoded here.
    :param height: likewise.
    """

    media_type: str
    width: int | None = None
    height: int | None = None

    @property
    def extension(self) -> str:
        """The file name extension of the type, without a dot."""
        return EXTENSIONS[self.media_type]


def inspect(path: Path, *, max_pixels: int, must_be_image: bool = False) -> Media:
    """Find out what a file is; an image is decoded to the last pixel.

    :param max_pixels: refuse an image with more; each pixel takes four bytes of memory.
    :param must_be_image: refuse anything but an image that was decoded.
    :raises KieFileError: it is a web page, JSON or other text, or an image that is damaged or truncated.
    :raises KieResultError: the image has more than ``max_pixels``, or takes far more work to decode than others do.
    :raises KieTargetError: it is an image, and Pillow is not installed.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    media_type = media_type_of(head)
    if media_type is None:
        raise KieFileError(f"it is not an image, video or audio file; it begins with {_excerpt(head)}")
    if media_type in DECODED_TYPES:
        require_pillow()
        return Media(media_type, *decode(path, media_type, max_pixels))
    if must_be_image:
        allowed = ", ".join(DECODED_TYPES)
        raise KieFileError(f"it is {media_type}, not one of {allowed}; it begins with {_excerpt(head)}")
    return Media(media_type)


def media_type_of(head: bytes) -> str | None:
    """Return the media type that the first bytes of a file show; None for text or an empty file."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image/webp"
    if _is_text(head[:_HEAD_BYTES]):  # the types below are not decoded, and text can begin with their signatures
        return None
    if head.startswith(b"RIFF") and head[8:12] == b"WAVE":
        return "audio/wav"
    if head[4:8] == b"ftyp":
        return _ISO_BRANDS.get(head[8:12], "video/mp4")
    for magic, media_type in _OTHER_MAGIC.items():
        if head.startswith(magic):
            return media_type
    return "application/octet-stream"


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


# Bytes that no text has in an encoding that extends ASCII, such as UTF-8, Latin-1, GBK or Shift JIS. Some of these
# encodings use ESC, SO and SI.
_NOT_TEXT = re.compile(rb"[\x00-\x08\x10-\x1a\x1c-\x1f\x7f]")
_OTHER_ENCODINGS = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "cp500")


def _is_text(head: bytes) -> bool:
    """Whether this is text, and so not a result file: file hosts send error pages in all sorts of encodings."""
    return not _NOT_TEXT.search(head) or any(_is_text_in(encoding, head) for encoding in _OTHER_ENCODINGS)


def _is_text_in(encoding: str, head: bytes) -> bool:
    try:
        text = head[: len(head) // 4 * 4 or None].decode(encoding).lstrip("\ufeff")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # not just a character cut off at the end
            return False
        text = head[: error.start].decode(encoding).lstrip("\ufeff")
    return all(character.isprintable() or character.isspace() for character in text)


def _excerpt(head: bytes) -> str:
    text = " ".join(head[:200].decode("utf-8", "replace").split())
    return repr(f"{text[:80]}..." if len(text) > 80 else text)


def require_pillow() -> None:
    """Check that images can be decoded.

    :raises KieTargetError: Pillow is not installed.
    """
    if importlib.util.find_spec("PIL") is None:
        raise KieTargetError("this needs Pillow: pip install 'airflow-provider-kie[images]'")


def size_problem(width: int, height: int, aspect_ratio: object, resolution: object) -> str | None:
    """Say how an image differs from the size that was requested; None: it does not, or that cannot be known.

    :param aspect_ratio: such as ``16:9``; anything else matches every image.
    :param resolution: ``1K`` or ``2K``; anything else matches every image.
    """
    if isinstance(aspect_ratio, str) and (ratio := re.fullmatch("([1-9][0-9]{0,4}):([1-9][0-9]{0,4})", aspect_ratio)):
        wanted = int(ratio[1]) / int(ratio[2])
        if abs(width / height / wanted - 1) > _RATIO_TOLERANCE:
            return f"{width} x {height} pixels are not {aspect_ratio}"
    shortest, longest = _LONGER_SIDE.get(str(resolution), (0, max(width, height)))
    if not shortest <= max(width, height) <= longest:
        return f"{width} x {height} pixels are not {resolution} (a longer side of {shortest} to {longest} pixels)"
    return None
