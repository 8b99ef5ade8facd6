"""What sensors and operators share when they wait for Kie tasks: poll or defer, resume, and deadlines."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

import pendulum
from airflow.providers.common.compat.sdk import BaseOperator, TaskDeferred

from kie_provider.client.errors import KieConnectionNotFoundError, KieRateLimitError, KieResultError
from kie_provider.client.plain import counted
from kie_provider.compat import deferral_errors
from kie_provider.config import shown_prices
from kie_provider.execution_timeout import held
from kie_provider.hooks.kie import KieHook

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.providers.common.compat.sdk import Context
    from airflow.sdk.types import Logger, RuntimeTaskInstanceProtocol
    from airflow.triggers.base import BaseTrigger

    from kie_provider.client.polling import Callback, Done, PollAgain, Waiting
    from kie_provider.client.records import ResultDict, TaskRecord

log = logging.getLogger(__name__)

#: Seconds that Airflow's deferral timeout comes after the deadline, so that the trigger's more precise event wins.
DEFERRAL_MARGIN = 60.0
#: How many times a crashed or unloadable trigger is replaced within one try.
MAX_TRIGGER_RESTARTS = 3
#: Seconds until a refused createTask is sent again, unless Kie says when: the length of its rate limit window.
RATE_LIMIT_SECONDS = 10.0
#: Seconds between two checks whether Kie has called back for a createTask that was not answered.
CALLBACK_SECONDS = 60.0
_RESTARTS_KEY = "kie_trigger_restarts"


def poll_or_defer(
    ti: RuntimeTaskInstanceProtocol,
    kie_conn_id: str,
    kie_task_id: str,
    waiting: Waiting,
    trigger_error: Exception | None = None,
    *,
    is_own: bool = True,
) -> TaskRecord:
    """Poll a Kie task: return its record if it has succeeded, defer if it is still running.

    :param waiting: has a deadline.
    :param trigger_error: why the trigger ended without an event, if it did.
    :param is_own: this task instance created the Kie task, so ``waiting`` says whether Kie calls back. If another one
        did, Kie does so where callbacks are on, and its callback is to wake this task instance.
    :raises TaskDeferred: it is still running.
    :raises KieError: the wait is over without a result.
    """
    from kie_provider.client.polling import PollAgain
    from kie_provider.client.webhook import waiting_key
    from kie_provider.triggers.kie import KieTaskTrigger

    assert waiting.deadline is not None  # noqa: S101  # every wait in the triggerer has one
    if waiting.callback == "came":
        log.info("Kie has called back for Kie task %s", kie_task_id)
    callback = waiting.callback
    with KieHook(kie_conn_id) as hook:
        verdict = poll(hook, kie_task_id, waiting)
        if not isinstance(verdict, PollAgain):
            return verdict.record
        if not is_own and callback is None and _has_callbacks(hook):
            push_xcom(ti, waiting_key(kie_task_id), value=True)
            callback = "expected"
    log.info("Kie task %s: %s", kie_task_id, verdict.reason)
    if trigger_error is not None:
        count_trigger_restart(ti, trigger_error)
    raise deferral(
        KieTaskTrigger(
            kie_conn_id=kie_conn_id,
            kie_task_id=kie_task_id,
            poll_interval=waiting.poll_interval,
            deadline=waiting.deadline,
            callback=callback,
        ),
        waiting.deadline,
    )


def _has_callbacks(hook: KieHook) -> bool:
    """Whether Kie calls back for tasks of the connection; False if Airflow does not find it: a later poll may."""
    with suppress(KieConnectionNotFoundError):
        return bool(hook.get_conn().endpoint.callback_base_url)
    return False


def poll(hook: KieHook, kie_task_id: str, waiting: Waiting) -> Done | PollAgain:
    """Poll a Kie task once.

    :raises KieError: the wait is over without a result.
    """
    from kie_provider.client.polling import Raise, judge

    verdict = judge(hook.poll(kie_task_id), waiting, time.time())
    if isinstance(verdict, Raise):
        raise verdict.error
    return verdict


def try_started_at(ti: RuntimeTaskInstanceProtocol) -> float:
    """Return when a try began, in epoch seconds; a deferral does not change it."""
    return ti.start_date.timestamp() if ti.start_date else time.time()


def try_seconds(timeout: float, execution_timeout: timedelta | None) -> float:
    """Return the seconds that a try may wait: ``execution_timeout`` alone does not count the time in the triggerer."""
    return timeout if execution_timeout is None else min(timeout, execution_timeout.total_seconds())


def wait_of_try(
    ti: RuntimeTaskInstanceProtocol, poll_interval: float, seconds: float, callback: Callback | None = None
) -> Waiting:
    """Return the state of a try's wait, as a worker begins or resumes it.

    :param seconds: from the start of the try to the deadline.
    :param callback: what is known of Kie's callback.
    """
    from kie_provider.client.polling import Waiting

    started_at = try_started_at(ti)
    return Waiting(
        started_at,
        poll_interval,
        deadline=started_at + seconds,
        visible_at=time.time(),  # assumed, so that a single "not found" does not end the wait
        key_was_refreshed=True,  # the worker reads the connection first, so a refused key is final at once
        callback=callback,
    )


def deferral(trigger: BaseTrigger, deadline: float, kwargs: dict[str, object] | None = None) -> TaskDeferred:
    """Return the exception that continues the wait in the triggerer; ``execute_complete`` follows.

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
    next_kwargs: dict[str, object] | None,
    context: Context,
    without_event: Callable[[Exception], object],
) -> object:
    """Resume after a deferral.

    :param without_event: called instead of the next method if the trigger timed out, crashed or could not be loaded.
    """
    try:
        return BaseOperator.resume_execution(operator, next_method, next_kwargs, context)
    except deferral_errors() as error:
        log.warning("The trigger ended without an event (%s); polling Kie", error)
        return without_event(error)


def reschedule(error: KieRateLimitError, *, is_durable: bool) -> NoReturn:
    """Reschedule the task until the rate limit allows another createTask.

    :param is_durable: whether this is Airflow 3.3 or later.
    :raises KieRateLimitError: it is not: Airflow would run a plain operator again at once.
    :raises AirflowRescheduleException: otherwise; it uses up no try.
    """
    from kie_provider.client.retry import jitter

    if not is_durable:
        raise error
    delay = jitter(RATE_LIMIT_SECONDS, at_least=error.retry_after)
    log.warning("%s; rescheduled in %.0f seconds, without using up a try", error, delay)
    _reschedule_in(delay)


def await_callback(sent_at: float) -> NoReturn:
    """Reschedule the task by a minute: Kie may have called back for an unknown submission by then.

    :param sent_at: epoch seconds of its intent.
    :raises AirflowRescheduleException: always; it uses up no try, and needs Airflow 3.3.
    """
    log.warning(
        "createTask was sent at %s and its answer was lost. Kie knows where to call back, so this task waits for that: "
        "rescheduled in %.0f seconds, without using up a try",
        pendulum.from_timestamp(sent_at).to_iso8601_string(),
        CALLBACK_SECONDS,
    )
    _reschedule_in(CALLBACK_SECONDS)


def _reschedule_in(seconds: float) -> NoReturn:
    from airflow.sdk.exceptions import AirflowRescheduleException

    raise AirflowRescheduleException(  # type: ignore[no-untyped-call]
        pendulum.now("UTC").add(seconds=seconds)
    ) from None


def require_image(result: ResultDict) -> ResultDict:
    """Return the result dict of an image task unchanged.

    :raises KieResultError: it has no URL.
    """
    if not result["urls"]:
        raise KieResultError("it has no image URL", kie_task_id=result["kie_task_id"])
    return result


def log_success(log: Logger, result: ResultDict) -> None:
    """Log one line about the result of a successful task."""
    cost = shown_prices().cost_of(result)
    log.info(
        "Kie task %s succeeded: %s, %s",
        result["kie_task_id"],
        counted(len(result["urls"]), "result URL"),
        "credits not known" if cost is None else counted(cost, "credit"),
    )


def count_trigger_restart(ti: RuntimeTaskInstanceProtocol, error: Exception) -> None:
    """Count a new trigger against the limit per try, in XCom: the deferral's own arguments are lost with the trigger.

    :raises Exception: ``error``, once the limit is reached.
    """
    restarts = pull_xcom(ti, _RESTARTS_KEY) or 0
    if restarts >= MAX_TRIGGER_RESTARTS:
        raise error
    push_xcom(ti, _RESTARTS_KEY, restarts + 1)


def pull_xcom(ti: RuntimeTaskInstanceProtocol, key: str) -> Any:  # whatever was pushed
    """Return an XCom that this try has pushed; ``execution_timeout`` is held back meanwhile."""
    with held():
        return ti.xcom_pull(task_ids=ti.task_id, map_indexes=ti.map_index, key=key)


def push_xcom(ti: RuntimeTaskInstanceProtocol, key: str, value: object) -> None:
    """Push an XCom of this try; ``execution_timeout`` is held back meanwhile."""
    with held():
        ti.xcom_push(key, value)
