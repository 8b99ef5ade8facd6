from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kie_provider.submission import journal as journals


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch):
    for name in ("FIRST_PAUSE", "LONGEST_PAUSE", "LATE_PAUSE"):
        monkeypatch.setattr(journals, name, 0.0)


def context(store: Any, try_number: int = 1, max_tries: int = 1) -> dict[str, Any]:
    """Return what a worker knows of its task instance."""
    ti = SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=-1, try_number=try_number, max_tries=max_tries)
    return {"ti": ti, "task_state_store": store}


def airflow_error(status: int | None) -> Exception:
    """Return what Airflow raises when its API answers with this status, or not at all."""
    error = RuntimeError(f"API_SERVER_ERROR {status}")
    error.error = SimpleNamespace(detail={"status_code": status})  # type: ignore[attr-defined]
    return error
