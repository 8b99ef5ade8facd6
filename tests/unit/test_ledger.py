"""The ledger's one decision, and what may stand in its entry."""

from __future__ import annotations

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from kie_provider.client.errors import KieSubmitUnknownError
from kie_provider.ledger import GoOn, Submission, Submit, Unknown, next_step, no_alarm

REQUEST = {"model": "flux-2/pro-text-to-image", "input": {"prompt": "a fox", "resolution": "1K"}}
OTHER_PROMPT = {"model": "flux-2/pro-text-to-image", "input": {"prompt": "an owl", "resolution": "1K"}}
OTHER_CALLBACK = {**REQUEST, "callBackUrl": "https://example.com/2"}
INTENT = Submission("intent", REQUEST, superseded=("older",))
SUBMITTED = Submission("submitted", REQUEST, "kie-1", superseded=("older",))
DELIVERED = Submission("delivered", REQUEST, "kie-1", superseded=("older",))
BY_HAND = Submission("submitted", {}, "kie-1")


@pytest.mark.parametrize(
    ("submission", "request_now", "is_cleared", "expected"),
    [
        (None, REQUEST, False, Submit()),
        (None, REQUEST, True, Submit()),
        (INTENT, REQUEST, False, Unknown(INTENT)),
        (INTENT, OTHER_PROMPT, True, Unknown(INTENT)),
        (SUBMITTED, REQUEST, False, GoOn("kie-1", SUBMITTED)),
        (SUBMITTED, REQUEST, True, GoOn("kie-1", SUBMITTED)),
        (SUBMITTED, OTHER_PROMPT, False, GoOn("kie-1", SUBMITTED, ("prompt",))),
        (SUBMITTED, OTHER_CALLBACK, False, GoOn("kie-1", SUBMITTED, ("callBackUrl",))),
        (SUBMITTED, {**OTHER_PROMPT, "model": "m"}, False, GoOn("kie-1", SUBMITTED, ("model", "prompt"))),
        (SUBMITTED, {**REQUEST, "input": {"prompt": "a fox"}}, False, GoOn("kie-1", SUBMITTED, ("resolution",))),
        (SUBMITTED, OTHER_PROMPT, True, Submit(("older", "kie-1"))),
        (DELIVERED, REQUEST, False, GoOn("kie-1", DELIVERED)),
        (DELIVERED, OTHER_PROMPT, False, GoOn("kie-1", DELIVERED, ("prompt",))),
        (DELIVERED, REQUEST, True, Submit(("older", "kie-1"))),
        (BY_HAND, REQUEST, False, GoOn("kie-1", BY_HAND)),
        (BY_HAND, REQUEST, True, GoOn("kie-1", BY_HAND)),
    ],
)
def test_next_step(submission, request_now, is_cleared, expected):
    assert next_step(submission, request_now, is_cleared=is_cleared) == expected


@pytest.mark.parametrize("submission", [INTENT, SUBMITTED, DELIVERED])
def test_an_entry_is_read_back_from_json(submission):
    stored = json.loads(json.dumps(submission.to_json()))

    assert stored["v"] == 1
    assert Submission.from_json(stored) == submission


def test_a_prompt_that_airflow_cannot_store_is_stored_and_recognised():
    odd = {"model": "m", "input": {"prompt": "half an emoji \ud83e"}}
    stored = Submission.from_json(json.loads(json.dumps(Submission("submitted", odd, "kie-1").to_json())))

    assert stored.request["input"]["prompt"] == "half an emoji ?"
    assert next_step(stored, odd, is_cleared=True) == GoOn("kie-1", stored)


def test_fields_of_later_versions_do_no_harm():
    assert Submission.from_json({**SUBMITTED.to_json(), "v": 2, "uploads": []}) == SUBMITTED


def test_an_id_put_there_by_hand_is_enough():
    assert Submission.from_json("  kie-1 ") == BY_HAND


def test_an_intent_completed_by_hand_counts_as_submitted():
    stored = {**INTENT.to_json(), "kie_task_id": "kie-1"}

    assert Submission.from_json(stored) == SUBMITTED


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "  ",
        7,
        [],
        {},
        {"phase": "submitted"},
        {"phase": "submitted", "request": {}},
        {"phase": "submitted", "request": {}, "kie_task_id": 7},
        {"phase": "submitted", "request": [], "kie_task_id": "kie-1"},
        {"phase": "intent", "request": {}, "superseded": None},
        {"phase": "done", "request": {}, "kie_task_id": "kie-1"},
    ],
    ids=repr,
)
def test_what_makes_no_sense_is_never_taken_for_nothing(stored):
    with pytest.raises(KieSubmitUnknownError, match=r"'kie_submission' of the state store holds .*, not an entry"):
        Submission.from_json(stored)


@pytest.mark.parametrize("at", ["", "yesterday", "PT5S"])
def test_an_unknown_time_is_long_ago(at):
    assert Submission("submitted", {}, "kie-1", at=at).age > 1e6


def test_the_alarm_waits_for_the_end_of_the_block():
    rings = []
    previous = signal.signal(signal.SIGALRM, lambda *_: rings.append(time.monotonic()))
    try:
        with no_alarm():
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            time.sleep(0.1)
            end_of_block = time.monotonic()
            assert not rings
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)

    assert len(rings) == 1
    assert rings[0] >= end_of_block


def test_an_alarm_does_not_hide_how_the_block_failed():
    rings = []

    def refused_after_an_alarm():
        signal.raise_signal(signal.SIGALRM)
        raise ZeroDivisionError

    previous = signal.signal(signal.SIGALRM, lambda *_: rings.append(1))
    try:
        with pytest.raises(ZeroDivisionError), no_alarm():
            refused_after_an_alarm()
    finally:
        signal.signal(signal.SIGALRM, previous)

    assert not rings


def test_outside_the_main_thread_no_alarm_can_cut_in():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: no_alarm().__enter__()).result() is None
