import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_provider.client.errors import KieValidationError
from kie_provider.client.flux2 import Flux2Input
from kie_provider.client.plain import shorten
from tests.support.messages import assert_tells

PRO, FLEX = "flux-2/pro-text-to-image", "flux-2/flex-text-to-image"
PRO_I2I, FLEX_I2I = "flux-2/pro-image-to-image", "flux-2/flex-image-to-image"
URL = "https://tempfile.example/h/1.png"

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)


RATIOS = "1:1, 4:3, 3:4, 16:9, 9:16, 3:2, 2:3"


def problems(model=PRO, **fields):
    with pytest.raises(KieValidationError) as caught:
        Flux2Input.parse(model, {"prompt": "a cat", **fields})
    first, *lines = caught.value.message.split("\n")
    assert first == "nothing was sent."
    assert all(line.startswith("  - ") for line in lines)
    return [line[4:] for line in lines]


class Lazy(Sequence):
    """What Airflow hands over for the output of a mapped task: a sequence, not a list."""

    def __init__(self, *items):
        self.items = items

    def __getitem__(self, index):
        return self.items[index]

    def __len__(self):
        return len(self.items)


def test_the_least_that_is_needed():
    assert Flux2Input.parse(PRO, {"prompt": "a cat"}).to_payload() == {
        "prompt": "a cat",
        "aspect_ratio": "1:1",
        "resolution": "1K",
    }


@pytest.mark.parametrize("model", [PRO_I2I, FLEX_I2I])
def test_all_there_is(model):
    fields = {
        "prompt": "a cat",
        "aspect_ratio": "auto",
        "resolution": "2K",
        "input_urls": [URL, f"{URL}?2"],
        "nsfw_checker": False,
    }
    parsed = Flux2Input.parse(model, fields)
    assert parsed == Flux2Input(model, "a cat", "auto", "2K", (URL, f"{URL}?2"), False)
    assert parsed.to_payload() == fields


@pytest.mark.parametrize("model", [PRO, FLEX])
@pytest.mark.parametrize("ratio", ["1:1", "4:3", "3:4", "16:9", "9:16", "3:2", "2:3"])
def test_ratios(model, ratio):
    assert Flux2Input.parse(model, {"prompt": "a cat", "aspect_ratio": ratio}).aspect_ratio == ratio


def test_prompt_lengths():
    for good in ("cat", "x" * 5000, f"  {'x' * 5000}\n"):
        assert Flux2Input.parse(PRO, {"prompt": good}).prompt == good.strip()
    for prompt in ("ab", "  ab  "):
        [problem] = problems(prompt=prompt)
        assert_tells(problem, "prompt: 'ab' has 2", "3 to 5000")
    [problem] = problems(prompt="x" * 5001)
    assert_tells(problem, f"prompt: '{'x' * 59}... has 5001", "3 to 5000")


@pytest.mark.parametrize(
    ("prompt", "facts"),
    [
        (None, ("text", "got None", "upstream task returned nothing")),
        (7, ("text", "got int 7")),
        (["a cat"], ("text", "got list ['a cat']")),
        (b"a cat", ("text", "got bytes b'a cat'")),
        ("", ("'' has 0", "3 to 5000")),
    ],
)
def test_prompts_that_are_none(prompt, facts):
    [problem] = problems(prompt=prompt)
    assert_tells(problem, "prompt: ", *facts)


def test_a_prompt_that_is_a_mapped_xcom():
    (problem,) = problems(prompt=Lazy("a cat"))
    assert_tells(problem, "prompt: ", "text", "got Lazy <")


def test_the_prompt_is_not_optional():
    with pytest.raises(KieValidationError, match=r"prompt: .*got None"):
        Flux2Input.parse(PRO, {})


@pytest.mark.parametrize("model", ["flux-2", "flux-2/max", f" {PRO}", 7, [PRO]])
def test_unknown_models(model):
    [problem] = problems(model)
    assert_tells(problem, f"model: {model!r}", "flux-2/pro,", "flux-2/flex,", PRO, FLEX, PRO_I2I, FLEX_I2I)


@pytest.mark.parametrize("tier", ["flux-2/pro", "flux-2/flex"])
def test_a_tier_is_completed(tier):
    assert Flux2Input.parse(tier, {"prompt": "a red fox"}).model == f"{tier}-text-to-image"
    assert Flux2Input.parse(tier, {"prompt": "a red fox", "input_urls": [URL]}).model == f"{tier}-image-to-image"


@pytest.mark.parametrize("ratio", ["5:4", 1, "1:1 ", ["1:1"], {}])
def test_bad_ratios(ratio):
    [problem] = problems(aspect_ratio=ratio)
    assert_tells(problem, f"aspect_ratio: {ratio!r}", RATIOS)
    assert "auto" not in problem


@pytest.mark.parametrize("blank", ["", " ", "None", None, float("nan")])
def test_blank_means_the_default(blank):
    order = Flux2Input.parse(blank, {"prompt": "a red fox", "aspect_ratio": blank, "resolution": blank})
    assert order == Flux2Input(PRO, "a red fox", "1:1", "1K")


def test_a_bad_ratio_with_images_may_be_auto():
    (problem,) = problems(PRO_I2I, aspect_ratio="5:4", input_urls=[URL])
    assert_tells(problem, "aspect_ratio: '5:4'", f"{RATIOS}, auto")


@pytest.mark.parametrize("model", [PRO, FLEX])
def test_auto_needs_images(model):
    [problem] = problems(model, aspect_ratio="auto")
    assert_tells(problem, "aspect_ratio: 'auto'", model, RATIOS)


@pytest.mark.parametrize("resolution", ["4K", "1k", 1, ["1K"]])
def test_bad_resolutions(resolution):
    [problem] = problems(resolution=resolution)
    assert_tells(problem, f"resolution: {resolution!r}", "1K, 2K")


@pytest.mark.parametrize(
    ("given_urls", "urls"),
    [
        (URL, (URL,)),
        ([URL], (URL,)),
        ((URL, URL), (URL, URL)),
        (Lazy(URL, URL), (URL, URL)),
        (f"['{URL}']", (URL,)),
        (f'["{URL}", "{URL}"]', (URL, URL)),
        (f"  ['{URL}']\n", (URL,)),
        ([URL] * 8, (URL,) * 8),
    ],
)
def test_input_urls(given_urls, urls):
    assert Flux2Input.parse(PRO_I2I, {"prompt": "a cat", "input_urls": given_urls}).input_urls == urls


@pytest.mark.parametrize("nothing", [None, "", " ", "None", [], (), "[]", Lazy()])
def test_input_urls_are_needed_or_not(nothing):
    assert Flux2Input.parse(PRO, {"prompt": "a cat", "input_urls": nothing}).input_urls == ()
    [problem] = problems(PRO_I2I, input_urls=nothing)
    assert_tells(problem, "input_urls: ", PRO_I2I, "1 to 8 http(s) URLs", "got none")


@pytest.mark.parametrize(("model", "twin"), [(PRO, PRO_I2I), (FLEX, FLEX_I2I)])
def test_text_to_image_takes_no_images(model, twin):
    [problem] = problems(model, input_urls=[URL])
    assert_tells(problem, "input_urls: ", model, twin)


def test_bad_input_urls_are_named_one_by_one():
    bad = ["data:image/png;base64,AAAA", None, "/tmp/cat.png"]
    found = problems(PRO_I2I, input_urls=[URL, *bad])
    assert len(found) == len(bad)
    for number, (problem, value) in enumerate(zip(found, bad, strict=True), start=1):
        assert_tells(problem, f"input_urls[{number}]: ", "http(s) URL", f"got {value!r}")


def test_too_many_input_urls():
    [problem] = problems(FLEX_I2I, input_urls=[URL] * 9)
    assert_tells(problem, "input_urls: 9", "at most 8")


@pytest.mark.parametrize(
    "text", ["[", "['", "[{[]: 1}]", "[{[]}]", f"[{'-' * 100_000}1]", "[" * 1000, "[\x00]", "[x]", "[__import__('os')]"]
)
def test_text_that_only_looks_like_a_list(text):
    [problem] = problems(PRO_I2I, input_urls=text)
    assert_tells(problem, "input_urls[0]: ", "http(s) URL", f"got {shorten(text)}")


@pytest.mark.parametrize(
    ("value", "parsed"),
    [
        (True, True),
        (False, False),
        ("True", True),
        ("true", True),
        (" FALSE ", False),
        (None, None),
        ("", None),
        ("None", None),
    ],
)
def test_nsfw_checker(value, parsed):
    task_input = Flux2Input.parse(PRO, {"prompt": "a cat", "nsfw_checker": value})
    assert task_input.nsfw_checker is parsed
    assert task_input.to_payload().get("nsfw_checker", "not sent") == ("not sent" if parsed is None else parsed)


@pytest.mark.parametrize("value", [0, 1, "yes", "1", [], {}])
def test_bad_nsfw_checker(value):
    [problem] = problems(nsfw_checker=value)
    assert_tells(problem, "nsfw_checker: ", "true or false", f"got {value!r}")


@pytest.mark.parametrize("name", ["seed", "steps", "negative_prompt", "Prompt", "callBackUrl", ""])
def test_unknown_fields_are_named(name):
    assert problems(**{name: 1}) == [
        f"{name}: there is no such field; allowed: prompt, aspect_ratio, resolution, input_urls, nsfw_checker"
    ]


def test_everything_that_is_wrong_is_said_at_once():
    wrong = {"prompt": "x", "aspect_ratio": "7:7", "resolution": "8K", "input_urls": [URL], "nsfw_checker": 2, "n": 4}
    assert [problem.split(":")[0] for problem in problems(PRO, **wrong)] == [
        "n",
        "prompt",
        "aspect_ratio",
        "resolution",
        "input_urls",
        "nsfw_checker",
    ]


def test_nothing_is_said_of_images_when_the_model_is_unknown():
    assert [problem.split(":")[0] for problem in problems("flux-3", input_urls=["x"], aspect_ratio="auto")] == [
        "model",
        "input_urls[0]",
    ]


@given(
    st.sampled_from([PRO, FLEX, PRO_I2I, FLEX_I2I]) | JSON,
    st.dictionaries(st.text(), JSON)
    | st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("prompt", "aspect_ratio", "resolution", "input_urls", "nsfw_checker"), JSON)
    ),
)
def test_no_fields_break_the_check(model, fields):
    try:
        payload = Flux2Input.parse(model, fields).to_payload()
    except KieValidationError:
        return
    json.dumps(payload)
