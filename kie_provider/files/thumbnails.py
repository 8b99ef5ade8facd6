"""Thumbnails."""

from __future__ import annotations

from io import BytesIO
from typing import IO

from kie_provider.files.metadata.exif import orientation

#: Longest side of a thumbnail, in pixels.
THUMBNAIL_SIZE = 320
#: Images with more pixels are not decoded; each pixel takes 4 bytes of memory, in every thread.
MAX_IMAGE_PIXELS = 64_000_000
#: What shows through transparent pixels; JPEG has none.
BACKGROUND = "#0c0d10"

_JPEG_QUALITY = 80
# Pillow knows more formats, but some start other programs (EPS), and some are frequent targets of attacks.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "AVIF")
#: EXIF orientation -> the transposition that displays the image as intended.
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


class TooLargeError(Exception):
    """An image has more than MAX_IMAGE_PIXELS."""


def shrink(stream: IO[bytes]) -> tuple[bytes, tuple[int, int]]:
    """Return an image's thumbnail as JPEG and the size of the image, both with its EXIF orientation applied.

    :raises TooLargeError: it has more than MAX_IMAGE_PIXELS.
    :raises Exception: it cannot be decoded; Pillow raises all sorts of errors.
    """
    from PIL import Image

    Image.init()
    with Image.open(stream, formats=[f for f in _FORMATS if f in Image.OPEN]) as image:
        width, height = size = image.size
        if width * height > MAX_IMAGE_PIXELS:
            raise TooLargeError(f"{width} \u00d7 {height} pixels")
        small: Image.Image = image
        if image.mode not in ("RGB", "RGBA", "L", "LA", "CMYK", "YCbCr"):  # other modes scale badly or not at all
            small = image.convert("RGBA" if "transparency" in image.info else "RGB")
        # reducing_gap decodes JPEGs at reduced size and box-averages other formats first: a third of the time.
        small.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.BICUBIC, reducing_gap=1.0)
        turned = orientation(image.info.get("exif", b""))
        if turned > 1:
            small = small.transpose(Image.Transpose[_TURNS[turned]])
        canvas = Image.new("RGB", small.size, BACKGROUND)  # copies no metadata
        canvas.paste(small, mask=small.getchannel("A") if small.mode in ("RGBA", "LA") else None)
    buffer = BytesIO()
    canvas.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue(), size[::-1] if turned >= 5 else size
