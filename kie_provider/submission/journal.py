"""The journal of a task instance: facts about its submissions, which are only ever added.

Airflow can carry out a write long after the client has given up on it and repeated it: a write that hung in the
database took effect 22 seconds late, and one of a cleared try took effect while the next try was running (both seen
with Airflow 3.3.2 and PostgreSQL). So no key ever gets a second value: a late or repeated write changes nothing. Every
key contains the number of the try, and within a try each intent or summary is written only after the previous one was
acknowledged, so reading up to the first gap reads everything that counts.

The intent is the fence before createTask, and it is read back before anything is sent. That proves three things: it is
stored, the channel to Airflow gives the right answers, and this try had not been replaced when it was stored. So a
later try, which begins after the replacement, sees it.

Before Airflow 3.3 there is no store that outlives a try: the same facts are XComs of the try, and end with it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException

from kie_provider.client.errors import LOGS_PAGE, KieJournalError
from kie_provider.execution_timeout import Alarm, held
from kie_provider.submission import facts
from kie_provider.submission.reading import (
    MAX_WITHOUT_SUMMARY,
    SUBMISSIONS_PER_SUMMARY,
    OutOfStepError,
    Reader,
    TryFacts,
)
from kie_provider.submission.record import Intent, SubmissionRecord, Summary, merge
from kie_provider.submission.store import is_replaced, open_store, retrying, write_until_acknowledged
from kie_provider.submission.success import record_success

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

log = logging.getLogger(__name__)

#: A try that is rescheduled writes a summary only after this many submissions.
WORTH_A_SUMMARY = 20
#: Fields of an intent that are compared when it is read back.
_READ_BACK = ("key", "fingerprint", "at")
#: Attempts, and seconds between them, to read facts that were there before the task was deferred.
LATE_READS, LATE_PAUSE = 3, 5.0


class Journal:
    """The journal of the running task instance. Only the main thread uses it; see :meth:`stop` for the exception.

    :param context: of the running task instance.
    """

    def __init__(self, context: Context) -> None:
        self._store = open_store(context)
        self._reader = Reader(self._ask)
        ti = context.get("ti")  # a DAG author's unit test may have none
        self.try_number: int = getattr(ti, "try_number", 1)
        self.max_tries: int | None = getattr(ti, "max_tries", None)
        self.ti_id = str(getattr(ti, "id", ""))
        self._read_max_tries: int | None = self.max_tries
        self._records: dict[tuple[int, int], SubmissionRecord] = {}
        self._intents: dict[tuple[int, int], Intent] = {}
        self._last = 0  # number of the last submission of this try
        self._summarized = 0  # number of the last one that a summary covers
        self._summaries = 0
        self._news: dict[tuple[int, int], SubmissionRecord] = {}  # learnt since the last summary
        self._unwritten: dict[str, tuple[SubmissionRecord, facts.AnswerFact]] = {}  # answers that are not
        self._pending: deque[tuple[facts.SummaryFact, Summary]] = deque()  # summaries that are not acknowledged
        self._stopping = threading.Event()
        self.begun_at = 0.0
        self.estimate: float | None = None
        self.is_complete = False
        self.has_begun = False  # whether this try has written anything
        self.read_try_number: int | None = None  # the try whose facts were read

    @property
    def is_durable(self) -> bool:
        """Whether it outlives the try (Airflow 3.3 and later)."""
        return self._store.is_durable

    @property
    def is_cleared(self) -> bool:
        """Whether the task was cleared since the last fact: a clear raises ``max_tries``, a retry does not."""
        return bool(self._records) and self._read_max_tries not in (None, self.max_tries)

    @property
    def records(self) -> list[SubmissionRecord]:
        """The submissions that still count, in the order of submission."""
        return list(self._records.values())

    @property
    def is_stopping(self) -> bool:
        """Whether the process is about to be killed."""
        return self._stopping.is_set()

    @property
    def latest(self) -> SubmissionRecord | None:
        """The last submission of this try that this process knows."""
        return self._records.get((self.try_number, self._last))

    @property
    def submissions_of_this_try(self) -> list[SubmissionRecord]:
        """The submissions among them that this try has made."""
        return [record for record in self._records.values() if record.try_number == self.try_number]

    def latest_of(self, item: int) -> SubmissionRecord | None:
        """Return the last submission of this try for an item of its list."""
        of_item = [record for record in self.submissions_of_this_try if record.item == item]
        return of_item[-1] if of_item else None

    @property
    def position(self) -> list[int]:
        """What a deferral carries, for :meth:`resume`: the try, its summaries and its submissions."""
        return [self.try_number, self._summaries, self._last]

    # Reading

    def read(self) -> None:
        """Read what earlier tries have written, and what this one wrote before it was rescheduled.

        :raises KieJournalError: it is inconsistent, so it is not known what was submitted.
        :raises OutOfStepError: Airflow's answers do not belong to the questions.
        """
        if self.is_durable:
            self._read_all()

    def resume(self, expected: Sequence[int] | None = None) -> None:
        """Read what this try has written before it was deferred.

        :param expected: the :attr:`position` then; if fewer facts are found, they are read again.
        :raises KieJournalError: it is inconsistent, so it is not known what was submitted.
        :raises OutOfStepError: Airflow's answers do not belong to the questions.
        """
        self._read_all()
        if not expected or expected[0] != self.try_number:
            return
        for attempt in range(LATE_READS):
            if _reaches(self.position, expected):
                return
            if attempt < LATE_READS - 1:
                self._stopping.wait(LATE_PAUSE)
                self._read_all()
        raise KieJournalError(
            f"this try had written {expected[1]} summaries and {expected[2]} submissions before it was deferred, and "
            f"now there are {self._summaries} and {self._last} in the state store"
        )

    def request_of(self, record: SubmissionRecord) -> Mapping[str, object]:
        """Return the body of createTask that was submitted; empty if its intent was removed."""
        intent = self.intent_of(record)
        return intent.request if intent else {}

    def intent_of(self, record: SubmissionRecord) -> Intent | None:
        """Return the intent of a submission; None if it was removed."""
        key = (record.try_number, record.number)
        if key not in self._intents:
            intent = self._reader.read_intent(*key)
            if intent is None:
                return None
            self._intents[key] = intent
        return self._intents[key]

    def called_back(self, record: SubmissionRecord) -> str | None:
        """Return the Kie task that a callback to this submission names; None: there was none, as far as is known."""
        return self._reader.read_callback(record.nonce) if record.nonce and self.is_durable else None

    def _read_all(self) -> None:
        first = 1 if self.is_durable else self.try_number
        for try_number in range(self.try_number, first - 1, -1):
            found = self._reader.read_try(try_number)
            if found is None:
                continue
            if try_number == self.try_number:
                self._continue_after(found)
            elif self._reader.has_succeeded(try_number):
                return  # it was cleared since, so new images are wanted
            self.read_try_number = try_number
            self._records = dict(found.records)
            self._intents = {(try_number, intent.record.number): intent for intent in found.intents}
            self._read_max_tries, self.is_complete = found.max_tries, found.is_complete
            return

    def _continue_after(self, found: TryFacts) -> None:
        """Continue where an earlier phase of this try ended."""
        self.has_begun = True
        self._summaries, self._summarized = len(found.summaries), found.summarized
        self._last = self._summarized + len(found.intents)
        behind = [(self.try_number, intent.record.number) for intent in found.intents]
        self._news = {key: found.records[key] for key in behind}
        if found.beginning:
            self.begun_at, self.estimate = found.beginning.begun_at, found.beginning.estimate

    def _ask(self, key: str) -> object:
        return retrying(partial(self._store.get, key), self._stopping)

    # Writing

    def begin(
        self,
        kept: Iterable[SubmissionRecord],
        claimed: Iterable[SubmissionRecord | None] = (),
        *,
        estimate: float | None = None,
    ) -> None:
        """Record what this try knows, so that the next one need not read the tries before it.

        :param kept: the submissions that still count.
        :param claimed: for every item the submission with which this try continues; the others get indexes after these.
        :raises Exception: it cannot be written, so nothing may be sent.
        """
        self.begun_at, self.estimate = time.time(), estimate
        claimed = list(claimed)
        others = [replace(record, item=len(claimed) + index) for index, record in enumerate(kept)]
        continued = [
            replace(record, item=index, max_tries=self.max_tries)
            for index, record in enumerate(claimed)
            if record is not None
        ]
        self._records = merge(merge({}, others), continued)
        self._add_summary(Summary(tuple(self._records.values()), self.max_tries, 1, 1, self.begun_at, estimate))
        self._write_summaries()
        self.has_begun = True

    def intend(
        self, request: Mapping[str, object], fingerprint: str, *, item: int, conn_id: str, host: str, nonce: str = ""
    ) -> SubmissionRecord:
        """Write the intent, the fence before createTask, and read it back. If this raises, createTask must not be sent.

        A try that was cleared or replaced reads an empty store, and cannot write to it.
        """
        record = SubmissionRecord(
            self.try_number, self._last + 1, fingerprint, item, self.max_tries, at=time.time(), nonce=nonce
        )
        intent = Intent(record, request, conn_id, host, self._summaries)
        fact = facts.intent_fact(intent)
        # Holds until the fence stands; then it is discarded.
        not_sent = facts.refused_fact(record, InterruptedError("createTask was not sent"))
        self._unwritten[record.answer_key] = (facts.read_answer(record, not_sent), not_sent)
        self._learn(facts.read_answer(record, not_sent))
        self._last = record.number
        retrying(partial(self._store.set, record.key, fact), self._stopping)
        with held():
            stored = self._store.get(record.key)
        written = {name: value for name, value in fact.items() if name in _READ_BACK}
        if not isinstance(stored, Mapping) or any(stored.get(name) != value for name, value in written.items()):
            raise OutOfStepError(record.key)
        del self._unwritten[record.answer_key]
        self._intents[record.try_number, record.number] = intent
        self._learn(record)
        return record

    def created(self, record: SubmissionRecord, kie_task_id: str, alarm: Alarm) -> SubmissionRecord:
        """Record the id of the new Kie task. The very first thing to do with an answer.

        :param alarm: of ``execution_timeout``, which is held meanwhile.
        :raises AirflowFailException: this try has been replaced by another one and must stop.
        """
        log.info("Kie task %s was created; all tasks and charges: %s", kie_task_id, LOGS_PAGE)
        answered = replace(record, state="submitted", kie_task_id=kie_task_id, at=time.time())
        self._answer(answered, facts.created_fact(record, kie_task_id), alarm)
        return answered

    def refused(self, record: SubmissionRecord, error: Exception, alarm: Alarm) -> SubmissionRecord:
        """Record that nothing was created, before the next attempt.

        :raises AirflowFailException: this try has been replaced by another one and must stop.
        """
        fact = facts.refused_fact(record, error)
        answered = facts.read_answer(record, fact)
        self._answer(answered, fact, alarm)
        return answered

    def settle(self, record: SubmissionRecord, kie_task_id: str) -> SubmissionRecord:
        """Write down which Kie task an unknown submission has created, as a person would.

        :raises Exception: it cannot be written; a later reading finds it out again.
        """
        retrying(partial(self._store.set, record.settled_key, kie_task_id), self._stopping)
        settled = facts.read_settled(record, kie_task_id)
        self._learn(settled)
        return settled

    def failed(self, record: SubmissionRecord, reason: str, *, may_succeed_anew: bool) -> SubmissionRecord:
        """Record best-effort that a Kie task has failed: with the next summary. A later try can find it out again."""
        failed = record.failed(reason, may_succeed_anew=may_succeed_anew)
        self._learn(failed)
        return failed

    def summarize(self, *, at_least: int = 0, is_complete: bool = False) -> None:
        """Write what was learnt since the last summary, so that later tries need not read it fact by fact.

        If that fails, nothing is lost: the facts themselves are stored.

        :param at_least: skip it for fewer submissions than this.
        :param is_complete: whether the operator is about to return.
        """
        if not is_complete and (not self._news or self._last - self._summarized < at_least):
            return
        try:
            self._write_summaries()  # first what could not be written before, unchanged
            news = tuple(record for _, record in sorted(self._news.items()))
            first, last = self._summarized + 1, self._last
            self._add_summary(Summary(news, self.max_tries, first=first, last=last, is_complete=is_complete))
            self._write_summaries()
        except Exception as error:
            covered = self._pending[0][1].first - 1 if self._pending else self._summarized
            if self._last - covered > MAX_WITHOUT_SUMMARY - SUBMISSIONS_PER_SUMMARY:
                raise  # the next try does not read that many one by one
            log.warning("A summary of the submissions could not be written: %s", error)

    def write_again(self) -> list[SubmissionRecord]:
        """Retry the answers that could not be recorded; return those with a Kie task that still are not."""
        for key, (_, fact) in list(self._unwritten.items()):
            try:
                with held():
                    self._store.set(key, fact)
                del self._unwritten[key]
            except Exception as error:  # noqa: BLE001, PERF203
                log.warning("Airflow could not store %s under the key %r (%s)", fact, key, error)
        return [record for record, _ in self._unwritten.values() if record.kie_task_id]

    def stop(self) -> None:
        """Stop retrying writes: the process is about to be killed. A signal handler may call this."""
        self._stopping.set()

    def _learn(self, record: SubmissionRecord) -> None:
        self._records[record.try_number, record.number] = record
        self._news[record.try_number, record.number] = record

    def _answer(self, record: SubmissionRecord, fact: facts.AnswerFact, alarm: Alarm) -> None:
        self._learn(record)
        self._unwritten[record.answer_key] = (record, fact)
        try:
            is_written = write_until_acknowledged(
                self._store, record.answer_key, fact, _answer_text(record), alarm, self._stopping
            )
        except Exception as error:
            if is_replaced(error):
                raise AirflowFailException(_replaced_message(record)) from None
            raise
        if is_written:
            del self._unwritten[record.answer_key]
        if self._last - self._summarized >= SUBMISSIONS_PER_SUMMARY:
            self.summarize()

    def _add_summary(self, summary: Summary) -> None:
        self._pending.extend(facts.summary_facts(self.try_number, self._summaries + 1, summary))
        self._summarized = max(self._summarized, summary.last)
        self._news = {}

    def _write_summaries(self) -> None:
        """Write the summaries that are not acknowledged yet, always with the same values."""
        while self._pending:
            fact, _ = self._pending[0]
            retrying(partial(self._store.set, fact["key"], fact), self._stopping)
            self._pending.popleft()
            self._summaries += 1


def open_journal(operator: Any, context: Context) -> Journal:
    """Return the journal of a running operator, and have its success recorded, after the author's own callbacks."""
    if record_success not in operator.on_success_callback:
        operator.on_success_callback = [*operator.on_success_callback, record_success]
    return Journal(context)


def _reaches(position: Sequence[int], expected: Sequence[int]) -> bool:
    return all(here >= there for here, there in zip(position, expected, strict=True))


def _answer_text(record: SubmissionRecord) -> str:
    return f"Kie task {record.kie_task_id}" if record.kie_task_id else "that Kie created nothing"


def _replaced_message(record: SubmissionRecord) -> str:
    if record.kie_task_id is None:
        return f"This try was cleared or replaced. Kie refused its createTask, so nothing was created: {record.reason}"
    return (
        f"This try was cleared or replaced while it created Kie task {record.kie_task_id}, which keeps running and "
        f"will be billed. The next try does not know it: add the id, as a JSON string, under the key "
        f"{record.settled_key!r} to this task instance's state store, and clear the task."
    )
