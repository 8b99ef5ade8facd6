"""The whole way in a real Airflow: what an image costs in worker time, task instances and waiting."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from kie_provider.emulator import KieEmulator
from tests.bench.report import Report
from tests.bench.slots import SlotBook
from tests.support.airflow_rest import FINAL_RUN_STATES
from tests.support.airflow_stack import AirflowStack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.airflow_stack import TaskInstances

DAGS = Path(__file__).parent / "dags"
#: Name in the table -> file in ``dags``, which has a DAG for each number of images.
WAYS = {
    "PythonOperator, requests and sleep(3)": "hand_written",
    "HttpOperator, HttpSensor": "http_operators",
    "Flux2CreateTaskOperator, Flux2TaskSensor": "create_and_wait",
    "Flux2GenerateImageOperator": "generate",
    "Flux2BatchOperator, with files": "batch",
}
WARM_UP = "generate"  # Airflow's first run is slower than all others
GENERATING_SECONDS = 10.0
PARALLELISM = 8
RUN_SECONDS = 240.0  # a run that takes longer is measured as far as it came
CLEAN_UP_SECONDS = 60.0

METHOD = """\
From prompts to links, in a real Airflow {version}: API server, scheduler, triggerer and at most {parallelism} tasks at
a time (LocalExecutor, SQLite), all on this machine, with an emulated Kie.ai that takes {generating:g} s for an image
and 20 new tasks in any 10 s. Each prompt is a mapped task; all have 5 retries after 10 s. *Worker s / image* is
how long task instances were `running`, every try, before and after a deferral, summed up and divided by the images; a
trigger in the metadata database notes every change. *Instances* are task instances, *starts* how often one began to
run. *Billed* are the tasks that Kie is paid for, *refused* createTasks answered with 429, *failed* task instances. A
run is cut after {limit:g} s. The HttpSensor has `deferrable=True` and holds its worker all the same: Kie's state must
be read from the answer, and with a `response_check` that sensor does not defer. The batch operator is one task instance
for all prompts, and saves the images too; all others end with their links."""


@dataclass(frozen=True)
class Outcome:
    """One run.

    :param ended: False: it was cut.
    :param wall_seconds: from the request for the run to its end.
    :param links: images for which all task instances have succeeded.
    """

    ended: bool
    wall_seconds: float
    slot_seconds: float
    starts: int
    instances: int
    links: int
    failed: int
    billed: int
    refused: int


def run(quick: bool) -> Report:
    """Run every way with one image and with more."""
    report = Report(
        "pipeline",
        "Pipeline: from prompts to links in a real Airflow",
        "",
        ("", "links", "wall s", "worker s / image", "instances", "starts", "billed", "refused", "failed"),
        packages=("apache-airflow", "apache-airflow-providers-http"),
    )
    with (
        tempfile.TemporaryDirectory(prefix="kie-bench-") as target,
        KieEmulator(generating_seconds=GENERATING_SECONDS) as kie,
        airflow(kie, Path(target)) as stack,
    ):
        book = SlotBook(stack.database)
        one_run(stack, book, kie, WARM_UP, 1)
        for images in (1, 3) if quick else (1, 10, 100):
            for name, way in WAYS.items():
                report.rows.append([f"{name}, {images}", *cells(one_run(stack, book, kie, way, images), images)])
                print("  ".join(report.rows[-1]), flush=True)
        version = stack.api("GET", "/version")["version"]
    report.method = METHOD.format(
        version=version, parallelism=PARALLELISM, generating=GENERATING_SECONDS, limit=RUN_SECONDS
    )
    return report


def cells(outcome: Outcome, images: int) -> list[str]:
    """Return a row of the table."""
    cut = "" if outcome.ended else " (cut)"
    return [
        f"{outcome.links} of {images}{cut}",
        f"{outcome.wall_seconds:.0f}",
        f"{outcome.slot_seconds / images:.1f}",
        *map(str, (outcome.instances, outcome.starts, outcome.billed, outcome.refused, outcome.failed)),
    ]


@contextlib.contextmanager
def airflow(kie: KieEmulator, target: Path) -> Iterator[AirflowStack]:
    """Run Airflow with all DAGs; its connections lead to the emulator.

    :param target: a folder for images.
    """
    http = {"conn_type": "http", "host": kie.url, "extra": {"Authorization": f"Bearer {kie.api_key}"}}
    env = {
        "AIRFLOW__CORE__PARALLELISM": str(PARALLELISM),
        "AIRFLOW_VAR_BENCH_TARGET": str(target),
        "AIRFLOW_CONN_KIE_DEFAULT": json.dumps(kie.connection),
        "AIRFLOW_CONN_BENCH_HTTP": json.dumps(http),
        "BENCH_KIE_URL": kie.url,
        "BENCH_KIE_KEY": kie.api_key,
    }
    with AirflowStack(DAGS, env=env) as stack:
        yield stack


def one_run(stack: AirflowStack, book: SlotBook, kie: KieEmulator, way: str, images: int) -> Outcome:
    """Run a DAG to its end, or cut it, and read what it has cost."""
    kie.reset()
    dag_id = f"{way}_{images}"
    stack.wait_for_dag(dag_id)
    began = time.monotonic()
    run_id = stack.trigger_dag(dag_id)
    ended = until(stack, lambda: book.run_state(dag_id, run_id) in FINAL_RUN_STATES, RUN_SECONDS)
    wall_seconds = time.monotonic() - began
    tasks = stack.task_instances(dag_id, run_id)
    if not ended:
        stack.api("PATCH", f"/dags/{dag_id}/dagRuns/{quote(run_id)}", {"state": "failed"})
        until(stack, lambda: not book.is_busy(), CLEAN_UP_SECONDS)  # else the next run would share the machine
    slot_seconds, starts = book.running(dag_id, run_id)
    billed = kie.bill()["tasks"]
    created = sum(each["path"].endswith("createTask") for each in kie.requests())
    return Outcome(
        ended=ended,
        wall_seconds=wall_seconds,
        slot_seconds=slot_seconds,
        starts=starts,
        instances=len(tasks),
        links=links(tasks, images),
        failed=sum(task["state"] == "failed" for task in tasks),
        billed=len(billed),
        refused=created - len(billed),
    )


def links(tasks: TaskInstances, images: int) -> int:
    """Return for how many images all tasks have succeeded; a task that is not mapped stands for all of them."""
    done = Counter(task["task_id"] for task in tasks if task["state"] == "success")
    all_of_it = Counter(task["task_id"] for task in tasks)
    return min(images * done[task_id] // count for task_id, count in all_of_it.items())


def until(stack: AirflowStack, condition: Callable[[], bool], seconds: float) -> bool:
    """Wait, but no longer than that; tell whether it came true."""
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        stack.check_processes()
        time.sleep(0.2)
    return met
