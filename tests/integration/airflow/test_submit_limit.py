"""The account's limit on new tasks: within a process, in a fleet with a real Redis, and when that dies."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from kie_provider.client.errors import KieRateLimitError
from kie_provider.hooks.kie import KieHook
from kie_provider.operators.flux2 import Flux2CreateTaskOperator
from tests.support.kie import INPUT, MODEL, requests_to
from tests.support.redis import running_redis
from tests.support.task_instances import FakeStore, FakeTaskInstance, context_of
from tests.support.versions import durable
from tests.support.waits import wait_until

ROOT = Path(__file__).parents[3]
LIMIT = 5
pytestmark = pytest.mark.parametrize("kie", [{"create_limit": LIMIT}], indirect=True, ids=["5 in 10 s"])
PROGRAM = f"""
import sys
from kie_provider.client.errors import KieRateLimitError
from kie_provider.hooks.kie import KieHook
with KieHook() as hook:
    for _ in range(int(sys.argv[1])):
        while True:
            try:
                hook.create_task(*{(MODEL, INPUT)!r})
                break
            except KieRateLimitError:
                print("refused", flush=True)
"""


@pytest.fixture(scope="module")
def redis_program():
    return shutil.which("redis-server") or pytest.skip("redis-server is not installed")


def refusals(kie):
    """How many createTasks Kie has refused."""
    return len(requests_to(kie)) - len(kie.bill()["tasks"])


def create_in_processes(processes, each):
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(each)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(processes)
    ]


def end(children):
    outputs = [child.communicate(timeout=120)[0] for child in children]
    assert [child.returncode for child in children] == [0] * len(children), outputs
    return "\n".join(outputs)


def test_a_process_waits_for_a_place(kie):
    with KieHook() as hook:
        began = time.monotonic()
        for _ in range(LIMIT + 1):
            hook.create_task(MODEL, INPUT)
        assert time.monotonic() - began > 9
    assert refusals(kie) == 0


def test_and_says_when_that_takes_too_long(kie):
    with KieHook() as hook:
        for _ in range(LIMIT):
            hook.acquire_slot()
        with pytest.raises(KieRateLimitError, match="this account may create 5 tasks in 10 seconds, and has") as caught:
            hook.acquire_slot(timeout=1)
    assert 8 < caught.value.retry_after < 10.1
    assert kie.requests() == []


@durable  # before Airflow 3.3 only a sensor can be rescheduled
def test_an_operator_comes_back_later(kie, monkeypatch):
    from airflow.sdk.exceptions import AirflowRescheduleException

    store = FakeStore()
    with KieHook() as hook:
        for _ in range(LIMIT):
            hook.acquire_slot()
    monkeypatch.setattr("kie_provider.submission.submit.SUBMIT_PATIENCE", 0.5)
    operator = Flux2CreateTaskOperator(task_id="it", prompt="a red fox")
    with pytest.raises(AirflowRescheduleException):
        operator.execute(context_of(FakeTaskInstance(), store))
    assert store.values == {}
    assert kie.requests() == []


def test_a_storage_that_is_none_is_named_before_anything_is_sent(kie, monkeypatch):
    monkeypatch.setenv("AIRFLOW__KIE__RATE_LIMIT_STORAGE", "nosuch://host")
    with pytest.raises(AirflowFailException, match=r"\[kie\] rate_limit_storage: cannot use a storage of nosuch://"):
        Flux2CreateTaskOperator(task_id="it", prompt="a red fox").execute({})
    assert kie.requests() == []


def test_a_fleet_shares_the_window(kie, redis_program, tmp_path, monkeypatch):
    """Four processes, twelve tasks, five places in ten seconds. Else Kie would refuse most of them at first."""
    with running_redis(redis_program, tmp_path) as redis:
        monkeypatch.setenv("AIRFLOW__KIE__RATE_LIMIT_STORAGE", redis.url)
        began = time.monotonic()
        end(create_in_processes(4, 3))
        seconds = time.monotonic() - began
    assert len(kie.bill()["tasks"]) == 12
    assert refusals(kie) <= 5  # on a busy machine a request can take longer than that ten seconds later
    assert seconds > 19


def test_when_redis_dies_nothing_is_lost(kie, redis_program, tmp_path, monkeypatch):
    with running_redis(redis_program, tmp_path) as redis:
        monkeypatch.setenv("AIRFLOW__KIE__RATE_LIMIT_STORAGE", redis.url)
        children = create_in_processes(4, 2)
        wait_until(lambda: kie.bill()["tasks"], timeout=60)
        redis.stop()
        output = end(children)
    assert len(kie.bill()["tasks"]) == 8
    assert "does not answer" in output


def test_without_redis_at_the_start_the_process_counts_alone(kie, monkeypatch, caplog):
    monkeypatch.setenv("AIRFLOW__KIE__RATE_LIMIT_STORAGE", "redis://127.0.0.1:1/0")
    with KieHook() as hook:
        hook.create_task(MODEL, INPUT)
    assert "does not answer" in caplog.text
    assert len(kie.bill()["tasks"]) == 1
