"""How every attack is made: one function each, keyed by the attack's name."""

from __future__ import annotations

import contextlib
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psutil

from tests.e2e.chaos.arena import TASK
from tests.e2e.chaos.procedures import RUN, SUMMARY, wait_for_kie_task
from tests.e2e.fleet.rig import API_SERVERS, SCHEDULERS, TRIGGERERS, WORKERS, Load, worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from random import Random

    Procedure = Callable[[Load, Random], None]

PROCEDURES: dict[str, Procedure] = {}


def procedure(function: Procedure) -> Procedure:
    PROCEDURES[function.__name__] = function
    return function


@procedure
def fill_disk(load: Load, draw: Random) -> None:
    """No file of a task may become larger than 256 KB: an image is, and its log is not."""
    processes = [load.fleet.airflow.process(name) for name in WORKERS]
    pids = [pid for process in processes for pid in process.members() if pid != process.pid]
    _limit_files(pids, 256 * 1024)
    try:
        load.start()
        found = lambda: [each for trial in load.trials for each in trial.task_instances()]  # noqa: E731
        failed = lambda: any(state == "failed" or number > 1 for state, number, _ in found())  # noqa: E731
        load.fleet.wait(failed, lambda: f"nothing failed: {load}")
        load.fleet.pause(draw.uniform(0, 5))
    finally:
        _limit_files(pids, resource.RLIM_INFINITY)
    assert "File too large" in "".join(trial.log() for trial in load.trials)
    load.wait_for_end()


def _limit_files(pids: list[int], size: int) -> None:
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            process.rlimit(psutil.RLIMIT_FSIZE, (size, process.rlimit(psutil.RLIMIT_FSIZE)[1]))


@procedure
def kill_workers(load: Load, draw: Random) -> None:
    fleet = load.fleet
    load.start()
    for _ in range(3):
        fleet.pause(draw.uniform(2, 8))
        for _ in range(2):
            running = [each for trial in load.trials for each in trial.tries() if psutil.pid_exists(each.pid)]
            if running:
                fleet.kill_task(draw.choice(running), supervisor=draw.random() < 0.7)
        fleet.kill_main(draw.choice(WORKERS))
        fleet.restore()
    load.wait_for_end()


@procedure
def kill_workers_in_createtask(load: Load, draw: Random) -> None:
    load.kie.fault({"on": "createTask", "do": "hold", "times": 5, "skip": draw.randrange(6)})
    load.start()
    load.wait_until_met(draw.randint(2, 4))
    _power_cut(load)
    load.wait_for_end()


@procedure
def kill_workers_while_refused(load: Load, draw: Random) -> None:
    load.kie.fault({"on": "createTask", "do": "code", "code": 429, "times": 25, "retry_after": 6, "skip": 2})
    load.start()
    load.wait_until_met(draw.randint(3, 8))
    load.fleet.pause(2)  # a refusal that is not yet written down is a doubt
    _power_cut(load)
    load.wait_for_end()


@procedure
def kill_workers_while_saving(load: Load, draw: Random) -> None:
    load.kie.fault({"on": "file", "do": "hold", "times": 6, "skip": draw.randrange(6)})
    load.start()
    load.wait_until_met(2)
    _power_cut(load)
    load.wait_for_end()


def _power_cut(load: Load) -> None:
    """Kill both workers, let go what Kie holds, and start them again."""
    load.fleet.kill_all(*WORKERS)
    load.kie.release()
    load.fleet.restore()


@procedure
def freeze_task_in_createtask(load: Load, draw: Random) -> None:
    trial = load.trials[0]
    load.kie.fault({"on": "createTask", "do": "hold"})
    load.start()
    wait_for_kie_task(trial)
    with load.fleet.frozen_try(trial.last_try()):
        trial.wait_for("failed")
        load.kie.release()
    load.fleet.pause(5)


@procedure
def freeze_task_in_saving(load: Load, draw: Random) -> None:
    trial = load.trials[0]
    load.kie.fault({"on": "file", "do": "hold"})
    load.start()
    load.wait_until_met(1)
    with load.fleet.frozen_try(trial.last_try()):
        trial.wait_for_end()
        load.kie.release()
    load.fleet.pause(5)


@procedure
def freeze_database_while_ordering(load: Load, draw: Random) -> None:
    """Airflow's client gives a request up after five seconds and sends it again; the first one is carried out late."""
    fleet = load.fleet
    holds = [trial.hold(*SUMMARY, skip=1, once=True) for trial in load.trials]
    load.start()
    load.trials[0].caught(holds[0])
    fleet.database_of_api.hold(new=False)
    try:
        for hold in holds:
            hold.release()
        fleet.pause(draw.uniform(8, 22))
    finally:
        fleet.database_of_api.release()
    load.wait_for_end()


@procedure
def freeze_worker(load: Load, draw: Random) -> None:
    load.start()
    load.wait_until_created(draw.randint(2, 12))
    with load.fleet.frozen(draw.choice(WORKERS)):
        load.fleet.pause(25)
    load.wait_for_end()


@procedure
def stop_database(load: Load, draw: Random) -> None:
    load.start()
    load.wait_until_created(draw.randint(2, 12))
    load.fleet.postgres.stop()
    try:
        load.fleet.pause(20)
    finally:
        load.fleet.postgres.start()
    load.fleet.pause(3)  # what cannot do without it ends now
    load.fleet.restore()
    load.wait_for_end()


@procedure
def kill_api_server(load: Load, draw: Random) -> None:
    load.start()
    load.wait_until_created(draw.randint(1, 12))
    load.fleet.kill_all(draw.choice(API_SERVERS))
    load.fleet.pause(30)
    load.fleet.restore()
    load.wait_for_end()


@procedure
def freeze_api_server(load: Load, draw: Random) -> None:
    load.start()
    load.wait_until_created(draw.randint(1, 12))
    with load.fleet.frozen(draw.choice(API_SERVERS)):
        load.fleet.pause(12)  # a task whose heartbeats fail for 15 is taken for dead here
    load.wait_for_end()


@procedure
def stop_redis(load: Load, draw: Random) -> None:
    load.start()
    load.wait_until_created(draw.randint(1, 12))
    load.fleet.redis.stop()
    try:
        load.fleet.pause(20)
    finally:
        load.fleet.redis.start()
        load.fleet.redis.wait_until_ready()
    load.fleet.restore()
    load.wait_for_end()


@procedure
def deliver_twice(load: Load, draw: Random) -> None:
    fleet = load.fleet
    # Kombu would look for such messages every hundred seconds.
    options = {"VISIBILITY_TIMEOUT": "10", "UNACKED_RESTORE_INTERVAL": "1", "UNACKED_RESTORE_THROTTLE": "1"}
    try:
        _start_workers_anew(
            load, **{f"AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__{name}": value for name, value in options.items()}
        )
        load.start()
        load.wait_for_end()
        again = [path.read_text(errors="replace").count("already running elsewhere") for path in _logs_of_workers(load)]
        assert sum(again), "no message was delivered twice"
    finally:
        _start_workers_anew(load)
    fleet.restore()


def _start_workers_anew(load: Load, **env: str) -> None:
    load.fleet.airflow.change_parts({name: worker(name, **env) for name in WORKERS})
    load.fleet.kill_all(*WORKERS)
    load.fleet.restore()


def _logs_of_workers(load: Load) -> list[Path]:
    return [load.fleet.airflow.home / f"{name}.log" for name in WORKERS]


@procedure
def people(load: Load, draw: Random) -> None:
    fleet, mapped = load.fleet, load.of("chaos_mapped_few")
    load.start()
    load.wait_until_created(draw.randint(3, 6))
    _delete_run(load, "chaos_generate")
    indexes = draw.sample(range(5), 5)
    for index in indexes[:2]:
        mapped.clear(index)
    fleet.api("PATCH", "/dags/chaos_mapped_few", {"is_paused": True})
    for index, state in zip(indexes[2:], ("failed", "failed", "success"), strict=True):
        fleet.api("PATCH", f"{mapped.path}/taskInstances/{TASK}/{index}", {"new_state": state})
    load.of("chaos_batch").clear()
    fleet.pause(draw.uniform(2, 6))
    fleet.api("PATCH", "/dags/chaos_mapped_few", {"is_paused": False})
    mapped.clear(indexes[2])
    load.wait_for_end()


def _delete_run(load: Load, dag_id: str) -> None:
    trial = load.of(dag_id)
    load.fleet.api("PATCH", trial.path, {"state": "failed"})  # one that is running cannot be deleted
    load.fleet.api("DELETE", trial.path)
    load.deleted.add(trial.name)


@procedure
def spray_callbacks(load: Load, draw: Random) -> None:
    load.kie.fault({"on": "createTask", "do": "lost_answer", "times": 4, "skip": draw.randrange(10)})
    load.kie.fault({"on": "callback", "do": "twice", "times": None})
    load.start_with_callbacks()
    load.wait_for_end()
    answered = lambda: len(load.kie.callbacks()) == 2 * len(load.kie.bill()["tasks"])  # noqa: E731
    load.fleet.wait(answered, lambda: f"callbacks are missing: {load.kie.callbacks()}")
    assert {each["http_status"] for each in load.kie.callbacks()} == {200}, load.kie.callbacks()


@procedure
def repeat_callback(load: Load, draw: Random) -> None:
    _wait_for_callbacks(load)
    assert load.call_back(load.trials[0], 20) == [200] * 20
    load.wait_for_end()
    assert [each.phases for each in load.trials[0].tries()] == [2], load


@procedure
def lock_task_row(load: Load, draw: Random) -> None:
    """Whoever waits for the row waits in one of two threads, and no other request waits for these."""
    fleet, trial = load.fleet, load.trials[0]
    _wait_for_callbacks(load)
    with ThreadPoolExecutor(1) as pool, fleet.locked_row(trial.name):
        answers = pool.submit(load.call_back, trial, 30)
        until = time.monotonic() + 12
        slowest = 0.0
        while time.monotonic() < until:
            slowest = max([slowest, *map(fleet.seconds_to_answer, fleet.api_urls)])
            fleet.pause(0.2)
    assert answers.result() == [200] * 30
    assert slowest < 3, slowest
    load.call_back(trial, 1)
    load.wait_for_end()
    assert [each.phases for each in trial.tries()] == [2], load


@procedure
def kill_triggerers_when_called(load: Load, draw: Random) -> None:
    holds = [(trial, trial.hold(*RUN, skip=1)) for trial in load.trials]
    _wait_for_callbacks(load)
    for trial in load.trials:
        load.call_back(trial, 1)
    for trial, hold in holds:
        trial.caught(hold)
    load.fleet.kill_all(*TRIGGERERS)
    for _, hold in holds:
        hold.release()
    load.wait_for_end()
    load.fleet.restore()


def _wait_for_callbacks(load: Load) -> None:
    """Start all runs; come back when Kie is done, does not call itself, and a callback would wake any task."""
    load.kie.fault({"on": "callback", "do": "lost", "times": None})
    load.start_with_callbacks()
    load.trials[0].wait_until_asked(2 * len(load.trials))  # each by its worker, and ten seconds later by its trigger
    load.skip_time()


@procedure
def freeze_triggerer(load: Load, draw: Random) -> None:
    fleet, name = load.fleet, draw.choice(TRIGGERERS)
    load.start()
    load.wait_for_deferred(0.7)
    load.skip_time()
    with fleet.frozen(name):
        living = "SELECT id FROM job WHERE job_type = 'TriggererJob' AND state = 'running'"
        theirs = (
            f"SELECT count(*) FROM trigger WHERE triggerer_id NOT IN ({living} ORDER BY latest_heartbeat DESC LIMIT 1)"
        )
        fleet.pause(10)
        fleet.wait(lambda: fleet.query(theirs) == [(0,)], lambda: f"the waits stay with {name}: {load}")
    load.wait_for_end()


@procedure
def kill_triggerers(load: Load, draw: Random) -> None:
    load.start()
    load.wait_for_deferred(draw.uniform(0.3, 0.7))
    load.skip_time()
    load.fleet.kill_all(*TRIGGERERS)
    load.fleet.pause(60)
    load.fleet.restore()
    load.wait_for_end()


@procedure
def kill_schedulers(load: Load, draw: Random) -> None:
    first, second = draw.sample(SCHEDULERS, 2)
    load.start()
    load.wait_until_created(draw.randint(1, 12))
    load.fleet.kill_all(first)
    load.fleet.pause(draw.uniform(2, 8))
    load.fleet.kill_all(second)
    load.fleet.pause(draw.uniform(2, 8))
    load.fleet.restore()
    load.wait_for_end()


@procedure
def large_batch(load: Load, draw: Random) -> None:
    """At Kie's pace of 20 in ten seconds it takes nine minutes; what else is done to the fleet meanwhile hits it."""
    trial, timeout = load.trials[0], 1800
    load.start()
    load.wait_until_created(draw.randint(50, 450), timeout)
    trial.kill_if_running(supervisor=True)
    load.wait_until_created(draw.randint(500, 900), timeout)
    trial.kill_if_running(supervisor=True)
    load.wait_for_end(timeout)
