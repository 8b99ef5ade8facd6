"""Where the killing takes place: one Airflow behind a gate, and a DAG run with a Kie account for every trial."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from kie_provider.emulator import KieEmulator
from tests.support.airflow_stack import AirflowApiError, AirflowStack, AirflowStackError
from tests.support.gate import Caught, Gate, Hold, Rule, Try
from tests.support.postgres import postgres_if_installed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager
    from types import TracebackType

    from typing_extensions import Self

T = TypeVar("T")

DAGS = Path(__file__).parent / "dags"
TASK = "image"  # the paid task of every DAG
GENERATING_SECONDS = 3600.0
PATIENCE = 180.0  # seconds for any one thing to happen, on a machine that does much else
REPORT = re.compile(r"Received executor event with state success .*run_id='(.*?)', try_number=(\d+), map_index=(-?\d+)")
FINAL = ("success", "failed")
# Airflow shall notice in seconds what it notices in minutes by default. How long a worker asks its API server, and how
# often, stays as it is by default: five seconds, five times.
SETTINGS = {
    "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "15",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "3",
    "AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "2",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
    "AIRFLOW__WORKERS__SOCKET_CLEANUP_TIMEOUT": "5",
    # A task whose createTask was not answered looks once more, a minute later.
    "AIRFLOW__KIE__CALLBACK_PATIENCE": "45",
}


class Arena:
    """A real Airflow whose workers speak to it through a gate."""

    def __init__(self) -> None:
        self.kills = 0
        self._reading = threading.Lock()
        self._read_up_to: Counter[str] = Counter()
        self._reports: Counter[tuple[str, ...]] = Counter()
        self.stopping = threading.Event()
        self.undisturbed: set[str] = set()  # runs that need all parts of Airflow for now
        self._components = threading.RLock()
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as cleanup:
            self._build(cleanup)
            self._closing = cleanup.pop_all()
        return self

    def _build(self, cleanup: contextlib.ExitStack) -> None:
        """Start everything; it ends in reverse."""
        database = cleanup.enter_context(postgres_if_installed())
        self.gate = Gate(lambda: self.airflow.url, self._look_up, one_at_a_time=database is None)
        cleanup.enter_context(self.gate)
        through_the_gate = {"AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.gate.url}/execution/"}
        self.airflow = AirflowStack(DAGS, env=SETTINGS | through_the_gate, database=database)
        cleanup.enter_context(self.airflow)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.__exit__(kind, error, trace)

    def run(self, jobs: Iterable[Callable[[], T]], at_once: int) -> list[T]:
        """Do all jobs, several at once, and return what they return."""
        with ThreadPoolExecutor(at_once) as pool:
            try:
                return list(pool.map(lambda job: job(), jobs))
            except BaseException:
                self.stopping.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    # Looking

    def wait(self, condition: Callable[[], Any], problem: str | Callable[[], str], timeout: float = PATIENCE) -> Any:
        """Poll until `condition` returns something, which is returned; the API server may be away meanwhile."""
        import requests

        deadline = time.monotonic() + timeout
        while True:
            try:
                if found := condition():
                    return found
            except (requests.ConnectionError, requests.Timeout):
                pass
            except AirflowApiError as error:
                if error.status < 500:  # as it answers while it starts or ends
                    raise
            if self.stopping.is_set():
                raise KeyboardInterrupt  # here, too: no job goes on, and none is judged
            if time.monotonic() > deadline:
                text = problem if isinstance(problem, str) else problem()
                raise AirflowStackError(f"{text} (waited {timeout:.0f} s)")
            time.sleep(0.3)

    def api(self, method: str, path: str, json: Any = None) -> Any:
        """As the stack's, but one at a time, and wait for an API server that is away."""
        answers: list[Any] = []

        def answered() -> bool:
            with self.gate.writing:
                answers.append(self.airflow.api(method, path, json))
            return True

        self.wait(answered, f"no answer to {method} {path}")
        return answers[-1]

    def query(self, text: str, *values: Any) -> list[tuple[Any, ...]]:
        """Read Airflow's database: for all that is asked again and again."""
        return self.airflow.database.query(text, *values)

    def _look_up(self, ti_id: str) -> Try | None:
        columns = "dag_id, run_id, task_id, map_index, try_number"
        as_sqlite_keeps_it = ti_id.replace("-", "")
        rows = self.query(f"SELECT {columns} FROM task_instance WHERE id = ?", as_sqlite_keeps_it)
        return Try(ti_id, *rows[0]) if rows else None

    def reports(self, run_id: str, try_number: int, map_index: int) -> int:
        """How many phases of a try the scheduler knows to be over, because a worker has told it so."""
        with self._reading:
            for name in self.airflow.names("scheduler"):
                with (self.airflow.home / f"{name}.log").open(encoding="utf-8", errors="replace") as log:
                    log.seek(self._read_up_to[name])
                    while (line := log.readline()).endswith("\n"):
                        self._read_up_to[name] = log.tell()
                        if found := REPORT.search(line):
                            self._reports[found.groups()] += 1
            return self._reports[run_id, str(try_number), str(map_index)]

    def change(self, text: str, *values: Any) -> None:
        """Change Airflow's database behind its back."""
        self.airflow.database.change(text, *values)

    # Killing

    def kill_task(self, task: Try, *, supervisor: bool = True) -> bool:
        """Kill -9 a task's process and, unless told otherwise, first the worker above it, as when a machine goes down.

        A worker that lives would report the end of its task. False: the process has ended before.
        """
        try:
            child = psutil.Process(task.pid)
            worker = child.parent()
            sessions = {os.getsid(child.pid), os.getsid(worker.pid if worker else child.pid)}
        except (psutil.NoSuchProcess, ProcessLookupError):
            return False
        names = self.airflow.names("scheduler") + self.airflow.names("worker")
        above = set().union(*(self.airflow.sessions(name) for name in names))
        if not sessions <= above or child.pid in above:
            return False  # another program has got the id of a task that is gone
        victims = [child]
        if supervisor and worker is not None and worker.pid not in above:
            victims.insert(0, worker)
            task.killed += 1
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.SIGKILL)
        self.kills += 1
        return True

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Wait for the right to take down parts of Airflow: nobody else does, and no run would be disturbed."""
        self.wait(lambda: not self.undisturbed, lambda: f"{self.undisturbed} do not end", 3 * PATIENCE)
        with self._components:
            yield

    @contextlib.contextmanager
    def without(self, name: str) -> Iterator[None]:
        """Kill -9 a part of Airflow and all it has started, and start it again after the block."""
        with self.alone():
            self.kill(name)
            try:
                yield
            finally:
                self.restart(name)

    def kill(self, name: str) -> None:
        self.airflow.kill_process(name)
        self.kills += 1

    def restart(self, name: str) -> None:
        self.airflow.start_process(name)
        self.airflow.wait_healthy(PATIENCE)


class Trial:
    """One DAG run with a Kie account of its own, or with one that is given, and what can be done to it."""

    def __init__(self, arena: Arena, name: str, kie: KieEmulator | None = None) -> None:
        self.arena = arena
        self.name = name
        self.dag_id = ""
        self._ahead = 0.0
        self._given_kie = kie
        self.kie = kie or KieEmulator(generating_seconds=GENERATING_SECONDS, clock=lambda: time.time() + self._ahead)

    def __enter__(self) -> Self:
        if self._given_kie is None:
            self.kie.start()
        self._create("/connections", self.connection(self.kie.api_key))
        return self

    def __exit__(self, *_: object) -> None:
        if self._given_kie is None:
            self.kie.stop()

    def alone(self) -> AbstractContextManager[None]:
        """Wait for the right to take down parts of Airflow; from here on, others may do it before."""
        self.arena.undisturbed.discard(self.name)
        return self.arena.alone()

    @property
    def path(self) -> str:
        return f"/dags/{self.dag_id}/dagRuns/{self.name}"

    def start(self, dag_id: str = "chaos_generate") -> None:
        """Start the run."""
        self.dag_id = dag_id
        self._create(f"/dags/{dag_id}/dagRuns", {"logical_date": None, "dag_run_id": self.name})

    def connection(self, key: str) -> dict[str, Any]:
        """The run's connection, as the REST API wants it."""
        connection = {**self.kie.connection, "password": key}
        return {"connection_id": self.name, **connection, "extra": json.dumps(connection["extra"])}

    def _create(self, path: str, body: dict[str, Any]) -> None:
        try:
            self.arena.api("POST", path, body)
        except AirflowApiError as error:
            if error.status != 409:  # it is there: only the answer was lost, to a kill of the API server
                raise

    def hold(self, method: str, path: str, body: str = "", **rule: Any) -> Hold:
        """Hold a request of this run at the gate."""
        return self.arena.gate.hold(Rule(method, path, body, run_id=self.name, **rule))

    def caught(self, hold: Hold) -> Try:
        """Wait until a request has come to be held, and return who has sent it."""
        caught: Caught = self.arena.wait(lambda: hold.caught, lambda: f"{self.name}: nothing came for {hold.rule}")
        return caught.by

    def kill(self, task: Try, *, supervisor: bool = True) -> None:
        """Kill one try."""
        if not self.arena.kill_task(task, supervisor=supervisor):
            raise AirflowStackError(f"{self.name}: the process {task.pid} of the task is not there to be killed")

    def last_try(self) -> Try:
        """The try that has started last."""
        return self.tries()[-1]

    def kill_if_running(self, *, supervisor: bool) -> None:
        """Kill the try that has started last, unless it has ended, or none has started yet."""
        for task in self.tries()[-1:]:
            self.arena.kill_task(task, supervisor=supervisor)

    def tries(self) -> list[Try]:
        """All tries of the run, in the order in which they have started."""
        return [each for each in self.arena.gate.tries() if each.run_id == self.name]

    def task_instances(self, task_id: str = TASK) -> list[tuple[str | None, int, int]]:
        """State, try number and map index of the task's instances."""
        columns = "state, try_number, map_index"
        where = "dag_id = ? AND run_id = ? AND task_id = ?"
        return self.arena.query(f"SELECT {columns} FROM task_instance WHERE {where}", self.dag_id, self.name, task_id)

    def is_settled(self, state: str | None, try_number: int, map_index: int) -> bool:
        """Whether the scheduler knows that a deferred task has left its worker.

        If it comes back before that, Airflow takes it for one that was killed, and starts another try.
        """
        phases = [
            each.phases - each.killed
            for each in self.arena.gate.tries()
            if (each.run_id, each.try_number, each.map_index) == (self.name, try_number, map_index)
        ]
        return state != "deferred" or self.arena.reports(self.name, try_number, map_index) >= sum(phases)

    def wait_for(self, *states: str, task_id: str = TASK, try_number: int | None = None) -> None:
        """Wait until all instances of the task are in one of these states, in that try if one is given."""

        def reached() -> bool:
            found = self.task_instances(task_id)
            return all(each[0] in states and try_number in (None, each[1]) and self.is_settled(*each) for each in found)

        self.arena.wait(
            reached, lambda: f"{self.name}: not {' or '.join(states)} {try_number or ''}, but {self.describe(task_id)}"
        )

    def describe(self, task_id: str = TASK) -> str:
        """The state of the task, and its logs."""
        found = self.task_instances(task_id)
        return "\n".join([str(found), *(self.log(task_id, map_index) for *_, map_index in found)])

    def wait_until_asked(self, times: int) -> None:
        """Wait until Kie was asked so often how its task is going."""

        def asked() -> bool:
            return len([each for each in self.kie.requests() if each["path"].endswith("recordInfo")]) >= times

        self.arena.wait(asked, lambda: f"{self.name}: Kie was not asked; {self.describe()}")

    def wait_for_end(self, on_poll: Callable[[], None] = lambda: None, timeout: float = PATIENCE) -> None:
        """Wait until the whole run has ended."""

        def ended() -> bool:
            on_poll()
            where = "dag_id = ? AND run_id = ?"
            ((state,),) = self.arena.query(f"SELECT state FROM dag_run WHERE {where}", self.dag_id, self.name)
            return state in FINAL

        self.arena.wait(ended, lambda: f"{self.name}: the run does not end: {self.describe()}", timeout)

    def clear(self, map_index: int | None = None) -> None:
        """Clear the paid task, or one of its mapped instances, as a person does in the UI."""
        what = TASK if map_index is None else [TASK, map_index]
        body = {"dry_run": False, "only_failed": False, "dag_run_id": self.name, "task_ids": [what]}
        self.arena.api("POST", f"/dags/{self.dag_id}/clearTaskInstances", body)

    def settle(self, key: str, found: str) -> None:
        """Add one fact by hand, as the documentation says."""
        path = f"{self.path}/taskInstances/{TASK}/state-store/{key}?map_index=-1"
        self.arena.api("PUT", path, {"value": found, "expires_at": None})

    def proves_that_it_lives(self) -> None:
        """Have the scheduler wait for five minutes, as by default, until it takes the task for dead; here seconds."""
        later = datetime.now(timezone.utc) + timedelta(minutes=5)
        statement = "UPDATE task_instance SET last_heartbeat_at = ? WHERE run_id = ?"
        self.arena.change(statement, f"{later:%Y-%m-%d %H:%M:%S.%f}", self.name)

    @contextlib.contextmanager
    def cut_off(self) -> Iterator[None]:
        """The workers of this run do not reach Airflow's API server meanwhile."""
        with self.arena.gate.cut_off(self.name):
            yield

    def finish_at_kie(self) -> None:
        """Kie finishes everything that was created so far."""
        self._ahead += GENERATING_SECONDS + 1

    # Evidence

    def charged(self) -> list[str]:
        """The ids of the tasks Kie charges for."""
        return [task["taskId"] for task in self.kie.bill()["tasks"] if task["credits"]]

    def store(self, map_index: int = -1) -> str:
        """All that the task's state store holds, as text."""
        path = f"{self.path}/taskInstances/{TASK}/state-store?map_index={map_index}"
        return json.dumps(self.arena.api("GET", path))

    def xcom(self, map_index: int = -1) -> str:
        """All XComs of the task, as text."""
        path = f"{self.path}/taskInstances/{TASK}/xcomEntries"
        keys = [each["key"] for each in self.arena.api("GET", f"{path}?map_index={map_index}")["xcom_entries"]]
        values = [self.arena.api("GET", f"{path}/{key}?map_index={map_index}&stringify=false") for key in keys]
        return json.dumps({value["key"]: value["value"] for value in values})

    def xcom_keys(self) -> set[str]:
        """The keys of the task's XComs."""
        where = "dag_id = ? AND run_id = ? AND task_id = ?"
        return {key for (key,) in self.arena.query(f"SELECT key FROM xcom WHERE {where}", self.dag_id, self.name, TASK)}

    def log(self, task_id: str = TASK, map_index: int = -1) -> str:
        """The logs of all tries."""
        texts = []
        tries = [number for _, number, index in self.task_instances(task_id) if index == map_index]
        for number in range(1, max(tries, default=0) + 1):
            with contextlib.suppress(AirflowApiError):  # a try that never began has none
                read = partial(self._log_of_try, task_id, map_index, number)
                texts.append(self.arena.wait(read, f"{self.name}: no log of try {number}"))
        return "\n".join(texts)

    def _log_of_try(self, task_id: str, map_index: int, number: int) -> str:
        text = self.arena.airflow.task_log(self.dag_id, self.name, task_id, map_index, number)
        return f"--- try {number}\n{text}"

    def places(self, kie_task_id: str, map_index: int = -1) -> set[str]:
        """Where Airflow's user finds an id."""
        texts = {
            "state store": self.store(map_index),
            "XCom": self.xcom(map_index),
            "log": self.log(map_index=map_index),
        }
        return {place for place, text in texts.items() if kie_task_id in text}
