"""One submission as the journal records it. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

import pendulum

from kie_provider.client.plain import storable

#: What a person writes if createTask has created nothing.
NOTHING: Final = "nothing"
#: Longest reason, in characters.
MAX_REASON = 200

State = Literal["unknown", "submitted", "nothing", "refused", "failed"]


@dataclass(frozen=True)
class SubmissionRecord:
    """One submission.

    :param try_number: Airflow's number of the try that submitted it.
    :param number: of the submission within that try, from 1.
    :param fingerprint: hash of what was submitted.
    :param item: index in the list of a batch; 0 for a single image.
    :param max_tries: Airflow's ``max_tries`` when a try last relied on this; a retry keeps it, a clear raises it.
    :param state: ``unknown``: createTask was about to be sent and no answer is known, so a Kie task may exist.
        ``submitted``: the Kie task id is known. ``nothing``: nothing was created, and another attempt may succeed.
        ``refused``: Kie rejected the request. ``failed``: the Kie task has failed.
    :param kie_task_id: Kie's id of the task, once known.
    :param at: epoch seconds of the intent, or of the answer once there is one; 0 if not known.
    :param reason: why it was refused or has failed.
    :param may_succeed_anew: whether the same request may well succeed as a new task, and this one was free.
    :param nonce: of the callback URL that was sent with it; empty: none of ours was.
    """

    try_number: int
    number: int
    fingerprint: str = ""
    item: int = 0
    max_tries: int | None = None
    state: State = "unknown"
    kie_task_id: str | None = None
    at: float = 0.0
    reason: str = ""
    may_succeed_anew: bool = False
    nonce: str = ""

    @property
    def key(self) -> str:
        """The key of the intent."""
        return f"kie.{self.try_number}.{self.number}"

    @property
    def answer_key(self) -> str:
        """The key of Kie's answer."""
        return f"{self.key}.answer"

    @property
    def settled_key(self) -> str:
        """The key under which a person settles what became of it."""
        return f"{self.key}.settled"

    def is_cleared_since(self, max_tries: int | None) -> bool:
        """Whether a person has cleared the task since a try last relied on this.

        :param max_tries: Airflow's ``max_tries`` now.
        """
        return self.max_tries is not None and self.max_tries != max_tries

    def failed(self, reason: str, *, may_succeed_anew: bool) -> SubmissionRecord:
        """Return the record of a Kie task that has failed."""
        return replace(self, state="failed", reason=reason[:MAX_REASON], may_succeed_anew=may_succeed_anew)

    def settle_advice(self) -> str:
        """Say how a person settles what became of this submission."""
        return (
            f"If there is one, add its id, as a JSON string, under the key {self.settled_key!r} to this task "
            "instance's state store (in Airflow's Task State Store tab, or through its REST API); if there is none, "
            f'add "{NOTHING}" there. Then clear this task.'
        )


@dataclass(frozen=True)
class Intent:
    """What is written before createTask is sent.

    :param request: the body of createTask, with the sha256 of its content in place of each local file.
    :param summaries: number of summaries that the try had written by then.
    """

    record: SubmissionRecord
    request: Mapping[str, object]
    conn_id: str
    host: str
    summaries: int


@dataclass(frozen=True)
class Summary:
    """What a try knew when it began, or has learnt since its previous summary.

    :param records: the submissions concerned; a later summary takes precedence.
    :param part: number of this part of the beginning, from 1; 0: not part of the beginning.
    :param parts: number of parts of the beginning.
    :param begun_at: epoch seconds at which the try began; in every part of the beginning.
    :param estimate: credits that the whole batch should cost; None: not in the price table.
    :param first: number of the first submission of this try that it covers; it covers all up to ``last``.
    :param is_complete: whether the operator was about to return.
    """

    records: tuple[SubmissionRecord, ...]
    max_tries: int | None
    part: int = 0
    parts: int = 0
    begun_at: float = 0.0
    estimate: float | None = None
    first: int = 1
    last: int = 0
    is_complete: bool = False


def fingerprint_of(value: object) -> str:
    """Return the hash that identifies a request in the journal."""
    stored = storable(json.loads(json.dumps(value, default=str)))
    return hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()[:32]


def fingerprint_of_request(request: Mapping[str, object]) -> str:
    """Return the hash of createTask's body, without the callback URL: that does not change the result."""
    return fingerprint_of({"model": request.get("model"), "input": request.get("input")})


def iso(at: float) -> str:
    """Return epoch seconds as facts have them: ISO 8601 in UTC."""
    return pendulum.from_timestamp(at).to_iso8601_string()


def merge(
    records: Mapping[tuple[int, int], SubmissionRecord], newer: Iterable[SubmissionRecord]
) -> dict[tuple[int, int], SubmissionRecord]:
    """Return the records, updated by newer ones, in the order of submission."""
    merged = {**records, **{(record.try_number, record.number): record for record in newer}}
    return dict(sorted(merged.items()))
