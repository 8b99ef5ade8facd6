"""Whatever Airflow does with the writes, and whenever a try dies or is replaced: nothing is paid twice.

A small world, in which hypothesis decides what happens to every single request: a write is carried out and
acknowledged, or the acknowledgement is lost, or it stands still in the database and is carried out at any later time,
in any order, also beside one that was sent again; the try is cleared in that moment, and the next one runs before it
goes on; the process dies before or behind it. The journal, the decision and the submission are the real ones.
"""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kie_provider.client import retry
from kie_provider.client.errors import KieRateLimitError, KieSubmitUnknownError, KieValidationError
from kie_provider.submission.decide import Reattach, Unknown, assign, next_step
from kie_provider.submission.journal import Journal
from kie_provider.submission.submit import submit
from tests.unit.submission.conftest import airflow_error, context

MAX_TRIES_OF_A_TEST = 6


class WorkerDied(BaseException):
    """kill -9."""


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(retry, "backoff", lambda attempt: 0.0)


class World:
    """Airflow's store and Kie's account, and what becomes of each request to them."""

    def __init__(self, draw, fingerprints, run_try):
        self.draw = draw
        self.fingerprints = fingerprints
        self.run_try = run_try
        self.values = {}
        self.standing_still = []  # writes that are carried out some time
        self.created = {}  # Kie task id -> fingerprint
        self.received = set()  # of which a worker got the answer
        self.try_number = 0
        self.max_tries = 5
        self.troubles = 12  # so many in one test

    def start(self):
        """Start the next try."""
        self.try_number += 1
        self.run_try(self, self.try_number)

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
        world.some_time_passes()
        match world.happens("dies", "away", "cleared"):
            case "dies":
                raise WorkerDied
            case "away":
                raise airflow_error(500)
            case "cleared":
                world.is_cleared_now()
        if self.try_number != world.try_number:
            return None  # Airflow does not tell a try that was replaced from a key that is not there
        return json.loads(world.values[key]) if key in world.values else None

    def set(self, key, value, *, retention):
        world = self.world
        world.some_time_passes()
        if self.try_number != world.try_number:
            raise airflow_error(404)
        text = json.dumps(value)
        assert world.values.get(key, text) == text, f"{key} gets a second value"
        happens = world.happens("dies before", "dies behind", "lost", "late", "late and again", "cleared", "away")
        if happens == "dies before":
            raise WorkerDied
        if happens == "away":
            raise airflow_error(None)
        if happens in ("late", "late and again"):
            world.standing_still.append((key, text))
            if happens == "late":
                raise airflow_error(None)
        if happens == "cleared":  # behind the check that the try is the current one
            world.is_cleared_now()
        world.values[key] = text
        if happens == "dies behind":
            raise WorkerDied
        if happens == "lost":
            raise airflow_error(None)


class Kie:
    """The hook and its client."""

    kie_conn_id = "kie_default"
    endpoint = SimpleNamespace(host="https://api.kie.ai")

    def __init__(self, world):
        self.world = world

    def get_conn(self):
        return self

    def take_submit_place(self, patience):
        pass

    def create_task_once(self, model, task_input, callback_url):
        world = self.world
        happens = world.happens("dies before", "dies behind", "lost", "429", "422", "cleared")
        if happens == "dies before":
            raise WorkerDied
        if happens == "429":
            raise KieRateLimitError("too many", code=429)
        if happens == "422":
            raise KieValidationError("no foxes", code=422)
        kie_task_id = f"id-{len(world.created)}"
        world.created[kie_task_id] = task_input["prompt"]
        if happens == "dies behind":
            raise WorkerDied
        if happens == "lost":
            raise KieSubmitUnknownError("the connection broke")
        if happens == "cleared":
            world.is_cleared_now()
        world.received.add(kie_task_id)
        return kie_task_id


def run_one(world, try_number):
    """What an operator of one image does in a try."""
    journal = Journal(context(Store(world, try_number), try_number, world.max_tries))
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
                order(world, journal, fingerprint)
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
    journal = Journal(context(Store(world, try_number), try_number, world.max_tries))
    try:
        journal.read()
        claimed, kept = assign(journal.records, world.fingerprints, max_tries=world.max_tries)
        journal.begin(kept, claimed)
        for fingerprint, record in zip(world.fingerprints, claimed, strict=True):
            if record is None:
                try:
                    order(world, journal, fingerprint)
                except (KieSubmitUnknownError, KieValidationError):
                    continue
        journal.summarize()
    except (WorkerDied, RuntimeError, AirflowFailException, KieRateLimitError):
        return


def order(world, journal, fingerprint):
    submit(journal, Kie(world), {"model": "m", "input": {}}, {"prompt": fingerprint}, fingerprint)


@pytest.mark.parametrize(("run_try", "fingerprints"), [(run_one, "a"), (run_many, "a"), (run_many, "abcde")])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_nothing_is_paid_twice_and_nothing_is_forgotten(run_try, fingerprints, data, monkeypatch):
    monkeypatch.setattr("kie_provider.submission.journal.SUBMISSIONS_PER_SUMMARY", 2)
    world = World(data.draw, fingerprints, run_try)
    while world.try_number < MAX_TRIES_OF_A_TEST:
        world.start()
    world.troubles = 0
    while world.standing_still:
        world.some_time_passes()

    assert max(Counter(world.created.values()).values(), default=0) <= 1, (world.created, world.values)
    # A last try, which nothing happens to, knows all that was acknowledged, and neither pays again nor is stuck in a
    # journal that makes no sense.
    world.try_number += 1
    journal = Journal(context(Store(world, world.try_number), world.try_number, world.max_tries))
    journal.read()
    known = {record.kie_task_id for record in journal.records if record.state == "submitted"}
    doubts = {record.fingerprint for record in journal.records if record.state == "unknown"}
    assert {world.created[each] for each in world.created if each not in known} <= doubts
    claimed, _ = assign(journal.records, fingerprints, max_tries=world.max_tries)
    missing = {each for each, record in zip(fingerprints, claimed, strict=True) if record is None}
    assert not missing & set(world.created.values())
