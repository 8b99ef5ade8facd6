"""Where facts are stored: in Airflow's task state store, or in XComs of the try if Airflow has none.

Airflow's API server can be away for a while, so reads and writes are repeated.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from kie_provider.compat import task_state_store
from kie_provider.execution_timeout import held

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from kie_provider.execution_timeout import Alarm

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Attempts at a read, or at writing an intent; Airflow's client itself retries each for about 15 seconds.
ATTEMPTS = 3
#: Seconds between attempts to record an answer: from the first, doubled each time, up to the second.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 10.0


class Store(Protocol):
    """Stores JSON under keys. It calls Airflow, so only the main thread may use it."""

    is_durable: bool

    def get(self, key: str) -> object:
        """Return a value; None: there is none."""

    def set(self, key: str, value: object) -> None:
        """Write a value."""


def open_store(context: Context) -> Store:
    """Return the store of the running task instance."""
    store = task_state_store(context)
    if store is not None:
        return _TaskStateStore(store)
    ti = context.get("ti")
    return _Memory() if ti is None else _TryXComs(ti)


def is_replaced(error: Exception) -> bool:
    """Whether Airflow says that this try no longer exists: HTTP 404 from its execution API."""
    detail = getattr(getattr(error, "error", None), "detail", None)
    return isinstance(detail, Mapping) and detail.get("status_code") == 404


def retrying(call: Callable[[], T], stopping: threading.Event) -> T:
    """Call Airflow, and retry if that may help. ``execution_timeout`` takes effect only between attempts.

    :param stopping: is set when the process is about to be killed.
    """
    attempt, pause = 1, FIRST_PAUSE
    while True:
        try:
            with held():
                return call()
        except Exception as error:
            if attempt >= ATTEMPTS or is_replaced(error):
                raise
            log.warning("Airflow did not answer (%s); retrying", error)
        if stopping.wait(pause):
            raise InterruptedError("the task is being killed")
        attempt, pause = attempt + 1, 2 * pause


def write_until_acknowledged(
    store: Store, key: str, value: object, what: str, alarm: Alarm, stopping: threading.Event
) -> bool:
    """Write a value; False: the process must end before it could be written.

    Airflow itself ends a try that has had no API server for about a minute, so there is no other limit here.

    :param what: the value in words, for the log.
    :param alarm: of ``execution_timeout``, which is held meanwhile.
    :param stopping: is set when the process is about to be killed.
    :raises Exception: Airflow says that this try no longer exists.
    """
    pause, is_last = FIRST_PAUSE, False
    while True:
        try:
            store.set(key, value)
        except Exception as error:
            if is_replaced(error):
                raise
            log.warning("Airflow could not store %s (%s)", what, error)
        else:
            return True
        if is_last or stopping.wait(pause):
            return False
        is_last = alarm.has_rung
        pause = min(2 * pause, LONGEST_PAUSE)


class _TaskStateStore:
    """Airflow's own store (3.3 and later). It outlives tries, deferrals and clears, and is deleted with the DAG run."""

    is_durable = True

    def __init__(self, store: Any) -> None:
        self._store = store

    def get(self, key: str) -> object:
        return self._store.get(key)

    def set(self, key: str, value: object) -> None:
        self._store.set(key, value, retention=timedelta.max)  # Airflow's NEVER_EXPIRE is this very object


class _TryXComs:
    """This try's XComs: they survive deferrals, and Airflow deletes them when the next try begins."""

    is_durable = False

    def __init__(self, ti: Any) -> None:
        self._ti = ti

    def get(self, key: str) -> object:
        return self._ti.xcom_pull(task_ids=self._ti.task_id, map_indexes=self._ti.map_index, key=key)

    def set(self, key: str, value: object) -> None:
        self._ti.xcom_push(key, value)


class _Memory:
    """Memory: a DAG author's unit test calls ``execute`` without a task instance."""

    is_durable = False

    def __init__(self) -> None:
        self._values: dict[str, object] = {}

    def get(self, key: str) -> object:
        return self._values.get(key)

    def set(self, key: str, value: object) -> None:
        self._values[key] = value
