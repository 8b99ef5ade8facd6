"""Many Flux-2 images in one task instance."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperatorLink, conf

from kie_provider import parameters
from kie_provider.assets import set_asset_extra
from kie_provider.hooks.kie import DEFAULT_CONN_ID, DEFAULT_POLL_INTERVAL, DEFAULT_TIMEOUT
from kie_provider.links import KieImagesLink, KieLogsLink
from kie_provider.operators.flux2 import DEFAULT_MODEL
from kie_provider.operators.results import (
    DEFAULT_MAX_BYTES,
    DEFAULT_MAX_PIXELS,
    SavingOperator,
)
from kie_provider.parameters import DEFAULT_FILE_NAME
from kie_provider.waiting import resume

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath

    from kie_provider.batch.run import BatchRun


class Flux2BatchOperator(SavingOperator):
    """Make hundreds or thousands of Flux-2 images in one task instance, save them all, and return counts.

    The worker submits at the pace that Kie allows, with up to four createTasks in flight and 240 images being made, and
    saves what is ready meanwhile. Then it waits in the triggerer without a worker slot, and comes back when all are
    done, or after a minute with a quarter of them, to save these and submit more.

    Every submission is fenced like that of :class:`~kie_provider.operators.kie.KieCreateTaskOperator`: whatever dies, a
    retry continues with the Kie tasks that are there and submits only what is missing (Airflow 3.3 and later). So does
    clearing a batch that failed, with a changed list too; clearing one that had succeeded makes all images anew. Before
    3.3 nothing outlives a try: use ``retries=0``.

    Returns ``manifest`` (path of a JSON file with the result dict of every item, or why there is none), ``try_number``
    (the try that wrote it), the number of ``images`` asked for, of those ``saved``, ``failed``, ``unknown``
    (createTask's answer was lost), ``running`` (not done in time) and ``not_submitted`` (the account was empty, for
    example), ``credits`` (charged for what was saved) and ``estimated_credits``. While the batch runs, XCom
    ``progress`` has the same, without the estimate.

    The parameters that are not listed here are those of :class:`~kie_provider.operators.results.KieSaveResultOperator`;
    in ``file_name``, ``{item}`` is the index in the list, from 0, and ``{prompt_slug}`` the prompt as part of a name.
    Two images of one name are refused before anything is sent, and so is a batch that the account cannot pay.

    :param prompts: a list whose items are prompts, or dicts with ``prompt`` and any of ``model``, ``aspect_ratio``,
        ``resolution``, ``input_images``, ``input_urls`` and ``nsfw_checker``, as
        :class:`~kie_provider.operators.flux2.Flux2CreateTaskOperator` takes them, and ``file_name`` (templated). All
        are checked before the first is sent.
    :param target: folder for the images, their JSON files and the manifest (templated).
    :param model: for items that do not name one; so are ``aspect_ratio``, ``resolution``, ``input_images`` (templated)
        and ``nsfw_checker``.
    :param callback_url: public URL that Kie calls when a task ends; optional (templated).
    :param min_success: the task succeeds if this share of the images is saved, default 1.0: all (templated).
    :param allow_duplicates: make an image for each of several equal items. Default: refuse the list.
    :param max_credits: fail, before anything is sent, if the whole batch costs more credits than this. Default: no
        limit (templated).
    :param min_credits_left: fail, before anything is sent, if fewer credits than this would be left on the account.
        Default: no limit (templated).
    :param on_unknown_submit: what a later try does about items of which it is not known whether a task was created:
        ``fail`` (default) leaves them alone, ``resubmit`` submits them again and can pay twice.
    :param deferrable: wait in the triggerer. Default: ``[operators] default_deferrable``.
    :param poll_interval: seconds or timedelta between two polls of a Kie task, default 3, at least 1; grows to 15 s
        after the first minute (templated).
    :param timeout: seconds or timedelta that one image may take, default 900 s, from its submission or the start of the
        try. What is not done then keeps running at Kie, and a retry waits for it again. ``execution_timeout`` ends the
        whole batch (templated).
    :param kie_conn_id: Airflow connection of type ``kie``, default ``kie_default`` (templated).
    """

    template_fields: Sequence[str] = (
        "prompts",
        "model",
        "aspect_ratio",
        "resolution",
        "input_images",
        "callback_url",
        *SavingOperator.template_fields,
        "min_success",
        "max_credits",
        "min_credits_left",
        "poll_interval",
        "timeout",
        "kie_conn_id",
    )
    template_fields_renderers = {"prompts": "json"}  # noqa: RUF012  # as BaseOperator declares it
    operator_extra_links: Collection[BaseOperatorLink] = (KieImagesLink(), KieLogsLink())
    ui_color = "#e8e4f8"

    def __init__(
        self,
        *,
        prompts: Sequence[str | Mapping[str, Any]],
        target: str | ObjectStoragePath,
        model: str = DEFAULT_MODEL,
        aspect_ratio: str = "1:1",
        resolution: str = "1K",
        input_images: Any = None,
        nsfw_checker: bool | None = None,
        callback_url: str | None = None,
        file_name: str = DEFAULT_FILE_NAME,
        overwrite: bool = False,
        on_wrong_size: str = "warn",
        embed_provenance: bool = False,
        redact_prompt: bool = False,
        max_bytes: int = DEFAULT_MAX_BYTES,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        min_success: float | str = 1.0,
        allow_duplicates: bool = False,
        max_credits: float | str | None = None,
        min_credits_left: float | str | None = None,
        on_unknown_submit: str = "fail",
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: timedelta | float | str = DEFAULT_POLL_INTERVAL,
        timeout: timedelta | float | str = DEFAULT_TIMEOUT,
        kie_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            target=target,
            file_name=file_name,
            overwrite=overwrite,
            on_wrong_size=on_wrong_size,
            embed_provenance=embed_provenance,
            redact_prompt=redact_prompt,
            max_bytes=max_bytes,
            max_pixels=max_pixels,
            **kwargs,
        )
        self.prompts = prompts
        self.model = model
        self.aspect_ratio = aspect_ratio
        self.resolution = resolution
        self.input_images = input_images
        self.nsfw_checker = nsfw_checker
        self.callback_url = callback_url
        self.min_success: Any = min_success
        self.allow_duplicates = allow_duplicates
        self.max_credits: Any = max_credits
        self.min_credits_left: Any = min_credits_left
        self.on_unknown_submit = on_unknown_submit
        self.deferrable = deferrable
        self.poll_interval: Any = poll_interval
        self.timeout: Any = timeout
        self.kie_conn_id = kie_conn_id
        self._run: BatchRun | None = None  # set while the operator is running
        parameters.check_constants(self)

    def execute(self, context: Context) -> dict[str, object]:
        """Check the whole list, then submit, wait and save until every image is saved."""
        return self._finish(context, self._open(context).execute())

    def execute_complete(
        self, context: Context, event: object, journal: Sequence[int] | None = None
    ) -> dict[str, object]:
        """Save what has ended, submit more, and wait again if necessary.

        :param journal: position of the journal when the task was deferred; None: not known.
        """
        from kie_provider.triggers.batch import read_error

        return self._finish(context, self._open(context).resume(read_error(event), journal))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume after the deferral, also when the trigger timed out or crashed."""

        def without_event(error: Exception) -> dict[str, object]:
            return self._finish(context, self._open(context).resume(error))

        return resume(self, next_method, next_kwargs, context, without_event)

    def on_kill(self) -> None:
        """Log that the Kie tasks keep running. Nothing else: the signal may interrupt a call to Airflow."""
        if self._run is not None:
            self._run.stop()

    def _open(self, context: Context) -> BatchRun:
        from kie_provider.batch.run import BatchRun

        self._run = BatchRun(self, context)
        return self._run

    def _finish(self, context: Context, result: dict[str, object]) -> dict[str, object]:
        set_asset_extra(self, context, result)
        return result
