"""Whoever says what a result has cost gives the same answer."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
from PIL import Image

from kie_provider.batch.items import Item
from kie_provider.batch.report import Report
from kie_provider.client.prices import PriceTable
from kie_provider.contact_sheet import write_contact_sheet
from kie_provider.files.provenance import RunFacts, SavedFile, sidecar
from kie_provider.files.storage import storage_path
from kie_provider.operators.results import KieSaveResultOperator
from kie_provider.plugin.outputs import TaskOutput
from kie_provider.plugin.page import headline
from kie_provider.plugin.pictures import pictures_of
from kie_provider.waiting import log_success

PRICES = PriceTable.parse()
RUN = RunFacts("a_dag", "a_run", "a_task", -1, 1)


@pytest.fixture
def result(tmp_path):
    path = tmp_path / "fox.png"
    Image.new("RGB", (64, 64)).save(path)
    return {
        "kie_task_id": "0123456789abcdef0123456789abcdef",
        "model": "flux-2/pro-text-to-image",
        "state": "success",
        "urls": ["https://kie.example/fox.png"],
        "input": {"prompt": "a red fox", "resolution": "2K"},
        "files": [SavedFile(str(path), "ab", "ab", 1, "image/png", 64, 64, f"{path}.json").to_json()],
    }


@pytest.mark.parametrize(
    ("changes", "cost"),
    [
        ({"credits_consumed": 6.5}, 6.5),
        ({"credits_consumed": 0}, 0.0),
        ({"credits_consumed": None}, 7.0),
        ({}, 7.0),
        ({"credits_consumed": -1}, 7.0),
        ({"credits_consumed": True}, 7.0),
        ({"credits_consumed": None, "model": "google/nano-banana"}, None),
        ({"credits_consumed": None, "input": None}, None),
    ],
    ids=[
        "charged",
        "nothing charged",
        "not told",
        "no such field",
        "nonsense",
        "no number",
        "unknown model",
        "no input",
    ],
)
def test_everybody_gives_the_same_answer(result, changes, cost, tmp_path, caplog):
    result |= changes
    file = SavedFile.from_json(result["files"][0])
    told = sidecar(result, 0, file, RUN, PRICES, redact_prompt=False, embedded=False)
    assert (told["credits"], told["usd"]) == (cost, None if cost is None else round(cost * 0.005, 4))

    item = Item(0, {}, "", state="saved", result=result)
    manifest = Report([item], PRICES, RUN, storage_path("target", tmp_path), redact_prompt=False).manifest_content(None)
    sheet = write_contact_sheet([result], tmp_path, prices=PRICES)
    totals = json.loads(Path(sheet["manifest"]).read_text())["totals"]
    assert manifest["credits"] == sheet["credits"] == totals["credits"] == (cost or 0.0)
    assert manifest["usd"] == totals["usd"] == round((cost or 0.0) * 0.005, 4)

    output = TaskOutput(
        "a_dag", "a_run", "a_task", -1, "KieSaveResultOperator", "success", None, {"return_value": result}
    )
    pictures = pictures_of([output], lambda *_: [], PRICES)
    words = "" if cost is None else f"{cost:g} credits"
    assert headline(pictures) == f"1 image \u00b7 {words or '0 credits'}"
    [page_facts] = [picture.tile().facts() for picture in pictures]
    [sheet_facts] = re.findall(r'<p class="facts">(.*?)</p>', Path(sheet["html"]).read_text())
    assert page_facts == ([words] if words else []) + ["64 \u00d7 64"]
    assert sheet_facts.startswith(f"{words} \u00b7 $" if words else "64 \u00d7 64")

    with caplog.at_level(logging.INFO):
        log_success(logging.getLogger("a_task"), result)
    assert caplog.messages[-1].endswith(words or "credits not known")

    operator = KieSaveResultOperator(task_id="a_task", result=result, target="/data")
    operator._result = result
    assert operator._facts().charged == cost


def test_many_results_cost_the_sum_of_what_is_known(result, tmp_path):
    unknown = {**result, "model": "google/nano-banana"}
    results = [{**result, "credits_consumed": 0.1}] * 3 + [result, unknown]
    sheet = write_contact_sheet(results, tmp_path, prices=PRICES)
    items = [Item(n, {}, "", state="saved", result=each) for n, each in enumerate(results)]
    report = Report(items, PRICES, RUN, storage_path("target", tmp_path), redact_prompt=False)
    assert sheet["credits"] == report.credits == PRICES.total_of(results) == 7.3
