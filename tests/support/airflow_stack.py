"""A real Airflow on this machine, made for one test session and gone after it."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import sqlite3
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tests.support.processes import ChildProcess, stop_all

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from typing_extensions import Self

    TaskInstances = list[dict[str, Any]]

# The log servers would listen on all interfaces, and nobody needs them here: all logs are on one disk.
COMMANDS: dict[str, list[str]] = {
    "api-server": ["api-server"],
    "scheduler": ["scheduler", "--skip-serve-logs"],
    "dag-processor": ["dag-processor"],
    "triggerer": ["triggerer", "--skip-serve-logs"],
}
# Reading the API server's modules takes longer than all else and needs no database, so it begins before that
# is there. The names exist in 3.1 to 3.3; without them the start is only slower. At the end, Python would take
# seconds to take all that apart; what is registered first is called last.
API_SERVER_START = """
import atexit, contextlib, os, pathlib, sys, time
atexit.register(os._exit, 0)
with contextlib.suppress(ImportError):
    import airflow.api_fastapi.execution_api.routes
    import airflow.api_fastapi.core_api.routes.ui
    import airflow.api_fastapi.core_api.routes.public
while not pathlib.Path("database-ready").exists():
    time.sleep(0.05)
from airflow.__main__ import main
sys.exit(main())
"""
JOB_TYPES = {"scheduler": "SchedulerJob", "dag-processor": "DagProcessorJob", "triggerer": "TriggererJob"}
# What every line of a task log repeats, and what is shown in another way.
LOG_CONTEXT = {
    *("timestamp", "level", "event", "error_detail", "logger", "filename", "lineno"),
    *("dag_id", "run_id", "task_id", "map_index", "try_number", "ti_id", "ti"),
}
FINAL_RUN_STATES = ("success", "failed")


class AirflowStackError(RuntimeError):
    """Airflow did not start, ended, or did not do something in time."""


class AirflowApiError(AirflowStackError):
    """Airflow's REST API refused a request."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def free_port() -> int:
    """A loopback port nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class AirflowStack:
    """API server, scheduler (LocalExecutor), DAG processor and triggerer on SQLite in a temporary AIRFLOW_HOME.

    Everything listens on 127.0.0.1 only; there is no password; schedules are off, so that a DAG runs
    only when it is triggered. `env` is added to the environment of every process (connections as
    `AIRFLOW_CONN_...`, other settings as `AIRFLOW__SECTION__KEY`). With `home`, that folder is used and kept.
    """

    def __init__(
        self,
        dags_folder: Path | str,
        *,
        env: Mapping[str, str] | None = None,
        home: Path | str | None = None,
        start_timeout: float = 120,
        stop_grace: float = 5,
    ) -> None:
        self.dags_folder = Path(dags_folder).resolve()
        self.start_timeout = start_timeout
        self.stop_grace = stop_grace
        self._extra_env = dict(env or {})
        self._given_home = Path(home) if home else None
        self._home: Path | None = None
        self._children: dict[str, ChildProcess] = {}
        self._kinds: dict[str, str] = {}
        self._ended: list[ChildProcess] = []
        self._session: Any = None
        self.url = ""

    # Life cycle

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Make the database, start the four processes, come back when all are healthy."""
        import requests

        atexit.register(self.stop)
        try:
            self._home = self._given_home or Path(tempfile.mkdtemp(prefix="airflow-stack-"))
            self._home.mkdir(parents=True, exist_ok=True)
            self.url = f"http://127.0.0.1:{free_port()}"
            self._session = requests.Session()
            self._session.trust_env = False  # a proxy of the machine has no business with 127.0.0.1
            self.env = self._environment(self._home)
            (self._home / "airflow.cfg").touch()  # else every process writes its own defaults there
            self.start_process("api-server")
            self._migrate()
            # One after the other: the API server takes as long as these three, and keeps a core for itself.
            for name in JOB_TYPES:
                self.start_process(name)
                self.wait_until(lambda: not self._not_yet_working(), self.start_timeout, f"{name} does not work")
            self.wait_healthy(self.start_timeout)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End every process, also those that were started along the way, and remove the home folder."""
        atexit.unregister(self.stop)
        try:
            stop_all([*self._children.values(), *self._ended], grace=self.stop_grace)
            left = self.living_processes()
            if left:
                raise AirflowStackError(f"These processes are still alive after the stop: {left}")
        finally:
            if self._session is not None:
                self._session.close()
                self._session = None
            if self._home is not None and self._given_home is None:
                shutil.rmtree(self._home, ignore_errors=True)

    def living_processes(self) -> dict[str, list[int]]:
        """Process ids by name, of everything this stack has ever started and that is alive."""
        found: dict[str, list[int]] = {}
        for child in [*self._children.values(), *self._ended]:
            if members := child.members():
                found.setdefault(child.name, []).extend(members)
        return found

    @property
    def home(self) -> Path:
        """AIRFLOW_HOME: database, configuration and the log file of every process."""
        if self._home is None:
            raise AirflowStackError("The stack has not been started")
        return self._home

    # Processes

    def process(self, name: str) -> ChildProcess:
        """The process of that name: api-server, scheduler, dag-processor, triggerer or what was added."""
        return self._children[name]

    def start_process(self, kind: str, name: str | None = None) -> ChildProcess:
        """Start one more process, or one that was ended, without waiting for it (see `wait_healthy`).

        `kind` is a key of `COMMANDS`; give a second one of a kind a `name` of its own.
        """
        name = name or kind
        if (previous := self._children.get(name)) is not None:
            if previous.members():
                raise AirflowStackError(f"{name} is running")
            self._ended.append(previous)
        self._children[name] = self._child(name, COMMANDS[kind])
        self._kinds[name] = kind
        return self._children[name]

    def sessions(self, name: str) -> set[int]:
        """Session ids of the processes of that name, also of ended ones: what those have started may live on."""
        return {child.pid for child in [*self._children.values(), *self._ended] if child.name == name}

    def kill_process(self, name: str) -> None:
        """Kill -9 the process and all it has started, as a power cut would."""
        self._children[name].kill()

    def stop_process(self, name: str, number: int = signal.SIGTERM, timeout: float = 30) -> None:
        """Signal one process, wait for its end, and clear away what it leaves behind."""
        child = self._children[name]
        child.stopped_on_purpose = True
        child.send_signal(number)
        child.wait(timeout)
        child.kill()

    def _child(self, name: str, arguments: list[str]) -> ChildProcess:
        start = ["-c", API_SERVER_START] if arguments == COMMANDS["api-server"] else ["-m", "airflow"]
        return ChildProcess(
            name,
            [sys.executable, *start, *arguments],
            log=self.home / f"{name}.log",
            env=self.env,
            cwd=self.home,
        )

    def _migrate(self) -> None:
        child = self._child("db-migrate", ["db", "migrate"])
        self._ended.append(child)
        code = child.wait(self.start_timeout)
        if code != 0:
            outcome = "did not end in time" if code is None else f"ended with exit code {code}"
            raise AirflowStackError(f"airflow db migrate {outcome}\n{child.tail()}")
        self._never_give_a_trigger_id_twice()
        (self.home / "database-ready").touch()

    def _never_give_a_trigger_id_twice(self) -> None:
        """Let SQLite number triggers as other databases do.

        It gives the id of the newest row again once that row is gone. A triggerer that could not load that trigger
        never forgets the id, so it would never run the next one.
        """
        with contextlib.closing(self._database()) as database, database:
            query = "SELECT sql FROM sqlite_master WHERE tbl_name = 'trigger' AND sql IS NOT NULL ORDER BY type DESC"
            table, *indexes = [sql for (sql,) in database.execute(query)]
            table = table.replace("\tid INTEGER NOT NULL", "\tid INTEGER PRIMARY KEY AUTOINCREMENT", 1)
            table = re.sub(r",\s*CONSTRAINT \w+ PRIMARY KEY \(id\)", "", table)
            for statement in ('DROP TABLE "trigger"', table, *indexes):
                database.execute(statement)

    def _database(self) -> sqlite3.Connection:
        return sqlite3.connect(self.home / "airflow.db", timeout=30)

    def _environment(self, home: Path) -> dict[str, str]:
        # What the developer has set for another Airflow, or a real key, must not get in.
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW_", "KIE_"))}
        settings = {
            "CORE__DAGS_FOLDER": str(self.dags_folder),
            "CORE__LOAD_EXAMPLES": "False",
            "CORE__EXECUTOR": "LocalExecutor",
            "CORE__PARALLELISM": "8",
            "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "CORE__TEST_CONNECTION": "Enabled",
            "CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "CORE__HOSTNAME_CALLABLE": "socket.gethostname",  # no name server in the way
            "CORE__FERNET_KEY": "",  # throw-away database, nothing to encrypt
            "CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "0",
            "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}?timeout=30",
            "API__HOST": "127.0.0.1",
            "API__PORT": self.url.rpartition(":")[2],
            "API__BASE_URL": self.url,
            "API__WORKERS": "1",
            "API__SECRET_KEY": secrets.token_hex(16),
            "API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "SCHEDULER__USE_JOB_SCHEDULE": "False",
            "SCHEDULER__ENABLE_HEALTH_CHECK": "False",
            "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
            "SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
            "SCHEDULER__JOB_HEARTBEAT_SEC": "2",
            "TRIGGERER__JOB_HEARTBEAT_SEC": "2",
            "DAG_PROCESSOR__REFRESH_INTERVAL": "5",
            "DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "1",
            "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "10",
            # How soon a worker notices that its task has ended, or was cleared.
            "WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
            "LOGGING__BASE_LOG_FOLDER": str(home / "logs"),
            "LOGGING__DAG_PROCESSOR_CHILD_PROCESS_LOG_DIRECTORY": str(home / "logs" / "dag_processor"),
            "LOGGING__COLORED_CONSOLE_LOG": "False",
            "USAGE_DATA_COLLECTION__ENABLED": "False",
        }
        return {
            **inherited,
            "AIRFLOW_HOME": str(home),
            "NO_COLOR": "1",
            "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1", "localhost"])),
            **{f"AIRFLOW__{key}": value for key, value in settings.items()},
            **self._extra_env,
        }

    # Waiting

    def wait_healthy(self, timeout: float = 60) -> None:
        """Wait until every process that was started, and not ended on purpose, has reported to work."""
        missing = "the API server"

        def healthy() -> bool:
            nonlocal missing
            missing = self._not_yet_healthy()
            return not missing

        self.wait_until(healthy, timeout, lambda: f"Airflow is not healthy, still waiting for {missing}")

    def _not_yet_healthy(self) -> str:
        import requests

        try:
            # The first request there takes seconds of preparation; without this, the first task pays for it.
            self._request("GET", "/execution/health/ping")
            health = self.api("GET", "/monitor/health")
        except (requests.ConnectionError, requests.Timeout):
            return "the API server"
        if health["metadatabase"]["status"] != "healthy":
            return "the database"
        return self._not_yet_working()

    def _not_yet_working(self) -> str:
        """The name of a process that has not announced itself in the database."""
        with contextlib.closing(self._database()) as database:
            rows = database.execute("SELECT job_type, start_date FROM job WHERE state = 'running'").fetchall()
        for kind, job_type in JOB_TYPES.items():
            begun = [epoch(f"{start_date}+00:00") for row_type, start_date in rows if row_type == job_type]
            running = [
                child
                for name, child in self._children.items()
                if self._kinds[name] == kind and not child.stopped_on_purpose
            ]
            for child in running:
                # A row does not name its process; those younger than the process must be enough for all.
                wanted = sum(other.started_at >= child.started_at for other in running)
                if sum(moment >= child.started_at for moment in begun) < wanted:
                    return f"the {child.name}"
        return ""

    def wait_until(
        self, condition: Callable[[], object], timeout: float, problem: str | Callable[[], str], pause: float = 0.2
    ) -> None:
        """Poll `condition`; when time is up or a process has died, raise with the `problem` and the logs."""
        deadline = time.monotonic() + timeout
        while not condition():
            self.check_processes()
            if time.monotonic() > deadline:
                logs = "\n".join(child.tail(15) for child in self._children.values())
                text = problem if isinstance(problem, str) else problem()
                raise AirflowStackError(f"{text} (waited {timeout:.0f} s)\n{logs}")
            time.sleep(pause)

    def check_processes(self) -> None:
        """Raise when a process has ended that nobody has asked to end."""
        for child in self._children.values():
            if child.exit_code is not None and not child.stopped_on_purpose:
                raise AirflowStackError(
                    f"{child.name} ended by itself with exit code {child.exit_code}\n{child.tail()}"
                )

    # REST API

    def api(self, method: str, path: str, json: Any = None) -> Any:
        """Send a request to `/api/v2` + path; the decoded answer, or None for an empty one."""
        return self._request(method, f"/api/v2{path}", json)

    def ui(self, path: str) -> Any:
        """Get from `/ui` + path: what Airflow's own pages are made from."""
        return self._request("GET", f"/ui{path}")

    def trigger_dag(self, dag_id: str, conf: dict[str, Any] | None = None, timeout: float = 60) -> str:
        """Start a run as soon as the DAG is known, and return its run id."""
        self.wait_for_dag(dag_id, timeout)
        self.api("PATCH", f"/dags/{dag_id}", {"is_paused": False})
        run = self.api("POST", f"/dags/{dag_id}/dagRuns", {"logical_date": None, "conf": conf or {}})
        return str(run["dag_run_id"])

    def wait_for_dag(self, dag_id: str, timeout: float = 60) -> None:
        """Wait until the DAG processor has read the DAG; a file it cannot import ends the wait early."""
        deadline = time.monotonic() + timeout
        broken: list[str] = []

        def known() -> bool:
            nonlocal broken
            try:
                self.api("GET", f"/dags/{dag_id}/details")
            except AirflowApiError as error:
                if error.status != 404:
                    raise
            else:
                return True
            errors = self.api("GET", "/importErrors")["import_errors"]
            broken = [f"{each['filename']}:\n{each['stack_trace']}" for each in errors]
            if broken and time.monotonic() > deadline - timeout + 10:  # the file may be one of others
                raise AirflowStackError(f"No DAG {dag_id}; these files cannot be read:\n" + "\n".join(broken))
            return False

        self.wait_until(known, timeout, lambda: f"No DAG {dag_id} in {self.dags_folder}; {broken}")

    def wait_for_run(
        self,
        dag_id: str,
        run_id: str,
        timeout: float = 180,
        on_change: Callable[[TaskInstances], None] | None = None,
        on_poll: Callable[[TaskInstances], None] | None = None,
    ) -> str:
        """Wait for the end of a run and return its state: success or failed.

        Both callbacks get all task instances: `on_change` when one has moved, `on_poll` at every look.
        """
        seen: list[tuple[Any, ...]] = []
        state = "queued"

        def finished() -> bool:
            nonlocal seen, state
            state = self.api("GET", f"/dags/{dag_id}/dagRuns/{_part(run_id)}")["state"]
            tasks = self.task_instances(dag_id, run_id)
            now = [(each["task_id"], each["map_index"], each["state"], each["try_number"]) for each in tasks]
            if on_poll:
                on_poll(tasks)
            if on_change and now != seen:
                on_change(tasks)
            seen = now
            return state in FINAL_RUN_STATES

        self.wait_until(finished, timeout, lambda: f"Run {run_id} of {dag_id} is {state}, tasks: {seen}")
        return state

    def task_instances(self, dag_id: str, run_id: str) -> TaskInstances:
        """All task instances of a run, as the REST API describes them."""
        found: TaskInstances = []
        while True:
            page = self.api(
                "GET",
                f"/dags/{dag_id}/dagRuns/{_part(run_id)}/taskInstances?limit=100&offset={len(found)}&order_by=id",
            )
            found += page["task_instances"]
            if len(found) >= page["total_entries"] or not page["task_instances"]:
                return sorted(found, key=lambda each: (each["task_id"], each["map_index"]))

    def xcom(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1, key: str = "return_value") -> Any:
        """The value a task instance has left under `key`."""
        path = f"{self._task_path(dag_id, run_id, task_id)}/xcomEntries/{_part(key)}"
        return self.api("GET", f"{path}?map_index={map_index}&stringify=false")["value"]

    def task_log(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1, try_number: int = 1) -> str:
        """The log of one try, one message per line, with the tracebacks of errors."""
        path = f"{self._task_path(dag_id, run_id, task_id)}/logs/{try_number}"
        content = self.api("GET", f"{path}?map_index={map_index}&full_content=true")["content"]
        return "\n".join(_log_line(each) for each in content)

    def _task_path(self, dag_id: str, run_id: str, task_id: str) -> str:
        return f"/dags/{dag_id}/dagRuns/{_part(run_id)}/taskInstances/{_part(task_id)}"

    def _request(self, method: str, path: str, json: Any = None) -> Any:
        if self._session is None:
            raise AirflowStackError("The stack is not running")
        # Longer than the database may wait for its lock.
        answer = self._session.request(
            method, self.url + path, json=json, timeout=90, headers={"Accept": "application/json"}
        )
        if answer.status_code >= 400:
            raise AirflowApiError(
                f"{method} {path}: HTTP {answer.status_code}: {answer.text[:2000]}", answer.status_code
            )
        return answer.json() if answer.content else None


def _part(text: str) -> str:
    return quote(text, safe="")


def epoch(text: str) -> float:
    """Read a date and time of the REST API as seconds."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def _log_line(entry: dict[str, Any] | str) -> str:
    if isinstance(entry, str):
        return entry
    extra = {key: value for key, value in entry.items() if key not in LOG_CONTEXT}
    lines = [" ".join(str(part) for part in (entry.get("timestamp"), entry.get("level"), entry["event"]) if part)]
    lines[0] += f" {extra}" if extra else ""
    for error in entry.get("error_detail") or ():
        lines += [f"    {frame['filename']}:{frame['lineno']} in {frame['name']}" for frame in error["frames"]]
        lines.append(f"  {error['exc_type']}: {error['exc_value']}")
    return "\n".join(lines)
