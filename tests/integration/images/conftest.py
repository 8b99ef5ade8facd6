"""Runs with images of all kinds, made by real DAGs, and a real API server that shows them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kie_provider.operators.batch import Flux2BatchOperator
from kie_provider.operators.contact_sheet import KieContactSheetOperator
from kie_provider.operators.flux2 import Flux2CreateTaskOperator, Flux2GenerateImageOperator
from kie_provider.operators.results import KieSaveResultOperator
from kie_provider.sensors.flux2 import Flux2TaskSensor
from tests.support import image_site
from tests.support.airflow_inprocess import initialise_database, new_dag, run_dag

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kie_provider.emulator import KieEmulator
    from tests.support.image_site import Site

EVIL = "</p><script>document.title='evil'</script><img src=x onerror=\"document.title='evil'\"> \u202e &amp;"
REFUSED = "a prompt that Kie refuses"
FAILS = {"on": "createTask", "do": "fail", "failMsg": "not <b>nice</b> enough", "match": {"prompt": REFUSED}}


@dataclass
class Gallery:
    """What there is to see.

    :param runs: DAG id and run id of each run, by name.
    :param results: what its task instances have returned, by task id and map index.
    """

    site: Site
    folder: Path
    runs: dict[str, tuple[str, str]] = field(default_factory=dict)
    results: dict[str, dict[tuple[str, int], Any]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def gallery(kie_emulator_server: KieEmulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gallery]:
    initialise_database()
    kie, folder = kie_emulator_server, tmp_path_factory.mktemp("images")
    kie.reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_KIE_DEFAULT", json.dumps(kie.connection))
        patch.setattr("kie_provider.parameters.SHORTEST_POLL_INTERVAL", 0.01)
        made = {"mapped": _mapped(kie, folder), "pipeline": _pipeline(folder), "batch": _batch(kie, folder)}
    with image_site.serve(tmp_path_factory.mktemp("airflow")) as site:
        yield Gallery(
            site,
            folder,
            {name: run for name, (run, _) in made.items()},
            {name: {key: outcome.result for key, outcome in outcomes.items()} for name, (_, outcomes) in made.items()},
        )


def _run(dag):
    from airflow.models import DagRun
    from airflow.utils.session import create_session

    outcomes = run_dag(dag)
    with create_session() as session:
        run_id = session.query(DagRun).filter_by(dag_id=dag.dag_id).one().run_id
    return (dag.dag_id, run_id), outcomes


def _mapped(kie, folder):
    kie.fault(FAILS)
    with new_dag() as dag:
        images = Flux2GenerateImageOperator.partial(
            task_id="image", target=str(folder / "mapped"), aspect_ratio="4:3", poll_interval=0.05
        ).expand(prompt=["a red fox", EVIL, REFUSED, "ein Füchschen im Schnee"])
        KieContactSheetOperator(
            task_id="sheet", results=images.output, target=str(folder / "mapped"), trigger_rule="all_done"
        )
    return _run(dag)


def _pipeline(folder):
    with new_dag() as dag:
        create = Flux2CreateTaskOperator(task_id="create", prompt="a night market")
        wait = Flux2TaskSensor(task_id="wait", kie_task_id=create.output, poke_interval=0.05)
        KieSaveResultOperator(task_id="save", result=wait.output, target=str(folder / "pipeline"))
        unsaved = Flux2GenerateImageOperator(task_id="unsaved", prompt="a lamp at dawn", poll_interval=0.05)
        wait >> unsaved
    return _run(dag)


def _batch(kie, folder):
    kie.fault(FAILS)
    with new_dag() as dag:
        Flux2BatchOperator(
            task_id="batch",
            prompts=["one teapot", "two teapots", REFUSED],
            target=str(folder / "batch"),
            poll_interval=0.05,
            min_success=0.5,
        )
    return _run(dag)
