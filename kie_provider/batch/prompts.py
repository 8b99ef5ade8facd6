"""Reading the list of a batch: every item is checked before the first is sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kie_provider.client.errors import KieValidationError
from kie_provider.client.plain import from_text, got, is_blank
from kie_provider.client.protocol import callback_url_problems
from kie_provider.files.inputs import InputImage, read_input_images
from kie_provider.parameters import ORDER_FIELDS
from kie_provider.submission.inputs import TaskRequest, flux2_request

#: What an item may have.
ITEM_FIELDS = (*ORDER_FIELDS, "file_name")
#: Blank, these mean the default; the other fields mean nothing.
_LEFT_OUT_IF_BLANK = ("model", "aspect_ratio", "resolution")


def read_prompts(value: Any, defaults: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the fields of every image, and what is wrong with the list as a whole. Nothing is checked in it.

    :param value: a list of prompts, or of dicts with a prompt and other fields; a template may have made it text.
    :param defaults: fields of the items that do not name them.
    """
    value = from_text(value)
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
        return [], [f"prompts: must be a list of prompts or dicts, {got(value)}"]
    items = [{**defaults, **_given(item if isinstance(item, Mapping) else {"prompt": item})} for item in value]
    return items, [] if items else ["prompts: is empty; give at least one"]


def _given(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an item without those that an empty cell leaves to the batch."""
    return {name: value for name, value in item.items() if name not in _LEFT_OUT_IF_BLANK or not is_blank(value)}


def duplicate_problems(fingerprints: Sequence[str]) -> list[str]:
    """Say which items are the same as one before."""
    first: dict[str, int] = {}
    return [
        f"prompts[{index}]: is the same as prompts[{first[print_]}]; set allow_duplicates=True for an image of each"
        for index, print_ in enumerate(fingerprints)
        if first.setdefault(print_, index) != index
    ]


def read_requests(
    items: Sequence[Mapping[str, Any]], callback_url: str | None = None
) -> tuple[list[TaskRequest], list[str]]:
    """Check all items, and look at their input images, each of which is opened once.

    :param callback_url: public URL that Kie calls when a task ends.
    :return: a request for every item, if nothing is wrong with any, and what is wrong.
    :raises KieStorageError: the storage of an input image failed; it may work later.
    """
    seen: dict[str, tuple[Sequence[InputImage], list[str]]] = {}

    def read_images(value: Any) -> tuple[Sequence[InputImage], list[str]]:
        key = str(value)
        if key not in seen:
            seen[key] = read_input_images(value)
        return seen[key]

    problems = callback_url_problems(callback_url)
    requests = []
    for index, fields in enumerate(items):
        try:
            requests.append(
                flux2_request(fields, None if problems else callback_url, allowed=ITEM_FIELDS, read_images=read_images)
            )
        except KieValidationError as error:  # noqa: PERF203  # all of them are wanted
            problems += [f"prompts[{index}].{problem}" for problem in error.problems]
    return requests, problems
