"""The example DAGs, as they are, against the emulator."""

from __future__ import annotations

import hashlib
import json
import runpy
from pathlib import Path

import pytest
from PIL import Image

from tests.support import airflow_inprocess, demo
from tests.support.airflow_inprocess import load_dag

DAGS = Path(__file__).parents[3] / "dags"


def run_dag(dag, folder):
    """Run an example as an asset or an API call does that names no logical date: there is no ``{{ ds }}`` then."""
    return airflow_inprocess.run_dag(dag, {"output_dir": str(folder)}, logical_date=None)


@pytest.mark.parametrize("file", sorted(DAGS.glob("*.py")), ids=lambda file: file.stem)
def test_every_task_has_retries(file):
    assert [task.task_id for task in load_dag(file).tasks if not task.retries] == []


def test_single_image(kie_emulator, tmp_path):
    outcomes = run_dag(load_dag(DAGS / "flux2_single_image.py"), tmp_path)

    assert {key: outcome.state for key, outcome in outcomes.items()} == {
        ("create", -1): "success",
        ("wait", -1): "success",
        ("save", -1): "success",
    }
    assert outcomes["wait", -1].result["urls"]
    [image] = saved_images(outcomes, "save")
    assert image.parent.parent == tmp_path
    assert kie_emulator.bill()["charged_total"] == 5


@pytest.mark.parametrize("one_fails", [False, True])
def test_daily_content(kie_emulator, tmp_path, one_fails):
    if one_fails:
        kie_emulator.fault(
            {"on": "createTask", "do": "fail", "failMsg": "The prompt was flagged", "match": {"prompt": "hills"}}
        )
    outcomes = run_dag(load_dag(DAGS / "flux2_daily_content.py"), tmp_path)

    made = 3 if one_fails else 4
    states = [outcome.state for (task_id, _), outcome in outcomes.items() if task_id == "image"]
    assert sorted(states) == sorted(["success"] * made + ["failed"] * (4 - made))
    images = saved_images(outcomes, "image")
    assert [path.parent.parent for path in images] == [tmp_path] * made
    for image in images:
        with Image.open(image) as opened:
            assert opened.width / opened.height == pytest.approx(4 / 3, rel=0.05)
    assert kie_emulator.bill()["charged_total"] == 5 * made
    assert one_fails or demo.expected_cost() == (made, kie_emulator.bill()["charged_total"])

    sheet = outcomes["contact_sheet", -1].result
    assert (sheet["images"], sheet["missing"], sheet["credits"]) == (made, 4 - made, 5 * made)
    assert Path(sheet["html"]).read_text().count("<img ") == made
    manifest = json.loads(Path(sheet["manifest"]).read_text())
    listed = [Path(file["path"]) for result in manifest["results"] for file in result["files"]]
    assert sorted(listed) == sorted(images)
    sheets = [Path(sheet[name]) for name in ("html", "png", "manifest")]
    beside = [image.with_suffix(suffix) for image in images for suffix in (".json", ".thumb.jpg")]
    assert sorted(images[0].parent.iterdir()) == sorted([*images, *beside, *sheets])


def test_batch(kie_emulator, tmp_path, monkeypatch):
    connection = {**kie_emulator.connection, "extra": {**kie_emulator.connection["extra"], "submit_limit": 100}}
    monkeypatch.setenv("AIRFLOW_CONN_KIE_DEFAULT", json.dumps(connection))
    kie_emulator.fault(
        {
            "on": "createTask",
            "do": "fail",
            "failMsg": "It was flagged",
            "match": {"prompt": "blue pair of boots"},
            "times": None,
        }
    )
    outcomes = run_dag(load_dag(DAGS / "flux2_batch.py"), tmp_path)

    assert {outcome.state for outcome in outcomes.values()} == {"success"}
    batch, sheet = outcomes["images", -1].result, outcomes["contact_sheet", -1].result
    assert (batch["images"], batch["saved"], batch["failed"], batch["credits"]) == (24, 23, 1, 115)
    assert (sheet["images"], sheet["missing"], sheet["credits"]) == (23, 1, 115)
    assert len(list(tmp_path.rglob("*.png"))) == 23 + 1
    paths = runpy.run_path(str(DAGS.parent / "docs" / "examples" / "read_manifest.py"))["paths_by_prompt"]
    assert sorted(map(Path, paths.function(batch).values())) == sorted(
        path for path in tmp_path.rglob("*.png") if path.name != "contact_sheet.png"
    )


def test_image_to_image(kie_emulator, tmp_path):
    outcomes = run_dag(load_dag(DAGS / "flux2_image_to_image.py"), tmp_path)

    [original] = saved_images(outcomes, "original")
    restyled = saved_images(outcomes, "restyle")
    assert len(restyled) == 3
    for image in restyled:
        with Image.open(image) as opened:
            assert opened.width / opened.height == pytest.approx(3 / 2, rel=0.05)
    assert kie_emulator.bill()["charged_total"] == 4 * 5
    requests = kie_emulator.requests()
    assert len([request for request in requests if request["path"].endswith("upload")]) == 1
    orders = [request["json"] for request in requests if request["path"].endswith("createTask")]
    assert [order["model"] for order in orders] == ["flux-2/pro-text-to-image"] + ["flux-2/pro-image-to-image"] * 3
    [url] = {url for order in orders[1:] for url in order["input"]["input_urls"]}
    assert hashlib.sha256(original.read_bytes()).hexdigest()[:32] in url


def test_taskflow(kie_emulator, tmp_path):
    outcomes = run_dag(load_dag(DAGS / "flux2_taskflow.py"), tmp_path)

    images = saved_images(outcomes, "illustrate")
    assert len(images) == 3
    pages = [Path(outcomes["publish", index].result) for index in range(3)]
    assert [page.with_suffix(image.suffix) for page, image in zip(pages, images, strict=True)] == images
    assert all(image.name in page.read_text() for page, image in zip(pages, images, strict=True))
    assert kie_emulator.bill()["charged_total"] == 3 * 5


def saved_images(outcomes, task_id):
    """Return the image files of a task's instances, each of which is there and decodes."""
    results = [outcome.result for (name, _), outcome in sorted(outcomes.items()) if name == task_id and outcome.result]
    paths = [Path(file["path"]) for result in results for file in result["files"]]
    for path in paths:
        with Image.open(path) as image:
            image.load()
    return paths
