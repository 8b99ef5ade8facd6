"""A batch: how much of the account's limit one task instance uses, with the answers as slow as Kie's slow ones."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from kie_provider.emulator import KieEmulator
from tests.bench.report import Goal, Report
from tests.bench.submission import LIMIT, WINDOW_SECONDS, ideal_seconds
from tests.support.redis import running_redis

IMAGE_SECONDS = 20.0
#: Seconds until Kie answers createTask: typical, and the 95th percentile.
ANSWERS = (0.5, 0.9)
GOAL = 0.95
#: Seconds beyond the submitting and one image that the whole may take.
REST = 10.0

METHOD = """\
One `Flux2BatchOperator` makes {prompts} images and saves them to a local disk, run by `dag.test()` with Airflow's own
task state store. An image takes {image:g} s, and Kie lets 20 createTasks through in any 10 s; the window is shared in
Redis. The limit itself costs {ideal:g} s, from the first task to the last: "of the limit" is that, divided by the
seconds it took. *Refused* are answers 429, which cost nothing. *Wall* is the whole task instance."""


@dataclass(frozen=True)
class Outcome:
    """What came of a batch.

    :param seconds: from the first task to the last, as the emulator has counted them in.
    :param wall: seconds of the whole task instance.
    """

    saved: int
    seconds: float
    refused: int
    wall: float
    tasks: int


def run(quick: bool) -> Report:
    """Make a batch with fast answers, and one with slow ones."""
    prompts = 60 if quick else 200
    ideal = ideal_seconds(prompts)
    report = Report(
        "batch",
        f"A batch of {prompts}",
        METHOD.format(prompts=prompts, image=IMAGE_SECONDS, ideal=ideal),
        ("createTask answers after", "seconds", "of the limit", "refused", "wall", "saved"),
        packages=("apache-airflow", "limits", "redis"),
    )
    program = shutil.which("redis-server")
    if program is None:
        raise RuntimeError("redis-server is not installed")
    for answer in ANSWERS:
        with tempfile.TemporaryDirectory(prefix="kie-bench-") as folder, running_redis(program, Path(folder)) as redis:
            outcome = make(prompts, answer, redis.url)
        share = ideal / outcome.seconds
        report.rows.append(
            [
                f"{answer:g} s",
                f"{outcome.seconds:.1f}",
                f"{share:.1%}",
                str(outcome.refused),
                f"{outcome.wall:.1f}",
                str(outcome.saved),
            ]
        )
        allowed = outcome.seconds + IMAGE_SECONDS + REST
        report.goals += [
            Goal(f"answers after {answer:g} s: at least {GOAL:.0%} of the limit", f"{share:.1%}", share >= GOAL),
            Goal(f"answers after {answer:g} s: none refused", str(outcome.refused), not outcome.refused),
            Goal(
                f"answers after {answer:g} s: wall within {allowed:.1f} s",
                f"{outcome.wall:.1f} s",
                outcome.wall <= allowed,
            ),
            Goal(
                f"answers after {answer:g} s: every image saved and paid once",
                f"{outcome.saved} saved, {outcome.tasks} tasks",
                outcome.saved == outcome.tasks == prompts,
            ),
        ]
    return report


def make(prompts: int, answer_seconds: float, storage: str) -> Outcome:
    """Make a batch and read the bill.

    :param storage: ``[kie] rate_limit_storage``.
    """
    with (
        tempfile.TemporaryDirectory(prefix="kie-bench-") as folder,
        KieEmulator(
            credits=10_000, generating_seconds=IMAGE_SECONDS, create_limit=LIMIT, create_window_seconds=WINDOW_SECONDS
        ) as kie,
    ):
        kie.fault({"on": "createTask", "do": "slow", "delay_seconds": answer_seconds, "times": None})
        env = {
            "AIRFLOW_HOME": folder,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": os.devnull,
            "AIRFLOW_CONN_KIE_DEFAULT": json.dumps(kie.connection),
            "AIRFLOW__KIE__RATE_LIMIT_STORAGE": storage,
        }
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context, initializer=_begin, initargs=(env,)) as pool:
            saved, wall = pool.submit(_batch, prompts, folder).result()
        billed, requests = kie.bill()["tasks"], kie.requests()
    created = [datetime.fromisoformat(task["created_at"].replace("Z", "+00:00")).timestamp() for task in billed]
    return Outcome(
        saved=saved,
        seconds=max(created) - min(created),
        refused=sum(each["path"].endswith("createTask") for each in requests) - len(billed),
        wall=wall,
        tasks=len(billed),
    )


def _begin(env: dict[str, str]) -> None:
    os.environ.update(env)


def _batch(prompts: int, folder: str) -> tuple[int, float]:
    """Run the operator; return how many images were saved, and the seconds it took."""
    from kie_provider.operators.batch import Flux2BatchOperator
    from tests.support.airflow_inprocess import initialise_database, run_task

    initialise_database()
    seconds: list[float] = []

    def begin(context: Any) -> None:
        gc.freeze()  # as executors do before they fork a worker: all of Airflow is in this process
        seconds.append(-time.monotonic())

    def end(context: Any, result: Any) -> None:
        seconds.append(time.monotonic())

    outcome = run_task(
        lambda **kwargs: Flux2BatchOperator(
            prompts=[f"picture {number} of {prompts}" for number in range(prompts)],
            target=f"{folder}/images",
            pre_execute=begin,
            post_execute=end,
            **kwargs,
        ),
        retries=0,
    )
    return (outcome.result or {}).get("saved", 0), sum(seconds)
