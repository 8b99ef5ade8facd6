"""The ledger of a batch: who finds which entry, what a new try makes of it, and what is written when."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from kie_provider.batch.book import KEY, SLICE, Book, Entry, claim, reconsider
from kie_provider.client.errors import KieSubmitUnknownError


def entries(*prints, phase="submitted"):
    return [Entry(each, phase, f"id-{each}") for each in prints]


class Store:
    """Keeps JSON, as Airflow's task state store does."""

    def __init__(self):
        self.values = {}
        self.error = None

    def get(self, key):
        return json.loads(self.values[key]) if key in self.values else None

    def set(self, key, value, *, retention):
        if self.error is not None:
            raise self.error
        self.values[key] = json.dumps(value)


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def new_book(store):
    """Return a function that opens the book as a worker process does."""

    def open_book(max_tries=1, **context):
        ti = SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=-1, try_number=1, max_tries=max_tries)
        book = Book({"ti": ti, "task_state_store": store, **context})
        book.read()
        return book

    return open_book


def begin(book, **fields):
    book.begin(**{"estimate": 5.0, "conn_id": "kie_default", "host": "https://api.kie.ai", **fields})
    return book


class TestClaim:
    @pytest.mark.parametrize("is_cleared", [False, True])
    @pytest.mark.parametrize(
        ("known", "asked", "expected"),
        [
            ("", "abc", [None, None, None]),
            ("abc", "abc", [0, 1, 2]),
            ("abc", "cab", [2, 0, 1]),
            ("ab", "abc", [0, 1, None]),
            ("aab", "aba", [0, 2, 1]),
            ("a", "aa", [0, None]),
            ("abc", "xabc", [None, 0, 1, 2]),
        ],
    )
    def test_an_item_finds_what_was_ordered_for_it(self, known, asked, expected, is_cleared):
        assert claim(entries(*known), list(asked), is_cleared=is_cleared) == expected

    @pytest.mark.parametrize(
        ("known", "asked", "after_retry", "after_clear"),
        [
            ("abc", "abX", [0, 1, 2], [0, 1, None]),
            ("abc", "XYZ", [0, 1, 2], [None, None, None]),
            ("abc", "XcY", [0, 2, 1], [None, 2, None]),
            ("ab", "XYZ", [0, 1, None], [None, None, None]),
            ("abc", "X", [0], [None]),
        ],
    )
    def test_changed_items_take_over_after_a_retry_only(self, known, asked, after_retry, after_clear):
        assert claim(entries(*known), list(asked), is_cleared=False) == after_retry
        assert claim(entries(*known), list(asked), is_cleared=True) == after_clear

    def test_superseded_ones_are_never_taken(self):
        known = entries("a", phase="superseded")
        for is_cleared in (False, True):
            assert claim(known, ["a", "b"], is_cleared=is_cleared) == [None, None]


class TestReconsider:
    @pytest.mark.parametrize(
        ("entry", "after_retry", "after_clear"),
        [
            (Entry("a", "submitted", "id"), None, None),
            (Entry("a", "intent"), None, None),
            (Entry("a", "again"), None, None),
            (Entry("a", "refused"), None, "again"),
            (Entry("a", "failed", "id"), None, "again"),
            (Entry("a", "failed", "id", may_succeed_anew=True), "again", "again"),
        ],
    )
    def test_a_claimed_entry(self, entry, after_retry, after_clear):
        for is_cleared, phase in ((False, after_retry), (True, after_clear)):
            phases = reconsider([entry], [0], is_cleared=is_cleared, resubmit_unknown=False)
            assert phases == ({} if phase is None else {0: phase})

    def test_an_unknown_submission_is_repeated_only_if_the_author_says_so(self):
        assert reconsider([Entry("a", "intent")], [0], is_cleared=False, resubmit_unknown=True) == {0: "again"}

    @pytest.mark.parametrize("phase", ["submitted", "intent", "failed"])
    def test_what_nobody_asks_for_any_more(self, phase):
        known = [Entry("a", phase, "id")]
        assert reconsider(known, [None], is_cleared=False, resubmit_unknown=True) == {}
        assert reconsider(known, [None], is_cleared=True, resubmit_unknown=True) == {0: "superseded"}


class TestBook:
    def test_a_new_one_knows_nothing(self, new_book):
        book = new_book()

        assert (book.header, book.entries, book.is_durable) == (None, [], True)
        assert (book.is_delivered, book.is_cleared, book.has_submitted) == (False, False, False)

    def test_every_phase_is_there_for_the_next_try(self, new_book):
        book = begin(new_book())
        for fingerprint in "abcd":
            book.intend(None, fingerprint)
        book.submitted(0, "id-a")
        book.withdraw(1, "refused", "prompt is too long")
        book.submitted(2, "id-c")
        book.failed(2, "Internal Error", may_succeed_anew=True)

        read = new_book().entries
        assert [(each.fingerprint, each.phase, each.kie_task_id) for each in read] == [
            ("a", "submitted", "id-a"),
            ("b", "refused", None),
            ("c", "failed", "id-c"),
            ("d", "intent", None),
        ]
        assert (read[1].reason, read[2].reason, read[2].may_succeed_anew) == (
            "prompt is too long",
            "Internal Error",
            True,
        )
        assert all(entry.submitted_at > 1.7e9 for entry in read)
        assert new_book().header.estimate == 5.0
        assert new_book().has_submitted

    def test_every_hundred_has_a_key_of_its_own(self, new_book, store):
        book = begin(new_book())
        for number in range(2 * SLICE + 1):
            book.submitted(book.intend(None, f"{number:032}"), f"id{number:030}")

        assert sorted(store.values) == [KEY, *(f"{KEY}_1_{n}" for n in range(3))]
        assert max(map(len, store.values.values())) < 64_000 / 2
        assert [entry.kie_task_id for entry in new_book().entries] == [f"id{number:030}" for number in range(201)]

    def test_exactly_a_hundred(self, new_book):
        book = begin(new_book())
        for number in range(SLICE):
            book.intend(None, str(number))
        assert len(new_book().entries) == SLICE

    def test_ordering_again_forgets_no_id(self, new_book):
        book = begin(new_book())
        book.submitted(book.intend(None, "a"), "first")
        book.failed(0, "Internal Error", may_succeed_anew=True)
        book.submitted(book.intend(0, "b"), "second")

        [entry] = new_book().entries
        assert (entry.fingerprint, entry.kie_task_id, entry.earlier) == ("b", "second", ("first",))
        assert (entry.reason, entry.may_succeed_anew) == ("", False)

    def test_a_fence_that_cannot_be_written_stops_everything(self, new_book, store):
        book = begin(new_book())
        store.error = OSError("the API server has gone")
        with pytest.raises(OSError, match="has gone"):
            book.intend(None, "a")
        with pytest.raises(OSError, match="has gone"):
            begin(book)

    def test_a_try_that_was_replaced_stops_with_the_id(self, new_book, store):
        book = begin(new_book())
        book.intend(None, "a")
        store.error = RuntimeError()
        store.error.error = SimpleNamespace(detail={"status_code": 404})
        with pytest.raises(AirflowFailException, match="created Kie task the-id, which goes on at Kie"):
            book.submitted(0, "the-id")

    def test_an_id_that_could_not_be_noted_is_noted_with_the_next(self, new_book, store, caplog):
        book = begin(new_book())
        book.intend(None, "a")
        store.error = OSError("busy")
        book.submitted(0, "the-id")
        assert "Kie task the-id was created, but Airflow could not note it (busy)" in caplog.text
        assert new_book().entries[0].phase == "intent"

        store.error = None
        book.intend(None, "b")
        assert new_book().entries[0].kie_task_id == "the-id"

    def test_what_need_not_be_certain_raises_nothing(self, new_book, store, caplog):
        book = begin(new_book())
        book.submitted(book.intend(None, "a"), "the-id")
        store.error = OSError("busy")
        book.failed(0, "why", may_succeed_anew=False)
        book.withdraw(0)
        book.delivered()
        assert caplog.text.count("busy") == 3

    def test_a_clear_is_told_from_a_retry(self, new_book):
        begin(new_book(max_tries=1))

        assert not new_book(max_tries=1).is_cleared
        assert new_book(max_tries=3).is_cleared
        begin(new_book(max_tries=3))
        assert not new_book(max_tries=3).is_cleared

    def test_a_new_round_keeps_the_entries_of_the_old_one(self, new_book, store):
        book = begin(new_book())
        book.submitted(book.intend(None, "a"), "old")
        book.delivered()

        cleared = new_book(max_tries=3)
        assert (cleared.is_delivered, cleared.is_cleared) == (True, True)
        cleared.begin_anew()
        begin(cleared)
        cleared.submitted(cleared.intend(None, "a"), "new")

        assert [entry.kie_task_id for entry in new_book(max_tries=3).entries] == ["new"]
        assert not new_book(max_tries=3).is_delivered
        assert "old" in store.values[f"{KEY}_1_0"]

    def test_an_id_that_was_put_in_by_hand_counts(self, new_book, store):
        book = begin(new_book())
        book.intend(None, "a")
        stored = store.get(f"{KEY}_1_0")
        stored["entries"][0]["kie_task_id"] = "found"
        store.set(f"{KEY}_1_0", stored, retention=None)

        assert (new_book().entries[0].phase, new_book().entries[0].kie_task_id) == ("submitted", "found")

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            (KEY, "an id"),
            (KEY, 7),
            (f"{KEY}_1_0", "an id"),
            (f"{KEY}_1_0", {"entries": ["x"]}),
            (f"{KEY}_1_0", {"entries": [{"phase": "done"}]}),
            (f"{KEY}_1_0", {"entries": [{"phase": "intent"}]}),
            (f"{KEY}_1_0", {}),
        ],
    )
    def test_what_makes_no_sense_stops_everything(self, new_book, store, key, value):
        store.set(key, value, retention=None)
        with pytest.raises(KieSubmitUnknownError, match="not what this provider writes"):
            new_book()

    def test_without_a_store_the_xcoms_of_the_try_hold_it(self):
        xcoms = {}
        ti = SimpleNamespace(
            dag_id="d",
            run_id="r",
            task_id="t",
            map_index=2,
            try_number=1,
            max_tries=0,
            xcom_push=lambda key, value: xcoms.__setitem__(key, json.dumps(value)),
            xcom_pull=lambda task_ids, map_indexes, key: json.loads(xcoms.get(key, "null")),
        )
        book = Book({"ti": ti})
        assert not book.is_durable
        book.read()
        begin(book)
        book.submitted(book.intend(None, "a"), "the-id")

        resumed = Book({"ti": ti})
        resumed.read()
        assert [entry.kie_task_id for entry in resumed.entries] == ["the-id"]
