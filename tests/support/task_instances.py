"""A task instance and its state store without Airflow's database, and triggers run as the triggerer does."""

from __future__ import annotations

import json
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pendulum

if TYPE_CHECKING:
    from airflow.triggers.base import BaseTrigger


class FakeStore:
    """Keeps JSON, as Airflow's task state store does."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def get(self, key: str) -> Any:
        return json.loads(self.values[key]) if key in self.values else None

    def set(self, key: str, value: Any, *, retention: timedelta | None) -> None:
        self.values[key] = json.dumps(value)


class FakeTaskInstance:
    """What the package reads of a task instance: who it is, when it began, and its XComs, which keep JSON."""

    dag_id, run_id, task_id = "a_dag", "a_run", "it"

    def __init__(
        self,
        *,
        try_number: int = 1,
        max_tries: int = 1,
        map_index: int = -1,
        started_seconds_ago: float = 0.0,
        xcoms: dict[str, Any] | None = None,
    ) -> None:
        self.try_number, self.max_tries, self.map_index = try_number, max_tries, map_index
        self.start_date = pendulum.now("UTC").subtract(seconds=started_seconds_ago)
        self._xcoms = {key: json.dumps(value) for key, value in (xcoms or {}).items()}

    def xcom_push(self, key: str, value: Any) -> None:
        self._xcoms[key] = json.dumps(value)

    def xcom_pull(self, task_ids: str, map_indexes: int, key: str) -> Any:
        assert (task_ids, map_indexes) == (self.task_id, self.map_index)
        return json.loads(self._xcoms.get(key, "null"))


def context_of(ti: FakeTaskInstance, store: Any = None) -> dict[str, Any]:
    """Return the context of a task instance; without a store it is that of an Airflow before 3.3."""
    return {"ti": ti} | ({} if store is None else {"task_state_store": store})


def store_error(status: int | None) -> Exception:
    """Return what Airflow's store raises when the API server answers with this status, or not at all."""
    error = RuntimeError(f"API_SERVER_ERROR {status}")
    error.error = SimpleNamespace(detail={"status_code": status})  # type: ignore[attr-defined]
    return error


def as_in_the_triggerer(trigger: Any) -> Any:
    """Give a trigger its task instance."""
    trigger.task_instance = FakeTaskInstance()
    return trigger


async def fire(trigger: BaseTrigger) -> dict[str, Any]:
    """Run a trigger to its one event, and return what Airflow would store of that."""
    [event] = [event async for event in trigger.run()]
    return json.loads(json.dumps(event.payload))
