"""Where facts are stored: in Airflow's task state store, or in XComs of the try if Airflow has none."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

from kie_provider.compat import task_state_store

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class Store(Protocol):
    """Stores JSON under keys. It calls Airflow, so only the main thread may use it."""

    is_durable: bool

    def get(self, key: str) -> Any:
        """Return a value; None: there is none."""

    def set(self, key: str, value: Any) -> None:
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


class _TaskStateStore:
    """Airflow's own store (3.3 and later). It outlives tries, deferrals and clears, and is deleted with the DAG run."""

    is_durable = True

    def __init__(self, store: Any) -> None:
        self._store = store

    def get(self, key: str) -> Any:
        return self._store.get(key)

    def set(self, key: str, value: Any) -> None:
        self._store.set(key, value, retention=timedelta.max)  # Airflow's NEVER_EXPIRE is this very object


class _TryXComs:
    """This try's XComs: they survive deferrals, and Airflow deletes them when the next try begins."""

    is_durable = False

    def __init__(self, ti: Any) -> None:
        self._ti = ti

    def get(self, key: str) -> Any:
        return self._ti.xcom_pull(task_ids=self._ti.task_id, map_indexes=self._ti.map_index, key=key)

    def set(self, key: str, value: Any) -> None:
        self._ti.xcom_push(key, value)


class _Memory:
    """Memory: a DAG author's unit test calls ``execute`` without a task instance."""

    is_durable = False

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def get(self, key: str) -> Any:
        return self._values.get(key)

    def set(self, key: str, value: Any) -> None:
        self._values[key] = value
