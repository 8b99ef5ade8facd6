"""What sensors and operators share when they wait for a Kie task: one look, the deferral, and its accidents."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

import pendulum
from airflow.providers.common.compat.sdk import TaskDeferred

from kie_provider.client.errors import KieRateLimitError, KieResultError
from kie_provider.client.wording import counted
from kie_provider.execution_timeout import held
from kie_provider.hooks.kie import KieHook

if TYPE_CHECKING:
    from kie_provider.client.polling import Again, Done, Waiting

log = logging.getLogger(__name__)

#: Airflow's own deferral timeout comes this many seconds after ours, so that the trigger's clear event wins.
DEFERRAL_MARGIN = 60.0
#: How often a crashed or unloadable trigger is replaced within one try.
MAX_TRIGGER_RESTARTS = 3
#: Kie allows so many seconds for 20 creations; a refused creation comes back after that, if Kie does not say when.
RATE_LIMIT_SECONDS = 10.0
_RESTARTS_KEY = "kie_trigger_restarts"


def look(kie_conn_id: str, kie_task_id: str, waiting: Waiting) -> Done | Again:
    """Take one look at a task.

    :raises KieError: the wait is over without a result.
    """
    from kie_provider.client.polling import Raise, judge

    with KieHook(kie_conn_id) as hook:
        verdict = judge(hook.look(kie_task_id), waiting, time.time())
    if isinstance(verdict, Raise):
        raise verdict.error
    return verdict


def deferral(kie_conn_id: str, kie_task_id: str, waiting: Waiting) -> TaskDeferred:
    """Return what to raise to go on waiting in the triggerer, which ends in the operator's ``execute_complete``."""
    from kie_provider.triggers.kie import KieTaskTrigger

    assert waiting.deadline is not None  # noqa: S101  # every wait in the triggerer has one
    return TaskDeferred(
        trigger=KieTaskTrigger(
            kie_conn_id=kie_conn_id,
            kie_task_id=kie_task_id,
            poll_interval=waiting.poll_interval,
            deadline=waiting.deadline,
        ),
        method_name="execute_complete",
        timeout=timedelta(seconds=max(waiting.deadline - time.time(), 0.0) + DEFERRAL_MARGIN),
    )


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


def require_image(result: dict[str, Any]) -> dict[str, Any]:
    """Return the result dict of an image task.

    :raises KieResultError: it has no URL.
    """
    if not result["urls"]:
        raise KieResultError("it has no image URL", kie_task_id=result["kie_task_id"])
    return result


def log_success(log: Any, result: dict[str, Any]) -> None:
    """Write one line about the result dict of a successful task."""
    charged = result.get("credits_consumed")
    log.info(
        "Kie task %s succeeded: %s, %s",
        result["kie_task_id"],
        counted(len(result["urls"]), "result URL"),
        "credits not known" if charged is None else counted(charged, "credit"),
    )


def deferral_exceptions() -> tuple[type[Exception], type[Exception]]:
    """Return what a task is resumed with when its trigger crashed, could not be loaded, or took too long."""
    from airflow.sdk import exceptions

    if hasattr(exceptions, "TaskDeferralError"):
        return exceptions.TaskDeferralError, exceptions.TaskDeferralTimeout
    from airflow.exceptions import TaskDeferralError, TaskDeferralTimeout  # Airflow 3.1

    return TaskDeferralError, TaskDeferralTimeout


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


def deadline_seconds(timeout: timedelta | float, execution_timeout: timedelta | None) -> float:
    """Return how long a try may wait: Airflow does not count the time in the triggerer as execution."""
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    return seconds if execution_timeout is None else min(seconds, execution_timeout.total_seconds())
