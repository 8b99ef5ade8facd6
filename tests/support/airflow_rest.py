"""Airflow's REST API, as tests speak to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tests.support.processes import ProcessError

if TYPE_CHECKING:
    import requests

    TaskInstances = list[dict[str, Any]]

# What every line of a task log repeats, and what is shown in another way.
LOG_CONTEXT = {
    *("timestamp", "level", "event", "error_detail", "logger", "filename", "lineno"),
    *("dag_id", "run_id", "task_id", "map_index", "try_number", "ti_id", "ti"),
}
FINAL_RUN_STATES = ("success", "failed")


class AirflowStackError(ProcessError):
    """Airflow did not start, ended, or did not do something in time."""


class AirflowApiError(AirflowStackError):
    """Airflow's REST API refused a request."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class AirflowRest:
    """What can be asked of an API server and of the pages it makes.

    :param url: where it listens; may still change.
    :param patience: seconds that an answer may take.
    """

    url = ""
    patience = 90.0  # longer than the database may wait for its lock
    _session: requests.Session | None = None

    def wait_until(
        self, condition: Callable[[], object], timeout: float, problem: str | Callable[[], str], pause: float = 0.2
    ) -> None:
        raise NotImplementedError

    def log_in(self) -> None:
        """Get a token where everybody is an admin and yet needs one, as with Airflow 3.1.8."""
        try:
            self.api("GET", "/dags?limit=1")
        except AirflowApiError as error:
            if error.status != 401 or self._session is None:
                raise
            token = self.request("GET", "/auth/token")["access_token"]
            self._session.headers["Authorization"] = f"Bearer {token}"

    def api(self, method: str, path: str, json: Any = None) -> Any:
        """Send a request to `/api/v2` + path; the decoded answer, or None for an empty one."""
        return self.request(method, f"/api/v2{path}", json)

    def ui(self, path: str) -> Any:
        """Get from `/ui` + path: what Airflow's own pages are made from."""
        return self.request("GET", f"/ui{path}")

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

    def request(self, method: str, path: str, json: Any = None) -> Any:
        if self._session is None:
            raise AirflowStackError("The stack is not running")
        answer = self._session.request(
            method, self.url + path, json=json, timeout=self.patience, headers={"Accept": "application/json"}
        )
        if answer.status_code >= 400:
            raise AirflowApiError(
                f"{method} {path}: HTTP {answer.status_code}: {answer.text[:2000]}", answer.status_code
            )
        return answer.json() if answer.content else None


def _part(text: str) -> str:
    return quote(text, safe="")


def epoch(text: str) -> float:
    """Read a date and time of the REST API, or of the database, as seconds; SQLite's have no zone and are UTC."""
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return moment.replace(tzinfo=moment.tzinfo or timezone.utc).timestamp()


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
