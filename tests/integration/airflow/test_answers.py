"""Answers that are about something else, or say two things at once: what operators make of them."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pendulum
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from kie_provider.client.errors import KieRateLimitError, KieValidationError
from kie_provider.hooks.kie import KieHook
from kie_provider.operators.batch import Flux2BatchOperator
from kie_provider.operators.flux2 import Flux2CreateTaskOperator, Flux2GenerateImageOperator
from kie_provider.operators.kie import KieCreateTaskOperator
from kie_provider.operators.results import KieSaveResultOperator
from kie_provider.sensors.kie import KieTaskSensor
from kie_provider.waiting import reschedule
from tests.support.airflow_inprocess import run_task
from tests.support.kie import INPUT, MODEL, requests_to
from tests.support.messages import assert_tells
from tests.support.versions import durable

DEFERRABLE = pytest.mark.parametrize("deferrable", [False, True])


@pytest.fixture
def theirs(create_ended):
    """Return the record of another task, which has ended well."""
    kie_task_id = create_ended()
    with KieHook() as hook:
        url = hook.get_task(kie_task_id).urls[0]
    return {"taskId": kie_task_id, "model": MODEL, "state": "success", "response": {"resultUrls": [url]}}


@pytest.fixture
def cache(kie_emulator, theirs):
    """Return a function that puts a cache before recordInfo that ignores the query, for so many looks."""

    def arm(times):
        envelope = {"code": 200, "msg": "success", "data": theirs}
        kie_emulator.fault({"on": "recordInfo", "do": "swap", "times": times, "json": envelope})

    return arm


class TestAnotherTask:
    @DEFERRABLE
    def test_sensor(self, create, cache, theirs, log, deferrable):
        kie_task_id = create()
        cache(2)

        outcome = run_task(
            lambda **kw: KieTaskSensor(kie_task_id=kie_task_id, poke_interval=0.1, deferrable=deferrable, **kw)
        )

        assert (outcome.state, outcome.result["kie_task_id"]) == ("success", kie_task_id), outcome.error
        assert theirs["response"]["resultUrls"][0] not in outcome.result["urls"]
        assert_tells(log(), "recordInfo", f"task {kie_task_id}", repr(theirs["taskId"]))

    @DEFERRABLE
    def test_generate(self, cache, theirs, kie_emulator, tmp_path, deferrable):
        cache(2)

        outcome = run_task(
            functools.partial(
                Flux2GenerateImageOperator,
                prompt="a red fox",
                target=str(tmp_path),
                poll_interval=0.1,
                deferrable=deferrable,
            )
        )

        assert outcome.state == "success", outcome.error
        mine = kie_emulator.bill()["tasks"][1]["taskId"]
        assert outcome.result["kie_task_id"] == mine
        assert theirs["taskId"] not in json.dumps(outcome.result)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            f"{mine}-0.json",
            f"{mine}-0.png",
            f"{mine}-0.thumb.jpg",
        ]
        assert theirs["taskId"] not in (tmp_path / f"{mine}-0.json").read_text()

    @durable
    @DEFERRABLE
    def test_batch(self, cache, theirs, kie_emulator, tmp_path, deferrable):
        cache(4)

        outcome = run_task(
            functools.partial(
                Flux2BatchOperator,
                prompts=["one fox", "two foxes", "three foxes"],
                target=str(tmp_path),
                poll_interval=0.1,
                deferrable=deferrable,
            )
        )

        assert (outcome.state, outcome.result["saved"]) == ("success", 3), outcome.error
        told = Path(outcome.result["manifest"]).read_text()
        mine = [task["taskId"] for task in kie_emulator.bill()["tasks"][1:]]
        assert sorted(item["kie_task_id"] for item in json.loads(told)["items"]) == sorted(mine)
        assert theirs["taskId"] not in told
        assert len(list(tmp_path.glob("*.png"))) == 3

    def test_save_by_id(self, create_ended, cache, tmp_path):
        kie_task_id = create_ended()
        save = functools.partial(KieSaveResultOperator, result=kie_task_id, target=str(tmp_path))
        cache(1)
        outcome = run_task(save)

        assert (outcome.state, outcome.result["kie_task_id"]) == ("success", kie_task_id), outcome.error
        names = [f"{kie_task_id}-0.json", f"{kie_task_id}-0.png", f"{kie_task_id}-0.thumb.jpg"]
        assert sorted(path.name for path in tmp_path.iterdir()) == names

    def test_save_by_id_when_it_does_not_pass(self, cache, theirs, kie_emulator, tmp_path):
        cache(None)
        outcome = run_task(
            lambda **kw: KieSaveResultOperator(result="f" * 32, target=str(tmp_path), **{**kw, "retries": 0})
        )

        assert outcome.state == "failed"
        assert "f" * 32 in str(outcome.error)
        assert theirs["taskId"] in str(outcome.error)
        assert list(tmp_path.iterdir()) == []


class TestAnIdBesideARefusal:
    @durable
    @pytest.mark.parametrize("code", [422, 429, 401, 500])
    @pytest.mark.parametrize(
        "operator",
        [
            functools.partial(Flux2CreateTaskOperator, prompt="a red fox"),
            functools.partial(KieCreateTaskOperator, model=MODEL, input=INPUT),
            functools.partial(Flux2GenerateImageOperator, prompt="a red fox"),
        ],
        ids=["flux2", "any model", "generate"],
    )
    def test_is_named_and_never_sent_again(self, kie_emulator, operator, code):
        body = {"code": code, "msg": "aspect_ratio is required", "data": {"taskId": "e760cba36a6e699b85b31ad4cd521d1d"}}
        kie_emulator.fault({"on": "createTask", "do": "swap", "times": None, "json": body})
        seen = {}

        def read(context):
            store = context["task_state_store"]
            seen.update({key: store.get(key) for key in ("kie.1.1", "kie.1.1.answer", "kie.1.2")})

        outcome = run_task(lambda **kw: operator(on_failure_callback=read, **kw), retries=2)

        assert (outcome.state, outcome.tries) == ("failed", 1)
        assert isinstance(outcome.error, AirflowFailException)
        assert_tells(outcome.error, "Kie task e760cba36a6e699b85b31ad4cd521d1d")
        assert seen["kie.1.1"]["request"]["model"] == MODEL
        assert (seen["kie.1.1.answer"], seen["kie.1.2"]) == (None, None)
        assert len(requests_to(kie_emulator)) == len(kie_emulator.bill()["tasks"]) == 1


class TestAGatewayBeforeKie:
    WRONG_HOST = {"on": "createTask", "do": "answer", "http_status": 404, "body": "nope", "times": None}  # noqa: RUF012

    def test_refuses_and_nothing_was_created(self, kie_emulator):
        kie_emulator.fault(self.WRONG_HOST)
        outcome = run_task(lambda **kw: Flux2CreateTaskOperator(prompt="a red fox", **kw))

        assert (outcome.state, outcome.retried) == ("failed", False)
        assert_tells(outcome.error, KieValidationError, "HTTP 404", "'nope'", "the connection's host")

    @durable
    def test_stops_a_batch_at_once_and_is_of_no_images_making(self, kie_emulator, tmp_path):
        kie_emulator.fault({**self.WRONG_HOST, "times": None})

        outcome = run_task(
            lambda **kw: Flux2BatchOperator(
                prompts=["one fox", "two foxes", "three foxes", "four foxes", "five foxes"],
                target=str(tmp_path),
                poll_interval=0.1,
                **kw,
            ),
        )

        assert outcome.state == "failed"
        assert 1 <= len(requests_to(kie_emulator)) <= 4  # so many are in flight
        [entry] = tmp_path.glob("it-*.json")
        assert [item["outcome"] for item in json.loads(entry.read_text())["items"]] == ["not_submitted"] * 5


@durable
@pytest.mark.parametrize("retry_after", ["1000000000", "1e300", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_nobody_waits_longer_than_ten_minutes(kie_emulator, create, retry_after):
    from airflow.sdk.exceptions import AirflowRescheduleException

    kie_emulator.fault({"on": "createTask", "do": "code", "code": 429, "retry_after": retry_after})
    with pytest.raises(KieRateLimitError) as refused:
        create()
    with pytest.raises(AirflowRescheduleException) as parked:
        reschedule(refused.value, is_durable=True)
    assert 590 < (parked.value.reschedule_date - pendulum.now("UTC")).total_seconds() <= 600
