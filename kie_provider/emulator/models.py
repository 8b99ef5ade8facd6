"""The models that the emulator knows, their prices, and the checks of a createTask body (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from kie_provider.client.prices import LIST_PRICES

RATIOS = ("1:1", "4:3", "3:4", "16:9", "9:16", "3:2", "2:3")
RESOLUTIONS = ("1K", "2K")
MAX_INPUT_URLS = 8
MESSAGES: Mapping[int, str] = {
    401: "Unauthorized – Authentication failed. "  # noqa: RUF001 - Kie's dash
    "Please check that your Authorization and Content-Type headers are correctly set.",
    402: "Credits insufficient : Your current balance isn't enough to run this request. Please top up to continue.",
    422: "The model name you specified is not supported. "
    "Please verify your input and use one of the supported models provided by KIE.",
    429: "Your call frequency is too high. Please try again later.",
    433: "The current number of points used by apiKey has exceeded the daily limit",
    500: "Server exception, please try again later",
}
"""The usual ``msg`` of each code, as seen on the wire."""


class Refusal(Exception):  # noqa: N818 - a response, not an error of the emulator
    """A response other than success.

    :param code: ``code`` in the envelope; the HTTP status stays 200.
    :param msg: ``msg`` in the envelope; default: the usual one of the code.
    """

    def __init__(self, code: int, msg: str | None = None) -> None:
        super().__init__(code, msg)
        self.code, self.msg = code, msg or MESSAGES.get(code, f"Emulated error {code}")


@dataclass(frozen=True)
class Model:
    """A model of Kie's market.

    :param required: fields of ``input`` that must be present. The server fills in no defaults.
    :param options: allowed values by field.
    :param prices: credits by resolution; a model without resolutions has its one price under ``1K``.
    """

    required: tuple[str, ...]
    prices: Mapping[str, float]
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    result: Literal["image", "text"] = "image"


@dataclass(frozen=True)
class TaskRequest:
    """A createTask body that was accepted.

    :param input: as received, with unknown fields, which Flux-2 is known to accept.
    :param callback_url: ``callBackUrl``; it is shown in the record, and called when the task has ended.
    :param price: in credits.
    """

    model: str
    input: Mapping[str, object]
    callback_url: str | None
    price: float

    @property
    def prompt(self) -> str:
        """The prompt; empty if the model takes none."""
        prompt = self.input.get("prompt")
        return prompt if isinstance(prompt, str) else ""

    @property
    def ratio(self) -> str:
        """The requested ratio; ``auto`` means that of the first input image."""
        return str(self.input.get("aspect_ratio") or self.input.get("image_size") or "1:1")

    @property
    def resolution(self) -> str:
        """``1K`` or ``2K``."""
        return "2K" if self.input.get("resolution") == "2K" else "1K"

    @property
    def input_urls(self) -> tuple[str, ...]:
        """The input images of image-to-image."""
        urls = self.input.get("input_urls")
        return tuple(map(str, urls)) if isinstance(urls, list) else ()


def _flux2(prices: Mapping[str, float], *, from_images: bool) -> Model:
    # "auto" means the ratio of an input image; for text-to-image Kie removed it in 2026.
    ratios = (*RATIOS, "auto") if from_images else RATIOS
    required = ("prompt", *(("input_urls",) if from_images else ()), "aspect_ratio", "resolution")
    return Model(required, prices, {"aspect_ratio": ratios, "resolution": RESOLUTIONS})


MODELS: Mapping[str, Model] = {
    **{model: _flux2(prices, from_images="image-to-image" in model) for model, prices in LIST_PRICES.items()},
    # Another image model, and one whose result is an object, for what works with any model.
    "google/nano-banana": Model(("prompt",), {"1K": 4.0}),
    "elevenlabs/speech-to-text": Model(("audio_url",), {"1K": 3.5}, result="text"),
}


def accept(body: object) -> TaskRequest:
    """Check a createTask body.

    :raises Refusal: with a code and text seen on the wire. Only the texts for a body that is not an object, for a
        prompt of the wrong type or of fewer than 3 characters, and for wrong ``input_urls`` are the emulator's own.
    """
    if not isinstance(body, dict):
        raise Refusal(422, "The request body must be a JSON object")
    name, fields = body.get("model"), body.get("input")
    if not name:
        raise Refusal(500, "model is required")
    model = MODELS.get(name) if isinstance(name, str) else None
    if model is None:
        raise Refusal(422)
    if not isinstance(fields, dict):
        raise Refusal(500, "input is required")
    for required in model.required:
        if fields.get(required) in (None, "", []):
            raise Refusal(500, f"{required} is required")
    for option, allowed in model.options.items():
        if fields[option] not in allowed:
            raise Refusal(500, f"This {option} is not within the range of allowed options")
    _check_prompt(fields.get("prompt"))
    _check_urls(fields.get("input_urls"))
    callback = body.get("callBackUrl")
    price = model.prices.get(str(fields.get("resolution")), model.prices["1K"])
    return TaskRequest(str(name), fields, str(callback) if callback else None, price)


def _check_prompt(prompt: object) -> None:
    if prompt is None:
        return
    if not isinstance(prompt, str):
        raise Refusal(422, "prompt must be a string")
    if len(prompt) > 5000:
        raise Refusal(500, "The text length cannot exceed the maximum limit")
    if len(prompt) < 3:
        raise Refusal(422, "prompt must have at least 3 characters")


def _check_urls(urls: object) -> None:
    if urls is None:
        return
    if not isinstance(urls, list) or len(urls) > MAX_INPUT_URLS:
        raise Refusal(422, f"input_urls must be a list of at most {MAX_INPUT_URLS} URLs")
    # Kie fetches the images itself over http(s); data URIs are refused.
    if not all(isinstance(url, str) and url.startswith(("http://", "https://")) for url in urls):
        raise Refusal(422, "input_urls must be http(s) URLs")
