"""One task instance from prompt to result: what it returns, and how it goes on after the triggerer."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading

import pendulum
import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, TaskDeferred

from kie_provider.client.errors import KieError, KieResultError, KieTaskFailedError, KieTaskTimeoutError
from kie_provider.hooks.kie import KieHook
from kie_provider.operators.flux2 import KIE_TASK_ID_KEY, Flux2CreateTaskOperator, Flux2GenerateImageOperator
from kie_provider.sensors.flux2 import Flux2TaskSensor
from kie_provider.triggers.kie import error_event, success_event
from kie_provider.waiting import MAX_TRIGGER_RESTARTS
from tests.support.airflow_inprocess import run_task
from tests.support.kie import INTERNAL, LATE, NO_URLS, REFUSED, STUCK, requests_to
from tests.support.messages import assert_tells
from tests.support.task_instances import FakeStore, FakeTaskInstance, context_of
from tests.support.waits import wait_until


class Resumed(FakeTaskInstance):
    """A task instance that was deferred while it waited for a Kie task."""

    def __init__(self, kie_task_id, **when):
        super().__init__(xcoms={KIE_TASK_ID_KEY: kie_task_id}, **when)
        self.store = FakeStore()

    def resume(self, event, *, durable=True, **kwargs):
        """Resume as the task runner does: with an event, or with the error of a trigger that sent none."""
        operator = Flux2GenerateImageOperator(task_id="it", prompt="a red fox", deferrable=True, **kwargs)
        next_method, arguments = ("__fail__", {"error": event}) if isinstance(event, str) else ("execute_complete", {})
        context = context_of(self, self.store if durable else None)
        return operator.resume_execution(next_method, arguments or {"event": event}, context)


@pytest.mark.parametrize("deferrable", [True, False], ids=["deferrable", "in the worker"])
def test_returns_what_create_and_sensor_return(deferrable, kie_emulator):
    kie_emulator.fault(LATE)
    generated = run_task(
        lambda **kw: Flux2GenerateImageOperator(prompt="a red fox", poll_interval=0.1, deferrable=deferrable, **kw)
    )
    created = run_task(lambda **kw: Flux2CreateTaskOperator(prompt="a red fox", **kw))
    waited = run_task(lambda **kw: Flux2TaskSensor(kie_task_id=created.result, poke_interval=0.1, **kw))

    assert (generated.state, generated.tries) == ("success", 1), generated.error
    assert generated.result.keys() == waited.result.keys()
    assert generated.result["input"] == waited.result["input"]
    assert [task["taskId"] for task in kie_emulator.bill()["tasks"]] == [
        generated.result["kie_task_id"],
        created.result,
    ]


def test_a_success_without_an_image_is_final(kie_emulator):
    kie_emulator.fault(NO_URLS)

    outcome = run_task(lambda **kw: Flux2GenerateImageOperator(prompt="a red fox", poll_interval=0.1, **kw))

    assert (outcome.state, outcome.retried) == ("failed", False)
    assert_tells(outcome.error, KieResultError)


class TestEvent:
    def test_success_is_returned(self, create_ended):
        kie_task_id = create_ended()
        ti = Resumed(kie_task_id)

        assert ti.resume(success_event(KieHook().get_task(kie_task_id)))["kie_task_id"] == kie_task_id

    def test_trouble_at_kie_is_retried(self, create_ended):
        event = error_event(KieTaskFailedError("Internal Error", code="500", kie_task_id="kie-1"))

        with pytest.raises(KieTaskFailedError):
            Resumed("kie-1").resume(event)

    def test_a_refusal_is_final(self):
        event = error_event(KieTaskFailedError("Your prompt was flagged", code="500", kie_task_id="kie-1"))

        with pytest.raises(AirflowFailException, match="flagged"):
            Resumed("kie-1").resume(event)

    def test_a_timeout_is_retried_if_the_next_try_knows_the_id(self):
        event = error_event(KieTaskTimeoutError("still generating", kie_task_id="kie-1"))

        with pytest.raises(KieTaskTimeoutError):
            Resumed("kie-1").resume(event)
        with pytest.raises(AirflowFailException, match="No retry"):
            Resumed("kie-1").resume(event, durable=False)

    @pytest.mark.parametrize("event", [None, {}, {"status": "cancelled"}, {"status": "success"}], ids=repr)
    def test_nothing_else_is_believed(self, event):
        with pytest.raises((KieError, AirflowFailException), match="not one of ours"):
            Resumed("kie-1").resume(event)

    def test_that_of_another_task_is_not_believed(self, create_ended):
        other = success_event(KieHook().get_task(create_ended()))

        with pytest.raises(AirflowFailException, match="not one of ours"):
            Resumed("kie-1").resume(other)


@pytest.mark.parametrize("error", ["Trigger failure", "Trigger timeout"])
class TestTriggerEndedWithoutEvent:
    def test_success_in_the_meantime_finishes(self, create_ended, error):
        kie_task_id = create_ended()

        assert Resumed(kie_task_id).resume(error)["kie_task_id"] == kie_task_id

    def test_still_running_defers_again_a_few_times(self, create_ended, error):
        kie_task_id = create_ended(STUCK)
        ti = Resumed(kie_task_id)

        for _ in range(MAX_TRIGGER_RESTARTS):
            with pytest.raises(TaskDeferred) as deferred:
                ti.resume(error)
            assert deferred.value.trigger.kie_task_id == kie_task_id
        with pytest.raises(AirflowException, match=error) as retried:
            ti.resume(error)
        assert not isinstance(retried.value, AirflowFailException)
        with pytest.raises(AirflowFailException, match=f"{error}.*No retry"):
            ti.resume(error, durable=False)

    def test_past_the_deadline_the_next_try_waits_on(self, create_ended, error):
        with pytest.raises(KieTaskTimeoutError):
            Resumed(create_ended(STUCK), started_seconds_ago=11).resume(error, timeout=10)

    def test_failed_in_the_meantime(self, create_ended, error):
        with pytest.raises(KieTaskFailedError):
            Resumed(create_ended(INTERNAL)).resume(error)
        with pytest.raises(AirflowFailException, match="flagged"):
            Resumed(create_ended(REFUSED)).resume(error)


class TestDeadline:
    def deadline(self, create_ended, **kwargs):
        ti = Resumed(create_ended(STUCK), started_seconds_ago=5)
        with pytest.raises(TaskDeferred) as deferred:
            ti.resume("Trigger failure", **kwargs)
        return deferred.value.trigger.deadline - ti.start_date.timestamp(), deferred.value.timeout.total_seconds()

    def test_counts_from_the_start_of_the_try(self, create_ended):
        deadline, airflow_timeout = self.deadline(create_ended, timeout=100)

        assert deadline == pytest.approx(100)
        assert 95 < airflow_timeout < 95 + 61

    @pytest.mark.parametrize("timeout", [40, pendulum.duration(seconds=40)])
    def test_the_shorter_of_both_timeouts_counts(self, create_ended, timeout):
        for kwargs in ({"timeout": timeout}, {"execution_timeout": pendulum.duration(seconds=40)}):
            assert self.deadline(create_ended, **kwargs)[0] == pytest.approx(40)


@contextlib.contextmanager
def killed_once(condition, operator):
    """Call on_kill as Airflow does: from a signal handler, in the middle of whatever runs."""

    def kill():
        wait_until(condition)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    previous = signal.signal(signal.SIGUSR1, lambda *_: operator.on_kill())
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        killer.join()
        signal.signal(signal.SIGUSR1, previous)


class TestOnKill:
    @pytest.fixture(autouse=True)
    def _info(self, caplog):
        caplog.set_level(logging.INFO)

    def test_says_that_the_task_goes_on(self, create_ended, log):
        operator = Flux2GenerateImageOperator(task_id="it", prompt="a red fox", deferrable=True)
        ti = Resumed(create_ended(STUCK))
        with pytest.raises(TaskDeferred):
            operator.resume_execution("__fail__", {"error": "Trigger failure"}, {"ti": ti})

        operator.on_kill()

        assert_tells(log(), f"Kie task {ti.xcom_pull('it', -1, KIE_TASK_ID_KEY)}", "billed")

    def test_says_that_the_answer_is_awaited(self, kie_connection, kie_emulator, log):
        operator = Flux2CreateTaskOperator(task_id="it", prompt="a red fox")
        kie_emulator.fault({"on": "createTask", "do": "slow", "delay_seconds": 0.5})
        with killed_once(lambda: requests_to(kie_emulator), operator):
            kie_task_id = operator.execute({})

        assert_tells(log(), "createTask was sent", f"Kie task {kie_task_id} was created")

    def test_says_nothing_while_there_is_no_task(self, log):
        Flux2GenerateImageOperator(task_id="it", prompt="a red fox").on_kill()

        assert "Kie task" not in log()

    def test_of_a_sensor_says_it_too(self, log):
        Flux2TaskSensor(task_id="it", kie_task_id="kie-1").on_kill()

        assert_tells(log(), "Kie task kie-1", "billed", "https://kie.ai/logs")
