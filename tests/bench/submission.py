"""Submitting: how much of the account's limit a fleet uses, and what Kie has to refuse."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kie_provider.emulator import KieEmulator
from tests.bench.report import Goal, Report
from tests.support.redis import running_redis

if TYPE_CHECKING:
    from threading import Barrier

    from kie_provider.hooks.kie import KieHook

LIMIT, WINDOW_SECONDS = 20, 10.0  # Kie's
ANSWER_SECONDS = 0.3  # Kie's createTask, about
PROCESSES = 8
START_SECONDS = 120.0
ALTERNATIVE = "each process a window of its own"
SHARED = "one window, shared in Redis"
GOAL = 0.95

METHOD = """\
{processes} processes create {tasks} tasks with `KieHook.create_task`, each taking the next prompt when it is done with
one. The emulator answers createTask after {answer:g} s and lets 20 through in any 10 s, as Kie does. The limit itself
costs {ideal:g} s, from the first task to the last: "of the limit" is that, divided by the seconds it took. A process
that `create_task` leaves without a place comes back after 10 s, as the operators do. *Refused* are answers 429, which
cost nothing; *failed* are prompts without a task, *lost* are billed tasks whose id nobody has got, *double* are tasks
that a prompt was billed for beyond one."""


@dataclass(frozen=True)
class Outcome:
    """What came of all prompts.

    :param seconds: from the first task to the last, as the emulator has counted them in.
    """

    seconds: float
    refused: int
    came_back: int
    failed: int
    lost: int
    double: int


def run(quick: bool) -> Report:
    """Submit through a fleet with a shared window, and one without."""
    tasks, processes = 60 if quick else 200, PROCESSES
    ideal = ideal_seconds(tasks)
    report = Report(
        "submission",
        f"Submitting: {tasks} tasks from {processes} processes",
        METHOD.format(tasks=tasks, processes=processes, answer=ANSWER_SECONDS, ideal=ideal),
        ("", "seconds", "of the limit", "refused", "came back later", "failed", "lost", "double"),
        packages=("limits", "redis"),
    )
    program = shutil.which("redis-server")
    if program is None:
        raise RuntimeError("redis-server is not installed")
    with tempfile.TemporaryDirectory(prefix="kie-bench-") as folder, running_redis(program, Path(folder)) as redis:
        shared = submit(tasks, processes, redis.url)
    alone = submit(tasks, processes, "")
    for name, each in ((SHARED, shared), (ALTERNATIVE, alone)):
        counts = (each.refused, each.came_back, each.failed, each.lost, each.double)
        report.rows.append([name, f"{each.seconds:.1f}", f"{ideal / each.seconds:.0%}", *map(str, counts)])
    share = ideal / shared.seconds
    report.goals = [
        Goal(f"{SHARED}: at least {GOAL:.0%} of the limit", f"{share:.1%}", is_met=share >= GOAL),
        *(
            Goal(f"{SHARED}: 0 {what}", str(count), is_met=not count)
            for what, count in (("failed", shared.failed), ("lost", shared.lost), ("double", shared.double))
        ),
    ]
    return report


def ideal_seconds(tasks: int) -> float:
    """How long the limit keeps the last task waiting when the first 20 go at once, the next 20 after 10 s, ..."""
    return (-(-tasks // LIMIT) - 1) * WINDOW_SECONDS


def submit(tasks: int, processes: int, storage: str) -> Outcome:
    """Create the tasks and read the bill.

    :param storage: ``[kie] rate_limit_storage``.
    """
    prompts = [f"picture {number} of {tasks}" for number in range(tasks)]
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(processes)
    with KieEmulator(credits=10_000, create_limit=LIMIT, create_window_seconds=WINDOW_SECONDS) as kie:
        kie.fault({"on": "createTask", "do": "slow", "delay_seconds": ANSWER_SECONDS, "times": None})
        env = {"AIRFLOW_CONN_KIE_DEFAULT": json.dumps(kie.connection), "AIRFLOW__KIE__RATE_LIMIT_STORAGE": storage}
        with ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(env, ready)) as pool:
            answers = list(pool.map(_create, prompts))
        billed, requests = kie.bill()["tasks"], kie.requests()
    created = [datetime.fromisoformat(task["created_at"].replace("Z", "+00:00")).timestamp() for task in billed]
    known = {kie_task_id for kie_task_id, _ in answers}
    return Outcome(
        seconds=max(created) - min(created),
        refused=sum(each["path"].endswith("createTask") for each in requests) - len(billed),
        came_back=sum(times for _, times in answers),
        failed=sum(kie_task_id is None for kie_task_id, _ in answers),
        lost=sum(task["taskId"] not in known for task in billed),
        double=sum(times - 1 for times in Counter(task["prompt"] for task in billed).values()),
    )


# In a process of the fleet

_hook: KieHook


def _begin(env: dict[str, str], ready: Barrier) -> None:
    """Get everything ready, and wait until all others are."""
    global _hook  # noqa: PLW0603  # a process of the pool has no other place
    os.environ.update(env)
    from kie_provider.hooks.kie import KieHook

    _hook = KieHook()
    _hook.get_conn()
    ready.wait(START_SECONDS)


def _create(prompt: str) -> tuple[str | None, int]:
    """Create one task; return its id (None: it failed), and how often this came back for it."""
    from kie_provider.client.errors import KieError, KieRateLimitError
    from kie_provider.client.retry import jitter

    task_input = {"prompt": prompt, "aspect_ratio": "1:1", "resolution": "1K"}
    for came_back in range(20):
        try:
            return _hook.create_task("flux-2/pro-text-to-image", task_input), came_back
        except KieRateLimitError as error:  # noqa: PERF203  # waiting is all this does
            time.sleep(jitter(WINDOW_SECONDS, at_least=error.retry_after))
        except KieError:
            break
    return None, came_back
