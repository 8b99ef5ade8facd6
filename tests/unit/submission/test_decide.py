"""What a try makes of the submissions before it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_provider.submission.decide import (
    Reattach,
    Submit,
    Unknown,
    assign,
    changed_fields,
    claim,
    next_step,
    of_this_try,
)
from kie_provider.submission.record import SubmissionRecord

REQUEST = {"model": "flux-2/pro-text-to-image", "input": {"prompt": "a fox", "resolution": "1K"}}


RETRY, CLEAR = 1, 3  # what max_tries is now; the records below were written when it was 1


def record(fingerprint="a", state="submitted", number=1, try_number=1, max_tries=1, **fields):
    kie_task_id = f"id-{number}" if state in ("submitted", "failed") else None
    return SubmissionRecord(
        try_number, number, fingerprint, max_tries=max_tries, state=state, kie_task_id=kie_task_id, **fields
    )


def records(fingerprints, state="submitted"):
    return [record(each, state, number) for number, each in enumerate(fingerprints, 1)]


SENT = record()
DOUBT = record(state="unknown")


class TestNextStep:
    @pytest.mark.parametrize(
        ("known", "fingerprint", "after_retry", "after_clear"),
        [
            ([], "a", Submit(), Submit()),
            ([SENT], "a", Reattach(SENT), Reattach(SENT)),
            ([SENT], "b", Reattach(SENT, has_changed=True), Submit()),
            ([DOUBT], "a", Unknown(DOUBT), Unknown(DOUBT)),
            ([DOUBT], "b", Unknown(DOUBT), Unknown(DOUBT)),
            ([record(state="nothing")], "a", Submit(), Submit()),
            ([record(state="refused")], "a", Submit(), Submit()),
            ([record(state="failed")], "a", Submit(), Submit()),
            ([record(state="nothing"), record(number=2)], "a", Reattach(record(number=2)), Reattach(record(number=2))),
            ([DOUBT, record(number=2)], "a", Reattach(record(number=2)), Reattach(record(number=2))),
            (
                [SENT, record(state="unknown", number=2)],
                "a",
                Unknown(record(state="unknown", number=2)),
                Reattach(SENT),
            ),
            ([SENT, record("b", "unknown", 2)], "c", *[Unknown(record("b", "unknown", 2))] * 2),
            # "a" was left out by the clear with which "b" was asked for
            (
                [SENT, record("b", number=2, max_tries=3)],
                "b",
                Reattach(SENT, has_changed=True),
                Reattach(record("b", number=2, max_tries=3)),
            ),
            ([SENT, record("b", "nothing", 2, max_tries=3)], "b", None, Submit()),
            ([SENT, record("b", "nothing", 2, max_tries=3)], "a", None, Reattach(SENT)),
        ],
    )
    def test_a_single_image(self, known, fingerprint, after_retry, after_clear):
        assert after_retry in (None, next_step(known, fingerprint, max_tries=RETRY))
        assert next_step(known, fingerprint, max_tries=CLEAR) == after_clear

    def test_a_doubt_is_submitted_again_only_if_the_author_says_so(self):
        assert next_step([DOUBT], "a", max_tries=RETRY, resubmit_unknown=True) == Submit()
        assert next_step([SENT, DOUBT], "a", max_tries=RETRY, resubmit_unknown=True) == Reattach(SENT)


class TestClaim:
    @pytest.mark.parametrize("max_tries", [RETRY, CLEAR])
    @pytest.mark.parametrize(
        ("known", "asked", "expected"),
        [
            ("", "abc", [None, None, None]),
            ("abc", "abc", [1, 2, 3]),
            ("abc", "cab", [3, 1, 2]),
            ("ab", "abc", [1, 2, None]),
            ("aab", "aba", [1, 3, 2]),
            ("a", "aa", [1, None]),
            ("abc", "xabc", [None, 1, 2, 3]),
        ],
    )
    def test_an_item_finds_what_was_submitted_for_it(self, known, asked, expected, max_tries):
        claimed = claim(records(known), list(asked), max_tries=max_tries)
        assert [each and each.number for each in claimed] == expected

    @pytest.mark.parametrize(
        ("known", "asked", "after_retry", "after_clear"),
        [
            ("abc", "abX", [1, 2, 3], [1, 2, None]),
            ("abc", "XYZ", [1, 2, 3], [None, None, None]),
            ("abc", "XcY", [1, 3, 2], [None, 3, None]),
            ("ab", "XYZ", [1, 2, None], [None, None, None]),
            ("abc", "X", [1], [None]),
        ],
    )
    def test_changed_items_take_over_after_a_retry_only(self, known, asked, after_retry, after_clear):
        for max_tries, expected in ((RETRY, after_retry), (CLEAR, after_clear)):
            claimed = claim(records(known), list(asked), max_tries=max_tries)
            assert [each and each.number for each in claimed] == expected

    def test_of_several_the_one_that_got_furthest_counts(self):
        known = [record("a", state, n) for n, state in enumerate(["unknown", "refused", "nothing", "submitted"], 1)]

        assert claim(known, ["a"], max_tries=CLEAR) == [known[3]]
        assert claim(known, ["a", "a", "a", "a"], max_tries=CLEAR) == [known[3], known[1], known[0], None]


class TestOfThisTry:
    def test_every_item_has_what_the_try_has_said_belongs_to_it(self):
        first, second = record(number=1, item=2), record("b", number=2, item=0)

        assert of_this_try([first, second], 3) == [second, None, first]

    def test_of_several_the_one_that_got_furthest_counts_then_the_last(self):
        refused, sent, again = record(state="nothing", number=1), record(number=2), record(number=3)

        assert of_this_try([refused, sent, again, record(state="unknown", number=4)], 1) == [again]
        assert of_this_try([refused], 1) == [None]

    def test_what_belongs_to_no_item_is_left_out(self):
        assert of_this_try([record(item=2)], 2) == [None, None]


class TestAssign:
    @pytest.mark.parametrize(
        ("known", "goes_on_after_retry", "goes_on_after_clear"),
        [
            (record(), True, True),
            (record(state="unknown"), True, True),
            (record(state="nothing"), False, False),
            (record(state="refused"), True, False),
            (record(state="failed"), True, False),
            (record(state="failed", may_succeed_anew=True), False, False),
        ],
    )
    def test_one_item(self, known, goes_on_after_retry, goes_on_after_clear):
        for max_tries, goes_on in ((RETRY, goes_on_after_retry), (CLEAR, goes_on_after_clear)):
            claimed, kept = assign([known], ["a"], max_tries=max_tries)
            assert (claimed, kept) == (([known], [known]) if goes_on else ([None], []))

    def test_a_doubt_is_submitted_again_only_if_the_author_says_so(self):
        assert assign([DOUBT], ["a"], max_tries=RETRY, resubmit_unknown=True) == ([None], [])

    @pytest.mark.parametrize("state", ["submitted", "unknown"])
    def test_what_nobody_asks_for_any_more(self, state):
        known = [record("a", state), record("b", number=2)]
        assert assign(known, ["b"], max_tries=RETRY) == ([known[1]], known)
        assert assign(known, ["b"], max_tries=CLEAR) == ([known[1]], known)

    def test_a_refusal_before_a_clear_does_not_hide_a_doubt(self):
        refused, doubt = record(state="refused"), record(state="unknown", number=2)

        assert assign([refused, doubt], ["a"], max_tries=CLEAR) == ([doubt], [doubt])

    def test_what_a_clear_has_left_out(self):
        """It is not taken over by the next retry, and found again by the next clear with the same list."""
        known = [record("a"), record("b", number=2, max_tries=CLEAR)]
        assert assign(known, ["c"], max_tries=CLEAR)[0] == [known[1]]
        assert assign(known, ["c", "d"], max_tries=CLEAR)[0] == [known[1], None]
        assert assign(known, ["a"], max_tries=5)[0] == [known[0]]

    def test_a_changed_item_is_submitted_in_the_place_of_what_has_failed(self):
        known = [record("a", "failed", 1, may_succeed_anew=True), record("b", number=2)]
        assert assign(known, ["X", "Y"], max_tries=RETRY) == ([None, known[1]], [known[1]])

    @given(
        known=st.lists(
            st.tuples(
                st.sampled_from("abc"),
                st.sampled_from(["submitted", "unknown", "nothing"]),
                st.sampled_from([RETRY, CLEAR]),
            )
        ),
        asked=st.lists(st.sampled_from("abcd")),
    )
    def test_nothing_that_may_be_paid_is_submitted_again(self, known, asked):
        entries = [record(print_, state, n, max_tries=tries) for n, (print_, state, tries) in enumerate(known, 1)]
        claimed, kept = assign(entries, asked, max_tries=CLEAR)

        taken = [each for each in claimed if each is not None]
        assert len(set(taken)) == len(taken)  # no image stands for two items
        assert set(taken) <= set(kept)
        for fingerprint in set(asked):
            left = any(each not in taken and each.fingerprint == fingerprint for each in kept)
            items = [each for each, wanted in zip(claimed, asked, strict=True) if wanted == fingerprint]
            assert not (left and None in items)  # none is submitted while there is one for it


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (REQUEST, []),
        ({**REQUEST, "callBackUrl": "https://example.com/2"}, ["callBackUrl"]),
        ({"model": "m", "input": {"prompt": "an owl", "resolution": "1K"}}, ["model", "prompt"]),
        ({**REQUEST, "input": {"prompt": "a fox"}}, ["resolution"]),
        ({**REQUEST, "input": "text"}, ["input", "prompt", "resolution"]),
    ],
)
def test_changed_fields(now, expected):
    assert changed_fields(REQUEST, now) == expected
