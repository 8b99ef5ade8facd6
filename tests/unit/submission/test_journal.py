"""The journal: what is written when, what the next phase or try reads, and what stops it."""

from __future__ import annotations

import json

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from kie_provider.client.errors import KieJournalError, KieRateLimitError, KieValidationError
from kie_provider.execution_timeout import Alarm
from kie_provider.submission.facts import MAX_SUMMARY_BYTES, success_fact, success_key
from kie_provider.submission.journal import Journal
from kie_provider.submission.reading import MAX_WITHOUT_SUMMARY, SUBMISSIONS_PER_SUMMARY, OutOfStepError
from tests.support.task_instances import FakeStore, FakeTaskInstance, context_of, store_error

QUIET = Alarm()


class Store(FakeStore):
    """Notes what is read, and fails at a key as often as there are errors for it."""

    def __init__(self):
        super().__init__()
        self.errors = {}
        self.reads = []

    def get(self, key):
        self.reads.append(key)
        return super().get(key)

    def set(self, key, value, *, retention):
        if errors := self.errors.get(key):
            raise errors.pop(0)
        super().set(key, value, retention=retention)


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def open_journal(store):
    """Return a function that opens the journal as a worker process does."""

    def open_journal(try_number=1, max_tries=1, expected=None):
        journal = Journal(context_of(FakeTaskInstance(try_number=try_number, max_tries=max_tries), store))
        journal.read() if expected is None else journal.resume(expected)
        return journal

    return open_journal


def test_a_try_says_to_which_item_each_submission_belongs(open_journal):
    first = open_journal(1)
    a, _, c = (first.created(intend(first, each, item=index), f"id-{each}", QUIET) for index, each in enumerate("abc"))
    second = open_journal(2)
    second.begin(second.records, [c, None, a])

    later = open_journal(2, expected=second.position)

    assert {each.kie_task_id: each.item for each in later.records} == {"id-c": 0, "id-a": 2, "id-b": 3 + 1}
    assert later.latest_of(0) is None  # of this try, which has submitted nothing
    intend(later, "d", item=1)
    assert later.latest_of(1).fingerprint == "d"


def intend(journal, fingerprint="a", **fields):
    fields = {"item": 0, "conn_id": "kie_default", "host": "https://api.kie.ai", **fields}
    return journal.intend({"model": "m", "input": {"prompt": fingerprint}}, fingerprint, **fields)


def create(journal, kie_task_id, fingerprint="a", **fields):
    return journal.created(intend(journal, fingerprint, **fields), kie_task_id, QUIET)


def told(journal):
    return [(each.key, each.state, each.kie_task_id) for each in journal.records]


class TestOneImage:
    def test_a_new_one_knows_nothing(self, open_journal, store):
        journal = open_journal()

        assert (journal.records, journal.is_cleared, journal.latest, store.values) == ([], False, None, {})
        assert store.reads == ["kie.1.sum.1", "kie.1.1"]

    def test_every_fact_is_there_for_the_next_try(self, open_journal, store):
        create(open_journal(), "id-1", item=3)
        journal = open_journal(try_number=2)

        assert list(store.values) == ["kie.1.1", "kie.1.1.answer"]
        [record] = journal.records
        assert (record.fingerprint, record.item, record.state, record.kie_task_id) == ("a", 3, "submitted", "id-1")
        assert record.at > 1.7e9
        assert journal.request_of(record) == {"model": "m", "input": {"prompt": "a"}}
        assert (journal.intent_of(record).conn_id, journal.intent_of(record).host) == (
            "kie_default",
            "https://api.kie.ai",
        )

    def test_an_intent_alone_is_a_doubt(self, open_journal):
        intend(open_journal())
        assert told(open_journal(try_number=2)) == [("kie.1.1", "unknown", None)]

    @pytest.mark.parametrize(
        ("error", "state"),
        [(KieRateLimitError("too many", code=429), "nothing"), (KieValidationError("no foxes", code=422), "refused")],
    )
    def test_a_refusal_is_none(self, open_journal, error, state):
        journal = open_journal()
        journal.refused(intend(journal), error, QUIET)

        [record] = open_journal(try_number=2).records
        assert (record.state, record.kie_task_id, record.reason) == (state, None, error.message)

    def test_a_try_begins_with_what_counts(self, open_journal, store):
        create(open_journal(), "id-1")
        second = open_journal(try_number=2)
        second.begin(second.records)
        store.reads.clear()

        third = open_journal(try_number=3)
        assert told(third) == [("kie.1.1", "submitted", "id-1")]
        assert third.request_of(third.records[0])["input"] == {"prompt": "a"}
        assert store.reads == ["kie.3.sum.1", "kie.3.1", "kie.2.sum.1", "kie.2.sum.2", "kie.2.1", "kie.2.ok", "kie.1.1"]

    def test_what_a_try_has_not_kept_does_not_count(self, open_journal):
        create(open_journal(), "id-1")
        second = open_journal(try_number=2)
        second.begin([])
        create(second, "id-2")

        assert told(open_journal(try_number=3)) == [("kie.2.1", "submitted", "id-2")]

    def test_tries_without_a_fact_are_passed_over(self, open_journal):
        create(open_journal(), "id-1")
        assert told(open_journal(try_number=7)) == [("kie.1.1", "submitted", "id-1")]

    def test_after_a_success_nothing_counts(self, open_journal, store):
        create(open_journal(), "id-1")
        store.set(success_key(1), success_fact(1), retention=None)

        assert open_journal(try_number=2, max_tries=3).records == []
        assert told(open_journal(try_number=1)) == [("kie.1.1", "submitted", "id-1")]

    def test_a_clear_is_told_from_a_retry(self, open_journal):
        create(open_journal(max_tries=1), "id-1")

        assert not open_journal(try_number=2, max_tries=1).is_cleared
        cleared = open_journal(try_number=2, max_tries=3)
        assert cleared.is_cleared
        cleared.begin(cleared.records)
        assert not open_journal(try_number=3, max_tries=3).is_cleared

    def test_a_person_settles_a_doubt_with_one_fact(self, open_journal, store):
        intend(open_journal())
        store.set("kie.1.1.settled", "found", retention=None)
        assert told(open_journal(try_number=2)) == [("kie.1.1", "submitted", "found")]

        store.set("kie.1.1.settled", "nothing", retention=None)
        assert told(open_journal(try_number=2)) == [("kie.1.1", "nothing", None)]

    def test_an_answer_that_comes_late_settles_it_too(self, open_journal, store):
        first = open_journal()
        record = intend(first)
        second = open_journal(try_number=2)
        second.begin(second.records)  # with the doubt
        first.created(record, "late", QUIET)

        assert told(open_journal(try_number=3)) == [("kie.1.1", "submitted", "late")]

    def test_an_id_is_written_until_it_is_there(self, open_journal, store, caplog):
        journal = open_journal()
        record = intend(journal)
        store.errors["kie.1.1.answer"] = [store_error(status) for status in (None, 401, 403, 500, 503, 409)]
        journal.created(record, "the-id", QUIET)

        assert told(open_journal(try_number=2)) == [("kie.1.1", "submitted", "the-id")]
        assert caplog.text.count("Airflow could not store Kie task the-id") == 6

    def test_or_until_the_try_was_replaced(self, open_journal, store):
        journal = open_journal()
        record = intend(journal)
        store.errors["kie.1.1.answer"] = [store_error(500), store_error(404)]

        with pytest.raises(AirflowFailException, match=r"Kie task the-id, which keeps running .* 'kie.1.1.settled'"):
            journal.created(record, "the-id", QUIET)

    @pytest.mark.parametrize("end", ["alarm", "signal"])
    def test_or_until_the_process_must_end(self, open_journal, store, end):
        journal, alarm = open_journal(), Alarm()
        record = intend(journal)
        store.errors["kie.1.1.answer"] = [store_error(500)] * 5
        alarm.has_rung = end == "alarm"
        if end == "signal":
            journal.stop()
        journal.created(record, "the-id", alarm)

        # After an alarm there is one more attempt, and another one before the failure is raised.
        assert len(store.errors["kie.1.1.answer"]) == (3 if end == "alarm" else 4)
        assert (journal.latest.kie_task_id, list(store.values)) == ("the-id", ["kie.1.1"])
        assert [each.kie_task_id for each in journal.write_again()] == ["the-id"]
        store.errors.clear()
        assert journal.write_again() == []
        assert told(open_journal(try_number=2)) == [("kie.1.1", "submitted", "the-id")]


class TestFence:
    def test_that_cannot_be_written_stops_everything(self, open_journal, store):
        journal = open_journal()
        store.errors["kie.1.1"] = [store_error(500)] * 3
        with pytest.raises(RuntimeError, match="API_SERVER_ERROR"):
            intend(journal)

        journal.write_again()  # if the intent lands later, it is no doubt
        assert list(store.values) == ["kie.1.1.answer"]

    def test_is_written_again_for_a_while(self, open_journal, store):
        store.errors["kie.1.1"] = [store_error(500)] * 2
        assert intend(open_journal()).key == "kie.1.1"

    def test_of_a_try_that_was_replaced(self, open_journal, store):
        journal = open_journal()
        store.errors["kie.1.1"] = [store_error(404)] * 9
        with pytest.raises(RuntimeError, match="404"):
            intend(journal)
        assert len(store.errors["kie.1.1"]) == 8

    @pytest.mark.parametrize("stored", [None, {}, "x", {"key": "kie.1.2"}, {"key": "kie.1.1", "fingerprint": "b"}])
    def test_is_read_back(self, open_journal, store, stored):
        journal = open_journal()
        store.get = lambda key: stored
        with pytest.raises(OutOfStepError, match="Nothing was sent"):
            intend(journal)


class TestManyImages:
    def test_a_summary_says_what_a_hundred_keys_say(self, open_journal, store):
        journal = open_journal()
        journal.begin([], estimate=5.0)
        for number in range(2 * SUBMISSIONS_PER_SUMMARY + 1):
            create(journal, f"id{number:030}", f"{number:032}", item=number)
        store.reads.clear()

        read = open_journal(try_number=2)
        assert [each.kie_task_id for each in read.records] == [f"id{number:030}" for number in range(201)]
        assert [each.item for each in read.records] == list(range(201))
        assert (
            len(store.reads) == 2 + 4 + 4 + 1
        )  # this try; summaries; the intent behind them, its answer, two gaps; ok
        assert max(len(value) for value in store.values.values()) < MAX_SUMMARY_BYTES

    @pytest.mark.parametrize("number", [SUBMISSIONS_PER_SUMMARY - 1, SUBMISSIONS_PER_SUMMARY])
    def test_just_a_summary(self, open_journal, number):
        journal = open_journal()
        for each in range(number):
            create(journal, f"id-{each}")
        assert len(open_journal(try_number=2).records) == number

    def test_a_deferral_leaves_a_summary(self, open_journal, store):
        journal = open_journal()
        journal.begin([], estimate=5.0)
        begun_at = journal.begun_at
        create(journal, "id-1")
        journal.summarize()
        assert journal.position == [1, 2, 1]

        resumed = open_journal(expected=[1, 2, 1])
        assert (resumed.estimate, resumed.has_begun, told(resumed)) == (5.0, True, [("kie.1.1", "submitted", "id-1")])
        assert resumed.begun_at == pytest.approx(begun_at, abs=1e-3)
        create(resumed, "id-2")
        resumed.summarize()
        assert told(open_journal(expected=[1, 3, 2])) == [
            ("kie.1.1", "submitted", "id-1"),
            ("kie.1.2", "submitted", "id-2"),
        ]

    def test_a_failure_is_learnt_with_the_next_summary(self, open_journal):
        journal = open_journal()
        record = create(journal, "id-1")
        journal.failed(record, "Internal Error", may_succeed_anew=True)
        assert open_journal().records[0].state == "submitted"

        journal.summarize()
        [read] = open_journal().records
        assert (read.state, read.reason, read.may_succeed_anew, read.kie_task_id) == (
            "failed",
            "Internal Error",
            True,
            "id-1",
        )

    def test_a_failure_of_an_earlier_try_is_learnt_too(self, open_journal):
        create(open_journal(), "id-1")
        second = open_journal(try_number=2)
        second.begin(second.records)
        second.failed(second.records[0], "NSFW", may_succeed_anew=False)
        second.summarize()

        assert [(each.key, each.state) for each in open_journal(try_number=3).records] == [("kie.1.1", "failed")]

    def test_a_long_beginning_is_split(self, open_journal, store):
        journal = open_journal()
        for number in range(600):
            create(journal, f"id{number:030}", f"{number:032}")
        second = open_journal(try_number=2)
        second.begin(second.records, estimate=7.0)

        parts = [key for key in store.values if key.startswith("kie.2.sum.")]
        assert len(parts) > 2
        third = open_journal(try_number=3)
        assert [each.kie_task_id for each in third.records] == [f"id{number:030}" for number in range(600)]
        assert (open_journal(try_number=2).estimate, open_journal(try_number=2).has_begun) == (7.0, True)

    def test_a_beginning_that_was_cut_off_does_not_count(self, open_journal, store):
        journal = open_journal()
        for number in range(600):
            create(journal, f"id{number:030}", f"{number:032}")
        second = open_journal(try_number=2)
        store.errors["kie.2.sum.2"] = [store_error(500)] * 3
        with pytest.raises(RuntimeError, match="500"):
            second.begin(second.records)

        assert len(open_journal(try_number=3).records) == 600

    def test_a_completed_batch_is_known_as_one(self, open_journal):
        journal = open_journal()
        journal.begin([])
        create(journal, "id-1")
        journal.summarize(is_complete=True)

        assert open_journal(try_number=2).is_complete

    def test_a_summary_that_could_not_be_written_is_written_as_it_was(self, open_journal, store, caplog):
        """Else the first of two values could land behind the second one."""
        journal = open_journal()
        create(journal, "id-1")
        written = []
        keep = store.set
        store.set = lambda key, value, **kw: written.append((key, json.dumps(value))) or keep(key, value, **kw)
        store.errors["kie.1.sum.1"] = [store_error(500)] * 3
        journal.summarize()
        create(journal, "id-2")
        journal.summarize()

        assert "A summary of the submissions could not be written" in caplog.text
        assert len({text for key, text in written if key == "kie.1.sum.1"}) == 1
        assert [each.kie_task_id for each in open_journal(try_number=2).records] == ["id-1", "id-2"]

    def test_more_than_are_read_one_by_one_are_not_submitted_without_a_summary(self, open_journal, store):
        journal = open_journal()
        store.errors["kie.1.sum.1"] = [store_error(500)] * 10**6

        def create_all():
            for number in range(MAX_WITHOUT_SUMMARY):
                create(journal, f"id-{number}")

        with pytest.raises(RuntimeError, match="500"):
            create_all()

        assert SUBMISSIONS_PER_SUMMARY < len(open_journal(try_number=2).records) < MAX_WITHOUT_SUMMARY


class TestExpected:
    """What was there before the task was deferred must be there after it."""

    def test_it_is_looked_for_three_times(self, open_journal, store):
        create(open_journal(), "id-1")
        with pytest.raises(KieJournalError, match=r"1 summaries and 2 submissions .* now there are 0 and 1"):
            open_journal(expected=[1, 1, 2])
        assert store.reads.count("kie.1.1") >= 3

    def test_it_may_come_late(self, open_journal, store):
        create(open_journal(), "id-1")
        missing = store.values.pop("kie.1.1")
        get = store.get

        def late(key):
            if store.reads.count("kie.1.1") == 2:
                store.values["kie.1.1"] = missing
            return get(key)

        store.get = late
        assert len(open_journal(expected=[1, 0, 1]).records) == 1

    def test_it_is_not_asked_of_another_try(self, open_journal):
        assert open_journal(try_number=2, expected=[1, 5, 5]).records == []


class TestNonsense:
    ANYTHING = ("", "x", 0, 7, 1.5, True, [], [1], {}, {"key": "kie.1.2"}, {"v": 1})

    @pytest.mark.parametrize("key", ["kie.1.1", "kie.1.sum.1", "kie.2.1", "kie.2.sum.1"])
    @pytest.mark.parametrize("value", ANYTHING, ids=repr)
    def test_it_stops(self, open_journal, store, key, value):
        store.set(key, value, retention=None)
        with pytest.raises(KieJournalError, match=rf"the key '{key}' of this task instance's state store holds "):
            open_journal(try_number=2)

    @pytest.mark.parametrize("key", ["kie.1.1.answer", "kie.1.ok"])
    @pytest.mark.parametrize("value", ANYTHING, ids=repr)
    def test_in_what_belongs_to_an_intent(self, open_journal, store, key, value):
        intend(open_journal())
        store.set(key, value, retention=None)
        with pytest.raises(KieJournalError, match=rf"the key '{key}'"):
            open_journal(try_number=2)

    @pytest.mark.parametrize(
        "value", ["", 7, True, [], {}, {"kie_task_id": "x"}, "two words", "é", "x" * 201], ids=repr
    )
    def test_in_what_a_person_writes(self, open_journal, store, value):
        intend(open_journal())
        store.set("kie.1.1.settled", value, retention=None)
        with pytest.raises(KieJournalError, match=r"the key 'kie.1.1.settled'"):
            open_journal(try_number=2)

    @pytest.mark.parametrize(
        ("key", "changes"),
        [
            ("kie.1.1", {"request": "x"}),
            ("kie.1.1", {"item": "0"}),
            ("kie.1.1", {"item": -1}),
            ("kie.1.1", {"fingerprint": None}),
            ("kie.1.1", {"max_tries": "x"}),
            ("kie.1.1", {"summaries": None}),
            ("kie.1.1", {"summaries": 1}),
            ("kie.1.1", {"at": 5}),
            ("kie.1.1.answer", {"kie_task_id": 7}),
            ("kie.1.1.answer", {"kie_task_id": "two words"}),
            ("kie.1.1.answer", {"kie_task_id": None}),
            ("kie.1.1.answer", {"refused": "x"}),
            ("kie.1.1.answer", {"at": None}),
            ("kie.2.sum.1", {"submissions": None}),
            ("kie.2.sum.1", {"submissions": [7]}),
            ("kie.2.sum.1", {"submissions": [{"try": 1, "number": 1, "state": "done"}]}),
            ("kie.2.sum.1", {"part": 2}),
            ("kie.2.sum.1", {"part": 0}),
            ("kie.2.sum.1", {"parts": "x"}),
            ("kie.2.sum.1", {"estimate": "x"}),
            ("kie.2.sum.2", {"first": 2}),
            ("kie.2.sum.2", {"last": 3}),
            ("kie.2.sum.2", {"last": 10**9}),
            ("kie.2.sum.2", {"submissions": []}),
        ],
        ids=str,
    )
    def test_in_a_field(self, open_journal, store, key, changes):
        create(open_journal(), "id-1")
        if key.startswith("kie.2"):
            second = open_journal(try_number=2)
            second.begin(second.records)
            create(second, "id-2")
            second.summarize()
        store.values[key] = json.dumps(json.loads(store.values[key]) | changes)

        with pytest.raises(KieJournalError, match=r"the key 'kie"):
            open_journal(try_number=3)

    def test_a_gap(self, open_journal, store):
        journal = open_journal()
        for number in range(3):
            create(journal, f"id-{number}")
        del store.values["kie.1.2"]
        with pytest.raises(KieJournalError, match=r"the key 'kie.1.2' .* is missing"):
            open_journal(try_number=2)

    def test_a_beginning_that_is_missing(self, open_journal, store):
        create(open_journal(), "id-1")
        second = open_journal(try_number=2)
        second.begin(second.records)
        create(second, "id-2")
        del store.values["kie.2.sum.1"]

        with pytest.raises(KieJournalError, match=r"the key 'kie.2.sum.1' .* is missing"):
            open_journal(try_number=3)

    def test_two_thousand_keys(self, open_journal, store):
        intend(open_journal())
        first = store.values["kie.1.1"]
        for number in range(2, 2001):
            store.values[f"kie.1.{number}"] = first.replace('"kie.1.1"', f'"kie.1.{number}"')

        with pytest.raises(KieJournalError, match="too many without a summary"):
            open_journal(try_number=2)
        assert len(store.reads) < 2 * MAX_WITHOUT_SUMMARY

    def test_the_value_of_another_key(self, open_journal, store):
        journal = open_journal()
        create(journal, "id-1")
        create(journal, "id-2")
        store.values["kie.1.2"] = store.values["kie.1.1"]
        with pytest.raises(KieJournalError, match=r"the key 'kie.1.2'"):
            open_journal(try_number=2)

    @pytest.mark.parametrize("late", [1, 2, 9])
    def test_a_channel_that_is_out_of_step(self, open_journal, store, late):
        create(open_journal(), "id-1")
        second = open_journal(try_number=2)
        second.begin(second.records)
        get, answers = store.get, [None] * late

        def out_of_step(key):
            answers.append(get(key))
            return answers.pop(0)

        store.get = out_of_step
        with pytest.raises(OutOfStepError):
            intend(open_journal(try_number=3))


class TestWithoutStore:
    def test_the_xcoms_of_the_try_hold_it(self):
        ti = FakeTaskInstance(try_number=3, max_tries=3, map_index=2)
        journal = Journal(context_of(ti))
        journal.read()
        assert not journal.is_durable
        journal.begin([])
        create(journal, "the-id")

        resumed = Journal(context_of(ti))
        resumed.resume()
        assert told(resumed) == [("kie.3.1", "submitted", "the-id")]
        assert resumed.has_begun

    def test_a_unit_test_of_a_dag_needs_no_task_instance(self):
        journal = Journal({})
        journal.read()
        create(journal, "the-id")
        journal.resume()
        assert told(journal) == [("kie.1.1", "submitted", "the-id")]
