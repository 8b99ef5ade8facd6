"""What a batch has submitted: the ledger of :mod:`kie_provider.ledger`, for many Kie tasks of one task instance.

The task state store holds one header, :data:`KEY`, and one key for every hundred entries, ``kie_batch_<round>_<n>``. An
entry is an order and what became of it; its phase says what a later try must assume:

- ``intent``: the fence, written before createTask is sent. Found later without a Kie task id, it means that a task may
  exist whose id nobody here knows.
- ``submitted``: the Kie task id is known; any later try goes on with it.
- ``refused``: Kie did not take the order. ``failed``: its Kie task has failed.
- ``again``: refused or failed, and to be ordered anew.
- ``superseded``: the task was cleared with a list that does not ask for it any more.

Entries are found by what was ordered, not by their place in the list, so a list that has got a new item at its top pays
for one. Clearing a batch that was delivered begins a new round, and pays for all.

Before Airflow 3.3 there is no such store: the book is kept in this try's XComs and ends with it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import pendulum
from airflow.providers.common.compat.sdk import AirflowFailException

from kie_provider.client.errors import LOGS_PAGE, KieSubmitUnknownError, storable
from kie_provider.ledger import RETENTION, is_replaced, now

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

log = logging.getLogger(__name__)

KEY = "kie_batch"
FORMAT = 1
#: So many entries share a key of the store: Airflow advises against values over 64 kB.
SLICE = 100
_LONGEST_REASON = 200

Phase = Literal["intent", "submitted", "refused", "failed", "again", "superseded"]


@dataclass(frozen=True)
class Entry:
    """One order.

    :param fingerprint: stands for what was ordered.
    :param phase: see the module's documentation.
    :param kie_task_id: Kie's id of the task, once known.
    :param at: when the phase was reached, ISO 8601 in UTC.
    :param reason: why it was refused or has failed.
    :param may_succeed_anew: the same order, as a new task, may well succeed, and this one cost nothing.
    :param earlier: the Kie task ids before this one, so that none is ever forgotten.
    """

    fingerprint: str
    phase: Phase
    kie_task_id: str | None = None
    at: str = ""
    reason: str = ""
    may_succeed_anew: bool = False
    earlier: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, stored: Any) -> Entry:
        """Read an entry, or one that was put right by hand: an intent that has got an id.

        :raises ValueError: it makes no sense.
        """
        if not isinstance(stored, Mapping) or stored.get("phase") not in get_args(Phase):
            raise ValueError("no entry")
        entry = cls(**{field.name: stored[field.name] for field in fields(cls) if field.name in stored})
        is_known = entry.phase == "intent" and entry.kie_task_id
        return replace(entry, phase="submitted" if is_known else entry.phase, earlier=tuple(entry.earlier))

    def to_json(self) -> dict[str, Any]:
        """Return what is stored; what goes without saying is left out."""
        return {name: value for name, value in asdict(self).items() if value}

    @property
    def submitted_at(self) -> float:
        """Epoch seconds when the phase was reached; 0 if that was not noted."""
        return _epoch(self.at)


@dataclass(frozen=True)
class Header:
    """What holds for the whole batch.

    :param phase: ``running``, or ``delivered`` when the operator was about to return.
    :param round: counts the batches that this task instance has made.
    :param estimate: credits that the whole batch should cost; None: not in the price table.
    :param at: when the try began its work, ISO 8601 in UTC; it survives deferrals.
    :param max_tries: Airflow's number of the last try; a retry keeps it, a clear raises it.
    """

    phase: Literal["running", "delivered"] = "running"
    round: int = 1
    estimate: float | None = None
    at: str = ""
    ref: str = ""
    try_number: int = 0
    max_tries: int | None = None
    conn_id: str = ""
    host: str = ""

    @classmethod
    def from_json(cls, stored: Any) -> Header:
        """Read what is stored.

        :raises ValueError: it makes no sense.
        """
        if not isinstance(stored, Mapping) or stored.get("phase") not in ("running", "delivered"):
            raise ValueError("no header")
        return cls(**{field.name: stored[field.name] for field in fields(cls) if field.name in stored})


def claim(entries: Sequence[Entry], fingerprints: Sequence[str], *, is_cleared: bool) -> list[int | None]:
    """Find the entry of every item of the list; None: it has none yet. Pure.

    After a retry, items that have changed take over what was submitted in the place of others, because the inputs of a
    batch count as they were when they were first submitted; only after a clear they are ordered anew.
    """
    free: dict[str, deque[int]] = {}
    for place, entry in enumerate(entries):
        if entry.phase != "superseded":
            free.setdefault(entry.fingerprint, deque()).append(place)
    places = [free[each].popleft() if free.get(each) else None for each in fingerprints]
    if is_cleared:
        return places
    rest = iter(sorted(place for left in free.values() for place in left))
    return [next(rest, None) if place is None else place for place in places]


def reconsider(
    entries: Sequence[Entry], places: Sequence[int | None], *, is_cleared: bool, resubmit_unknown: bool
) -> dict[int, Phase]:
    """Decide what a new try makes of the entries of earlier ones: the new phase of those that get one. Pure.

    :param places: those that :func:`claim` has found.
    :param resubmit_unknown: order anew what may have been created, and pay twice if it was.
    """
    claimed = set(places)
    phases: dict[int, Phase] = {}
    for place, entry in enumerate(entries):
        if place not in claimed:
            if is_cleared:
                phases[place] = "superseded"
        elif (
            (entry.phase == "failed" and (entry.may_succeed_anew or is_cleared))
            or (entry.phase == "refused" and is_cleared)
            or (entry.phase == "intent" and resubmit_unknown)
        ):
            phases[place] = "again"
    return phases


class Book:
    """The entries of the running task instance."""

    def __init__(self, context: Context) -> None:
        self._ti: Any = context["ti"]
        store = context.get("task_state_store")
        self.is_durable = store is not None
        self._store: Any = store if store is not None else _TryStore(self._ti)
        self.header: Header | None = None
        self.entries: list[Entry] = []

    def read(self) -> None:
        """Read what earlier tries, or earlier phases of this one, have left.

        :raises KieSubmitUnknownError: it makes no sense.
        """
        stored = self._store.get(KEY)
        try:
            if stored is not None:
                self.header = Header.from_json(stored)
            while (stored := self._store.get(self._slice_key(len(self.entries) // SLICE))) is not None:
                self.entries += [Entry.from_json(entry) for entry in stored["entries"]]
                if len(self.entries) % SLICE:
                    break
        except (ValueError, TypeError, KeyError):
            raise KieSubmitUnknownError(
                f"the keys {KEY!r} of the state store hold {stored!r:.200}, not what this provider writes"
            ) from None

    @property
    def began_at(self) -> float:
        """Epoch seconds when this try began its work."""
        return _epoch(self.header.at) if self.header else 0.0

    @property
    def is_delivered(self) -> bool:
        """Whether the batch was about to be recorded as this task's success."""
        return self.header is not None and self.header.phase == "delivered"

    @property
    def is_cleared(self) -> bool:
        """Whether the task was cleared since the header was written."""
        return self.header is not None and self.header.max_tries not in (None, self._ti.max_tries)

    @property
    def has_submitted(self) -> bool:
        """Whether a Kie task may exist."""
        return any(entry.phase == "intent" or entry.kie_task_id for entry in self.entries)

    def begin_anew(self) -> None:
        """Begin the next round: a person has cleared a batch that was delivered, and wants new images."""
        assert self.header is not None  # noqa: S101  # it was delivered
        self.header = replace(self.header, round=self.header.round + 1, phase="running")
        self.entries = []

    def note(self, phases: Mapping[int, Phase]) -> None:
        """Write down what becomes of entries of earlier tries, by place."""
        for place, phase in phases.items():
            self.entries[place] = replace(self.entries[place], phase=phase)
        for n in sorted({place // SLICE for place in phases}):
            self._write_slice(n)

    def begin(self, *, estimate: float | None, conn_id: str, host: str) -> None:
        """Write down that this try is at work.

        :param estimate: credits that the whole batch should cost.
        :raises Exception: it cannot be written, so nothing may be sent.
        """
        self.header = Header(
            round=self.header.round if self.header else 1,
            estimate=estimate,
            at=now(),
            ref=f"{self._ti.dag_id} {self._ti.run_id} {self._ti.task_id} {self._ti.map_index}",
            try_number=self._ti.try_number,
            max_tries=self._ti.max_tries,
            conn_id=conn_id,
            host=host,
        )
        self._write_header()

    def intend(self, place: int | None, fingerprint: str) -> int:
        """Put up the fence. Whatever this raises, createTask must not be sent.

        :param place: of the entry that is ordered again; None: a new one.
        :return: its place.
        """
        entry = Entry(fingerprint, "intent", at=now())
        if place is None:
            place = len(self.entries)
            self.entries.append(entry)
        else:
            before = self.entries[place]
            earlier = (*before.earlier, before.kie_task_id) if before.kie_task_id else before.earlier
            self.entries[place] = replace(entry, earlier=earlier)
        self._write_slice(place // SLICE)
        return place

    def withdraw(self, place: int, phase: Phase = "again", reason: str = "") -> None:
        """Take the fence down after an explicit refusal: nothing was created."""
        self._note(place, phase=phase, reason=reason)

    def submitted(self, place: int, kie_task_id: str) -> None:
        """Note the id of the new task. The very first thing to do with an answer.

        :raises AirflowFailException: this try has been replaced by another one and must stop.
        """
        log.info("Kie task %s was created; all tasks and charges: %s", kie_task_id, LOGS_PAGE)
        self.entries[place] = replace(self.entries[place], phase="submitted", kie_task_id=kie_task_id, at=now())
        try:
            self._write_slice(place // SLICE)
        except Exception as error:
            where = f"the key {self._slice_key(place // SLICE)!r}, entry {place % SLICE}, of its state store"
            if is_replaced(error):
                raise AirflowFailException(
                    f"This try was cleared or replaced while it created Kie task {kie_task_id}, which goes on at Kie "
                    f"and will be billed. The next try does not know it; it can be put into {where}."
                ) from error
            # The next write of the slice notes it too.
            log.error(  # noqa: TRY400  # a traceback would bury the id
                "Kie task %s was created, but Airflow could not note it (%s) in %s", kie_task_id, error, where
            )

    def failed(self, place: int, reason: str, *, may_succeed_anew: bool) -> None:
        """Note that the Kie task has failed."""
        self._note(place, phase="failed", reason=reason, may_succeed_anew=may_succeed_anew)

    def delivered(self) -> None:
        """Note that the result is about to be recorded as this task's success."""
        assert self.header is not None  # noqa: S101  # the batch has begun
        self.header = replace(self.header, phase="delivered", at=now(), max_tries=self._ti.max_tries)
        try:
            self._write_header()
        except Exception as error:  # noqa: BLE001  # the result is here, and a retry would find it again
            log.warning("Could not note that the batch was delivered: %s", error)

    def _note(self, place: int, *, phase: Phase, reason: str = "", may_succeed_anew: bool = False) -> None:
        """Note what nobody has to know for certain: in the worst case a later try finds it out again, or stops."""
        self.entries[place] = replace(
            self.entries[place],
            phase=phase,
            at=now(),
            reason=reason[:_LONGEST_REASON],
            may_succeed_anew=may_succeed_anew,
        )
        try:
            self._write_slice(place // SLICE)
        except Exception as error:  # noqa: BLE001
            log.warning("Could not note that an order is %r (%s): %s", phase, reason, error)

    def _slice_key(self, n: int) -> str:
        return f"{KEY}_{self.header.round if self.header else 1}_{n}"

    def _write_slice(self, n: int) -> None:
        entries = [entry.to_json() for entry in self.entries[n * SLICE : (n + 1) * SLICE]]
        self._store.set(self._slice_key(n), storable({"v": FORMAT, "entries": entries}), retention=RETENTION)

    def _write_header(self) -> None:
        assert self.header is not None  # noqa: S101  # set by the caller
        self._store.set(KEY, storable({"v": FORMAT, **asdict(self.header)}), retention=RETENTION)


def _epoch(text: str) -> float:
    try:
        at = pendulum.parse(text)
    except ValueError:
        return 0.0
    return at.timestamp() if isinstance(at, pendulum.DateTime) else 0.0


class _TryStore:
    """This try's XComs, where Airflow has no task state store: they survive deferrals, but no retry."""

    def __init__(self, ti: Any) -> None:
        self._ti = ti

    def get(self, key: str) -> Any:
        return self._ti.xcom_pull(task_ids=self._ti.task_id, map_indexes=self._ti.map_index, key=key)

    def set(self, key: str, value: Any, *, retention: Any) -> None:  # noqa: ARG002
        self._ti.xcom_push(key, value)
