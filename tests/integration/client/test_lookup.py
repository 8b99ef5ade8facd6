"""The free requests over real sockets: records, credits, links; and whole conversations as Kie has held them."""

import asyncio
import gzip
import json
import time
import tracemalloc
from pathlib import Path

import pendulum
import pytest

from kie_provider import __version__
from kie_provider.client import errors
from kie_provider.client.download import is_there
from kie_provider.client.polling import Waiting, watch
from kie_provider.client.records import TaskRecord, TaskState
from kie_provider.emulator import KieEmulator
from tests.support.api_key import KEY, assert_no_key, error_of
from tests.support.servers import (
    DRIPS,
    HTML,
    ScriptedServer,
    close,
    echo,
    envelope,
    hang,
    in_turn,
    raw,
    refusing_port,
    reply,
    reset,
    truncated,
    tunnel,
)

TASK = "ee9c2715375b7837f8bb51d641ff5863"
RECORDED = Path(__file__).parents[2] / "data" / "recorded"

PASSING = {
    "429": envelope(code=429, msg="busy"),
    "455": envelope(code=455, msg="maintenance"),
    "500": envelope(code=500, msg="Server exception"),
    "HTML 502": reply(HTML, 502),
    "HTML 200": reply(HTML, 200),
    "reset": reset,
    "closed": close,
    "truncated": truncated(b'{"code":200'),
}
FINAL = {
    "401": (envelope(code=401, msg="Unauthorized"), errors.KieAuthError),
    "402": (envelope(code=402, msg="Credits insufficient"), errors.KieInsufficientCreditsError),
    "422": (envelope(code=422, msg="url is wrong"), errors.KieValidationError),
    "433": (envelope(code=433, msg="cap"), errors.KieQuotaError),
    "505": (envelope(code=505, msg="off"), errors.KieFeatureDisabledError),
    "HTML 404": (reply(HTML, 404), errors.KieValidationError),
}


@pytest.fixture(scope="module")
def emulator():
    with KieEmulator(generating_seconds=0.02) as kie:
        yield kie


def wait(client, kie_task_id, waiting, sleep):
    async def poll(*, refresh_key=False):
        assert not refresh_key
        return client.poll(kie_task_id)

    return asyncio.run(watch(waiting, poll, clock=lambda: 0.0, sleep=sleep))


# ---------------------------------------------------------------- against the emulator


def test_from_the_prompt_to_the_file(connect, emulator, tmp_path):
    client = connect(emulator.url, api_key=emulator.api_key)
    before = client.get_credits()
    task_input = {"prompt": "a cat", "aspect_ratio": "1:1", "resolution": "1K"}
    kie_task_id = client.create_task("flux-2/pro-text-to-image", task_input)
    record = wait(client, kie_task_id, Waiting(0.0, poll_interval=0.02), asyncio.sleep)
    assert record.state is TaskState.SUCCESS
    assert record.kie_task_id == kie_task_id
    assert task_input.items() <= dict(record.input).items()
    assert client.get_task(kie_task_id) == record
    assert client.get_credits() == before - 5
    file = client.download_file(client.get_download_url(record.urls[0]), tmp_path / "cat")
    assert file.path.read_bytes().startswith((b"\x89PNG", b"\xff\xd8"))


def test_an_unknown_task(connect, emulator):
    client = connect(emulator.url, api_key=emulator.api_key)
    error = error_of(client.get_task, "f" * 32)
    assert type(error) is errors.KieNotFoundError
    assert error.kie_task_id == "f" * 32


def test_a_wrong_key(connect, emulator):
    assert type(error_of(connect(emulator.url).get_credits)) is errors.KieAuthError


# ---------------------------------------------------------------- repeated or not


@pytest.mark.parametrize("name", PASSING)
def test_passing_trouble_is_asked_again(name, connect, pauses):
    with ScriptedServer(*[PASSING[name]] * 3, envelope(5.5)) as server:
        assert connect(server.url).get_credits() == 5.5
    assert len(server.requests) == 4
    assert [round(pause, 1) for pause in pauses] == [pytest.approx(n, rel=0.2) for n in (0.5, 1, 2)]


@pytest.mark.parametrize("name", PASSING)
def test_trouble_that_does_not_pass(name, connect, pauses):
    with ScriptedServer(PASSING[name]) as server:
        error = error_of(connect(server.url).get_credits)
    assert error.is_transient
    assert (len(server.requests), len(pauses)) == (4, 3)


@pytest.mark.parametrize("name", FINAL)
def test_hopeless_errors_are_not_asked_again(name, connect, pauses):
    step, error_class = FINAL[name]
    with ScriptedServer(step, envelope(5.5)) as server:
        assert type(error_of(connect(server.url).get_credits)) is error_class
    assert (len(server.requests), pauses) == (1, [])


def test_a_slow_answer(connect):
    with ScriptedServer(hang) as server:
        error = error_of(connect(server.url, request_timeout=0.05).get_credits)
    assert type(error) is errors.KieTransportError
    assert error.may_have_arrived
    assert "Timeout" in error.message
    assert len(server.requests) == 4


@pytest.mark.parametrize("name", DRIPS)
def test_an_answer_in_drips(name, connect):
    began = time.monotonic()
    with ScriptedServer(DRIPS[name]) as server:
        error = connect(server.url, request_timeout=0.3).poll(TASK)
        assert time.monotonic() - began < 2
    assert type(error) is errors.KieTransportError
    assert error.may_have_arrived


@pytest.mark.parametrize("status", [200, 302, 502])
@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "deflate", "br", "zstd", "gzip, gzip", "identity, gzip"])
def test_a_compressed_answer_is_not_read(encoding, status, connect):
    body = gzip.compress(bytes(50_000_000))
    with ScriptedServer(reply(body, status, Content_Encoding=encoding, Location="/")) as server:
        tracemalloc.start()
        error = connect(server.url).poll(TASK)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert type(error) is errors.KieTransportError
    assert f"Content-Encoding is '{encoding}'" in error.message
    assert server.requests[0].headers["accept-encoding"] == "identity"
    assert peak < 10_000_000


def test_an_answer_that_says_it_is_not_compressed(connect):
    with ScriptedServer(envelope(5.5, Content_Encoding="identity")) as server:
        assert connect(server.url).get_credits() == 5.5


@pytest.mark.parametrize("is_chunked", [False, True])
def test_an_answer_that_does_not_end(is_chunked, connect):
    def pour(exchange):
        length = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: 999999999"
        exchange.send(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n\r\n")
        while True:  # until the client has gone
            exchange.send(b"10000\r\n" + b" " * 0x10000 + b"\r\n")

    with ScriptedServer(pour) as server:
        error = connect(server.url).poll(TASK)
    assert type(error) is errors.KieTransportError
    assert "the answer has more than 4194304 bytes" in error.message


def test_a_large_answer(connect):
    with ScriptedServer(envelope({"state": "waiting", "param": "x" * 4_000_000})) as server:
        assert connect(server.url).get_task(TASK).state is TaskState.RUNNING


def test_every_request_says_who_asks(connect, tmp_path):
    (tmp_path / "cat.png").write_bytes(b"cat")
    link = "http://127.0.0.1/1"
    created, uploaded = envelope({"taskId": TASK}), envelope({"downloadUrl": link})
    script = [envelope(5.5), created, envelope({"state": "waiting"}), envelope(link), uploaded, reply("gone", 404)]
    with ScriptedServer(*script, envelope(code=422, msg="url is wrong"), reply(b"", 200)) as server:
        client = connect(server.url)
        client.get_credits()
        client.create_task("m", {})
        client.get_task(TASK)
        client.get_download_url(link)
        client.upload_file(tmp_path / "cat.png")
        with pytest.raises(errors.KieResultError):
            client.download_file(f"{server.url}/1.png", tmp_path / "1.png")
        assert is_there(server.url)
    assert {request.headers["user-agent"] for request in server.requests} == {f"airflow-provider-kie/{__version__}"}
    assert {request.headers["accept-encoding"] for request in server.requests} == {"identity"}
    assert len(server.requests) == 8


def test_a_host_that_is_not_there(connect, pauses):
    with refusing_port() as port:
        error = error_of(connect(f"http://127.0.0.1:{port}").get_task, TASK)
    assert type(error) is errors.KieTransportError
    assert len(pauses) == 3


def test_retry_after_is_honoured(connect, pauses):
    with ScriptedServer(envelope(code=429, Retry_After="20"), envelope(5.5)) as server:
        assert connect(server.url).get_credits() == 5.5
    assert 20 <= pauses[0] <= 22


def test_a_long_retry_after_is_not_waited_for(connect, pauses):
    with ScriptedServer(envelope(code=429, Retry_After="31"), envelope(5.5)) as server:
        assert error_of(connect(server.url).get_credits).retry_after == 31
    assert (len(server.requests), pauses) == (1, [])


@pytest.mark.parametrize("step", [step for name, step in PASSING.items()], ids=list(PASSING))
def test_a_look_is_taken_once_and_returns_its_error(step, connect, pauses):
    with ScriptedServer(step) as server:
        error = connect(server.url).poll(TASK)
    assert isinstance(error, errors.KieError)
    assert error.kie_task_id == TASK
    assert_no_key(error)
    assert (len(server.requests), pauses) == (1, [])


def test_a_look_returns_the_record(connect):
    with ScriptedServer(envelope({"taskId": TASK, "state": "waiting"})) as server:
        record = connect(server.url).poll(TASK)
    assert isinstance(record, TaskRecord)
    assert server.requests[0].query == {"taskId": [TASK]}


@pytest.mark.parametrize("kie_task_id", ["a&b=c", "../x", "ä ö", "a#b", "%41"])
def test_odd_ids_arrive_as_they_are(kie_task_id, connect):
    with ScriptedServer(envelope({"state": "waiting"})) as server:
        assert connect(server.url).get_task(kie_task_id).kie_task_id == kie_task_id
    assert server.requests[0].query == {"taskId": [kie_task_id]}


# ---------------------------------------------------------------- connections


def test_look_ups_share_a_connection(connect):
    with ScriptedServer(envelope(5.5)) as server:
        client = connect(server.url)
        for _ in range(3):
            client.get_credits()
        client.close()
        client.get_credits()
    assert [request.connection for request in server.requests] == [1, 1, 1, 2]


def test_a_connection_that_went_stale_is_replaced(connect):
    with ScriptedServer(in_turn(envelope(1.0), close), envelope(2.0)) as server:
        client = connect(server.url)
        assert [client.get_credits(), client.get_credits()] == [1.0, 2.0]


def test_a_client_closes_its_connections():
    gone = []

    def wait_for_the_end(exchange):
        envelope(5.5)(exchange)
        exchange.wait_for_the_client()
        gone.append(True)

    from kie_provider.client.client import KieClient
    from kie_provider.client.endpoint import Endpoint

    with ScriptedServer(wait_for_the_end) as server:
        with KieClient(Endpoint(KEY, host=server.url)) as client:
            client.get_credits()
        server.join()
    assert gone == [True]


def test_netrc_does_not_replace_the_key(connect, netrc):
    with ScriptedServer(envelope(5.5)) as server:
        connect(server.url).get_credits()
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(status, connect):
    with (
        ScriptedServer(envelope(5.5)) as elsewhere,
        ScriptedServer(reply(b"", status, Location=elsewhere.url)) as server,
    ):
        assert type(error_of(connect(server.url).get_credits)) is errors.KieValidationError
    assert (len(server.requests), elsewhere.connections) == (1, 0)


def test_over_tls_and_through_a_proxy(tls, connect, monkeypatch):
    with ScriptedServer(envelope(5.5), tls=tls) as server, ScriptedServer(tunnel) as proxy:
        assert connect(server.url).get_credits() == 5.5
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        assert connect(server.url).get_credits() == 5.5
    assert (len(server.requests), len(proxy.requests)) == (2, 1)
    assert KEY.encode() not in proxy.requests[0].raw


@pytest.mark.parametrize(
    "step",
    [
        echo,
        raw(f"Bearer {KEY}\r\n\r\n".encode()),
        reply(f"bad header: Authorization: Bearer {KEY}", 400),
        envelope(code=401, msg=f"bad header: Authorization: Bearer {KEY}"),
        envelope(code=422, msg=f"recordInfo is null for {KEY}"),
        envelope([f"Bearer {KEY}"]),
        reply(b"", 302, Location=f"http://x:{KEY}@[bad/"),
    ],
)
def test_the_key_is_in_no_error(step, connect):
    with ScriptedServer(step) as server:
        client = connect(server.url)
        error_of(client.get_task, TASK)
        error_of(client.get_credits)
        error_of(client.get_download_url, "https://x/1")
        assert_no_key(client.poll(TASK))


# ---------------------------------------------------------------- conversations as Kie has held them


class Replay(ScriptedServer):
    """Answers as recorded; :meth:`check` compares what was asked."""

    def __init__(self, name):
        self.exchanges = json.loads((RECORDED / f"{name}.json").read_text(encoding="utf-8"))["exchanges"]
        answers = [exchange["response"] for exchange in self.exchanges]
        super().__init__(*(reply(a["body"], a["status"], **a["headers"]) for a in answers))

    def check(self):
        asked = []
        for request in self.requests:
            asked.append({"method": request.method, "path": request.path})
            if request.query:
                asked[-1]["query"] = {name: values[0] for name, values in request.query.items()}
            if request.body:
                asked[-1]["json"] = request.json()
        assert asked == [exchange["request"] for exchange in self.exchanges]


def test_every_recording_is_replayed_here():
    assert sorted(file.stem for file in RECORDED.glob("*.json")) == [
        "account_2026_09",
        "failed_task_2026_09",
        "image_to_image_2026_09",
        "text_result_2026_09",
        "text_to_image_2026_04",
    ]


def test_text_to_image_2026_04(connect):
    task_input = {"prompt": "a red bicycle against a white wall", "aspect_ratio": "1:1", "resolution": "1K"}
    with Replay("text_to_image_2026_04") as server:
        client = connect(server.url)
        kie_task_id = client.create_task("flux-2/pro-text-to-image", task_input)
        records = [client.get_task(kie_task_id) for _ in range(3)]
    server.check()
    assert kie_task_id == "3f1c8a6be0d94725a1b6c07d9e52f418"
    assert [record.kie_state for record in records] == ["waiting", "generating", "success"]
    assert [record.urls for record in records[:2]] == [(), ()]
    assert records[2] == TaskRecord(
        kie_task_id=kie_task_id,
        state=TaskState.SUCCESS,
        kie_state="success",
        model="flux-2/pro-text-to-image",
        input=task_input,
        urls=("https://tempfile.example/f/3f1c8a6be0d94725a1b6c07d9e52f418_1776060014.jpg",),
        cost_seconds=14,
        created_at=pendulum.datetime(2026, 4, 13, 6, 0, 0, 123000),
        completed_at=pendulum.datetime(2026, 4, 13, 6, 0, 14, 871000),
    )


def test_image_to_image_2026_09(connect):
    task_input = {
        "prompt": "the same bicycle, at night",
        "input_urls": ["https://images.example/bicycle.png"],
        "aspect_ratio": "auto",
        "resolution": "2K",
        "nsfw_checker": False,
    }
    naps = []

    async def nap(seconds):
        naps.append(seconds)

    with Replay("image_to_image_2026_09") as server:
        client = connect(server.url)
        kie_task_id = client.create_task("flux-2/flex-image-to-image", task_input, "https://me.example/hook")
        record = wait(client, kie_task_id, Waiting(0.0), nap)
    server.check()
    assert len(naps) == 3
    assert record.to_result() == {
        "kie_task_id": "b27d40c9158e4f6ca3e0917f64d2ab85",
        "model": "flux-2/flex-image-to-image",
        "state": "success",
        "urls": ["https://tempfile.example/h/b27d40c9158e4f6ca3e0917f64d2ab85_1790072031.png"],
        "result": None,
        "credits_consumed": 24.0,
        "cost_seconds": 31,
        "created_at": "2026-09-22T10:13:20.456000Z",
        "completed_at": "2026-09-22T10:13:51.999000Z",
        "input": task_input,
    }


def test_failed_task_2026_09(connect):
    with Replay("failed_task_2026_09") as server:
        record = connect(server.url).get_task("94c0e77d21b84f0f8a35d6e1b07c9f23")
    server.check()
    assert record.state is TaskState.FAIL
    assert (record.fail_code, record.fail_message) == ("500", "Internal Error, Please try again later.")
    assert (record.credits_consumed, record.cost_seconds, record.urls) == (0.0, 10, ())


def test_text_result_2026_09(connect):
    with Replay("text_result_2026_09") as server:
        record = connect(server.url).get_task("0d5b6f2e8c1a43d79be4f30a6c92e817")
    server.check()
    assert (record.urls, record.result) == ((), {"text": "A red bicycle."})


def test_account_2026_09(connect):
    task_input = {"prompt": "a red bicycle against a white wall", "aspect_ratio": "1:1", "resolution": "1K"}
    with Replay("account_2026_09") as server:
        client = connect(server.url)
        assert client.get_credits() == 5916.25
        found = [error_of(client.get_credits)]
        assert client.get_download_url("https://tempfile.example/f/1.png").startswith("https://direct.example/f/1.png?")
        found.append(error_of(client.get_download_url, "https://elsewhere.example/1.png"))
        found += [error_of(client.create_task, "flux-2/pro-text-to-image", task_input) for _ in range(4)]
    server.check()
    assert [type(error) for error in found] == [
        errors.KieAuthError,
        errors.KieValidationError,
        errors.KieInsufficientCreditsError,
        errors.KieValidationError,
        errors.KieQuotaError,
        errors.KieValidationError,
    ]
    assert all(error.http_status == 200 for error in found)
