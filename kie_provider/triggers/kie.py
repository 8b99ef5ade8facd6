"""The trigger that waits for a Kie task in the triggerer, and the event it ends with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from kie_provider.client.errors import KieError, error_from_dict
from kie_provider.hooks.kie import DEFAULT_POLL_INTERVAL, KieHook
from kie_provider.last_words import goes_on, log_last_words

if TYPE_CHECKING:
    from kie_provider.client.records import TaskRecord


#: No trigger fires earlier than so many seconds after it began to run. Airflow's scheduler learns of the end of the
#: worker's process some time after the triggerer can begin; if the trigger has fired by then, the task is queued once
#: more, and the scheduler takes the old end for that of the new process and marks the task failed. Tests lower it.
FIRST_LOOK_AFTER = 3.0


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
    """

    def __init__(
        self,
        kie_conn_id: str,
        kie_task_id: str,
        poll_interval: float = DEFAULT_POLL_INTERVAL,
        deadline: float | None = None,
    ) -> None:
        super().__init__()
        self.kie_conn_id = kie_conn_id
        self.kie_task_id = kie_task_id
        self.poll_interval = poll_interval
        self.deadline = deadline

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return class path and arguments; every release must be able to read those of the ones before."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "kie_conn_id": self.kie_conn_id,
                "kie_task_id": self.kie_task_id,
                "poll_interval": self.poll_interval,
                "deadline": self.deadline,
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
        try:
            record = await KieHook(self.kie_conn_id).await_task(
                self.kie_task_id, poll_interval=self.poll_interval, deadline=self.deadline
            )
        except KieError as error:
            return error_event(error)
        return success_event(record)


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
