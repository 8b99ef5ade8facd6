"""Saving in a real Airflow task: alone, and as the last step of the operator that generates."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import Asset, task

from kie_provider.client.errors import KieFileError, KieNotFoundError, KieStorageError
from kie_provider.files import media, storage
from kie_provider.operators.contact_sheet import KieContactSheetOperator
from kie_provider.operators.flux2 import Flux2CreateTaskOperator, Flux2GenerateImageOperator
from kie_provider.operators.results import KieSaveResultOperator
from kie_provider.sensors.flux2 import Flux2TaskSensor
from tests.support.airflow_inprocess import new_dag, run_dag, run_task
from tests.support.kie import STUCK
from tests.support.messages import assert_tells
from tests.support.versions import durable, not_durable

HTML = {"on": "file", "do": "swap", "content_type": "image/png", "body": "<html>expired</html>"}


def generate(**fields):
    return lambda **kw: Flux2GenerateImageOperator(**{"prompt": "a red fox", "poll_interval": 0.1, **fields}, **kw)


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


class TestSaveResult:
    def test_of_a_kie_task_id_and_of_a_result(self, kie_emulator, tmp_path):
        with new_dag() as dag:
            create = Flux2CreateTaskOperator(task_id="create", prompt="a red fox")
            wait = Flux2TaskSensor(task_id="wait", kie_task_id=create.output, poke_interval=0.1)
            by_result = KieSaveResultOperator(task_id="by_result", result=wait.output, target=str(tmp_path / "a"))
            by_id = KieSaveResultOperator(
                task_id="by_id",
                result="{{ ti.xcom_pull('create') }}",
                target=f"file://{tmp_path}/b/{{{{ ti.task_id }}}}",
            )
            by_text = KieSaveResultOperator(
                task_id="by_text", result="{{ ti.xcom_pull('wait') }}", target=str(tmp_path / "a")
            )
            wait >> [by_result, by_id] >> by_text
        outcomes = run_dag(dag)

        assert {key[0]: outcome.state for key, outcome in outcomes.items()} == dict.fromkeys(dag.task_ids, "success")
        kie_task_id = outcomes["create", -1].result
        names = [f"{kie_task_id}-0.json", f"{kie_task_id}-0.png", f"{kie_task_id}-0.thumb.jpg"]
        assert files(tmp_path / "a") == names
        assert files(tmp_path / "b" / "by_id") == names
        waited, saved = outcomes["wait", -1].result, outcomes["by_result", -1].result
        assert saved == {**waited, "files": saved["files"]}
        assert outcomes["by_text", -1].result == saved
        assert outcomes["by_id", -1].result["files"][0]["sha256"] == saved["files"][0]["sha256"]
        assert kie_emulator.bill()["charged_total"] == 5

    @pytest.mark.parametrize(
        "result",
        [
            "",
            {"urls": []},
            {"kie_task_id": "x", "urls": "http://x/"},
            "https://example.org/1.png",
            7,
            "{'kie_task_id': }",
        ],
    )
    def test_what_is_no_result(self, tmp_path, result):
        outcome = run_task(lambda **kw: KieSaveResultOperator(result=result, target=str(tmp_path / "a"), **kw))

        assert (outcome.state, outcome.retried) == ("failed", False)
        assert_tells(outcome.error, "result: ", "Kie task id", "result dict", "got ")

    def test_of_a_task_that_still_runs(self, kie_emulator, tmp_path):
        kie_emulator.fault(STUCK)
        create = run_task(lambda **kw: Flux2CreateTaskOperator(prompt="a red fox", **kw))
        outcome = run_task(lambda **kw: KieSaveResultOperator(result=create.result, target=str(tmp_path / "a"), **kw))

        assert (outcome.state, outcome.retried) == ("failed", True)
        assert_tells(outcome.error, "KieTaskSensor")

    def test_of_a_task_that_failed_or_is_unknown(self, kie_emulator, tmp_path):
        kie_emulator.fault({"on": "createTask", "do": "fail", "failMsg": "flagged"})
        create = run_task(lambda **kw: Flux2CreateTaskOperator(prompt="a red fox", **kw))
        save = functools.partial(KieSaveResultOperator, target=str(tmp_path / "a"))
        for kie_task_id, message in ((create.result, "flagged"), ("f" * 32, KieNotFoundError.summary)):
            outcome = run_task(functools.partial(save, result=kie_task_id))

            assert (outcome.state, outcome.retried) == ("failed", False)
            assert message in str(outcome.error)


@pytest.mark.parametrize("deferrable", [True, False], ids=["deferrable", "in the worker"])
class TestGenerate:
    def test_from_prompt_to_file(self, kie_emulator, tmp_path, deferrable):
        outcome = run_task(generate(target=str(tmp_path / "{{ ti.task_id }}"), deferrable=deferrable))

        assert (outcome.state, outcome.tries) == ("success", 1), outcome.error
        [file] = outcome.result["files"]
        assert files(tmp_path) == [
            f"it/{outcome.result['kie_task_id']}-0.{end}" for end in ("json", "png", "thumb.jpg")
        ]
        facts = json.loads(Path(file["sidecar"]).read_text())
        assert (facts["prompt"], facts["credits"], facts["usd"]) == ("a red fox", 5.0, 0.025)
        assert (facts["airflow"]["task_id"], facts["airflow"]["try_number"]) == ("it", 1)
        assert facts["airflow"]["dag_id"].startswith("test_")

    @durable
    def test_a_retry_after_a_bad_download_pays_nothing(self, kie_emulator, tmp_path, deferrable):
        kie_emulator.fault(HTML)
        outcome = run_task(generate(target=str(tmp_path), deferrable=deferrable))

        assert (outcome.state, outcome.tries, outcome.retried) == ("success", 2, True)
        assert_tells(outcome.error, KieFileError, "<html>expired</html>")
        assert len(files(tmp_path)) == 3
        bill = kie_emulator.bill()
        assert (len(bill["tasks"]), bill["charged_total"]) == (1, 5)

    @durable
    @pytest.mark.parametrize("body", ["\0\0\0\x18ftypmp42\0\0\0\0", "\u00b1\u00a7\u00c7\u00b8"])
    def test_what_is_no_image_is_downloaded_again(self, kie_emulator, tmp_path, deferrable, body):
        kie_emulator.fault({"on": "file", "do": "swap", "content_type": "image/png", "body": body})
        outcome = run_task(generate(target=str(tmp_path), deferrable=deferrable))

        assert (outcome.state, outcome.tries) == ("success", 2)
        assert_tells(outcome.error, KieFileError)
        assert {Path(name).suffix for name in files(tmp_path)} == {".json", ".png", ".jpg"}
        assert kie_emulator.bill()["charged_total"] == 5

    @pytest.mark.parametrize("title", ["std::vector", "c:", "a\u0085b", "..", "x" * 300, "", "a/../b"])
    def test_a_title_that_makes_no_file_name_costs_nothing(self, kie_emulator, tmp_path, deferrable, title):
        outcome = run_task(
            generate(
                target=str(tmp_path),
                deferrable=deferrable,
                file_name="{{ params.title }}/x.{extension}",
                params={"title": title},
            )
        )

        assert (outcome.state, outcome.retried) == ("failed", False)
        assert "file_name: " in str(outcome.error)
        assert kie_emulator.bill()["tasks"] == []

    def test_a_bad_target_costs_nothing(self, kie_emulator, tmp_path, deferrable):
        (tmp_path / "file").write_text("in the way")
        for target in (
            f"{tmp_path}/file",
            f"{tmp_path}/file/below",
            "gs://bucket/x",
            "nosuch://x",
            f"{tmp_path}/a\0",
        ):
            outcome = run_task(generate(target=target, deferrable=deferrable))

            assert (outcome.state, outcome.retried) == ("failed", False), target
            assert "The results cannot be saved there" in str(outcome.error)
        assert kie_emulator.bill()["tasks"] == []
        assert files(tmp_path) == ["file"]

    def test_a_target_whose_connection_airflow_does_not_find_costs_nothing(self, kie_emulator, deferrable):
        outcome = run_task(generate(target="s3://nobody@b/x", deferrable=deferrable))

        assert (outcome.state, outcome.tries) == ("failed", 2)
        assert_tells(outcome.error, KieStorageError)
        assert kie_emulator.bill()["tasks"] == []


@not_durable
def test_before_airflow_33_a_bad_download_is_final_and_names_the_task(kie_emulator, tmp_path):
    kie_emulator.fault(HTML)
    outcome = run_task(generate(target=str(tmp_path)))

    assert (outcome.state, outcome.retried) == ("failed", False)
    [charged] = kie_emulator.bill()["tasks"]
    assert f"Kie task {charged['taskId']}" in str(outcome.error)
    assert files(tmp_path) == []


def test_without_pillow_nothing_is_ordered(kie_emulator, tmp_path, monkeypatch):
    monkeypatch.setattr(media.importlib.util, "find_spec", lambda name: None)
    outcome = run_task(generate(target=str(tmp_path)))

    assert (outcome.state, outcome.retried) == ("failed", False)
    assert "pip install 'airflow-provider-kie[images]'" in str(outcome.error)
    assert kie_emulator.bill()["tasks"] == []


@durable
def test_a_killed_try_saves_only_what_is_missing(kie_emulator, tmp_path, monkeypatch):
    """As after a kill -9 between the file and the success: the storage has the file, Airflow knows nothing."""
    put, calls = storage.put, []

    def killed(local, target):
        put(local, target)
        calls.append(target.name)
        if len(calls) == 1:
            raise KieStorageError("killed here")

    monkeypatch.setattr(storage, "put", killed)
    outcome = run_task(generate(target=str(tmp_path)))

    assert (outcome.state, outcome.tries) == ("success", 2)
    kie_task_id = outcome.result["kie_task_id"]
    assert calls == [f"{kie_task_id}-0.png", f"{kie_task_id}-0.thumb.jpg", f"{kie_task_id}-0.json"]
    assert kie_emulator.bill()["charged_total"] == 5


def test_a_fixed_name_that_is_taken_is_refused_before_paying(kie_emulator, tmp_path):
    first = run_task(generate(target=str(tmp_path), file_name="cover.{extension}"))
    second = run_task(generate(target=str(tmp_path), file_name="cover.{extension}", prompt="a blue fox"))
    third = run_task(generate(target=str(tmp_path), file_name="cover.{extension}", prompt="a blue fox", overwrite=True))

    assert (first.state, second.state, third.state) == ("success", "failed", "success")
    assert_tells(second.error, "cover.png", "file_name='cover.{extension}'")
    assert not second.retried
    assert files(tmp_path) == ["cover.json", "cover.png", "cover.thumb.jpg"]
    assert json.loads((tmp_path / "cover.json").read_text())["prompt"] == "a blue fox"
    assert len(kie_emulator.bill()["tasks"]) == 2


def test_mapped_with_native_rendering_and_a_trigger_rule(kie_emulator, tmp_path):
    kie_emulator.fault({"on": "createTask", "do": "fail", "failMsg": "flagged", "match": {"prompt": "bad"}})
    with new_dag(render_template_as_native_obj=True) as dag:
        images = Flux2GenerateImageOperator.partial(
            task_id="image", target=str(tmp_path), poll_interval=0.1, deferrable=True, retries=0
        ).expand(prompt=["a red fox", "bad", "a blue fox"])

        @task(trigger_rule="all_done")
        def count(results):
            return len([result for result in results if isinstance(result, dict) and result["files"]])

        count(images.output)
    outcomes = run_dag(dag)

    assert [outcomes["image", index].state for index in range(3)] == ["success", "failed", "success"]
    assert outcomes["count", -1].result == 2
    assert len(files(tmp_path)) == 6
    assert kie_emulator.bill()["charged_total"] == 10


def test_a_home_folder_and_a_file_url(kie_emulator, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for target in ("~/images", f"file://{tmp_path}/images"):
        outcome = run_task(generate(target=target))

        [file] = outcome.result["files"]
        assert file["path"] == str(tmp_path / "images" / f"{outcome.result['kie_task_id']}-0.png")
        with open(file["path"], "rb") as image:  # noqa: PTH123  # as an author would
            assert len(image.read()) == file["bytes"]


def asset_events(kie_task_id):
    from airflow.models.asset import AssetEvent
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        extras = [event.extra for event in session.scalars(select(AssetEvent))]
    return [extra for extra in extras if extra.get("kie_task_id") == kie_task_id]


def test_an_asset_learns_of_the_files(kie_emulator, tmp_path):
    asset = Asset(f"images_of_{tmp_path.name}")
    outcome = run_task(generate(target=str(tmp_path), outlets=[asset]))

    events = asset_events(outcome.result["kie_task_id"])
    assert events == [{name: outcome.result[name] for name in ("kie_task_id", "model", "files")}]


def test_a_result_of_which_only_the_urls_are_known(kie_emulator, tmp_path):
    made = run_task(generate()).result
    result = {name: made[name] for name in ("kie_task_id", "urls")}
    outcome = run_task(
        lambda **kw: KieSaveResultOperator(
            result=result, target=str(tmp_path), outlets=[Asset(f"images_of_{tmp_path.name}")], **kw
        )
    )

    assert outcome.state == "success", outcome.error
    events = asset_events(made["kie_task_id"])
    assert events == [{"kie_task_id": made["kie_task_id"], "model": None, "files": outcome.result["files"]}]


def test_an_asset_learns_of_a_whole_sheet(kie_emulator, tmp_path):
    from airflow.models.asset import AssetEvent
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with new_dag() as dag:
        images = Flux2GenerateImageOperator.partial(task_id="image", target=str(tmp_path), poll_interval=0.1).expand(
            prompt=["a red fox", "a blue fox"]
        )
        KieContactSheetOperator(
            task_id="sheet", results=images.output, target=str(tmp_path), outlets=[Asset(f"sheet_of_{tmp_path.name}")]
        )
    outcomes = run_dag(dag)

    manifest = outcomes["sheet", -1].result["manifest"]
    with create_session() as session:
        [extra] = [
            event.extra for event in session.scalars(select(AssetEvent)) if event.extra.get("manifest") == manifest
        ]
    assert extra["files"] == [outcomes["image", index].result["files"][0] for index in range(2)]


def test_lineage_reports_what_was_written(kie_emulator, tmp_path, monkeypatch):
    seen = []

    class Collector:
        def add_output_asset(self, context, uri):
            seen.append(uri)

    monkeypatch.setattr(storage, "get_hook_lineage_collector", Collector)
    outcome = run_task(generate(target=str(tmp_path)))

    [file] = outcome.result["files"]
    assert seen == [Path(file[name]).as_uri() for name in ("path", "thumbnail", "sidecar")]


def test_prices_of_ones_own(kie_emulator, tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW__KIE__USD_PER_CREDIT", "0.004")
    outcome = run_task(generate(target=str(tmp_path)))
    assert json.loads(Path(outcome.result["files"][0]["sidecar"]).read_text())["usd"] == 0.02

    monkeypatch.setenv("AIRFLOW__KIE__PRICES", "{")
    outcome = run_task(generate(target=str(tmp_path)))
    assert (outcome.state, outcome.retried) == ("failed", False)
    assert "section [kie], prices: must be an object" in str(outcome.error)
    assert len(kie_emulator.bill()["tasks"]) == 1
