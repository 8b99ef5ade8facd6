"""The trigger that waits for a Kie task in the triggerer, and the event it ends with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from kie_provider.client.errors import KieError, error_from_dict
from kie_provider.hooks.kie import DEFAULT_POLL_INTERVAL, KieHook
from kie_provider.last_words import goes_on, log_last_words

if TYPE_CHECKING:
    from kie_provider.client.polling import Callback
    from kie_provider.client.records import TaskRecord


#: No trigger fires earlier than so many seconds after it began to run. Airflow's scheduler learns of the end of the
#: worker's process some time after the triggerer can begin; if the trigger has fired by then, the task is queued once
#: more, and the scheduler takes the old end for that of the new process and marks the task failed. Tests lower it.
FIRST_LOOK_AFTER = 3.0
#: A callback that has not come so many seconds after the task has ended is missed.
LATE_CALLBACK_SECONDS = 15.0
#: States of a task that was woken; one that was marked, cleared or killed has others.
RESUMED = ("scheduled", "queued", "running", "success")
#: Airflow is given so many seconds to say which.
STATE_SECONDS = 3.0


class KieTrigger(BaseTrigger):
    """What triggers that wait for Kie tasks have in common."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def what_goes_on(self) -> str:
        """Say what it means to stop waiting."""
        raise NotImplementedError

    async def settle(self) -> None:
        """Wait until it is time for the first look."""
        await asyncio.sleep(FIRST_LOOK_AFTER)

    async def on_kill(self) -> None:
        """Say in the task's log that the Kie tasks go on. Called by Airflow 3.3 and later, which bounds its time.

        It comes when the task was cleared or marked, but also when another triggerer takes over. Which of these it is
        is not asked: the answer can take longer than Airflow waits, and what is said is true all the same.
        """
        log_last_words(self.log, self.what_goes_on())


class KieTaskTrigger(KieTrigger):
    """Fire one event when a Kie task has ended, or cannot be waited for.

    Its arguments are stored unencrypted in Airflow's database, so they name the connection and hold no secret.

    :param kie_conn_id: Airflow connection of type ``kie``.
    :param kie_task_id: the Kie task. Never ``task_id``: Airflow sets that attribute to its own task's.
    :param poll_interval: seconds between two looks; grows to 15 after the first minute.
    :param deadline: epoch seconds of the last look; None: wait for ever.
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
        """Return class path and arguments; every release must be able to read those of the ones before."""
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

    def what_goes_on(self) -> str:
        """Say what it means to stop waiting."""
        return goes_on(self.kie_task_id)

    async def _wait(self) -> dict[str, Any]:
        await self.settle()
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
        """Say in the task's log that the Kie task goes on, unless a callback has woken the Airflow task."""
        if self.callback is None or not await self._is_resumed():
            await super().on_kill()

    async def _is_resumed(self) -> bool:
        """Whether the Airflow task is not deferred any more and goes on; False: nobody can say so in time."""
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
        except Exception:  # noqa: BLE001  # whatever it is: what is said then is true all the same
            return False
        return any(state in RESUMED for by_task in states.values() for state in by_task.values())


def is_call(event: Any) -> bool:
    """Whether an event says that Kie has called back. It says nothing else: Kie is asked what came of the task."""
    return isinstance(event, Mapping) and event.get("status") == "called"


def _ended_before(record: TaskRecord, seconds: float) -> bool:
    """Whether a task has ended more than so many seconds ago."""
    return record.completed_at is not None and time.time() - record.completed_at.timestamp() > seconds


def success_event(record: TaskRecord) -> dict[str, Any]:
    """Return the event of a successful task."""
    return {"status": "success", "result": record.to_result()}


def error_event(error: KieError) -> dict[str, Any]:
    """Return the event of a wait that ended otherwise."""
    return {"status": "error", "error": error.to_dict()}


def read_event(event: Any, kie_task_id: str) -> dict[str, Any]:
    """Return the result dict of an event that says that ``kie_task_id`` succeeded.

    Only the two shapes above are believed: whatever else comes is an error, never a success.

    :raises KieError: the event carries this error, or is not one of ours.
    """
    if isinstance(event, Mapping):
        result, error = event.get("result"), event.get("error")
        if event.get("status") == "success" and _is_result(result, kie_task_id):
            return dict(result)  # type: ignore[arg-type]
        if event.get("status") == "error" and _is_error(error, kie_task_id):
            try:
                raise error_from_dict(error)  # type: ignore[arg-type]
            except ValueError:
                pass
    raise KieError(f"the trigger sent an event that is not one of ours: {event!r:.200}", kie_task_id=kie_task_id)


def _is_error(error: Any, kie_task_id: str) -> bool:
    return isinstance(error, Mapping) and error.get("kie_task_id") in (None, kie_task_id)


def _is_result(result: Any, kie_task_id: str) -> bool:
    return (
        isinstance(result, Mapping)
        and result.get("kie_task_id") == kie_task_id
        and result.get("state") == "success"
        and isinstance(result.get("urls"), list)
        and bool(result["urls"] or result.get("result") is not None)
    )
