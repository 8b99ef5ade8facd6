"""The API as a client sees it."""

from __future__ import annotations

import json

import pytest
from jsonschema import ValidationError

from kie_provider.emulator import KieEmulator
from tests.support.emulator_client import Client
from tests.support.openapi import validate_request, validate_response

CREATE = "/api/v1/jobs/createTask"


def test_from_creation_to_success(timed, clock):
    answer = timed.send("POST", CREATE, json=timed.body() | {"callBackUrl": "https://example.com/hook"})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].replace(" ", "") == "application/json;charset=UTF-8"
    created = answer.json()
    task_id = created["data"]["taskId"]
    assert created == {"code": 200, "msg": "success", "data": {"taskId": task_id, "recordId": task_id}}
    states = []
    for _ in range(17):
        states.append(timed.look(task_id)["data"]["state"])
        clock.now += 1
    assert states == ["waiting"] * 2 + ["queuing"] * 3 + ["generating"] * 10 + ["success"] * 2
    record = timed.look(task_id)
    assert (record["code"], record["msg"]) == (200, "success")
    data = record["data"]
    assert data["response"]["resultUrls"][0].startswith(f"{timed.kie.url}/h/{task_id}_")
    assert json.loads(json.loads(data["param"])["input"]) == timed.body()["input"]
    assert json.loads(data["param"])["callBackUrl"] == "https://example.com/hook"
    assert (data["costTime"], data["completeTime"] - data["createTime"]) == (15, 15_000)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", CREATE),
        ("GET", "/api/v1/jobs/recordInfo?taskId=x"),
        ("GET", "/api/v1/chat/credit"),
        ("POST", "/api/v1/common/download-url"),
        ("POST", "/api/file-base64-upload"),
        ("POST", "/api/file-stream-upload"),
        ("POST", "/api/file-url-upload"),
    ],
)
@pytest.mark.parametrize("key", [None, "wrong", ""])
def test_without_the_right_key_nothing_goes(client, method, path, key):
    answer = client.send(method, path, key=key, json=client.body() if method == "POST" else None)
    assert answer.status_code == 200
    assert answer.json() == {
        "code": 401,
        "msg": "Unauthorized – Authentication failed. "
        "Please check that your Authorization and Content-Type headers are correctly set.",
    }
    assert client.kie.bill()["tasks"] == []


def test_unknown_task_and_missing_id(client):
    assert client.look("0" * 32) == {"code": 422, "msg": "recordInfo is null", "data": None}
    answer = client.send("GET", "/api/v1/jobs/recordInfo")
    assert answer.status_code == 200
    assert answer.json() == {"code": 400, "msg": "taskId parameter is required", "data": None}


def test_credit_is_a_decimal_and_follows_holds(timed, clock):
    timed.kie.fault({"on": "createTask", "do": "fail"})
    timed.new_task()
    timed.new_task(resolution="2K")
    answer = timed.send("GET", "/api/v1/chat/credit")
    assert answer.text == '{"code":200,"msg":"success","data":8.0}'
    clock.now += 20
    assert timed.credit()["data"] == 13.0


def test_a_short_balance_is_refused_and_creates_nothing(timed):
    for _ in range(4):
        timed.new_task()
    refused = timed.create()
    assert (refused["code"], refused["data"]) == (402, None)
    assert refused["msg"].startswith("Credits insufficient : ")
    assert len(timed.kie.bill()["tasks"]) == 4


def test_the_21st_creation_within_10_s_is_refused_and_creates_nothing(clock):
    with KieEmulator(clock=clock) as kie:
        client = Client(kie)
        codes = [client.create()["code"] for _ in range(21)]
        assert codes == [200] * 20 + [429]
        assert len(kie.bill()["tasks"]) == 20
        clock.now += 10
        assert client.create()["code"] == 200


def test_limit_can_be_set(clock):
    with KieEmulator(clock=clock, create_limit=1, create_window_seconds=60) as kie:
        client = Client(kie)
        client.create()
        clock.now += 59
        assert client.create() == {
            "code": 429,
            "msg": "Your call frequency is too high. Please try again later.",
            "data": None,
        }


def test_a_text_model_and_another_image_model(client):
    spoken = {"model": "elevenlabs/speech-to-text", "input": {"audio_url": "https://example.com/a.mp3"}}
    text_id = client.send("POST", CREATE, json=spoken).json()["data"]["taskId"]
    other = {"model": "google/nano-banana", "input": {"prompt": "a fox", "image_size": "16:9"}}
    image_id = client.send("POST", CREATE, json=other).json()["data"]["taskId"]
    wait_for_success(client, image_id)
    assert client.look(text_id)["data"]["response"]["resultObject"]["text"]
    assert client.get(client.url_of(image_id)).headers["Content-Type"] == "image/png"


def wait_for_success(client: Client, task_id: str) -> None:
    for _ in range(200):
        if client.look(task_id)["data"]["state"] == "success":
            return
    raise AssertionError("still running")


def test_half_a_surrogate_pair_and_any_script_survive(client):
    prompt = "fox \ud83e 狐 \u0000"
    data = json.dumps(client.body(prompt))
    task_id = client.send("POST", CREATE, data=data).json()["data"]["taskId"]
    wait_for_success(client, task_id)
    assert json.loads(json.loads(client.look(task_id)["data"]["param"])["input"])["prompt"] == prompt
    assert client.get(client.url_of(task_id)).status_code == 200
    assert client.get(client.kie.url).status_code == 200
    assert client.kie.bill()["tasks"][0]["prompt"] == prompt


def creations() -> dict[str, dict]:
    good = Client(None).body()  # type: ignore[arg-type]
    fields = good["input"]
    return {
        "success": {"json": good},
        "callback": {"json": good | {"callBackUrl": "https://example.com/hook"}},
        "bad key": {"json": good, "key": "wrong"},
        "no model": {"json": {"input": fields}},
        "unknown model": {"json": good | {"model": "flux-2/max"}},
        "missing field": {"json": good | {"input": {"prompt": "a fox"}}},
        "bad enum": {"json": good | {"input": fields | {"aspect_ratio": "5:4"}}},
        "prompt too long": {"json": good | {"input": fields | {"prompt": "x" * 5001}}},
        "prompt too short": {"json": good | {"input": fields | {"prompt": "x"}}},
        "no object": {"json": [1]},
        "no json": {"data": "{"},
        "no body": {},
    }


@pytest.mark.parametrize("name", creations())
def test_every_answer_of_create_is_as_published(client, name):
    answer = client.send("POST", CREATE, **creations()[name])
    assert answer.status_code == 200
    validate_response(answer.json())
    assert (answer.json()["code"] == 200) == (name in ("success", "callback"))


def test_the_refusals_for_money_and_speed_are_as_published(clock):
    with KieEmulator(clock=clock, credits=5, create_limit=2) as kie:
        answers = [Client(kie).create() for _ in range(3)]
    assert [answer["code"] for answer in answers] == [200, 402, 429]
    for answer in answers:
        validate_response(answer)


def test_the_schema_can_say_no(client):
    validate_request(client.body() | {"callBackUrl": "https://example.com/hook"})
    for wrong in (
        client.body(prompt="x" * 5001),
        client.body(resolution="4K"),
        client.body() | {"model": "other"},
        client.body() | {"callBackUrl": "no url"},
        {"model": "flux-2/pro-text-to-image", "input": {"prompt": "a fox"}},
    ):
        with pytest.raises(ValidationError):
            validate_request(wrong)
    for wrong in ({"code": 433, "msg": "x"}, {"code": 200, "data": None}, {"code": 200, "data": {"taskId": 7}}):
        with pytest.raises(ValidationError):
            validate_response(wrong)


def test_a_wrong_method_or_path_is_a_plain_http_error(client):
    assert client.send("GET", CREATE).status_code == 405
    assert client.send("POST", "/api/v1/jobs/cancelTask").status_code == 404
