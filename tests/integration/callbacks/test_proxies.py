"""The proxies of docs/callbacks.md let callbacks through, and nothing else, where they are installed."""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.integration.callbacks.conftest import Receiver
from tests.support.processes import ChildProcess, free_port, stop_all

EXAMPLES = Path(__file__).resolve().parents[3] / "docs" / "examples" / "callbacks"


def nginx(server, port, folder):
    text = (EXAMPLES / "nginx.conf").read_text()
    text = re.sub(r" *ssl_.*\n", "", text).replace("listen 443 ssl", f"listen 127.0.0.1:{port}")
    logs = f"access_log {folder}/access.log; error_log {folder}/error.log;"
    paths = "".join(
        f"{each}_temp_path {folder}/{each};" for each in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ {logs} {paths}\n{text.replace('airflow-api-server:8080', server)} }}"
    )
    return ["nginx", "-p", str(folder), "-c", str(config)]


def caddy(server, port, folder):
    text = (EXAMPLES / "Caddyfile").read_text()
    text = text.replace("airflow.example.com", f"http://127.0.0.1:{port}").replace("airflow-api-server:8080", server)
    config = folder / "Caddyfile"
    config.write_text(f"{{\n\tadmin off\n}}\n{text}")
    return ["caddy", "run", "--config", str(config), "--adapter", "caddyfile"]


@pytest.fixture(params=[nginx, caddy], ids=["nginx", "caddy"])
def public(request, receiver, tmp_path):
    """The receiver behind a proxy, and what that proxy has logged."""
    command = request.param
    if shutil.which(command.__name__) is None:
        pytest.skip(f"{command.__name__} is not installed")
    port = free_port()
    log = tmp_path / "proxy.log"
    child = ChildProcess(
        command.__name__,
        command(urlsplit(receiver.url).netloc, port, tmp_path),
        log=log,
        env={**os.environ, "HOME": str(tmp_path)},
        cwd=tmp_path,
    )
    try:
        deadline = time.monotonic() + 20
        while True:
            assert child.exit_code is None, child.tail()
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, child.tail()
                time.sleep(0.05)
        yield (
            Receiver(f"http://127.0.0.1:{port}", receiver.session),
            lambda: "".join(each.read_text() for each in tmp_path.glob("*.log")),
        )
    finally:
        stop_all([child], grace=5)


def test_callbacks_pass_and_nothing_else_does(public, wait):
    receiver, logs = public
    task = wait()
    assert receiver.call(task.reference(), task.kie_task_id).json() == {"code": 200, "msg": "success"}
    assert task.state == "scheduled"
    assert task.reference()[-22:] not in logs()
    assert receiver.call(task.reference("team/kie"), task.kie_task_id).json() == {"code": 404, "msg": "not found"}
    assert receiver.post(task.reference(), data=b"x" * 300_000).status_code in (413, 502)  # Caddy 2.6: 502
    for method, path in [
        ("GET", f"kie/callbacks/{task.reference()}"),
        ("PUT", f"kie/callbacks/{task.reference()}"),
        ("GET", ""),
        ("POST", ""),
        ("GET", "ping"),
        ("POST", "ping"),
        ("POST", "kie/callbacks/../../ping"),
        ("POST", "kie/callbacks"),
        ("GET", "kie/images/"),
        ("GET", "api/v2/version"),
    ]:
        answer = receiver.session.request(method, f"{receiver.url}/{path}", timeout=10, allow_redirects=False)
        assert answer.status_code in (301, 403, 404), (method, path, answer.text)
        assert "here" not in answer.text
