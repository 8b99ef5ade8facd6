"""Reads the list of a batch: every item is checked before the first is submitted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kie_provider.client.errors import KieValidationError
from kie_provider.client.plain import from_text, got, is_blank
from kie_provider.client.protocol import callback_url_problems
from kie_provider.files.inputs import InputImage, read_input_images
from kie_provider.parameters import IMAGE_FIELDS
from kie_provider.submission.inputs import TaskRequest, flux2_request

#: The fields that an item may have.
ITEM_FIELDS = (*IMAGE_FIELDS, "file_name")
#: If blank, these fall back to the batch's own; other blank fields are kept as they are.
_LEFT_OUT_IF_BLANK = ("model", "aspect_ratio", "resolution")


def read_prompts(value: object, defaults: Mapping[str, object]) -> tuple[list[dict[str, object]], list[str]]:
    """Return the fields of every item, and the problems of the list as a whole. The items are not checked.

    :param value: a list of prompts, or of dicts with a prompt and other fields; or its text, from a template.
    :param defaults: fields for the items that do not have them.
    """
    value = from_text(value)
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
        return [], [f"prompts: must be a list of prompts or dicts, {got(value)}"]
    items = [{**defaults, **_given(item if isinstance(item, Mapping) else {"prompt": item})} for item in value]
    return items, [] if items else ["prompts: is empty; give at least one"]


def _given(item: Mapping[str, object]) -> dict[str, object]:
    """Return the fields of an item without blank ones that have a default."""
    return {name: value for name, value in item.items() if name not in _LEFT_OUT_IF_BLANK or not is_blank(value)}


def duplicate_problems(fingerprints: Sequence[str]) -> list[str]:
    """Return a problem for every item that repeats an earlier one."""
    first: dict[str, int] = {}
    return [
        f"prompts[{index}]: is the same as prompts[{first[fingerprint]}]; set allow_duplicates=True to get one each"
        for index, fingerprint in enumerate(fingerprints)
        if first.setdefault(fingerprint, index) != index
    ]


def read_requests(
    items: Sequence[Mapping[str, object]], callback_url: str | None = None
) -> tuple[list[TaskRequest], list[str]]:
    """Check all items and their input images; each image is opened once.

    :param callback_url: public URL that Kie calls when a task ends.
    :return: the requests, one per item if there are no problems; and the problems.
    :raises KieStorageError: the storage of an input image failed; a retry may help.
    """
    seen: dict[str, tuple[Sequence[InputImage], list[str]]] = {}

    def read_images(value: object) -> tuple[Sequence[InputImage], list[str]]:
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
        except KieValidationError as error:  # noqa: PERF203  # all problems are reported together
            problems += [f"prompts[{index}].{problem}" for problem in error.problems]
    return requests, problems
