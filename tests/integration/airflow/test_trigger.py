"""The trigger on its event loop, as the triggerer runs it."""

from __future__ import annotations

import asyncio
import json
import time

import blockbuster
import pytest

from kie_provider.client import transport
from kie_provider.triggers.batch import KieBatchTrigger
from kie_provider.triggers.kie import FIRST_POLL_AFTER, KieTaskTrigger, read_event
from tests.support.kie import INTERNAL, NO_URLS, STUCK
from tests.support.messages import assert_tells
from tests.support.task_instances import as_in_the_triggerer, fire
from tests.support.versions import finds_no_connection
from tests.support.waits import wait_until_async


def trigger_for(kie_task_id, seconds=30.0, poll_interval=0.1):
    """Make the trigger, send it through Airflow's serialisation, and give it a task instance as the triggerer does."""
    trigger = KieTaskTrigger("kie_default", kie_task_id, poll_interval, deadline=time.time() + seconds)
    path, kwargs = trigger.serialize()
    assert path == "kie_provider.triggers.kie.KieTaskTrigger"
    serde = airflow_serialisation()
    stored = json.loads(json.dumps(serde.serialize(kwargs)))
    restored = KieTaskTrigger(**serde.deserialize(stored))
    assert restored.serialize() == trigger.serialize()
    return as_in_the_triggerer(restored)


def airflow_serialisation():
    try:
        from airflow.sdk import serde
    except ImportError:  # Airflow 3.1
        from airflow.serialization.serialized_objects import BaseSerialization as serde  # noqa: N813
    return serde


async def test_success(create):
    kie_task_id = create()

    event = await fire(trigger_for(kie_task_id))

    assert read_event(event, kie_task_id)["kie_task_id"] == kie_task_id
    assert not transport._shared_sessions


@pytest.mark.parametrize("make", [KieTaskTrigger, lambda conn, id_, **kw: KieBatchTrigger(conn, [id_], **kw)])
@pytest.mark.parametrize("seconds", [30.0, 0.0])
async def test_no_trigger_fires_before_the_scheduler_has_seen_the_worker_end(create, monkeypatch, make, seconds):
    assert FIRST_POLL_AFTER == 3.0
    monkeypatch.setattr("kie_provider.triggers.kie.FIRST_POLL_AFTER", 0.5)
    kie_task_id = create()
    started_at = time.monotonic()

    event = await fire(make("kie_default", kie_task_id, poll_interval=0.01, deadline=time.time() + seconds))

    assert event["status"] in ("success", "ended")
    assert time.monotonic() - started_at >= 0.5


async def test_without_task_instance_as_under_dag_test(create):
    trigger = trigger_for(create())
    trigger.task_instance = None

    assert (await fire(trigger))["status"] == "success"


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (INTERNAL, "KieTaskFailedError"),
        (NO_URLS, "KieResultError"),
        (STUCK, "KieTaskTimeoutError"),
        ({"on": "recordInfo", "do": "code", "code": 401, "msg": "No", "times": None}, "KieAuthError"),
    ],
)
async def test_errors_become_events(create, fault, error):
    event = await fire(trigger_for(create(fault), seconds=0.4))

    assert (event["status"], event["error"]["type"]) == ("error", error)


@finds_no_connection
async def test_a_connection_that_airflow_does_not_find_for_a_while(create, monkeypatch):
    """So it says while its database is away."""
    kie_task_id = create()
    with monkeypatch.context() as away:
        away.delenv("AIRFLOW_CONN_KIE_DEFAULT")
        waiting = asyncio.create_task(fire(trigger_for(kie_task_id)))
        await asyncio.sleep(0.5)
        assert not waiting.done()

    assert (await waiting)["status"] == "success"


async def test_a_hundred_triggers_share_one_session_and_never_block_the_loop(create, monkeypatch):
    made = []
    new_session = transport._new_async_session
    monkeypatch.setattr(transport, "_new_async_session", lambda trusted: made.append(new_session(trusted)) or made[-1])
    kie_task_id = create()
    # Connections from environment variables are read without I/O; what is watched is our own code and HTTP.
    with blockbuster.blockbuster_ctx("kie_provider"):
        async with transport.shared_session():  # they need not overlap
            events = await asyncio.gather(*(fire(trigger_for(kie_task_id)) for _ in range(100)))

    assert {event["status"] for event in events} == {"success"}
    assert len(made) == 1
    assert made[0].closed


async def test_cancelled_triggers_give_the_session_back(create):
    kie_task_id = create(STUCK)
    tasks = [asyncio.create_task(fire(trigger_for(kie_task_id))) for _ in range(3)]
    [shared] = await wait_until_async(
        lambda: [each for each in transport._shared_sessions.values() if each.users == len(tasks)]
    )

    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    assert not transport._shared_sessions
    assert shared.session.closed


async def test_an_abandoned_generator_holds_no_session(create):
    events = trigger_for(create()).run()
    assert (await anext(events)).payload["status"] == "success"
    assert not transport._shared_sessions
    await events.aclose()


def test_arguments_hold_no_secret(kie_emulator):
    trigger = trigger_for("abc")

    assert kie_emulator.api_key not in json.dumps(trigger.serialize())
    assert kie_emulator.api_key not in repr(trigger)


async def test_on_kill_says_that_the_task_goes_on_and_asks_nothing(monkeypatch, caplog, capsys):
    """A question can take longer than Airflow gives a trigger that is ended, above all when many are."""

    def ask(**where):
        raise AssertionError("asked")

    monkeypatch.setattr("airflow.sdk.execution_time.task_runner.RuntimeTaskInstance.get_task_states", ask)

    await trigger_for("kie-1").on_kill()

    assert_tells(caplog.text + capsys.readouterr().out, "Kie cannot cancel tasks", "Kie task kie-1", "billed")
