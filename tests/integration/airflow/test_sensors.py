"""Waiting as a real Airflow task: first look, poke, reschedule, deferral, resume and deadlines."""

from __future__ import annotations

from datetime import timedelta

import airflow
import pendulum
import pytest
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)

from kie_provider.client.errors import KieServerError, KieTaskTimeoutError
from kie_provider.hooks.kie import KieHook
from kie_provider.operators.flux2 import Flux2CreateTaskOperator
from kie_provider.sensors.flux2 import Flux2TaskSensor
from kie_provider.sensors.kie import KieTaskSensor
from kie_provider.waiting import MAX_TRIGGER_RESTARTS
from tests.support.airflow_inprocess import new_dag, run_dag, run_task
from tests.support.kie import LATE, STUCK, requests_to
from tests.support.messages import assert_tells
from tests.support.task_instances import FakeTaskInstance, context_of
from tests.support.versions import finds_no_connection

FAILS = {"on": "createTask", "do": "fail", "failCode": "501", "failMsg": "Internal Error"}
HTML = {"on": "recordInfo", "do": "answer", "http_status": 502, "content_type": "text/html", "body": "<h1>502</h1>"}
RESCHEDULE = pytest.param(
    {"mode": "reschedule"},
    id="reschedule",
    marks=pytest.mark.skipif(
        airflow.__version__.startswith("3.1."),
        reason="dag.test() of Airflow 3.1 gives every sensor its reschedule date as text; see the end-to-end tests",
    ),
)
MODES = [
    pytest.param({"deferrable": True}, id="deferrable"),
    pytest.param({"mode": "poke"}, id="poke"),
    RESCHEDULE,
]


@pytest.fixture
def looks(kie_emulator):
    return lambda: len(requests_to(kie_emulator, "recordInfo"))


def wait(kie_task_id, sensor=Flux2TaskSensor, poke_interval=0.1, retries=1, **kwargs):
    return run_task(
        lambda **kw: sensor(kie_task_id=kie_task_id, poke_interval=poke_interval, **kwargs, **kw), retries=retries
    )


@pytest.mark.parametrize("mode", MODES)
def test_returns_the_result_dict(create, mode):
    kie_task_id = create(LATE)

    outcome = wait(kie_task_id, **mode)

    assert outcome.state == "success", outcome.error
    result = outcome.result
    assert {name: result[name] for name in ("kie_task_id", "model", "state", "result", "credits_consumed")} == {
        "kie_task_id": kie_task_id,
        "model": "flux-2/pro-text-to-image",
        "state": "success",
        "result": None,
        "credits_consumed": 5.0,
    }
    assert [url.endswith(".png") for url in result["urls"]] == [True]
    assert result["input"] == {"prompt": "a red fox", "aspect_ratio": "1:1", "resolution": "1K"}
    assert isinstance(result["cost_seconds"], int)
    assert pendulum.parse(result["created_at"]) <= pendulum.parse(result["completed_at"])
    assert result["created_at"].endswith("Z")
    assert set(result) == {
        "kie_task_id", "model", "state", "urls", "result", "credits_consumed", "cost_seconds", "created_at",
        "completed_at", "input",
    }  # fmt: skip


def test_a_finished_task_is_not_deferred(create, looks, kie_emulator):
    kie_task_id = create()
    KieHook().wait(kie_task_id, poll_interval=0.05)
    before = looks()

    assert wait(kie_task_id, deferrable=True).state == "success"
    assert looks() - before == 1


@pytest.mark.parametrize("mode", MODES)
def test_state_fail_is_final(create, mode):
    outcome = wait(create(FAILS, LATE), **mode)

    assert (outcome.state, outcome.retried, type(outcome.error)) == ("failed", False, AirflowFailException)


@pytest.mark.parametrize("mode", MODES)
def test_deadline_is_final_and_a_sensor_timeout(create, mode):
    outcome = wait(create(STUCK), timeout=0.5, **mode)

    assert (outcome.state, outcome.retried, type(outcome.error)) == ("failed", False, AirflowSensorTimeout)


def test_deferred_deadline_names_the_task_and_says_that_nothing_is_lost(create):
    kie_task_id = create(STUCK)

    outcome = wait(kie_task_id, timeout=0.5, deferrable=True)

    assert_tells(outcome.error, KieTaskTimeoutError, f"[Kie task {kie_task_id}]", KieTaskTimeoutError.advice)


def test_execution_timeout_bounds_a_deferred_wait(create):
    outcome = wait(create(STUCK), timeout=60, execution_timeout=timedelta(seconds=1), deferrable=True)

    assert type(outcome.error) is AirflowSensorTimeout


@pytest.mark.parametrize("flag", ["soft_fail", "never_fail"])
@pytest.mark.parametrize("mode", MODES)
def test_flags_skip_a_failed_task(create, mode, flag):
    assert wait(create(FAILS, LATE), **mode, **{flag: True}).state == "skipped"


@pytest.mark.parametrize("mode", MODES)
def test_soft_fail_skips_at_the_deadline(create, mode):
    assert wait(create(STUCK), timeout=0.5, soft_fail=True, **mode).state == "skipped"


def test_never_fail_skips_at_a_deferred_deadline(create):
    """In the other modes it does not: BaseSensorOperator's own loop leaves its deadline out."""
    assert wait(create(STUCK), timeout=0.5, never_fail=True, deferrable=True).state == "skipped"


@pytest.mark.parametrize("mode", MODES)
def test_passing_errors_are_waited_out(create, mode):
    kie_task_id = create(HTML | {"times": 2})

    outcome = wait(kie_task_id, **mode)

    assert outcome.state == "success", outcome.error
    assert not outcome.retried


@pytest.mark.parametrize("mode", MODES[:2])
def test_transient_errors_without_end_are_retried_and_only_never_fail_skips_them(create, mode, monkeypatch):
    monkeypatch.setattr("kie_provider.client.polling.FAILURE_PATIENCE", 0.05)
    monkeypatch.setattr("kie_provider.client.polling.LONGEST_FAILURE_DELAY", 0.1)
    kie_task_id = create(HTML | {"times": None})

    plain = wait(kie_task_id, **mode)
    soft = wait(kie_task_id, soft_fail=True, **mode)
    never = wait(kie_task_id, never_fail=True, **mode)

    assert (plain.state, plain.retried, type(plain.error)) == ("failed", True, KieServerError)
    assert (soft.state, soft.retried) == ("failed", True)
    assert never.state == "skipped"


@pytest.mark.parametrize("mode", MODES)
def test_a_record_that_is_late_is_waited_for(create, mode):
    assert wait(create({"on": "recordInfo", "do": "not_visible", "times": 2}), **mode).state == "success"


def test_poke_interval_is_kept(create, looks):
    wait(create(STUCK), poke_interval=0.2, timeout=1.0, mode="poke")

    assert 5 <= looks() <= 7


def test_create_then_wait_in_one_dag(kie_emulator):
    with new_dag() as dag:
        created = Flux2CreateTaskOperator(task_id="create", prompt="a red fox")
        Flux2TaskSensor(task_id="wait", kie_task_id=created.output, deferrable=True, poke_interval=0.05)
    outcomes = run_dag(dag)

    assert outcomes["wait", -1].result["kie_task_id"] == outcomes["create", -1].result
    assert kie_emulator.bill()["charged_total"] == 5


def test_generic_sensor_returns_the_object_of_a_text_model_and_the_flux2_sensor_refuses_it(create, kie_emulator):
    from kie_provider.emulator.models import MODELS

    text_model = next(name for name, model in MODELS.items() if model.result == "text")
    kie_task_id = create(model=text_model, audio_url="https://example.com/a.mp3")

    assert wait(kie_task_id, sensor=KieTaskSensor, deferrable=True).result["result"]
    refused = wait(kie_task_id, sensor=Flux2TaskSensor, deferrable=True)
    assert (refused.state, refused.retried) == ("failed", False)
    assert "it has no image URL" in str(refused.error)


@finds_no_connection
def test_a_connection_that_airflow_does_not_find_for_a_while(create, monkeypatch):
    """The trigger asks again."""
    sensor = KieTaskSensor(task_id="it", kie_task_id=create(), deferrable=True)
    monkeypatch.delenv("AIRFLOW_CONN_KIE_DEFAULT")

    with pytest.raises(TaskDeferred):
        sensor.execute(context_of(FakeTaskInstance()))


def test_rotated_key_is_read_again_while_deferred(create, looks):
    """The trigger reads the connection at its start and anew after a 401."""
    kie_task_id = create(LATE, {"on": "recordInfo", "do": "code", "code": 401, "msg": "Unauthorized"})

    assert wait(kie_task_id, deferrable=True).state == "success"
    assert looks() >= 3


def test_dag_test_finds_a_connection_of_the_database(create, kie_emulator):
    """The trigger runs in dag.test()'s own process, where Airflow 3.3's asynchronous look-up finds none of these."""
    from airflow.models import Connection
    from airflow.utils.session import create_session

    kie_task_id = create(LATE)
    with create_session() as session:
        session.add(Connection(conn_id="kie_stored", **kie_emulator.connection))
    try:
        outcome = wait(kie_task_id, kie_conn_id="kie_stored", deferrable=True)
    finally:
        with create_session() as session:
            session.query(Connection).filter_by(conn_id="kie_stored").delete()

    assert outcome.state == "success", outcome.error


def resume(kie_task_id, error="Trigger failure", ti=None, **kwargs):
    """Resume the sensor as the task runner does when its trigger ended without an event."""
    sensor = Flux2TaskSensor(task_id="it", kie_task_id=kie_task_id, deferrable=True, **kwargs)
    return sensor.resume_execution("__fail__", {"error": error}, context_of(ti or FakeTaskInstance()))


@pytest.mark.parametrize("error", ["Trigger failure", "Trigger timeout"])
class TestTriggerEndedWithoutEvent:
    def test_success_in_the_meantime_finishes(self, create, error):
        kie_task_id = create()
        KieHook().wait(kie_task_id, poll_interval=0.05)

        assert resume(kie_task_id, error)["kie_task_id"] == kie_task_id

    def test_still_running_defers_again_a_few_times(self, create, error):
        kie_task_id, ti = create(STUCK), FakeTaskInstance()

        for _ in range(MAX_TRIGGER_RESTARTS):
            with pytest.raises(TaskDeferred) as deferred:
                resume(kie_task_id, error, ti)
            assert deferred.value.trigger.kie_task_id == kie_task_id
        with pytest.raises(AirflowException, match=error):
            resume(kie_task_id, error, ti)

    def test_past_the_deadline_times_out(self, create, error):
        with pytest.raises(AirflowSensorTimeout, match="Gave up waiting"):
            resume(create(STUCK), error, FakeTaskInstance(started_seconds_ago=11), timeout=10)

    def test_failed_in_the_meantime_is_final(self, create, error):
        kie_task_id = create(FAILS)
        wait(kie_task_id, deferrable=True)

        with pytest.raises(AirflowFailException, match="Internal Error"):
            resume(kie_task_id, error)

    @pytest.mark.parametrize("flag", ["soft_fail", "never_fail"])
    def test_flags_skip(self, create, error, flag):
        with pytest.raises(AirflowSkipException):
            resume(create(STUCK), error, FakeTaskInstance(started_seconds_ago=11), timeout=10, **{flag: True})


@pytest.mark.parametrize(
    "event",
    [
        None,
        "success",
        {},
        {"status": "cancelled"},
        {"status": "success"},
        {"status": "success", "result": {"kie_task_id": "other", "state": "success", "urls": ["https://x/1.png"]}},
        {"status": "success", "result": {"kie_task_id": "abc", "state": "success", "urls": []}},
        {"status": "error", "error": {"type": "SystemExit", "message": "x"}},
    ],
)
def test_only_the_events_of_our_trigger_are_believed(event):
    sensor = Flux2TaskSensor(task_id="it", kie_task_id="abc", deferrable=True)

    with pytest.raises(AirflowFailException, match="not one of ours"):
        sensor.execute_complete(context_of(FakeTaskInstance()), event)
