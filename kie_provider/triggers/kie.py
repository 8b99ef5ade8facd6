"""The trigger that waits for a Kie task in the triggerer, and the event it ends with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeGuard

from airflow.triggers.base import BaseTrigger, TriggerEvent

from kie_provider.client.errors import ErrorDict, KieError, error_from_dict
from kie_provider.failures import log_on_kill, still_billed_message
from kie_provider.hooks.kie import DEFAULT_POLL_INTERVAL, KieHook

if TYPE_CHECKING:
    from kie_provider.client.polling import Callback
    from kie_provider.client.records import ResultDict, TaskRecord


#: Seconds that every trigger runs before it can fire. The triggerer can begin before the scheduler has learnt that the
#: worker's process has ended; if the trigger has fired by then, the task is queued again, and the scheduler takes the
#: late news for the end of the new process and marks the task failed. Tests lower it.
FIRST_POLL_AFTER = 3.0
#: Seconds after the end of a task; a callback that has not come by then is missed.
LATE_CALLBACK_SECONDS = 15.0
#: States of a task instance that was woken; one that was marked, cleared or killed has others.
RESUMED = ("scheduled", "queued", "running", "success")
#: Seconds that Airflow gets to tell the state.
STATE_SECONDS = 3.0


class SuccessEvent(TypedDict):
    """The Kie task has succeeded."""

    status: Literal["success"]
    result: ResultDict


class ErrorEvent(TypedDict):
    """The wait ended with an error."""

    status: Literal["error"]
    error: ErrorDict


class KieTrigger(BaseTrigger):
    """Base class of the triggers that wait for Kie tasks."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def still_billed_message(self) -> str:
        """Say what it means to stop waiting."""
        raise NotImplementedError

    async def delay_first_poll(self) -> None:
        """Sleep until the first poll is due."""
        await asyncio.sleep(FIRST_POLL_AFTER)

    async def on_kill(self) -> None:
        """Log that the Kie tasks keep running. Called by Airflow 3.3 and later, which bounds its time.

        Airflow calls it when the task was cleared or marked, but also when another triggerer takes over. This does not
        ask which: the answer can take longer than Airflow waits, and the message is true in any case.
        """
        log_on_kill(self.log, self.still_billed_message())


class KieTaskTrigger(KieTrigger):
    """Fire one event when a Kie task has ended, or the wait for it has failed.

    Airflow stores its arguments unencrypted in the database, so they name the connection and hold no secret.

    :param kie_conn_id: Airflow connection of type ``kie``.
    :param kie_task_id: the Kie task. Not ``task_id``: Airflow sets that attribute to the id of its own task.
    :param poll_interval: seconds between two polls; grows to 15 after the first minute.
    :param deadline: epoch seconds of the last poll; None: wait forever.
    :param callback: what is known of Kie's callback, see :class:`~kie_provider.client.polling.Waiting`.
    """

    def __init__(
        self,
        kie_conn_id: str,
        kie_task_id: str,
        poll_interval: float = DEFAULT_POLL_INTERVAL,
        deadline: float | None = None,
        callback: Callback | None = None,
    ) -> None:
        super().__init__()
        self.kie_conn_id = kie_conn_id
        self.kie_task_id = kie_task_id
        self.poll_interval = poll_interval
        self.deadline = deadline
        self.callback = callback

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return class path and arguments; every release must be able to read those of earlier ones."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "kie_conn_id": self.kie_conn_id,
                "kie_task_id": self.kie_task_id,
                "poll_interval": self.poll_interval,
                "deadline": self.deadline,
                "callback": self.callback,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait for the task and fire its event."""
        # The HTTP session's lease ends inside: Airflow may never resume this generator after the yield.
        yield TriggerEvent(await self._wait())

    def still_billed_message(self) -> str:
        """Say what it means to stop waiting."""
        return still_billed_message(self.kie_task_id)

    async def _wait(self) -> SuccessEvent | ErrorEvent:
        await self.delay_first_poll()
        hook = KieHook(self.kie_conn_id)
        try:
            record = await hook.await_task(
                self.kie_task_id, poll_interval=self.poll_interval, deadline=self.deadline, callback=self.callback
            )
        except KieError as error:
            return error_event(error)
        if self.callback == "expected" and _ended_before(record, LATE_CALLBACK_SECONDS):
            self.log.warning(
                "Kie task %s has ended, and no callback to %s came: a poll found out, later than need be. "
                "docs/callbacks.md says what to check",
                self.kie_task_id,
                await hook.callback_base_url(),
            )
        return success_event(record)

    async def on_kill(self) -> None:
        """Log that the Kie task keeps running, unless a callback has woken the Airflow task."""
        if self.callback is None or not await self._is_resumed():
            await super().on_kill()

    async def _is_resumed(self) -> bool:
        """Whether the Airflow task was resumed; False also if Airflow does not tell in time."""
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

        ti: Any = self.task_instance
        try:
            states = await asyncio.wait_for(
                asyncio.to_thread(
                    RuntimeTaskInstance.get_task_states,
                    dag_id=ti.dag_id,
                    task_ids=[ti.task_id],
                    run_ids=[ti.run_id],
                    map_index=ti.map_index,
                ),
                STATE_SECONDS,
            )
        except Exception:  # noqa: BLE001  # the message is true in any case
            return False
        return any(state in RESUMED for by_task in states.values() for state in by_task.values())


def is_call(event: object) -> bool:
    """Whether an event says that Kie has called back. It says no more: the worker polls the task."""
    return isinstance(event, Mapping) and event.get("status") == "called"


def _ended_before(record: TaskRecord, seconds: float) -> bool:
    """Whether a task ended more than this many seconds ago."""
    return record.completed_at is not None and time.time() - record.completed_at.timestamp() > seconds


def success_event(record: TaskRecord) -> SuccessEvent:
    """Return the event of a successful task."""
    return {"status": "success", "result": record.to_result()}


def error_event(error: KieError) -> ErrorEvent:
    """Return the event of a wait that ended with an error."""
    return {"status": "error", "error": error.to_dict()}


def read_event(event: object, kie_task_id: str) -> ResultDict:
    """Return the result dict of an event that says that ``kie_task_id`` succeeded.

    Only the two forms above are accepted: anything else is an error, never a success.

    :raises KieError: the event carries this error, or is invalid.
    """
    if isinstance(event, Mapping):
        result, error = event.get("result"), event.get("error")
        if event.get("status") == "success" and _is_result(result, kie_task_id):
            return result
        if event.get("status") == "error" and _is_error(error, kie_task_id):
            try:
                raise error_from_dict(error)
            except ValueError:
                pass
    raise KieError(f"the trigger sent an event that is not one of ours: {event!r:.200}", kie_task_id=kie_task_id)


def _is_error(error: object, kie_task_id: str) -> TypeGuard[Mapping[str, object]]:
    return isinstance(error, Mapping) and error.get("kie_task_id") in (None, kie_task_id)


def _is_result(result: object, kie_task_id: str) -> TypeGuard[ResultDict]:
    return (
        isinstance(result, dict)
        and result.get("kie_task_id") == kie_task_id
        and result.get("state") == "success"
        and isinstance(result.get("urls"), list)
        and bool(result["urls"] or result.get("result") is not None)
    )
