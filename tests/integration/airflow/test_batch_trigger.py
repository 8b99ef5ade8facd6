"""The trigger of a batch on its event loop, as the triggerer runs it."""

from __future__ import annotations

import asyncio
import time

import blockbuster
import pytest

from kie_provider.client import transport
from kie_provider.client.errors import KieServerError, KieTaskFailedError
from kie_provider.triggers import batch
from kie_provider.triggers.batch import KieBatchTrigger, read_error, should_resume
from tests.support.kie import INTERNAL, STUCK
from tests.support.messages import assert_tells
from tests.support.task_instances import as_in_the_triggerer, fire
from tests.support.waits import wait_until_async


def trigger_for(kie_task_ids, seconds=30.0):
    return as_in_the_triggerer(KieBatchTrigger("kie_default", kie_task_ids, 0.1, deadline=time.time() + seconds))


@pytest.mark.parametrize(
    ("ended", "total", "seconds", "expected"),
    [
        (100, 100, 0, True),
        (99, 100, 59.9, False),
        (25, 100, 60, True),
        (24, 100, 60, False),
        (24, 100, 6000, False),
        (1, 3, 60, True),
        (0, 1, 6000, False),
        (1, 1, 0, True),
    ],
)
def test_when_the_worker_is_called(ended, total, seconds, expected):
    assert should_resume(ended, total, seconds) is expected


async def test_all_have_ended(create):
    kie_task_ids = [create() for _ in range(3)]

    with blockbuster.blockbuster_ctx("kie_provider"):
        event = await fire(trigger_for(kie_task_ids))

    assert event == {"status": "ended", "ended": 3, "running": 0, "error": None}
    assert not transport._shared_sessions


async def test_failed_ones_have_ended_too(create):
    kie_task_ids = [create(INTERNAL), create()]

    event = await fire(trigger_for(kie_task_ids))

    assert (event["ended"], event["running"]) == (2, 0)
    assert isinstance(read_error(event), KieTaskFailedError)


async def test_a_quarter_is_enough_after_a_while(create, monkeypatch):
    monkeypatch.setattr(batch, "RESUME_SECONDS", 0.5)
    kie_task_ids = [create(), *(create(STUCK) for _ in range(3))]
    began = time.monotonic()

    event = await fire(trigger_for(kie_task_ids))

    assert (event["ended"], event["running"]) == (1, 3)
    assert time.monotonic() - began >= 0.5
    assert not transport._shared_sessions


async def test_less_is_not_enough_until_the_deadline(create, monkeypatch):
    monkeypatch.setattr(batch, "RESUME_SECONDS", 0.1)
    kie_task_ids = [create(), *(create(STUCK) for _ in range(4))]

    event = await fire(trigger_for(kie_task_ids, seconds=1))

    assert event["ended"] >= 2
    assert read_error(event).summary == "Gave up waiting for the Kie.ai task"


async def test_looks_at_the_same_time_are_bounded(create, monkeypatch):
    monkeypatch.setattr(batch, "PARALLEL_POLLS", 2)
    kie_task_id = create()
    under_way, most = [], []
    send = transport.RepeatedGet.send

    async def counted(*arguments):
        under_way.append(arguments)
        most.append(len(under_way))
        try:
            await asyncio.sleep(0.01)
            return await send(*arguments)
        finally:
            under_way.pop()

    monkeypatch.setattr(transport.RepeatedGet, "send", counted)
    event = await fire(trigger_for([kie_task_id] * 20))

    assert event["ended"] == 20
    assert max(most) == 2


async def test_a_cancelled_trigger_leaves_nothing_behind(create):
    trigger = trigger_for([create(STUCK) for _ in range(3)])
    running = asyncio.ensure_future(fire(trigger))
    await wait_until_async(lambda: len(asyncio.all_tasks()) > 4)

    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not transport._shared_sessions


async def test_a_key_that_is_refused_once_is_read_anew_by_every_wait(create, kie_emulator):
    kie_task_ids = [create() for _ in range(4)]
    for kie_task_id in kie_task_ids:
        kie_emulator.fault(
            {"on": "recordInfo", "do": "code", "code": 401, "msg": "No", "match": {"taskId": kie_task_id}}
        )

    assert (await fire(trigger_for(kie_task_ids)))["error"] is None


@pytest.mark.parametrize(
    "event", [None, "done", {}, {"error": {"type": "Nonsense"}}, {"status": "ended", "error": None}]
)
def test_an_event_without_an_error(event):
    assert isinstance(read_error(event), KieServerError)


async def test_on_kill_says_that_the_tasks_go_on(capsys):
    trigger = trigger_for(["a", "b"])

    await trigger.on_kill()

    assert_tells(capsys.readouterr().out, "2 Kie tasks", "billed")
