"""Callbacks as a receiver gets them, over real HTTP."""

from __future__ import annotations

import json
import threading
import time

import pytest
import requests
from blockbuster import blockbuster_ctx

from kie_provider.client.webhook import verify
from kie_provider.emulator import KieEmulator
from kie_provider.emulator import callbacks as emulated
from tests.support.emulator_client import Client
from tests.support.servers import Received, ScriptedServer, hang, refusing_port, reply, reset
from tests.support.waits import wait_until

THANKS = reply({"code": 200, "msg": "success"})


def order(client: Client, url: str, prompt: str = "a red fox") -> str:
    """Create a task with a callback."""
    body = client.body(prompt) | {"callBackUrl": url}
    return client.send("POST", "/api/v1/jobs/createTask", json=body).json()["data"]["taskId"]


def is_genuine(client: Client, request: Received) -> bool:
    """Check a callback as a careful receiver does."""
    key, task_id = client.kie.settings.webhook_hmac_key, request.json()["data"]["taskId"]
    timestamp, signature = (request.headers[f"x-webhook-{name}"] for name in ("timestamp", "signature"))
    return verify(key, task_id, timestamp, signature, now=float(timestamp))


@pytest.fixture
def receiver():
    with ScriptedServer(THANKS) as server:
        yield server


def test_a_task_that_succeeds_is_called_back_when_it_has_ended(timed, clock, receiver):
    task_id = order(timed, f"{receiver.url}/hook?secret=7")
    clock.now += 14.9
    time.sleep(0.15)
    assert receiver.requests == []
    clock.now += 0.1
    wait_until(timed.kie.callbacks)
    [request] = receiver.requests
    assert (request.method, request.target) == ("POST", "/hook?secret=7")
    assert request.headers["content-type"] == "application/json"
    assert request.headers["x-webhook-timestamp"] == str(int(clock.now))
    assert is_genuine(timed, request)
    data, record = request.json()["data"], timed.look(task_id)["data"]
    assert (request.json()["code"], data["updateTime"]) == (200, record["completeTime"])
    for name in ("taskId", "model", "state", "param", "resultJson", "costTime", "createTime", "creditsConsumed"):
        assert data[name] == record[name]
    assert timed.get(json.loads(data["resultJson"])["resultUrls"][0]).status_code == 200


def test_a_task_that_fails_is_called_back_too(client, receiver):
    client.kie.fault({"on": "createTask", "do": "fail", "failCode": "400", "failMsg": "flagged"})
    task_id = order(client, receiver.url)
    wait_until(client.kie.callbacks)
    body = receiver.requests[0].json()
    assert (body["code"], body["msg"]) == (501, "Playground task failed.")
    assert {name: body["data"][name] for name in ("taskId", "state", "failCode", "failMsg", "creditsConsumed")} == {
        "taskId": task_id,
        "state": "fail",
        "failCode": "400",
        "failMsg": "flagged",
        "creditsConsumed": 0,
    }


def test_without_a_callback_url_or_an_end_nothing_is_sent(timed, clock, receiver):
    timed.new_task()
    timed.kie.fault({"on": "createTask", "do": "stuck"})
    order(timed, receiver.url)
    clock.now += 1e6
    time.sleep(0.15)
    assert (receiver.requests, timed.kie.callbacks()) == ([], [])


def test_deliveries_are_recorded(client, receiver):
    task_id = order(client, receiver.url)
    wait_until(client.kie.callbacks)
    [kept] = client.kie.callbacks()
    sent = receiver.requests[0]
    names = ("x-webhook-timestamp", "x-webhook-signature")
    assert kept == {
        "taskId": task_id,
        "url": receiver.url,
        "headers": {name: sent.headers[name] for name in names},
        "json": sent.json(),
        "fault": None,
        "http_status": 200,
        "error": None,
    }
    assert requests.get(f"{client.kie.url}/_emulator/callbacks", timeout=5).json() == [kept]


def test_without_a_key_there_is_no_signature(receiver):
    with KieEmulator(generating_seconds=0, webhook_hmac_key="") as kie:
        order(Client(kie), receiver.url)
        wait_until(kie.callbacks)
    assert not [name for name in receiver.requests[0].headers if name.startswith("x-webhook")]


def test_a_callback_that_is_lost(client, receiver):
    client.kie.fault({"on": "callback", "do": "lost"})
    order(client, receiver.url)
    wait_until(client.kie.callbacks)
    [kept] = client.kie.callbacks()
    assert (kept["fault"], kept["http_status"], kept["error"]) == ("lost", None, "not sent: lost")
    assert receiver.connections == 0
    assert client.kie.bill()["charged_total"] == 5


def test_a_callback_that_is_late(client, receiver):
    client.kie.fault({"on": "callback", "do": "late", "delay_seconds": 0.3})
    start = time.monotonic()
    order(client, receiver.url)
    wait_until(client.kie.callbacks)
    assert time.monotonic() - start >= 0.35
    assert is_genuine(client, receiver.requests[0])


def test_a_callback_that_waits_for_a_release(client, receiver):
    client.kie.fault({"on": "callback", "do": "late"})
    task_id = order(client, receiver.url)
    wait_until(lambda: client.look(task_id)["data"]["state"] == "success")
    time.sleep(0.15)
    assert receiver.requests == []
    client.kie.release()
    wait_until(client.kie.callbacks)
    assert len(receiver.requests) == 1


def test_a_callback_that_comes_twice(client, receiver):
    client.kie.fault({"on": "callback", "do": "twice"})
    order(client, receiver.url)
    wait_until(lambda: len(client.kie.callbacks()) == 2)
    first, second = receiver.requests
    assert first.json() == second.json()
    assert is_genuine(client, first)
    assert is_genuine(client, second)


@pytest.mark.parametrize("key", ["emulator-webhook-key", ""])
def test_a_callback_that_is_forged(key, receiver):
    with KieEmulator(generating_seconds=0, webhook_hmac_key=key) as kie:
        kie.fault({"on": "callback", "do": "forged"})
        order(Client(kie), receiver.url)
        wait_until(kie.callbacks)
        [request] = receiver.requests
        assert request.json()["code"] == 200
        assert not is_genuine(Client(kie), request)


def test_a_callback_that_is_early(timed, receiver):
    timed.kie.fault({"on": "callback", "do": "early", "match": {"prompt": "fox"}})
    task_id = order(timed, receiver.url)
    wait_until(timed.kie.callbacks)
    assert is_genuine(timed, receiver.requests[0])
    assert receiver.requests[0].json()["data"]["state"] == "success"  # as if it had ended
    assert timed.look(task_id)["data"]["state"] == "waiting"
    assert [kept["fault"] for kept in timed.kie.callbacks()] == ["early"]


def test_a_callback_of_which_the_next_one_comes_first(client, receiver):
    client.kie.fault({"on": "callback", "do": "reordered"})
    first = order(client, receiver.url)
    wait_until(lambda: client.look(first)["data"]["state"] == "success")
    time.sleep(0.15)
    assert receiver.requests == []
    second = order(client, receiver.url)
    wait_until(lambda: len(client.kie.callbacks()) == 2)
    assert [request.json()["data"]["taskId"] for request in receiver.requests] == [second, first]


def test_a_callback_that_waits_for_the_next_one_can_be_released(client, receiver):
    client.kie.fault({"on": "callback", "do": "reordered"})
    order(client, receiver.url)
    wait_until(lambda: requests.get(f"{client.kie.url}/_emulator/faults", timeout=5).json()[0]["met"])
    client.kie.release()
    wait_until(client.kie.callbacks)
    assert len(receiver.requests) == 1


@pytest.mark.parametrize(
    ("answers", "sent"),
    [((reply("no", 500),) * 9, 4), ((hang, reset, THANKS), 3), ((THANKS,), 1), ((reply("", 404), THANKS), 2)],
)
def test_a_callback_that_is_repeated_until_it_is_answered(client, monkeypatch, answers, sent):
    monkeypatch.setattr(emulated, "ANSWER_SECONDS", 0.1)
    client.kie.fault({"on": "callback", "do": "repeated", "delay_seconds": 0.01})
    with ScriptedServer(*answers) as receiver:
        order(client, receiver.url)
        wait_until(lambda: len(client.kie.callbacks()) == sent)
        time.sleep(0.15)
        assert len(client.kie.callbacks()) == sent
        assert all(is_genuine(client, request) for request in receiver.requests)


def test_faults_choose_callbacks_by_prompt_and_count(client, receiver):
    client.kie.fault({"on": "callback", "do": "lost", "match": {"prompt": "fox"}, "skip": 1})
    for number, prompt in enumerate(("a fox", "a bear", "a fox"), start=1):
        order(client, receiver.url, prompt)
        wait_until(lambda number=number: len(client.kie.callbacks()) == number)
    assert [kept["fault"] for kept in client.kie.callbacks()] == [None, None, "lost"]
    assert len(receiver.requests) == 2


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/hook",
        "http://10.0.0.1/hook",
        "http://127.0.0.1.example.com/",
        "http://localhost@example.com/",
        "ftp://127.0.0.1/",
        "no url",
        "http://[bad/",
    ],
)
def test_only_loopback_is_called(client, url):
    task_id = order(client, url)
    wait_until(client.kie.callbacks)
    [kept] = client.kie.callbacks()
    assert (kept["taskId"], kept["url"], kept["http_status"]) == (task_id, url, None)
    assert kept["error"].startswith("not sent: ")


def test_localhost_is_called_by_name(client, receiver):
    order(client, receiver.url.replace("127.0.0.1", "localhost"))
    wait_until(client.kie.callbacks)
    assert client.kie.callbacks()[0]["http_status"] == 200


def test_a_redirect_is_not_followed(client, receiver):
    with ScriptedServer(reply(b"", 307, Location=receiver.url)) as first:
        order(client, first.url)
        wait_until(client.kie.callbacks)
    assert (client.kie.callbacks()[0]["http_status"], receiver.connections) == (307, 0)


def test_a_receiver_that_fails_is_not_called_again(client):
    with refusing_port() as port, ScriptedServer(reset) as resetting, ScriptedServer(reply("no", 500)) as failing:
        order(client, f"http://127.0.0.1:{port}/")
        order(client, resetting.url)
        order(client, failing.url)
        wait_until(lambda: len(client.kie.callbacks()) == 3)
        time.sleep(0.1)
        assert (len(resetting.requests), len(failing.requests)) == (1, 1)
    outcomes = {kept["url"].rpartition(":")[2].strip("/"): kept for kept in client.kie.callbacks()}
    assert "ClientConnectorError" in outcomes[str(port)]["error"]
    assert outcomes[resetting.url.rpartition(":")[2]]["error"]
    assert outcomes[failing.url.rpartition(":")[2]]["http_status"] == 500


@pytest.mark.parametrize("fault", [None, {"on": "callback", "do": "late"}])
def test_a_reset_forgets_callbacks_that_are_pending(fault, timed, clock, receiver):
    if fault:
        timed.kie.fault(fault)
    order(timed, receiver.url)
    if fault:
        clock.now += 20
        wait_until(lambda: requests.get(f"{timed.kie.url}/_emulator/faults", timeout=5).json()[0]["met"])
    timed.kie.reset()
    clock.now += 20
    time.sleep(0.15)
    assert (receiver.connections, timed.kie.callbacks()) == (0, [])


def test_stop_drops_callbacks_that_are_pending(clock):
    before = set(threading.enumerate())
    with ScriptedServer(THANKS) as receiver, ScriptedServer(hang) as silent:
        kie = KieEmulator(clock=clock, generating_seconds=10).start()
        client = Client(kie)
        kie.fault({"on": "callback", "do": "late", "match": {"prompt": "bear"}})
        order(client, receiver.url, "a bear")  # waits for a release, which the stop is not
        order(client, silent.url)  # sent, not answered
        clock.now += 10
        order(client, receiver.url)  # not due
        wait_until(lambda: silent.requests)
        start = time.monotonic()
        kie.stop()
        assert time.monotonic() - start < 1
        assert (receiver.connections, kie.callbacks()) == (0, [])
    assert set(threading.enumerate()) == before


def test_the_event_loop_never_waits_for_a_receiver(receiver):
    with blockbuster_ctx(), KieEmulator(generating_seconds=0) as kie:
        order(Client(kie), receiver.url.replace("127.0.0.1", "localhost"))
        wait_until(kie.callbacks)
        assert kie.callbacks()[0]["http_status"] == 200
