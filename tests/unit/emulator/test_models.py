"""Which createTask bodies are accepted, at what price, and with which words the others are refused."""

from __future__ import annotations

import pytest

from kie_provider.emulator.models import RATIOS, Refusal, accept

PRO = "flux-2/pro-text-to-image"
EDIT = "flux-2/pro-image-to-image"


def body(model: str = PRO, **fields):
    given = {"prompt": "a red fox", "aspect_ratio": "1:1", "resolution": "1K", **fields}
    return {"model": model, "input": {name: value for name, value in given.items() if value is not ...}}


def refusal(request) -> tuple[int, str]:
    with pytest.raises(Refusal) as caught:
        accept(request)
    return caught.value.code, caught.value.msg


@pytest.mark.parametrize(
    ("model", "resolution", "price"),
    [
        ("flux-2/pro-text-to-image", "1K", 5.0),
        ("flux-2/pro-text-to-image", "2K", 7.0),
        ("flux-2/flex-text-to-image", "1K", 14.0),
        ("flux-2/flex-text-to-image", "2K", 24.0),
        ("flux-2/pro-image-to-image", "2K", 7.0),
        ("flux-2/flex-image-to-image", "1K", 14.0),
    ],
)
def test_price(model, resolution, price):
    urls = ["https://example.com/a.png"] if "image-to-image" in model else ...
    assert accept(body(model, resolution=resolution, input_urls=urls)).price == price


@pytest.mark.parametrize("field", ["prompt", "aspect_ratio", "resolution"])
@pytest.mark.parametrize("value", [..., None, ""])
def test_no_default_is_filled_in_for_a_missing_field(field, value):
    assert refusal(body(**{field: value})) == (500, f"{field} is required")


@pytest.mark.parametrize(
    ("field", "value"), [("aspect_ratio", "5:4"), ("aspect_ratio", ["1:1"]), ("resolution", "4K"), ("resolution", 1)]
)
def test_a_value_outside_the_options_is_refused(field, value):
    assert refusal(body(**{field: value})) == (500, f"This {field} is not within the range of allowed options")


@pytest.mark.parametrize("ratio", RATIOS)
def test_every_documented_ratio_is_accepted(ratio):
    assert accept(body(aspect_ratio=ratio)).ratio == ratio


def test_auto_needs_an_input_image():
    assert refusal(body(aspect_ratio="auto"))[0] == 500
    assert accept(body(EDIT, aspect_ratio="auto", input_urls=["https://example.com/a.png"])).ratio == "auto"


def test_length_of_the_prompt():
    assert accept(body(prompt="x" * 5000)).prompt == "x" * 5000
    assert refusal(body(prompt="x" * 5001)) == (500, "The text length cannot exceed the maximum limit")
    assert accept(body(prompt="fox")).prompt == "fox"
    assert refusal(body(prompt="ox"))[0] == 422
    assert refusal(body(prompt=7))[0] == 422


@pytest.mark.parametrize("urls", [..., None, []])
def test_image_to_image_needs_input_urls(urls):
    assert refusal(body(EDIT, input_urls=urls)) == (500, "input_urls is required")


@pytest.mark.parametrize(
    "urls", [["https://example.com/a.png"] * 9, ["data:image/png;base64,AAAA"], [7], "https://example.com/a.png"]
)
def test_bad_input_urls_are_refused(urls):
    assert refusal(body(EDIT, input_urls=urls))[0] == 422


def test_eight_input_urls_are_accepted():
    assert len(accept(body(EDIT, input_urls=["https://example.com/a.png"] * 8)).input_urls) == 8


def test_foreign_fields_are_accepted_and_kept():
    order = accept(body(nsfw_checker=False, seed=7))
    assert (order.input["nsfw_checker"], order.input["seed"]) == (False, 7)


@pytest.mark.parametrize("model", ["flux-2/max", "", None, 7, ["flux-2/pro-text-to-image"]])
def test_an_unknown_model_is_refused(model):
    code, msg = refusal(body(model))
    if model in ("", None):
        assert (code, msg) == (500, "model is required")
    else:
        assert code == 422
        assert msg.startswith("The model name you specified is not supported.")


@pytest.mark.parametrize("request_body", [None, [], "x", 7])
def test_a_body_that_is_no_object_is_refused(request_body):
    assert refusal(request_body)[0] == 422


@pytest.mark.parametrize("given", [{}, {"input": None}, {"input": "x"}, {"input": [1]}])
def test_input_is_required(given):
    assert refusal({"model": PRO, **given}) == (500, "input is required")


def test_the_other_models_need_only_their_own_fields():
    assert accept({"model": "google/nano-banana", "input": {"prompt": "a red fox"}}).price == 4.0
    assert accept({"model": "elevenlabs/speech-to-text", "input": {"audio_url": "https://x.test/a.mp3"}}).price == 3.5
    assert refusal({"model": "elevenlabs/speech-to-text", "input": {}}) == (500, "audio_url is required")
