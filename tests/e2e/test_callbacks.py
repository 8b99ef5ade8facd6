"""Kie calls back at a moment when Airflow cannot yet take it: the scheduler does not know that the worker has ended."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kie_provider.emulator import KieEmulator
from tests.support.airflow_stack import AirflowStack
from tests.support.early_callbacks import EarlyCaller, add_connection
from tests.support.postgres import postgres_if_installed

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

DAG_ID, RUNS, MAPPED = "called_back", 2, 20


@pytest.fixture(scope="module")
def stack() -> Iterator[AirflowStack]:
    """An Airflow without anything that runs beside these tests."""
    dags = Path(__file__).parent / "dags"
    with postgres_if_installed() as database, AirflowStack(dags, database=database) as stack:
        yield stack


@pytest.mark.timeout(300)
def test_a_callback_in_the_second_of_the_deferral_fails_no_task(stack: AirflowStack) -> None:
    with KieEmulator(generating_seconds=2.0) as kie:
        add_connection(stack, kie, "kie_early", callback_base_url=stack.url)
        caller = EarlyCaller(stack, kie, DAG_ID)
        with caller.calling():
            runs = [stack.trigger_dag(DAG_ID, {"conn_id": "kie_early"}) for _ in range(RUNS)]
            states = [stack.wait_for_run(DAG_ID, run_id, 240) for run_id in runs]
        tasks = [task for run_id in runs for task in stack.task_instances(DAG_ID, run_id)]

    assert states == ["success"] * RUNS
    assert [task["try_number"] for task in tasks] == [1] * RUNS * MAPPED
    assert len([seconds for seconds in caller.called if seconds < 1]) > RUNS * MAPPED / 2  # the others: a busy machine
    assert set(caller.answers) == {200}
