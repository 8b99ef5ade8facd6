"""Create Flux-2 image tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import conf

from kie_provider import parameters
from kie_provider.client.errors import raise_for_problems
from kie_provider.client.plain import is_blank
from kie_provider.config import price_table
from kie_provider.hooks.kie import DEFAULT_CONN_ID, DEFAULT_POLL_INTERVAL, DEFAULT_TIMEOUT, KieHook
from kie_provider.links import KieImagesLink, KieLogsLink, KieResultLink
from kie_provider.operators.kie import SubmittingOperator
from kie_provider.operators.results import (
    DEFAULT_MAX_BYTES,
    DEFAULT_MAX_PIXELS,
    SavingOperator,
)
from kie_provider.parameters import DEFAULT_FILE_NAME, IMAGE_FIELDS
from kie_provider.waiting import (
    log_success,
    poll_or_defer,
    pull_xcom,
    push_xcom,
    require_image,
    resume,
    try_seconds,
    wait_of_try,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath

    from kie_provider.client.polling import Callback, Waiting
    from kie_provider.client.records import ResultDict
    from kie_provider.files.inputs import InputImage
    from kie_provider.files.provenance import SavedResult
    from kie_provider.submission.inputs import TaskRequest
    from kie_provider.submission.single import SingleSubmission

DEFAULT_MODEL = "flux-2/pro"
#: XCom key under which a try keeps the Kie task id while it is deferred.
KIE_TASK_ID_KEY = "kie_task_id"
#: The parameters that make up createTask's body.
REQUEST_FIELDS = (*IMAGE_FIELDS, "callback_url")


class Flux2CreateTaskOperator(SubmittingOperator):
    """Create one Flux-2 image task and return its Kie task id (str), for a sensor to wait for.

    All fields are checked after rendering, together, before anything is sent. Kie bills the task when it succeeds (pro:
    5 credits at 1K, 7 at 2K; flex: 14 and 24); see :class:`~kie_provider.operators.kie.KieCreateTaskOperator` for what
    is never paid twice.

    :param prompt: 3 to 5000 characters (templated).
    :param model: ``flux-2/pro`` (default) or ``flux-2/flex``, of which the text-to-image or the image-to-image model is
        taken as there are input images or not; or the full name of one of these four models (templated).
    :param aspect_ratio: ``1:1`` (default), ``4:3``, ``3:4``, ``16:9``, ``9:16``, ``3:2``, ``2:3``; with input images
        also ``auto``, the ratio of the first one (templated).
    :param resolution: ``1K`` (default) or ``2K`` (templated).
    :param input_images: 1 to 8 images for image-to-image: http(s) URLs that Kie can fetch, local paths, object storage
        paths such as ``s3://conn_id@bucket/key``, or result dicts of earlier tasks. What is no URL must be JPEG, PNG or
        WebP of at most 10 MB, and is uploaded to Kie, free of charge and once while Kie keeps it (templated).
    :param input_urls: Kie's own field, in place of ``input_images``: URLs only (templated).
    :param nsfw_checker: switch Kie's filter on or off; default: not sent (templated).
    :param callback_url: public URL that Kie calls when the task ends; optional (templated).
    :param max_credits: fail, before anything is sent, if the image costs more credits than this. Default: no limit
        (templated).
    :param min_credits_left: fail, before anything is sent, if fewer credits than this would be left on the account.
        Default: no limit; the balance is not asked for (templated).
    :param on_unknown_submit: ``fail`` (default) or ``resubmit``, when an earlier try may have created a task and nobody
        knows its id.
    :param kie_conn_id: Airflow connection of type ``kie``, default ``kie_default`` (templated).
    """

    template_fields: Sequence[str] = (
        *REQUEST_FIELDS,
        "max_credits",
        "min_credits_left",
        "kie_conn_id",
    )

    def __init__(
        self,
        *,
        prompt: str,
        model: str = DEFAULT_MODEL,
        aspect_ratio: str = "1:1",
        resolution: str = "1K",
        input_images: Any = None,
        input_urls: Sequence[str] | None = None,
        nsfw_checker: bool | None = None,
        callback_url: str | None = None,
        max_credits: float | str | None = None,
        min_credits_left: float | str | None = None,
        on_unknown_submit: str = "fail",
        kie_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.prompt = prompt
        self.model = model
        self.aspect_ratio = aspect_ratio
        self.resolution = resolution
        self.input_images = input_images
        self.input_urls = input_urls
        self.nsfw_checker = nsfw_checker
        self.callback_url = callback_url
        self.max_credits: Any = max_credits
        self.min_credits_left: Any = min_credits_left
        self.on_unknown_submit = on_unknown_submit
        self.kie_conn_id = kie_conn_id
        parameters.check_constants(self)

    def execute(self, context: Context) -> str:
        """Check the rendered fields, create the task unless an earlier try has, return its Kie task id."""
        from kie_provider.submission.single import SingleSubmission

        self._submission = submission = SingleSubmission(self, context)
        with submission.failures():
            return submission.create(
                lambda: read_request(self),
                before_paying=lambda hook, request: check_budget(self, hook, request),
                find_images=lambda: find_images(self),
            )


class Flux2GenerateImageOperator(SubmittingOperator, SavingOperator):
    """Create one Flux-2 image task, wait until it has succeeded, save the image, and return the result dict.

    One task instance from prompt to file, so a retry after a crash in any step continues with the same Kie task
    and pays nothing (Airflow 3.3 and later). Deferred, the wait holds no worker slot.

    If Kie fails the task through its own fault, which costs nothing, the retry creates a new one; a refusal of the
    input fails at once. After the timeout the task fails, and the retry continues with the same Kie task and a fresh
    timeout. Before Airflow 3.3 every failure after createTask is final, because a retry would pay again.

    The result dict is that of :class:`~kie_provider.sensors.kie.KieTaskSensor`; ``urls`` is never empty. With a
    ``target`` it has ``files`` too, and the image is saved as
    :class:`~kie_provider.operators.results.KieSaveResultOperator` does; whether that is possible is checked before the
    task is created. All other parameters are those of these two and of :class:`Flux2CreateTaskOperator`.

    :param target: folder for the image and the JSON file that says where it comes from (templated). Default: not
        saved, and Kie's link may die within 24 hours.
    :param deferrable: wait in the triggerer. Default: ``[operators] default_deferrable``.
    :param poll_interval: seconds or timedelta between two polls, default 3, at least 1; grows to 15 s after the first
        minute (templated).
    :param timeout: seconds or timedelta from the start of the try, default 900 s; then the task is polled once more.
        The shorter of this and ``execution_timeout`` counts (templated).
    """

    template_fields: Sequence[str] = (
        *Flux2CreateTaskOperator.template_fields,
        *SavingOperator.template_fields,
        "poll_interval",
        "timeout",
    )
    operator_extra_links = (KieImagesLink(), KieLogsLink(), KieResultLink())

    def __init__(
        self,
        *,
        prompt: str,
        model: str = DEFAULT_MODEL,
        aspect_ratio: str = "1:1",
        resolution: str = "1K",
        input_images: Any = None,
        input_urls: Sequence[str] | None = None,
        nsfw_checker: bool | None = None,
        callback_url: str | None = None,
        max_credits: float | str | None = None,
        min_credits_left: float | str | None = None,
        on_unknown_submit: str = "fail",
        target: str | ObjectStoragePath | None = None,
        file_name: str = DEFAULT_FILE_NAME,
        overwrite: bool = False,
        on_wrong_size: str = "warn",
        embed_provenance: bool = False,
        redact_prompt: bool = False,
        max_bytes: int = DEFAULT_MAX_BYTES,
        max_pixels: int = DEFAULT_MAX_PIXELS,
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
        self.prompt = prompt
        self.model = model
        self.aspect_ratio = aspect_ratio
        self.resolution = resolution
        self.input_images = input_images
        self.input_urls = input_urls
        self.nsfw_checker = nsfw_checker
        self.callback_url = callback_url
        self.max_credits: Any = max_credits
        self.min_credits_left: Any = min_credits_left
        self.on_unknown_submit = on_unknown_submit
        self.deferrable = deferrable
        self.poll_interval: Any = poll_interval
        self.timeout: Any = timeout
        self.kie_conn_id = kie_conn_id
        parameters.check_constants(self)

    def execute(self, context: Context) -> ResultDict | SavedResult:
        """Create the task unless an earlier try has, wait for it, and save the image."""
        return self._generate(context, lambda: read_request(self), lambda: find_images(self))

    def execute_complete(self, context: Context, event: object) -> ResultDict | SavedResult:
        """Save the image and return the result that the trigger's event carries, or raise its error."""
        from kie_provider.triggers.kie import is_call, read_event

        submission = self._open_submission(context)
        with submission.failures():
            submission.kie_task_id = pull_xcom(context["ti"], KIE_TASK_ID_KEY)
            if is_call(event):
                return self._poll_or_defer(submission.kie_task_id or "", context, "came")
            return self._finish(read_event(event, submission.kie_task_id or ""), context)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume after the deferral; a trigger that timed out or crashed gets one poll and, if need be, a successor."""

        def without_event(error: Exception) -> ResultDict | SavedResult:
            submission = self._open_submission(context)
            with submission.failures():
                submission.kie_task_id = pull_xcom(context["ti"], KIE_TASK_ID_KEY)
                return self._poll_or_defer(submission.kie_task_id or "", context, trigger_error=error)

        return resume(self, next_method, next_kwargs, context, without_event)

    def _open_submission(self, context: Context) -> SingleSubmission:
        from kie_provider.submission.single import SingleSubmission

        self._submission = SingleSubmission(self, context, self._charged)
        return self._submission

    def _generate(
        self,
        context: Context,
        read: Callable[[], TaskRequest],
        find: Callable[[], Sequence[InputImage]],
        on_recorded: Callable[[], object] | None = None,
    ) -> ResultDict | SavedResult:
        """Create the task unless an earlier try has, wait for it, and save the image.

        The parameters are those of :meth:`~kie_provider.submission.single.SingleSubmission.create`.
        """
        submission = self._open_submission(context)
        with submission.failures():
            kie_task_id = submission.create(
                read, before_paying=self._before_paying, find_images=find, on_recorded=on_recorded
            )
            push_xcom(context["ti"], KIE_TASK_ID_KEY, kie_task_id)
            if self.deferrable:
                callback: Callback | None = "expected" if submission.expects_callback else None
                return self._poll_or_defer(kie_task_id, context, callback)
            remaining = max((self._wait_of_try(context).deadline or 0.0) - time.time(), 0.0)
            with KieHook(self.kie_conn_id) as hook:
                record = hook.wait(kie_task_id, poll_interval=self.poll_interval, timeout=remaining)
            return self._finish(record.to_result(), context)

    def _before_paying(self, hook: KieHook, request: TaskRequest) -> None:
        if self._saves:
            self.saver(hook, images_only=True).check_target()
        check_budget(self, hook, request)

    def _wait_of_try(self, context: Context, callback: Callback | None = None) -> Waiting:
        seconds = try_seconds(self.timeout, self.execution_timeout)
        return wait_of_try(context["ti"], self.poll_interval, seconds, callback)

    def _poll_or_defer(
        self,
        kie_task_id: str,
        context: Context,
        callback: Callback | None = None,
        trigger_error: Exception | None = None,
    ) -> ResultDict | SavedResult:
        raise_for_problems(parameters.problems(self), "nothing more was sent.")
        waiting = self._wait_of_try(context, callback)
        record = poll_or_defer(context["ti"], self.kie_conn_id, kie_task_id, waiting, trigger_error)
        return self._finish(record.to_result(), context)

    @property
    def _saves(self) -> bool:
        return not is_blank(self.target)

    def _finish(self, result: ResultDict, context: Context) -> ResultDict | SavedResult:
        self._result = result
        log_success(self.log, require_image(result))
        if self._saves:
            with KieHook(self.kie_conn_id) as hook:
                return self._save(result, self.saver(hook, images_only=True), context)
        return result


def read_request(operator: Flux2CreateTaskOperator | Flux2GenerateImageOperator) -> TaskRequest:
    """Return the request that the rendered fields ask for.

    :raises KieValidationError: names every field that is wrong, its value, and what is allowed.
    """
    from kie_provider.submission.inputs import flux2_request

    fields = {name: getattr(operator, name) for name in IMAGE_FIELDS}
    return flux2_request(fields, operator.callback_url, parameters.problems(operator))


def check_budget(
    operator: Flux2CreateTaskOperator | Flux2GenerateImageOperator, hook: KieHook, request: TaskRequest
) -> None:
    """Raise if the image exceeds the budget.

    :raises KieBudgetError: it does.
    """
    from kie_provider.submission.budget import Budget

    model, resolution = request.kind
    budget = Budget(operator.max_credits, operator.min_credits_left)
    budget.check(f"{model} at {resolution}", price_table().credits_for(model, resolution), hook.get_credits)


def find_images(operator: Flux2CreateTaskOperator | Flux2GenerateImageOperator) -> Sequence[InputImage]:
    """Return the input images, for sending again what an earlier try has submitted."""
    from kie_provider.files.inputs import read_input_images

    return read_input_images(operator.input_images)[0]
