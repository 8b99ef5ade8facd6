"""Pictures: their size, and that they follow the prompt."""

from __future__ import annotations

import io
import random
import sys

import pytest
from PIL import Image, ImageChops, ImageStat

from kie_provider.emulator import images, scenes
from kie_provider.emulator.models import RATIOS
from kie_provider.emulator.scenes import SCENES, choose

SMALL = (256, 256)


@pytest.fixture
def tiny(monkeypatch):
    """Make 1K small, so that many pictures can be drawn."""
    images.render.cache_clear()
    monkeypatch.setattr(images, "SIZES", dict.fromkeys(images.SIZES, SMALL))
    yield
    images.render.cache_clear()


def opened(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        return image


def difference(one: bytes, other: bytes) -> float:
    """Mean difference of two pictures, 0 to 255, without the caption."""
    box = (0, 0, SMALL[0], int(SMALL[1] * 0.9))
    return sum(ImageStat.Stat(ImageChops.difference(opened(one).crop(box), opened(other).crop(box))).mean) / 3


@pytest.mark.parametrize("ratio", RATIOS)
def test_sizes_follow_the_ratio(ratio):
    width, height = images.size_of(ratio, "1K")
    across, down = map(int, ratio.split(":"))
    assert width / height == pytest.approx(across / down, rel=0.005)
    assert 0.9e6 < width * height < 1.1e6
    assert width % 16 == height % 16 == 0
    assert images.size_of(ratio, "2K") == (2 * width, 2 * height)


def test_the_file_has_the_size_that_was_asked_for():
    picture = opened(images.render("a red fox", "16:9", "1K", "png"))
    assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (1360, 768))


def test_2k_and_jpeg(tiny):
    picture = opened(images.render("a red fox", "1:1", "2K", "jpeg"))
    assert (picture.format, picture.size) == ("JPEG", (512, 512))


def test_same_prompt_same_bytes_even_when_drawn_again(tiny):
    first = images.render("a red fox", "1:1", "1K", "png")
    images.render.cache_clear()
    assert images.render("a red fox", "1:1", "1K", "png") == first


@pytest.mark.parametrize("source", [False, True])
@pytest.mark.parametrize("prompt", ["lunch", "the sea", "a man", "a rose", "a logo", "music", "night lights"])
def test_two_tasks_with_one_prompt_make_two_pictures_of_one_subject(prompt, source, tiny, monkeypatch):
    gradient = io.BytesIO()
    Image.linear_gradient("L").save(gradient, "PNG")
    chosen = []
    monkeypatch.setattr(scenes, "choose", lambda *args: chosen.append(choose(*args)) or chosen[-1])
    one, other = (
        images.render(prompt, "1:1", "1K", "png", gradient.getvalue() if source else None, kie_task_id)
        for kie_task_id in ("e7600001", "e7600002")
    )
    assert difference(one, other) > (2 if source else 4)
    assert chosen[0] == chosen[1]


def test_different_prompts_are_clearly_different(tiny):
    prompts = ["a red fox", "a red fax", "the sea", "a sea", "lunch", "lunch!", "mountain view", "mountains"]
    drawn = [images.render(prompt, "1:1", "1K", "png") for prompt in prompts]
    for n, one in enumerate(drawn):
        for other in drawn[n + 1 :]:
            assert difference(one, other) > 4


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_every_scene_is_called_by_its_words_and_fills_the_picture(scene, tiny):
    for word in SCENES[scene].split():
        assert choose(f"Please, a {word}!", random.Random(1))[0] is scene
    prompt = f"a {SCENES[scene].split()[0]}"
    colors = opened(images.render(prompt, "1:1", "1K", "png")).getcolors(maxcolors=SMALL[0] * SMALL[1])
    assert max(count for count, _ in colors) < 0.5 * SMALL[0] * SMALL[1]


def test_other_prompts_get_scenes_of_every_kind():
    assert {choose("lunch", random.Random(n))[0] for n in range(200)} == set(SCENES)


def test_the_palette_follows_words_too(tiny):
    def redness(prompt: str) -> float:
        red, _, blue = ImageStat.Stat(opened(images.render(prompt, "1:1", "1K", "png"))).mean
        return red - blue

    assert redness("hills in the desert") > redness("hills in the night") + 30


def test_the_prompt_is_written_on_the_picture(tiny):
    def letters(prompt: str) -> int:
        band = opened(images.render(prompt, "1:1", "2K", "png")).crop((8, 490, 400, 510)).convert("L")
        return sum(band.histogram()[200:])

    assert letters("the sea, the sea, the sea") > 2 * letters("the sea") > 0


@pytest.mark.parametrize(
    "prompt", ["", "   ", "狐狸", "🦊" * 9, "half a pair: \ud83e", "x" * 5000, "a\nb\0c", "-" * 40]
)
def test_any_prompt_can_be_drawn(prompt, tiny):
    assert opened(images.render(prompt, "1:1", "1K", "png")).size == SMALL


def test_an_input_image_comes_back_in_other_colours(tiny):
    source = Image.new("RGB", (300, 200), "black")
    source.paste("white", (150, 0, 300, 200))
    out = io.BytesIO()
    source.save(out, "PNG")
    picture = opened(images.render("an edit", "1:1", "1K", "png", out.getvalue())).convert("L")
    assert picture.getpixel((20, 20)) < 80 < 180 < picture.getpixel((235, 20))


def test_an_input_that_is_no_image_is_ignored(tiny):
    plain = images.render("an edit", "1:1", "1K", "png")
    assert images.render("an edit", "1:1", "1K", "png", b"not an image") == plain


@pytest.mark.parametrize(
    ("size", "ratio"), [((100, 100), "1:1"), ((1920, 1080), "16:9"), ((600, 900), "2:3"), ((4000, 100), "16:9")]
)
def test_ratio_of_an_image_file(size, ratio):
    out = io.BytesIO()
    Image.new("L", size).save(out, "PNG")
    assert images.ratio_of(out.getvalue()) == ratio


def test_ratio_of_something_else_is_square():
    assert images.ratio_of(b"") == images.ratio_of(b"text") == "1:1"


def test_without_pillow_the_error_says_what_to_install(monkeypatch):
    images.render.cache_clear()
    monkeypatch.setitem(sys.modules, "PIL", None)
    for draw in (lambda: images.render("a fox", "1:1", "1K", "png"), lambda: images.ratio_of(b"")):
        with pytest.raises(images.PillowMissingError, match=r"pip install 'airflow-provider-kie\[emulator\]'"):
            draw()
