"""What a fleet costs, measured in one run: ``make fleet FLEET_ARGS="--numbers --write-docs"``."""

from __future__ import annotations

import re
import statistics
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import requests

from tests.bench.report import Report
from tests.bench.slots import SlotBook
from tests.bench.submission import ideal_seconds
from tests.e2e.chaos.arena import TASK
from tests.e2e.fleet.ground import FleetError
from tests.e2e.fleet.rig import TASKS_AT_ONCE, TRIGGERERS, WORKERS, Fleet, Load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.gate import Passed

DAGS = Path(__file__).parent / "dags"
IMAGES, IMAGE_SECONDS = 100, 10.0
WAITS, WAITS_THAT_END = 1000, 50
POOL = "fleet_waits"
#: Seconds until a trigger has polled for the first time, and those in which it polls every three.
SETTLING_SECONDS, STEADY_SECONDS = 8.0, float(WAITS_THAT_END)
LONG = 3600.0
#: Airflow's watchdog sleeps so long, and tells when it has come back after more than the second.
WATCHDOG_SLEEP, WATCHDOG_THRESHOLD = 0.1, 0.11
ENV = {
    "AIRFLOW__TRIGGERER__BLOCKED_MAIN_THREAD_WARNING_THRESHOLD": str(WATCHDOG_THRESHOLD),
    # Airflow's defaults: nothing dies here, so nobody need notice it in seconds.
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "300",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "10",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "30",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "300",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "600",
    "AIRFLOW__SCHEDULER__JOB_HEARTBEAT_SEC": "5",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "30",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "5",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "5",
}
STALL = re.compile(r"async thread was blocked for ([\d.]+) seconds")
JOURNAL = "/store/ti/"
PATIENCE = 300.0

#: In milliseconds.
_TOLD_FROM = round((WATCHDOG_THRESHOLD - WATCHDOG_SLEEP) * 1000)

METHOD = f"""\
One fleet on one machine: two API servers behind a TCP proxy, two schedulers, two triggerers and two workers of
{TASKS_AT_ONCE} slots each on the CeleryExecutor, PostgreSQL, Redis (the broker and the shared limit) and S3 (moto), and
an emulated Kie.ai that takes {IMAGE_SECONDS:g} s for an image and 20 new tasks in any 10 s. All of them share the
processors, so machines of their own do better.

{IMAGES} mapped `Flux2GenerateImageOperator`, then one `Flux2BatchOperator` with {IMAGES} prompts make images and save
them to S3, both deferrable. *Images per minute* counts from the request for the run to its end. The limit itself costs
{ideal_seconds(IMAGES):g} s from the first Kie task to the last: *share of Kie's rate* is that, divided by the seconds
it took. *Worker-slot seconds* are how long task instances were `running`, every phase, noted by a trigger in the
database. The *journal* is seen from a gate between the workers and the API servers: how long the execution API takes
for one read or write of the task state store, each over a connection of its own, and the bytes of the bodies.

Then one triggerer is ended, and the other one gets {WAITS:,} waits of `KieTaskSensor`: one was deferred by a worker,
the others are copies of it in the database, which saves as many starts of a worker's process. From
{SETTLING_SECONDS:g} s on, {STEADY_SECONDS:g} s are measured. In these, every wait polls every 3 s, as in its first
minute (later every 15 s), and one wait ends each second. *CPU*, as a share of one core, and *memory* (PSS) are those
of all processes of the triggerer. A *stall* is what Airflow's own watchdog in the triggerer tells: it sleeps
{WATCHDOG_SLEEP * 1000:.0f} ms again and again, and says so when the event loop came back to it too late, here from
{_TOLD_FROM} ms on (100 ms by default). *Done to running* is from the end of a Kie task until its task instance
is `running` again."""


@dataclass(frozen=True)
class Made:
    """What has become of a run that makes images.

    :param seconds: from the request for the run to its end.
    :param creating: seconds from the first Kie task to the last.
    """

    seconds: float
    creating: float
    slot_seconds: float
    starts: int
    refused: int
    reads: Sequence[Passed]
    writes: Sequence[Passed]


@dataclass(frozen=True)
class Waited:
    """What waiting has cost a triggerer.

    :param cpu: share of a core.
    :param memory: bytes, without waits and with all of them.
    :param stalls: seconds each, while the waits begin, and after that.
    :param noticed: seconds from done to the trigger's event, of each wait that has ended.
    :param running: seconds from done to running.
    """

    cpu: float
    memory: tuple[int, int]
    stalls: tuple[Sequence[float], Sequence[float]]
    noticed: Sequence[float]
    running: Sequence[float]


def measure(fleet: Fleet) -> Report:
    """Measure everything, one thing after the other."""
    book = SlotBook(fleet.airflow.database)
    passed: list[Passed] = []
    fleet.gate.on_pass = passed.append
    _make(fleet, book, passed, "fleet_warm_up", 1)  # the first run is slower than all others
    mapped = _make(fleet, book, passed, "fleet_mapped", IMAGES)
    batch = _make(fleet, book, passed, "fleet_batch", IMAGES)
    waited = _wait(fleet, book)
    return Report(
        name="fleet",
        title="A fleet: Celery, PostgreSQL and Redis",
        method=METHOD,
        columns=("", f"{IMAGES} mapped", f"a batch of {IMAGES}", f"{WAITS:,} waits"),
        rows=[
            *(
                [name, one, other, ""]
                for (name, one), other in zip(_cells(mapped).items(), _cells(batch).values(), strict=True)
            ),
            *([name, "", "", cell] for name, cell in _cells_of_waits(waited).items()),
        ],
        packages=("apache-airflow", "apache-airflow-providers-celery", "celery"),
        again='make fleet FLEET_ARGS="--numbers"',
    )


def _cells(made: Made) -> dict[str, str]:
    asked = made.reads, made.writes
    return {
        "images per minute": f"{IMAGES / made.seconds * 60:.0f}",
        "share of Kie's rate": f"{ideal_seconds(IMAGES) / made.creating:.0%}",
        "createTasks refused with 429": str(made.refused),
        "worker-slot seconds per image": f"{made.slot_seconds / IMAGES:.2f}",
        "starts of a worker's process per image": f"{made.starts / IMAGES:.2f}",
        "journal: reads, writes per image": ", ".join(f"{len(each) / IMAGES:.1f}" for each in asked),
        "journal: bytes read, written per image": ", ".join(
            f"{sum(one.answered if each is made.reads else one.sent for one in each) / IMAGES:,.0f}" for each in asked
        ),
        "journal: a read, p50 and p99": _two(made.reads),
        "journal: a write, p50 and p99": _two(made.writes),
    }


def _two(passed: Sequence[Passed]) -> str:
    seconds = [each.seconds for each in passed]
    p99 = statistics.quantiles(seconds, n=100, method="inclusive")[98]
    return f"{statistics.median(seconds) * 1000:.0f} ms, {p99 * 1000:.0f} ms"


def _cells_of_waits(waited: Waited) -> dict[str, str]:
    before, after = waited.memory
    at_start, later = (f"{max(each) * 1000:.0f} ms" if each else "none" for each in waited.stalls)
    return {
        "CPU": f"{waited.cpu:.0%}",
        "memory": f"{after / 2**20:.0f} MB, {(after - before) / 2**20:.0f} MB more than without",
        "longest stall, while the waits begin": at_start,
        "longest stall, after that": later,
        "done to noticed by the trigger, p50 and worst": _seconds(waited.noticed),
        "done to running, p50 and worst": _seconds(waited.running),
    }


def _seconds(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} s, {max(values):.1f} s"


# Making


def _make(fleet: Fleet, book: SlotBook, passed: list[Passed], dag_id: str, images: int) -> Made:
    with Load(fleet, "numbers", (dag_id,), generating_seconds=IMAGE_SECONDS, credits=10_000.0) as load:
        [trial] = load.trials
        fleet.airflow.wait_for_dag(dag_id)
        began = time.monotonic()
        load.start()
        load.wait_for_end(PATIENCE)
        seconds = time.monotonic() - began
        billed = [_created(task) for task in load.kie.bill()["tasks"]]
        sent = sum(each["path"].endswith("createTask") for each in load.kie.requests())
        saved = len(fleet.images(trial.name))
        failed = [map_index for state, _, map_index in trial.task_instances() if state != "success"]
        if failed or not len(billed) == saved == images:
            logs = "\n".join(trial.log(map_index=index)[-4000:] for index in failed[:2])
            raise FleetError(f"{dag_id}: {len(billed)} paid and {saved} saved, not {images}; {failed} failed\n{logs}")
        slot_seconds, starts = book.running(dag_id, trial.name)
        journal = [each for each in passed if each.run_id == trial.name and JOURNAL in each.path]
    print(f"  {dag_id}: {seconds:.0f} s", flush=True)
    return Made(
        seconds=seconds,
        creating=max(billed) - min(billed),
        slot_seconds=slot_seconds,
        starts=starts,
        refused=sent - len(billed),
        reads=[each for each in journal if each.method == "GET"],
        writes=[each for each in journal if each.method != "GET"],
    )


def _created(task: dict[str, Any]) -> float:
    return datetime.fromisoformat(task["created_at"].replace("Z", "+00:00")).timestamp()


# Waiting


def _wait(fleet: Fleet, book: SlotBook) -> Waited:
    name, other = TRIGGERERS
    fleet.airflow.stop_process(other)
    fleet.api("POST", "/pools", {"name": POOL, "slots": 1, "include_deferred": True})
    with Load(fleet, "numbers", ("fleet_waits",), generating_seconds=LONG, create_limit=10**6, credits=10.0**6) as load:
        ended = _order(load)
        [trial] = load.trials
        fleet.airflow.wait_for_dag("fleet_waits")
        load.start()

        def first_waits() -> bool:
            found = trial.task_instances()
            return sorted(state or "" for state, *_ in found) == ["deferred", *["scheduled"] * (WAITS - 1)] and all(
                trial.is_settled(*each) for each in found
            )

        fleet.wait(first_waits, lambda: f"no wait: {load}"[:2000])
        processes = [psutil.Process(pid) for pid in fleet.airflow.process(name).members()]
        log = fleet.airflow.process(name).log
        memory, said = _memory(processes), log.stat().st_size
        _copy_the_first_wait(fleet, trial.name, [task["taskId"] for task in load.kie.bill()["tasks"]])
        taken = "SELECT count(*) FROM trigger WHERE triggerer_id IS NOT NULL"
        fleet.wait(lambda: fleet.query(taken) == [(WAITS,)], f"{name} does not take the waits")
        slots = len(WORKERS) * TASKS_AT_ONCE
        fleet.api("PATCH", f"/pools/{POOL}", {"pool": POOL, "slots": slots, "include_deferred": False})
        fleet.pause(SETTLING_SECONDS)
        said_by_now = log.stat().st_size
        load.ahead = min(ended.values()) - time.time() - 1  # from now on, one ends every second
        cpu, began = _cpu_seconds(processes), time.monotonic()
        fleet.pause(STEADY_SECONDS)
        cpu, seconds = _cpu_seconds(processes) - cpu, time.monotonic() - began
        memory_now, said_at_last = _memory(processes), log.stat().st_size

        def all_have_run() -> bool:
            states = {map_index: state for state, _, map_index in trial.task_instances()}
            return all(states[index] == "success" for index in ended)

        fleet.wait(all_have_run, lambda: f"they do not end: {load}"[:2000])
        histories = book.histories("fleet_waits", trial.name)
        done = {index: at - load.ahead for index, at in ended.items()}
        noticed, running = (
            [max(at for state, at in histories[TASK, index] if state == which) - done[index] for index in ended]
            for which in ("scheduled", "running")
        )
    print(f"  {WAITS} waits: {seconds:.0f} s", flush=True)
    return Waited(
        cpu=cpu / seconds,
        memory=(memory, memory_now),
        stalls=(_stalls(log, said, said_by_now), _stalls(log, said_by_now, said_at_last)),
        noticed=noticed,
        running=running,
    )


def _order(load: Load) -> dict[int, float]:
    """Create all Kie tasks; return when those that are to end will end by Kie's clock, by their place.

    They end one second after another, and long before the others.
    """
    kie, every = load.kie, WAITS // WAITS_THAT_END
    with requests.Session() as session:
        session.trust_env = False
        session.headers["Authorization"] = f"Bearer {kie.api_key}"
        for index in range(WAITS):
            number, ends = divmod(index, every)
            load.ahead = LONG / 2 if ends else float(number)
            body = {"prompt": f"a red fox, number {index}", "aspect_ratio": "1:1", "resolution": "1K"}
            order = {"model": "flux-2/pro-text-to-image", "input": body}
            session.post(f"{kie.url}/api/v1/jobs/createTask", json=order, timeout=10).raise_for_status()
    load.ahead = 0.0
    created = {index: _created(task) for index, task in enumerate(kie.bill()["tasks"])}
    return {index: at + LONG for index, at in created.items() if index % every == 0}


def _copy_the_first_wait(fleet: Fleet, run_id: str, kie_task_ids: Sequence[str]) -> None:
    """Have all other task instances of the run wait like the one that does."""
    where = "run_id = ? AND task_id = ?"
    ((first, index, trigger, kwargs),) = fleet.query(
        "SELECT ti.id, map_index, t.id, kwargs FROM task_instance ti JOIN trigger t ON t.id = ti.trigger_id "
        f"WHERE {where}",
        run_id,
        TASK,
    )
    columns = "next_method, next_kwargs, trigger_timeout, start_date"
    with fleet.airflow.database.transaction() as connection:
        for other in set(range(len(kie_task_ids))) - {index}:
            copied = connection.exec_driver_sql(
                "INSERT INTO trigger (classpath, kwargs, created_date, queue) "
                "SELECT classpath, replace(kwargs, %s, %s), created_date, queue FROM trigger WHERE id = %s "
                "RETURNING id",
                (kie_task_ids[index], kie_task_ids[other], trigger),
            ).scalar_one()
            assert kie_task_ids[index] in kwargs
            connection.exec_driver_sql(
                f"UPDATE task_instance SET state = 'deferred', trigger_id = %s, ({columns}) = "
                f"(SELECT {columns} FROM task_instance WHERE id = %s) "
                "WHERE run_id = %s AND task_id = %s AND map_index = %s",
                (copied, first, run_id, TASK, other),
            )


def _memory(processes: Sequence[psutil.Process]) -> int:
    return sum(process.memory_full_info().pss for process in processes)


def _cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def _stalls(log: Path, begin: int, end: int) -> list[float]:
    """Return how long the event loop was blocked, as told between two places of a log."""
    with log.open("rb") as file:
        file.seek(begin)
        text = file.read(end - begin).decode(errors="replace")
    return [float(seconds) - WATCHDOG_SLEEP for seconds in STALL.findall(text)]
