# ruff: noqa: ANN001, ANN201, ARG001, D103, INP001, S101
"""Test a DAG against the emulator: its bill shows what Kie would have charged."""

import runpy

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException


@pytest.fixture
def dag(kie_connection):
    """Load the DAG; use your own file here."""
    return runpy.run_path("dags/flux2_single_image.py")["create"].dag


def test_one_image_is_paid(dag, kie_emulator, tmp_path):
    run = dag.test(run_conf={"output_dir": str(tmp_path)})

    assert run.state == "success"
    assert kie_emulator.bill()["charged_total"] == 5
    assert len(list(tmp_path.rglob("*.png"))) == 1


def test_a_lost_answer_is_not_sent_again(dag, kie_emulator):
    kie_emulator.fault({"on": "createTask", "do": "lost_answer"})

    with pytest.raises(AirflowFailException, match="not known whether"):
        dag.get_task("create").execute({})

    assert len(kie_emulator.bill()["tasks"]) == 1
