"""A disk for every worker, which is a mistake of whoever runs Airflow: nothing is paid twice, and it is told."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from kie_provider.batch.run import PROGRESS_KEY
from kie_provider.client.errors import KieStorageError
from kie_provider.operators.contact_sheet import KieContactSheetOperator
from tests.support.airflow_inprocess import run_task
from tests.support.kie import INTERNAL
from tests.support.messages import assert_tells
from tests.support.tries import at_first_try, crash
from tests.support.versions import durable

SHARED = "a disk that all workers share"
FOXES = [f"a red fox, number {number}" for number in range(6)]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "images"
    path.mkdir()
    return path


@pytest.fixture
def run(run_batch, folder):
    return functools.partial(run_batch, FOXES, target=str(folder))


def move_to_the_other_disk(folder):
    """Let what comes run on another worker, which sees its own disk under the same path; the second time, back."""
    other, swapped = folder.with_name("other"), folder.with_name("swapped")
    other.mkdir(exist_ok=True)
    folder.rename(swapped)
    other.rename(folder)
    swapped.rename(other)


def sheet_of(made, folder):
    return run_task(functools.partial(KieContactSheetOperator, results=made, target=str(folder)), retries=0)


@durable
@pytest.mark.parametrize("kie", [{"generating_seconds": 1.0}], indirect=True)  # longer than a slow first phase
def test_a_later_phase_says_so(run, kie, folder, monkeypatch, log):
    def move(context):
        progress = context["ti"].xcom_pull(task_ids=context["ti"].task_id, key=PROGRESS_KEY)
        if progress and progress["saved"] and not folder.with_name("other").exists():
            move_to_the_other_disk(folder)

    monkeypatch.setattr("kie_provider.batch.engine.MAX_RUNNING", 3)
    outcome = run(deferrable=True, pre_execute=move)

    assert_tells(log(), f"{outcome.result['manifest']} is not there", SHARED)
    assert outcome.result["saved"] == len(list(folder.glob("*.png"))) == 6
    assert len(kie.bill()["tasks"]) == 6


@durable
@pytest.mark.parametrize(("tries", "problem"), [(2, "is not there"), (3, "is of try 1, and not of try 2")])
def test_a_later_try_says_so(run, kie, folder, log, tries, problem):
    kie.fault({**INTERNAL, "match": {"prompt": "number 5"}, "times": tries - 1})

    def move(context):
        if context["ti"].try_number > 1:
            move_to_the_other_disk(folder)

    outcome = run(retries=2, pre_execute=move)

    assert_tells(log(), f"{outcome.result['manifest']} {problem}", SHARED, "saved again")
    assert (outcome.tries, outcome.result["saved"]) == (tries, 6)
    assert len(list(folder.glob("*.png"))) == 6
    assert kie.bill()["charged_total"] == 30


@durable
@pytest.mark.parametrize("how", ["a retry", "a phase", "a killed try"])
def test_one_disk_is_not_taken_for_two(run, kie, monkeypatch, log, how):
    monkeypatch.setattr("kie_provider.batch.engine.MAX_RUNNING", 3)
    if how == "a retry":
        kie.fault({**INTERNAL, "match": {"prompt": "number 5"}})
    outcome = run(deferrable=True, post_execute=at_first_try(crash) if how == "a killed try" else None)

    assert outcome.result["saved"] == 6
    assert SHARED not in log()


def test_a_sheet_without_the_manifest_fails(run, folder):
    made = run().result
    move_to_the_other_disk(folder)

    outcome = sheet_of(made, folder)

    assert isinstance(outcome.error, KieStorageError)
    assert_tells(outcome.error, f"results: {made['manifest']} is not there", SHARED)


@durable
def test_a_sheet_with_the_manifest_of_an_earlier_try_says_so(run, kie, folder, log):
    def move(context):
        if context["ti"].try_number == 2:
            move_to_the_other_disk(folder)

    kie.fault({**INTERNAL, "match": {"prompt": "number 5"}})
    made = run(pre_execute=move).result
    move_to_the_other_disk(folder)

    sheet = sheet_of(made, folder).result

    assert_tells(log(), "missing from the sheet", f"{made['manifest']} is of try 1, and not of try 2", SHARED)
    assert (sheet["images"], sheet["missing"]) == (5, 1)


def test_a_sheet_with_the_manifest_of_an_earlier_phase_says_so(run, folder, log):
    made = run().result
    manifest = Path(made["manifest"])
    told = json.loads(manifest.read_text())
    told["items"][5] = {"item": 5, "outcome": "running", "input": told["items"][5]["input"]}
    manifest.write_text(json.dumps({**told, "saved": 5}))

    sheet = sheet_of(made, folder).result

    assert_tells(log(), f"{manifest} tells of 5 saved images, and not of 6", SHARED)
    assert (sheet["images"], sheet["missing"]) == (5, 1)
