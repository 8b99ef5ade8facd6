"""A deferred task that Kie calls back for: what the trigger, the worker and the log make of it."""

from __future__ import annotations

import json
import time
from datetime import datetime, timezone
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from kie_provider.hooks.kie import KieHook
from kie_provider.operators.flux2 import Flux2GenerateImageOperator
from kie_provider.sensors.flux2 import Flux2TaskSensor
from kie_provider.triggers.kie import KieTaskTrigger
from tests.support.airflow_inprocess import run_task

CALLED = {"status": "called"}
STUCK = {"on": "createTask", "do": "stuck"}
BASE_URL = "https://airflow.example.com"


@pytest.fixture
def kie(kie_emulator, monkeypatch):
    extra = {**kie_emulator.connection["extra"], "callback_base_url": BASE_URL}
    monkeypatch.setenv("AIRFLOW_CONN_KIE_DEFAULT", json.dumps({**kie_emulator.connection, "extra": extra}))
    return kie_emulator


@pytest.fixture
def ti():
    """A task instance, and what it has pushed."""
    pushed = {}

    def pull(task_ids, map_indexes, key):
        return pushed.get(key)

    ids = {"dag_id": "d", "run_id": "r", "task_id": "it", "map_index": -1, "try_number": 1, "max_tries": 1}
    return SimpleNamespace(
        **ids,
        id="01a21695-80c7-7c36-be5a-8c5d768553de",
        start_date=datetime.now(timezone.utc),
        pushed=pushed,
        xcom_push=pushed.__setitem__,
        xcom_pull=pull,
    )


def sensor(kie_task_id):
    return Flux2TaskSensor(task_id="it", kie_task_id=kie_task_id, deferrable=True)


def generate(**kwargs):
    return Flux2GenerateImageOperator(task_id="it", prompt="a red fox", deferrable=True, **kwargs)


def deferred(call, *args):
    with pytest.raises(TaskDeferred) as caught:
        call(*args)
    return caught.value.trigger


def create(kie, *faults):
    for fault in faults:
        kie.fault(fault)
    return KieHook().create_task(
        "flux-2/pro-text-to-image", {"prompt": "a red fox", "aspect_ratio": "1:1", "resolution": "1K"}
    )


def test_generate_expects_a_call_and_polls_when_it_comes(kie, ti):
    kie.fault(STUCK)
    context = {"ti": ti}
    trigger = deferred(generate().execute, context)
    assert trigger.callback == "expected"

    again = deferred(generate().execute_complete, context, CALLED)

    assert again.callback == "came"
    assert again.kie_task_id == trigger.kie_task_id


def test_a_call_for_a_task_that_has_succeeded_ends_the_wait(kie, ti, caplog, capsys):
    kie.fault({"on": "recordInfo", "do": "not_visible"})
    context = {"ti": ti}
    trigger = deferred(generate().execute, context)
    time.sleep(0.2)  # the image takes 0.05 s
    assert generate().execute_complete(context, CALLED)["kie_task_id"] == trigger.kie_task_id
    assert f"Kie has called back for Kie task {trigger.kie_task_id}" in caplog.text + capsys.readouterr().out


def test_with_a_url_of_the_author_nothing_is_expected(kie, ti):
    kie.fault(STUCK)
    operator = generate(callback_url="https://mine.example.com/hook")
    assert deferred(operator.execute, {"ti": ti}).callback is None


def test_a_sensor_says_that_it_waits(kie, ti):
    kie_task_id = create(kie, STUCK)
    trigger = deferred(sensor(kie_task_id).execute, {"ti": ti})
    assert trigger.callback == "expected"
    assert ti.pushed == {f"kie_wait_{kie_task_id}": True}
    assert deferred(sensor(kie_task_id).execute_complete, {"ti": ti}, CALLED).callback == "came"


def test_a_sensor_without_callbacks_says_nothing(kie_emulator, ti):
    kie_task_id = create(kie_emulator, STUCK)
    assert deferred(sensor(kie_task_id).execute, {"ti": ti}).callback is None
    assert ti.pushed == {}


@pytest.fixture
def soon(monkeypatch):
    """No test waits for ten seconds."""
    monkeypatch.setattr("kie_provider.triggers.kie.FIRST_POLL_AFTER", 0.0)
    monkeypatch.setattr("kie_provider.client.polling.BACKSTOP_POLLS", (0.5, 1.0))


async def fire(kie_task_id, callback="expected"):
    trigger = KieTaskTrigger("kie_default", kie_task_id, 0.1, time.time() + 30, callback)
    trigger.task_instance = SimpleNamespace(task_id="it", dag_id="d", run_id="r", map_index=-1, try_number=1)
    return [event.payload async for event in trigger.run()]


async def test_without_a_call_a_poll_ends_the_wait(kie, soon, caplog, capsys):
    kie_task_id = create(kie)
    began = time.monotonic()
    [event] = await fire(kie_task_id)
    assert event["status"] == "success"
    assert 0.4 < time.monotonic() - began < 5
    assert "no callback" not in caplog.text + capsys.readouterr().out  # it may be on its way


async def test_and_says_so_if_the_call_is_overdue(kie, soon, monkeypatch, caplog, capsys):
    monkeypatch.setattr("kie_provider.triggers.kie.LATE_CALLBACK_SECONDS", 0.0)
    kie_task_id = create(kie)
    await fire(kie_task_id)
    assert (
        f"Kie task {kie_task_id} has ended, and no callback to {BASE_URL} came" in caplog.text + capsys.readouterr().out
    )


async def test_polls_are_rare_meanwhile(kie, soon):
    kie_task_id = create(kie, STUCK)
    trigger = KieTaskTrigger("kie_default", kie_task_id, 0.1, time.time() + 3, "expected")
    trigger.task_instance = SimpleNamespace(task_id="it", dag_id="d", run_id="r", map_index=-1, try_number=1)
    [event] = [event.payload async for event in trigger.run()]
    assert event["error"]["type"] == "KieTaskTimeoutError"
    polls = [each for each in kie.requests() if each["path"].endswith("recordInfo")]
    assert len(polls) in (2, 3)  # after half a second, after one if the machine is not busy, and at the deadline


@pytest.mark.parametrize("state", ["queued", "failed", None])
async def test_a_trigger_that_a_call_has_replaced_keeps_quiet(kie, monkeypatch, caplog, capsys, state):
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    def states(**_):
        if state is None:
            raise RuntimeError("no answer")
        return {"r": {"it": state}}

    monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", states)
    trigger = KieTaskTrigger("kie_default", "e" * 32, callback="expected")
    trigger.task_instance = SimpleNamespace(task_id="it", dag_id="d", run_id="r", map_index=-1, try_number=1)
    await trigger.on_kill()
    assert ("keeps running" in caplog.text + capsys.readouterr().out) is (state != "queued")


def test_in_a_dag_run_nothing_changes_where_nobody_calls(kie, soon):
    outcome = run_task(lambda **kw: Flux2GenerateImageOperator(prompt="a red fox", deferrable=True, **kw))
    assert outcome.result["state"] == "success", outcome.error
    [created] = [each["json"] for each in kie.requests() if each["path"].endswith("createTask")]
    assert created["callBackUrl"].startswith(f"{BASE_URL}/kie/callbacks/kie_default/")
