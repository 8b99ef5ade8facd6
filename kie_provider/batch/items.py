"""One image of a batch, and its state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kie_provider.submission.record import iso

if TYPE_CHECKING:
    from kie_provider.files.provenance import SavedResult
    from kie_provider.submission.inputs import TaskRequest
    from kie_provider.submission.record import SubmissionRecord

#: ``to_submit``: it has no Kie task yet. ``left_out``: it has none, and this try creates none. ``running``: its Kie
#: task is being polled. ``timed_out``: its Kie task keeps running, but is no longer polled. ``saving``: its Kie task
#: has succeeded, and its files are being saved. ``listed``: the manifest lists its files, which are not checked yet.
#: ``saved``, ``failed``: final. ``unknown``: createTask's answer was lost.
State = Literal["to_submit", "left_out", "running", "timed_out", "saving", "listed", "saved", "failed", "unknown"]
Outcome = Literal["saved", "failed", "unknown", "running", "not_submitted"]
OUTCOMES: tuple[Outcome, ...] = ("saved", "failed", "unknown", "running", "not_submitted")
_OUTCOMES: Mapping[State, Outcome] = {
    "to_submit": "not_submitted",
    "left_out": "not_submitted",
    "running": "running",
    "timed_out": "running",
    "saving": "running",
    "listed": "saved",
    "saved": "saved",
    "failed": "failed",
    "unknown": "unknown",
}


@dataclass
class Item:
    """One image of the batch. Its state changes in :meth:`become` only.

    :param fields: what the author asks for.
    :param file_name: pattern of its file name below the target.
    :param request: what would be sent for it now; None: not read yet, because it may never be sent.
    :param record: the journal's record of its submission; None: there is none yet.
    :param reason: why it is not saved, as text.
    :param may_succeed_later: whether a retry may help.
    :param result: the result dict, once it is saved.
    """

    index: int
    fields: Mapping[str, object]
    file_name: str
    request: TaskRequest | None = None
    record: SubmissionRecord | None = None
    state: State = "to_submit"
    reason: str = ""
    may_succeed_later: bool = False
    result: SavedResult | None = None

    def become(
        self,
        state: State,
        reason: str = "",
        *,
        may_succeed_later: bool = False,
        result: SavedResult | None = None,
    ) -> None:
        """Change the state, and reset what belonged to the previous one."""
        self.state, self.reason = state, reason
        self.may_succeed_later, self.result = may_succeed_later, result

    def recall(self, record: SubmissionRecord | None) -> None:
        """Take over the record of its submission."""
        self.record = record
        if record is None or record.state == "nothing":
            self.become("to_submit")
        elif record.state == "submitted":
            self.become("running")
        elif record.state == "unknown":
            reason = f"try {record.try_number} sent createTask at {iso(record.at)} and has no answer"
            self.become("unknown", reason + settled_with(record))
        else:
            self.become("failed", record.reason, may_succeed_later=record.may_succeed_anew)

    @property
    def outcome(self) -> Outcome:
        """The name of its state in the manifest and the counts."""
        return _OUTCOMES[self.state]

    @property
    def is_changed(self) -> bool:
        """Whether the list now asks for something else than what was submitted for it."""
        return (
            self.record is not None and self.request is not None and self.record.fingerprint != self.request.fingerprint
        )

    @property
    def kie_task_id(self) -> str:
        """Kie's id of its task; "" until it is known."""
        return (self.record.kie_task_id if self.record else None) or ""


def settled_with(record: SubmissionRecord) -> str:
    """Say under which key a person writes what became of an unknown submission."""
    return f"; settle it with the key {record.settled_key!r}"
