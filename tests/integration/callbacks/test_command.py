"""``airflow kie callbacks test``: what it says of a receiver, and of what may stand in its place."""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys

import pytest
from airflow.providers_manager import ProvidersManager

from kie_provider.cli import callbacks
from tests.integration.callbacks.conftest import API_KEY, CONN_ID, SECRET
from tests.support.servers import ScriptedServer, hang, refusing_port, reply, reset

OURS = {"code": 200, "msg": "success"}


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command for a base URL; return its exit code and all that it has said."""

    def run(base_url, conn_id=CONN_ID, **extra):
        extra = {"webhook_secret": SECRET, "callback_base_url": base_url} | extra
        connection = {"conn_type": "kie", "password": API_KEY, "extra": extra}
        monkeypatch.setenv(f"AIRFLOW_CONN_{CONN_ID.upper()}", json.dumps(connection))
        said = ""
        try:
            callbacks.test(argparse.Namespace(conn_id=conn_id))
        except SystemExit as end:
            said = str(end)
        out = capsys.readouterr().out + said
        for secret in (API_KEY, SECRET, ".00000000", "0000-000000000000"):
            assert secret not in out
        return int(bool(said)), out

    return run


asks_providers = pytest.mark.skipif(
    not hasattr(ProvidersManager, "cli_command_functions"), reason="Airflow 3.1 asks no provider for commands"
)


@asks_providers
def test_airflow_knows_the_command():
    from airflow.cli.cli_parser import get_parser

    args = get_parser().parse_args(["kie", "callbacks", "test", "--conn-id", "mine"])
    assert args.conn_id == "mine"
    assert args.func.__name__ == "test"


@asks_providers
def test_it_finds_a_connection_in_the_database():
    """Elsewhere than in tasks and the API server, hooks do not."""
    from airflow.models.connection import Connection
    from airflow.utils.session import create_session

    with ScriptedServer(reply(OURS)) as server:
        extra = json.dumps({"callback_base_url": server.url})
        with create_session() as session:
            session.add(Connection(conn_id="kie_stored", conn_type="kie", password=API_KEY, extra=extra))
        try:
            command = [sys.executable, "-m", "airflow", "kie", "callbacks", "test", "--conn-id", "kie_stored"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        finally:
            with create_session() as session:
                session.query(Connection).filter_by(conn_id="kie_stored").delete()
    assert (done.returncode, len(server.requests)) == (0, 1), done.stderr
    assert "HTTP 200: The receiver took it" in done.stdout
    assert API_KEY not in done.stdout + done.stderr


def test_a_receiver_that_is_reached(run, receiver, caplog):
    caplog.set_level(logging.INFO, "uvicorn.access")
    code, out = run(f"{receiver.url}/")
    assert code == 0
    assert out.splitlines() == [
        f"POST {receiver.url}/kie/callbacks/... (signed)",
        f"Warning: callback_base_url {receiver.url} is http, not https: others can read callback URLs on the way",
        f"Warning: callback_base_url {receiver.url} is an address of this machine or network: Kie cannot call it",
        "HTTP 200: The receiver took it. Kie must reach the same address from the internet.",
    ]
    assert "/kie/callbacks/reference" in caplog.text


def test_it_calls_as_kie_does(run):
    with ScriptedServer(reply(OURS)) as server:
        run(server.url)
        run(server.url, webhook_secret="")
    signed, unsigned = server.requests
    assert (signed.method, signed.json()["code"]) == ("POST", 200)
    assert "x-webhook-signature" in signed.headers
    assert "x-webhook-signature" not in unsigned.headers


def test_a_receiver_with_another_key(run, receiver, monkeypatch):
    code, out = run(receiver.url)  # the receiver now keeps what it has read
    assert code == 0
    code, out = run(receiver.url, webhook_secret="another")
    assert (code, "HTTP 404: The receiver does not know the connection 'kie_receiver'" in out) == (1, True)


@pytest.mark.parametrize(
    ("answer", "meaning"),
    [
        (reply({"code": 401, "msg": "not signed by Kie"}, 401), "HTTP 401: The receiver does not accept the signature"),
        (reply({"code": 500, "msg": "internal error"}, 500), "HTTP 500: The receiver could not ask Airflow's database"),
        (reply({"code": 503, "msg": "busy"}, 503), "HTTP 503: The receiver has too much to do"),
        (reply("<html>Log in</html>", 200), "HTTP 200: That is no answer of the receiver"),
        (reply({"code": 404}, 200), "HTTP 200: That is no answer of the receiver"),
        (reply([], 200), "HTTP 200: That is no answer of the receiver"),
        (reply("", 302, Location="https://login.example/?next=x"), "HTTP 302: A redirect"),
        (reply("", 401), "HTTP 401: Something before the receiver wants a login"),
        (reply("", 403), "HTTP 403: Something before the receiver wants a login"),
        (reply("", 404), "HTTP 404: Somebody answers, but not the receiver"),
        (reply({"detail": "Method Not Allowed"}, 405), "HTTP 405: Airflow's API server seems to answer"),
        (reply("", 502), "HTTP 502: A proxy answers, but does not reach the API server"),
        (reply("", 418), "HTTP 418: That is no answer of the receiver"),
        (reset, "Not reached: ConnectionError"),
        (hang, "Not reached: ReadTimeout"),
    ],
)
def test_what_stands_in_its_place(run, monkeypatch, answer, meaning):
    monkeypatch.setattr(callbacks, "PATIENCE", 0.3)
    with ScriptedServer(answer) as server:
        code, out = run(server.url)
    assert (code, meaning in out) == (1, True), out
    assert "says what to look at" in out
    assert len(server.requests) == 1


@pytest.mark.parametrize("base_url", ["http://nobody.invalid", "https://127.0.0.1:{port}", "http://127.0.0.1:{port}"])
def test_nobody_is_there(run, base_url):
    with refusing_port() as port:
        code, out = run(base_url.format(port=port))
    assert (code, "Not reached: " in out) == (1, True)


@pytest.mark.parametrize(
    ("base_url", "conn_id", "message"),
    [
        ("", CONN_ID, "callback_base_url: neither it nor [kie] callback_base_url is set"),
        ("airflow.example", CONN_ID, "callback_base_url: must be where Kie reaches Airflow's API server"),
        ("", "kie_nowhere", "there is no Airflow connection 'kie_nowhere'"),
    ],
)
def test_what_is_not_set_is_named(run, base_url, conn_id, message):
    code, out = run(base_url, conn_id)
    assert (code, message in out) == (1, True), out
