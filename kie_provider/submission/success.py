"""The last fact of a try: that Airflow has accepted its success."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from kie_provider.submission import facts
from kie_provider.submission.store import open_store

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

log = logging.getLogger(__name__)


def record_success(context: Context) -> None:
    """Write down that Airflow has accepted this task's success. A callback for ``on_success_callback``.

    Airflow calls it after it has tried to record the success, so it is asked for the state: had the task been marked
    otherwise meanwhile, the success would not count. Without this fact, clearing the task goes on with what was paid.
    """
    ti: Any = context["ti"]
    store = open_store(context)
    if not store.is_durable:
        return
    try:
        states = ti.get_task_states(
            dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=ti.map_index
        )
        if any("success" in by_task.values() for by_task in states.values()):
            store.set(facts.success_key(ti.try_number), facts.success_fact(ti.try_number))
            return
        problem: object = f"Airflow's state of the task is {states}"
    except Exception as error:  # noqa: BLE001
        problem = error
    log.warning("Not noted as a success: %s. Clearing this task would go on with the same Kie task.", problem)
