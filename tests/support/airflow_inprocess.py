"""Run DAGs with Airflow's own ``dag.test()``: real task runner, execution API and database, all in this process."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pendulum
from airflow.sdk import DAG

_dag_ids = itertools.count(1)


@functools.cache
def initialise_database() -> None:
    """Create Airflow's database in AIRFLOW_HOME, once in a process: it never closes two connections the second time."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.utils.db import initdb

    initdb()
    DagBundlesManager().sync_bundles_to_db()


@dataclass
class Outcome:
    """How one task instance ended."""

    state: str | None = None
    tries: int = 0
    result: Any = None
    #: What the tries that failed have raised, in order.
    errors: list[BaseException] = field(default_factory=list)
    #: How often Airflow retried it.
    retries: int = 0

    @property
    def error(self) -> BaseException | None:
        """What the first try that failed has raised."""
        return self.errors[0] if self.errors else None

    @property
    def retried(self) -> bool:
        """Whether Airflow retried it."""
        return self.retries > 0


def run_dag(
    dag: DAG,
    conf: dict[str, Any] | None = None,
    labels: dict[tuple[str, int], str] | None = None,
    **run: Any,
) -> dict[tuple[str, int], Outcome]:
    """Run ``dag`` once, with the run's ``conf``, and return every outcome by (task id, map index).

    :param labels: takes up what ``map_index_template`` was rendered to.
    :param run: what else ``dag.test()`` takes; the run has no logical date with ``logical_date=None``.
    """
    from airflow.sdk.execution_time.supervisor import run_task_in_process

    outcomes: dict[tuple[str, int], Outcome] = {}

    def watched(ti: Any, **kwargs: Any) -> Any:
        result = run_task_in_process(ti=ti, **kwargs)
        outcome = outcomes.setdefault((ti.task_id, ti.map_index), Outcome())
        outcome.errors += [result.error] if result.error else []
        outcome.retries += result.ti.state == "up_for_retry"
        return result

    _serialise(dag)
    with patch("airflow.sdk.execution_time.supervisor.run_task_in_process", watched):
        run = dag.test(run_conf=conf, **run)
    for ti in run.get_task_instances():
        outcome = outcomes.setdefault((ti.task_id, ti.map_index), Outcome())
        outcome.state, outcome.tries = ti.state, ti.try_number
        if labels is not None:
            labels[ti.task_id, ti.map_index] = ti.rendered_map_index
        outcome.result = ti.xcom_pull(task_ids=ti.task_id, map_indexes=ti.map_index)
    return outcomes


def run_task(make_task: Callable[..., Any], *, retries: int = 1, **dag_arguments: Any) -> Outcome:
    """Run a DAG of one task, made by ``make_task(task_id=..., retries=..., ...)``."""
    with new_dag(**dag_arguments) as dag:
        make_task(task_id="it", retries=retries, retry_delay=timedelta(0))
    return run_dag(dag)["it", -1]


def new_dag(**arguments: Any) -> DAG:
    """Return an empty DAG with a name of its own."""
    return DAG(f"test_{next(_dag_ids)}", schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC"), **arguments)


def load_dag(file: Path) -> DAG:
    """Load the one DAG of a file, as the DAG processor does."""
    bag, _ = _dag_bag()
    loaded = bag(dag_folder=str(file))
    assert not loaded.import_errors, loaded.import_errors
    [dag] = loaded.dags.values()
    return dag


def _serialise(dag: DAG) -> None:
    """Store the DAG as the DAG processor does; dag.test() only knows DAGs of the DAG folder."""
    dag_bag, sync_bag_to_db = _dag_bag()
    dag.fileloc = __file__
    bag = dag_bag(dag_folder=os.devnull)
    bag.bag_dag(dag)
    sync_bag_to_db(bag, "dags-folder", None)


def _dag_bag() -> tuple[Any, Any]:
    try:
        from airflow.dag_processing import dagbag
    except ImportError:  # Airflow 3.1
        from airflow.models import dagbag
    return dagbag.DagBag, dagbag.sync_bag_to_db
