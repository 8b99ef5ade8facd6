"""Reads the facts of a try back, and recognises what was not written here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from kie_provider.client.errors import KieJournalError
from kie_provider.client.plain import shorten
from kie_provider.client.webhook import callback_key
from kie_provider.submission import facts
from kie_provider.submission.record import Intent, SubmissionRecord, Summary, merge

T = TypeVar("T")

#: A summary is written after this many submissions.
SUBMISSIONS_PER_SUMMARY = 100
#: More submissions than this without a summary were not written here.
MAX_WITHOUT_SUMMARY = 3 * SUBMISSIONS_PER_SUMMARY
MAX_SUMMARIES = 10_000
#: Attempts to read a value that names another key, to tell a wrong value from an answer to another question.
REREADS = 10


class OutOfStepError(RuntimeError):
    """Airflow's answer about a fact is not what was written, so none of its answers can be trusted any more."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"Airflow's answer about the key {key!r} of this task instance's state store is not the answer to that "
            "question: the try was cleared or replaced, or its channel to Airflow is out of step. Nothing was sent to "
            "Kie.ai, and nothing is lost: the next try continues."
        )


@dataclass(frozen=True)
class TryFacts:
    """What one try has written.

    :param intents: those after the last summary.
    :param records: the submissions that the try knew, in the order of submission.
    """

    summaries: Sequence[Summary]
    intents: Sequence[Intent]
    records: Mapping[tuple[int, int], SubmissionRecord]

    @property
    def max_tries(self) -> int | None:
        """Airflow's ``max_tries`` at that time."""
        return self.summaries[0].max_tries if self.summaries else self.intents[0].record.max_tries

    @property
    def summarized(self) -> int:
        """Number of the last submission that a summary covers."""
        return _last(self.summaries)

    @property
    def is_complete(self) -> bool:
        """Whether the operator was about to return."""
        return bool(self.summaries) and self.summaries[-1].is_complete

    @property
    def beginning(self) -> Summary | None:
        """What the try knew when it began, if it has recorded that."""
        return self.summaries[0] if self.summaries and self.summaries[0].part else None


class Reader:
    """Reads the facts of a task instance.

    :param ask: returns the value of a key; None: there is none.
    """

    def __init__(self, ask: Callable[[str], object]) -> None:
        self._ask = ask

    def read_try(self, try_number: int) -> TryFacts | None:
        """Return what a try has written; None: nothing that counts.

        :raises KieJournalError: it is inconsistent.
        :raises OutOfStepError: Airflow's answers do not belong to the questions.
        """
        summaries = self._read_summaries(try_number)
        intents = self._read_intents(try_number, _last(summaries))
        if not summaries and not intents:
            return None
        next_summary = facts.summary_key(try_number, len(summaries) + 1)
        if summaries and summaries[0].part and sum(1 for each in summaries if each.part) < summaries[0].parts:
            if not intents:
                return None  # it died while it wrote its beginning, so the try before knows everything
            raise _inconsistent(next_summary, "is missing")
        if any(intent.summaries > len(summaries) for intent in intents):
            raise _inconsistent(next_summary, "is missing")
        known: dict[tuple[int, int], SubmissionRecord] = {}
        for summary in summaries:
            known = merge(known, summary.records)
        known = merge(known, (intent.record for intent in intents))
        return TryFacts(summaries, intents, merge(known, map(self._settled, known.values())))

    def read_intent(self, try_number: int, number: int) -> Intent | None:
        """Return an intent; None: there is none."""
        return self._get_fact(f"kie.{try_number}.{number}", lambda value: facts.read_intent(value, try_number, number))

    def read_callback(self, nonce: str) -> str | None:
        """Return the Kie task that a callback names; None: there was no callback."""
        return self._get_fact(callback_key(nonce), facts.read_callback)

    def has_succeeded(self, try_number: int) -> bool:
        """Whether Airflow has accepted the success of a try."""
        return self._get_fact(facts.success_key(try_number), bool) is not None

    def _read_summaries(self, try_number: int) -> list[Summary]:
        summaries: list[Summary] = []
        for number in range(1, MAX_SUMMARIES):
            key = facts.summary_key(try_number, number)
            summary = self._get_fact(key, lambda value: facts.read_summary(value, try_number))
            if summary is None:
                return summaries
            follows = summary.part == number if summary.part else summary.first == _last(summaries) + 1
            if not follows:
                raise _inconsistent(key, "does not follow the summary before it")
            summaries.append(summary)
        raise _inconsistent(facts.summary_key(try_number, MAX_SUMMARIES), "is one of too many")

    def _read_intents(self, try_number: int, after: int) -> list[Intent]:
        """Return the intents after the last summary, up to the first gap."""
        intents: list[Intent] = []
        for number in range(after + 1, after + MAX_WITHOUT_SUMMARY + 2):
            intent = self.read_intent(try_number, number)
            if intent is None:
                if (intents or after) and self.read_intent(try_number, number + 1) is not None:
                    raise _inconsistent(f"kie.{try_number}.{number}", "is missing")
                return intents
            intents.append(intent)
        raise _inconsistent(f"kie.{try_number}.{number}", "is one of too many without a summary")

    def _settled(self, record: SubmissionRecord) -> SubmissionRecord:
        """Return the record with its answer, or as a person has settled it."""
        if record.state != "unknown":
            return record
        if answered := self._get_fact(record.answer_key, lambda value: facts.read_answer(record, value)):
            return answered
        found = self._ask(record.settled_key)
        return record if found is None else _read(record.settled_key, found, lambda v: facts.read_settled(record, v))

    def _get_fact(self, key: str, read: Callable[[object], T]) -> T | None:
        """Read a value that names its own key; None: there is none.

        :raises KieJournalError: it is not valid.
        :raises OutOfStepError: it is the answer to another question.
        """
        for attempt in range(REREADS):
            value = self._ask(key)
            if value is None or (isinstance(value, Mapping) and value.get("key") == key):
                if attempt:
                    raise OutOfStepError(key)
                return None if value is None else _read(key, value, read)
        why = "it names another key" if isinstance(value, Mapping) else "it is not an object"
        raise _inconsistent(key, f"holds {shorten(value, 200)}: {why}")


def _last(summaries: Iterable[Summary]) -> int:
    return max((summary.last for summary in summaries), default=0)


def _read(key: str, value: object, read: Callable[[object], T]) -> T:
    try:
        return read(value)
    except ValueError as error:
        raise _inconsistent(key, f"holds {shorten(value, 200)}: {error}") from None


def _inconsistent(key: str, problem: str) -> KieJournalError:
    return KieJournalError(
        f"the key {key!r} of this task instance's state store {problem}. Correct it, or remove all keys there that "
        "begin with 'kie.' to start over; then clear this task"
    )
