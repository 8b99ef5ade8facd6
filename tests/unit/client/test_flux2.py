import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_provider.client.errors import KieValidationError
from kie_provider.client.flux2 import Flux2Input
from kie_provider.client.plain import shorten

PRO, FLEX = "flux-2/pro-text-to-image", "flux-2/flex-text-to-image"
PRO_I2I, FLEX_I2I = "flux-2/pro-image-to-image", "flux-2/flex-image-to-image"
URL = "https://tempfile.example/h/1.png"

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)


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
    assert problems(prompt="ab") == ["prompt: 'ab' has 2 characters; 3 to 5000 are allowed"]
    assert problems(prompt="  ab  ") == ["prompt: 'ab' has 2 characters; 3 to 5000 are allowed"]
    assert problems(prompt="x" * 5001) == [
        f"prompt: '{'x' * 59}... has 5001 characters; 3 to 5000 are allowed",
    ]


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        (None, "prompt: must be text, got None: the upstream task returned nothing"),
        (7, "prompt: must be text, got int 7"),
        (["a cat"], "prompt: must be text, got list ['a cat']"),
        (b"a cat", "prompt: must be text, got bytes b'a cat'"),
        ("", "prompt: '' has 0 characters; 3 to 5000 are allowed"),
    ],
)
def test_prompts_that_are_none(prompt, problem):
    assert problems(prompt=prompt) == [problem]


def test_a_prompt_that_is_a_mapped_xcom():
    (problem,) = problems(prompt=Lazy("a cat"))
    assert problem.startswith("prompt: must be text, got Lazy <")


def test_the_prompt_is_not_optional():
    with pytest.raises(KieValidationError, match="prompt: must be text, got None: the upstream task returned nothing"):
        Flux2Input.parse(PRO, {})


@pytest.mark.parametrize("model", ["flux-2", "flux-2/max", f" {PRO}", 7, [PRO]])
def test_unknown_models(model):
    assert problems(model) == [
        f"model: {model!r} is not a Flux-2 model; allowed: flux-2/pro, flux-2/flex, flux-2/pro-text-to-image, "
        "flux-2/flex-text-to-image, flux-2/pro-image-to-image, flux-2/flex-image-to-image"
    ]


@pytest.mark.parametrize("tier", ["flux-2/pro", "flux-2/flex"])
def test_a_tier_is_completed(tier):
    assert Flux2Input.parse(tier, {"prompt": "a red fox"}).model == f"{tier}-text-to-image"
    assert Flux2Input.parse(tier, {"prompt": "a red fox", "input_urls": [URL]}).model == f"{tier}-image-to-image"


@pytest.mark.parametrize("ratio", ["5:4", 1, "1:1 ", ["1:1"], {}])
def test_bad_ratios(ratio):
    assert problems(aspect_ratio=ratio) == [
        f"aspect_ratio: {ratio!r} is not allowed; allowed: 1:1, 4:3, 3:4, 16:9, 9:16, 3:2, 2:3"
    ]


@pytest.mark.parametrize("blank", ["", " ", "None", None, float("nan")])
def test_blank_means_the_default(blank):
    order = Flux2Input.parse(blank, {"prompt": "a red fox", "aspect_ratio": blank, "resolution": blank})
    assert order == Flux2Input(PRO, "a red fox", "1:1", "1K")


def test_a_bad_ratio_with_images_may_be_auto():
    (problem,) = problems(PRO_I2I, aspect_ratio="5:4", input_urls=[URL])
    assert problem.endswith("allowed: 1:1, 4:3, 3:4, 16:9, 9:16, 3:2, 2:3, auto")


@pytest.mark.parametrize("model", [PRO, FLEX])
def test_auto_needs_images(model):
    assert problems(model, aspect_ratio="auto") == [
        f"aspect_ratio: 'auto' takes the ratio of the first input image, and {model} takes none; "
        "allowed: 1:1, 4:3, 3:4, 16:9, 9:16, 3:2, 2:3"
    ]


@pytest.mark.parametrize("resolution", ["4K", "1k", 1, ["1K"]])
def test_bad_resolutions(resolution):
    assert problems(resolution=resolution) == [f"resolution: {resolution!r} is not allowed; allowed: 1K, 2K"]


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
    assert problems(PRO_I2I, input_urls=nothing) == [
        "input_urls: flux-2/pro-image-to-image needs 1 to 8 http(s) URLs of images, got none"
    ]


@pytest.mark.parametrize(("model", "twin"), [(PRO, PRO_I2I), (FLEX, FLEX_I2I)])
def test_text_to_image_takes_no_images(model, twin):
    assert problems(model, input_urls=[URL]) == [f"input_urls: {model} takes no images; use {twin}"]


def test_bad_input_urls_are_named_one_by_one():
    assert problems(PRO_I2I, input_urls=[URL, "data:image/png;base64,AAAA", None, "/tmp/cat.png"]) == [
        "input_urls[1]: must be an http(s) URL that Kie can fetch, got 'data:image/png;base64,AAAA'",
        "input_urls[2]: must be an http(s) URL that Kie can fetch, got None: the upstream task returned nothing",
        "input_urls[3]: must be an http(s) URL that Kie can fetch, got '/tmp/cat.png'",
    ]


def test_too_many_input_urls():
    assert problems(FLEX_I2I, input_urls=[URL] * 9) == ["input_urls: 9 given; at most 8 are allowed"]


@pytest.mark.parametrize(
    "text", ["[", "['", "[{[]: 1}]", "[{[]}]", f"[{'-' * 100_000}1]", "[" * 1000, "[\x00]", "[x]", "[__import__('os')]"]
)
def test_text_that_only_looks_like_a_list(text):
    assert problems(PRO_I2I, input_urls=text) == [
        f"input_urls[0]: must be an http(s) URL that Kie can fetch, got {shorten(text)}"
    ]


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
    assert problems(nsfw_checker=value) == [f"nsfw_checker: must be true or false, got {value!r}"]


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
