"""From the fields of an operator to the request that is sent, before any file is uploaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kie_provider.client.errors import raise_for_problems
from kie_provider.client.flux2 import Flux2Input, is_upload_reference
from kie_provider.client.plain import is_blank
from kie_provider.client.protocol import callback_url_problems, create_task_body
from kie_provider.files.inputs import InputImage, read_input_images, upload
from kie_provider.parameters import IMAGE_FIELDS
from kie_provider.submission.record import fingerprint_of_request

if TYPE_CHECKING:
    from kie_provider.hooks.kie import KieHook


@dataclass(frozen=True)
class TaskRequest:
    """A request to createTask.

    :param body: of createTask, as the journal keeps it: with the sha256 of its content in place of each file.
    :param images: the input images; files among them are uploaded before the request is sent.
    """

    body: Mapping[str, Any]
    images: Sequence[InputImage] = ()

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what is asked for; the callback URL is not part of it."""
        return fingerprint_of_request(self.body)

    @property
    def kind(self) -> tuple[str, object]:
        """Model and resolution, which determine the price."""
        return self.body["model"], self.body["input"].get("resolution")

    @property
    def files(self) -> list[str]:
        """The sha256 references in the body, one per file."""
        urls = self.body["input"].get("input_urls")
        return [url for url in urls if is_upload_reference(url)] if isinstance(urls, list) else []

    def upload_files(self, hook: KieHook) -> Mapping[str, object]:
        """Upload the files, and return the body with their URLs at Kie.

        :raises KieValidationError: a file of the body is not among the images.
        :raises KieError: the upload failed.
        """
        if not self.files:
            return self.body
        images = {image.reference: image for image in self.images}
        raise_for_problems(
            [
                f"input_images: the file with {file}, which an earlier try has submitted, is no longer among them"
                for file in self.files
                if file not in images
            ]
        )
        urls = {file: upload(images[file], hook) for file in self.files}
        task_input = self.body["input"]
        return {
            **self.body,
            "input": {**task_input, "input_urls": [urls.get(url, url) for url in task_input["input_urls"]]},
        }


def market_request(
    model: str, task_input: Mapping[str, object], callback_url: str | None, problems: Iterable[str] = ()
) -> TaskRequest:
    """Return a request to any model of Kie's market.

    :param problems: found before, reported with the rest.
    :raises KieValidationError: names every field that is wrong, its value, and what is allowed.
    """
    raise_for_problems(list(problems))
    return TaskRequest(create_task_body(model, task_input, callback_url))


def flux2_request(
    fields: Mapping[str, object],
    callback_url: str | None = None,
    problems: Iterable[str] = (),
    allowed: Sequence[str] = IMAGE_FIELDS,
    read_images: Callable[[object], tuple[Sequence[InputImage], list[str]]] = read_input_images,
) -> TaskRequest:
    """Check all fields of one Flux-2 image, and its input images.

    :param fields: ``model``, those of :meth:`~kie_provider.client.flux2.Flux2Input.parse`, and ``input_images``.
    :param callback_url: public URL that Kie calls when the task ends.
    :param problems: found before, reported with the rest.
    :param allowed: the fields that the author can set, for the message.
    :raises KieValidationError: names every field that is wrong, its value, and what is allowed.
    :raises KieStorageError: the storage of an input image failed; a retry may help.
    """
    flux2_fields = dict(fields)
    model, input_images = flux2_fields.pop("model"), flux2_fields.pop("input_images", None)
    problems = [*problems, *callback_url_problems(callback_url)]
    images: Sequence[InputImage] = ()
    images_field = "input_urls"
    if not is_blank(input_images):
        images, image_problems = read_images(input_images)
        problems += image_problems
        if not is_blank(flux2_fields.get("input_urls")):
            problems.append("input_urls: cannot be used together with input_images")
        flux2_fields["input_urls"] = [image.reference for image in images]
        images_field = "input_images"
    flux2 = Flux2Input.parse(model, flux2_fields, images_field=images_field, allowed=allowed, problems=problems)
    return TaskRequest(create_task_body(flux2.model, flux2.to_payload(), callback_url), images)
