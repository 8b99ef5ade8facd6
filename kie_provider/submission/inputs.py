"""From the fields that a DAG's author gives to the request that is sent, in which nothing is uploaded yet."""

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
from kie_provider.parameters import ORDER_FIELDS
from kie_provider.submission.record import fingerprint_of_request

if TYPE_CHECKING:
    from kie_provider.hooks.kie import KieHook


@dataclass(frozen=True)
class TaskRequest:
    """What createTask shall be sent.

    :param body: of createTask; a file stands in it as the sha256 of its content. So the journal keeps it.
    :param images: its input images; those that are files are uploaded before it is sent.
    """

    body: Mapping[str, Any]
    images: Sequence[InputImage] = ()

    @cached_property
    def fingerprint(self) -> str:
        """Stands for what is asked for; where Kie calls back is no part of that."""
        return fingerprint_of_request(self.body)

    @property
    def kind(self) -> tuple[str, Any]:
        """Model and resolution, by which Kie charges."""
        return self.body["model"], self.body["input"].get("resolution")

    @property
    def files(self) -> list[str]:
        """The sha256 references in the body, each of which stands for a file."""
        urls = self.body["input"].get("input_urls")
        return [url for url in urls if is_upload_reference(url)] if isinstance(urls, list) else []

    def upload_files(self, hook: KieHook) -> Mapping[str, Any]:
        """Return the body with a URL at Kie in the place of every file.

        :raises KieValidationError: a file of the body is not among the images.
        :raises KieError: the upload failed.
        """
        if not self.files:
            return self.body
        images = {image.reference: image for image in self.images}
        raise_for_problems(
            [
                f"input_images: the file with {file}, which an earlier try has submitted, is not among them any more"
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
    model: str, task_input: Mapping[str, Any], callback_url: str | None, problems: Iterable[str] = ()
) -> TaskRequest:
    """Return a request to any model of Kie's market.

    :param problems: what is known to be wrong already.
    :raises KieValidationError: names every field that is wrong, its value, and what is allowed.
    """
    raise_for_problems(list(problems))
    return TaskRequest(create_task_body(model, task_input, callback_url))


def flux2_request(
    fields: Mapping[str, Any],
    callback_url: str | None = None,
    problems: Iterable[str] = (),
    allowed: Sequence[str] = ORDER_FIELDS,
    read_images: Callable[[Any], tuple[Sequence[InputImage], list[str]]] = read_input_images,
) -> TaskRequest:
    """Check the fields of one Flux-2 image, all at once, and look at its input images.

    :param fields: ``model``, those of :meth:`~kie_provider.client.flux2.Flux2Input.parse`, and ``input_images``.
    :param callback_url: public URL that Kie calls when the task ends.
    :param problems: what is known to be wrong already, to be reported with the rest.
    :param allowed: all fields that the author can give, for the message.
    :raises KieValidationError: names every field that is wrong, its value, and what is allowed.
    :raises KieStorageError: the storage of an input image failed; it may work later.
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
