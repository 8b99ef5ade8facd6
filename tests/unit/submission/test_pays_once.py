"""Whatever Airflow does with the writes, and whenever a try dies or is replaced: nothing is paid twice.

A small world, in which hypothesis decides what happens to every single request: a write is carried out and
acknowledged, or the acknowledgement is lost, or it stands still in the database and is carried out at any later time,
in any order, also beside one that was sent again; the try is cleared in that moment, and the next one runs before it
goes on; the process dies before or behind it. The journal, the decision and the submission are the real ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kie_provider.client import retry
from kie_provider.client.errors import KieRateLimitError, KieSubmitUnknownError, KieValidationError
from kie_provider.client.rate_limit import LocalWindow
from kie_provider.execution_timeout import Alarm
from kie_provider.submission.decide import Reattach, Unknown, assign, next_step
from kie_provider.submission.inputs import TaskRequest
from kie_provider.submission.journal import Journal
from kie_provider.submission.submit import Submitter
from tests.support.task_instances import FakeTaskInstance, context_of, store_error

MAX_TRIES_OF_A_TEST = 6


class WorkerDied(BaseException):
    """kill -9."""


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(retry, "backoff", lambda attempt: 0.0)


class World:
    """Airflow's store and Kie's account, and what becomes of each request to them."""

    def __init__(self, draw, fingerprints, run_try):
        self._draw = draw
        self.stopped = None  # why hypothesis gives no more answers
        self.fingerprints = fingerprints
        self.run_try = run_try
        self.values = {}
        self.standing_still = []  # writes that are carried out some time
        self.created = {}  # Kie task id -> fingerprint
        self.received = set()  # of which a worker got the answer
        self.try_number = 0
        self.max_tries = 5
        self.troubles = 12  # so many in one test
        self.dead = set()  # the tries whose processes have died

    def start(self):
        """Start the next try."""
        self.try_number += 1
        self.run_try(self, self.try_number)

    def draw(self, strategy):
        """Ask hypothesis. Once it has had enough, everything dies: what is sent again for ever would never end."""
        if self.stopped:
            raise WorkerDied
        try:
            return self._draw(strategy)
        except BaseException as error:
            self.stopped = error
            raise WorkerDied from error

    def die(self, try_number):
        """Kill the process of a try: nothing of it goes on, however much is under way."""
        self.dead.add(try_number)
        raise WorkerDied

    def check_alive(self, try_number):
        if try_number in self.dead:
            raise WorkerDied

    def happens(self, *what):
        """Choose what happens to a request; mostly nothing special."""
        if self.troubles <= 0 or self.draw(st.integers(0, 5)):
            return None
        self.troubles -= 1
        return self.draw(st.sampled_from(what))

    def some_time_passes(self):
        """Carry out writes that stood still, in any order."""
        while self.standing_still and self.draw(st.booleans()):
            key, text = self.standing_still.pop(self.draw(st.integers(0, len(self.standing_still) - 1)))
            self.values[key] = text

    def is_cleared_now(self):
        """Clear the task and let the next try run to its end, while this one stands still."""
        if self.try_number < MAX_TRIES_OF_A_TEST:
            self.max_tries += self.draw(st.booleans())
            self.start()


class Store:
    """The store as one try sees it."""

    def __init__(self, world, try_number):
        self.world, self.try_number = world, try_number

    def get(self, key):
        world = self.world
        world.check_alive(self.try_number)
        world.some_time_passes()
        match world.happens("dies", "away", "cleared"):
            case "dies":
                world.die(self.try_number)
            case "away":
                raise store_error(500)
            case "cleared":
                world.is_cleared_now()
        if self.try_number != world.try_number:
            return None  # Airflow does not tell a try that was replaced from a key that is not there
        return json.loads(world.values[key]) if key in world.values else None

    def set(self, key, value, *, retention):
        world = self.world
        world.check_alive(self.try_number)
        world.some_time_passes()
        if self.try_number != world.try_number:
            raise store_error(404)
        text = json.dumps(value)
        assert world.values.get(key, text) == text, f"{key} gets a second value"
        happens = world.happens("dies before", "dies behind", "lost", "late", "late and again", "cleared", "away")
        if happens == "dies before":
            world.die(self.try_number)
        if happens == "away":
            raise store_error(None)
        if happens in ("late", "late and again"):
            world.standing_still.append((key, text))
            if happens == "late":
                raise store_error(None)
        if happens == "cleared":  # behind the check that the try is the current one
            world.is_cleared_now()
        world.values[key] = text
        if happens == "dies behind":
            world.die(self.try_number)
        if happens == "lost":
            raise store_error(None)


class Kie:
    """The hook and its client."""

    kie_conn_id = "kie_default"
    endpoint = SimpleNamespace(host="https://api.kie.ai")

    def __init__(self, world, try_number):
        self.world, self.try_number = world, try_number

    def get_conn(self):
        return self

    rate_limit_window = LocalWindow(10**9)

    def create_task_once(self, body, sent):
        world = self.world
        if self.try_number in world.dead and world.draw(st.booleans()):
            raise WorkerDied  # with the process, before it was sent
        happens = world.happens("dies before", "dies behind", "lost", "429", "422", "cleared")
        if happens == "dies before":
            world.die(self.try_number)
        if happens == "429":
            raise KieRateLimitError("too many", code=429)
        if happens == "422":
            raise KieValidationError("no foxes", code=422)
        kie_task_id = f"id-{len(world.created)}"
        world.created[kie_task_id] = body["input"]["prompt"]
        if happens == "dies behind":
            world.die(self.try_number)
        world.check_alive(self.try_number)  # sent, but nobody is there for the answer
        if happens == "lost":
            raise KieSubmitUnknownError("the connection broke")
        if happens == "cleared":
            world.is_cleared_now()
        world.received.add(kie_task_id)
        return kie_task_id


def open_journal(world, try_number):
    """Open the journal as the process of a try does."""
    ti = FakeTaskInstance(try_number=try_number, max_tries=world.max_tries)
    return Journal(context_of(ti, Store(world, try_number)))


def run_one(world, try_number):
    """What an operator of one image does in a try."""
    journal = open_journal(world, try_number)
    [fingerprint] = world.fingerprints
    try:
        journal.read()
        match next_step(journal.records, fingerprint, max_tries=world.max_tries):
            case Unknown():
                return
            case Reattach(record):
                journal.begin(journal.records, [record])
            case _:
                journal.begin(journal.records)
                order(world, journal, [fingerprint])
    except (
        WorkerDied,
        RuntimeError,
        AirflowFailException,
        KieSubmitUnknownError,
        KieValidationError,
        KieRateLimitError,
    ):
        return


def run_many(world, try_number):
    """What an operator of many images does in a try."""
    journal = open_journal(world, try_number)
    try:
        journal.read()
        claimed, kept = assign(journal.records, world.fingerprints, max_tries=world.max_tries)
        journal.begin(kept, claimed)
        missing = [each for each, record in zip(world.fingerprints, claimed, strict=True) if record is None]
        order(world, journal, missing, KieSubmitUnknownError, KieValidationError)
        journal.summarize()
    except (WorkerDied, RuntimeError, AirflowFailException, KieRateLimitError):
        return


def order(world, journal, fingerprints, *own_errors):
    """Submit some at once; the first error that is not one item's own ends it."""

    async def submit_all():
        with Submitter(journal, Kie(world, journal.try_number), Alarm()) as submitter:
            tasks = [asyncio.ensure_future(submitter.submit(request_of(each))) for each in fingerprints]
            try:
                for task in tasks:
                    with contextlib.suppress(*own_errors):
                        await task
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    outer = asyncio._get_running_loop()  # of a try that is cleared in this moment
    asyncio._set_running_loop(None)
    try:
        asyncio.run(submit_all())
    finally:
        asyncio._set_running_loop(outer)


def request_of(fingerprint):
    request = TaskRequest({"model": "m", "input": {"prompt": fingerprint}})
    vars(request)["fingerprint"] = fingerprint  # as if it were computed
    return request


@pytest.mark.parametrize(("run_try", "fingerprints"), [(run_one, "a"), (run_many, "a"), (run_many, "abcde")])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_nothing_is_paid_twice_and_nothing_is_forgotten(run_try, fingerprints, data, monkeypatch):
    def in_turns(_, call):
        """Answer in any order, but in this thread: what happens must be the same each time."""

        async def answer():
            for _ in range(world.draw(st.integers(0, 5)) if len(fingerprints) > 1 else 0):
                await asyncio.sleep(0)
            return call()

        return asyncio.ensure_future(answer())

    monkeypatch.setattr(Submitter, "_in_thread", in_turns)
    monkeypatch.setattr("kie_provider.submission.journal.SUBMISSIONS_PER_SUMMARY", 2)
    world = World(data.draw, fingerprints, run_try)
    with contextlib.suppress(WorkerDied):
        while world.try_number < MAX_TRIES_OF_A_TEST:
            world.start()
        world.troubles = 0
        while world.standing_still:
            world.some_time_passes()
    if world.stopped:
        raise world.stopped

    assert max(Counter(world.created.values()).values(), default=0) <= 1, (world.created, world.values)
    # A last try, which nothing happens to, knows all that was acknowledged, and neither pays again nor is stuck in a
    # journal that makes no sense.
    world.try_number += 1
    journal = open_journal(world, world.try_number)
    journal.read()
    known = {record.kie_task_id for record in journal.records if record.state == "submitted"}
    doubts = {record.fingerprint for record in journal.records if record.state == "unknown"}
    assert {world.created[each] for each in world.created if each not in known} <= doubts
    claimed, _ = assign(journal.records, fingerprints, max_tries=world.max_tries)
    missing = {each for each, record in zip(fingerprints, claimed, strict=True) if record is None}
    assert not missing & set(world.created.values())
