"""What a try does about earlier submissions. Pure.

Items are matched to submissions by content, not by their index in the list, so a new item at the top of the list pays
for one image. A single image is a list of one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kie_provider.client.plain import storable
from kie_provider.submission.record import SubmissionRecord

#: Of several submissions for one item, the one that got furthest counts: the first of these states.
_PREFERRED = ("submitted", "failed", "refused", "unknown")


@dataclass(frozen=True)
class Submit:
    """Create a Kie task."""


@dataclass(frozen=True)
class Reattach:
    """Continue with the Kie task that was created.

    :param has_changed: whether the inputs have changed since.
    """

    record: SubmissionRecord
    has_changed: bool = False


@dataclass(frozen=True)
class Unknown:
    """A Kie task may exist whose id is not known."""

    record: SubmissionRecord


Step = Submit | Reattach | Unknown


def next_step(
    records: Sequence[SubmissionRecord],
    fingerprint: str,
    *,
    max_tries: int | None,
    resubmit_unknown: bool = False,
) -> Step:
    """Decide what a try that wants one image must do.

    :param records: the earlier submissions, in order.
    :param fingerprint: of what would be submitted now.
    :param max_tries: Airflow's ``max_tries``, which tells a clear from a retry.
    :param resubmit_unknown: submit again although a task may exist, and pay twice if it does.
    """
    states = ("submitted",) if resubmit_unknown else ("submitted", "unknown")
    latest_first = [record for record in reversed(records) if record.state in states]
    of_this_clear = [record for record in latest_first if not record.is_cleared_since(max_tries)]
    the_same = [record for record in latest_first if record.state == "submitted" and record.fingerprint == fingerprint]
    in_doubt = [record for record in latest_first if record.state == "unknown"]
    record = next(iter(of_this_clear or the_same or in_doubt), None)
    if record is None:
        return Submit()
    if record.state == "unknown":
        return Unknown(record)
    return Reattach(record, has_changed=record.fingerprint != fingerprint)


def assign(
    records: Sequence[SubmissionRecord],
    fingerprints: Sequence[str],
    *,
    max_tries: int | None,
    resubmit_unknown: bool = False,
) -> tuple[list[SubmissionRecord | None], list[SubmissionRecord]]:
    """Decide what a new try of a batch continues with.

    :param records: the earlier submissions, in order.
    :param fingerprints: of the items, as they would be submitted now.
    :return: for every item the submission that counts for it (None: submit), and all submissions that still count.
    """
    wanted = {record for record in records if _is_wanted(record, max_tries, resubmit_unknown)}
    # What a clear has made obsolete must not hide what is in doubt.
    candidates = [record for record in records if record in wanted or not record.is_cleared_since(max_tries)]
    claimed = claim(candidates, fingerprints, max_tries=max_tries)
    kept = [record for record in records if record in wanted]
    return [record if record in wanted else None for record in claimed], kept


def _is_wanted(record: SubmissionRecord, max_tries: int | None, resubmit_unknown: bool) -> bool:
    match record.state:
        case "submitted":
            return True
        case "unknown":
            return not resubmit_unknown
        case "failed":
            return not (record.may_succeed_anew or record.is_cleared_since(max_tries))
        case "refused":
            return not record.is_cleared_since(max_tries)
        case "nothing":
            return False


def claim(
    records: Sequence[SubmissionRecord], fingerprints: Sequence[str], *, max_tries: int | None
) -> list[SubmissionRecord | None]:
    """Find the submission of every item of the list; None: it has none yet.

    On a retry, changed items take over submissions that no other item claims, because the inputs of a batch count as
    they were first submitted. After a clear they are submitted anew; but an item that an earlier clear dropped finds
    its submission again if it returns unchanged.
    """
    known = [record for record in records if record.state in _PREFERRED]
    before_clear = [record.is_cleared_since(max_tries) for record in known]
    current = [record for record, is_before in zip(known, before_clear, strict=True) if not is_before]
    earlier = [record for record, is_before in zip(known, before_clear, strict=True) if is_before]
    claimed: list[SubmissionRecord | None] = [None] * len(fingerprints)
    left = _claim_the_same(claimed, current, fingerprints)
    rest = iter(sorted(left, key=lambda record: (record.try_number, record.number)))
    claimed = [next(rest, None) if record is None else record for record in claimed]
    _claim_the_same(claimed, earlier, fingerprints)
    return claimed


def _claim_the_same(
    claimed: list[SubmissionRecord | None], records: Sequence[SubmissionRecord], fingerprints: Sequence[str]
) -> list[SubmissionRecord]:
    """Give items without a submission one of the same content; return the submissions that are left."""
    by_fingerprint: dict[str, list[SubmissionRecord]] = defaultdict(list)
    for record in sorted(records, key=lambda record: _PREFERRED.index(record.state)):
        by_fingerprint[record.fingerprint].append(record)
    for index, fingerprint in enumerate(fingerprints):
        if claimed[index] is None and by_fingerprint[fingerprint]:
            claimed[index] = by_fingerprint[fingerprint].pop(0)
    return [record for candidates in by_fingerprint.values() for record in candidates]


def of_this_try(records: Sequence[SubmissionRecord], count: int) -> list[SubmissionRecord | None]:
    """Find the submission of every item of the list with which this try began; None: it has none yet.

    :param records: assigned to items by :meth:`~kie_provider.submission.journal.Journal.begin`.
    :param count: number of items.
    """
    claimed: list[SubmissionRecord | None] = [None] * count
    known = [record for record in records if record.state in _PREFERRED and record.item < count]
    for record in sorted(known, key=lambda record: _PREFERRED.index(record.state), reverse=True):
        claimed[record.item] = record
    return claimed


def changed_fields(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Return the names of the fields in which two bodies of createTask differ."""
    before, now = _flat(before), _flat(storable(now))
    return sorted(name for name in {**before, **now} if before.get(name) != now.get(name))


def _flat(request: Mapping[str, object]) -> dict[str, object]:
    task_input = request.get("input")
    rest = {name: value for name, value in request.items() if name != "input"}
    return rest | (dict(task_input) if isinstance(task_input, Mapping) else {"input": task_input})
