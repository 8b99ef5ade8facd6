"""One image of a batch, and how it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from kie_provider.submission.record import iso

if TYPE_CHECKING:
    from kie_provider.submission.inputs import TaskRequest
    from kie_provider.submission.record import SubmissionRecord

#: ``to_submit``: there is no Kie task for it yet. ``left_out``: nor will this try create one. ``running``: its Kie task
#: is waited for. ``timed_out``: it was, and goes on at Kie. ``saving``: it is done, and its files are being saved.
#: ``noted``: the manifest says that they were, and nobody has looked at them yet. ``saved``, ``failed``: so it ended.
#: ``unknown``: createTask's answer was lost.
State = Literal["to_submit", "left_out", "running", "timed_out", "saving", "noted", "saved", "failed", "unknown"]
Outcome = Literal["saved", "failed", "unknown", "running", "not_ordered"]
OUTCOMES: tuple[Outcome, ...] = ("saved", "failed", "unknown", "running", "not_ordered")
_OUTCOMES: Mapping[State, Outcome] = {
    "to_submit": "not_ordered",
    "left_out": "not_ordered",
    "running": "running",
    "timed_out": "running",
    "saving": "running",
    "noted": "saved",
    "saved": "saved",
    "failed": "failed",
    "unknown": "unknown",
}


@dataclass
class Item:
    """One image of the batch. Its state changes in :meth:`become` only.

    :param fields: what the author asks for.
    :param file_name: pattern of its name below the target.
    :param request: what would be sent for it now; None: not read, as it may never be sent.
    :param record: what is known of its submission; None: there is none yet.
    :param reason: why it is not saved, for people.
    :param may_succeed_later: a retry may help.
    :param result: the result dict, once it is saved.
    """

    index: int
    fields: Mapping[str, Any]
    file_name: str
    request: TaskRequest | None = None
    record: SubmissionRecord | None = None
    state: State = "to_submit"
    reason: str = ""
    may_succeed_later: bool = False
    result: Mapping[str, Any] | None = None

    def become(
        self,
        state: State,
        reason: str = "",
        *,
        may_succeed_later: bool = False,
        result: Mapping[str, Any] | None = None,
    ) -> None:
        """Take a new state, and forget what belongs to the one before."""
        self.state, self.reason = state, reason
        self.may_succeed_later, self.result = may_succeed_later, result

    def recall(self, record: SubmissionRecord | None) -> None:
        """Take over what is known of its submission."""
        self.record = record
        if record is None or record.state == "nothing":
            self.become("to_submit")
        elif record.state == "submitted":
            self.become("running")
        elif record.state == "unknown":
            reason = f"try {record.try_number} sent createTask at {iso(record.at)} and knows no answer"
            self.become("unknown", reason + settled_with(record))
        else:
            self.become("failed", record.reason, may_succeed_later=record.may_succeed_anew)

    @property
    def outcome(self) -> Outcome:
        """What the manifest and the counts call its state."""
        return _OUTCOMES[self.state]

    @property
    def is_changed(self) -> bool:
        """Whether it is not what was submitted for it, and that is what counts."""
        return (
            self.record is not None and self.request is not None and self.record.fingerprint != self.request.fingerprint
        )

    @property
    def kie_task_id(self) -> str:
        """Kie's id of its task; "" until that is known."""
        return (self.record.kie_task_id if self.record else None) or ""


def settled_with(record: SubmissionRecord) -> str:
    """Say under which key a person settles what became of an unknown submission."""
    return f"; settled with the key {record.settled_key!r}"
