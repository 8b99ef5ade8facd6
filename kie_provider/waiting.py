"""What sensors and operators share when they wait for Kie tasks: poll or defer, its accidents, and the deadline."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

import pendulum
from airflow.providers.common.compat.sdk import BaseOperator, TaskDeferred

from kie_provider.client.errors import KieRateLimitError, KieResultError
from kie_provider.client.plain import counted
from kie_provider.compat import deferral_errors
from kie_provider.config import shown_prices
from kie_provider.execution_timeout import held
from kie_provider.hooks.kie import KieHook

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.providers.common.compat.sdk import Context
    from airflow.triggers.base import BaseTrigger

    from kie_provider.client.polling import Again, Callback, Done, Waiting
    from kie_provider.client.records import TaskRecord
    from kie_provider.submission.record import SubmissionRecord

log = logging.getLogger(__name__)

#: Airflow's own deferral timeout comes this many seconds after ours, so that the trigger's clear event wins.
DEFERRAL_MARGIN = 60.0
#: How often a crashed or unloadable trigger is replaced within one try.
MAX_TRIGGER_RESTARTS = 3
#: Kie allows so many seconds for 20 creations; a refused creation comes back after that, if Kie does not say when.
RATE_LIMIT_SECONDS = 10.0
#: A task whose createTask was not answered looks this often whether Kie has called back.
CALLBACK_SECONDS = 60.0
_RESTARTS_KEY = "kie_trigger_restarts"


def poll_or_defer(
    ti: Any,
    kie_conn_id: str,
    kie_task_id: str,
    waiting: Waiting,
    trigger_error: Exception | None = None,
) -> TaskRecord:
    """Return the record of a Kie task that has succeeded; if it is still running, wait for it in the triggerer.

    :param waiting: with a deadline.
    :param trigger_error: how the trigger that waited has ended, if it should not have.
    :raises TaskDeferred: it is still running.
    :raises KieError: the wait is over without a result.
    """
    from kie_provider.client.polling import Again
    from kie_provider.triggers.kie import KieTaskTrigger

    assert waiting.deadline is not None  # noqa: S101  # every wait in the triggerer has one
    if waiting.callback == "came":
        log.info("Kie has called back for Kie task %s", kie_task_id)
    verdict = poll(kie_conn_id, kie_task_id, waiting)
    if not isinstance(verdict, Again):
        return verdict.record
    log.info("Kie task %s: %s", kie_task_id, verdict.reason)
    if trigger_error is not None:
        count_trigger_restart(ti, trigger_error)
    raise deferral(
        KieTaskTrigger(
            kie_conn_id=kie_conn_id,
            kie_task_id=kie_task_id,
            poll_interval=waiting.poll_interval,
            deadline=waiting.deadline,
            callback=waiting.callback,
        ),
        waiting.deadline,
    )


def poll(kie_conn_id: str, kie_task_id: str, waiting: Waiting) -> Done | Again:
    """Poll a Kie task once.

    :raises KieError: the wait is over without a result.
    """
    from kie_provider.client.polling import Raise, judge

    with KieHook(kie_conn_id) as hook:
        verdict = judge(hook.look(kie_task_id), waiting, time.time())
    if isinstance(verdict, Raise):
        raise verdict.error
    return verdict


def try_started_at(ti: Any) -> float:
    """Return the epoch seconds when a try began, which deferral does not change."""
    start: float = ti.start_date.timestamp() if ti.start_date else time.time()
    return start


def try_seconds(timeout: float, execution_timeout: timedelta | None) -> float:
    """Return how long a try may wait: Airflow does not count the time in the triggerer as execution."""
    return timeout if execution_timeout is None else min(timeout, execution_timeout.total_seconds())


def wait_of_try(ti: Any, poll_interval: float, seconds: float, callback: Callback | None = None) -> Waiting:
    """Return the wait of a try, as a worker takes it up.

    :param seconds: to the deadline, from the start of the try.
    :param callback: what is known of Kie's callback.
    """
    from kie_provider.client.polling import Waiting

    started_at = try_started_at(ti)
    return Waiting(
        started_at,
        poll_interval,
        deadline=started_at + seconds,
        visible_at=time.time(),  # as far as anybody knows; one answer to the contrary decides nothing
        key_was_refreshed=True,  # the worker reads the connection first, so a refused key is final at once
        callback=callback,
    )


def expect_callback(ti: Any, kie_conn_id: str, kie_task_id: str) -> Callback | None:
    """Let Kie's callback for a Kie task of another task instance wake this one; None: callbacks are off."""
    from kie_provider.client.webhook import waiting_key

    with KieHook(kie_conn_id) as hook:
        if not hook.get_conn().endpoint.callback_base_url:
            return None
    push_xcom(ti, waiting_key(kie_task_id), value=True)
    return "expected"


def deferral(trigger: BaseTrigger, deadline: float, kwargs: dict[str, Any] | None = None) -> TaskDeferred:
    """Return what to raise to go on waiting in the triggerer, which ends in the operator's ``execute_complete``.

    :param deadline: epoch seconds of the trigger's last poll.
    :param kwargs: for ``execute_complete``.
    """
    return TaskDeferred(
        trigger=trigger,
        method_name="execute_complete",
        kwargs=kwargs,
        timeout=timedelta(seconds=max(deadline - time.time(), 0.0) + DEFERRAL_MARGIN),
    )


def resume(
    operator: BaseOperator,
    next_method: str,
    next_kwargs: dict[str, Any] | None,
    context: Context,
    without_event: Callable[[Exception], Any],
) -> Any:
    """Go on after a deferral.

    :param without_event: called in place of the next method if the trigger timed out, crashed or could not be loaded.
    """
    try:
        return BaseOperator.resume_execution(operator, next_method, next_kwargs, context)
    except deferral_errors() as error:
        log.warning("The trigger ended without an event (%s); polling Kie", error)
        return without_event(error)


def come_back_later(error: KieRateLimitError, *, is_durable: bool) -> NoReturn:
    """Give the worker back and be run again when there is a place for a new task.

    :param is_durable: whether this is Airflow 3.3 or later.
    :raises KieRateLimitError: it is not: a plain operator would come back at once.
    :raises AirflowRescheduleException: else; it uses up no try.
    """
    from kie_provider.client.retry import jitter

    if not is_durable:
        raise error
    from airflow.sdk.exceptions import AirflowRescheduleException

    delay = jitter(RATE_LIMIT_SECONDS, at_least=error.retry_after)
    log.warning("%s; coming back in %.0f seconds, without using up a try", error, delay)
    raise AirflowRescheduleException(  # type: ignore[no-untyped-call]
        pendulum.now("UTC").add(seconds=delay)
    ) from None


def await_callback(record: SubmissionRecord) -> NoReturn:
    """Give the worker back and be run again in a minute: Kie may have called back for an unknown submission by then.

    :raises AirflowRescheduleException: always; it uses up no try, and needs Airflow 3.3.
    """
    from airflow.sdk.exceptions import AirflowRescheduleException

    log.warning(
        "createTask was sent at %s and its answer was lost. Kie knows where to call back, so this task waits for that "
        "and looks again in %.0f seconds, without using up a try",
        pendulum.from_timestamp(record.at).to_iso8601_string(),
        CALLBACK_SECONDS,
    )
    raise AirflowRescheduleException(  # type: ignore[no-untyped-call]
        pendulum.now("UTC").add(seconds=CALLBACK_SECONDS)
    ) from None


def require_image(result: dict[str, Any]) -> dict[str, Any]:
    """Return the result dict of an image task.

    :raises KieResultError: it has no URL.
    """
    if not result["urls"]:
        raise KieResultError("it has no image URL", kie_task_id=result["kie_task_id"])
    return result


def log_success(log: Any, result: dict[str, Any]) -> None:
    """Write one line about the result dict of a successful task."""
    cost = shown_prices().cost_of(result)
    log.info(
        "Kie task %s succeeded: %s, %s",
        result["kie_task_id"],
        counted(len(result["urls"]), "result URL"),
        "credits not known" if cost is None else counted(cost, "credit"),
    )


def count_trigger_restart(ti: Any, error: Exception) -> None:
    """Allow a few new triggers per try. Counted in XCom: the deferral's own arguments are lost with the trigger.

    :raises Exception: ``error``, once there were enough.
    """
    restarts = pull_xcom(ti, _RESTARTS_KEY) or 0
    if restarts >= MAX_TRIGGER_RESTARTS:
        raise error
    push_xcom(ti, _RESTARTS_KEY, restarts + 1)


def pull_xcom(ti: Any, key: str) -> Any:
    """Return what this try has pushed; ``execution_timeout`` is held back meanwhile."""
    with held():
        return ti.xcom_pull(task_ids=ti.task_id, map_indexes=ti.map_index, key=key)


def push_xcom(ti: Any, key: str, value: Any) -> None:
    """Push an XCom of this try; ``execution_timeout`` is held back meanwhile."""
    with held():
        ti.xcom_push(key, value)
