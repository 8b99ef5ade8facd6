"""A fleet on one machine: two of everything, Celery on Redis, and PostgreSQL, each of which can be put in trouble."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil

from kie_provider.emulator import KieEmulator
from tests.e2e.chaos.arena import DAGS, PATIENCE, SETTINGS, Arena, Trial
from tests.e2e.chaos.procedures import change_connection
from tests.e2e.fleet.ground import FleetError
from tests.support.airflow_stack import COMMANDS, AirflowStack, AirflowStackError, Part
from tests.support.gate import Gate
from tests.support.postgres import Postgres
from tests.support.processes import free_port
from tests.support.redis import Redis
from tests.support.tcp_proxy import TcpProxy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from typing_extensions import Self

    from tests.support.gate import Try

API_SERVERS = ("api-server-one", "api-server-two")
SCHEDULERS = ("scheduler-one", "scheduler-two")
TRIGGERERS = ("triggerer-one", "triggerer-two")
WORKERS = ("worker-one", "worker-two")
BUCKET = "chaos"
S3 = {"login": "somebody", "password": "a-secret"}
TASKS_AT_ONCE = 6  # of one worker
FLEET_SETTINGS = {
    "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
    "AIRFLOW__CORE__PARALLELISM": "64",
    "AIRFLOW__CELERY__SYNC_PARALLELISM": "1",
    # A message that is lost with the broker's memory; ten minutes by default.
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "40",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "5",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_POOL_SIZE": "5",
    "KIE_CHAOS_TARGET": f"s3://kie_s3@{BUCKET}",
}


class Fleet(Arena):
    """Like the arena, but with workers on Celery, each on a disk of its own, whose images go to S3.

    :param folder: empty; everything stands in it.
    :param env: further settings of all parts.
    """

    def __init__(self, folder: Path, dags: Path = DAGS, env: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.folder = folder
        self._dags = dags
        self._extra_env = dict(env or {})

    def _build(self, cleanup: contextlib.ExitStack) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise FleetError("redis-server is not installed (Debian's package redis-server)")
        self.postgres = Postgres(self.folder / "cluster")
        cleanup.callback(self.postgres.stop)
        self.postgres.start()
        (self.folder / "redis").mkdir()
        # A broker that forgets its queue when it is restarted is another accident than one that is away.
        self.redis = Redis(program, self.folder / "redis", appendonly="yes")
        cleanup.callback(self.redis.stop)
        self.redis.wait_until_ready()
        self.s3 = cleanup.enter_context(_s3())
        self.database_of_api = cleanup.enter_context(TcpProxy(self.postgres.port))
        ports = [free_port() for _ in API_SERVERS]
        self.api_urls = [f"http://127.0.0.1:{port}" for port in ports]
        self.balancer = cleanup.enter_context(TcpProxy(*ports))
        self.gate = Gate(lambda: self.balancer.url, self._look_up, one_at_a_time=False)
        cleanup.enter_context(self.gate)
        self.airflow = AirflowStack(
            self._dags,
            env=SETTINGS | FLEET_SETTINGS | self._addresses() | self._extra_env,
            home=self.folder / "airflow",
            database=self.postgres.database(),
            parts=self._parts(ports),
            start_timeout=PATIENCE,
        )
        self.airflow.url = self.balancer.url
        self.airflow.patience = 15
        cleanup.enter_context(self.airflow)

    def _addresses(self) -> dict[str, str]:
        database = self.postgres.database().url
        extra = {"endpoint_url": self.s3.meta.endpoint_url, "region_name": "us-east-1"}
        return {
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.gate.url}/execution/",
            "AIRFLOW__CELERY__BROKER_URL": self.redis.url,
            "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{database}",
            "AIRFLOW__KIE__RATE_LIMIT_STORAGE": self.redis.url,
            "AIRFLOW_CONN_KIE_S3": json.dumps({"conn_type": "aws", **S3, "extra": extra}),
        }

    def _parts(self, ports: list[int]) -> dict[str, Part]:
        through = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self.postgres.database(self.database_of_api.port).url}
        parts = {
            name: Part("api-server", env={"AIRFLOW__API__PORT": str(port), **through})
            for name, port in zip(API_SERVERS, ports, strict=True)
        }
        parts |= {name: Part("scheduler") for name in SCHEDULERS}
        parts |= {"dag-processor": Part("dag-processor")}
        parts |= {name: Part("triggerer") for name in TRIGGERERS}
        return parts | {name: worker(name) for name in WORKERS}

    # Trouble

    def pause(self, seconds: float) -> None:
        """Wait, unless the run is being stopped."""
        self.stopping.wait(seconds)

    def kill_main(self, name: str) -> None:
        """Kill -9 a part's first process alone; what is left of it ends by itself, or after seconds."""
        child = self.airflow.process(name)
        child.stopped_on_purpose = True
        child.send_signal(signal.SIGKILL)
        self.kills += 1
        self.pause(2)
        self.airflow.kill_process(name)

    def kill_all(self, *names: str) -> None:
        """Kill -9 parts of Airflow with all they have started, as a power cut does."""
        for name in names:
            self.kill(name)

    def restore(self) -> None:
        """Start whatever has ended, as a restart policy does, and wait until all works."""
        try:
            self._start_what_has_ended()
        except AirflowStackError:  # a part that has missed the database may end only now
            self._start_what_has_ended()

    def _start_what_has_ended(self) -> None:
        for kind in COMMANDS:
            for name in self.airflow.names(kind):
                if self.airflow.process(name).exit_code is not None:
                    self.airflow.kill_process(name)
                    self.airflow.start_process(kind, name)
        self.airflow.wait_healthy(PATIENCE)

    @contextlib.contextmanager
    def frozen(self, *names: str) -> Iterator[None]:
        """Stop all processes of parts (SIGSTOP) for the block."""
        pids = [pid for name in names for pid in self.airflow.process(name).members()]
        with stopped(pids):
            yield

    @contextlib.contextmanager
    def frozen_try(self, task: Try) -> Iterator[None]:
        """Stop a task's process and its supervisor for the block."""
        with stopped([psutil.Process(task.pid).ppid(), task.pid]):
            yield

    @contextlib.contextmanager
    def locked_row(self, run_id: str) -> Iterator[None]:
        """Lock the rows of a run's task instances for the block, as the scheduler does for an instant."""
        from sqlalchemy import create_engine, text

        engine = create_engine(self.postgres.database().url)
        with engine.begin() as connection:
            connection.execute(
                text("SELECT id FROM task_instance WHERE run_id = :run_id FOR UPDATE"), {"run_id": run_id}
            )
            yield
        engine.dispose()

    def seconds_to_answer(self, url: str) -> float:
        """How long an API server takes to answer something simple that it looks up in the database."""
        import requests

        began = time.monotonic()
        requests.get(f"{url}/api/v2/monitor/health", timeout=60).raise_for_status()
        return time.monotonic() - began

    def query(self, text: str, *values: Any) -> list[tuple[Any, ...]]:
        """Read Airflow's database; while it is away, raise what `wait` takes for that."""
        import requests
        from sqlalchemy.exc import OperationalError

        try:
            return super().query(text, *values)
        except OperationalError as error:
            raise requests.ConnectionError("the database is away") from error

    def _look_up(self, ti_id: str) -> Try | None:
        import requests

        try:
            return super()._look_up(ti_id)
        except requests.ConnectionError as error:
            raise ConnectionError("the database is away") from error  # the gate closes the worker's connection

    @functools.cached_property
    def has_journal(self) -> bool:
        """Whether this is Airflow 3.3 or later; before that, nothing outlives a try."""
        return self.query("SELECT to_regclass('task_state_store') IS NOT NULL") == [(True,)]

    def facts(self, trial: Trial) -> str:
        """All that Airflow keeps of the Kie tasks of a run."""
        table = "task_state_store" if self.has_journal else "xcom"
        where = "dag_id = ? AND run_id = ?"
        stored = self.query(f"SELECT value FROM {table} WHERE {where}", trial.dag_id, trial.name)
        return "\n".join(str(value) for (value,) in stored)

    def images(self, run_id: str) -> list[str]:
        """The keys of all images that a run has saved."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{run_id}/")
        return [each["Key"] for page in pages for each in page.get("Contents", []) if each["Key"].endswith(".png")]


def worker(name: str, **env: str) -> Part:
    """One worker, with a name and a disk of its own."""
    arguments = ("--celery-hostname", f"{name}@fleet", "--concurrency", str(TASKS_AT_ONCE))
    return Part("worker", arguments, env, folder=name)


@contextlib.contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Stop processes for the block; those that end meanwhile are gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def _s3() -> Iterator[Any]:
    """A client of an S3 server with an empty bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        keys = {"aws_access_key_id": S3["login"], "aws_secret_access_key": S3["password"]}
        url = "http://{}:{}".format(*server.get_host_and_port())
        client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **keys)
        client.create_bucket(Bucket=BUCKET)
        yield client
        client.close()
    finally:
        server.stop()


class Load:
    """Runs of several DAGs that share one Kie account, started together.

    :param seconds: how long Kie works on an image.
    """

    def __init__(self, fleet: Fleet, name: str, dag_ids: tuple[str, ...], **kie: Any) -> None:
        self.fleet = fleet
        self.kie = KieEmulator(clock=lambda: time.time() + self.ahead, **{"generating_seconds": 10.0} | kie)
        self.ahead = 0.0  # of the real time is Kie's clock, in seconds
        self._dags = {f"{name}-{number}-{dag_id}": dag_id for number, dag_id in enumerate(dag_ids)}
        self.trials = [Trial(fleet, run_id, self.kie) for run_id in self._dags]
        self.deleted: set[str] = set()  # runs that a person has deleted

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as cleanup:
            self.kie.start()
            cleanup.callback(self.kie.stop)
            for trial in self.trials:
                cleanup.enter_context(trial)
            self._closing = cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def start(self) -> None:
        """Start all runs."""
        for trial in self.trials:
            trial.start(self._dags[trial.name])

    def start_with_callbacks(self) -> None:
        """Start all runs, and have Kie call back, now over one API server, now over the other."""
        for trial in self.trials:
            change_connection(trial, callback_base_url=self.fleet.balancer.url)
        self.start()

    def call_back(self, trial: Trial, times: int) -> list[int]:
        """Call back for a run's only Kie task so often at once, over all API servers; return the answers."""
        import requests

        tasks = self.kie._server.world.account.tasks.values()
        (task,) = [task for task in tasks if trial.name in task.request.prompt]
        path = urlsplit(str(task.request.callback_url)).path
        urls = [self.fleet.api_urls[number % len(self.fleet.api_urls)] + path for number in range(times)]
        body = {"code": 200, "data": {"taskId": task.id}}
        with ThreadPoolExecutor(times) as pool:
            answers = pool.map(lambda url: requests.post(url, json=body, timeout=60), urls)
            return [answer.status_code for answer in answers]

    def of(self, dag_id: str) -> Trial:
        """The first run of a DAG."""
        return next(trial for trial in self.trials if self._dags[trial.name] == dag_id)

    def wait_for_end(self, timeout: float = PATIENCE) -> None:
        """Wait until all runs have ended."""
        for trial in self.trials:
            if trial.name not in self.deleted:
                trial.wait_for_end(self.kie.release, timeout)  # a request may meet a hold only now

    def wait_until_created(self, count: int, timeout: float = PATIENCE) -> None:
        """Wait until Kie has so many tasks."""
        there = lambda: len(self.kie.bill()["tasks"]) >= count  # noqa: E731
        self.fleet.wait(there, lambda: f"not {count} Kie tasks: {self}", timeout)

    def wait_until_met(self, count: int) -> None:
        """Wait until so many requests have met a fault."""
        met = lambda: sum(bool(each["fault"]) for each in self.kie.requests()) >= count  # noqa: E731
        self.fleet.wait(met, lambda: f"not {count} faults: {self}")

    def wait_for_deferred(self, share: float = 1.0) -> None:
        """Wait until that share of all task instances waits in a triggerer."""

        def deferred() -> bool:
            states = [state for trial in self.trials for state, *_ in trial.task_instances()]
            return states.count("deferred") >= share * len(states)

        self.fleet.wait(deferred, lambda: f"not deferred: {self}")

    def skip_time(self) -> None:
        """Let Kie finish what it has."""
        self.ahead += self.kie.settings.generating_seconds + 1

    def __str__(self) -> str:
        return "; ".join(f"{trial.name}: {trial.task_instances()}" for trial in self.trials)
