"""A request for one of the four Flux-2 models, and their limits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kie_provider.client.errors import raise_for_problems
from kie_provider.client.plain import counted, from_text, got, is_blank, is_http_url, shorten

#: Flux-2 model id -> whether it takes images.
FLUX2_MODELS: Mapping[str, bool] = {
    "flux-2/pro-text-to-image": False,
    "flux-2/flex-text-to-image": False,
    "flux-2/pro-image-to-image": True,
    "flux-2/flex-image-to-image": True,
}
#: Resolved to a model depending on whether there are input images.
FLUX2_TIERS = ("flux-2/pro", "flux-2/flex")
FLUX2_ASPECT_RATIOS = ("1:1", "4:3", "3:4", "16:9", "9:16", "3:2", "2:3")
#: The ratio of the first input image; only for image-to-image models.
FLUX2_ASPECT_RATIO_AUTO = "auto"
FLUX2_RESOLUTIONS = ("1K", "2K")
FLUX2_PROMPT_LENGTH = (3, 5000)
FLUX2_MAX_INPUT_URLS = 8


@dataclass(frozen=True)
class Flux2Input:
    """A valid request for one of the four Flux-2 models. Created by :meth:`parse`."""

    model: str
    prompt: str
    aspect_ratio: str
    resolution: str
    input_urls: tuple[str, ...] = ()
    nsfw_checker: bool | None = None

    @classmethod
    def parse(
        cls,
        model: Any,
        fields: Mapping[str, object],
        *,
        images_field: str = "input_urls",
        allowed: Sequence[str] = (),
        problems: Iterable[str] = (),
    ) -> Flux2Input:
        """Check a model and all its input fields.

        Values may come from templates, so text is accepted where it plainly means the value: ``"true"``, a list
        written as text, and ``"None"`` or ``""`` for an optional field.

        :param model: one of :data:`FLUX2_MODELS`, or of :data:`FLUX2_TIERS` (default: the first), which is then
            completed.
        :param fields: ``prompt`` (3 to 5000 characters, not counting white space around it), ``aspect_ratio``
            (default ``1:1``), ``resolution`` (default ``1K``), ``input_urls`` (1 to 8 http(s) URLs, or
            :func:`upload_reference` of files; image-to-image models only) and ``nsfw_checker`` (boolean, default: not
            sent).
        :param images_field: the author's name for ``input_urls``.
        :param allowed: the fields that the author can set, for the message; default: those of ``fields``.
        :param problems: found before, reported with the rest.
        :raises KieValidationError: names every field that is wrong, its value, and what is allowed.
        """
        problems = list(problems)
        problems += [
            f"{name}: there is no such field; allowed: {', '.join(allowed or _FLUX2_FIELDS)}"
            for name in fields
            if name not in _FLUX2_FIELDS
        ]
        model = _or_default(model, FLUX2_TIERS[0])
        input_urls = _url_list(fields.get("input_urls"))
        if model in FLUX2_TIERS:
            model = f"{model}-image-to-image" if input_urls else f"{model}-text-to-image"
        takes_images = FLUX2_MODELS.get(model) if isinstance(model, str) else None
        if takes_images is None:
            problems.append(
                f"model: {shorten(model)} is not a Flux-2 model; allowed: {', '.join((*FLUX2_TIERS, *FLUX2_MODELS))}"
            )

        prompt = fields.get("prompt")
        shortest, longest = FLUX2_PROMPT_LENGTH
        if prompt is None or prompt == "None":
            problems.append(f"prompt: must be text, {got(prompt)}")
        elif not isinstance(prompt, str):
            problems.append(f"prompt: must be text, got {type(prompt).__name__} {shorten(prompt)}")
        elif not shortest <= len(prompt := prompt.strip()) <= longest:
            length = counted(len(prompt), "character")
            problems.append(f"prompt: {shorten(prompt)} has {length}; {shortest} to {longest} are allowed")

        aspect_ratio = _or_default(fields.get("aspect_ratio"), FLUX2_ASPECT_RATIOS[0])
        ratios = FLUX2_ASPECT_RATIOS if takes_images is False else (*FLUX2_ASPECT_RATIOS, FLUX2_ASPECT_RATIO_AUTO)
        if aspect_ratio == FLUX2_ASPECT_RATIO_AUTO and takes_images is False:
            problems.append(
                "aspect_ratio: 'auto' takes the ratio of the first input image, and "
                f"{model} takes none; allowed: {', '.join(ratios)}"
            )
        elif aspect_ratio not in ratios:
            problems.append(f"aspect_ratio: {shorten(aspect_ratio)} is not allowed; allowed: {', '.join(ratios)}")

        resolution = _or_default(fields.get("resolution"), FLUX2_RESOLUTIONS[0])
        if resolution not in FLUX2_RESOLUTIONS:
            problems.append(
                f"resolution: {shorten(resolution)} is not allowed; allowed: {', '.join(FLUX2_RESOLUTIONS)}"
            )

        problems += _image_problems(images_field, input_urls, model, takes_images=takes_images)

        nsfw_checker = _boolean(fields.get("nsfw_checker"))
        if not (nsfw_checker is None or isinstance(nsfw_checker, bool)):
            problems.append(f"nsfw_checker: must be true or false, got {shorten(nsfw_checker)}")

        raise_for_problems(problems)
        return cls(model, str(prompt), aspect_ratio, resolution, tuple(input_urls), nsfw_checker)

    def to_payload(self) -> dict[str, object]:
        """Return createTask's ``input`` object.

        The three required fields are always there: the server does not apply the defaults its documentation names.
        """
        payload: dict[str, object] = {
            "prompt": self.prompt,
            "aspect_ratio": self.aspect_ratio,
            "resolution": self.resolution,
        }
        if self.input_urls:
            payload["input_urls"] = list(self.input_urls)
        if self.nsfw_checker is not None:
            payload["nsfw_checker"] = self.nsfw_checker
        return payload


_FLUX2_FIELDS = ("prompt", "aspect_ratio", "resolution", "input_urls", "nsfw_checker")


def _or_default(value: object, default: Any) -> Any:
    return default if is_blank(value) else value


def _boolean(value: object) -> Any:
    if is_blank(value):
        return None
    words = {"true": True, "false": False}
    return words.get(value.strip().lower(), value) if isinstance(value, str) else value


def _url_list(value: object) -> list[Any]:
    """Return the URLs as a list; one URL, or a list that a template turned into text, is accepted too."""
    if is_blank(value):
        return []
    value = from_text(value)
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def upload_reference(sha256: str) -> str:
    """Return what stands in ``input_urls`` for a file that is uploaded right before it is sent."""
    return f"sha256:{sha256}"


def is_upload_reference(url: object) -> bool:
    """Whether this came from :func:`upload_reference`."""
    return isinstance(url, str) and bool(re.fullmatch("sha256:[0-9a-f]{64}", url))


def _image_problems(field_name: str, urls: list[object], model: object, *, takes_images: bool | None) -> list[str]:
    if takes_images is False and urls:
        twin = str(model).replace("text-to-image", "image-to-image")
        return [f"{field_name}: {model} takes no images; use {twin}"]
    if takes_images and not urls:
        return [f"{field_name}: {model} needs 1 to {FLUX2_MAX_INPUT_URLS} http(s) URLs of images, got none"]
    problems = [
        f"{field_name}[{i}]: must be an http(s) URL that Kie can fetch, {got(url)}"
        for i, url in enumerate(urls)
        if not is_http_url(url) and not is_upload_reference(url)
    ]
    if len(urls) > FLUX2_MAX_INPUT_URLS:
        problems.append(f"{field_name}: {len(urls)} given; at most {FLUX2_MAX_INPUT_URLS} are allowed")
    return problems
