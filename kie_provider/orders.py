"""From the fields of one Flux-2 image, as a DAG's author gives them, to the input that is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kie_provider.client.models import Flux2Input, is_blank, is_upload_reference, raise_for_problems
from kie_provider.files.inputs import InputImage, read_input_images, upload
from kie_provider.parameters import ORDER_FIELDS

if TYPE_CHECKING:
    from kie_provider.hooks.kie import KieHook


def read_order(
    fields: Mapping[str, Any],
    problems: Iterable[str] = (),
    allowed: Sequence[str] = ORDER_FIELDS,
    read_images: Callable[[Any], tuple[Sequence[InputImage], list[str]]] = read_input_images,
) -> tuple[Flux2Input, Sequence[InputImage]]:
    """Check the fields of one image, all at once, and look at its input images.

    :param fields: ``model``, those of :meth:`~kie_provider.client.models.Flux2Input.parse`, and ``input_images``.
    :param problems: what is known to be wrong already, to be reported with the rest.
    :param allowed: all fields that the author can give, for the message.
    :return: the order, in whose input a file stands as its sha256, and the input images.
    :raises KieValidationError: names every field that is wrong, its value, and what is allowed.
    :raises KieStorageError: the storage of an input image failed; it may work later.
    """
    flux2_fields = {name: value for name, value in fields.items() if name not in ("model", "input_images")}
    input_images = fields.get("input_images")
    if is_blank(input_images):
        return Flux2Input.parse(fields["model"], flux2_fields, allowed=allowed, problems=problems), ()
    images, image_problems = read_images(input_images)
    problems = [*problems, *image_problems]
    if not is_blank(fields.get("input_urls")):
        problems.append("input_urls: cannot be used together with input_images")
    flux2_fields["input_urls"] = [image.reference for image in images]
    flux2 = Flux2Input.parse(
        fields["model"], flux2_fields, images_field="input_images", allowed=allowed, problems=problems
    )
    return flux2, images


def upload_files(
    task_input: Mapping[str, Any], get_images: Callable[[], Sequence[InputImage]], hook: KieHook
) -> Mapping[str, Any]:
    """Return the input with a URL at Kie in the place of every file.

    :param get_images: returns the images of :func:`read_order`; only called if the input has files.
    :raises KieValidationError: a file of the input is not among the images.
    :raises KieError: the upload failed.
    """
    urls = task_input.get("input_urls", [])
    if not any(map(is_upload_reference, urls)):
        return task_input
    by_reference = {image.reference: image for image in get_images()}
    raise_for_problems(
        [
            f"input_images: the file with {url}, which an earlier try has submitted, is not among them any more"
            for url in urls
            if is_upload_reference(url) and url not in by_reference
        ]
    )
    return {
        **task_input,
        "input_urls": [upload(by_reference[url], hook) if url in by_reference else url for url in urls],
    }
