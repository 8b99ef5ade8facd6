"""What this task instance has submitted: the fence before createTask, and the way back to the task after a crash.

Airflow 3.3 gives every task instance a small store that outlives its tries, deferrals and clears. One key of it,
:data:`KEY`, holds one :class:`Submission`, whose phase says what a later try must assume:

- ``intent``: written before createTask is sent. It is the fence: when it cannot be written, nothing is sent. Found
  without a Kie task id it means that a task may exist whose id nobody here knows.
- ``submitted``: the Kie task id is known; any later try goes on with it.
- ``delivered``: the operator was about to return. A retry returns the same again; after a clear, a new task is wanted.

:func:`next_step` decides, :class:`Ledger` reads and writes. Before Airflow 3.3 there is no such store, and nothing
survives a retry.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import pendulum
from airflow.providers.common.compat.sdk import AirflowFailException

from kie_provider.client.errors import LOGS_PAGE, KieSubmitUnknownError, storable

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

log = logging.getLogger(__name__)

KEY = "kie_submission"
#: Kie forgets the record of a task after two months.
RETENTION = timedelta(days=60)
FORMAT = 1

NOTE_THE_ID = (
    f"put its id, as a JSON string, into the key {KEY!r} of this task instance's state store (in Airflow's Task State "
    "Store tab or through its REST API)"
)
SETTLE = f"If there is one, {NOTE_THE_ID}; if there is none, delete that key. Then clear this task."


@dataclass(frozen=True)
class Submission:
    """The ledger's one entry; JSON, so that it can be read, and put right, by hand.

    :param phase: see the module's documentation.
    :param request: the body of createTask, as sent or about to be sent; empty if the entry was made by hand.
    :param kie_task_id: Kie's id of the task, once known.
    :param at: when the phase was reached, ISO 8601 in UTC.
    :param ref: the task instance, for people: DAG, run, task and map index.
    :param try_number: Airflow's number of the try that wrote this.
    :param max_tries: Airflow's number of the last try then; a retry keeps it, a clear raises it.
    :param conn_id: the connection that was used.
    :param host: the API host that was used.
    :param superseded: the Kie task ids before this one, so that none is ever forgotten.
    """

    phase: Literal["intent", "submitted", "delivered"]
    request: Mapping[str, Any]
    kie_task_id: str | None = None
    at: str = ""
    ref: str = ""
    try_number: int = 0
    max_tries: int | None = None
    conn_id: str = ""
    host: str = ""
    superseded: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return what is stored."""
        return dict(storable({"v": FORMAT, **asdict(self)}))

    @classmethod
    def from_json(cls, stored: Any) -> Submission | None:
        """Read what is stored, or was put there by hand, for which a Kie task id is enough.

        :raises KieSubmitUnknownError: the entry makes no sense, so nobody knows what was submitted.
        """
        if stored is None:
            return None
        if isinstance(stored, str) and stored.strip():
            return cls("submitted", {}, stored.strip())
        if not _is_entry(stored):
            raise KieSubmitUnknownError(
                f"the key {KEY!r} of the state store holds {stored!r:.200}, not an entry of this provider"
            )
        entry = cls(**{field.name: stored[field.name] for field in fields(cls) if field.name in stored})
        return replace(
            entry,
            # An intent with an id was completed by hand.
            phase="submitted" if entry.phase == "intent" and entry.kie_task_id else entry.phase,
            superseded=tuple(entry.superseded),
        )

    @property
    def age(self) -> float:
        """Seconds since the phase was reached; infinite if that was not noted."""
        try:
            at = pendulum.parse(self.at)
        except ValueError:
            return math.inf
        return (pendulum.now("UTC") - at).total_seconds() if isinstance(at, pendulum.DateTime) else math.inf


def _is_entry(stored: Any) -> bool:
    return (
        isinstance(stored, Mapping)
        and stored.get("phase") in ("intent", "submitted", "delivered")
        and isinstance(stored.get("request"), Mapping)
        and isinstance(stored.get("superseded", []), list)
        and (stored["phase"] == "intent" or bool(stored.get("kie_task_id")))
        and isinstance(stored.get("kie_task_id"), str | None)
    )


@dataclass(frozen=True)
class Submit:
    """Create a task; ``superseded`` are the ids of those before it."""

    superseded: tuple[str, ...] = ()


@dataclass(frozen=True)
class GoOn:
    """Go on with the task that was submitted; ``changed`` are the fields that would now be submitted differently."""

    kie_task_id: str
    submission: Submission
    changed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unknown:
    """A task may or may not exist; nobody here knows its id."""

    submission: Submission


Step = Submit | GoOn | Unknown


def next_step(submission: Submission | None, request: Mapping[str, Any], *, is_cleared: bool) -> Step:
    """Decide what a try that is about to submit must do. Pure.

    :param submission: what the ledger holds.
    :param request: what would be submitted now.
    :param is_cleared: whether a person has cleared the task since; otherwise this is Airflow's own retry.
    """
    if submission is None:
        return Submit()
    if submission.kie_task_id is None:
        return Unknown(submission)
    changed = _changed_fields(submission.request, request)
    if is_cleared and (submission.phase == "delivered" or changed):
        return Submit((*submission.superseded, submission.kie_task_id))
    return GoOn(submission.kie_task_id, submission, changed)


def _changed_fields(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    if not before:  # put there by hand
        return ()
    before, now = _flat(before), _flat(storable(now))
    return tuple(sorted(name for name in {**before, **now} if before.get(name) != now.get(name)))


def _flat(request: Mapping[str, Any]) -> dict[str, Any]:
    task_input = request.get("input")
    rest = {name: value for name, value in request.items() if name != "input"}
    return rest | (dict(task_input) if isinstance(task_input, Mapping) else {"input": task_input})


class Ledger:
    """The ledger of the running task instance."""

    def __init__(self, context: Context) -> None:
        self._store: Any = context.get("task_state_store")
        self._ti: Any = context.get("ti")  # a DAG author's unit test may have none
        self._stored: Any = None
        self.submission: Submission | None = None

    @property
    def is_durable(self) -> bool:
        """Whether there is a store that outlives the try (Airflow 3.3 and later)."""
        return self._store is not None

    @property
    def is_cleared(self) -> bool:
        """Whether the task was cleared after the submission: that raises Airflow's ``max_tries``, a retry does not."""
        submission = self.submission
        # An entry made by hand has no max_tries: the task was cleared for us to go on with that id.
        return submission is not None and submission.max_tries not in (None, self._ti.max_tries)

    def recall(self) -> Submission | None:
        """Return what earlier tries have left.

        :raises KieSubmitUnknownError: it makes no sense.
        """
        if self._store is not None:
            self._stored = self._store.get(KEY)
            self.submission = Submission.from_json(self._stored)
        return self.submission

    def intend(self, request: Mapping[str, Any], superseded: tuple[str, ...], *, conn_id: str, host: str) -> None:
        """Put up the fence. Whatever this raises, createTask must not be sent.

        A try that was cleared or replaced in the meantime reads an empty store, but cannot write to it.
        """
        if self._store is None:
            return
        self.submission = Submission(
            phase="intent",
            request=request,
            at=now(),
            ref=f"{self._ti.dag_id} {self._ti.run_id} {self._ti.task_id} {self._ti.map_index}",
            try_number=self._ti.try_number,
            max_tries=self._ti.max_tries,
            conn_id=conn_id,
            host=host,
            superseded=superseded,
        )
        self._write(self.submission)

    def withdraw(self) -> None:
        """Take the fence down after an explicit refusal: nothing was created, so what was before is true again."""
        if self._store is None:
            return
        try:
            if self._stored is None:
                self._store.delete(KEY)
            else:
                self._store.set(KEY, self._stored, retention=RETENTION)
        except Exception as error:  # noqa: BLE001  # the refusal is what the author must read
            log.warning(
                "Kie created nothing, but Airflow could not note that (%s). Delete the key %r of this task instance's "
                "state store before you clear this task.",
                error,
                KEY,
            )

    def submitted(self, kie_task_id: str) -> None:
        """Note the id of the new task. The very first thing to do with an answer.

        :raises AirflowFailException: this try has been replaced by another one and must stop.
        """
        log.info("Kie task %s was created; all tasks and charges: %s", kie_task_id, LOGS_PAGE)
        if self.submission is None:  # there is no store
            return
        self.submission = replace(self.submission, phase="submitted", kie_task_id=kie_task_id, at=now())
        try:
            self._write(self.submission)
        except Exception as error:
            if is_replaced(error):
                raise AirflowFailException(
                    f"This try was cleared or replaced while it created Kie task {kie_task_id}, which goes on at Kie "
                    f"and will be billed. The next try does not know it: {NOTE_THE_ID}, and clear the task."
                ) from error
            log.error(  # noqa: TRY400  # a traceback would bury the id
                "Kie task %s was created, but Airflow could not note it (%s). This try goes on. If it does not "
                "succeed, the next one does not know the id: %s, and clear this task.",
                kie_task_id,
                error,
                NOTE_THE_ID,
            )

    def delivered(self, kie_task_id: str) -> None:
        """Note that the result is about to be recorded as this task's success."""
        try:
            submission = self.submission or self.recall()  # a resumed task has not read it yet
            if submission is not None:
                delivered = replace(submission, phase="delivered", kie_task_id=kie_task_id, at=now())
                self._write(replace(delivered, try_number=self._ti.try_number, max_tries=self._ti.max_tries))
        except Exception as error:  # noqa: BLE001  # the result is here, and a retry would find it again
            log.warning("Could not note that Kie task %s was delivered: %s", kie_task_id, error)

    def has_noted(self, kie_task_id: str) -> bool:
        """Whether the next try will find this id."""
        if self._store is None:
            return False
        try:
            submission = Submission.from_json(self._store.get(KEY))
        except Exception:  # noqa: BLE001  # in the worst case the next try finds the intent, and stops
            return True
        return submission is not None and submission.kie_task_id == kie_task_id

    def _write(self, submission: Submission) -> None:
        self._store.set(KEY, submission.to_json(), retention=RETENTION)


def now() -> str:
    """Return the time as it stands in the store, ISO 8601 in UTC."""
    return pendulum.now("UTC").to_iso8601_string()


def is_replaced(error: Exception) -> bool:
    """Whether the store says that this try no longer exists: HTTP 404 from Airflow's execution API."""
    detail = getattr(getattr(error, "error", None), "detail", None)
    return isinstance(detail, Mapping) and detail.get("status_code") == 404


@contextlib.contextmanager
def no_alarm() -> Iterator[None]:
    """Hold back the alarm of ``execution_timeout``: it must not cut in between sending and noting the answer.

    It goes off after the block, late by at most what createTask may take. The handler is replaced, because a signal
    that only this thread blocks is handed to another one, and Python handles it here all the same.
    """
    if threading.current_thread() is not threading.main_thread():  # no handler ever runs here
        yield
        return
    rings: list[int] = []
    previous = signal.signal(signal.SIGALRM, lambda number, _frame: rings.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, previous)
    if rings:
        signal.raise_signal(signal.SIGALRM)
