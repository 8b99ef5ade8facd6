"""KieHook: from connection to answers."""

from __future__ import annotations

import asyncio
import json

import pytest
from airflow.sdk import Connection

from kie_provider.client.errors import (
    KieConnectionError,
    KieNotFoundError,
    KieTargetError,
    KieTaskTimeoutError,
    KieValidationError,
)
from kie_provider.client.records import TaskState
from kie_provider.hooks.connection import endpoint_from_connection
from kie_provider.hooks.kie import KieHook
from tests.support.servers import ScriptedServer, envelope
from tests.support.versions import finds_no_connection

FOX = {"prompt": "a red fox", "aspect_ratio": "1:1", "resolution": "1K"}
MODEL = "flux-2/pro-text-to-image"


def connect(monkeypatch, **fields):
    monkeypatch.setenv("AIRFLOW_CONN_KIE_DEFAULT", json.dumps({"conn_type": "kie", "password": "k"} | fields))


@pytest.mark.parametrize(
    ("fields", "host"),
    [
        ({}, "https://api.kie.ai"),
        ({"host": "gateway.example"}, "https://gateway.example"),
        ({"host": "gateway.example", "schema": "http", "port": 8080}, "http://gateway.example:8080"),
        ({"host": "http://gateway.example:8080/"}, "http://gateway.example:8080"),
        ({"host": "http://gateway.example:8080", "port": 9090}, "http://gateway.example:8080"),
        ({"host": "https://gateway.example/kie", "port": 444}, "https://gateway.example:444/kie"),
        ({"host": "[::1]", "schema": "http", "port": 8080}, "http://[::1]:8080"),
        ({"port": 0}, "https://api.kie.ai"),
        ({"port": "0", "host": "gateway.example"}, "https://gateway.example"),
        ({"port": 443}, "https://api.kie.ai"),
    ],
)
def test_host_schema_and_port_are_honoured(monkeypatch, fields, host):
    connect(monkeypatch, **fields)

    assert KieHook().get_conn().endpoint.host == host


def test_extras_and_their_defaults(monkeypatch):
    connect(monkeypatch)
    endpoint = KieHook().get_conn().endpoint
    assert (endpoint.upload_host, endpoint.request_timeout) == ("https://kieai.redpandaai.co", 60.0)

    connect(monkeypatch, extra={"upload_host": "http://up.example", "request_timeout": "5"})
    endpoint = KieHook().get_conn().endpoint
    assert (endpoint.upload_host, endpoint.request_timeout) == ("http://up.example", 5.0)


def test_where_callbacks_go_is_said_by_the_connection_or_else_the_configuration(monkeypatch):
    def fields():
        endpoint = KieHook().get_conn().endpoint
        return endpoint.callback_base_url, endpoint.webhook_secret

    connect(monkeypatch)
    assert fields() == ("", "")

    monkeypatch.setenv("AIRFLOW__KIE__CALLBACK_BASE_URL", " https://airflow.example/ ")
    assert fields() == ("https://airflow.example", "")
    connect(monkeypatch, extra={"callback_base_url": "None", "webhook_secret": " "})
    assert fields() == ("https://airflow.example", "")
    connect(monkeypatch, extra={"callback_base_url": " https://other.example", "webhook_secret": " hush "})
    assert fields() == ("https://other.example", "hush")


def test_a_bad_address_for_callbacks_says_where_it_stands(monkeypatch):
    connect(monkeypatch, extra={"callback_base_url": "airflow.example"})
    with pytest.raises(KieConnectionError, match="connection 'kie_default': callback_base_url: must be where Kie"):
        KieHook().get_conn()

    connect(monkeypatch)
    monkeypatch.setenv("AIRFLOW__KIE__CALLBACK_BASE_URL", "https://airflow.example?x=1")
    with pytest.raises(KieConnectionError, match=r"Airflow's configuration, section \[kie\], callback_base_url: must"):
        KieHook().get_conn()


def test_connection_as_uri(monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_KIE_DEFAULT", "kie://:secret@gateway.example:8443/https")

    assert KieHook().get_conn().endpoint.host == "https://gateway.example:8443"


#: As they are kept for other hooks, each with a password that is none of Kie's business.
OTHER_TYPES = [
    '{"conn_type": "postgres", "host": "%s", "password": "hunter2"}',
    '{"conn_type": "http", "host": "%s", "password": "hunter2"}',
    '{"conn_type": "KIE", "host": "%s", "password": "hunter2"}',
    '{"conn_type": "", "host": "%s", "password": "hunter2"}',
    '{"host": "%s", "password": "hunter2"}',
    "postgresql://me:hunter2@db.example:5432/airflow",
    "postgres://:hunter2@127.0.0.1/http",
    "kie-ai://:hunter2@db.example",
    "//:hunter2@db.example",
]


@pytest.mark.parametrize("value", OTHER_TYPES)
def test_a_connection_of_another_type_is_refused(value, monkeypatch, tmp_path):
    (tmp_path / "in.png").write_bytes(b"in")
    with ScriptedServer(envelope(5.5)) as server:
        monkeypatch.setenv("AIRFLOW_CONN_OTHER", value % server.url if "%s" in value else value)
        hook = KieHook("other")
        for call in (
            hook.get_credits,
            lambda: hook.create_task(MODEL, FOX),
            lambda: hook.get_task("0" * 32),
            lambda: hook.upload_file(tmp_path / "in.png"),
            lambda: asyncio.run(hook.aget_task("0" * 32)),
            lambda: asyncio.run(hook.await_task("0" * 32, poll_interval=0.01)),
        ):
            with pytest.raises(KieConnectionError, match="connection 'other': conn_type: must be 'kie', got") as caught:
                call()
            assert "hunter2" not in str(caught.value)
        assert isinstance(hook.poll("0" * 32), KieConnectionError)
        assert not hook.test_connection()[0]
    assert server.connections == 0


def test_the_upload_host_follows_the_host(monkeypatch):
    connect(monkeypatch, host="gateway.example", schema="http", port=8080)
    assert KieHook().get_conn().endpoint.upload_host == "http://gateway.example:8080"

    connect(monkeypatch, host="gateway.example", extra={"upload_host": ""})  # as a form sends it
    assert KieHook().get_conn().endpoint.upload_host == "https://gateway.example"


@pytest.mark.parametrize("port", [None, 8080])
def test_a_host_that_is_no_url(port, monkeypatch):
    connect(monkeypatch, host="http://[::1", port=port)
    with pytest.raises(KieConnectionError, match="host: must be scheme, host and port"):
        KieHook().get_conn()


@pytest.mark.parametrize("extra", ["[1]", "{", "[" * 100_000])
def test_extra_that_is_no_object(extra):
    with pytest.raises(KieConnectionError, match="connection 'mine': extra: must be a JSON object"):
        endpoint_from_connection(Connection(conn_id="mine", conn_type="kie", password="k", extra=extra))


@pytest.mark.parametrize(
    ("conn_id", "message"),
    [
        (None, "kie_conn_id: must be the id of an Airflow connection, got None: the upstream task returned nothing"),
        (
            "None",
            "kie_conn_id: must be the id of an Airflow connection, got 'None': the upstream task returned nothing",
        ),
        (" ", "kie_conn_id: must be the id of an Airflow connection, got ' '"),
        (["a"], "kie_conn_id: must be the id of an Airflow connection, got ['a']"),
        ("a b", "there is no Airflow connection 'a b'"),
        ("a\nb", "there is no Airflow connection 'a\\nb'"),
        ("a; b", "there is no Airflow connection 'a; b'"),
    ],
)
@finds_no_connection
def test_what_can_be_no_id_of_a_connection(conn_id, message):
    with pytest.raises(KieConnectionError) as caught:
        KieHook(conn_id).get_conn()
    assert caught.value.message.startswith(message)
    assert "airflow connections add" not in caught.value.message


def test_what_an_empty_variable_gives_is_the_default(monkeypatch):
    nothing = {"upload_host": "None", "request_timeout": " ", "submit_limit": "None"}
    connect(monkeypatch, host="None", extra=nothing)
    endpoint = KieHook().get_conn().endpoint
    assert (endpoint.host, endpoint.request_timeout, endpoint.submit_limit) == ("https://api.kie.ai", 60.0, 20)


def test_create_look_wait_and_download(kie_emulator, tmp_path):
    with KieHook() as hook:
        kie_task_id = hook.create_task(MODEL, FOX)
        assert hook.get_task(kie_task_id).state is TaskState.RUNNING
        record = hook.wait(kie_task_id, poll_interval=0.05)
        file = hook.download_file(hook.get_download_url(record.urls[0]), tmp_path / "new" / "fox.png").path

    assert file.read_bytes().startswith(b"\x89PNG")
    assert list(file.parent.iterdir()) == [file]
    assert hook.get_credits() == kie_emulator.bill()["credits_left"]
    hook.close()


def test_the_file_host_never_gets_the_key(kie_emulator, tmp_path):
    with KieHook() as hook:
        record = hook.wait(hook.create_task(MODEL, FOX), poll_interval=0.05)
        hook.download_file(record.urls[0], tmp_path / "fox.png")

    downloads = [r for r in kie_emulator.requests() if not r["path"].startswith("/api/")]
    assert downloads
    assert {r["headers"].get("authorization") for r in downloads} <= {None}


def test_wait_gives_up_at_the_timeout_and_can_be_repeated(kie_emulator):
    kie_emulator.fault({"on": "createTask", "do": "stuck"})
    with KieHook() as hook:
        kie_task_id = hook.create_task(MODEL, FOX)
        for _ in range(2):
            with pytest.raises(KieTaskTimeoutError):
                hook.wait(kie_task_id, poll_interval=0.05, timeout=0.2)
    assert len(kie_emulator.bill()["tasks"]) == 1


def test_unknown_task(kie_emulator):
    with KieHook() as hook, pytest.raises(KieNotFoundError):
        hook.get_task("0" * 32)


def test_upload(kie_emulator, tmp_path):
    (tmp_path / "in.png").write_bytes(b"\x89PNG not really")

    with KieHook() as hook:
        url = hook.upload_file(tmp_path / "in.png")
        copy = hook.download_file(url, tmp_path / "out.png").path

    assert copy.read_bytes() == b"\x89PNG not really"


def test_files_that_are_not_there_are_kie_errors(kie_emulator, tmp_path):
    with KieHook() as hook:
        with pytest.raises(KieValidationError, match="nothing was sent"):
            hook.upload_file(tmp_path / "none.png")
        record = hook.wait(hook.create_task(MODEL, FOX), poll_interval=0.05)
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(KieTargetError, match=r"Not a directory|File exists"):
            hook.download_file(record.urls[0], tmp_path / "file" / "fox.png")


def test_connection_test(kie_emulator, monkeypatch):
    assert KieHook().test_connection() == (True, "Connected to Kie.ai: 1000 credits left")

    monkeypatch.setenv("AIRFLOW_CONN_KIE_DEFAULT", json.dumps(kie_emulator.connection | {"password": "wrong-key"}))
    ok, message = KieHook().test_connection()
    assert not ok
    assert message.startswith("Kie.ai did not accept the API key: Unauthorized")
    assert "wrong-key" not in message
