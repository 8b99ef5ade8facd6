"""Starting and stopping, in a thread and as a process, and the pytest plugin."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import requests
from blockbuster import blockbuster_ctx

from kie_provider.emulator import KieEmulator
from tests.support.emulator_client import Client
from tests.support.waits import wait_until


def test_a_stopped_emulator_leaves_no_thread_and_no_port():
    before = set(threading.enumerate())
    with KieEmulator(generating_seconds=0) as kie:
        client = Client(kie)
        assert client.get(client.url_of(client.new_task())).status_code == 200  # draws in a worker thread
        assert {thread.name for thread in set(threading.enumerate()) - before} >= {"kie-emulator"}
        port = int(kie.url.rpartition(":")[2])
    assert set(threading.enumerate()) == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()


def test_stop_does_not_wait_for_held_answers_or_open_connections():
    kie = KieEmulator().start()
    kie.fault({"on": "credit", "do": "hold"})
    kie.fault({"on": "credit", "do": "slow", "delay_seconds": 60})
    address = ("127.0.0.1", int(kie.url.rpartition(":")[2]))
    request = b"GET /api/v1/chat/credit HTTP/1.1\r\nHost: kie\r\n\r\n"
    held, slow, idle = (socket.create_connection(address, timeout=5) for _ in range(3))
    try:
        held.sendall(request)
        slow.sendall(request)
        wait_until(lambda: len(kie.requests()) == 2)
        start = time.monotonic()
        kie.stop()
        assert time.monotonic() - start < 1
        assert held.recv(12) == b"HTTP/1.1 200"
    finally:
        for connection in (held, slow, idle):
            connection.close()


def test_stop_twice_and_start_again():
    kie = KieEmulator()
    kie.stop()
    with kie:
        first = kie.url
        with pytest.raises(RuntimeError, match="running"):
            kie.start()
        assert Client(kie).credit()["code"] == 200
    kie.stop()
    with kie:
        assert Client(kie).credit()["code"] == 200
    assert first


def test_a_taken_port_is_an_error_and_leaves_no_thread():
    before = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        KieEmulator(port=taken.getsockname()[1]).start()
    with pytest.raises(OverflowError):
        KieEmulator(port=70_000).start()
    assert set(threading.enumerate()) == before


def test_an_unknown_setting_is_an_error():
    with pytest.raises(TypeError, match="generating_second"):
        KieEmulator(generating_second=1)


def test_many_clients_at_once():
    with KieEmulator(create_limit=1000) as kie:
        client = Client(kie)
        threads = [threading.Thread(target=client.create) for _ in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({task["taskId"] for task in kie.bill()["tasks"]}) == 30


pytest_plugins = ["pytester"]


def test_the_event_loop_never_waits_for_anything_else():
    with blockbuster_ctx() as blocking, KieEmulator(generating_seconds=0) as kie:  # a blocking call becomes HTTP 500
        blocking.functions["io.BufferedRandom.write"].can_block_in("aiohttp/web_request.py", "post")  # of older aiohttp
        client = Client(kie)
        url = client.url_of(client.new_task("the sea", aspect_ratio="3:2"))
        files = {"file": ("in.png", client.get(url).content, "image/png")}
        sent = {"uploadPath": "a"}
        stored = client.send("POST", "/api/file-stream-upload", files=files, data=sent).json()["data"]["downloadUrl"]
        model, fields = "flux-2/pro-image-to-image", {"input_urls": [stored], "aspect_ratio": "auto"}
        task_id = client.new_task("an edit", model, **fields)
        assert client.get(client.url_of(task_id)).status_code == 200
        assert client.get(f"{kie.url}/_emulator/thumbnail/{task_id}").status_code == 200
        kie.fault({"on": "file", "do": "truncate"})
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            client.get(url)


class Process:
    """``python -m kie_provider.emulator`` with its first two lines read."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "kie_provider.emulator", "--port", "0", *arguments]
        # no PYTHONUNBUFFERED: the lines must come although they go into a pipe
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        self.popen = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self.lines = [self.popen.stdout.readline().rstrip("\n") for _ in range(2)]

    def end(self, number: signal.Signals) -> tuple[int, str, str]:
        self.popen.send_signal(number)
        out, err = self.popen.communicate(timeout=5)
        return self.popen.returncode, out, err


@pytest.fixture
def process(request):
    started = Process(*getattr(request, "param", ()))
    yield started
    if started.popen.poll() is None:
        started.popen.kill()
        started.popen.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_prints_its_address_and_ends_cleanly_on_a_signal(process, number):
    found = re.fullmatch(r"Kie\.ai emulator listening on (http://127\.0\.0\.1:\d+)", process.lines[0])
    assert found
    shell = f"{process.lines[1]}; printenv AIRFLOW_CONN_KIE_DEFAULT"
    connection = json.loads(subprocess.run(["sh", "-c", shell], check=True, capture_output=True).stdout)
    assert (connection["host"], connection["conn_type"]) == (found[1], "kie")
    bearer = {"Authorization": f"Bearer {connection['password']}"}
    assert requests.get(f"{found[1]}/api/v1/chat/credit", headers=bearer, timeout=5).json()["data"] == 1000
    start = time.monotonic()
    assert process.end(number) == (0, "", "")
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    "process",
    [("--api-key", "it's mine", "--credits", "7.5", "--waiting-seconds", "9", "--generating-seconds", "1")],
    indirect=True,
)
def test_options_of_the_process(process):
    shell = f"{process.lines[1]}; printenv AIRFLOW_CONN_KIE_DEFAULT"
    connection = json.loads(subprocess.run(["sh", "-c", shell], check=True, capture_output=True).stdout)
    assert connection["password"] == "it's mine"
    send = {"headers": {"Authorization": "Bearer it's mine"}, "timeout": 5}
    url = connection["host"]
    assert requests.get(f"{url}/api/v1/chat/credit", **send).json()["data"] == 7.5
    body = {"model": "google/nano-banana", "input": {"prompt": "a fox"}}
    task_id = requests.post(f"{url}/api/v1/jobs/createTask", json=body, **send).json()["data"]["taskId"]
    record = requests.get(f"{url}/api/v1/jobs/recordInfo", params={"taskId": task_id}, **send).json()
    assert record["data"]["state"] == "waiting"


def imported(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_the_plugin_costs_nothing_and_the_emulator_brings_no_airflow():
    plugin = imported("import kie_provider.pytest_plugin")
    assert not plugin & {"aiohttp", "PIL", "requests", "airflow"}
    emulator = imported("import kie_provider.emulator")
    assert "aiohttp" in emulator
    assert not emulator & {"PIL", "airflow", "requests"}


def test_plugin_gives_a_clean_emulator_and_a_connection(kie_emulator, kie_connection):
    assert kie_connection == "kie_default"
    assert json.loads(os.environ["AIRFLOW_CONN_KIE_DEFAULT"]) == kie_emulator.connection
    assert kie_emulator.bill()["tasks"] == []
    Client(kie_emulator).create()
    assert len(kie_emulator.bill()["tasks"]) == 1


def test_plugin_gives_it_clean_again(kie_emulator):
    assert kie_emulator.bill()["tasks"] == []
    assert kie_emulator.requests() == []
    assert "AIRFLOW_CONN_KIE_DEFAULT" not in os.environ


def test_a_session_that_uses_the_plugin_ends_with_nothing_left(pytester):
    pytester.makepyfile("""
        import os

        def test_one(kie_emulator, kie_connection):
            kie_emulator.fault({"on": "credit", "do": "hold"})
            os.environ["KIE_TEST_URL"] = kie_emulator.url
            assert kie_emulator.url in os.environ["AIRFLOW_CONN_KIE_DEFAULT"]

        def test_two(kie_emulator):
            assert kie_emulator.url == os.environ.pop("KIE_TEST_URL")
    """)
    before = set(threading.enumerate())
    pytester.runpytest_inprocess("-q", "-p", "no:asyncio", "-W", "error::ResourceWarning").assert_outcomes(passed=2)
    assert set(threading.enumerate()) == before
