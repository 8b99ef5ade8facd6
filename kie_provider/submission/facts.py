"""The JSON of every fact about submissions. Pure.

A fact is a key of the task instance's state store that is written once, with one value. T is Airflow's number of the
try, N counts the submissions of that try, P its summaries, all from 1:

- ``kie.T.N``: the intent, written before createTask is sent.
- ``kie.T.N.answer``: what Kie answered: the Kie task id, or a refusal.
- ``kie.T.N.settled``: what was found out where there is no answer: the Kie task id, from a person or from Kie's
  callback, or ``"nothing"``.
- ``kie.callback.NONCE``: the Kie task that a callback names; not of the journal, and not believed, see
  :mod:`~kie_provider.client.webhook`.
- ``kie.T.sum.P``: what the try knew when it began, then what it has learnt since the summary before.
- ``kie.T.ok``: Airflow has accepted the success of the try.

Every value except that of ``settled`` names its own key, so that an answer to another question is recognised.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypedDict, TypeGuard

import pendulum

from kie_provider.client.errors import KieValidationError
from kie_provider.client.plain import is_kie_task_id, storable
from kie_provider.submission.record import MAX_REASON, NOTHING, Intent, State, SubmissionRecord, Summary, iso

if TYPE_CHECKING:
    from typing_extensions import NotRequired

FORMAT = 1
#: Airflow advises against values over 64 kB.
MAX_SUMMARY_BYTES = 48_000


class Fact(TypedDict):
    """What every fact but ``settled`` has: its own key, and the version of its form. Times are ISO 8601, in UTC."""

    key: str
    v: int


class SuccessFact(Fact):
    """``kie.T.ok``."""

    at: str


class IntentFact(Fact):
    """``kie.T.N``.

    ``host`` and ``conn_id`` say where createTask is sent, ``request`` what; ``summaries`` is how many the try had
    written by then, and ``nonce`` part of the callback URL.
    """

    item: int
    fingerprint: str
    request: Mapping[str, object]
    at: str
    max_tries: int | None
    conn_id: str
    host: str
    summaries: int
    nonce: NotRequired[str]


class Refusal(TypedDict):
    """Why nothing was created; ``is_final``: it would be refused again."""

    code: object
    message: str
    is_final: bool


class AnswerFact(Fact):
    """``kie.T.N.answer``: either the id or the refusal."""

    at: str
    kie_task_id: NotRequired[str]
    refused: NotRequired[Refusal]


#: One submission in a summary.
Line = TypedDict(
    "Line",
    {
        "try": int,
        "number": int,
        "item": int,
        "max_tries": "int | None",
        "state": str,
        "fingerprint": str,
        "at": str,
        "kie_task_id": "NotRequired[str]",
        "reason": "NotRequired[str]",
        "may_succeed_anew": "NotRequired[bool]",
        "nonce": "NotRequired[str]",
    },
)


class SummaryFact(Fact):
    """``kie.T.sum.P``: of the beginning (``part`` of ``parts``), or of the submissions ``first`` to ``last``."""

    max_tries: int | None
    submissions: list[Line]
    part: NotRequired[int]
    parts: NotRequired[int]
    at: NotRequired[str]
    estimate: NotRequired[float | None]
    first: NotRequired[int]
    last: NotRequired[int]
    complete: NotRequired[bool]


def summary_key(try_number: int, number: int) -> str:
    """Return the key of a summary."""
    return f"kie.{try_number}.sum.{number}"


def success_key(try_number: int) -> str:
    """Return the key of the success of a try."""
    return f"kie.{try_number}.ok"


# Facts as they are written


def success_fact(try_number: int) -> SuccessFact:
    """Return the fact that a try has succeeded."""
    return SuccessFact(key=success_key(try_number), v=FORMAT, at=iso(time.time()))


def intent_fact(intent: Intent) -> IntentFact:
    """Return the intent as it is written."""
    record = intent.record
    fact = IntentFact(
        key=record.key,
        v=FORMAT,
        item=record.item,
        fingerprint=record.fingerprint,
        request=intent.request,
        at=iso(record.at),
        max_tries=record.max_tries,
        conn_id=intent.conn_id,
        host=intent.host,
        summaries=intent.summaries,
    )
    if record.nonce:
        fact["nonce"] = record.nonce
    return storable(fact)


def created_fact(record: SubmissionRecord, kie_task_id: str) -> AnswerFact:
    """Return the answer that a Kie task was created."""
    at = iso(time.time())
    return storable(AnswerFact(key=record.answer_key, v=FORMAT, kie_task_id=kie_task_id, at=at))


def refused_fact(record: SubmissionRecord, error: Exception) -> AnswerFact:
    """Return the answer that nothing was created."""
    refused = Refusal(
        code=getattr(error, "code", None),
        message=str(getattr(error, "message", error))[:MAX_REASON],
        # It would be refused again, unless a gateway has refused it, which a person can correct.
        is_final=isinstance(error, KieValidationError) and not error.is_from_gateway,
    )
    return storable(AnswerFact(key=record.answer_key, v=FORMAT, refused=refused, at=iso(time.time())))


def summary_facts(try_number: int, number: int, summary: Summary) -> Iterator[tuple[SummaryFact, Summary]]:
    """Yield a summary as it is written, split over as many keys as it needs: fact, and part of the summary.

    :param number: of its first key.
    """
    is_beginning = bool(summary.part)
    chunks = list(_chunks(summary.records))
    next_first = summary.first
    for index, chunk in enumerate(chunks):
        is_last = index == len(chunks) - 1
        if is_beginning:
            part = replace(summary, records=chunk, part=index + 1, parts=len(chunks))
        else:
            own = [record.number for record in chunk if _is_covered(record, try_number, next_first, summary.last)]
            last = summary.last if is_last else max(own, default=next_first - 1)
            part = replace(
                summary, records=chunk, first=next_first, last=last, is_complete=summary.is_complete and is_last
            )
            next_first = last + 1
        fact = SummaryFact(
            key=summary_key(try_number, number + index),
            v=FORMAT,
            max_tries=part.max_tries,
            submissions=[_line(record) for record in chunk],
        )
        if is_beginning:
            fact |= {"part": part.part, "parts": part.parts, "at": iso(part.begun_at), "estimate": part.estimate}
        else:
            fact |= {"first": part.first, "last": part.last, "complete": part.is_complete}
        yield storable(fact), part


def _chunks(records: Sequence[SubmissionRecord]) -> Iterator[tuple[SubmissionRecord, ...]]:
    chunk: list[SubmissionRecord] = []
    size = 0
    for record in records:
        length = len(json.dumps(_line(record)))
        if chunk and size + length > MAX_SUMMARY_BYTES:
            yield tuple(chunk)
            chunk, size = [], 0
        chunk.append(record)
        size += length
    yield tuple(chunk)


def _is_covered(record: SubmissionRecord, try_number: int, first: int, last: int) -> bool:
    return record.try_number == try_number and first <= record.number <= last


def _line(record: SubmissionRecord) -> Line:
    line: Line = {
        "try": record.try_number,
        "number": record.number,
        "item": record.item,
        "max_tries": record.max_tries,
        "state": record.state,
        "fingerprint": record.fingerprint,
        "at": iso(record.at),
    }
    if record.kie_task_id:
        line["kie_task_id"] = record.kie_task_id
    if record.reason:
        line["reason"] = record.reason
    if record.may_succeed_anew:
        line["may_succeed_anew"] = True
    if record.nonce:
        line["nonce"] = record.nonce
    return line


# Facts as they are read: ValueError says what is wrong with one


def read_intent(value: object, try_number: int, number: int) -> Intent:
    """Read an intent.

    :raises ValueError: it is not valid.
    """
    fields = _object(value)
    record = SubmissionRecord(
        try_number,
        number,
        fingerprint=_text(fields, "fingerprint"),
        item=_number(fields, "item"),
        max_tries=_max_tries(fields),
        at=_epoch(_text(fields, "at")),
        nonce=_nonce(fields),
    )
    request = fields.get("request")
    if not isinstance(request, Mapping):
        raise ValueError("request is not an object")  # noqa: TRY004
    return Intent(
        record,
        request,
        conn_id=_text(fields, "conn_id"),
        host=_text(fields, "host"),
        summaries=_number(fields, "summaries"),
    )


def read_answer(record: SubmissionRecord, value: object) -> SubmissionRecord:
    """Return the record with Kie's answer.

    :raises ValueError: it is not valid.
    """
    fields = _object(value)
    at = _epoch(_text(fields, "at"))
    refused = fields.get("refused")
    if refused is None:
        return replace(record, state="submitted", kie_task_id=_kie_task_id(fields.get("kie_task_id")), at=at)
    refused = _object(refused)
    state: State = "refused" if refused.get("is_final") is True else NOTHING
    return replace(record, state=state, at=at, reason=_text(refused, "message"))


def read_settled(record: SubmissionRecord, value: object) -> SubmissionRecord:
    """Return the record as a person has settled it.

    :raises ValueError: the value is neither an id nor "nothing".
    """
    if not isinstance(value, str):
        raise ValueError("it is not text")  # noqa: TRY004
    if value.strip().lower() == NOTHING:
        return replace(record, state=NOTHING, reason="a person has found out that nothing was created")
    return replace(record, state="submitted", kie_task_id=_kie_task_id(value.strip()))


def read_callback(value: object) -> str:
    """Return the Kie task that a callback names.

    :raises ValueError: there is none.
    """
    return _kie_task_id(_object(value).get("kie_task_id"))


def read_summary(value: object, try_number: int) -> Summary:
    """Read a summary of a try.

    :raises ValueError: it is not valid, or lacks a submission that it claims to cover.
    """
    fields = _object(value)
    lines = fields.get("submissions")
    if not isinstance(lines, list):
        raise ValueError("submissions is not a list")  # noqa: TRY004
    records = tuple(map(_read_line, lines))
    max_tries = _max_tries(fields)
    if "parts" in fields:
        part, parts = _number(fields, "part"), _number(fields, "parts")
        if not 1 <= part <= parts:
            raise ValueError(f"part {part} of {parts}")
        if any(record.try_number >= try_number for record in records):
            raise ValueError("it knows a submission that was not there yet")
        estimate = fields.get("estimate")
        if not (estimate is None or _is_number(estimate)):
            raise ValueError("estimate is not a number")
        return Summary(
            records, max_tries, part=part, parts=parts, begun_at=_epoch(_text(fields, "at")), estimate=estimate
        )
    first, last = _number(fields, "first"), _number(fields, "last")
    covered = {record.number for record in records if _is_covered(record, try_number, first, last)}
    missing = set(range(first, last + 1)) - covered if last - first < len(records) else {first}
    if missing:
        raise ValueError(f"submission {min(missing)} is missing in it")
    return Summary(records, max_tries, first=first, last=last, is_complete=fields.get("complete") is True)


def _read_line(value: object) -> SubmissionRecord:
    fields = _object(value)
    state = fields.get("state")
    if state not in ("unknown", "submitted", "nothing", "refused", "failed"):
        raise ValueError(f"state {state!r:.50}")
    kie_task_id = fields.get("kie_task_id")
    return SubmissionRecord(
        _number(fields, "try", at_least=1),
        _number(fields, "number", at_least=1),
        fingerprint=_text(fields, "fingerprint"),
        item=_number(fields, "item"),
        max_tries=_max_tries(fields),
        state=state,
        kie_task_id=_kie_task_id(kie_task_id) if state == "submitted" or kie_task_id is not None else None,
        at=_epoch(_text(fields, "at")),
        reason=str(fields.get("reason", "")),
        may_succeed_anew=fields.get("may_succeed_anew") is True,
        nonce=_nonce(fields),
    )


def _object(value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise ValueError("it is not an object")  # noqa: TRY004
    return value


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is not text")  # noqa: TRY004
    return value


def _number(fields: Mapping[str, object], name: str, at_least: int = 0) -> int:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name} is not a whole number of at least {at_least}")
    return value


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _max_tries(fields: Mapping[str, object]) -> int | None:
    return None if fields.get("max_tries") is None else _number(fields, "max_tries")


def _nonce(fields: Mapping[str, object]) -> str:
    return _text(fields, "nonce") if "nonce" in fields else ""


def _kie_task_id(value: object) -> str:
    if not is_kie_task_id(value):
        raise ValueError("its Kie task id cannot be one")
    return str(value)


def _epoch(text: str) -> float:
    """Return epoch seconds; 0 if the text is not a time."""
    try:
        at = pendulum.parse(text)
    except ValueError:
        return 0.0
    return at.timestamp() if isinstance(at, pendulum.DateTime) else 0.0
