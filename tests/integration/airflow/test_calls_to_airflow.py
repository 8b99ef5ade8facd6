"""Calls to Airflow: only the main thread makes them, and no execution_timeout cuts one in half."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest

from kie_provider.operators.batch import Flux2BatchOperator
from kie_provider.operators.flux2 import Flux2GenerateImageOperator
from kie_provider.operators.results import KieSaveResultOperator
from tests.support.airflow_inprocess import new_dag, run_dag, run_task
from tests.support.versions import durable


@pytest.fixture
def callers(monkeypatch):
    """The threads that have sent Airflow something."""
    from airflow.sdk.execution_time.supervisor import InProcessSupervisorComms

    send, threads = InProcessSupervisorComms.send, []

    def watched(self, msg):
        threads.append((threading.current_thread(), type(msg).__name__))
        return send(self, msg)

    monkeypatch.setattr(InProcessSupervisorComms, "send", watched)
    return threads


@pytest.fixture
def connection_in_the_database(kie_emulator, monkeypatch):
    """The connection where Airflow has to be asked for it."""
    from airflow.models import Connection
    from airflow.utils.session import create_session

    monkeypatch.delenv("AIRFLOW_CONN_KIE_DEFAULT")
    with create_session() as session:
        session.add(Connection(conn_id="kie_default", **kie_emulator.connection))
    yield
    with create_session() as session:
        session.query(Connection).filter_by(conn_id="kie_default").delete()


def test_while_images_are_made_and_saved(connection_in_the_database, callers, tmp_path):
    with new_dag() as dag:
        batch = Flux2BatchOperator(
            task_id="batch", prompts=[f"fox {n}" for n in range(6)], target=str(tmp_path), poll_interval=0.1
        )
        image = Flux2GenerateImageOperator(task_id="image", prompt="a hare", poll_interval=0.1)
        save = KieSaveResultOperator(task_id="save", result=image.output, target=str(tmp_path))
        batch >> image >> save
    outcomes = run_dag(dag)

    assert {task: outcome.state for (task, _), outcome in outcomes.items()} == dict.fromkeys(
        ("batch", "image", "save"), "success"
    )
    assert {"GetConnection", "GetXCom"} <= {message for _, message in callers}
    assert {thread for thread, _ in callers} == {threading.main_thread()}


@durable
@pytest.mark.parametrize(
    ("message", "number"), [("GetConnection", 0), ("GetTaskStateStore", 1), ("SetTaskStateStore", 1), ("SetXCom", 0)]
)
def test_the_alarm_goes_off_behind_a_call(message, number, connection_in_the_database, monkeypatch, kie_emulator):
    """Else the answer would stay in the channel, and every later call would get the answer to the one before."""
    from airflow.sdk.execution_time.supervisor import InProcessSupervisorComms

    send, begun, answered = InProcessSupervisorComms.send, [], []

    def slow(self, msg):
        begun.append(type(msg).__name__)
        if begun[-1] == message and begun.count(message) == number + 1:
            time.sleep(1.2)
        answer = send(self, msg)
        answered.append(begun[-1])
        return answer

    monkeypatch.setattr(InProcessSupervisorComms, "send", slow)
    outcome = run_task(
        lambda **kw: Flux2GenerateImageOperator(
            prompt="a hare", poll_interval=0.1, execution_timeout=timedelta(seconds=1), **kw
        )
    )

    assert type(outcome.error).__name__ == "AirflowTaskTimeout"
    assert begun == answered
    assert (outcome.state, outcome.tries, len(kie_emulator.bill()["tasks"])) == ("success", 2, 1)
