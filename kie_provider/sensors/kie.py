"""Wait for a Kie.ai task."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)

from kie_provider import parameters
from kie_provider.airflow_errors import Facts, failures, sensor_failure
from kie_provider.client.errors import KieError, KieTaskTimeoutError, KieValidationError
from kie_provider.hooks.kie import DEFAULT_CONN_ID, DEFAULT_POLL_INTERVAL, DEFAULT_TIMEOUT
from kie_provider.last_words import goes_on, log_last_words
from kie_provider.links import KieImagesLink, KieLogsLink, KieResultLink
from kie_provider.waiting import (
    count_trigger_restart,
    deadline_seconds,
    deferral,
    deferral_exceptions,
    log_success,
    look,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from kie_provider.client.polling import Waiting


class KieTaskSensor(BaseSensorOperator):
    """Wait until a Kie task has succeeded and return its result dict.

    Deferred, it holds no worker slot. Retrying or clearing it only waits again: it never creates a task and never
    costs credits.

    The result dict has ``kie_task_id, model, state, urls, result, credits_consumed, cost_seconds, created_at,
    completed_at`` (ISO 8601, UTC) and ``input``.

    ``state=fail`` and other hopeless errors fail the sensor without retry, its deadline raises
    ``AirflowSensorTimeout``; ``soft_fail``, ``never_fail`` and ``mode`` act as in every sensor.

    :param kie_task_id: what the creating operator returned (templated).
    :param kie_conn_id: Airflow connection of type ``kie``, default ``kie_default`` (templated).
    :param poke_interval: seconds or timedelta between two looks, default 3, at least 1; a deferred wait slows down to
        15 s after a minute.
    :param timeout: seconds from the start of the try, default 900; after them one last look is taken.
    :param deferrable: wait in the triggerer. Default: ``[operators] default_deferrable``.
    """

    template_fields: Sequence[str] = ("kie_task_id", "kie_conn_id")
    operator_extra_links = (KieImagesLink(), KieLogsLink(), KieResultLink())
    ui_color = "#f3f0fc"

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
        super().__init__(poke_interval=poke_interval, timeout=timeout, **kwargs)
        self.kie_task_id = kie_task_id
        self.kie_conn_id = kie_conn_id
        self.deferrable = deferrable
        self._waiting: Waiting | None = None
        self._reason = "still running"
        parameters.check_constants(self)

    def execute(self, context: Context) -> Any:
        """Look once; defer if the task is still running. Without ``deferrable``, poke as every sensor does."""
        if not self.deferrable:
            try:
                return super().execute(context)
            except AirflowSensorTimeout:
                with failures(self.log, self._facts, sensor_failure):
                    reason = f"{self._reason} after {self.timeout:g} seconds of this wait"
                    raise KieTaskTimeoutError(reason, kie_task_id=self.kie_task_id) from None
        with self._failures():
            return self._look_or_defer(context)

    def poke(self, context: Context) -> PokeReturnValue:
        """Look once."""
        with failures(self.log, self._facts, sensor_failure):
            result = self._look(self._waiting or self._new_wait(context))
        return PokeReturnValue(is_done=result is not None, xcom_value=result)

    def execute_complete(self, context: Context, event: Any) -> dict[str, Any]:  # noqa: ARG002
        """Return the result that the trigger's event carries, or raise its error."""
        from kie_provider.triggers.kie import read_event

        with self._failures():
            return self._finish(read_event(event, self.kie_task_id))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after the deferral; a trigger that timed out or crashed gets one look and, if need be, a successor."""
        try:
            # Not BaseSensorOperator's: it would fail or skip before we have looked.
            return super(BaseSensorOperator, self).resume_execution(next_method, next_kwargs, context)
        except deferral_exceptions() as error:
            self.log.warning("The trigger ended without an event (%s); looking at the Kie task", error)
            with self._failures():
                return self._look_or_defer(context, error)

    def on_kill(self) -> None:
        """Say in the log that the Kie task goes on."""
        log_last_words(self.log, goes_on(self.kie_task_id))

    def _look(self, waiting: Waiting) -> dict[str, Any] | None:
        """Take one look and return the result dict, or None while the task is running.

        :raises KieError: the wait is over without a result.
        """
        from kie_provider.client.models import got, is_blank
        from kie_provider.client.polling import Done

        kie_task_id = self.kie_task_id
        if is_blank(kie_task_id) or not isinstance(kie_task_id, str):
            raise KieValidationError(f"kie_task_id: must be the id that createTask returned, {got(kie_task_id)}")
        verdict = look(self.kie_conn_id, kie_task_id, waiting)
        if isinstance(verdict, Done):
            return self._finish(verdict.record.to_result())
        self.log.info("Kie task %s: %s", kie_task_id, verdict.reason)
        self._waiting, self._reason = verdict.waiting, verdict.reason
        return None

    def _new_wait(self, context: Context, timeout: float | None = None) -> Waiting:
        """Return a wait that began with this try: its start survives deferral and rescheduling.

        :param timeout: seconds to the deadline; None: BaseSensorOperator watches the time.
        """
        from kie_provider.client.polling import Waiting

        ti = context["ti"]
        first_reschedule = ti.get_first_reschedule_date(context) if self.reschedule else None
        start = first_reschedule or ti.start_date
        started_at = start.timestamp() if start else time.time()
        return Waiting(
            started_at,
            self.poke_interval,
            deadline=None if timeout is None else started_at + timeout,
            # Every look reads the connection first, so a refused key is final at once.
            key_was_refreshed=True,
        )

    def _deferred_wait(self, context: Context) -> Waiting:
        """Return the same with the deadline that BaseSensorOperator does not watch while the task is deferred."""
        return self._new_wait(context, deadline_seconds(self.timeout, self.execution_timeout))

    def _look_or_defer(self, context: Context, trigger_error: Exception | None = None) -> dict[str, Any]:
        """Return the result, if it is there; else wait for it in the triggerer.

        :param trigger_error: how the trigger that waited has ended, if it should not have.
        """
        waiting = self._deferred_wait(context)
        if result := self._look(waiting):
            return result
        if trigger_error is not None:
            count_trigger_restart(context["ti"], trigger_error)
        raise deferral(self.kie_conn_id, self.kie_task_id, waiting)

    def _finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Take the result dict of the successful task; the place for a model's own demands on it."""
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

    def _facts(self) -> Facts:
        from kie_provider.client.models import is_blank

        is_id = isinstance(self.kie_task_id, str) and not is_blank(self.kie_task_id)
        return Facts(self.kie_conn_id, self.kie_task_id if is_id else None)
