"""The life of a task, seen with a clock in the hand: state, record and cost at any moment."""

from __future__ import annotations

import json

import pytest

from kie_provider.emulator.models import accept
from kie_provider.emulator.settings import Settings
from kie_provider.emulator.tasks import Outcome, Task, cost_at, ends_at, record, result_path, state_at

CREATED = 1_789_126_694.807
SETTINGS = Settings(waiting_seconds=2, queuing_seconds=3, generating_seconds=60.5)
BODY = {
    "model": "flux-2/pro-text-to-image",
    "callBackUrl": "https://example.com/hook?a=1",
    "input": {"prompt": 'a "red" fox, füchsisch', "aspect_ratio": "1:1", "resolution": "1K"},
}


def task(outcome: Outcome | None = None, body=BODY) -> Task:
    return Task("366e2065ed94e590a9e1201e1f1e1704", accept(body), CREATED, outcome or Outcome())


def record_after(seconds: float, outcome: Outcome | None = None, settings: Settings = SETTINGS, body=BODY) -> dict:
    return record(task(outcome, body), settings, CREATED + seconds, "http://kie.test")


@pytest.mark.parametrize(
    ("age", "state"),
    [
        (0, "waiting"),
        (1.9, "waiting"),
        (2.1, "queuing"),
        (4.9, "queuing"),
        (5.1, "generating"),
        (65.4, "generating"),
        (65.6, "success"),
        (1e9, "success"),
    ],
)
def test_state_depends_on_age_alone(age, state):
    assert state_at(task(), SETTINGS, CREATED + age) == state


def test_a_task_that_fails_runs_as_long_and_one_that_is_stuck_for_ever():
    assert state_at(task(Outcome("fail")), SETTINGS, CREATED + 65.4) == "generating"
    assert state_at(task(Outcome("fail")), SETTINGS, CREATED + 65.6) == "fail"
    assert state_at(task(Outcome(end=None)), SETTINGS, CREATED + 1e9) == "waiting"
    assert ends_at(task(Outcome(end=None)), SETTINGS) is None


def test_without_durations_a_task_is_done_at_once():
    assert state_at(task(), Settings(generating_seconds=0), CREATED) == "success"


def test_cost_is_held_from_the_start_and_given_back_when_it_fails():
    assert [cost_at(task(), SETTINGS, CREATED + age) for age in (0, 10, 100)] == [5.0, 5.0, 5.0]
    assert [cost_at(task(Outcome("fail")), SETTINGS, CREATED + age) for age in (0, 10, 100)] == [5.0, 5.0, 0.0]


def test_record_while_running_is_as_recorded_from_the_real_api():
    got = record_after(10)
    assert list(got) == [
        "taskId", "model", "state", "param", "resultJson", "failCode", "failMsg", "costTime", "completeTime",
        "createTime", "creditsConsumed", "operationType", "successFlag", "paramJson",
    ]  # fmt: skip
    assert got["state"] == "generating"
    assert got["resultJson"] == ""
    assert [got[name] for name in ("failCode", "failMsg", "costTime", "completeTime")] == [None] * 4
    assert got["createTime"] == 1_789_126_694_807
    assert got["creditsConsumed"] == 5.0
    assert isinstance(got["creditsConsumed"], float)
    assert got["successFlag"] == 0


def test_record_of_a_success():
    got = record_after(100)
    url = f"http://kie.test{result_path(task(), SETTINGS)}"
    assert json.loads(got["resultJson"]) == got["response"] == {"resultUrls": [url]}
    assert url == "http://kie.test/h/366e2065ed94e590a9e1201e1f1e1704_1789126760.png"
    assert got["costTime"] == 65  # whole seconds, rounded down
    assert got["completeTime"] == 1_789_126_760_307
    assert (got["successFlag"], got["failCode"], got["failMsg"]) == (1, None, None)


def test_record_of_a_failure():
    got = record_after(100, Outcome("fail", "400", "no fox"))
    assert (got["state"], got["failCode"], got["failMsg"]) == ("fail", "400", "no fox")
    assert (got["creditsConsumed"], got["successFlag"], got["resultJson"]) == (0.0, 3, "")
    assert "response" not in got
    assert got["costTime"] == 65


def test_record_of_a_success_without_url():
    got = record_after(100, Outcome(urls=False))
    assert (got["state"], got["resultJson"]) == ("success", '{"resultUrls":[]}')


def test_param_is_json_in_json_with_the_callback_in_it():
    got = record_after(0)
    param = json.loads(got["param"])
    assert param.keys() == {"callBackUrl", "input", "model"}
    assert isinstance(param["input"], str)
    assert json.loads(param["input"]) == BODY["input"]
    assert param["callBackUrl"] == BODY["callBackUrl"]
    assert got["paramJson"] == got["param"]


def test_param_has_no_callback_when_none_was_given():
    body = {name: value for name, value in BODY.items() if name != "callBackUrl"}
    assert json.loads(record_after(0, body=body)["param"]).keys() == {"input", "model"}


def test_older_shape_lacks_the_newer_fields():
    got = record_after(100, settings=Settings(record_shape="2026-04"))
    assert list(got) == [
        "taskId", "model", "state", "param", "resultJson", "failCode", "failMsg", "costTime", "completeTime",
        "createTime",
    ]  # fmt: skip


def test_a_text_model_answers_with_an_object():
    body = {"model": "elevenlabs/speech-to-text", "input": {"audio_url": "https://example.com/a.mp3"}}
    got = record_after(100, body=body)
    assert got["response"].keys() == {"resultObject"}
    assert json.loads(got["resultJson"]) == got["response"]
    assert got["creditsConsumed"] == 3.5


def test_settings_refuse_what_they_cannot_do():
    with pytest.raises(ValueError, match="image_format"):
        Settings(image_format="gif")
    with pytest.raises(ValueError, match="record_shape"):
        Settings(record_shape="2025")
    assert "emulator-key" not in repr(Settings())
