"""Callbacks beside polling: what a wait costs, how soon a task goes on, and what the receiver bears."""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from kie_provider.emulator import KieEmulator
from tests.bench import waiting
from tests.bench.pipeline import DAGS, PARALLELISM
from tests.bench.report import Goal, Report
from tests.bench.waiting_contenders import CALLED, INTERVAL
from tests.bench.waiting_server import ANSWER_SECONDS
from tests.support.airflow_rest import epoch
from tests.support.airflow_stack import AirflowStack
from tests.support.early_callbacks import EarlyCaller, add_connection
from tests.support.postgres import postgres_if_installed
from tests.support.servers import self_signed_certificate

WAYS = (True, False)  # with callbacks, and without
WAITS, WINDOW = 1000, 35.0
#: Kie's seconds for an image: they differ, so that no poll is always in time.
GENERATING_SECONDS = (18.0, 18.75, 19.5, 20.25)
IMAGES, PACE_SECONDS = 64, 1.2
EARLY_RUNS, MAPPED = 10, 20
CALLERS, CALLING_SECONDS = 16, 4.0
RUN_SECONDS = 300.0
#: The first line in a task's log of each process that runs it.
START = "::group::Pre Execute"
GOAL_SECONDS = 2.5

METHOD = """\
*{waits:,} waits* are triggers in one process, as above under Waiting: the server answers each poll after
{answer:.0f} ms, and none of them ends within the {window:g} s. CPU (user and system) is that of the second half. A wait
without callbacks polls every {interval:g} s, as by default; one with a callback to come polls after 13 and 33 s, and
then each minute.

All else is a real Airflow {version} (API server, scheduler, triggerer, LocalExecutor, {database}), with an emulated
Kie.ai, which takes 18 to 20 s for an image. A run of one image begins every {pace:g} s, with and without callbacks in
turn. *Done to running* is from the moment in which Kie is done to the first line that the task logs on a worker again;
a callback is on its way in that time, too, and the scheduler rests for 0.2 s at most; by default it is 1 s. A callback
*when deferred* comes when Airflow does not know yet that the worker has ended: it must wake nobody. Those tasks begin
as fast as the machine can. At last {callers} connections send callbacks for {calling:g} s to one API server: repeated
ones, which are looked up in the database, and forged ones, which are not. The sender is on the same machine.
"""


@dataclass
class Images:
    """What became of the images that were made in one way.

    :param seconds: from done to running, of each; infinite if it never ran again.
    :param polls: of all of them.
    :param tries: beyond the first one, of all of them.
    """

    seconds: list[float] = field(default_factory=list)
    polls: int = 0
    tries: int = 0

    def share(self, share: float) -> float:
        """Return what that share of them did not exceed."""
        return sorted(self.seconds)[math.ceil(share * len(self.seconds)) - 1]


def run(quick: bool) -> Report:
    """Measure the waits, then all else in one Airflow."""
    called, polled = _waits(20 if quick else WAITS, 14.0 if quick else WINDOW)
    runs = 1 if quick else EARLY_RUNS
    with ExitStack() as stack:
        kies = [stack.enter_context(KieEmulator(generating_seconds=seconds)) for seconds in GENERATING_SECONDS]
        early = stack.enter_context(KieEmulator(generating_seconds=2.0, create_limit=1000))
        database = stack.enter_context(postgres_if_installed())
        env = {"AIRFLOW__CORE__PARALLELISM": str(PARALLELISM)}
        here = stack.enter_context(AirflowStack(DAGS, env=env, database=database))
        version = here.api("GET", "/version")["version"]
        images = _images(here, kies, 8 if quick else IMAGES)
        calls, answers, tries = _early(here, early, runs)
        bears = {name: _rate(early, is_forged=name == "forged") for name in ("repeated", "forged")}
    with_callbacks, without = images[True], images[False]
    median = with_callbacks.share(0.5)
    seconds = "{:.2f} s".format
    in_time = sum(late < 1 for late in calls)
    return Report(
        name="callbacks",
        title="Callbacks: woken by Kie, beside polling",
        method=METHOD.format(
            waits=called.waits,
            answer=ANSWER_SECONDS * 1000,
            window=waiting.STORM + (14.0 if quick else WINDOW),
            interval=INTERVAL,
            version=version,
            database="SQLite" if database is None else "PostgreSQL",
            pace=PACE_SECONDS,
            callers=CALLERS,
            calling=CALLING_SECONDS,
        ),
        columns=("", "with callbacks", "polling alone"),
        rows=[
            [f"{called.waits:,} waits: polls of each", f"{called.polls_each:.1f}", f"{polled.polls_each:.1f}"],
            [f"{called.waits:,} waits: CPU, of one core", f"{called.cpu:.1%}", f"{polled.cpu:.1%}"],
            *(
                [f"Done to running, {name}", seconds(with_callbacks.share(share)), seconds(without.share(share))]
                for name, share in (("median", 0.5), ("99 %", 0.99), ("worst", 1.0))
            ),
            ["Polls of an image", *(f"{each.polls / len(each.seconds):.1f}" for each in (with_callbacks, without))],
            [
                f"Tries lost, of {len(without.seconds)} images",
                *(str(each.tries) for each in (with_callbacks, without)),
            ],
            [f"Tries lost, of {runs * MAPPED} called back when deferred ({in_time} within a second)", str(tries), ""],
            *([f"Callbacks per second, {name}", f"{rate:.0f}", ""] for name, rate in bears.items()),
        ],
        goals=[
            Goal(f"Done to running within {GOAL_SECONDS:g} s, median", seconds(median), median <= GOAL_SECONDS),
            Goal(
                "No try lost to a callback in the second of the deferral", str(tries), tries == 0 and answers == {200}
            ),
        ],
        packages=("apache-airflow", "aiohttp"),
    )


def _waits(number: int, window: float) -> tuple[waiting.Found, waiting.Found]:
    """Measure so many waits with callbacks to come, and without."""
    with tempfile.TemporaryDirectory(prefix="kie-bench-") as directory:
        self_signed_certificate(Path(directory))
        called, polled = (waiting.measure(Path(directory), name, number, window) for name in (CALLED, "ours"))
    return called, polled


def _images(stack: AirflowStack, kies: list[KieEmulator], number: int) -> dict[bool, Images]:
    """Make so many images, one after the other, with and without callbacks in turn."""
    for index, kie in enumerate(kies):
        add_connection(stack, kie, f"called_{index}", callback_base_url=stack.url)
        add_connection(stack, kie, f"polled_{index}")
    dag_id = "callbacks_1"
    _run(stack, dag_id, ["called_0"])  # Airflow's first run is slower than all others
    runs: list[tuple[bool, int, str]] = []
    for count in range(number):
        is_called, index = WAYS[count % 2], count // 2 % len(kies)
        conn_id = f"{'called' if is_called else 'polled'}_{index}"
        runs.append((is_called, index, stack.trigger_dag(dag_id, {"conn_id": conn_id})))
        time.sleep(PACE_SECONDS)
    for *_, run_id in runs:
        stack.wait_for_run(dag_id, run_id, RUN_SECONDS)
    found = {is_called: Images() for is_called in WAYS}
    polls = Counter(each["query"].get("taskId") for kie in kies for each in kie.requests())
    for is_called, _, run_id in runs:
        result = stack.xcom(dag_id, run_id, "image", 0)
        done, images = epoch(result["completed_at"]), found[is_called]
        tries = stack.task_instances(dag_id, run_id)[0]["try_number"]
        logs = [stack.task_log(dag_id, run_id, "image", 0, number + 1) for number in range(tries)]
        starts = [epoch(line.split()[0]) for log in logs for line in log.splitlines() if line.endswith(START)]
        images.seconds.append(min((at - done for at in starts if at > done), default=math.inf))
        images.polls += polls[result["kie_task_id"]]
        images.tries += tries - 1
    return found


def _early(stack: AirflowStack, kie: KieEmulator, number: int) -> tuple[list[float], set[int], int]:
    """Call back as soon as tasks are deferred.

    :return: how long after the deferral each callback was answered, the answers, and the tries beyond the first ones.
    """
    dag_id = f"callbacks_{MAPPED}"
    add_connection(stack, kie, "early", callback_base_url=stack.url, submit_limit=1000)
    caller = EarlyCaller(stack, kie, dag_id)
    with caller.calling():
        runs = _run(stack, dag_id, ["early"] * number)
    tasks = [task for run_id in runs for task in stack.task_instances(dag_id, run_id)]
    return caller.called, set(caller.answers), sum(max(task["try_number"] - 1, 0) for task in tasks)


def _run(stack: AirflowStack, dag_id: str, conn_ids: list[str]) -> list[str]:
    """Start a run with each connection, and wait until all have ended."""
    runs = [stack.trigger_dag(dag_id, {"conn_id": conn_id}) for conn_id in conn_ids]
    for run_id in runs:
        stack.wait_for_run(dag_id, run_id, RUN_SECONDS)
    return runs


def _rate(kie: KieEmulator, *, is_forged: bool) -> float:
    """Return how many callbacks for tasks that have ended are answered in a second."""
    tasks = kie._server.world.account.tasks.values()
    calls = [(str(task.request.callback_url), {"code": 200, "data": {"taskId": task.id}}) for task in tasks]
    if is_forged:
        calls = [(f"{url[:-1]}{'A' if url[-1] != 'A' else 'Q'}", body) for url, body in calls]
    return asyncio.run(_send(calls, 404 if is_forged else 200))


async def _send(calls: list[tuple[str, dict[str, object]]], expected: int) -> float:
    sent, began = 0, time.monotonic()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CALLERS)) as session:

        async def send() -> None:
            nonlocal sent
            while time.monotonic() - began < CALLING_SECONDS:
                url, body = calls[sent % len(calls)]
                sent += 1
                async with session.post(url, json=body) as answer:
                    if answer.status != expected:
                        raise RuntimeError(f"HTTP {answer.status} for a callback: {await answer.text()}")

        await asyncio.gather(*(send() for _ in range(CALLERS)))
    return sent / (time.monotonic() - began)
