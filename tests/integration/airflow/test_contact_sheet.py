"""The contact sheet in real Airflow tasks: what upstream tasks push, what templates make of it, and how it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, ObjectStoragePath
from airflow.sdk import task

from kie_provider.client.errors import KieStorageError
from kie_provider.files import storage
from kie_provider.operators.contact_sheet import KieContactSheetOperator
from tests.support.airflow_inprocess import new_dag, run_dag, run_task


@task
def list_of(results) -> list[dict]:
    return list(results)


@task
def make(prompt: str, folder: str, nothing: str = "") -> dict | None:
    """Save an image, as a task that waits for Kie does; fail for a fox, return nothing for ``nothing``."""
    from PIL import Image

    if "fox" in prompt:
        raise ValueError("no foxes")
    if prompt == nothing:
        return None
    file = Path(folder, f"{prompt}.png")
    Image.new("RGB", (400, 300), (30, 200, 30)).save(file)
    return {
        "kie_task_id": prompt,
        "model": "flux-2/pro-text-to-image",
        "state": "success",
        "urls": [],
        "credits_consumed": 5.0,
        "cost_seconds": 12,
        "input": {"prompt": prompt},
        "files": [{"path": str(file), "media_type": "image/png", "width": 400, "height": 300}],
    }


def manifest(outcome) -> dict:
    return json.loads(Path(outcome.result["manifest"]).read_text())


@pytest.mark.parametrize("nothing", ["", "cow"])
def test_failed_one_of_mapped_tasks_is_a_gap(tmp_path, nothing):
    with new_dag() as dag:

        @task
        def prompts():
            return ["hen", "fox", "owl", "cow"]

        asked = prompts()
        KieContactSheetOperator(
            task_id="sheet",
            results=make.partial(folder=str(tmp_path), nothing=nothing).expand(prompt=asked),
            prompts=asked,
            target=str(tmp_path),
            trigger_rule="all_done",
        )
    outcomes = run_dag(dag)

    outcome = outcomes["sheet", -1]
    missing = ["fox", nothing] if nothing else ["fox"]
    assert outcomes["make", 1].state == "failed"
    assert outcome.state == "success", outcome.error
    assert outcome.result == {
        "html": f"{tmp_path}/contact_sheet.html",
        "png": f"{tmp_path}/contact_sheet.png",
        "manifest": f"{tmp_path}/contact_sheet.json",
        "images": 4 - len(missing),
        "missing": len(missing),
        "not_found": 0,
        "credits": 5.0 * (4 - len(missing)),
    }
    assert manifest(outcome)["prompts_without_result"] == missing
    page = Path(outcome.result["html"]).read_text()
    assert [page.count(text) for text in ("<figure>", "<img ", ">no image<")] == [4, 4 - len(missing), len(missing)]


def test_one_result_and_several_mapped_tasks_make_one_sheet(tmp_path):
    with new_dag() as dag:
        single = make.override(task_id="single")("ant", str(tmp_path))
        first = make.override(task_id="first").partial(folder=str(tmp_path)).expand(prompt=["hen", "owl"])
        second = make.override(task_id="second").partial(folder=str(tmp_path)).expand(prompt=["cow"])
        KieContactSheetOperator(task_id="all", results=[single, first, second], target=str(tmp_path / "all"))
        KieContactSheetOperator(task_id="one", results=single, target=ObjectStoragePath(str(tmp_path / "one")))
    outcomes = run_dag(dag)

    assert [r["kie_task_id"] for r in manifest(outcomes["all", -1])["results"]] == ["ant", "hen", "owl", "cow"]
    assert outcomes["one", -1].result["html"] == f"{tmp_path}/one/contact_sheet.html"
    assert outcomes["one", -1].result["images"] == 1


def test_images_that_other_workers_have_saved_on_their_own_disks_are_missed(tmp_path, capsys, caplog):
    with new_dag() as dag:

        @task
        def lose(results):
            for result in results:
                Path(result["files"][0]["path"]).unlink()
            return results

        made = make.partial(folder=str(tmp_path)).expand(prompt=["hen", "owl"])
        KieContactSheetOperator(task_id="sheet", results=lose(list_of(made)), target=str(tmp_path / "sheet"))
    outcome = run_dag(dag)["sheet", -1]

    assert (outcome.result["images"], outcome.result["not_found"]) == (0, 2)
    log = capsys.readouterr().out + caplog.text
    assert "2 of the files that the results name are not there" in log
    assert "a disk that all workers share" in log
    assert "2 files not found" in Path(outcome.result["html"]).read_text()


@pytest.mark.parametrize("native", [False, True])
def test_every_field_is_templated(tmp_path, native):
    with new_dag(render_template_as_native_obj=native, params={"folder": str(tmp_path), "word": "day"}) as dag:
        made = make("hen", str(tmp_path))
        sheet = KieContactSheetOperator(
            task_id="sheet",
            results="{{ [ti.xcom_pull('make')] }}",
            prompts="{{ ['fox', ti.xcom_pull('make')['input']['prompt']] }}",
            target="{{ params.folder }}/sheets",
            title="The {{ params.word }}",
            name="{{ 20260101 }}",
        )
        made >> sheet
    outcome = run_dag(dag)["sheet", -1]

    assert outcome.state == "success", outcome.error
    assert outcome.result["html"] == f"{tmp_path}/sheets/20260101.html"
    assert (outcome.result["images"], outcome.result["missing"]) == (1, 1)
    assert manifest(outcome)["title"] == "The day"
    assert manifest(outcome)["prompts_without_result"] == ["fox"]


def test_nothing_to_show_is_an_empty_sheet(tmp_path):
    outcome = run_task(lambda **kw: KieContactSheetOperator(results="{{ none }}", target=str(tmp_path), **kw))

    assert outcome.state == "success", outcome.error
    assert (outcome.result["images"], outcome.result["missing"]) == (0, 0)


def test_storage_that_fails_is_tried_again(tmp_path, monkeypatch):
    put, calls = storage.put, []

    def full_at_first(local, target):
        calls.append(target.name)
        if len(calls) == 1:
            raise KieStorageError(f"{target}: No space left on device")
        put(local, target)

    monkeypatch.setattr(storage, "put", full_at_first)
    outcome = run_task(lambda **kw: KieContactSheetOperator(results=[], target=str(tmp_path), **kw))

    assert (outcome.state, outcome.tries) == ("success", 2)
    assert isinstance(outcome.error, KieStorageError)
    assert calls == ["contact_sheet.json", "contact_sheet.json", "contact_sheet.png", "contact_sheet.html"]


def test_a_connection_that_airflow_does_not_find_is_looked_for_again():
    outcome = run_task(lambda **kw: KieContactSheetOperator(results=[], target="s3://nowhere@bucket/a", **kw))

    assert (outcome.state, outcome.tries) == ("failed", 2)
    assert isinstance(outcome.error, KieStorageError)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"results": "hen"}, "results: must be result dicts, got 'hen'"),
        ({"results": 5}, "results: must be result dicts, got 5"),
        ({"name": "../sheet"}, "name: must be a file name"),
        ({"target": "{{ none }}x://y"}, "target: Airflow cannot open 'Nonex://y'"),
        ({"target": " "}, "target: must be a path"),
        ({"target": "/dev/null/sheets"}, "/dev/null/sheets/contact_sheet.json: Not a directory"),
    ],
)
def test_what_cannot_be_right_fails_without_retry(tmp_path, wrong, problem):
    arguments = {"results": [], "target": str(tmp_path), **wrong}
    outcome = run_task(lambda **kw: KieContactSheetOperator(**arguments, **kw))

    assert (outcome.state, outcome.retried) == ("failed", False)
    assert isinstance(outcome.error, AirflowFailException)
    assert problem in str(outcome.error)


def test_without_pillow_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("kie_provider.files.media.importlib.util.find_spec", lambda name: None)
    outcome = run_task(lambda **kw: KieContactSheetOperator(results=[], target=str(tmp_path), **kw))

    assert (outcome.state, outcome.retried) == ("failed", False)
    assert isinstance(outcome.error, AirflowFailException)
    assert "pip install 'airflow-provider-kie[images]'" in str(outcome.error)


def test_dollars_are_those_of_the_configuration(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW__KIE__USD_PER_CREDIT", "0.5")
    results = [{"credits_consumed": 5.0, "input": {"prompt": "hen"}}]
    outcome = run_task(lambda **kw: KieContactSheetOperator(results=results, target=str(tmp_path), **kw))

    assert manifest(outcome)["totals"]["usd"] == 2.5
    assert "$2.50" in Path(outcome.result["html"]).read_text()


def test_prompt_that_looks_like_an_object_is_a_prompt(tmp_path):
    prompt = '{"scene": "a fox"}'
    results = [{"input": {"prompt": prompt}}]
    outcome = run_task(
        lambda **kw: KieContactSheetOperator(results=results, prompts=prompt, target=str(tmp_path), **kw)
    )

    assert manifest(outcome)["prompts_without_result"] == []


def test_prompt_that_looks_like_a_list_is_a_prompt(tmp_path):
    outcome = run_task(
        lambda **kw: KieContactSheetOperator(results=[], prompts="[red] fox", target=str(tmp_path), **kw)
    )

    assert manifest(outcome)["prompts_without_result"] == ["[red] fox"]


def test_importing_the_operator_loads_no_image_library():
    script = (
        "import sys; from airflow.sdk import BaseOperator; before = set(sys.modules);"
        "import kie_provider.operators.contact_sheet;"
        "print(*({'PIL', 'requests', 'aiohttp', 'fsspec', 'kie_provider.contact_sheet'} & (set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == ""
