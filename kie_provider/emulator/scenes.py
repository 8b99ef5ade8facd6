"""What the emulator paints: a scene and a palette, chosen by the words or the hash of a prompt.

Everything is drawn with Pillow alone, on a canvas of twice the 1K size: as it is, that is the 2K image; halved, which
smooths the edges, the 1K image. Random numbers come from two generators: the prompt's chooses scene and palette, the
task's everything else, so a prompt always gives the same kind of image, and every task a different one.
Lengths are fractions of ``u``, the shorter side.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from kie_provider.emulator.canvas import BILINEAR, Canvas, Color, Point, mix, vertical

# Six colours from dark to light (ink, deep, middle, warm, glow, paper) -> the words of a prompt that choose them.
PALETTES = {
    "1b1036 43206f 8e3a8c e8627a ffb36b fff1d0": "sunset dusk evening purple violet",
    "04202f 0b4f6c 1f8a9e 6cc5c1 f5d9a8 fff8ea": "sea ocean beach underwater turquoise teal whale",
    "0d1f17 1f4030 3f7351 8ab17d e9c46a faf6e3": "forest jungle moss green woods",
    "1f0a12 5c1a1b b23a2e ee7b30 fbb13c fff0d5": "autumn fire red lava volcano dragon",
    "07122b 123a5c 1f7a8c 58d0a4 b8f2c8 f2fff6": "aurora emerald mint",
    "2b1226 6b2d5c b5507b f08fa0 fbc8b4 fff3ec": "sunrise dawn pink rose spring cherry",
    "16222f 33495f 6d8ba3 a9c1cf dfe7ea fafcfc": "winter snow ice fog mist minimal grey gray monochrome",
    "2d1a12 6b3d24 b5703c e0a96d f2d6a2 fffaf0": "desert sand coffee wood brown dune leather",
    "0c0221 2a0a5e 7b1fa2 ff2e93 21d4fd f8f7ff": "neon cyberpunk synthwave futuristic party",
    "12322b 1f6f54 6db65b f4d35e f78c3b fffbe6": "summer lemon orange fruit olive fresh",
    "050816 0f1a3d 27356b 5b6bb0 e8c79a fdf6e3": "night midnight space galaxy moon stars blue",
}


def hills(c: Canvas) -> None:
    """Paint the sun behind hazy hills."""
    ink, deep, middle, warm, glow, paper = c.palette
    c.wash((deep, middle, warm, glow, paper), 0, 0.85)
    c.stars(90, 0.3)
    x, y = c.rng.uniform(0.25, 0.75) * c.w, c.rng.uniform(0.38, 0.5) * c.h
    c.glow(x, y, c.u * 0.62, paper, 0.75)
    c.disc(x, y, c.u * c.rng.uniform(0.07, 0.12), mix(paper, glow, 0.25))
    for n in range(6):
        color = mix(mix(glow, middle, 0.45), ink, (n / 5) ** 0.8)
        haze = mix(color, mix(glow, warm, 0.4), 0.45 - 0.09 * n)
        c.silhouette(c.ridge(c.h * (0.52 + 0.085 * n), c.u * (0.035 + 0.02 * n)), color, haze)
    c.birds(x + c.u * 0.16, y - c.u * 0.1)


def sea(c: Canvas) -> None:
    """Paint a low sun over water, and a sailing boat."""
    ink, deep, middle, warm, glow, paper = c.palette
    line, x, radius = c.h * c.rng.uniform(0.5, 0.58), c.w * c.rng.uniform(0.3, 0.7), c.u * c.rng.uniform(0.1, 0.15)
    c.wash((deep, middle, warm, glow), 0, line / c.h)
    c.stars(60, 0.25)
    c.glow(x, line, c.u * 0.6, paper, 0.8)
    c.disc(x, line - radius * 0.35, radius, paper)
    c.wash((mix(middle, glow, 0.45), middle, deep, ink), line / c.h)
    for n in range(130):  # the path of light: dashes that thin out towards the viewer
        t = (n / 130) ** 1.5
        half, thick = radius * c.rng.uniform(0.1, 0.75) * (1 - 0.6 * t), c.u * (0.001 + 0.003 * t)
        cx, y = x + c.rng.gauss(0, 0.32 + 0.2 * t) * radius, line + t * (c.h - line) * 0.8 + thick
        color = mix(paper, mix(middle, deep, t), 0.1 + 0.8 * t)
        c.draw.rounded_rectangle((cx - half, y - thick, cx + half, y + thick), thick, fill=color)
    s, bx, by = c.u * c.rng.uniform(0.08, 0.12), x + c.u * (-0.28 if x > c.w / 2 else 0.28), line + c.u * 0.03
    for shape, color in (
        (((-0.45, -0.12), (0.5, -0.12), (0.3, 0.06), (-0.3, 0.06)), ink),
        (((0.02, -1.0), (0.02, -0.17), (0.42, -0.17)), mix(paper, deep, 0.1)),
        (((-0.03, -0.9), (-0.03, -0.17), (-0.35, -0.17)), mix(paper, deep, 0.3)),
    ):
        c.draw.polygon([(bx + px * s, by + py * s) for px, py in shape], fill=color)
    for n in range(4):
        color = mix(deep, ink, 0.25 + n * 0.25)
        c.silhouette(c.ridge(c.h * (0.8 + 0.06 * n), c.u * 0.014), mix(color, warm, 0.18), color)


def city(c: Canvas) -> None:
    """Paint a skyline at night, mirrored in water."""
    ink, deep, middle, warm, glow, paper = c.palette
    shore, x, y = round(0.74 * c.h), c.rng.uniform(0.2, 0.8) * c.w, c.rng.uniform(0.16, 0.3) * c.h
    c.wash((ink, deep, middle, warm), 0, 0.74)
    c.stars(140, 0.45)
    c.glow(x, y, c.u * 0.4, glow, 0.6)
    c.disc(x, y, c.u * 0.075, mix(paper, glow, 0.2))
    for row in range(3):
        _towers(c, shore, c.h * (0.46 - 0.11 * row), mix(mix(middle, warm, 0.35), ink, 0.15 + 0.4 * row), row)
    mirror = ImageOps.flip(c.image.crop((0, 2 * shore - c.h, c.w, shore)))
    blurred = mirror.resize((c.w // 6, mirror.height // 3), BILINEAR).filter(ImageFilter.BoxBlur(2))
    mirror = Image.blend(blurred.resize(mirror.size, BILINEAR), vertical((deep, ink), mirror.size), 0.45)
    c.image.paste(mirror, (0, shore))
    for _ in range(70):
        y, x, half = c.rng.uniform(shore, c.h), c.rng.random() * c.w, c.u * c.rng.uniform(0.01, 0.06)
        c.draw.line((x - half, y, x + half, y), fill=mix(deep, glow, c.rng.uniform(0.1, 0.45)), width=2)


def _towers(c: Canvas, base: float, height: float, color: Color, row: int) -> None:
    x, pitch = -c.u * 0.03, c.u * 0.0135
    while x < c.w:
        width, top = c.u * c.rng.uniform(0.05, 0.11), base - height * c.rng.uniform(0.35, 1)
        c.draw.rectangle((x, top, x + width, base), fill=color)
        if c.rng.random() < 0.3:
            mast = x + width / 2
            c.draw.line((mast, top, mast, top - c.u * c.rng.uniform(0.02, 0.06)), fill=color, width=4)
        for wy in range(1, int((base - top) / pitch)):
            for wx in range(1, int(width / pitch)):
                if c.rng.random() < 0.16 + 0.1 * row:
                    left, up = x + pitch * (wx - 0.2), top + pitch * (wy - 0.3)
                    lit = mix(color, c.palette[c.rng.choice((3, 4, 4, 4))], 0.55 + 0.2 * row)
                    c.draw.rectangle((left, up, left + pitch * 0.45, up + pitch * 0.55), fill=lit)
        x += width + c.u * c.rng.choice((0, 0, 0.006, 0.02))


def forest(c: Canvas) -> None:
    """Paint rows of firs in mist."""
    ink, deep, middle, warm, glow, paper = c.palette
    c.wash((mix(middle, warm, 0.5), glow, paper, mix(paper, warm, 0.4)))
    x, y, haze = c.rng.uniform(0.3, 0.7) * c.w, c.h * 0.3, mix(paper, warm, 0.55)
    c.glow(x, y, c.u * 0.7, paper, 0.95)
    c.disc(x, y, c.u * 0.085, mix(paper, glow, 0.15))
    for n in range(5):
        color = mix(mix(haze, middle, 0.4), mix(ink, deep, 0.25), (n / 4) ** 0.9)
        ground, height = c.h * (0.56 + 0.125 * n), c.u * (0.13 + 0.1 * n)
        outline: list[Point] = [(0, c.h), (0, ground)]
        at = -height * 0.2
        while at < c.w + height * 0.2:
            tall = height * c.rng.uniform(0.6, 1.1)
            outline += _fir(at, ground + height * c.rng.uniform(-0.1, 0.1), tall)
            at += tall * c.rng.uniform(0.2, 0.42)
        c.silhouette([*outline, (c.w, ground), (c.w, c.h)], color, mix(color, haze, 0.75 - 0.19 * n))
    c.birds(x, y + c.u * 0.14)


def _fir(x: float, y: float, tall: float) -> list[Point]:
    left: list[Point] = []
    for n in range(7, 0, -1):
        reach, level = tall * (0.028 * n + 0.008), y - tall * (1 - n / 7.5)
        left += [(x - reach, level), (x - reach / 2, level - tall * 0.035)]
    return [*left, (x, y - tall), *((2 * x - px, py) for px, py in reversed(left))]


def portrait(c: Canvas) -> None:
    """Paint a head and shoulders in the flat style of a poster."""
    ink, deep, middle, warm, glow, paper = c.palette
    rng, draw, r, x, y = c.rng, c.draw, c.u * 0.135, c.w / 2, c.h * 0.44
    c.clouds(0.55, 0.85)
    c.disc(x, y, c.u * 0.36, mix(glow, paper, 0.45))
    c.disc(x, y, c.u * 0.3, mix(warm, glow, 0.5))
    skin = mix(mix(warm, glow, rng.uniform(0.2, 0.8)), (222, 160, 120), 0.55)
    dim, hair, coat = mix(skin, deep, 0.32), mix(ink, deep, rng.random() * 0.6), rng.choice((deep, middle))
    pen, fringe = max(3, int(r * 0.05)), rng.uniform(-0.5, 0.5)

    def box(left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
        return (x + left * r, y + top * r, x + right * r, y + bottom * r)

    if rng.random() < 0.55:
        draw.rounded_rectangle(box(-1.32, -0.9, 1.32, 2.5), r, fill=hair)
    c.disc(x, y - r * 0.35, r * 1.3, hair)
    draw.rounded_rectangle(box(-2.45, 1.75, 2.45, 9), r * 1.2, fill=coat)
    draw.rounded_rectangle(
        box(0, 1.75, 2.45, 9), r * 1.2, fill=mix(coat, ink, 0.35), corners=(False, True, False, False)
    )
    draw.polygon((*box(-0.75, 1.74, 0.75, 1.74), x, y + r * 3.1), fill=dim)
    draw.rounded_rectangle(box(-0.42, 0.5, 0.42, 2.1), r * 0.4, fill=dim)
    draw.ellipse(box(-0.92, -1.05, 0.92, 1.3), fill=skin)
    draw.chord(box(-0.92, -1.05, 0.92, 1.3), -90, 90, fill=dim)
    draw.pieslice(box(-1.25, -1.65, 1.25, 0.45), 180, 360, fill=hair)
    draw.ellipse(box(fringe - 0.55, -0.85, fringe + 0.55, -0.2), fill=hair)
    draw.arc(box(-0.57, -0.02, -0.23, 0.22), 15, 165, fill=ink, width=pen)
    draw.arc(box(0.23, -0.02, 0.57, 0.22), 15, 165, fill=ink, width=pen)
    draw.line((*box(0, 0.12, 0.1, 0.55), x - r * 0.04, y + r * 0.58), fill=mix(dim, ink, 0.4), width=pen)
    draw.arc(box(-0.3, 0.55, 0.3, 0.9), 25, 155, fill=mix(middle, (190, 60, 70), 0.6), width=2 * pen)
    for n in range(14):
        angle = n * 5.4 - 125 + rng.gauss(0, 12)
        color = mix(deep, warm, rng.random() * 0.8)
        c.leaf(x + c.u * (n / 13 - 0.5), c.h * 1.03, c.u * rng.uniform(0.14, 0.3), angle, 0.2, color)


def bloom(c: Canvas) -> None:
    """Paint one large flower seen from above."""
    ink, deep, middle, warm, glow, paper = c.palette
    dark, petals, x, y = c.rng.random() < 0.5, c.rng.choice((9, 11, 13, 16)), c.w / 2, c.h * 0.48
    c.wash((mix(ink, deep, 0.4), deep) if dark else (paper, mix(paper, glow, 0.6)))
    c.glow(x, y, c.u * 0.75, warm if dark else paper, 0.6)
    for n in range(petals):
        green = mix((34, 74, 56), deep, c.rng.random() * 0.7)
        c.leaf(x, y, c.u * c.rng.uniform(0.46, 0.54), n * 360 / petals + 9, 0.13, green)
    for layer in range(6):
        length, color = c.u * (0.43 - 0.062 * layer), mix(mix(middle, warm, 0.3), mix(glow, paper, 0.25), layer / 5)
        for n in range(petals):
            angle = (n + layer / 2) * 360 / petals
            c.leaf(x, y, length, angle, 0.24, mix(color, ink, 0.28))
            c.leaf(x, y, length * 0.965, angle - 1.2, 0.215, mix(color, paper, 0.1 * c.rng.random()))
    c.disc(x, y, c.u * 0.055, mix(ink, deep, 0.5))
    for n in range(90):  # seeds in the spiral of a sunflower, 137.5 degrees apart
        reach = c.u * 0.0056 * math.sqrt(n)
        at = (x + reach * math.cos(n * 2.39996), y + reach * math.sin(n * 2.39996))
        c.disc(*at, c.u * 0.0032, mix(glow, paper, (n % 3) / 3))


def bauhaus(c: Canvas) -> None:
    """Paint a grid of plain shapes."""
    rng, draw = c.rng, c.draw
    side = math.ceil(c.u / rng.choice((3, 4, 5)))
    for y in range(0, c.h, side):
        for x in range(0, c.w, side):
            back, front, third = rng.sample(c.palette, 3)
            draw.rectangle((x, y, x + side, y + side), fill=back)
            corners, kind = [(x, y), (x + side, y), (x + side, y + side), (x, y + side)], rng.randrange(6)
            turn = rng.randrange(4)
            if kind == 0:
                draw.polygon(corners[:turn] + corners[turn + 1 :], fill=front)
            elif kind == 1:
                c.disc(x + side / 2, y + side / 2, side * 0.4, front)
                c.disc(x + side / 2, y + side / 2, side * 0.17, third)
            elif kind == 2:
                for n in range(0, 8, 2):
                    draw.rectangle((x, y + side * n / 8, x + side, y + side * (n + 1) / 8), fill=front)
            elif kind == 3:
                for n in range(16):
                    c.disc(x + side * (n % 4 + 0.5) / 4, y + side * (n // 4 + 0.5) / 4, side * 0.07, front)
            elif kind == 4:
                for inset, color in ((0, front), (side // 4, third)):
                    square = (x + inset, y + inset, x + side - inset, y + side - inset)
                    draw.pieslice(square, turn * 90, turn * 90 + 180, fill=color)
            else:
                for share, color in ((1, front), (0.62, third), (0.28, back)):
                    cx, cy, reach = *corners[turn], side * share
                    around = (cx - reach, cy - reach, cx + reach, cy + reach)
                    draw.pieslice(around, turn * 90, turn * 90 + 90, fill=color)


def ribbons(c: Canvas) -> None:
    """Paint threads along a flow field."""
    rng, dark, step = c.rng, c.rng.random() < 0.6, c.u * 0.014
    c.clouds(*((0.0, 0.22) if dark else (0.86, 1.0)))
    fx, fy, p, q = (rng.uniform(*span) for span in ((1.5, 3.2), (1.5, 3.2), (0, 6.3), (0, 6.3)))
    drift = rng.uniform(-0.7, 0.7)
    for n in range(420):
        x, y = rng.uniform(-0.1, 1) * c.w, rng.uniform(-0.05, 1.05) * c.h
        tone = (y / c.h + 0.25 * math.sin(2 * fx * x / c.u + p)) % 1
        color = c.shade(0.3 + 0.7 * tone + rng.gauss(0, 0.06) if dark else 0.8 - rng.random() * (0.2 + 0.5 * tone))
        path = [(x, y)]
        for _ in range(rng.randint(20, 55)):
            bend = math.sin(fx * x / c.u + p + 1.4 * math.cos(fy * y / c.u + q))
            turn = drift + 1.3 * bend + 0.5 * math.cos(1.7 * fy * y / c.u)
            x, y = x + step * math.cos(turn), y + step * math.sin(turn)
            path.append((x, y))
        width = c.u * rng.choice((0.001, 0.0015, 0.002, 0.004, 0.007 if n > 120 else 0.014))
        c.draw.line(path, fill=color, width=max(2, int(width)), joint="curve")
        c.disc(*path[0], width / 2, color)
        c.disc(*path[-1], width / 2, color)


def bokeh(c: Canvas) -> None:
    """Paint lights out of focus, at an eighth of the size: nothing in it is sharp."""
    rng = c.rng
    c.clouds(0.0, 0.3)
    view = c.image.reduce(8)
    for count, low, high, blur in ((12, 0.09, 0.2, 2.2), (22, 0.04, 0.1, 1.1), (34, 0.008, 0.03, 0.5)):
        light = Image.new("RGB", view.size)
        for _ in range(count):
            r, x, y = c.u / 8 * rng.uniform(low, high), rng.random() * view.width, rng.gauss(0.5, 0.26) * view.height
            spot, fill = Image.new("L", (math.ceil(2 * r), math.ceil(2 * r))), rng.randint(40, 110)
            pen = ImageDraw.Draw(spot)
            pen.ellipse((0, 0, 2 * r - 1, 2 * r - 1), fill=fill, outline=fill + 60, width=max(1, int(r / 14)))
            light.paste(c.shade(rng.uniform(0.4, 0.9)), (round(x - r), round(y - r)), spot)
        view = ImageChops.screen(view, light.filter(ImageFilter.GaussianBlur(blur)))
    c.image.paste(view.resize((c.w, c.h), Image.Resampling.BICUBIC))


def waves(c: Canvas) -> None:
    """Paint layers of cut paper, each casting a shadow on the one behind."""
    count, up = c.rng.randint(7, 10), c.rng.random() < 0.5
    tones = [c.shade(n / count if up else 1 - n / count) for n in range(count + 1)]
    c.wash((tones[0], tones[1]))
    for n in range(1, count + 1):
        line = c.ridge(c.h * (0.06 + 0.92 * n / count), c.u * 0.07)
        for lift, share in ((0.016, 0.1), (0.008, 0.16)):
            rim = mix(tones[n - 1], c.palette[0], share)
            c.draw.polygon([(x, y - c.u * lift) for x, y in line], fill=rim)
        c.silhouette(line, mix(tones[n], c.palette[5], 0.1), mix(tones[n], c.palette[0], 0.12))


SCENES: dict[Callable[[Canvas], None], str] = {
    sea: "sea ocean beach wave waves ship boat sail lighthouse lake river harbor harbour water whale island coast",
    city: "city street tokyo skyline neon cyberpunk building tower urban architecture downtown bridge",
    forest: "forest tree trees woods jungle pine fox deer bear wolf owl",
    portrait: "portrait woman man girl boy face person king queen people child selfie avatar astronaut",
    bloom: "flower flowers rose garden mandala botanical sunflower dahlia blossom cherry lotus",
    bauhaus: "logo poster geometric bauhaus pattern icon product package packaging letters typography cubist",
    hills: "mountain mountains hill hills valley landscape sunset sunrise desert field canyon dune horizon space",
    bokeh: "bokeh light lights candle christmas party rain macro",
    ribbons: "flow silk music ribbon smoke wind fabric galaxy",
    waves: "paper abstract wallpaper gradient background layers",
}
"""Scene -> the words of a prompt that choose it; a prompt without such a word gets one by its hash."""


def choose(prompt: str, rng: random.Random) -> tuple[Callable[[Canvas], None], list[Color]]:
    """Return the scene and the palette of a prompt: the first that its words choose, else random ones."""
    words = "".join(letter if letter.isalnum() else " " for letter in prompt.lower()).split()
    any_scene, any_colors = rng.choice(list(SCENES)), rng.choice(list(PALETTES))
    scene = next((s for word in words for s, names in SCENES.items() if word in names.split()), any_scene)
    colors = next((p for word in words for p, names in PALETTES.items() if word in names.split()), any_colors)
    return scene, [(int(c[:2], 16), int(c[2:4], 16), int(c[4:], 16)) for c in colors.split()]


def paint(
    prompt: str, size: tuple[int, int], prompt_seed: int, task_seed: int, source: Image.Image | None = None
) -> Image.Image:
    """Paint the image of a task.

    :param size: width and height of the canvas, in pixels.
    :param prompt_seed: chooses scene and palette where the words do not.
    :param task_seed: decides everything else.
    :param source: the first input image of image-to-image: it is recoloured with the prompt's palette.
    """
    scene, palette = choose(prompt, random.Random(prompt_seed))
    rng = random.Random(task_seed)
    if source is not None:
        grey = ImageOps.autocontrast(ImageOps.fit(source.convert("L"), size))
        return ImageOps.colorize(grey, palette[0], palette[5], mid=mix(palette[2], palette[4], rng.random()))
    canvas = Canvas(size, rng, palette)
    scene(canvas)
    return canvas.image
