"""The example DAGs, as they are, against the emulator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.airflow_inprocess import load_dag, run_dag

DAGS = Path(__file__).parents[3] / "dags"


def test_single_image(kie_emulator):
    outcomes = run_dag(load_dag(DAGS / "flux2_single_image.py"))

    assert {key: outcome.state for key, outcome in outcomes.items()} == {
        ("create", -1): "success",
        ("wait", -1): "success",
    }
    assert outcomes["wait", -1].result["urls"]
    assert kie_emulator.bill()["charged_total"] == 5


@pytest.mark.parametrize("one_fails", [False, True])
def test_daily_content(kie_emulator, tmp_path, one_fails):
    from PIL import Image

    if one_fails:
        kie_emulator.fault(
            {"on": "createTask", "do": "fail", "failMsg": "The prompt was flagged", "match": {"prompt": "hills"}}
        )
    outcomes = run_dag(load_dag(DAGS / "flux2_daily_content.py"), conf={"output_dir": str(tmp_path)})

    made = 3 if one_fails else 4
    [folder] = tmp_path.iterdir()
    images = sorted(p for p in folder.glob("*.png") if p.name != "contact_sheet.png")
    assert len(images) == made
    for image in images:
        with Image.open(image) as opened:
            opened.load()
            assert opened.width / opened.height == pytest.approx(4 / 3, rel=0.05)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(entry["file"] for entry in manifest) == [str(image) for image in images]
    page = (folder / "contact_sheet.html").read_text()
    assert page.count("<img ") == made
    assert page.count('class="failed"') == 4 - made
    assert (folder / "contact_sheet.png").exists()
    assert kie_emulator.bill()["charged_total"] == 5 * made
    states = [outcome.state for (task_id, _), outcome in outcomes.items() if task_id == "make_image.download"]
    assert sorted(states) == sorted(["success"] * made + ["upstream_failed"] * (4 - made))
