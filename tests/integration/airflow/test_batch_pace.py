"""How a batch goes about it: createTasks in flight together, saving meanwhile, and what comes of them when it ends."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import BaseHook
from PIL import Image

from tests.support.kie import created_bodies, requests_to
from tests.support.messages import assert_tells
from tests.support.versions import durable
from tests.support.waits import wait_until

SLOW = {"on": "createTask", "do": "slow", "delay_seconds": 0.4, "times": None}
FOXES = [f"a red fox, number {number}" for number in range(12)]


@pytest.fixture
def run(run_batch):
    return lambda prompts=FOXES, *, retries=0, **fields: run_batch(prompts, retries=retries, **fields)


@pytest.fixture
def in_flight(monkeypatch):
    """What is under way together: the largest number of createTasks, and how many were when an image was saved."""
    from kie_provider.client.client import KieClient
    from kie_provider.files.saving import ResultSaver

    create_task, save, lock, seen = KieClient.create_task_once, ResultSaver.save, threading.Lock(), Counter()

    def counted(self, body, before_sending=None):
        with lock:
            seen["now"] += 1
            seen["most"] = max(seen["most"], seen["now"])
        try:
            return create_task(self, body, before_sending)
        finally:
            with lock:
                seen["now"] -= 1

    def noted(self, *args):
        seen["while saving"] = max(seen["while saving"], seen["now"])
        return save(self, *args)

    monkeypatch.setattr(KieClient, "create_task_once", counted)
    monkeypatch.setattr(ResultSaver, "save", noted)
    return seen


def prompts_paid(kie):
    return Counter(task["prompt"] for task in kie.bill()["tasks"])


@pytest.mark.parametrize("deferrable", [False, True])
def test_four_are_in_flight_and_images_are_saved_meanwhile(run, kie, in_flight, deferrable):
    kie.fault(SLOW)

    outcome = run(deferrable=deferrable)

    assert outcome.result["saved"] == 12, outcome.error
    assert in_flight["most"] == 4
    assert in_flight["while saving"] > 0
    assert set(prompts_paid(kie).values()) == {1}


@durable
def test_execution_timeout_collects_the_answers_of_all_that_are_in_flight(run, kie, in_flight, capsys, caplog):
    kie.fault({**SLOW, "delay_seconds": 1.5, "times": 8})

    outcome = run(retries=3, execution_timeout=timedelta(seconds=2.0))

    assert (outcome.state, outcome.retried) == ("success", True), outcome.errors
    assert in_flight["most"] == 4
    assert prompts_paid(kie) == dict.fromkeys(FOXES, 1)
    assert outcome.result["unknown"] == 0
    assert "Task was destroyed" not in capsys.readouterr().out + caplog.text


@durable
@pytest.mark.parametrize("skip", [0, 3])
def test_a_journal_that_breaks_loses_no_answer_that_is_in_flight(run, kie, monkeypatch, skip):
    """Writing an answer fails for good: the answers of the others are written down all the same."""
    from kie_provider.submission.journal import Journal

    kie.fault(SLOW)
    created, calls = Journal.created, []

    def breaks_once(self, record, kie_task_id, alarm):
        calls.append(kie_task_id)
        if len(calls) == skip + 1:
            raise RuntimeError("out of order")
        return created(self, record, kie_task_id, alarm)

    monkeypatch.setattr(Journal, "created", breaks_once)
    outcome = run(retries=1)

    # Of one nobody knows the id, as its intent has no answer; all others are saved, and nothing is paid twice.
    assert outcome.tries == 2
    assert max(prompts_paid(kie).values()) == 1
    assert "11 of 12 are saved" in str(outcome.errors[-1])


OTHER_FAULTS = {
    "not visible": {"on": "recordInfo", "do": "not_visible", "times": 30},
    "gateway": {
        "on": "recordInfo",
        "do": "answer",
        "http_status": 502,
        "body": "<html>Bad Gateway</html>",
        "times": 30,
    },
    "busy": {"on": "recordInfo", "do": "code", "code": 429, "msg": "slow down", "times": 30},
}


@pytest.mark.parametrize("deferrable", [False, True])
@pytest.mark.parametrize("fault", OTHER_FAULTS.values(), ids=OTHER_FAULTS)
def test_answers_that_pass_are_waited_out_by_every_item(run, kie, monkeypatch, fault, deferrable):
    monkeypatch.setattr("kie_provider.client.polling.backoff", lambda *_, **__: 0.1)
    kie.fault(fault)

    outcome = run(deferrable=deferrable)

    assert (outcome.state, outcome.result["saved"]) == ("success", 12), outcome.errors


@pytest.mark.parametrize("kie", [{"generating_seconds": 1.5}], indirect=True)
@pytest.mark.parametrize("deferrable", [False, True])
def test_a_task_that_is_not_visible_for_a_moment_is_waited_for(run, kie, monkeypatch, deferrable):
    monkeypatch.setattr("kie_provider.client.polling.VISIBILITY_GRACE", 0.8)
    kie.fault({"on": "recordInfo", "do": "not_visible", "match": {"prompt": "number 7"}, "skip": 9, "times": 2})

    outcome = run(deferrable=deferrable)

    assert (outcome.state, outcome.result["saved"]) == ("success", 12), outcome.errors


@pytest.mark.parametrize("kie", [{"generating_seconds": 1.5}], indirect=True)
def test_a_rotated_key_is_read_once_for_all(run, kie, monkeypatch):
    reads, get_connection = [], BaseHook.get_connection

    def counted(conn_id):
        reads.append(threading.current_thread())
        return get_connection(conn_id)

    def rotate_when_all_are_submitted():
        wait_until(lambda: len(kie.bill()["tasks"]) == len(FOXES), timeout=60)
        connection = json.loads(os.environ["AIRFLOW_CONN_KIE_DEFAULT"])
        monkeypatch.setenv("AIRFLOW_CONN_KIE_DEFAULT", json.dumps({**connection, "password": "another-key"}))
        account = kie._server.world.account
        account.settings = dataclasses.replace(account.settings, api_key="another-key")

    monkeypatch.setattr(BaseHook, "get_connection", staticmethod(counted))
    rotation = threading.Thread(target=rotate_when_all_are_submitted)
    outcome = run(pre_execute=lambda _context: rotation.start())
    rotation.join()

    assert outcome.result["saved"] == 12, outcome.error
    assert any(each["headers"]["authorization"] == "invalid" for each in kie.requests())
    assert set(reads) == {threading.main_thread()}
    assert len(reads) == 2


@durable
def test_a_local_image_counts_by_its_content(run, kie, tmp_path):
    """A retry with the same file in another place goes on; after a clear, another file in that place is submitted."""
    photos = [tmp_path / "in" / f"{name}.png" for name in "abc"]
    photos[0].parent.mkdir()
    for photo, size in zip(photos, (64, 64, 65), strict=True):
        Image.new("RGB", (size, 64), "red").save(photo)
    given = []

    def give(context):
        given.append(context["ti"].try_number)
        context["task"].prompts = [{"prompt": FOXES[0], "input_images": str(photos[len(given) - 1])}]
        if len(given) == 3:
            context["ti"].max_tries += 1  # as a clear does

    def crash(context, result):
        if len(given) < 3:
            raise ZeroDivisionError

    outcome = run([FOXES[0]], target=str(tmp_path / "out"), retries=3, pre_execute=give, post_execute=crash)

    assert (outcome.state, given) == ("success", [1, 2, 3])
    inputs = [body["input"]["input_urls"] for body in created_bodies(kie)]
    assert len(inputs) == 2
    assert inputs[0] != inputs[1]


def test_a_local_image_of_many_items_is_read_and_uploaded_once(run, kie, tmp_path, monkeypatch):
    from kie_provider.files import inputs

    photo = tmp_path / "photo.png"
    Image.new("RGB", (64, 64), "red").save(photo)
    hashed, sha256 = [], inputs.hashlib.sha256

    def counted(content=b""):
        if content.startswith(b"\x89PNG"):
            hashed.append(len(content))
        return sha256(content)

    monkeypatch.setattr(inputs.hashlib, "sha256", counted)
    outcome = run([{"prompt": each, "input_images": str(photo)} for each in FOXES], target=str(tmp_path / "out"))

    assert outcome.result["saved"] == 12, outcome.error
    assert hashed.count(photo.stat().st_size) <= 2  # when it is checked, and when it is sent
    assert len(requests_to(kie, "upload")) == 1


def test_kie_is_told_where_to_call_back(run, kie):
    run(FOXES[:3], callback_url="https://pipeline.example/done")

    assert [body["callBackUrl"] for body in created_bodies(kie)] == ["https://pipeline.example/done"] * 3


def test_a_bad_callback_url_is_refused_once(run, kie):
    outcome = run(FOXES[:3], callback_url="ftp://pipeline.example")

    assert str(outcome.error).count("callback_url: ") == 1
    assert kie.requests() == []


def test_an_item_has_no_callback_url_of_its_own(run, kie):
    outcome = run([{"prompt": FOXES[0], "callback_url": "https://x.example"}])

    assert_tells(outcome.error, "prompts[0].callback_url: ")


def test_the_folder_is_left_as_it_was(run, kie, tmp_path):
    outcome = run()

    assert {Path(path).suffix for path in map(str, tmp_path.iterdir())} == {".png", ".json", ".jpg"}
    assert outcome.result["images"] == 12


@pytest.mark.parametrize("more", [0, 2])
def test_a_refusal_takes_no_slot_from_the_others(run, kie, monkeypatch, more):
    """Were it counted, the last of as many images as fit into the window would wait for the next window.

    Nor does it wait behind those that have to.
    """
    connection = {**kie.connection, "extra": {**kie.connection["extra"], "submit_limit": len(FOXES) - more}}
    monkeypatch.setenv("AIRFLOW_CONN_KIE_DEFAULT", json.dumps(connection))
    kie.fault({"on": "createTask", "do": "code", "code": 429, "msg": "slow down", "times": 1, "skip": 9 - more})
    outcome = run()
    assert outcome.result["saved"] == len(FOXES), outcome.error
    created = sorted(datetime.fromisoformat(task["created_at"].replace("Z", "+00:00")) for task in kie.bill()["tasks"])
    assert (created[-1 - more] - created[0]).total_seconds() < 9
