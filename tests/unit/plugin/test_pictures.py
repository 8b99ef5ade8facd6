"""From what task instances have left to pictures and gaps."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import ClassVar

import pytest

from kie_provider.client.prices import PriceTable
from kie_provider.plugin.outputs import TaskOutput
from kie_provider.plugin.page import PAGE_SIZE, View, all_page, headline, placeholder, run_page
from kie_provider.plugin.pictures import Picture, file_of, pictures_of

IDS = [f"{n:032x}" for n in range(9)]
FILE = {
    "path": "/data/a.png",
    "thumbnail": "/data/a.thumb.jpg",
    "media_type": "image/png",
    "width": 1024,
    "height": 768,
    "stored_sha256": "ab" * 32,
}


def result(kie_task_id=IDS[0], **changes):
    return {
        "kie_task_id": kie_task_id,
        "model": "flux-2/pro-text-to-image",
        "urls": ["https://kie.example/a.png"],
        "credits_consumed": 5.0,
        "cost_seconds": 7,
        "completed_at": datetime.now(timezone.utc).isoformat(),
        "input": {"prompt": "a red fox"},
        "files": [FILE],
        **changes,
    }


def output(value=None, state="success", operator="Flux2GenerateImageOperator", task_id="image", rendered=None, **xcoms):
    values = {**({} if value is None else {"return_value": value}), **xcoms}
    return TaskOutput("a_dag", "a_run", task_id, -1, operator, state, None, values, rendered or {})


def shown(*outputs, items="nothing is read here"):
    return pictures_of(outputs, lambda *_: items, PriceTable.parse())


class TestResults:
    def test_a_saved_file(self):
        [picture] = shown(output(result()))
        assert (picture.state, picture.number, picture.version, picture.has_thumbnail) == ("image", 0, "ab" * 8, True)
        tile = picture.tile()
        assert (tile.kind, tile.prompt, tile.where) == ("image", "a red fox", "/data/a.png")
        assert tile.facts() == ["5 credits", "7 s", "1024 \u00d7 768"]

    def test_several_files_are_charged_once(self):
        pictures = shown(output(result(files=[FILE, FILE, FILE])))
        assert [picture.tile().facts()[0] for picture in pictures] == ["1 of 3", "2 of 3", "3 of 3"]
        assert headline(pictures) == "3 images \u00b7 5 credits"

    def test_what_is_no_image(self):
        [picture] = shown(output(result(files=[{**FILE, "media_type": "video/mp4", "thumbnail": None}])))
        assert (picture.kind, picture.note, picture.has_thumbnail) == ("other", "video/mp4", False)

    @pytest.mark.parametrize(("age", "link"), [(1, "https://kie.example/a.png"), (25, None)])
    def test_a_link_that_was_not_saved_dies(self, age, link):
        then = (datetime.now(timezone.utc) - timedelta(hours=age)).isoformat().replace("+00:00", "Z")
        [picture] = shown(output(result(files=None, completed_at=then)))
        assert (picture.kind, picture.link) == ("other", link)
        assert ("expired" in picture.note) is (link is None)

    def test_creating_waiting_and_saving_are_one_picture(self):
        create = output(IDS[0], operator="Flux2CreateTaskOperator", task_id="create", rendered={"prompt": "a red fox"})
        wait = output(result(files=None), operator="Flux2TaskSensor", task_id="wait")
        save = output(result(), operator="KieSaveResultOperator", task_id="save")
        lost = output(
            None, "failed", "KieSaveResultOperator", "save", kie_failure={"reason": "full", "kie_task_id": IDS[0]}
        )

        assert [picture.output.task_id for picture in shown(create)] == ["create"]
        assert [picture.output.task_id for picture in shown(create, wait)] == ["wait"]
        assert [picture.output.task_id for picture in shown(create, save, wait)] == ["save"]
        [failed] = shown(create, wait, lost)
        assert (failed.state, failed.note) == ("failed", "full")

    @pytest.mark.parametrize("value", [5, [1], {"x": 1}, "s3://bucket/xcom/1.json", {"urls": 5}])
    def test_a_value_that_is_no_result(self, value):
        [picture] = shown(output(value))
        assert "custom XCom backend" in picture.note

    def test_a_contact_sheet_is_no_image(self):
        assert shown(output({"html": "/x.html", "png": "/x.png"}, operator="KieContactSheetOperator")) == []

    @pytest.mark.parametrize(
        ("number", "item", "changes"),
        [
            (1, -1, {}),
            (-1, -1, {}),
            (0, 0, {}),
            (0, -1, {"files": [5]}),
            (0, -1, {"files": [{"path": 5}]}),
            (0, -1, {"files": {}}),
        ],
    )
    def test_a_file_that_is_not_there(self, number, item, changes):
        assert file_of(output(result(**changes)), item, number, lambda *_: "no list") is None


class TestGaps:
    @pytest.mark.parametrize(
        ("state", "xcoms", "expected"),
        [
            ("failed", {"kie_failure": {"reason": "not nice enough"}}, ("failed", "not nice enough")),
            ("failed", {}, ("failed", "failed; see the log")),
            ("failed", {"kie_failure": "odd"}, ("failed", "failed; see the log")),
            ("upstream_failed", {}, ("failed", "upstream failed")),
            ("skipped", {}, ("failed", "skipped")),
            ("up_for_retry", {"kie_failure": {"reason": "busy"}}, ("running", "waiting for a retry: busy")),
            ("deferred", {}, ("running", "deferred")),
            (None, {}, ("running", "to come")),
        ],
    )
    def test_without_a_result(self, state, xcoms, expected):
        [picture] = shown(output(None, state, rendered={"prompt": "a red fox", "model": "flux-2/pro"}, **xcoms))
        assert (picture.state, picture.note) == expected
        assert (picture.tile().prompt, picture.tile().model) == ("a red fox", "flux-2/pro")

    @pytest.mark.parametrize("operator", ["Flux2TaskSensor", "KieSaveResultOperator"])
    def test_who_only_takes_over_is_no_gap_before_it_fails(self, operator):
        assert shown(output(None, "upstream_failed", operator)) == shown(output(None, None, operator)) == []
        assert len(shown(output(None, "failed", operator))) == 1


class TestBatch:
    COUNTS: ClassVar = {"images": 3, "saved": 1, "failed": 1, "manifest": "/data/batch.json"}

    def test_items(self):
        items = [
            {**result(IDS[1]), "item": 0, "outcome": "saved"},
            {"item": 1, "outcome": "failed", "reason": "no", "kie_task_id": IDS[2], "input": {"prompt": "b"}},
            {"item": 2, "outcome": "not_submitted", "kie_task_id": None, "input": {}},
            {"item": "x"},
        ]
        pictures = shown(output(self.COUNTS), items=items)
        assert [(p.item, p.state, p.note) for p in pictures] == [
            (0, "image", ""),
            (1, "failed", "no"),
            (2, "failed", "not submitted"),
        ]
        [*_, last] = shown(output(None, "deferred", progress=self.COUNTS), items=items)
        assert (last.state, last.note) == ("running", "not submitted")

    def test_without_its_list(self):
        [running] = shown(output(None, "running", progress=self.COUNTS), items="not there")
        [ended] = shown(output(self.COUNTS), items="not there")
        assert (running.state, running.note) == ("running", "3 images, 1 saved, 1 failed so far")
        assert (ended.state, ended.kind) == ("failed", "unreadable")
        assert ended.note.endswith("cannot be shown: not there")


class TestPage:
    EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>\ud83e"

    def test_whatever_comes_is_text(self):
        evil = self.EVIL
        told = result(model=evil, input={"prompt": evil}, files=[{**FILE, "path": evil, "stored_sha256": evil}])
        gap = output(None, "failed", rendered={"prompt": evil}, kie_failure={"reason": evil})
        named = TaskOutput(evil[:-1], evil[:-1], evil[:-1], 0, "X", "success", None, {"return_value": told})
        pictures = shown(named, gap)
        pages = [
            all_page(pictures, View(q=evil[:-1]), dags=[evil[:-1]], nonce="n"),
            run_page(pictures, View(), dag_id=evil[:-1], run_id=evil[:-1], task=(evil[:-1], 1), nonce="n"),
        ]
        for page in pages:
            assert page.count("<script") == 1
            assert "<img src=x" not in page
            page.encode()
        assert "<script" not in placeholder(evil)

    def test_pages_of_sixty(self):
        pictures = [Picture(output(), f"number {n}") for n in range(2 * PAGE_SIZE + 1)]
        last = all_page(pictures, View(page=9), dags=[], nonce="n")
        assert (last.count("<figure>"), "Page 3 of 3" in last) == (1, True)
        assert 'href="?dag=&amp;state=&amp;days=7&amp;q=&amp;page=2">Previous' in last
        assert "121 images" in last

    def test_a_long_reason_fits(self):
        assert placeholder("x" * 5000 + " word " * 500).count("<tspan") == 10
        assert placeholder("").count("<tspan") == 1
