"""The receiver as Airflow's own API server runs it: logs, locks of the database, and where its settings are shown."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from kie_provider.client import webhook
from kie_provider.client.endpoint import Endpoint
from tests.integration.callbacks.conftest import API_KEY, CONN_ID, HAS_STORE, SECRET, Receiver, Waiting
from tests.support import image_site, postgres
from tests.support.waits import wait_until

SUCCESS = {"code": 200, "msg": "success"}
CONNECTION = {"conn_type": "kie", "password": API_KEY, "extra": {"webhook_secret": SECRET}}
ENV = {f"AIRFLOW_CONN_{CONN_ID.upper()}": json.dumps(CONNECTION)}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with image_site.serve(tmp_path_factory.mktemp("airflow"), env=ENV) as site:
        yield site


def test_it_is_there_and_no_secret_is_in_the_logs(site, wait):
    receiver, task = Receiver(site.url, site.session), wait()
    reference = task.reference()
    assert receiver.call(reference, task.kie_task_id).json() == SUCCESS
    assert (task.state, task.resumed_with) == ("scheduled", {"status": "called"})
    assert receiver.call(reference[:-1] + "_", task.kie_task_id).status_code == 404
    assert receiver.call(reference, task.kie_task_id, secret=None).status_code == 401
    assert receiver.post(reference, data=b"x" * 300_000).status_code == 413
    assert receiver.session.get(f"{site.url}/kie/callbacks/{reference}", timeout=10).status_code == 405
    for path in ("docs", "redoc", "openapi.json"):
        assert receiver.session.get(f"{site.url}/kie/callbacks/{path}", timeout=10).status_code == 405
    # What the command takes for an API server without the receiver.
    assert receiver.session.post(f"{site.url}/kie/nothing/{reference[:40]}", timeout=10).status_code == 405
    log = site.log.read_text()
    assert log.count("/air/kie/callbacks/reference") == 8, log
    assert f"woke {'/'.join(map(str, task.scope))}" in log
    for secret in (API_KEY, SECRET, reference[-22:-1], task.nonce):
        assert secret not in log


def test_airflow_shows_no_webhook_secret(site, wait):
    headers = {"Authorization": f"Bearer {site.tokens['admin']}"}
    address = f"{site.url}/api/v2/connections"
    form = {
        "connection_id": "kie_shown",
        "conn_type": "kie",
        "password": API_KEY,
        "extra": json.dumps({"callback_base_url": "https://airflow.example", "webhook_secret": SECRET}),
    }
    answers = [site.session.post(address, json=form, headers=headers, timeout=60)]
    # Airflow 3.1.0 commits after it has answered.
    wait_until(lambda: site.session.get(f"{address}/kie_shown", headers=headers, timeout=60).ok)
    # What the form sends when only the address was changed.
    form |= {"password": "***", "extra": form["extra"].replace(SECRET, "***").replace("airflow.", "other.")}
    answers += [
        site.session.patch(f"{address}/kie_shown", json=form, headers=headers, timeout=60),
        site.session.get(f"{address}/kie_shown", headers=headers, timeout=60),
    ]
    for answer in answers:
        assert answer.ok, answer.text
        assert "***" in answer.json()["extra"]
        assert SECRET not in answer.text
    assert SECRET not in site.log.read_text()
    # It was kept, and not overwritten with asterisks.
    task, endpoint = wait(), Endpoint(API_KEY, webhook_secret=SECRET)
    call = Receiver(site.url, site.session).call(task.reference("kie_shown", endpoint), task.kie_task_id)
    assert call.json() == SUCCESS
    assert site.session.delete(f"{address}/kie_shown", headers=headers, timeout=60).ok


# ---- locks, which SQLite has not

MAKE_TASKS = """
import dataclasses, json
from tests.support.airflow_inprocess import initialise_database
from tests.integration.callbacks.conftest import _wait
initialise_database()
print("made", json.dumps([dataclasses.astuple(_wait()) for _ in range(3)]))
"""


@pytest.fixture(scope="module")
def busy_site():
    """An API server of two processes on PostgreSQL, that database, and tasks that wait there."""
    if postgres.programs() is None:
        pytest.skip("PostgreSQL is not installed")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o711)  # PostgreSQL has a user of its own
    server = postgres.Postgres(folder / "cluster")
    try:
        server.start()
        database = server.database()
        env = {**ENV, "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database.url, "AIRFLOW__API__WORKERS": "2"}
        root = Path(__file__).resolve().parents[3]
        done = subprocess.run(
            [sys.executable, "-c", MAKE_TASKS],
            env=os.environ | env,
            cwd=root,
            text=True,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        [line] = [line for line in done.stdout.splitlines() if line.startswith("made ")]
        tasks = [Waiting(ti_id, tuple(scope), *rest) for ti_id, scope, *rest in json.loads(line[5:])]
        with image_site.serve(folder, env=env) as site:
            yield site, database, tasks
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def row_of(database, task):
    return database.query("SELECT state, trigger_id FROM task_instance WHERE id = ?", task.ti_id)[0]


def is_noted(database, task):
    """Whether the callback was written down, once, where Airflow has a place for it."""
    count = "SELECT count(*) FROM task_state_store WHERE key = ?"
    return not HAS_STORE or database.query(count, webhook.callback_key(task.nonce)) == [(1,)]


def calls_and_pings(site, task, seconds):
    """Call 30 times while a lock is held; return how long calls and other requests took at most."""

    def timed(send):
        began = time.monotonic()
        answer = send()
        assert answer.status_code == 200, answer.text
        return time.monotonic() - began

    # Each of its own connection: one session's would wait for each other.
    receiver = Receiver(site.url, requests)
    with ThreadPoolExecutor(40) as pool:
        calls = [pool.submit(timed, lambda: receiver.call(task.reference(), task.kie_task_id)) for _ in range(30)]
        pings, until = [], time.monotonic() + seconds
        while not pings or time.monotonic() < until:
            pings.append(timed(lambda: site.session.get(f"{site.url}/api/v2/monitor/health", timeout=30)))
            time.sleep(0.05)
        return max(call.result() for call in calls), max(pings, default=0.0)


def held(database, seconds, statement, *values):
    """Hold the locks of a statement in a thread; return once they are taken."""
    is_taken = threading.Event()

    def hold():
        with database.transaction() as connection:
            connection.exec_driver_sql(statement, values)
            is_taken.set()
            time.sleep(seconds)

    thread = threading.Thread(target=hold)
    thread.start()
    assert is_taken.wait(10)
    return thread


def test_many_identical_callbacks_over_two_processes_wake_a_task_once(busy_site):
    site, database, (task, *_) = busy_site
    calls_and_pings(site, task, seconds=0)
    assert row_of(database, task) == ("scheduled", None)
    assert site.log.read_text().count(f"woke {task.scope[0]}/") == 1
    assert is_noted(database, task)


def test_the_locked_row_of_a_task_holds_up_nobody(busy_site):
    site, database, (_, task, _) = busy_site
    lock = held(database, 12, "SELECT 1 FROM task_instance WHERE id = %s FOR UPDATE", task.ti_id)
    slowest_call, slowest_ping = calls_and_pings(site, task, seconds=11)
    state, _ = row_of(database, task)
    lock.join()
    assert (slowest_call < 6, slowest_ping < 2, state) == (True, True, "deferred"), (slowest_call, slowest_ping)
    assert is_noted(database, task)  # the next poll finds what it needs


def test_the_locked_row_of_a_run_holds_up_callbacks_only(busy_site):
    site, database, (*_, task) = busy_site
    lock = held(database, 10, "SELECT 1 FROM dag_run WHERE run_id = %s FOR UPDATE", task.scope[1])
    slowest_call, slowest_ping = calls_and_pings(site, task, seconds=9)
    lock.join()
    assert slowest_ping < 2, (slowest_call, slowest_ping)
    assert row_of(database, task)[0] == "scheduled"
