"""The image files that the emulator generates."""

from __future__ import annotations

import hashlib
import io
from functools import lru_cache

SIZES = {
    "1:1": (1024, 1024),
    "4:3": (1152, 864),
    "3:4": (864, 1152),
    "16:9": (1360, 768),
    "9:16": (768, 1360),
    "3:2": (1248, 832),
    "2:3": (832, 1248),
}
"""Pixels at 1K: about one megapixel, both sides multiples of 16. 2K doubles each side."""


class PillowMissingError(RuntimeError):
    """Pillow is not installed, so nothing can be drawn."""

    def __init__(self) -> None:
        super().__init__("the emulator draws with Pillow: pip install 'airflow-provider-kie[emulator]'")


def size_of(ratio: str, resolution: str) -> tuple[int, int]:
    """Return width and height in pixels; an unknown ratio is square."""
    width, height = SIZES.get(ratio, SIZES["1:1"])
    return (2 * width, 2 * height) if resolution == "2K" else (width, height)


def nearest_ratio(width: int, height: int) -> str:
    """Return the named ratio nearest to an image's: what ``auto`` chooses."""
    return min(SIZES, key=lambda name: abs(SIZES[name][0] / SIZES[name][1] - width / height))


def ratio_of(content: bytes) -> str:
    """Return the named ratio nearest to that of an image file; square if the file is not an image."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise PillowMissingError from None
    try:
        with Image.open(io.BytesIO(content)) as image:
            return nearest_ratio(*image.size)
    except UnidentifiedImageError:
        return "1:1"


@lru_cache(maxsize=32)
def render(
    prompt: str, ratio: str, resolution: str, image_format: str, source: bytes | None = None, kie_task_id: str = ""
) -> bytes:
    """Draw the result of a task; the same arguments always give the same bytes.

    Two tasks with the same prompt get the same subject but different images, as at Kie. It takes about 0.3 s of one
    core at 1K, so call it outside the event loop; the last 32 images are cached.

    :param image_format: ``png`` or ``jpeg``.
    :param source: the first input image, for image-to-image.
    :raises PillowMissingError: Pillow is not installed.
    """
    try:
        from PIL import Image, UnidentifiedImageError

        from kie_provider.emulator import canvas, scenes
    except ImportError:
        raise PillowMissingError from None
    width, height = size_of(ratio, "1K")
    # JSON allows lone surrogates in a prompt; UTF-8 does not.
    text = prompt.encode("utf-8", "replace").decode()
    seed = _seed(f"{kie_task_id}:{text}")
    picture = None
    if source:
        try:
            with Image.open(io.BytesIO(source)) as image:
                picture = image.convert("L")
        except UnidentifiedImageError:
            picture = None
    painted = scenes.paint(text, (2 * width, 2 * height), _seed(text), seed, picture)
    painted = canvas.grain(painted if resolution == "2K" else painted.reduce(2), seed)
    canvas.caption(painted, text)
    out = io.BytesIO()
    if image_format == "jpeg":
        painted.save(out, "JPEG", quality=90)
    else:
        painted.save(out, "PNG", compress_level=1)
    return out.getvalue()


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def thumbnail(content: bytes) -> bytes:
    """Return an image as a JPEG of at most 480 pixels, for the page."""
    from PIL import Image

    out = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        image.thumbnail((480, 480))
        image.convert("RGB").save(out, "JPEG", quality=85)
    return out.getvalue()
