"""Airflow's ``execution_timeout``, held back where it must not cut in."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


class Alarm:
    """The alarm of ``execution_timeout``, as a block that holds it back sees it."""

    def __init__(self) -> None:
        self.has_rung = False


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

    def ring(_number: int, _frame: object) -> None:
        alarm.has_rung = True

    previous = signal.signal(signal.SIGALRM, ring)
    try:
        yield alarm
    finally:
        signal.signal(signal.SIGALRM, previous)
    if alarm.has_rung:
        signal.raise_signal(signal.SIGALRM)
