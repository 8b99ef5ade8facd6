"""Kie calls back at a moment when Airflow cannot yet take it: the scheduler does not know that the worker has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kie_provider.emulator import KieEmulator
from tests.support.early_callbacks import EarlyCaller, add_connection

if TYPE_CHECKING:
    from tests.support.airflow_stack import AirflowStack

pytestmark = pytest.mark.e2e

DAG_ID, RUNS, MAPPED = "called_back", 2, 20


@pytest.mark.timeout(300)
def test_a_callback_in_the_second_of_the_deferral_fails_no_task(airflow_stack: AirflowStack) -> None:
    # A key of its own: it stands in the connection that the test adds to the database of all tests here.
    with KieEmulator(api_key="key-of-callbacks", generating_seconds=2.0) as kie:
        add_connection(airflow_stack, kie, "kie_early", callback_base_url=airflow_stack.url)
        caller = EarlyCaller(airflow_stack, kie, DAG_ID)
        with caller.calling():
            runs = [airflow_stack.trigger_dag(DAG_ID, {"conn_id": "kie_early"}) for _ in range(RUNS)]
            states = [airflow_stack.wait_for_run(DAG_ID, run_id, 240) for run_id in runs]
        tasks = [task for run_id in runs for task in airflow_stack.task_instances(DAG_ID, run_id)]

    assert states == ["success"] * RUNS
    assert [task["try_number"] for task in tasks] == [1] * RUNS * MAPPED
    assert len([seconds for seconds in caller.called if seconds < 1]) > RUNS * MAPPED / 2  # the others: a busy machine
    assert set(caller.answers) == {200}
