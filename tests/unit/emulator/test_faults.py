"""The grammar of faults, and which request meets which."""

from __future__ import annotations

import pytest

from kie_provider.emulator.faults import ACTIONS, ENDPOINTS, FaultBook, parse


def book(*faults) -> FaultBook:
    armed = FaultBook()
    for fault in faults:
        armed.arm(parse(fault))
    return armed


def meets(armed: FaultBook, on: str, **subject: str) -> str | None:
    fault = armed.take(on, subject)
    return fault.do if fault else None


def test_defaults():
    fault = parse({"on": "credit", "do": "reset"})
    assert (fault.times, fault.skip, fault.match, fault.details) == (1, 0, {}, {})


def test_every_action_can_be_armed_on_the_endpoints_it_names():
    required = {"code": {"code": 429}, "slow": {"delay_seconds": 0.1}}
    for do, action in ACTIONS.items():
        for on in ENDPOINTS:
            fault = {"on": on, "do": do, **required.get(do, {})}
            if on in action.on:
                assert parse(fault).do == do
            else:
                with pytest.raises(ValueError, match=f"not on '{on}'"):
                    parse(fault)


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ({"on": "credit", "do": "reset", "tims": 2}, "'tims'"),
        ({"on": "credit", "do": "reset", "delay_seconds": 2}, "'delay_seconds'"),
        ({"on": "createTask", "do": "slow"}, "'delay_seconds'"),
        ({"on": "createTask", "do": "slow", "delay_seconds": "1"}, "'delay_seconds'"),
        ({"on": "createTask", "do": "code"}, "'code'"),
        ({"on": "createTask", "do": "code", "code": "429"}, "'code'"),
        ({"on": "createTask", "do": "code", "code": True}, "'code'"),
        ({"on": "createTask", "do": "fail", "fail_code": "400"}, "'fail_code'"),
        ({"on": "jobs", "do": "reset"}, "'on'"),
        ({"do": "reset"}, "'on'"),
        ({"on": "credit", "do": "explode"}, "'do'"),
        ({"on": "credit", "do": ["reset", "slow"]}, "'do'"),
        ({"on": "credit"}, "'do'"),
        ({"on": "credit", "do": "reset", "times": 0}, "'times'"),
        ({"on": "credit", "do": "reset", "times": 1.5}, "'times'"),
        ({"on": "credit", "do": "reset", "skip": -1}, "'skip'"),
        ({"on": "credit", "do": "reset", "skip": None}, "'skip'"),
        ({"on": "credit", "do": "reset", "match": {"prompt": "x"}}, "'prompt'"),
        ({"on": "createTask", "do": "reset", "match": {"taskId": "x"}}, "'taskId'"),
        ({"on": "createTask", "do": "reset", "match": {"prompt": 7}}, "'prompt'"),
        ({"on": "createTask", "do": "reset", "match": "fox"}, "'match'"),
        (["createTask"], "'fault'"),
        (None, "'fault'"),
    ],
)
def test_a_wrong_fault_is_refused_and_the_field_named(fault, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse(fault)


def test_once_by_default_then_never_again():
    armed = book({"on": "credit", "do": "reset"})
    assert [meets(armed, "credit") for _ in range(3)] == ["reset", None, None]


def test_times_and_skip():
    armed = book({"on": "credit", "do": "reset", "times": 2, "skip": 1})
    assert [meets(armed, "credit") for _ in range(5)] == [None, "reset", "reset", None, None]


def test_times_null_is_until_a_reset():
    armed = book({"on": "credit", "do": "reset", "times": None})
    assert [meets(armed, "credit") for _ in range(50)] == ["reset"] * 50


def test_other_endpoints_neither_meet_nor_count():
    armed = book({"on": "credit", "do": "reset", "skip": 1})
    assert [meets(armed, on) for on in ("upload", "file", "credit", "upload", "credit")] == [None] * 4 + ["reset"]


def test_match_by_part_of_the_prompt_and_by_whole_id():
    armed = book({"on": "recordInfo", "do": "reset", "times": None, "match": {"prompt": "fox"}})
    assert meets(armed, "recordInfo", prompt="a red fox", taskId="1") == "reset"
    assert meets(armed, "recordInfo", prompt="a red bear", taskId="1") is None
    assert meets(armed, "recordInfo") is None
    armed = book({"on": "recordInfo", "do": "reset", "times": None, "match": {"taskId": "12", "prompt": "fox"}})
    assert meets(armed, "recordInfo", prompt="a red fox", taskId="12") == "reset"
    assert meets(armed, "recordInfo", prompt="a red fox", taskId="123") is None
    assert meets(armed, "recordInfo", prompt="a bear", taskId="12") is None


def test_a_request_meets_one_fault_and_the_first_armed_goes_first():
    armed = book(
        {"on": "createTask", "do": "stuck", "match": {"prompt": "fox"}},
        {"on": "createTask", "do": "lost_answer"},
        {"on": "createTask", "do": "reset"},
    )
    prompts = ("a bear", "a fox", "a fox", "a fox")
    assert [meets(armed, "createTask", prompt=prompt) for prompt in prompts] == ["lost_answer", "stuck", "reset", None]


def test_listing_says_how_often_each_was_met():
    armed = book({"on": "createTask", "do": "slow", "delay_seconds": 1, "times": 2}, {"on": "credit", "do": "reset"})
    meets(armed, "createTask")
    assert armed.as_json() == [
        {"on": "createTask", "do": "slow", "times": 2, "skip": 0, "match": {}, "delay_seconds": 1, "met": 1},
        {"on": "credit", "do": "reset", "times": 1, "skip": 0, "match": {}, "met": 0},
    ]
