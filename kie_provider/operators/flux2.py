"""Create Flux-2 image tasks."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import conf

from kie_provider import parameters
from kie_provider.config import price_table
from kie_provider.hooks.kie import DEFAULT_CONN_ID, DEFAULT_POLL_INTERVAL, DEFAULT_TIMEOUT, KieHook
from kie_provider.links import KieImagesLink, KieLogsLink, KieResultLink
from kie_provider.operators.kie import KieCreateTaskOperator
from kie_provider.operators.results import SavingOperator
from kie_provider.parameters import ORDER_FIELDS
from kie_provider.waiting import (
    count_trigger_restart,
    deadline_seconds,
    deferral,
    deferral_exceptions,
    log_success,
    look,
    pull_xcom,
    push_xcom,
    require_image,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from kie_provider.airflow_errors import Facts
    from kie_provider.client.budget import Budget
    from kie_provider.files.inputs import InputImage

DEFAULT_MODEL = "flux-2/pro"
#: XCom key under which a try keeps the Kie task id while it is deferred.
KIE_TASK_ID_KEY = "kie_task_id"


class Flux2CreateTaskOperator(KieCreateTaskOperator):
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
        *ORDER_FIELDS,
        "callback_url",
        "max_credits",
        "min_credits_left",
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
        super().__init__(
            model=model,
            input={},
            callback_url=callback_url,
            on_unknown_submit=on_unknown_submit,
            kie_conn_id=kie_conn_id,
            **kwargs,
        )
        self.prompt = prompt
        self.aspect_ratio = aspect_ratio
        self.resolution = resolution
        self.input_images = input_images
        self.input_urls = input_urls
        self.nsfw_checker = nsfw_checker
        self.max_credits: Any = max_credits
        self.min_credits_left: Any = min_credits_left
        self._images: Sequence[InputImage] = ()
        parameters.check_constants(self)

    def _order(self) -> tuple[str, Mapping[str, Any]]:
        from kie_provider.orders import read_order

        fields = {name: getattr(self, name) for name in ORDER_FIELDS}
        order, self._images = read_order(fields, problems=parameters.problems(self))
        return order.model, order.to_payload()

    def _make_ready(self, hook: KieHook, request: Mapping[str, Any]) -> Mapping[str, Any]:
        from kie_provider.orders import upload_files

        task_input = super()._make_ready(hook, request)
        what = f"{request['model']} at {task_input.get('resolution')}"
        estimate = price_table().credits_for(request["model"], task_input.get("resolution"))
        self._budget.check(what, estimate, hook.get_credits)
        return upload_files(task_input, self._read_images, hook)

    @property
    def _budget(self) -> Budget:
        from kie_provider.client.budget import Budget

        return Budget(self.max_credits, self.min_credits_left)

    def _read_images(self) -> Sequence[InputImage]:
        """Return the input images; they have been read already, unless an earlier try's order is submitted again."""
        from kie_provider.files.inputs import read_input_images

        return self._images or read_input_images(self.input_images)[0]


class Flux2GenerateImageOperator(Flux2CreateTaskOperator, SavingOperator):
    """Create one Flux-2 image task, wait until it has succeeded, save the image, and return the result dict.

    One task instance from prompt to file, so a retry after a crash in any step goes on with the same Kie task and
    pays nothing (Airflow 3.3 and later). Deferred, the wait holds no worker slot.

    When Kie fails the task for a reason of its own, which costs nothing, the retry creates a new one; a refusal of the
    input fails at once. After the time-out the task fails, and the retry goes on with the same Kie task and a fresh
    time-out. Before Airflow 3.3 every failure after createTask is final, because a retry would pay again.

    The result dict is that of :class:`~kie_provider.sensors.kie.KieTaskSensor`; ``urls`` is never empty. With a
    ``target`` it has ``files`` too, and the image is saved as
    :class:`~kie_provider.operators.results.KieSaveResultOperator` does; whether that is possible is checked before the
    task is created. All other parameters are those of these two and of :class:`Flux2CreateTaskOperator`.

    :param target: folder for the image and the JSON file that says where it comes from (templated). Default: not
        saved, and Kie's link may die within 24 hours.
    :param deferrable: wait in the triggerer. Default: ``[operators] default_deferrable``.
    :param poll_interval: seconds or timedelta between two looks, default 3, at least 1; grows to 15 s after the first
        minute (templated).
    :param timeout: seconds or timedelta from the start of the try, default 900 s; after them one last look is taken.
        The shorter of this and ``execution_timeout`` counts (templated).
    """

    template_fields: Sequence[str] = (
        *Flux2CreateTaskOperator.template_fields,
        *SavingOperator.template_fields,
        "poll_interval",
        "timeout",
    )
    operator_extra_links = (KieImagesLink(), KieLogsLink(), KieResultLink())
    _makes_images = True

    def __init__(
        self,
        *,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: timedelta | float | str = DEFAULT_POLL_INTERVAL,
        timeout: timedelta | float | str = DEFAULT_TIMEOUT,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.deferrable = deferrable
        self.poll_interval: Any = poll_interval
        self.timeout: Any = timeout
        parameters.check_constants(self)

    def execute(self, context: Context) -> dict[str, Any]:
        """Create the task unless an earlier try has, wait for it, and save the image."""
        journal = self._open_journal(context)
        with self._failures(journal):
            kie_task_id = self._create_once(journal)
            push_xcom(context["ti"], KIE_TASK_ID_KEY, kie_task_id)
            if self.deferrable:
                return self._look_or_defer(kie_task_id, context)
            remaining = max(self._try_started_at(context) + self._try_seconds() - time.time(), 0.0)
            with KieHook(self.kie_conn_id) as hook:
                record = hook.wait(kie_task_id, poll_interval=self.poll_interval, timeout=remaining)
            return self._finish(record.to_result(), context)

    def execute_complete(self, context: Context, event: Any) -> dict[str, Any]:
        """Save the image and return the result that the trigger's event carries, or raise its error."""
        from kie_provider.triggers.kie import read_event

        with self._failures(self._open_journal(context)):
            return self._finish(read_event(event, self._recall_id(context)), context)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after the deferral; a trigger that timed out or crashed gets one look and, if need be, a successor."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except deferral_exceptions() as error:
            self.log.warning("The trigger ended without an event (%s); looking at the Kie task", error)
            with self._failures(self._open_journal(context)):
                return self._look_or_defer(self._recall_id(context), context, trigger_error=error)

    def _look_or_defer(
        self, kie_task_id: str, context: Context, trigger_error: Exception | None = None
    ) -> dict[str, Any]:
        """Return the result, if it is there; else wait for it in the triggerer.

        :param trigger_error: how the trigger that waited has ended, if it should not have.
        """
        from kie_provider.client.models import raise_for_problems
        from kie_provider.client.polling import Done, Waiting

        raise_for_problems(parameters.problems(self), "nothing more was sent.")
        started_at = self._try_started_at(context)
        waiting = Waiting(
            started_at,
            self.poll_interval,
            deadline=started_at + self._try_seconds(),
            key_was_refreshed=True,  # this look reads the connection first, so a refused key is final at once
        )
        verdict = look(self.kie_conn_id, kie_task_id, waiting)
        if isinstance(verdict, Done):
            return self._finish(verdict.record.to_result(), context)
        self.log.info("Kie task %s: %s", kie_task_id, verdict.reason)
        if trigger_error is not None:
            count_trigger_restart(context["ti"], trigger_error)
        raise deferral(self.kie_conn_id, kie_task_id, waiting)

    def _try_started_at(self, context: Context) -> float:
        """Return the epoch seconds when this try began, which survive deferral."""
        start = context["ti"].start_date
        return start.timestamp() if start else time.time()

    def _try_seconds(self) -> float:
        return deadline_seconds(self.timeout, self.execution_timeout)

    def _recall_id(self, context: Context) -> str:
        """Return the id that this try waits for: the worker that created the task has noted it for the next one."""
        self._submitted_id = pull_xcom(context["ti"], KIE_TASK_ID_KEY)
        return self._submitted_id or ""

    @property
    def _saves(self) -> bool:
        from kie_provider.client.models import is_blank

        return not is_blank(self.target)

    def _make_ready(self, hook: KieHook, request: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._saves:
            self._saver(hook).check_target()
        return super()._make_ready(hook, request)

    def _facts(self) -> Facts:
        return replace(super()._facts(), charged=self._charged())

    def _finish(self, result: dict[str, Any], context: Context) -> dict[str, Any]:
        self._result = result
        log_success(self.log, require_image(result))
        if self._saves:
            with KieHook(self.kie_conn_id) as hook:
                result = self._save(result, self._saver(hook), context)
        return result
