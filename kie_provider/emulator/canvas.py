"""The canvas that scenes are painted on, and the finish of every image: grain and caption. Needs Pillow alone."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import cast

from PIL import Image, ImageChops, ImageDraw, ImageFont

Color = tuple[int, int, int]
Point = tuple[float, float]
BILINEAR = Image.Resampling.BILINEAR


def mix(first: Color, second: Color, share: float) -> Color:
    """Interpolate between two colours; ``share`` is 0 for ``first``, 1 for ``second``."""
    t = min(max(share, 0.0), 1.0)
    red, green, blue = (round(a + (b - a) * t) for a, b in zip(first, second, strict=True))
    return red, green, blue


def vertical(colors: Sequence[Color], size: tuple[int, int]) -> Image.Image:
    """Return a gradient from top to bottom."""
    column = Image.new("RGB", (1, len(colors)))
    column.putdata(colors)
    return column.resize((1, size[1]), Image.Resampling.BICUBIC).resize(size, Image.Resampling.NEAREST)


class Canvas:
    """An image being painted, with its palette and its random number generator."""

    def __init__(self, size: tuple[int, int], rng: random.Random, palette: list[Color]) -> None:
        self.image = Image.new("RGB", size)
        self.draw = ImageDraw.Draw(self.image)
        self.rng, self.palette = rng, palette
        self.w, self.h = size
        self.u = min(size)

    def shade(self, t: float) -> Color:
        """Return the palette's colour at ``t``: 0 is ink, 1 is paper."""
        position = min(max(t, 0.0), 1.0) * 5
        low = min(int(position), 4)
        return mix(self.palette[low], self.palette[low + 1], position - low)

    def wash(self, colors: Sequence[Color], top: float = 0, bottom: float = 1) -> None:
        """Fill the rows between two fractions of the height with a gradient."""
        y = round(top * self.h)
        self.image.paste(vertical(colors, (self.w, round(bottom * self.h) - y)), (0, y))

    def clouds(self, low: float, high: float) -> None:
        """Fill the canvas with soft patches of the shades between two."""
        cells = Image.new("RGB", (4, 4))
        cells.putdata([self.shade(self.rng.uniform(low, high)) for _ in range(16)])
        small = cells.resize((self.w // 8, self.h // 8), Image.Resampling.BICUBIC)
        self.image.paste(small.resize((self.w, self.h), BILINEAR))

    def glow(self, x: float, y: float, radius: float, color: Color, strength: float) -> None:
        """Draw light that fades with the distance from a point."""
        curve = [round(255 * strength * max(0.0, 1 - v / 181) ** 2) for v in range(256)]
        mask = Image.radial_gradient("L").point(curve).resize((round(2 * radius), round(2 * radius)), BILINEAR)
        self.image.paste(color, (round(x - radius), round(y - radius)), mask)

    def disc(self, x: float, y: float, radius: float, color: Color) -> None:
        """Draw a filled circle."""
        self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)

    def stars(self, count: int, below: float) -> None:
        """Scatter stars over the upper part of the image; they fade downwards."""
        for _ in range(count):
            t, x = self.rng.random() ** 1.5, self.rng.randrange(self.w)
            sky = cast("Color", self.image.getpixel((x, int(t * below * self.h))))
            color = mix(sky, self.palette[5], self.rng.uniform(0.3, 1) * (1 - t))
            self.disc(x, t * below * self.h, self.u * self.rng.uniform(4e-4, 13e-4), color)

    def silhouette(self, outline: Sequence[Point], top: Color, bottom: Color) -> None:
        """Fill an outline with a gradient from its highest point to the bottom of the image."""
        y0 = max(0, math.floor(min(y for _, y in outline)))
        if y0 < self.h:
            mask = Image.new("L", (self.w, self.h - y0))
            ImageDraw.Draw(mask).polygon([(x, y - y0) for x, y in outline], fill=255)
            self.image.paste(vertical((top, bottom), mask.size), (0, y0), mask)

    def ridge(self, base: float, rough: float) -> list[Point]:
        """Return the outline of hills whose crest lies about ``base`` pixels from the top."""
        waves = [
            (rough / n**1.2, self.rng.uniform(2, 4.5) * n / self.w, self.rng.uniform(0, 6.3)) for n in (1, 2, 3, 5, 9)
        ]
        xs = range(-16, self.w + 32, 16)
        crest = [(float(x), base - sum(a * math.sin(f * x + p) for a, f, p in waves)) for x in xs]
        return [*crest, (self.w + 32.0, float(self.h)), (-16.0, float(self.h))]

    def leaf(self, x: float, y: float, length: float, angle: float, width: float, color: Color) -> None:
        """Draw a leaf or petal from a point in the direction ``angle`` (degrees; 0 points right)."""
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        sides = [(n / 12, width) for n in range(13)] + [(n / 12, -width) for n in range(12, -1, -1)]
        shape = [(length * t, length * half * math.sin(math.pi * t**0.8)) for t, half in sides]
        self.draw.polygon([(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in shape], fill=color)

    def birds(self, x: float, y: float) -> None:
        """Draw a few birds around a point."""
        for _ in range(self.rng.randint(3, 6)):
            bx, by = self.rng.gauss(x, 0.06 * self.u), self.rng.gauss(y, 0.03 * self.u)
            s = self.u * self.rng.uniform(0.008, 0.016)
            wings = [(bx - s, by - s / 2), (bx, by), (bx + s, by - s / 2)]
            self.draw.line(wings, fill=self.palette[0], width=max(2, int(s / 5)), joint="curve")


def grain(image: Image.Image, seed: int) -> Image.Image:
    """Return the image with faint film grain, which hides the banding of 8-bit gradients."""
    tile = Image.frombytes("L", (512, 512), random.Random(seed).randbytes(512 * 512))
    tile = tile.point([v * 5 // 256 for v in range(256)])
    noise = Image.new("L", image.size)
    for y in range(0, image.height, 512):
        for x in range(0, image.width, 512):
            noise.paste(tile, (x, y))
    return ImageChops.add(image, Image.merge("RGB", (noise, noise, noise)), 1, -2)


def caption(image: Image.Image, prompt: str) -> None:
    """Write the prompt, and that the image is emulated, on a dark band at the bottom; the image is changed in place."""
    width, height = image.size
    band = round(min(width, height) * 0.046)
    strip = image.crop((0, height - band, width, height))
    image.paste(Image.blend(strip, Image.new("RGB", strip.size, (12, 12, 16)), 0.62), (0, height - band))
    font, draw, middle = ImageFont.load_default(band * 0.46), ImageDraw.Draw(image), height - band / 2
    draw.text((width - band / 2, middle), "emulated", font=font, anchor="rm", fill=(186, 186, 194))
    # Pillow's built-in font has little more than ASCII; other letters would all be the same empty box.
    text = " ".join("".join(letter if letter.isascii() and letter.isprintable() else " " for letter in prompt).split())
    room, kept = width - band * 1.5 - font.getlength("emulated"), len(text[:300])
    while kept and font.getlength(text[:kept] + "...") > room:
        kept -= 1
    draw.text((band / 2, middle), text if kept == len(text) else text[:kept].rstrip() + "...", font=font, anchor="lm")
