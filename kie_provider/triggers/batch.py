"""The trigger that waits for many Kie tasks at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal, TypedDict

from airflow.triggers.base import TriggerEvent

from kie_provider.client.errors import ErrorDict, KieError, KieServerError, error_from_dict
from kie_provider.client.plain import counted
from kie_provider.failures import tasks_still_billed_message
from kie_provider.hooks.kie import DEFAULT_POLL_INTERVAL, KieHook
from kie_provider.triggers.kie import KieTrigger

#: Number of polls of a batch under way at a time.
PARALLEL_POLLS = 10
#: The trigger fires when this share of the tasks has ended, but not before this many seconds.
RESUME_SHARE = 0.25
RESUME_SECONDS = 60.0


class EndedEvent(TypedDict):
    """Some Kie tasks have ended; others may still be running."""

    status: Literal["ended"]
    ended: int
    running: int
    #: Of the first wait that ended with one.
    error: ErrorDict | None


class KieBatchTrigger(KieTrigger):
    """Fire one event when all Kie tasks have ended, or a quarter of them after a minute.

    The event says how many have ended; the worker polls them itself.

    :param kie_conn_id: Airflow connection of type ``kie``.
    :param kie_task_ids: the Kie tasks.
    :param poll_interval: seconds between two polls of a task; grows to 15 after the first minute.
    :param deadline: epoch seconds of the last poll; None: wait forever.
    """

    def __init__(
        self,
        kie_conn_id: str,
        kie_task_ids: Sequence[str],
        poll_interval: float = DEFAULT_POLL_INTERVAL,
        deadline: float | None = None,
    ) -> None:
        super().__init__()
        self.kie_conn_id = kie_conn_id
        self.kie_task_ids = list(kie_task_ids)
        self.poll_interval = poll_interval
        self.deadline = deadline

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return class path and arguments; every release must be able to read those of earlier ones."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "kie_conn_id": self.kie_conn_id,
                "kie_task_ids": self.kie_task_ids,
                "poll_interval": self.poll_interval,
                "deadline": self.deadline,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait for the tasks and fire the event."""
        yield TriggerEvent(await self._watch())

    def still_billed_message(self) -> str:
        """Say what it means to stop waiting."""
        return tasks_still_billed_message(len(self.kie_task_ids))

    async def _watch(self) -> EndedEvent:
        gate = asyncio.Semaphore(PARALLEL_POLLS)
        started_at = time.monotonic()
        await self.delay_first_poll()
        waits = [asyncio.ensure_future(self._wait(kie_task_id, gate)) for kie_task_id in self.kie_task_ids]
        running = set(waits)
        try:
            while running and not should_resume(len(waits) - len(running), len(waits), time.monotonic() - started_at):
                remaining = started_at + RESUME_SECONDS - time.monotonic()
                _, running = await asyncio.wait(
                    running, timeout=remaining if remaining > 0 else None, return_when=asyncio.FIRST_COMPLETED
                )
            errors = [error for wait in waits if wait.done() and (error := wait.result()) is not None]
        finally:
            for wait in running:
                wait.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        self.log.info("Ended: %d of %s", len(waits) - len(running), counted(len(waits), "Kie task"))
        return ended_event(len(waits) - len(running), len(running), errors)

    async def _wait(self, kie_task_id: str, gate: asyncio.Semaphore) -> KieError | None:
        """Wait for one task; return the error if the wait ended with one."""
        try:
            await KieHook(self.kie_conn_id).await_task(
                kie_task_id, poll_interval=self.poll_interval, deadline=self.deadline, gate=gate
            )
        except KieError as error:
            return error
        return None


def should_resume(ended: int, total: int, seconds: float) -> bool:
    """Whether the worker should resume for what has ended. Pure.

    :param seconds: how long the trigger has waited.
    """
    return ended == total or (seconds >= RESUME_SECONDS and ended >= total * RESUME_SHARE)


def ended_event(ended: int, running: int, errors: Sequence[KieError]) -> EndedEvent:
    """Return the event: the number of tasks that have ended and that have not, and the first error."""
    return {
        "status": "ended",
        "ended": ended,
        "running": running,
        "error": errors[0].to_dict() if errors else None,
    }


def read_error(event: object) -> KieError:
    """Return the error of an event, in case the worker finds that nothing has ended."""
    error = event.get("error") if isinstance(event, Mapping) else None
    if isinstance(error, Mapping):
        try:
            return error_from_dict(error)
        except ValueError:
            pass
    return KieServerError(f"the trigger came back, but no Kie task of the batch has ended: {event!r:.200}")
