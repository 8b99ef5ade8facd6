"""Tasks that were deferred by an earlier release go on under this one.

Read are the rows and events in `tests/data/release-*`, which `python -m tests.support.freeze` has written. Those of a
published release are never changed, whatever becomes of the code: they are in somebody's database.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.models.trigger import Trigger
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSensorTimeout

import kie_provider
from kie_provider.client import errors
from kie_provider.operators.batch import Flux2BatchOperator
from kie_provider.sensors.flux2 import Flux2TaskSensor
from kie_provider.sensors.kie import KieTaskSensor
from kie_provider.submission.journal import Journal
from kie_provider.triggers.batch import KieBatchTrigger, read_error
from kie_provider.triggers.kie import KieTaskTrigger, read_event
from tests.support import freeze
from tests.support.kie import wait_for_end
from tests.support.task_instances import FakeTaskInstance, as_in_the_triggerer, context_of, fire

try:
    from airflow.sdk import serde  # noqa: F401

    STORED_AS = ("kwargs", "kwargs_3_1")
except ImportError:  # Airflow 3.1 cannot read what later ones have written
    STORED_AS = ("kwargs_3_1",)

RELEASES = sorted(folder.name.removeprefix("release-") for folder in freeze.DATA.glob("release-*"))
#: Every release can wait for a task with these arguments alone.
REQUIRED = {"kie_conn_id", "kie_task_id"}
RETRIED = {
    "KieConnectionNotFoundError",
    "KieFileError",
    "KieMaintenanceError",
    "KieRateLimitError",
    "KieServerError",
    "KieStorageError",
    "KieTransportError",
}

HOW = f"""
What {kie_provider.__version__} stores is no longer what tests/data/release-{kie_provider.__version__} says.
Is {kie_provider.__version__} published? Then leave these files alone: tasks wait with such rows. Raise __version__ in
kie_provider/__init__.py and run: python -m tests.support.freeze
Is it not? Then only see that the change is wanted, and run: python -m tests.support.freeze --replace
"""


def frozen(release: str, name: str):
    return json.loads(Path(freeze.folder_of(release), name).read_text(encoding="utf-8"))


ROWS = [
    pytest.param(row, how, id=f"{release}-{name}-{how}")
    for release in RELEASES
    for name, row in frozen(release, "triggers.json").items()
    for how in STORED_AS
]
EVENTS = [
    pytest.param(content["next_method"], name, event, id=f"{release}-{name}")
    for release in RELEASES
    for content in [frozen(release, "events.json")]
    for name, event in content["events"].items()
]


BATCH_ROWS = [
    pytest.param(row, how, id=f"{release}-{name}-{how}")
    for release in RELEASES
    for name, row in frozen(release, "batch_triggers.json").items()
    for how in STORED_AS
]
BATCH_EVENTS = [
    pytest.param(content["next_method"], event, id=f"{release}-{name}")
    for release in RELEASES
    for content in [frozen(release, "batch_events.json")]
    for name, event in content["events"].items()
]


def kwargs_of(row, how):
    """Return a row's arguments as the triggerer does."""
    return Trigger._decrypt_kwargs(row[how])


def inflated(classpath, kwargs):
    """Make a row's trigger as the triggerer does."""
    module, _, name = classpath.rpartition(".")
    return as_in_the_triggerer(getattr(importlib.import_module(module), name)(**kwargs))


@pytest.fixture
def order(create, monkeypatch):
    """Make a task with the id that the rows wait for."""
    monkeypatch.setattr(
        "kie_provider.emulator.account.secrets", SimpleNamespace(token_hex=lambda _: freeze.KIE_TASK_ID)
    )

    def order(fate=None):
        faults = [{"on": "createTask", "do": fate}] if fate else []
        assert create(*faults) == freeze.KIE_TASK_ID
        if fate != "stuck":
            wait_for_end(freeze.KIE_TASK_ID)

    return order


def test_this_release_is_frozen():
    """Compared is what is in the rows, as each Airflow writes it in its own way."""
    release = kie_provider.__version__
    assert release in RELEASES, HOW

    def meaning(rows):
        return {name: (row["classpath"], [kwargs_of(row, how) for how in STORED_AS]) for name, row in rows.items()}

    assert meaning(frozen(release, "triggers.json")) == meaning(freeze.rows(freeze.triggers())), HOW
    assert meaning(frozen(release, "batch_triggers.json")) == meaning(freeze.rows(freeze.batch_triggers())), HOW
    assert frozen(release, "batch_events.json") == freeze.batch_events(), HOW
    assert frozen(release, "events.json") == freeze.events(), HOW
    assert frozen(release, "journal.json") == freeze.journal(), HOW


def test_every_error_has_a_frozen_event():
    assert {error.__name__ for error in errors.error_classes()} <= set(frozen(RELEASES[-1], "events.json")["events"])


@pytest.mark.parametrize(("row", "how"), ROWS)
def test_a_row_becomes_this_release_s_trigger(row, how):
    kwargs = kwargs_of(row, how)
    trigger = inflated(row["classpath"], kwargs)
    assert isinstance(trigger, KieTaskTrigger)
    assert kwargs.items() <= trigger.serialize()[1].items()


@pytest.mark.parametrize(("row", "how"), ROWS)
async def test_a_row_ends_in_the_event_of_a_success(row, how, order):
    order()
    event = await fire(inflated(row["classpath"], kwargs_of(row, how)))
    assert read_event(event, freeze.KIE_TASK_ID)["urls"]


@pytest.mark.parametrize(("row", "how"), ROWS)
async def test_a_row_ends_in_the_event_of_an_error(row, how, order):
    has_deadline = kwargs_of(row, how).get("deadline") is not None
    order("stuck" if has_deadline else "fail")  # every frozen deadline is over
    event = await fire(inflated(row["classpath"], kwargs_of(row, how)))
    expected = "KieTaskTimeoutError" if has_deadline else "KieTaskFailedError"
    assert (event["status"], event["error"]["type"]) == ("error", expected)


@pytest.mark.parametrize(("row", "how"), ROWS)
async def test_a_row_without_the_arguments_that_have_a_default(row, how, order):
    """As a release wrote it that did not have them yet."""
    order()
    kwargs = kwargs_of(row, how)
    for dropped in set(kwargs) - REQUIRED - {"poll_interval"}:  # its default would be waited for
        fewer = {name: value for name, value in kwargs.items() if name != dropped}
        assert (await fire(inflated(row["classpath"], fewer)))["status"] == "success"
    assert inflated(row["classpath"], {name: kwargs[name] for name in REQUIRED})


def resume(sensor, next_method, event):
    """Resume as the task runner does."""
    it = sensor(task_id="it", kie_task_id=freeze.KIE_TASK_ID, deferrable=True)
    return it.resume_execution(next_method, {"event": event}, context_of(FakeTaskInstance()))


@pytest.mark.parametrize(("next_method", "name", "event"), EVENTS)
def test_a_sensor_is_resumed_by_an_event(next_method, name, event):
    if event["status"] == "success":
        assert resume(KieTaskSensor, next_method, event) == event["result"]
        if event["result"]["urls"]:
            assert resume(Flux2TaskSensor, next_method, event) == event["result"]
        return
    kind = type(errors.error_from_dict(event["error"]))
    assert kind.__name__ == name
    ends = AirflowSensorTimeout if name == "KieTaskTimeoutError" else kind if name in RETRIED else AirflowFailException
    with pytest.raises(ends) as caught:
        resume(KieTaskSensor, next_method, event)
    assert type(caught.value) is ends
    for said in (kind.summary, event["error"]["message"], "Kie code 500", freeze.KIE_TASK_ID, kind.advice):
        assert said in str(caught.value)


@pytest.mark.parametrize(("row", "how"), BATCH_ROWS)
async def test_a_batch_row_ends_in_its_event(row, how, order):
    order()
    kwargs = kwargs_of(row, how)
    trigger = inflated(row["classpath"], kwargs)
    assert isinstance(trigger, KieBatchTrigger)
    assert kwargs.items() <= trigger.serialize()[1].items()
    event = await fire(trigger)
    assert (event["ended"], event["running"]) == (len(kwargs["kie_task_ids"]), 0)
    assert inflated(row["classpath"], {name: kwargs[name] for name in ("kie_conn_id", "kie_task_ids")})


@pytest.mark.parametrize(("next_method", "event"), BATCH_EVENTS)
def test_a_batch_is_resumed_by_an_event(next_method, event):
    assert callable(getattr(Flux2BatchOperator, next_method))
    error = read_error(event)
    if event["error"]:
        assert isinstance(error, errors.KieTransportError)
    else:
        assert "no Kie task of the batch has ended" in str(error)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("is_noted_as_success", [False, True])
def test_a_journal_is_read(release, is_noted_as_success):
    facts = frozen(release, "journal.json")
    if not is_noted_as_success:
        del facts["kie.2.ok"]
    journal = Journal(context_of(FakeTaskInstance(try_number=3, max_tries=5), SimpleNamespace(get=facts.get)))
    journal.read()

    states = [(each.key, each.item, each.state, each.kie_task_id) for each in journal.records]
    if is_noted_as_success:
        assert states == []
        return
    id_ = freeze.KIE_TASK_ID
    assert states == [
        ("kie.1.1", 5, "nothing", None),  # of no item
        ("kie.1.2", 0, "submitted", id_),
        ("kie.1.3", 1, "refused", None),
        ("kie.1.4", 2, "failed", id_[::-1]),
        ("kie.1.5", 3, "unknown", None),
        ("kie.1.6", 4, "submitted", id_.replace("e", "a")),
        ("kie.2.1", 2, "submitted", id_.replace("e", "b")),
    ]
    assert (journal.is_complete, journal.is_cleared) == (True, True)
    assert journal.records[3].may_succeed_anew
    assert journal.request_of(journal.records[1])["input"]["prompt"] == "a red fox, 狐"
