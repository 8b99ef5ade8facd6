"""Wait for a Kie.ai task."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)

from kie_provider import parameters
from kie_provider.client.errors import KieError, KieTaskTimeoutError, KieValidationError
from kie_provider.client.plain import counted, got, is_blank, is_kie_task_id, shorten
from kie_provider.failures import FailureContext, failures, log_on_kill, sensor_failure, still_billed_message
from kie_provider.hooks.kie import DEFAULT_CONN_ID, DEFAULT_POLL_INTERVAL, DEFAULT_TIMEOUT, KieHook
from kie_provider.links import KieImagesLink, KieLogsLink, KieResultLink
from kie_provider.waiting import (
    log_success,
    poll,
    poll_or_defer,
    require_image,
    resume,
    try_seconds,
    try_started_at,
    wait_of_try,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from kie_provider.client.polling import Callback, Waiting
    from kie_provider.client.records import ResultDict


class KieTaskSensor(BaseSensorOperator):
    """Wait until a Kie task has succeeded and return its result dict.

    Deferred, it holds no worker slot. Retrying or clearing it only waits again: it never creates a task and never
    costs credits.

    The result dict has ``kie_task_id, model, state, urls, result, credits_consumed, cost_seconds, created_at,
    completed_at`` (ISO 8601, UTC) and ``input``.

    ``state=fail`` and other final errors fail the sensor without retry, its timeout raises
    ``AirflowSensorTimeout``; ``soft_fail``, ``never_fail`` and ``mode`` act as in every sensor.

    :param kie_task_id: what the creating operator returned (templated).
    :param kie_conn_id: Airflow connection of type ``kie``, default ``kie_default`` (templated).
    :param poke_interval: seconds or timedelta between two polls, default 3, at least 1; a deferred wait slows down to
        15 s after a minute.
    :param timeout: seconds from the start of the try, default 900; then the task is polled once more.
    :param deferrable: wait in the triggerer. Default: ``[operators] default_deferrable``.
    """

    template_fields: Sequence[str] = ("kie_task_id", "kie_conn_id")
    operator_extra_links = (KieImagesLink(), KieLogsLink(), KieResultLink())
    ui_color = "#f3f0fc"
    _requires_image: ClassVar[bool] = False

    def __init__(
        self,
        *,
        kie_task_id: str,
        kie_conn_id: str = DEFAULT_CONN_ID,
        poke_interval: timedelta | float = DEFAULT_POLL_INTERVAL,
        timeout: timedelta | float = DEFAULT_TIMEOUT,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        # Before BaseSensorOperator, which ends with an OverflowError where a number is too large.
        given = {"poke_interval": poke_interval, "timeout": timeout}
        known = {name: value for name, value in given.items() if value is not None}
        parameters.check_constants(SimpleNamespace(task_id=kwargs.get("task_id"), **known))
        super().__init__(poke_interval=poke_interval, timeout=timeout, **kwargs)
        self.kie_task_id = kie_task_id
        self.kie_conn_id = kie_conn_id
        self.deferrable = deferrable
        self._waiting: Waiting | None = None
        self._reason = "still running"

    def execute(self, context: Context) -> Any:
        """Poll once; defer if the task is still running. Without ``deferrable``, poke as every sensor does."""
        if not self.deferrable:
            try:
                return super().execute(context)
            except AirflowSensorTimeout:
                with failures(self.log, self._facts, sensor_failure):
                    reason = f"{self._reason} after {counted(self.timeout, 'second')} of this wait"
                    raise KieTaskTimeoutError(reason, kie_task_id=self.kie_task_id) from None
        with self._failures():
            return self._poll_or_defer(context)

    def poke(self, context: Context) -> PokeReturnValue:
        """Poll once."""
        with failures(self.log, self._facts, sensor_failure):
            result = self._poke(self._waiting or self._wait_of_pokes(context))
        return PokeReturnValue(is_done=result is not None, xcom_value=result)

    def execute_complete(self, context: Context, event: object) -> ResultDict:
        """Return the result that the trigger's event carries, or raise its error."""
        from kie_provider.triggers.kie import is_call, read_event

        with self._failures():
            if is_call(event):
                return self._poll_or_defer(context, "came")
            return self._finish(read_event(event, self.kie_task_id))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume after the deferral; a trigger that timed out or crashed gets one poll and, if need be, a successor."""

        def without_event(error: Exception) -> ResultDict:
            with self._failures():
                return self._poll_or_defer(context, trigger_error=error)

        # Not BaseSensorOperator's: it would fail or skip before we have polled.
        return resume(self, next_method, next_kwargs, context, without_event)

    def on_kill(self) -> None:
        """Log that the Kie task keeps running."""
        log_on_kill(self.log, still_billed_message(self.kie_task_id))

    def _poke(self, waiting: Waiting) -> ResultDict | None:
        """Poll once and return the result dict, or None while the task is running.

        :raises KieError: the wait is over without a result.
        """
        from kie_provider.client.polling import PollAgain

        with KieHook(self.kie_conn_id) as hook:
            verdict = poll(hook, self._valid_id(), waiting)
        if not isinstance(verdict, PollAgain):
            return self._finish(verdict.record.to_result())
        self.log.info("Kie task %s: %s", self.kie_task_id, verdict.reason)
        self._waiting, self._reason = verdict.waiting, verdict.reason
        return None

    def _wait_of_pokes(self, context: Context) -> Waiting:
        """Return the state of a poking sensor's wait; BaseSensorOperator enforces its timeout."""
        from kie_provider.client.polling import Waiting

        ti = context["ti"]
        first_reschedule = ti.get_first_reschedule_date(context) if self.reschedule else None
        started_at = first_reschedule.timestamp() if first_reschedule else try_started_at(ti)
        # Every poke reads the connection first, so a refused key is final at once.
        return Waiting(started_at, self.poke_interval, key_was_refreshed=True)

    def _poll_or_defer(
        self, context: Context, callback: Callback | None = None, trigger_error: Exception | None = None
    ) -> ResultDict:
        """Return the result, if it is there; else wait for it in the triggerer.

        :param callback: what is known of Kie's callback.
        :param trigger_error: how the trigger that waited has ended, if it should not have.
        """
        ti = context["ti"]
        waiting = wait_of_try(ti, self.poke_interval, try_seconds(self.timeout, self.execution_timeout), callback)
        record = poll_or_defer(ti, self.kie_conn_id, self._valid_id(), waiting, trigger_error, is_own=False)
        return self._finish(record.to_result())

    def _valid_id(self) -> str:
        """Return the Kie task id.

        :raises KieValidationError: it cannot be one.
        """
        kie_task_id = self.kie_task_id
        if is_blank(kie_task_id) or not isinstance(kie_task_id, str):
            raise KieValidationError(f"kie_task_id: must be the id that createTask returned, {got(kie_task_id)}")
        if not is_kie_task_id(kie_task_id.strip()):
            raise KieValidationError(f"kie_task_id: cannot be the id of a Kie task, got {shorten(kie_task_id)}")
        return kie_task_id

    def _finish(self, result: ResultDict) -> ResultDict:
        if self._requires_image:
            require_image(result)
        log_success(self.log, result)
        return result

    def _failures(self) -> contextlib.AbstractContextManager[None]:
        """Log what goes wrong in a deferred wait, and raise what BaseSensorOperator raises for the errors of a poke."""
        return failures(self.log, self._facts, self._failure)

    def _failure(self, error: BaseException) -> BaseException:
        if isinstance(error, AirflowSkipException) or not isinstance(error, KieError | AirflowException):
            return error
        failure = sensor_failure(error)
        is_final = not isinstance(failure, KieError)
        if self.never_fail or (self.soft_fail and is_final):
            flag = "never_fail" if self.never_fail else "soft_fail"
            return AirflowSkipException(f"Skipped because {flag} is set: {error}")
        return failure

    def _facts(self) -> FailureContext:
        is_id = is_kie_task_id(self.kie_task_id) and not is_blank(self.kie_task_id)
        return FailureContext(self.kie_conn_id, self.kie_task_id if is_id else None)
