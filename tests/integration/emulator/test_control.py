"""Bill, recorded requests, reset and the page: what a test or a person asks the emulator about."""

from __future__ import annotations

import json

import pytest
import requests

from kie_provider.emulator import KieEmulator
from tests.support.emulator_client import Client


def control(client: Client, method: str, path: str, **options) -> requests.Response:
    return requests.request(method, f"{client.kie.url}/_emulator/{path}", timeout=10, **options)


def test_bill_by_http_and_by_python_are_the_same(timed, clock):
    timed.kie.fault({"on": "createTask", "do": "fail", "skip": 1})
    first, second = timed.new_task("a red fox"), timed.new_task("a bear", resolution="2K")
    assert timed.kie.bill()["charged_total"] == 12
    clock.now += 20
    bill = control(timed, "GET", "bill").json()
    assert bill == timed.kie.bill()
    assert {name: bill[name] for name in ("credits_start", "credits_left", "charged_total")} == {
        "credits_start": 20.0,
        "credits_left": 15.0,
        "charged_total": 5.0,
    }
    assert [(t["taskId"], t["prompt"], t["state"], t["credits"]) for t in bill["tasks"]] == [
        (first, "a red fox", "success", 5.0),
        (second, "a bear", "fail", 0.0),
    ]


def test_requests_are_recorded_without_the_key(client):
    client.send("POST", "/api/v1/jobs/createTask", json=client.body(), headers={"X-Trace": "1"})
    client.send("GET", "/api/v1/jobs/recordInfo", params={"taskId": "x"}, key="wrong-key")
    client.send("GET", "/kieai/none.png", key=None)
    control(client, "GET", "bill")
    client.get(client.kie.url)
    created, looked, fetched = client.kie.requests()
    assert (created["method"], created["path"]) == ("POST", "/api/v1/jobs/createTask")
    assert created["json"] == client.body()
    assert created["headers"]["x-trace"] == "1"
    assert [r["headers"]["authorization"] for r in (created, looked, fetched)] == ["valid", "invalid", None]
    assert (looked["query"], looked["json"], looked["fault"]) == ({"taskId": "x"}, None, None)
    listed = control(client, "GET", "requests")
    assert listed.json() == client.kie.requests()
    assert client.kie.api_key not in listed.text
    assert "wrong-key" not in listed.text


def test_a_key_that_is_sent_to_the_file_host_is_seen(client):
    client.send("GET", "/h/any.png")
    assert client.kie.requests()[0]["headers"]["authorization"] == "valid"


@pytest.mark.parametrize("how", ["python", "http"])
def test_reset_forgets_everything(client, how):
    task_id = client.new_task()
    upload = {"base64Data": "AAAA", "uploadPath": "a", "fileName": "x.bin"}
    stored = client.send("POST", "/api/file-base64-upload", json=upload).json()["data"]["downloadUrl"]
    client.kie.fault({"on": "credit", "do": "reset", "times": None})
    if how == "python":
        client.kie.reset()
    else:
        assert control(client, "POST", "reset").json() == {"ok": True}
    assert client.kie.requests() == []
    assert client.kie.bill() == {"credits_start": 1000, "credits_left": 1000, "charged_total": 0, "tasks": []}
    assert client.look(task_id)["msg"] == "recordInfo is null"
    assert client.get(stored).status_code == 404
    assert client.credit()["data"] == 1000


def test_reset_opens_the_window_again(clock):
    with KieEmulator(clock=clock, create_limit=1) as kie:
        client = Client(kie)
        assert [client.create()["code"] for _ in range(2)] == [200, 429]
        kie.reset()
        assert client.create()["code"] == 200


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [({"on": "credit", "do": "reset", "tims": 2}, "'tims'"), ([], "'fault'"), ({"on": "x"}, "'on'")],
)
def test_a_wrong_fault_is_refused_by_http_and_by_python(client, fault, complaint):
    answer = control(client, "POST", "faults", json=fault)
    assert answer.status_code == 400
    assert complaint in answer.json()["error"]
    with pytest.raises(ValueError, match=complaint):
        client.kie.fault(fault)
    assert control(client, "GET", "faults").json() == []


def test_a_fault_that_is_no_json_is_refused(client):
    assert control(client, "POST", "faults", data="{").status_code == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": ""},
        {"Host": "evil.example"},
        {"Host": "evil.example", "Origin": "http://evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "8.8.8.8"},
        {"Host": "127.0.0.1@evil.example"},
        {"Host": "[bad"},
    ],
)
def test_a_page_of_another_site_controls_nothing(client, headers):
    client.new_task()
    refused = [
        control(client, "POST", "reset", headers=headers),
        control(client, "POST", "faults", headers=headers, data='{"on": "credit", "do": "reset"}'),
        control(client, "POST", "release", headers=headers),
        *(control(client, "GET", name, headers=headers) for name in ("bill", "requests", "callbacks", "faults")),
    ]
    assert {answer.status_code for answer in refused} == {403}
    assert len(client.kie.bill()["tasks"]) == 1
    assert control(client, "GET", "faults").json() == []


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "127.0.0.2", "[::1]"])
def test_its_own_page_may(client, name):
    host = f"{name}:{client.kie.url.rpartition(':')[2]}"
    for headers in ({"Host": host}, {"Host": host, "Origin": f"http://{host}"}):
        assert control(client, "POST", "reset", headers=headers).json() == {"ok": True}


def test_faults_are_listed_with_how_often_they_were_met(client):
    assert control(client, "POST", "faults", json={"on": "credit", "do": "code", "code": 455}).json() == {"ok": True}
    client.credit()
    assert control(client, "GET", "faults").json() == [
        {"on": "credit", "do": "code", "times": 1, "skip": 0, "match": {}, "code": 455, "met": 1}
    ]
    assert client.kie.requests()[0]["fault"] == "code"


def test_page_and_thumbnails_are_neither_recorded_nor_hit_by_faults(timed, clock):
    task_id = timed.new_task("<b>fox</b>")
    timed.kie.fault({"on": "file", "do": "reset", "times": None})
    clock.now += 20
    before = len(timed.kie.requests())
    page = timed.get(timed.kie.url)
    assert page.headers["Content-Type"].startswith("text/html")
    assert "&lt;b&gt;fox&lt;/b&gt;" in page.text
    thumbnail = timed.get(f"{timed.kie.url}/_emulator/thumbnail/{task_id}")
    assert thumbnail.content.startswith(b"\xff\xd8\xff")
    assert timed.get(f"{timed.kie.url}/_emulator/thumbnail/other").status_code == 404
    assert len(timed.kie.requests()) == before


def test_connection_is_json_with_both_hosts(client):
    assert json.loads(json.dumps(client.kie.connection)) == {
        "conn_type": "kie",
        "host": client.kie.url,
        "password": "emulator-key",
        "extra": {"upload_host": client.kie.url},
    }
