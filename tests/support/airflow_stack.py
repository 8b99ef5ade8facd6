"""A real Airflow on this machine, made for one test session and gone after it."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.airflow_rest import AirflowApiError, AirflowRest, AirflowStackError, epoch
from tests.support.database import Database
from tests.support.processes import ChildProcess, free_port, stop_all

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from typing_extensions import Self

__all__ = ["AirflowApiError", "AirflowStack", "AirflowStackError", "Part"]

# The log servers would listen on all interfaces, and nobody needs them here: all logs are on one disk.
COMMANDS: dict[str, list[str]] = {
    "api-server": ["api-server"],
    "scheduler": ["scheduler", "--skip-serve-logs"],
    "dag-processor": ["dag-processor"],
    "triggerer": ["triggerer", "--skip-serve-logs"],
    "worker": ["celery", "worker", "--skip-serve-logs"],
}
LOCAL = ("api-server", "scheduler", "dag-processor", "triggerer")
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


@dataclass(frozen=True)
class Part:
    """One process of Airflow.

    :param kind: key of `COMMANDS`.
    :param arguments: further ones of that command.
    :param env: added to the environment of the stack.
    :param folder: in which it is started, below AIRFLOW_HOME.
    """

    kind: str
    arguments: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    folder: str = "."


class AirflowStack(AirflowRest):
    """API server, scheduler (LocalExecutor), DAG processor and triggerer in a temporary AIRFLOW_HOME.

    Everything listens on 127.0.0.1 only; there is no password; schedules are off, so that a DAG runs
    only when it is triggered. `env` is added to the environment of every process (connections as
    `AIRFLOW_CONN_...`, other settings as `AIRFLOW__SECTION__KEY`). With `home`, that folder is used and kept.
    Without `database`, it is a file of SQLite; another one must be there and empty. `parts` are other processes than
    the four, by name.
    """

    def __init__(
        self,
        dags_folder: Path | str,
        *,
        env: Mapping[str, str] | None = None,
        home: Path | str | None = None,
        database: Database | None = None,
        parts: Mapping[str, Part] | None = None,
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
        self._parts = dict(parts or {name: Part(name) for name in LOCAL})
        self._given_database = database
        self._ended: list[ChildProcess] = []

    # Life cycle

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Make the database, start all processes, come back when they are healthy."""
        import requests

        atexit.register(self.stop)
        try:
            self._home = self._given_home or Path(tempfile.mkdtemp(prefix="airflow-stack-"))
            self._home.mkdir(parents=True, exist_ok=True)
            self.database = self._given_database or Database(f"sqlite:///{self._home / 'airflow.db'}?timeout=30")
            self.url = self.url or f"http://127.0.0.1:{free_port()}"
            self._session = requests.Session()
            self._session.trust_env = False  # a proxy of the machine has no business with 127.0.0.1
            self.env = self._environment(self._home)
            (self._home / "airflow.cfg").touch()  # else every process writes its own defaults there
            self._start_all("api-server")
            self._migrate()
            # One kind after the other: the API server takes as long as the others, and keeps a core for itself.
            for kind in [kind for kind in COMMANDS if kind != "api-server"]:
                self._start_all(kind)
                self.wait_until(lambda: not self._not_yet_working(), self.start_timeout, f"no {kind} works")
            self.wait_healthy(self.start_timeout)
            self.log_in()
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

    def _start_all(self, kind: str) -> None:
        for name, part in self._parts.items():
            if part.kind == kind:
                self.start_process(kind, name)

    def process(self, name: str) -> ChildProcess:
        """The process of that name: api-server, scheduler, dag-processor, triggerer or what was added."""
        return self._children[name]

    def start_process(self, kind: str, name: str | None = None) -> ChildProcess:
        """Start one more process, or one that was ended, without waiting for it (see `wait_healthy`).

        `kind` is a key of `COMMANDS`; give a second one of a kind a `name` of its own.
        """
        name = name or kind
        part = self._parts.setdefault(name, Part(kind))
        if (previous := self._children.get(name)) is not None:
            if previous.members():
                raise AirflowStackError(f"{name} is running")
            self._ended.append(previous)
        self._children[name] = self._child(name, [*COMMANDS[kind], *part.arguments], part)
        return self._children[name]

    def names(self, kind: str) -> list[str]:
        """The names of all processes of a kind."""
        return [name for name, part in self._parts.items() if part.kind == kind]

    def change_parts(self, parts: Mapping[str, Part]) -> None:
        """Have parts started in another way from now on."""
        self._parts.update(parts)

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

    def _child(self, name: str, arguments: list[str], part: Part | None = None) -> ChildProcess:
        start = ["-c", API_SERVER_START] if arguments == COMMANDS["api-server"] else ["-m", "airflow"]
        folder = self.home / (part.folder if part else ".")
        folder.mkdir(exist_ok=True)
        return ChildProcess(
            name,
            [sys.executable, *start, *arguments],
            log=self.home / f"{name}.log",
            env=self.env | dict(part.env if part else {}),
            cwd=folder,
        )

    def _migrate(self) -> None:
        child = self._child("db-migrate", ["db", "migrate"])
        self._ended.append(child)
        code = child.wait(self.start_timeout)
        if code != 0:
            outcome = "did not end in time" if code is None else f"ended with exit code {code}"
            raise AirflowStackError(f"airflow db migrate {outcome}\n{child.tail()}")
        self.database.after_migration()
        (self.home / "database-ready").touch()

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
            "DATABASE__SQL_ALCHEMY_CONN": self.database.url,
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
            self.request("GET", "/execution/health/ping")
            health = self.api("GET", "/monitor/health")
        except (requests.ConnectionError, requests.Timeout):
            return "the API server"
        if health["metadatabase"]["status"] != "healthy":
            return "the database"
        return self._not_yet_working()

    def _not_yet_working(self) -> str:
        """The name of a process that has not announced itself in the database, or a worker that has not in its log."""
        rows = self.database.query("SELECT job_type, start_date FROM job WHERE state = 'running'")
        for kind in COMMANDS:
            running = [self._children[name] for name in self.names(kind) if name in self._children]
            running = [child for child in running if not child.stopped_on_purpose]
            if kind == "worker":
                deaf = [child.name for child in running if not child.has_said(" ready.")]
                if deaf:
                    return f"the {deaf[0]}"
            if kind not in JOB_TYPES:
                continue
            begun = [epoch(str(start_date)) for job_type, start_date in rows if job_type == JOB_TYPES[kind]]
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
                text = problem if isinstance(problem, str) else problem()
                raise AirflowStackError(f"{text} (waited {timeout:.0f} s)\n{self.tails()}")
            time.sleep(pause)

    def tails(self) -> str:
        """The last lines of every process."""
        return "\n".join(child.tail(15) for child in self._children.values())

    def check_processes(self) -> None:
        """Raise when a process has ended that nobody has asked to end."""
        for child in self._children.values():
            if child.exit_code is not None and not child.stopped_on_purpose:
                raise AirflowStackError(
                    f"{child.name} ended by itself with exit code {child.exit_code}\n{child.tail()}"
                )
