"""Create Flux-2 image tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kie_provider.hooks.kie import DEFAULT_CONN_ID
from kie_provider.operators.kie import KieCreateTaskOperator

DEFAULT_MODEL = "flux-2/pro-text-to-image"


class Flux2CreateTaskOperator(KieCreateTaskOperator):
    """Create one Flux-2 image task and return its Kie task id (str), for a sensor to wait for.

    All fields are checked after rendering, together, before anything is sent. Kie bills the task when it succeeds (pro:
    5 credits at 1K, 7 at 2K; flex: 14 and 24); see :class:`~kie_provider.operators.kie.KieCreateTaskOperator` for what
    is never paid twice.

    :param prompt: 3 to 5000 characters (templated).
    :param model: ``flux-2/pro-text-to-image`` (default), ``flux-2/flex-text-to-image``, ``flux-2/pro-image-to-image``
        or ``flux-2/flex-image-to-image`` (templated).
    :param aspect_ratio: ``1:1`` (default), ``4:3``, ``3:4``, ``16:9``, ``9:16``, ``3:2``, ``2:3``; with input images
        also ``auto``, the ratio of the first one (templated).
    :param resolution: ``1K`` (default) or ``2K`` (templated).
    :param input_urls: 1 to 8 http(s) URLs of images that Kie can fetch, for the image-to-image models (templated).
    :param nsfw_checker: switch Kie's filter on or off; default: not sent (templated).
    :param callback_url: public URL that Kie calls when the task ends; optional (templated).
    :param kie_conn_id: Airflow connection of type ``kie``, default ``kie_default`` (templated).
    """

    template_fields: Sequence[str] = (
        "prompt",
        "model",
        "aspect_ratio",
        "resolution",
        "input_urls",
        "nsfw_checker",
        "callback_url",
        "kie_conn_id",
    )
    template_fields_renderers = {}  # noqa: RUF012  # as BaseOperator declares it

    def __init__(
        self,
        *,
        prompt: str,
        model: str = DEFAULT_MODEL,
        aspect_ratio: str = "1:1",
        resolution: str = "1K",
        input_urls: Sequence[str] | None = None,
        nsfw_checker: bool | None = None,
        callback_url: str | None = None,
        kie_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=model, input={}, callback_url=callback_url, kie_conn_id=kie_conn_id, **kwargs)
        self.prompt = prompt
        self.aspect_ratio = aspect_ratio
        self.resolution = resolution
        self.input_urls = input_urls
        self.nsfw_checker = nsfw_checker

    def _task_input(self) -> Mapping[str, Any]:
        from kie_provider.client.models import Flux2Input

        fields = ("prompt", "aspect_ratio", "resolution", "input_urls", "nsfw_checker")
        return Flux2Input.parse(self.model, {name: getattr(self, name) for name in fields}).to_payload()
