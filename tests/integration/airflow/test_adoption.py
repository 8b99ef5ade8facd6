"""A createTask whose answer was lost, and Kie's callback: the next look goes on with the Kie task, and pays nothing."""

from __future__ import annotations

import json
import time

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from kie_provider.client.errors import KieSubmitUnknownError
from kie_provider.client.webhook import callback_fact, callback_key, parse_reference
from kie_provider.operators.batch import Flux2BatchOperator
from kie_provider.operators.flux2 import Flux2CreateTaskOperator, Flux2GenerateImageOperator
from kie_provider.operators.kie import KieCreateTaskOperator

exceptions = pytest.importorskip("airflow.sdk.exceptions")
pytest.importorskip("airflow.models.task_state_store", reason="nothing outlives a try before Airflow 3.3")

BASE_URL = "https://airflow.example.com"
TI_ID = "01a21695-80c7-7c36-be5a-8c5d768553de"
LOST = {"on": "createTask", "do": "lost_answer"}
MODEL = "flux-2/pro-text-to-image"
INPUT = {"prompt": "a red fox", "aspect_ratio": "1:1", "resolution": "1K"}


class TaskInstance(dict):
    """A task instance and its state store, which outlives tries."""

    dag_id, run_id, task_id, map_index = "d", "r", "it", -1
    try_number, max_tries, start_date, log_url = 1, 1, None, ""
    id = TI_ID

    def set(self, key, value, retention):
        assert self.setdefault(key, value) == value, f"{key} has a second value"

    def xcom_push(self, key, value):
        pass

    def xcom_pull(self, **_):
        return None

    def next_try(self):
        self.try_number += 1


@pytest.fixture
def ti():
    return TaskInstance()


@pytest.fixture(autouse=True)
def _callbacks(kie_emulator, monkeypatch):
    extra = {**kie_emulator.connection["extra"], "callback_base_url": BASE_URL}
    monkeypatch.setenv("AIRFLOW_CONN_KIE_DEFAULT", json.dumps({**kie_emulator.connection, "extra": extra}))


def create(**kwargs):
    return Flux2CreateTaskOperator(**{"task_id": "it", "prompt": "a red fox", **kwargs})


def generic(**kwargs):
    return KieCreateTaskOperator(task_id="it", model=MODEL, input=INPUT, **kwargs)


def generate(**kwargs):
    return Flux2GenerateImageOperator(task_id="it", prompt="a red fox", poll_interval=0.1, **kwargs)


OPERATORS = pytest.mark.parametrize("operator", [create, generic, generate])


def execute(operator, ti):
    return operator.execute({"ti": ti, "task_state_store": ti})


def comes_back(operator, ti):
    with pytest.raises(exceptions.AirflowRescheduleException) as parked:
        execute(operator, ti)
    return parked.value.reschedule_date.timestamp() - time.time()


def nonce(ti, key="kie.1.1"):
    return ti[key]["nonce"]


def call_back(ti, kie_task_id, key="kie.1.1"):
    """Write what the receiver writes."""
    ti[callback_key(nonce(ti, key))] = callback_fact(nonce(ti, key), kie_task_id, time.time())


def paid(kie):
    return [task["taskId"] for task in kie.bill()["tasks"]]


def result_id(result):
    return result["kie_task_id"] if isinstance(result, dict) else result


def sent_bodies(kie):
    return [each["json"] for each in kie.requests() if each["path"].endswith("createTask")]


@OPERATORS
def test_the_url_names_this_submission_and_the_journal_keeps_its_nonce(operator, ti, kie_emulator):
    execute(operator(), ti)
    [body] = sent_bodies(kie_emulator)
    url = body["callBackUrl"]
    assert url.startswith(f"{BASE_URL}/kie/callbacks/kie_default/{TI_ID}.")
    reference = parse_reference(url.removeprefix(f"{BASE_URL}/kie/callbacks/"))
    assert (reference.conn_id, reference.ti_id, reference.nonce) == ("kie_default", TI_ID, nonce(ti))
    assert url not in json.dumps(ti)
    assert reference.mac not in json.dumps(ti)


@OPERATORS
def test_an_answer_that_was_lost_is_replaced_by_the_callback(operator, ti, kie_emulator):
    kie_emulator.fault(LOST)

    assert 50 < comes_back(operator(), ti) < 61
    assert 50 < comes_back(operator(), ti) < 61
    [kie_task_id] = paid(kie_emulator)
    call_back(ti, kie_task_id)
    assert result_id(execute(operator(), ti)) == kie_task_id

    assert paid(kie_emulator) == [kie_task_id]
    ti.next_try()
    assert result_id(execute(operator(), ti)) == kie_task_id  # it is known for good


@OPERATORS
def test_a_try_that_died_before_the_answer_is_settled_by_the_next(operator, ti, kie_emulator):
    execute(operator(), ti)
    del ti["kie.1.1.answer"]
    for key in [key for key in ti if ".sum." in key]:
        del ti[key]
    [kie_task_id] = paid(kie_emulator)
    ti.next_try()

    comes_back(operator(), ti)
    call_back(ti, kie_task_id)
    assert result_id(execute(operator(), ti)) == kie_task_id
    assert paid(kie_emulator) == [kie_task_id]


def test_html_for_an_answer_is_waited_for_as_well(ti, kie_emulator):
    kie_emulator.fault({"on": "createTask", "do": "swap", "body": "<html>busy</html>"})
    comes_back(create(), ti)


@OPERATORS
def test_without_a_callback_it_ends_as_it_would_without_callbacks(operator, ti, kie_emulator, monkeypatch):
    monkeypatch.setenv("AIRFLOW__KIE__CALLBACK_PATIENCE", "0.5")
    kie_emulator.fault(LOST)
    comes_back(operator(), ti)
    time.sleep(0.6)

    with pytest.raises(AirflowFailException, match="died before it recorded"):
        execute(operator(), ti)

    call_back(ti, paid(kie_emulator)[0])  # much later, and a person clears the task
    ti.max_tries += 1
    ti.next_try()
    assert result_id(execute(operator(), ti)) == paid(kie_emulator)[0]
    assert len(paid(kie_emulator)) == 1


@pytest.mark.parametrize("patience", ["-1", "soon", "1e9", "nan"])
def test_a_patience_that_is_none(ti, kie_emulator, monkeypatch, patience):
    monkeypatch.setenv("AIRFLOW__KIE__CALLBACK_PATIENCE", patience)
    kie_emulator.fault(LOST)
    with pytest.raises(AirflowFailException, match=r"\[kie\], callback_patience: must be seconds from 0 to 86400"):
        execute(create(), ti)


def test_resubmitting_waits_for_the_callback_first(ti, kie_emulator, monkeypatch):
    kie_emulator.fault(LOST)
    comes_back(create(on_unknown_submit="resubmit"), ti)
    ti.next_try()
    comes_back(create(on_unknown_submit="resubmit"), ti)
    assert len(paid(kie_emulator)) == 1
    monkeypatch.setenv("AIRFLOW__KIE__CALLBACK_PATIENCE", "0")
    execute(create(on_unknown_submit="resubmit"), ti)
    assert len(paid(kie_emulator)) == 2


def test_a_callback_for_a_task_of_somebody_else_is_not_believed(ti, kie_emulator, caplog):
    kie_emulator.fault(LOST)
    comes_back(create(), ti)
    other = TaskInstance()
    execute(create(prompt="a green frog"), other)
    call_back(ti, paid(kie_emulator)[1])

    comes_back(create(), ti)
    assert "was not submitted here" in caplog.text
    assert "kie.1.1.settled" not in ti


def test_nor_one_for_an_equal_task_with_another_url(ti, kie_emulator):
    kie_emulator.fault(LOST)
    comes_back(create(), ti)
    execute(create(), TaskInstance())
    call_back(ti, paid(kie_emulator)[1])
    comes_back(create(), ti)


def test_nor_one_for_a_task_that_kie_does_not_know(ti, kie_emulator, caplog):
    kie_emulator.fault(LOST)
    comes_back(create(), ti)
    call_back(ti, "f" * 32)
    comes_back(create(), ti)
    assert "Kie cannot say whether it is ours" in caplog.text


@pytest.mark.parametrize("prompt", ["a red fox", "another"])
def test_where_kie_tells_no_url_model_and_input_decide(ti, kie_emulator, prompt):
    kie_emulator.fault(LOST)
    comes_back(create(), ti)
    [kie_task_id] = paid(kie_emulator)
    param = json.dumps({"model": MODEL, "input": {**INPUT, "prompt": prompt}})
    record = {"taskId": kie_task_id, "model": MODEL, "state": "generating", "param": param}
    kie_emulator.fault({"on": "recordInfo", "do": "swap", "times": None, "json": {"code": 200, "data": record}})
    call_back(ti, kie_task_id)
    if prompt == "a red fox":
        assert execute(create(), ti) == kie_task_id
    else:
        comes_back(create(), ti)


def test_a_submission_whose_intent_was_removed_is_not_compared(ti, kie_emulator, monkeypatch):
    """Nobody knows what it asked for; the task that was submitted in its place counts."""
    monkeypatch.setenv("AIRFLOW__KIE__CALLBACK_PATIENCE", "0")
    kie_emulator.fault(LOST)
    with pytest.raises(KieSubmitUnknownError):
        execute(create(on_unknown_submit="resubmit"), ti)
    ti.next_try()
    second = execute(create(on_unknown_submit="resubmit"), ti)
    call_back(ti, paid(kie_emulator)[0])
    del ti["kie.1.1"]
    record = {"taskId": paid(kie_emulator)[0], "model": MODEL, "state": "generating", "param": "{}"}
    kie_emulator.fault({"on": "recordInfo", "do": "swap", "json": {"code": 200, "data": record}})
    ti.next_try()
    assert execute(create(on_unknown_submit="resubmit"), ti) == second


def test_an_address_over_http_is_named(ti, kie_emulator, monkeypatch, caplog):
    extra = {**kie_emulator.connection["extra"], "callback_base_url": "http://airflow.example.com"}
    monkeypatch.setenv("AIRFLOW_CONN_KIE_DEFAULT", json.dumps({**kie_emulator.connection, "extra": extra}))
    execute(create(), ti)
    assert "callback_base_url http://airflow.example.com is http, not https" in caplog.text


def test_files_are_known_by_other_names_at_kie(ti, kie_emulator, tmp_path):
    from PIL import Image

    Image.new("RGB", (300, 300), "red").save(tmp_path / "fox.png")
    kie_emulator.fault(LOST)
    images = [str(tmp_path / "fox.png")]
    comes_back(create(input_images=images), ti)
    [kie_task_id] = paid(kie_emulator)
    call_back(ti, kie_task_id)
    assert execute(create(input_images=images), ti) == kie_task_id


def test_an_authors_own_url_is_sent_untouched_and_nothing_is_waited_for(ti, kie_emulator):
    kie_emulator.fault(LOST)
    with pytest.raises(AirflowFailException):
        execute(create(callback_url="https://mine.example.com/hook?x=1"), ti)
    [body] = sent_bodies(kie_emulator)
    assert body["callBackUrl"] == "https://mine.example.com/hook?x=1"
    assert "nonce" not in ti["kie.1.1"]


def test_where_it_is_called_back_is_not_what_is_asked_for(ti, kie_emulator):
    """A clear after a success pays anew; a retry with another URL does not."""
    kie_task_id = execute(create(), ti)
    ti.next_try()
    ti.id = TI_ID.replace("0", "1")
    assert execute(create(), ti) == kie_task_id


def batch(tmp_path, **kwargs):
    fields = {"prompts": [f"a red fox, number {number}" for number in range(3)], "poll_interval": 0.1, **kwargs}
    return Flux2BatchOperator(task_id="it", target=str(tmp_path), **fields)


@pytest.mark.parametrize("deferrable", [False, True])
def test_a_batch_settles_its_unknown_items(ti, kie_emulator, tmp_path, deferrable):
    kie_emulator.fault(LOST)
    ti.start_date = None
    with pytest.raises((exceptions.AirflowRescheduleException, exceptions.TaskDeferred)) as parked:
        execute(batch(tmp_path, deferrable=deferrable), ti)
    assert len(paid(kie_emulator)) == 3
    unknown = next(key for key in ("kie.1.1", "kie.1.2", "kie.1.3") if f"{key}.answer" not in ti)
    mine = next(
        each for each in kie_emulator.bill()["tasks"] if each["prompt"] == ti[unknown]["request"]["input"]["prompt"]
    )
    call_back(ti, mine["taskId"], unknown)

    operator, context = batch(tmp_path), {"ti": ti, "task_state_store": ti}
    if isinstance(parked.value, exceptions.TaskDeferred):
        result = operator.execute_complete(context, {"status": "ended", "ended": 2, "running": 0, "error": None})
    else:
        result = operator.execute(context)

    assert (result["saved"], result["unknown"]) == (3, 0)
    assert len(paid(kie_emulator)) == 3
