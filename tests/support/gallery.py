"""Runs with images of all kinds, made by real DAGs, and a real API server that shows them."""

from __future__ import annotations

import contextlib
import json
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kie_provider.links import IMAGES_XCOM_KEY
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
#: Images of one run, and of one batch; both are two months old.
MANY, LARGE = 5000, 1000
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


@contextlib.contextmanager
def serve_gallery(kie: KieEmulator, folder: Path, airflow_folder: Path) -> Iterator[Gallery]:
    """Run the DAGs, with images in ``folder``, and serve what they have left in Airflow's database."""
    initialise_database()
    _forget_other_tests()
    kie.reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_KIE_DEFAULT", json.dumps(kie.connection))
        patch.setattr("kie_provider.parameters.SHORTEST_POLL_INTERVAL", 0.01)
        many = {"many": _many(folder), "large batch": _large_batch(folder)}
        made = {"mapped": _mapped(kie, folder), "pipeline": _pipeline(folder), "batch": _batch(kie, folder)}
    with image_site.serve(airflow_folder) as site:
        yield Gallery(
            site,
            folder,
            {**many, **{name: run for name, (run, _) in made.items()}},
            {name: {key: outcome.result for key, outcome in outcomes.items()} for name, (_, outcomes) in made.items()},
        )


def _forget_other_tests():
    """Let what other tests of this process have made be older than any page shows."""
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session

    with create_session() as session:
        then = datetime.now(timezone.utc) - timedelta(days=400)
        session.query(XComModel).filter_by(key=IMAGES_XCOM_KEY).update({"timestamp": then})


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


def _many(folder):
    """Make one image, and 4,999 more of it in the database, two months ago."""
    with new_dag() as dag:
        Flux2GenerateImageOperator.partial(task_id="image", target=str(folder / "many"), poll_interval=0.05).expand(
            prompt=["image number 0"]
        )
    run, _ = _run(dag)
    _change_rows(run, copies=range(1, MANY))
    return run


def _large_batch(folder):
    with new_dag() as dag:
        Flux2BatchOperator(task_id="batch", prompts=["item number 0"], target=str(folder / "large"), poll_interval=0.05)
    run, outcomes = _run(dag)
    _change_rows(run)
    manifest = Path(outcomes["batch", -1].result["manifest"])
    told = json.loads(manifest.read_text())
    [item] = told["items"]
    told["items"] = [
        item | {"item": n, "kie_task_id": f"{n:032x}", "input": {**item["input"], "prompt": f"item number {n}"}}
        for n in range(LARGE)
    ]
    manifest.write_text(json.dumps(told, indent=1))
    return run


def _change_rows(run, copies=()):
    """Copy the first task instance of a run with all that belongs to it, and let that be old."""
    from airflow.models.renderedtifields import RenderedTaskInstanceFields
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import insert, select, update

    dag_id, run_id = run
    then = datetime.now(timezone.utc) - timedelta(days=60)
    with create_session() as session:
        for table in (TaskInstance.__table__, XComModel.__table__, RenderedTaskInstanceFields.__table__):
            where = (table.c.dag_id == dag_id) & (table.c.run_id == run_id)
            if table is XComModel.__table__:
                session.execute(update(table).where(where).values(timestamp=then))
            rows = [dict(row) for row in session.execute(select(table).where(where)).mappings()]
            clones = [_clone(row, index) for index in copies for row in rows]
            if clones:
                session.execute(insert(table), clones)


def _clone(row, index):
    clone = {**row, "map_index": index}
    if "pid" in row:
        clone["id"] = uuid.uuid4() if isinstance(row["id"], uuid.UUID) else str(uuid.uuid4())
    elif row.get("key") == "return_value":
        value = json.loads(json.dumps(row["value"]))
        value["input"]["prompt"] = f"image number {index}"
        clone["value"] = {**value, "kie_task_id": f"{index:032x}"}
    elif row.get("key") == "kie_task_id":
        clone["value"] = f"{index:032x}"
    return clone
