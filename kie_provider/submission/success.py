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
    """Record that Airflow has accepted this task's success. For ``on_success_callback``.

    Airflow calls it after its attempt to set the state, so this asks for the state: if somebody has marked the task
    meanwhile, the success does not count. Without this fact, a cleared task continues with what was paid for.
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
    log.warning(
        "The success could not be recorded: %s. If cleared, this task would continue with the same Kie task.", problem
    )
