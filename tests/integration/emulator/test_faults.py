"""Each fault as a client meets it."""

from __future__ import annotations

import io
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest
import requests
from PIL import Image

from tests.support.emulator_client import Client
from tests.support.waits import wait_until


def raw(client: Client, request: str) -> bytes:
    """Send bytes and return all that comes until the connection is closed."""
    address = urlsplit(client.kie.url)
    with socket.create_connection((address.hostname, address.port), timeout=5) as connection:
        connection.sendall(request.replace("\n", "\r\n").encode())
        received = b""
        while chunk := connection.recv(65_536):
            received += chunk
    return received


CREDIT = "GET /api/v1/chat/credit HTTP/1.1\nHost: kie\nAuthorization: Bearer emulator-key\n\n"


def test_answer_can_be_anything(client):
    client.kie.fault(
        {
            "on": "createTask",
            "do": "answer",
            "http_status": 502,
            "content_type": "text/html",
            "body": "<h1>Bad gateway</h1>",
            "headers": {"Retry-After": "3", "X-Number": 7},
        }
    )
    answer = client.send("POST", "/api/v1/jobs/createTask", json=client.body())
    assert (answer.status_code, answer.text) == (502, "<h1>Bad gateway</h1>")
    assert answer.headers["Content-Type"] == "text/html"
    assert (answer.headers["Retry-After"], answer.headers["X-Number"]) == ("3", "7")
    assert client.kie.bill()["tasks"] == []
    assert client.create()["code"] == 200


def test_answer_with_json(client):
    client.kie.fault({"on": "recordInfo", "do": "answer", "json": {"code": 200, "msg": "success", "data": None}})
    answer = client.send("GET", "/api/v1/jobs/recordInfo", params={"taskId": "x"})
    assert answer.json() == {"code": 200, "msg": "success", "data": None}
    assert answer.headers["Content-Type"] == "application/json"


def test_answer_can_redirect_or_be_html_instead_of_an_image(client):
    client.kie.fault({"on": "file", "do": "answer", "http_status": 302, "headers": {"Location": "http://127.0.0.1:1/"}})
    client.kie.fault({"on": "file", "do": "answer", "body": "<html>", "headers": {"content-type": "image/png"}})
    assert client.get(f"{client.kie.url}/h/x.png", allow_redirects=False).headers["Location"] == "http://127.0.0.1:1/"
    answer = client.get(f"{client.kie.url}/h/x.png")
    assert (answer.text, answer.headers["Content-Type"]) == ("<html>", "image/png")


def test_code_gives_an_envelope_and_creates_nothing(client):
    client.kie.fault({"on": "createTask", "do": "code", "code": 455, "msg": "later"})
    assert client.create() == {"code": 455, "msg": "later", "data": None}
    assert client.kie.bill()["tasks"] == []


def test_code_has_the_usual_text_by_default(client):
    client.kie.fault({"on": "createTask", "do": "code", "code": 433})
    client.kie.fault({"on": "createTask", "do": "code", "code": 999})
    assert "exceeded the daily limit" in client.create()["msg"]
    assert client.create()["msg"] == "Emulated error 999"


def test_code_with_http_status_and_retry_after(client):
    client.kie.fault({"on": "recordInfo", "do": "code", "code": 429, "http_status": 429, "retry_after": 7})
    answer = client.send("GET", "/api/v1/jobs/recordInfo", params={"taskId": "x"})
    assert (answer.status_code, answer.headers["Retry-After"], answer.json()["code"]) == (429, "7", 429)


def test_code_on_an_upload_has_the_upload_envelope(client):
    client.kie.fault({"on": "upload", "do": "code", "code": 500, "msg": "disk full"})
    answer = client.send("POST", "/api/file-base64-upload", json={}).json()
    assert answer == {"success": False, "code": 500, "msg": "disk full", "data": None}


def test_lost_answer_charges_and_closes_without_a_byte(client):
    client.kie.fault({"on": "createTask", "do": "lost_answer"})
    with pytest.raises(requests.ConnectionError):
        client.create()
    assert [task["credits"] for task in client.kie.bill()["tasks"]] == [5.0]
    client.kie.fault({"on": "credit", "do": "lost_answer"})
    assert raw(client, CREDIT) == b""


def test_reset_does_nothing_at_all(client):
    client.kie.fault({"on": "createTask", "do": "reset"})
    with pytest.raises(requests.ConnectionError):
        client.create()
    assert client.kie.bill()["tasks"] == []
    client.kie.fault({"on": "credit", "do": "reset"})
    with pytest.raises(ConnectionResetError):
        raw(client, CREDIT)


def test_slow_does_the_work_first_and_answers_late(client):
    client.kie.fault({"on": "createTask", "do": "slow", "delay_seconds": 0.2})
    with pytest.raises(requests.ReadTimeout):
        requests.post(
            f"{client.kie.url}/api/v1/jobs/createTask",
            json=client.body(),
            headers={"Authorization": "Bearer emulator-key"},
            timeout=(2, 0.05),
        )
    assert len(client.kie.bill()["tasks"]) == 1
    client.kie.fault({"on": "credit", "do": "slow", "delay_seconds": 0.2})
    start = time.monotonic()
    assert client.credit()["data"] == 995
    assert time.monotonic() - start >= 0.2


@pytest.mark.parametrize("how", ["release", "http", "reset"])
def test_hold_charges_and_answers_when_released(client, how):
    client.kie.fault({"on": "createTask", "do": "hold"})
    answers: list[dict] = []
    thread = threading.Thread(target=lambda: answers.append(client.create()))
    thread.start()
    [task] = wait_until(lambda: client.kie.bill()["tasks"])
    task_id = task["taskId"]
    thread.join(0.1)
    assert (answers, thread.is_alive()) == ([], True)
    assert client.look(task_id)["code"] == 200  # everything else goes on
    if how == "http":
        requests.post(f"{client.kie.url}/_emulator/release", timeout=5)
    else:
        getattr(client.kie, how)()
    thread.join(5)
    assert answers[0]["data"]["taskId"] == task_id


def test_truncate_announces_all_and_sends_half(client):
    client.kie.fault({"on": "credit", "do": "truncate"})
    head, _, body = raw(client, CREDIT).partition(b"\r\n\r\n")
    whole = b'{"code":200,"msg":"success","data":1000.0}'
    assert f"Content-Length: {len(whole)}".encode() in head
    assert body == whole[: len(whole) // 2]


def test_truncated_image(client):
    url = finished(client)
    client.kie.fault({"on": "file", "do": "truncate"})
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        client.get(url)
    assert client.get(url).status_code == 200


def finished(client: Client, prompt: str = "a red fox") -> str:
    return client.url_of(settled(client, client.new_task(prompt))["taskId"])


def settled(client: Client, task_id: str) -> dict:
    for _ in range(200):
        data = client.look(task_id)["data"]
        if data["state"] in ("success", "fail"):
            return data
    raise AssertionError("still running")


def test_not_visible_for_some_looks(client):
    task_id = client.new_task()
    client.kie.fault({"on": "recordInfo", "do": "not_visible", "times": 3})
    looks = [client.look(task_id) for _ in range(4)]
    assert looks[:3] == [{"code": 422, "msg": "recordInfo is null", "data": None}] * 3
    assert looks[3]["data"]["taskId"] == task_id


def test_fail_costs_nothing(client):
    client.kie.fault({"on": "createTask", "do": "fail", "failCode": "400", "failMsg": "no foxes"})
    client.kie.fault({"on": "createTask", "do": "fail"})
    data = settled(client, client.new_task())
    assert (data["state"], data["failCode"], data["failMsg"]) == ("fail", "400", "no foxes")
    assert data["creditsConsumed"] == 0
    data = settled(client, client.new_task())
    assert (data["failCode"], data["failMsg"]) == ("500", "Internal Error, Please try again later.")
    assert client.kie.bill()["charged_total"] == 0
    assert settled(client, client.new_task())["state"] == "success"


def test_success_without_urls_is_charged(client):
    client.kie.fault({"on": "createTask", "do": "no_urls"})
    data = settled(client, client.new_task())
    assert (data["state"], data["response"]) == ("success", {"resultUrls": []})
    assert client.kie.bill()["charged_total"] == 5


def test_stuck_waits_for_ever_and_holds_its_credits(timed, clock):
    timed.kie.fault({"on": "createTask", "do": "stuck"})
    task_id = timed.new_task()
    clock.now += 1e6
    data = timed.look(task_id)["data"]
    assert (data["state"], data["completeTime"], data["creditsConsumed"]) == ("waiting", None, 5.0)
    assert timed.kie.bill()["charged_total"] == 5


def test_match_by_prompt_on_every_endpoint_that_knows_one(client):
    fox, bear = finished(client, "a red fox"), finished(client, "a bear")
    for on in ("createTask", "recordInfo", "download-url", "file"):
        client.kie.fault({"on": on, "do": "answer", "http_status": 418, "times": None, "match": {"prompt": "red f"}})

    def statuses(prompt: str, url: str) -> list[int]:
        task_id = url.rpartition("/")[2].partition("_")[0]
        return [
            client.send("POST", "/api/v1/jobs/createTask", json=client.body(prompt)).status_code,
            client.send("GET", "/api/v1/jobs/recordInfo", params={"taskId": task_id}).status_code,
            client.send("POST", "/api/v1/common/download-url", json={"url": url}).status_code,
            client.get(url).status_code,
        ]

    assert statuses("a bear", bear) == [200] * 4
    assert statuses("a red fox", fox) == [418] * 4


def test_match_by_task_id_and_through_a_direct_link(client):
    fox, bear = finished(client), finished(client)
    link = client.direct(fox)["data"]
    fox_id = fox.rpartition("/")[2].partition("_")[0]
    client.kie.fault({"on": "file", "do": "answer", "http_status": 418, "times": None, "match": {"taskId": fox_id}})
    assert [client.get(url).status_code for url in (fox, link, bear)] == [418, 418, 200]


def test_a_body_without_a_prompt_meets_no_fault_for_a_prompt(client):
    client.kie.fault({"on": "createTask", "do": "reset", "match": {"prompt": "fox"}})
    for body in ({}, {"input": "fox"}, {"input": {"prompt": ["fox"]}}, ["fox"]):
        assert client.send("POST", "/api/v1/jobs/createTask", json=body).status_code == 200


@pytest.mark.parametrize("on", ["createTask", "recordInfo", "credit", "download-url", "upload", "file"])
def test_every_endpoint_can_be_hit(client, on):
    client.kie.fault({"on": on, "do": "answer", "http_status": 503})
    method, path = {
        "createTask": ("POST", "/api/v1/jobs/createTask"),
        "recordInfo": ("GET", "/api/v1/jobs/recordInfo"),
        "credit": ("GET", "/api/v1/chat/credit"),
        "download-url": ("POST", "/api/v1/common/download-url"),
        "upload": ("POST", "/api/file-stream-upload"),
        "file": ("GET", "/kieai/100001/a/b.png"),
    }[on]
    assert client.send(method, path).status_code == 503
    assert client.send(method, path).status_code != 503


def test_half_a_picture_that_says_it_is_whole(client):
    url = finished(client)
    client.kie.fault({"on": "file", "do": "half"})
    half, whole = client.get(url), client.get(url)
    assert (half.status_code, half.headers["Content-Type"]) == (200, "image/png")
    assert int(half.headers["Content-Length"]) == len(half.content) == len(whole.content) // 2
    assert whole.content.startswith(half.content)
    with pytest.raises(OSError, match="truncated"):
        Image.open(io.BytesIO(half.content)).load()


def test_swap_does_the_work_and_answers_something_else(client):
    client.kie.fault({"on": "createTask", "do": "swap", "http_status": 504, "body": "<h1>Gateway time-out</h1>"})
    client.kie.fault({"on": "credit", "do": "swap", "json": {"code": 500}, "headers": {"Retry-After": 3}})
    answer = client.send("POST", "/api/v1/jobs/createTask", json=client.body())
    assert (answer.status_code, answer.text) == (504, "<h1>Gateway time-out</h1>")
    assert [task["credits"] for task in client.kie.bill()["tasks"]] == [5.0]
    answer = client.send("GET", "/api/v1/chat/credit")
    assert (answer.status_code, answer.json(), answer.headers["Retry-After"]) == (200, {"code": 500}, "3")
    assert client.credit()["data"] == 995
