"""What the receiver answers and does, whoever calls: over real HTTP, with a real database behind it."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import socket
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from kie_provider.client import webhook
from kie_provider.client.endpoint import Endpoint
from kie_provider.plugin import callbacks
from tests.integration.callbacks.conftest import API_KEY, BATCH, CONN_ID, HAS_STORE, OTHER_TASK, SECRET
from tests.support.waits import wait_until

CALLED = {"status": "called"}
SUCCESS = (200, {"code": 200, "msg": "success"})
NOT_FOUND = (404, {"code": 404, "msg": "not found"})

needs_store = pytest.mark.skipif(not HAS_STORE, reason="Airflow keeps task states since 3.3")


def answer(response):
    return response.status_code, response.json()


# ---- the right callback


def test_a_callback_wakes_the_task(receiver, wait):
    task = wait()

    assert answer(receiver.call(task.reference(), task.kie_task_id)) == SUCCESS

    assert (task.state, task.resumed_with) == ("scheduled", CALLED)


@needs_store
def test_a_callback_is_written_down_where_the_next_try_reads_it(receiver, wait):
    task = wait()
    receiver.call(task.reference(), task.kie_task_id)
    inbox = task.inbox
    assert (inbox.pop("at")[:2], inbox) == (
        "20",
        {"key": f"kie.callback.{task.nonce}", "v": 1, "kie_task_id": task.kie_task_id},
    )


@needs_store
def test_what_was_written_down_expires(receiver, wait):
    from airflow.models.task_state_store import TaskStateStoreModel
    from airflow.utils.session import create_session

    task = wait()
    receiver.call(task.reference(), task.kie_task_id)
    with create_session() as session:
        row = session.query(TaskStateStoreModel).filter_by(key=webhook.callback_key(task.nonce)).one()
        assert 59 <= (row.expires_at - row.updated_at).days <= 60


@pytest.mark.parametrize(
    "body", [{"data": {"taskId": "{}"}}, {"data": {"task_id": "{}"}}, {"taskId": "{}"}, {"data": None, "taskId": "{}"}]
)
def test_the_task_is_named_where_kies_pages_have_it(receiver, wait, body):
    task = wait()
    text = json.dumps(body).replace("{}", task.kie_task_id)
    headers = webhook.sign(SECRET, task.kie_task_id, time.time())
    assert answer(receiver.post(task.reference(), data=text, headers=headers)) == SUCCESS
    assert task.is_noted


def test_a_connection_without_a_webhook_secret_needs_no_signature(receiver, wait, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_PLAIN", json.dumps({"conn_type": "kie", "password": API_KEY}))
    task = wait()
    reference = task.reference("plain", Endpoint(API_KEY))
    assert answer(receiver.call(reference, task.kie_task_id, secret=None)) == SUCCESS
    assert task.resumed_with == CALLED


def test_a_sensor_is_woken_by_the_task_that_it_waits_for(receiver, wait):
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session

    creator, sensor, other = wait(state="success", trigger_id=None), wait(), wait()
    dag_id, run_id, task_id, map_index = sensor.scope
    with create_session() as session:
        XComModel.set(
            key=webhook.waiting_key(creator.kie_task_id),
            value=True,
            dag_id=dag_id,
            run_id=run_id,
            task_id=task_id,
            map_index=map_index,
            session=session,
        )
    assert answer(receiver.call(creator.reference(), creator.kie_task_id)) == SUCCESS
    assert (sensor.state, creator.state, other.state) == ("scheduled", "success", "deferred")


# ---- not the right moment


@pytest.mark.parametrize("state", ["running", "queued", "success", "failed", "up_for_retry", "up_for_reschedule"])
def test_late_or_early_a_task_that_does_not_wait_is_left_alone(receiver, wait, state):
    task = wait(state=state)
    assert answer(receiver.call(task.reference(), task.kie_task_id)) == SUCCESS
    assert (task.state, task.resumed_with) == (state, None)
    assert task.is_noted


def test_a_deferral_just_made_is_left_to_its_first_poll(receiver, wait):
    task = wait(deferred_for=9.0)
    assert answer(receiver.call(task.reference(), task.kie_task_id)) == SUCCESS
    assert (task.state, task.is_noted) == ("deferred", True)


@pytest.mark.parametrize("classpath", [BATCH, "airflow.providers.standard.triggers.temporal.DateTimeTrigger"])
def test_a_batch_and_what_is_not_ours_are_never_woken(receiver, wait, classpath):
    task = wait(classpath=classpath)
    assert answer(receiver.call(task.reference(), task.kie_task_id)) == SUCCESS
    assert (task.state, task.is_noted) == ("deferred", True)


def test_a_callback_may_be_repeated(receiver, wait):
    task = wait()
    assert {receiver.call(task.reference(), task.kie_task_id).status_code for _ in range(4)} == {200}
    assert (task.state, task.resumed_with) == ("scheduled", CALLED)


def test_the_first_callback_stands(receiver, wait):
    """A reference is known to others only when Kie has used it."""
    task = wait()
    for kie_task_id in (task.kie_task_id, OTHER_TASK):
        assert answer(receiver.call(task.reference(), kie_task_id)) == SUCCESS
    assert task.is_noted


def test_the_callback_of_a_try_before_wakes_the_one_that_waits_now(receiver, wait):
    """After a clear or a retry, which gives the task instance another UUID."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.taskinstancehistory import TaskInstanceHistory
    from airflow.utils.session import create_session

    task = wait()
    with create_session() as session:
        ti = session.query(TaskInstance).filter_by(dag_id=task.scope[0]).one()
        TaskInstanceHistory.record_ti(ti, session=session)
        new_id = uuid.uuid4()
        session.query(TaskInstance).filter_by(dag_id=task.scope[0]).update(
            {"id": new_id if isinstance(ti.id, uuid.UUID) else str(new_id), "state": "deferred"}
        )
    assert answer(receiver.call(task.reference(), task.kie_task_id)) == SUCCESS
    assert (task.state, task.is_noted) == ("scheduled", True)


def test_many_identical_callbacks_at_once_wake_a_task_once(receiver, wait, caplog):
    task = wait()
    caplog.set_level(logging.INFO, "kie_provider.plugin.wake")
    with ThreadPoolExecutor(20) as pool:
        calls = [pool.submit(receiver.call, task.reference(), task.kie_task_id) for _ in range(20)]
    assert {call.result().status_code for call in calls} == {200}
    assert task.state == "scheduled"
    assert len([record for record in caplog.records if "woke" in record.message]) == 1


# ---- who may not call


def forged(task, what):
    """A reference, and the options of a call, with something wrong."""
    reference, options = task.reference(), {}
    if what == "mac":
        reference = reference[:-22] + "A" * 22
    elif what == "another task's":
        reference = task.reference(ti_id=str(uuid.uuid4()))
    elif what == "task moved":
        reference = reference.replace(task.ti_id, str(uuid.uuid4()))
    elif what == "nonce moved":
        reference = reference.replace(task.nonce, webhook.new_nonce())
    elif what == "no connection":
        reference = task.reference("kie_nowhere")
    elif what == "another connection":
        reference = task.reference("kie_other")
    elif what == "not of type kie":
        reference = task.reference("postgres_other")
    elif what == "a connection with a bad field":
        reference = task.reference("kie_bad")
    elif what == "an old key":
        reference = task.reference(endpoint=Endpoint("old-key", webhook_secret="old-secret"))
    elif what == "no reference":
        reference = ""
    elif what == "not well formed":
        reference += "/"
    return reference, options


@pytest.mark.parametrize(
    "what",
    [
        "mac",
        "another task's",
        "task moved",
        "nonce moved",
        "no connection",
        "another connection",
        "not of type kie",
        "a connection with a bad field",
        "an old key",
        "no reference",
        "not well formed",
    ],
)
def test_what_is_not_known_gets_one_and_the_same_answer(receiver, wait, monkeypatch, what):
    connection = {"conn_type": "kie", "password": "another-key", "extra": {"webhook_secret": "another-secret"}}
    monkeypatch.setenv("AIRFLOW_CONN_KIE_OTHER", json.dumps(connection))
    monkeypatch.setenv("AIRFLOW_CONN_POSTGRES_OTHER", json.dumps(connection | {"conn_type": "postgres"}))
    monkeypatch.setenv("AIRFLOW_CONN_KIE_BAD", json.dumps(connection | {"extra": {"request_timeout": "soon"}}))
    task = wait()
    reference, options = forged(task, what)
    response = receiver.call(reference, task.kie_task_id, **options)
    assert answer(response) == NOT_FOUND
    assert (task.state, task.inbox) == ("deferred", None)


@pytest.mark.parametrize(
    "changes",
    [
        {"secret": None},
        {"secret": "another-secret"},
        {"secret": API_KEY},
        {"now": time.time() - webhook.SIGNATURE_SECONDS - 60},
        {"now": time.time() + webhook.SIGNATURE_SECONDS + 600},
        {"headers": {webhook.TIMESTAMP_HEADER: str(int(time.time())), webhook.SIGNATURE_HEADER: "é"}},
        {"headers": webhook.sign(SECRET, OTHER_TASK, time.time())},
    ],
    ids=["missing", "of another secret", "of the API key", "replayed", "of tomorrow", "nonsense", "of another id"],
)
def test_a_wrong_signature(receiver, wait, changes):
    task = wait()
    response = receiver.call(task.reference(), task.kie_task_id, **changes)
    assert answer(response) == (401, {"code": 401, "msg": "not signed by Kie"})
    assert (task.state, task.inbox) == ("deferred", None)


def test_after_a_rotation_the_old_references_are_worth_nothing(receiver, wait, monkeypatch):
    task = wait()
    assert receiver.call(task.reference(), task.kie_task_id).status_code == 200
    monkeypatch.setattr(callbacks, "SHARED_SECONDS", 0.0)  # a minute later
    connection = {"conn_type": "kie", "password": API_KEY, "extra": {"webhook_secret": "new-secret"}}
    monkeypatch.setenv(f"AIRFLOW_CONN_{CONN_ID.upper()}", json.dumps(connection))
    assert answer(receiver.call(task.reference(), task.kie_task_id)) == NOT_FOUND
    new = task.reference(endpoint=Endpoint(API_KEY, webhook_secret="new-secret"))
    assert receiver.call(new, task.kie_task_id, secret="new-secret").status_code == 200


def test_a_call_to_try_the_receiver_out_is_known_by_its_task(receiver, wait):
    task = wait()
    reference = task.reference(ti_id=webhook.TEST_TI_ID)
    assert answer(receiver.call(reference, OTHER_TASK)) == SUCCESS
    assert receiver.call(reference, OTHER_TASK, secret="another").status_code == 401
    assert receiver.call(reference[:-1] + "_", OTHER_TASK).status_code == 404


# ---- what nobody sends by accident


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not JSON",
        b"\xff\xfe",
        b"[]",
        b"17",
        b"null",
        b"{}",
        b'{"data": {}}',
        b'{"data": {"taskId": null}}',
        b'{"data": {"taskId": 17}}',
        b'{"data": {"taskId": ""}}',
        b'{"data": {"taskId": ["x"]}}',
        b'{"data": {"taskId": "a b"}}',
        b'{"taskId": "' + b"x" * 201 + b'"}',
        b'{"taskId": "\\u0000"}',
        b"[" * 200_000,
        b"9" * 200_000,
    ],
)
def test_a_body_without_a_task(receiver, wait, body):
    task = wait()
    assert answer(receiver.post(task.reference(), data=body)) == (400, {"code": 400, "msg": "not a callback of Kie"})


def sent_until_refused(receiver, reference, *, announced):
    """Send 10 MB as far as the receiver lets; return the status and how much went out."""
    parts = urlsplit(receiver.url)
    size = f"Content-Length: {10_000_000}" if announced else "Transfer-Encoding: chunked"
    head = f"POST {parts.path}/kie/callbacks/{reference} HTTP/1.1\r\nHost: x\r\n{size}\r\n\r\n"
    piece = b"x" * 65536 if announced else b"10000\r\n" + b"x" * 65536 + b"\r\n"
    sent = 0
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        connection.sendall(head.encode())
        with contextlib.suppress(OSError):
            while sent < 10_000_000:
                connection.sendall(piece)
                sent += len(piece)
                time.sleep(0.005)
        with contextlib.suppress(OSError):
            return connection.recv(65536)[9:12].decode(), sent
    return "", sent


@pytest.mark.parametrize("announced", [True, False])
def test_ten_megabytes_are_refused_and_not_read(receiver, wait, announced):
    task = wait()
    status, sent = sent_until_refused(receiver, task.reference(), announced=announced)
    assert status in ("413", "")  # the connection may be reset before the answer is read
    assert sent < 5_000_000
    assert (task.state, task.inbox) == ("deferred", None)


@pytest.mark.parametrize("announced", [True, False])
def test_what_is_too_large_is_told(receiver, wait, announced):
    body = b"x" * (callbacks.MAX_BODY + 1)
    response = receiver.post(wait().reference(), data=body if announced else iter([body]))
    assert answer(response) == (413, {"code": 413, "msg": "more than 262144 bytes"})


@pytest.mark.parametrize(("mac", "announced", "status"), [("A" * 22, 1000, 404), ("", 10_000_000, 413)])
def test_a_body_that_is_not_wanted_is_not_waited_for(receiver, wait, mac, announced, status):
    parts, reference = urlsplit(receiver.url), wait().reference()
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
    with contextlib.closing(connection):
        connection.putrequest("POST", f"{parts.path}/kie/callbacks/{reference[: -len(mac) or None]}{mac}")
        connection.putheader("Content-Length", str(announced))
        connection.endheaders()  # and never a body
        answer = connection.getresponse()
        assert (answer.status, answer.headers["connection"]) == (status, "close")


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_only_post_is_answered(receiver, wait, method):
    task = wait()
    response = receiver.session.request(method, f"{receiver.url}/kie/callbacks/{task.reference()}", timeout=10)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert task.state == "deferred"


@pytest.mark.parametrize("path", ["docs", "redoc", "openapi.json", "docs/oauth2-redirect", "", "reference"])
def test_nothing_is_told_of_the_receiver(receiver, path):
    assert receiver.session.get(f"{receiver.url}/kie/callbacks/{path}", timeout=10).status_code == 405
    assert answer(receiver.post(path)) == NOT_FOUND


# ---- a crowd


def in_a_crowd(receiver, calls):
    """Make many calls at once, while another address answers as ever; return how often each status came."""
    is_done = threading.Event()

    def ping():
        while not is_done.is_set():
            assert_answers_elsewhere(receiver)

    with ThreadPoolExecutor(1) as other, ThreadPoolExecutor(100) as pool:
        pinging = other.submit(ping)
        try:
            statuses = Counter(call.result().status_code for call in [pool.submit(call) for call in calls])
        finally:
            is_done.set()
        pinging.result()
    return statuses


def assert_answers_elsewhere(receiver):
    assert receiver.session.get(f"{receiver.url}/ping", timeout=30).text == "here"


def test_a_thousand_callbacks_at_once(receiver, wait):
    tasks = [wait() for _ in range(5)]
    sent = [(task.reference(nonce=f"{n:016x}"), task.kie_task_id) for n in range(200) for task in tasks]
    calls = [lambda each=each: receiver.call(*each) for each in sent]
    statuses = in_a_crowd(receiver, calls)
    assert set(statuses) <= {200, 503}
    assert {task.state for task in tasks} == {"scheduled"}


def test_a_slow_database_holds_up_callbacks_only(receiver, wait, monkeypatch):
    from kie_provider.plugin import wake

    real, at_once, most, is_back = wake.deliver, 0, 0, threading.Event()

    def slow(*args):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        assert is_back.wait(30)
        at_once -= 1
        return real(*args)

    monkeypatch.setattr(wake, "deliver", slow)
    monkeypatch.setattr(callbacks, "_database", callbacks._Threads(2, waiting=4))
    task = wait()
    with ThreadPoolExecutor(30) as pool:
        calls = [pool.submit(receiver.call, task.reference(), task.kie_task_id) for _ in range(30)]
        wait_until(lambda: sum(call.done() for call in calls) == 24)
        for _ in range(10):
            assert_answers_elsewhere(receiver)
        is_back.set()
    assert Counter(call.result().status_code for call in calls) == {200: 6, 503: 24}
    assert most == 2


def test_a_database_that_is_away_is_our_fault(receiver, wait, monkeypatch, caplog):
    from sqlalchemy.exc import OperationalError

    from kie_provider.plugin import wake

    def away(*args, **kwargs):
        raise OperationalError("SELECT 1", {}, Exception("connection refused"))

    task = wait()
    with monkeypatch.context() as patch:
        patch.setattr(wake, "create_session", away)
        response = receiver.call(task.reference(), task.kie_task_id)
    assert answer(response) == (500, {"code": 500, "msg": "internal error"})
    assert "connection refused" in caplog.text
    assert answer(receiver.call(task.reference(), task.kie_task_id)) == SUCCESS  # as Kie repeats it


def test_while_the_database_is_away_no_connection_is_taken_for_unknown(receiver, wait, monkeypatch):
    """Airflow finds no connection then, and does not say why."""
    from airflow.models.connection import Connection
    from airflow.providers.common.compat.sdk import AirflowNotFoundException
    from sqlalchemy.exc import OperationalError

    def not_found(conn_id):
        raise AirflowNotFoundException(conn_id)

    def away(*args, **kwargs):
        raise OperationalError("SELECT 1", {}, Exception("connection refused"))

    task = wait()
    with monkeypatch.context() as patch:
        patch.setattr(Connection, "get_connection_from_secrets", not_found)
        patch.setattr("airflow.utils.session.create_session", away)
        assert receiver.call(task.reference(), task.kie_task_id).status_code == 500
    assert answer(receiver.call(task.reference(), task.kie_task_id)) == SUCCESS


@pytest.fixture
def looked_up(monkeypatch):
    """The connections that were read, as a secrets backend sees them."""
    from airflow.models.connection import Connection

    names, real = [], Connection.get_connection_from_secrets

    def get_connection_from_secrets(conn_id):
        names.append(conn_id)
        return real(conn_id)

    monkeypatch.setattr(Connection, "get_connection_from_secrets", get_connection_from_secrets)
    return names


def test_a_connection_is_read_once_in_a_minute(receiver, wait, looked_up):
    task = wait()
    statuses = in_a_crowd(receiver, [lambda: receiver.call(task.reference(), task.kie_task_id)] * 100)
    assert (statuses, looked_up) == ({200: 100}, [CONN_ID])


def test_unknown_connections_by_the_thousand_are_not_looked_up_each(receiver, wait, looked_up, monkeypatch):
    task = wait()
    assert receiver.call(task.reference(), task.kie_task_id).status_code == 200
    calls = [lambda n=n: receiver.call(task.reference(f"nowhere_{n}"), task.kie_task_id) for n in range(1000)]
    statuses = in_a_crowd(receiver, calls)
    assert statuses == {404: callbacks.MAX_UNKNOWN, 503: 1000 - callbacks.MAX_UNKNOWN}
    assert len(looked_up) == 1 + callbacks.MAX_UNKNOWN
    assert receiver.call(task.reference("nowhere_0"), task.kie_task_id).status_code in (404, 503)
    assert receiver.call(task.reference(), task.kie_task_id).status_code == 200  # who is known is not affected
    monkeypatch.setattr(callbacks, "SHARED_SECONDS", 0.0)  # a minute later
    assert receiver.call(task.reference("nowhere_at_all"), task.kie_task_id).status_code == 404


def test_what_is_not_well_formed_is_never_looked_up(receiver, wait, looked_up):
    task = wait()
    for reference in ("", "a/b", task.reference("nowhere")[:-1], task.reference("nowhere") + "x", "%2e%2e/%2e%2e/etc"):
        assert receiver.call(reference, task.kie_task_id).status_code == 404
    assert looked_up == []


# ---- another Airflow


@pytest.mark.parametrize("error", [ImportError("no such name"), AttributeError("created_date"), TypeError("session")])
def test_where_airflow_has_changed_inside_tasks_are_left_to_poll(receiver, wait, monkeypatch, caplog, error):
    from kie_provider.plugin import wake

    def changed(*args, **kwargs):
        raise error

    monkeypatch.setattr(callbacks, "_is_said", False)
    monkeypatch.setattr(wake, "handle_event_submit", changed)
    task = wait()
    for _ in range(3):
        assert answer(receiver.call(task.reference(), task.kie_task_id)) == SUCCESS
    assert (task.state, task.is_noted) == ("deferred", True)
    assert caplog.text.count("tasks are not woken, they poll") == 1


def test_where_airflow_keeps_no_task_states_the_task_is_woken_all_the_same(receiver, wait, monkeypatch):
    from kie_provider.plugin import wake

    monkeypatch.setattr(wake, "get_state_backend", None)
    task = wait()
    assert answer(receiver.call(task.reference(), task.kie_task_id)) == SUCCESS
    assert (task.state, task.inbox) == ("scheduled", None)


# ---- logs


def test_no_secret_is_logged(receiver, wait, caplog):
    caplog.set_level(logging.DEBUG)
    task = wait()
    mac = task.reference()[-22:]
    bad = task.reference()[:-1] + "_"
    receiver.call(task.reference(), task.kie_task_id)
    receiver.call(task.reference() + "/", task.kie_task_id)
    receiver.call(task.reference(), task.kie_task_id, secret=None)
    receiver.call(bad, task.kie_task_id)
    receiver.post(task.reference(), data=b"x" * 300_000)
    receiver.session.get(f"{receiver.url}/kie/callbacks/{task.reference()}", timeout=10)
    lines = [f"{record.name} {record.getMessage()} {record.exc_text}" for record in caplog.records]
    # What this test's own client logs is not the receiver's.
    lines = [line for line in lines if not line.startswith("urllib3")]
    assert len([line for line in lines if '"POST /air/kie/callbacks/reference HTTP/1.1"' in line]) == 5, lines
    for secret in (API_KEY, SECRET, mac, mac[:-1], task.nonce):
        assert not [line for line in lines if secret in line]
