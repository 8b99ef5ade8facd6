"""Airflow's ``execution_timeout``, held back where it must not cut in."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Alarm:
    """The alarm of ``execution_timeout``, as a block that holds it back sees it.

    :param on_ring: called by the signal handler.
    """

    def __init__(self) -> None:
        self.has_rung = False
        self.on_ring: Callable[[], object] | None = None

    def ring(self, _number: int, _frame: object) -> None:
        """Handle the signal."""
        self.has_rung = True
        if self.on_ring is not None:
            self.on_ring()


@contextlib.contextmanager
def held() -> Iterator[Alarm]:
    """Hold back ``execution_timeout`` until the end of the block, which can see whether it has rung.

    Two things must not be cut in half: createTask with the writing down of its answer, and any call to Airflow. The
    answer to a call that was cut stays in the channel to the supervisor, and from then on every call gets the answer
    of the one before (seen with Airflow 3.3.2).

    The handler is replaced rather than the signal blocked: a signal that only this thread blocks is handed to another
    one, and Python handles it here all the same.
    """
    alarm = Alarm()
    if threading.current_thread() is not threading.main_thread():  # no handler ever runs here
        yield alarm
        return

    previous = signal.signal(signal.SIGALRM, alarm.ring)
    try:
        yield alarm
    finally:
        signal.signal(signal.SIGALRM, previous)
    if alarm.has_rung:
        signal.raise_signal(signal.SIGALRM)


def run(work: Callable[[Alarm], Coroutine[object, object, T]]) -> T:
    """Run a coroutine in this thread until it has ended; ``execution_timeout`` cancels it.

    Raised in the middle of an event loop, the time-out could be swallowed by whatever callback it hits. So it is held
    back, the coroutine is cancelled, and may finish what must not be cut.

    :param work: makes the coroutine.
    """
    if _is_in_event_loop():  # of an author's async function, which has chosen to wait here
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(lambda: run(work)).result()
    with held() as alarm:

        async def main() -> T:
            loop, task = asyncio.get_running_loop(), asyncio.current_task()
            assert task is not None  # noqa: S101
            alarm.on_ring = lambda: loop.call_soon_threadsafe(task.cancel)
            if alarm.has_rung:
                task.cancel()
            try:
                return await work(alarm)
            finally:
                alarm.on_ring = None

        try:
            return asyncio.run(main())
        except asyncio.CancelledError:
            if not alarm.has_rung:
                raise
    raise AssertionError("the handler of SIGALRM did not end the task")


def _is_in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
