"""Many images in one task instance: what is made, what is paid, and what a later try does."""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import Asset

from kie_provider.batch.run import PROGRESS_KEY
from kie_provider.client.errors import KieAuthError, KieBatchError, KieInsufficientCreditsError, KieSubmitUnknownError
from kie_provider.submission.facts import success_fact, success_key
from tests.support.kie import INTERNAL, LOST, REFUSED, requests_to
from tests.support.messages import assert_tells
from tests.support.tries import at_first_try, cleared, crash
from tests.support.versions import HAS_STATE_STORE, durable, not_durable

DEFERRABLE = pytest.mark.parametrize("deferrable", [False, True])
WEB_PAGE = {"on": "file", "do": "swap", "content_type": "text/html", "body": "<html>expired</html>"}
FOXES = [f"a red fox, number {number}" for number in range(6)]


@pytest.fixture
def run(run_batch):
    return lambda prompts=FOXES, **fields: run_batch(prompts, **fields)


def manifest(outcome):
    return json.loads(Path(outcome.result["manifest"]).read_text(encoding="utf-8"))


def manifest_in(folder):
    [path] = folder.glob("it-*.json")
    return json.loads(path.read_text(encoding="utf-8"))


def outcomes_in(folder):
    return [item["outcome"] for item in manifest_in(folder)["items"]]


def counts(saved=0, failed=0, unknown=0, running=0, not_submitted=0):
    return {"saved": saved, "failed": failed, "unknown": unknown, "running": running, "not_submitted": not_submitted}


def at_try(number, do):
    """Return a pre_execute that calls ``do(context)`` at the beginning of one try."""

    def hook(context):
        ti = context["ti"]
        if ti.try_number == number and not ti.xcom_pull(task_ids=ti.task_id, key="done"):
            ti.xcom_push("done", value=True)
            do(context)

    return hook


def by_try(first, later):
    """Return a template that renders ``first`` in the first try and ``later`` in all others."""
    return f"{{{{ {first!r} if ti.try_number == 1 else {later!r} }}}}"


class TestAllIsWell:
    @DEFERRABLE
    def test_every_image_is_saved_by_one_task_instance(self, run, kie, tmp_path, deferrable):
        outcome = run(deferrable=deferrable)

        assert (outcome.state, outcome.tries) == ("success", 1), outcome.error
        told = manifest(outcome)
        expected = {"images": 6, **counts(saved=6), "credits": 30, "estimated_credits": 30, "try_number": 1}
        assert outcome.result == {**expected, "manifest": outcome.result["manifest"]}
        assert [item["input"]["prompt"] for item in told["items"]] == FOXES
        for item in told["items"]:
            [file] = item["files"]
            assert Path(file["path"]).stat().st_size == file["bytes"]
            assert json.loads(Path(file["sidecar"]).read_text())["prompt"] == item["input"]["prompt"]
        assert {task["taskId"] for task in kie.bill()["tasks"]} == {item["kie_task_id"] for item in told["items"]}
        assert kie.bill()["charged_total"] == 30
        assert len(list(tmp_path.iterdir())) == 3 * 6 + 1

    @DEFERRABLE
    def test_more_than_may_run_at_once(self, run, kie, monkeypatch, deferrable):
        monkeypatch.setattr("kie_provider.batch.engine.MAX_RUNNING", 2)
        monkeypatch.setattr("kie_provider.submission.journal.SUBMISSIONS_PER_SUMMARY", 2)

        outcome = run(deferrable=deferrable)

        assert outcome.result["saved"] == 6
        assert kie.bill()["charged_total"] == 30

    def test_items_may_differ(self, run, kie):
        outcome = run([FOXES[0], {"prompt": "an owl", "resolution": "2K", "model": "flux-2/flex"}], aspect_ratio="16:9")

        inputs = [(item["model"], item["input"]) for item in manifest(outcome)["items"]]
        assert inputs == [
            ("flux-2/pro-text-to-image", {"prompt": FOXES[0], "aspect_ratio": "16:9", "resolution": "1K"}),
            ("flux-2/flex-text-to-image", {"prompt": "an owl", "aspect_ratio": "16:9", "resolution": "2K"}),
        ]
        assert (outcome.result["credits"], outcome.result["estimated_credits"]) == (29, 29)

    def test_input_images_are_uploaded_once(self, run, kie, tmp_path):
        photo = run(["a photo"], target=str(tmp_path / "photo"))
        path = manifest(photo)["items"][0]["files"][0]["path"]

        outcome = run([{"prompt": each, "input_images": path} for each in FOXES], target=str(tmp_path / "edited"))

        assert outcome.result["saved"] == 6, outcome.error
        uploads = [each for each in kie.requests() if each["path"].endswith("upload")]
        assert len(uploads) == 1
        assert {item["model"] for item in manifest(outcome)["items"]} == {"flux-2/pro-image-to-image"}

    def test_equal_items_if_they_are_wanted(self, run, kie):
        outcome = run(["a red fox"] * 3, allow_duplicates=True)

        items = manifest(outcome)["items"]
        assert len({item["kie_task_id"] for item in items}) == 3
        assert kie.bill()["charged_total"] == 15

    def test_progress_is_in_xcom_and_log(self, run, tmp_path, log):
        seen = []

        def remember(context, result):
            ti = context["ti"]
            seen.append(ti.xcom_pull(task_ids=ti.task_id, key=PROGRESS_KEY))

        run(post_execute=remember)

        [path] = tmp_path.glob("it-*.json")
        assert seen == [{"images": 6, **counts(saved=6), "credits": 30, "manifest": str(path), "try_number": 1}]
        text = log()
        assert re.search(r"\d of 6 images saved, 0 failed, 0 unknown, \d running, .*; \d+ credits", text)
        assert re.search(r"6 of 6 images saved, 0 failed, 0 unknown, 0 running, .*; 30 credits", text)
        assert re.search(r"6 images, 30 credits .* 6 x flux-2/pro-text-to-image at 1K for 5", text)
        assert re.search(r"30 credits were charged, 30 .*estimated", text)

    def test_the_asset_learns_of_the_manifest(self, run, kie):
        events = []

        def remember(context, result):
            events.append((context["outlet_events"][Asset("images")].extra, result))

        run(outlets=[Asset("images")], post_execute=remember)

        [(extra, result)] = events
        assert extra == result

    def test_a_redacted_prompt_is_nowhere(self, run, tmp_path):
        run(redact_prompt=True)

        for path in tmp_path.glob("*.json"):
            assert "red fox" not in path.read_text()
        assert len({item["prompt_sha256"] for item in manifest_in(tmp_path)["items"]}) == 6


class TestNames:
    def test_every_item_has_the_name_it_asks_for(self, run, kie, tmp_path, log):
        prompts = [
            {"prompt": "A red fox, at dawn!", "file_name": "sku-17.{extension}"},
            {"prompt": "an owl", "file_name": "birds/{prompt_slug}-{item:03}.{extension}"},
            {"prompt": "A Blue Hare", "file_name": ""},
        ]

        outcome = run(prompts, file_name="{item}-{prompt_slug}.{extension}", deferrable=True)

        assert outcome.state == "success", outcome.error
        assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")) == [
            "2-a-blue-hare.png",
            "birds/an-owl-001.png",
            "sku-17.png",
        ]
        text = log()
        for line in (
            r"prompts\[0\] saved \(\d of 3\): sku-17.png",
            r"prompts\[1\] saved \(\d of 3\): birds/an-owl-001",
        ):
            assert re.search(line, text)
        assert_tells(text, *(f"saved ({number} of 3)" for number in (1, 2, 3)))

    def test_a_name_that_is_taken_is_refused_before_anything_is_sent(self, run, kie, tmp_path):
        (tmp_path / "3.png").write_text("somebody's")

        outcome = run(file_name="{item}.{extension}")

        assert (outcome.state, outcome.retried) == ("failed", False)
        assert_tells(outcome.error, "'3.png'", str(tmp_path))
        assert not requests_to(kie)

    @durable
    def test_another_name_orders_nothing_anew(self, run, kie, tmp_path):
        def crash(context, result=None):
            if context["ti"].try_number == 1:
                raise RuntimeError("the worker died")

        outcome = run(file_name=by_try("a-{item}.{extension}", "b-{item}.{extension}"), post_execute=crash)

        assert outcome.state == "success", outcome.error
        assert len(requests_to(kie)) == 6
        assert len(list(tmp_path.glob("b-*.png"))) == outcome.result["saved"] == 6


class TestBalance:
    @pytest.mark.parametrize("kie", [{"credits": 29}], indirect=True)
    def test_what_the_account_cannot_pay_is_refused_as_a_whole(self, run, kie):
        outcome = run()

        assert (outcome.state, outcome.retried) == ("failed", False)
        assert_tells(
            outcome.error, "6 images", "6 x flux-2/pro-text-to-image at 1K for 5", "30 credits", "has 29", "1 too few"
        )
        assert not requests_to(kie)
        assert sum(each["path"].endswith("/credit") for each in kie.requests()) == 1

    @pytest.mark.parametrize("kie", [{"credits": 30}], indirect=True)
    def test_just_enough(self, run, kie):
        assert run(min_credits_left=0).state == "success"
        assert sum(each["path"].endswith("/credit") for each in kie.requests()) == 1


class TestBadInput:
    @pytest.mark.parametrize(
        ("fields", "facts"),
        [
            ({"prompts": []}, ["prompts: is empty; give at least one"]),
            ({"prompts": "a red fox"}, ["prompts: ", "list of prompts or dicts", "'a red fox'"]),
            ({"prompts": ["a red fox", 7]}, ["prompts[1].prompt: ", "int 7"]),
            (
                {"prompts": [f"a red fox {n}" if n not in (3, 499) else "x" for n in range(500)]},
                ["prompts[3].prompt: 'x' has 1 character;", "prompts[499].prompt: 'x' has 1 character;"],
            ),
            ({"prompts": ["a red fox", "an owl", "a red fox"]}, ["prompts[2]: ", "prompts[0]", "allow_duplicates"]),
            ({"prompts": [{"prompt": "a red fox", "seed": 1}]}, ["prompts[0].seed: "]),
            ({"model": "flux-3", "resolution": "8K"}, ["prompts[0].model: 'flux-3'", "prompts[5].resolution: '8K'"]),
            ({"prompts": [{"prompt": "a red fox", "input_images": "/not/there.png"}]}, ["prompts[0].input_images: "]),
            ({"min_success": "{{ 1.5 }}"}, ["min_success: ", "above 0, up to 1", "'1.5'"]),
            ({"min_success": "{{ 'all' }}"}, ["min_success: ", "above 0, up to 1", "'all'"]),
            (
                {"timeout": "{{ none }}", "poll_interval": "{{ 0 }}"},
                ["poll_interval: ", "'0'", "timeout: ", "None"],
            ),
            ({"max_credits": "{{ 'nine' }}"}, ["max_credits: ", "'nine'"]),
            (
                {"file_name": "{index}.{extension}"},
                ["prompts[1].file_name: ", "'0.png'", "prompts[0]", "{item}", "{prompt_slug}"],
            ),
            (
                {"file_name": "{number}.{extension}"},
                ["file_name: '{number}.{extension}'", "'number'", "kie_task_id, index, extension, item, prompt_slug"],
            ),
            (
                {
                    "prompts": [{"prompt": "a red fox", "file_name": name} for name in ("a.png", "../a.{extension}")],
                    "allow_duplicates": True,
                },
                ["prompts[0].file_name: ", "'.{extension}'", "prompts[1].file_name: '../a.png'"],
            ),
            (
                {"file_name": "{prompt_slug}.{extension}", "redact_prompt": True},
                ["file_name: ", "{prompt_slug}"],
            ),
            ({"file_name": "{{ 'std::vector' }}-{kie_task_id}.{extension}"}, ["file_name: ", "has '::'"]),
            ({"target": "/data/\0"}, ["target: ", "control character"]),
            ({"target": ""}, ["target: ", "got ''"]),
            ({"on_wrong_size": "shrug"}, ["on_wrong_size: ", "'warn' or 'fail'", "'shrug'"]),
            (
                {"max_credits": 29},
                ["6 x flux-2/pro-text-to-image at 1K for 5", "30 credits", "max_credits=29"],
            ),
            ({"min_credits_left": 971}, ["30 credits of 1000", "970", "min_credits_left=971"]),
        ],
    )
    def test_is_named_before_anything_is_sent(self, run, kie, fields, facts):
        outcome = run(**fields)

        assert (outcome.state, outcome.retried) == ("failed", False)
        assert_tells(outcome.error, *facts)
        assert requests_to(kie) == []

    def test_a_budget_that_just_suffices(self, run):
        assert run(max_credits=30, min_credits_left=970).state == "success"

    def test_a_refused_key(self, run, kie, monkeypatch):
        connection = {**kie.connection, "password": "wrong"}
        monkeypatch.setenv("AIRFLOW_CONN_KIE_DEFAULT", json.dumps(connection))

        outcome = run()

        assert (outcome.state, outcome.retried) == ("failed", False)
        assert_tells(outcome.error, KieAuthError)
        assert not requests_to(kie)
        assert kie.bill()["tasks"] == []


class TestPartialSuccess:
    @DEFERRABLE
    def test_is_success_if_the_share_is_reached(self, run, kie, tmp_path, deferrable, log):
        kie.fault({**REFUSED, "match": {"prompt": "number 2"}})

        outcome = run(min_success=0.8, deferrable=deferrable)

        assert outcome.state == "success", outcome.error
        assert {**counts(saved=5, failed=1), "images": 6, "credits": 25}.items() <= outcome.result.items()
        failed = manifest(outcome)["items"][2]
        assert (failed["outcome"], failed["reason"], failed["input"]["prompt"]) == (
            "failed",
            "The content was flagged as NSFW",
            FOXES[2],
        )
        assert_tells(log(), "prompts[2] 'a red fox, number 2': failed", "The content was flagged as NSFW")

    @DEFERRABLE
    def test_is_a_final_failure_if_no_retry_can_help(self, run, kie, tmp_path, deferrable):
        kie.fault({**REFUSED, "match": {"prompt": "number 2"}})

        outcome = run(deferrable=deferrable)

        assert (outcome.state, outcome.retried) == ("failed", False)
        assert_tells(outcome.error, "5 of 6", "min_success=1", "prompts[2]", "flagged as NSFW", str(tmp_path))
        assert kie.bill()["charged_total"] == 25
        assert outcomes_in(tmp_path) == ["saved", "saved", "failed", "saved", "saved", "saved"]

    def test_kie_refuses_one(self, run, kie, tmp_path):
        kie.fault({"on": "createTask", "do": "code", "code": 422, "msg": "no foxes", "match": {"prompt": "number 1"}})

        outcome = run()

        assert (outcome.state, outcome.retried) == ("failed", False)
        assert outcomes_in(tmp_path) == ["saved", "failed", "saved", "saved", "saved", "saved"]
        assert "no foxes" in manifest_in(tmp_path)["items"][1]["reason"]

    @DEFERRABLE
    def test_kie_refuses_more_than_may_run_at_once(self, run, kie, tmp_path, monkeypatch, deferrable):
        monkeypatch.setattr("kie_provider.batch.engine.MAX_RUNNING", 2)
        kie.fault({"on": "createTask", "do": "code", "code": 422, "msg": "no foxes", "times": 3})

        outcome = run(min_success=0.5, deferrable=deferrable)

        assert outcome.state == "success", outcome.error
        assert sorted(outcomes_in(tmp_path)) == ["failed"] * 3 + ["saved"] * 3

    def test_an_account_that_runs_dry_leaves_the_rest_unordered(self, run, kie, tmp_path):
        kie.fault(
            {"on": "createTask", "do": "code", "code": 402, "msg": "Credits insufficient", "skip": 4, "times": None}
        )

        outcome = run()

        assert (outcome.state, outcome.retried) == ("failed", False)
        assert_tells(outcome.error, KieBatchError, "4 of 6", KieInsufficientCreditsError.summary)
        assert sorted(outcomes_in(tmp_path)) == ["not_submitted"] * 2 + ["saved"] * 4
        assert "Credits insufficient" in " ".join(item.get("reason", "") for item in manifest_in(tmp_path)["items"])
        assert kie.bill()["charged_total"] == 20
        assert 4 + 1 < len(requests_to(kie)) <= 4 + 2 * 2  # asked once more when the four were saved

    @pytest.mark.parametrize("kie", [{"credits": 50}], indirect=True)
    def test_an_empty_account_for_real(self, run, kie, tmp_path):
        run([f"an owl, number {n}" for n in range(6)], target=str(tmp_path / "owls"))

        outcome = run()

        assert_tells(outcome.error, "30 credits", "has 20", "10 too few")
        assert kie.bill()["charged_total"] == 30

    def test_one_that_never_ends(self, run, kie, tmp_path):
        kie.fault({"on": "createTask", "do": "stuck", "match": {"prompt": "number 3"}})

        outcome = run(timeout=1, min_success=0.5)

        assert outcome.state == "success", outcome.error
        assert outcomes_in(tmp_path) == ["saved"] * 3 + ["running"] + ["saved"] * 2


class TestUnknown:
    def test_one_lost_answer_stops_nothing_else(self, run, kie, tmp_path):
        kie.fault({**LOST, "match": {"prompt": "number 3"}})

        outcome = run()

        assert (outcome.state, outcome.retried) == ("failed", False)
        assert outcomes_in(tmp_path) == ["saved"] * 3 + ["unknown"] + ["saved"] * 2
        assert "prompts[3] 'a red fox, number 3': unknown" in str(outcome.error)
        assert len(requests_to(kie)) == 6

    @DEFERRABLE
    def test_three_in_a_row_stop_everything(self, run, kie, tmp_path, deferrable):
        kie.fault({**LOST, "skip": 1, "times": None})

        outcome = run([f"a red fox, number {number}" for number in range(12)], deferrable=deferrable)

        assert outcome.state == "failed"
        # Also when the first was saved in another phase, and there was room for more.
        outcomes = Counter(outcomes_in(tmp_path))
        assert outcomes["saved"] == 1
        assert 3 <= outcomes["unknown"] <= 3 + 3  # three more were in flight at most
        assert len(requests_to(kie)) == 1 + outcomes["unknown"]
        assert_tells(outcome.error, KieSubmitUnknownError.summary)

    @durable
    def test_is_ordered_again_by_a_retry_only_if_the_author_says_so(self, run, kie, tmp_path):
        kie.fault({**LOST, "match": {"prompt": "number 3"}})

        outcome = run(on_unknown_submit="resubmit", post_execute=at_first_try(crash), min_success=0.5)

        assert (outcome.state, outcome.tries) == ("success", 2)
        assert outcome.result["unknown"] == 1  # the first try had delivered, so the second returns the same

    @durable
    def test_resubmit(self, run, kie, tmp_path):
        kie.fault({**LOST, "match": {"prompt": "number 3"}})
        kie.fault({**INTERNAL, "match": {"prompt": "number 4"}})  # makes it try again

        outcome = run(on_unknown_submit="resubmit")

        assert (outcome.state, outcome.result["saved"]) == ("success", 6)
        assert kie.bill()["charged_total"] == 35


@durable
class TestRetry:
    @DEFERRABLE
    def test_orders_only_what_kie_has_failed_for_a_reason_of_its_own(self, run, kie, deferrable):
        kie.fault({**INTERNAL, "match": {"prompt": "number 2"}})

        outcome = run(deferrable=deferrable)

        assert isinstance(outcome.error, KieBatchError)
        assert (outcome.state, outcome.tries) == ("success", 2)
        assert outcome.result["saved"] == 6
        assert len(requests_to(kie)) == 7
        assert kie.bill()["charged_total"] == 30

    def test_saves_only_what_could_not_be_saved(self, run, kie, tmp_path):
        kie.fault({**WEB_PAGE, "times": 4, "match": {"prompt": "number 2"}})

        outcome = run()

        assert (outcome.state, outcome.tries) == ("success", 2)
        assert len(requests_to(kie)) == 6

    def test_after_it_was_delivered_returns_the_same(self, run, kie):
        outcome = run(post_execute=at_first_try(crash))

        assert (outcome.state, outcome.tries) == ("success", 2)
        assert outcome.result["saved"] == 6
        assert len(requests_to(kie)) == 6

    def test_with_another_order_of_the_list_pays_for_nothing(self, run, kie, tmp_path):
        kie.fault({**INTERNAL, "match": {"prompt": "number 0"}})
        prompts = by_try(FOXES, FOXES[::-1])

        outcome = run(prompts)

        assert (outcome.state, outcome.tries) == ("success", 2), outcome.error
        assert [item["input"]["prompt"] for item in manifest(outcome)["items"]] == FOXES[::-1]
        assert len(requests_to(kie)) == 7

    def test_with_other_prompts_goes_on_with_what_was_ordered(self, run, kie, log):
        kie.fault({**INTERNAL, "match": {"prompt": "number 0"}})
        owls = [f"an owl, number {number}" for number in range(6)]

        outcome = run(by_try(FOXES, owls))

        assert outcome.state == "success", outcome.error
        assert [item["input"]["prompt"] for item in manifest(outcome)["items"]] == [owls[0], *FOXES[1:]]
        assert len(requests_to(kie)) == 7
        assert_tells(log(), "5 items have changed", "prompts[1]")

    def test_waits_again_for_what_was_not_done_in_time(self, run, kie):
        kie.fault({"on": "recordInfo", "do": "not_visible", "match": {"prompt": "number 5"}, "times": 8})

        outcome = run(timeout=0.5, poll_interval=0.2, retries=4)

        assert isinstance(outcome.error, KieBatchError)
        assert (outcome.state, outcome.result["saved"]) == ("success", 6)
        assert len(requests_to(kie)) == 6

    def test_what_kept_it_from_ordering_is_forgotten_when_it_goes_on(self, run, kie, monkeypatch):
        monkeypatch.setattr("kie_provider.batch.engine.MAX_RUNNING", 2)
        kie.fault({"on": "createTask", "do": "code", "code": 402, "msg": "Credits insufficient", "skip": 1})
        kie.fault({**REFUSED, "match": {"prompt": "number 5"}})

        outcome = run()

        assert (outcome.state, outcome.retried) == ("failed", False)
        assert_tells(outcome.error, "5 of 6")
        assert KieInsufficientCreditsError.summary not in str(outcome.error)

    def test_after_the_network_was_away(self, run, kie, monkeypatch):
        from kie_provider.client.client import KieClient
        from kie_provider.client.errors import KieTransportError

        create_task, calls = KieClient.create_task_once, []

        def away(self, body, sent=None):
            calls.append(body)
            if len(calls) in (3, 4):
                raise KieTransportError("no route to host", may_have_arrived=False)
            return create_task(self, body, sent)

        monkeypatch.setattr(KieClient, "create_task_once", away)
        outcome = run()

        assert (outcome.state, outcome.result["saved"]) == ("success", 6)
        assert len(requests_to(kie)) == 6

    def test_an_execution_timeout_ends_the_batch_and_loses_nothing(self, run, kie):
        kie.fault({"on": "recordInfo", "do": "not_visible", "match": {"prompt": "number 5"}, "times": 12})

        outcome = run(poll_interval=0.2, retries=4, execution_timeout=timedelta(seconds=2))

        assert (outcome.state, outcome.retried) == ("success", True)
        assert len(requests_to(kie)) == 6

    def test_a_fence_that_cannot_be_put_up_orders_nothing(self, run, kie):
        def break_the_store(context):
            store = context["task_state_store"]

            def refuse(key, value, **kwargs):
                if key == "kie.1.1":
                    raise RuntimeError("the API server has gone")

            store.set = refuse

        outcome = run(pre_execute=break_the_store)

        assert outcome.state == "failed"
        assert "the API server has gone" in str(outcome.error)
        assert requests_to(kie) == []

    def test_a_journal_that_makes_no_sense_is_final(self, run, kie):
        outcome = run(pre_execute=lambda context: context["task_state_store"].set("kie.1.sum.1", "what?"))

        assert (outcome.state, outcome.retried) == ("failed", False)
        assert requests_to(kie) == []

    @DEFERRABLE
    @pytest.mark.parametrize("key", ["kie.1.sum.1", "kie.1.3", "kie.1.sum.2"])
    def test_a_journal_that_has_lost_a_fact_stops(self, run, kie, deferrable, key):
        """An entry too few: the images of it would be paid again."""
        kie.fault({**INTERNAL, "match": {"prompt": "number 0"}})

        def forget(context):
            if context["ti"].try_number == 2:
                context["task_state_store"].delete(key)

        outcome = run(pre_execute=forget, deferrable=deferrable, retries=2)

        # A summary holds what the intents hold, so one of both may go; the first one is what the try began with.
        is_lost = key == "kie.1.sum.1"
        assert (outcome.state, len(requests_to(kie))) == (("failed", 6) if is_lost else ("success", 7))
        assert is_lost == (f"the key {key!r}" in str(outcome.errors[-1]))

    def test_is_settled_by_one_fact(self, run, kie, tmp_path):
        keys = {}
        kie.fault({**LOST, "match": {"prompt": "number 3"}})
        kie.fault({**LOST, "match": {"prompt": "number 4"}})
        kie.fault({**INTERNAL, "match": {"prompt": "number 0"}})  # makes it try again

        def settle(context):
            if context["ti"].try_number == 2:
                for number in (3, 4):
                    reason = manifest_in(tmp_path)["items"][number]["reason"]
                    keys[number] = re.search(r"'(kie\.1\.\d\.settled)'", reason)[1]
                [known] = [each["taskId"] for each in kie.bill()["tasks"] if "number 3" in str(each)]
                context["task_state_store"].set(keys[3], known)
                context["task_state_store"].set(keys[4], "nothing")

        outcome = run(pre_execute=settle)

        assert (outcome.state, outcome.result["saved"]) == ("success", 6), outcome.errors
        assert len(requests_to(kie)) == 6 + 2
        assert_tells(
            outcome.error, "prompts[3] 'a red fox, number 3': unknown", repr(keys[3]), "JSON string", '"nothing"'
        )

    def test_a_list_that_has_become_bad_says_that_tasks_go_on(self, run, kie):
        kie.fault({**INTERNAL, "match": {"prompt": "number 0"}})

        outcome = run(by_try(FOXES, []))

        assert (outcome.state, outcome.tries) == ("failed", 2)
        assert len(requests_to(kie)) == 6


class TestWhatStandsInTheManifest:
    """It is a hint. What counts is an image that is there, with its JSON file."""

    @pytest.mark.parametrize("kie", [{"generating_seconds": 1.0}], indirect=True)  # longer than a slow first phase
    @pytest.mark.parametrize("ending", ["png", "json"])
    def test_an_image_that_was_deleted_between_two_phases_is_saved_again(self, run, kie, tmp_path, monkeypatch, ending):
        monkeypatch.setattr("kie_provider.batch.engine.MAX_RUNNING", 2)
        deleted = []

        def delete(context):
            if not deleted and (saved := list(tmp_path.glob(f"*-0.{ending}"))):
                deleted.append(saved[0])
                deleted[0].unlink()

        outcome = run(deferrable=True, pre_execute=delete)

        assert (outcome.state, outcome.result["saved"]) == ("success", 6), outcome.errors
        assert deleted[0].exists()
        assert {file["path"] for item in manifest(outcome)["items"] for file in item["files"]} == {
            str(path) for path in tmp_path.glob("*.png")
        }
        assert kie.bill()["charged_total"] == 30

    @durable
    @DEFERRABLE
    @pytest.mark.parametrize(
        "change",
        [
            lambda item, folder: item["files"][0].update(path="/etc/passwd"),
            lambda item, folder: item["files"][0].update(sidecar="/etc/passwd"),
            lambda item, folder: item["files"][0].update(path=str(next(folder.glob("*-0.json")))),
            lambda item, folder: item["files"][0].update(media_type="audio/mpeg"),
            lambda item, folder: item["files"][0].update(stored_sha256="0" * 64, sha256=5),
            lambda item, folder: item.update(files=[]),
            lambda item, folder: item.update(files=[], urls=[]),
            lambda item, folder: item.update(files=None, urls="http://x/", input=7, credits_consumed="five"),
            lambda item, folder: item.update(input=json.loads("[" * 200 + "]" * 200), credits_consumed=float("nan")),
            lambda item, folder: item.update(kie_task_id=["x"]),
        ],
    )
    def test_a_forged_entry_is_not_believed(self, run, kie, tmp_path, change, deferrable):
        kie.fault({**INTERNAL, "match": {"prompt": "number 5"}})  # makes it try again

        def forge(context):
            if context["ti"].try_number == 2:
                [path] = tmp_path.glob("it-*.json")
                content = json.loads(path.read_text())
                image = tmp_path / f"{content['items'][0]['kie_task_id']}-0.png"
                change(content["items"][0], tmp_path)
                path.write_text(json.dumps(content))
                image.unlink(missing_ok=True)  # a try has two phases where it defers

        outcome = run(FOXES[4:], pre_execute=forge, deferrable=deferrable)

        assert outcome.state == "success", outcome.errors
        assert (outcome.result["saved"], outcome.result["credits"]) == (2, 10)
        for item in manifest(outcome)["items"]:
            [file] = item["files"]
            assert file["path"] == str(tmp_path / f"{item['kie_task_id']}-0.png")
            assert Path(file["path"]).stat().st_size == file["bytes"]
        assert len(requests_to(kie)) == 3

    @durable
    @pytest.mark.parametrize(
        "content", ["", "{", "[]", '{"items": 5}', '{"items": [5, null, []]}', "[" * 10_000, "NaN"]
    )
    def test_one_that_makes_no_sense_is_written_anew(self, run, kie, tmp_path, content):
        kie.fault({**INTERNAL, "match": {"prompt": "number 5"}})

        def spoil(context):
            if context["ti"].try_number == 2:
                [path] = tmp_path.glob("it-*.json")
                path.write_text(content)

        outcome = run(FOXES[4:], pre_execute=spoil)

        assert (outcome.state, outcome.result["saved"]) == ("success", 2), outcome.errors
        assert len(requests_to(kie)) == 3


@pytest.mark.parametrize("body", ["抱歉，文件已过期".encode("gbk"), b"\0\0\0\x18ftypmp42" + b"\xff" * 99])
def test_what_is_no_image_is_downloaded_again(run, kie, tmp_path, monkeypatch, body):
    from kie_provider.client import client

    download, seen = client.download, []

    def swapped(url, path, **options):
        file = download(url, path, **options)
        if not seen:
            seen.append(url)
            path.write_bytes(body)
        return file

    monkeypatch.setattr(client, "download", swapped)
    outcome = run()

    if HAS_STATE_STORE:
        assert (outcome.state, outcome.tries, outcome.result["saved"]) == ("success", 2, 6), outcome.errors
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".png", ".jpg"}
    assert kie.bill()["charged_total"] == 30


@durable
class TestClear:
    def test_of_a_failed_batch_orders_only_what_is_missing(self, run, kie):
        kie.fault({**REFUSED, "match": {"prompt": "number 2"}})
        kie.fault({**INTERNAL, "match": {"prompt": "number 3"}})  # makes it try again

        outcome = run(pre_execute=cleared)

        assert (outcome.state, outcome.result["saved"]) == ("success", 6)
        assert len(requests_to(kie)) == 8
        assert kie.bill()["charged_total"] == 30

    def test_with_a_changed_list_pays_for_what_is_new_in_it(self, run, kie, tmp_path):
        kie.fault({**INTERNAL, "match": {"prompt": "number 3"}})
        changed = ["a hare", *FOXES[:4], "an owl"]

        outcome = run(by_try(FOXES, changed), pre_execute=cleared)

        assert (outcome.state, outcome.result["saved"]) == ("success", 6), outcome.error
        assert [item["input"]["prompt"] for item in manifest(outcome)["items"]] == changed
        assert len(requests_to(kie)) == 6 + 3
        assert kie.bill()["charged_total"] == 8 * 5

    def test_of_a_batch_that_has_succeeded_makes_all_anew(self, run, kie):
        def succeed_first(context, result=None):
            if context["ti"].try_number == 1:
                context["task_state_store"].set(success_key(1), success_fact(1))
                raise RuntimeError("not what follows a success, but the next try is one after a clear all the same")

        outcome = run(post_execute=succeed_first, pre_execute=cleared)

        assert (outcome.state, outcome.result["saved"]) == ("success", 6)
        assert len(requests_to(kie)) == 12
        assert kie.bill()["charged_total"] == 60

    def test_of_a_batch_that_failed_behind_its_delivery_pays_for_nothing(self, run, kie):
        outcome = run(post_execute=at_first_try(crash), pre_execute=cleared)

        assert (outcome.state, outcome.result["saved"]) == ("success", 6)
        assert len(requests_to(kie)) == 6

    def test_with_the_first_list_again_pays_for_nothing(self, run, kie):
        """What a clear with another list has left out is paid, and found again."""
        kie.fault({**INTERNAL, "match": {"prompt": "fox, number 0"}})
        kie.fault({**INTERNAL, "match": {"prompt": "owl, number 0"}})
        owls = [f"an owl, number {number}" for number in range(6)]
        prompts = f"{{{{ {[FOXES, owls, FOXES]!r}[ti.try_number - 1] }}}}"

        outcome = run(prompts, pre_execute=cleared, retries=3)

        assert (outcome.state, outcome.result["saved"], outcome.tries) == ("success", 6, 3), outcome.error
        assert [item["input"]["prompt"] for item in manifest(outcome)["items"]] == FOXES
        assert len(requests_to(kie)) == 6 + 6 + 1

    def test_with_other_prompts_then_a_retry_with_still_others(self, run, kie):
        """What a clear has left out is not taken over by the retry after it."""
        kie.fault({**INTERNAL, "match": {"prompt": "number 0"}})
        kie.fault({**INTERNAL, "match": {"prompt": "owl, number 0"}})
        birds = [[f"{bird}, number {number}" for number in range(6)] for bird in ("an owl", "a gull")]
        prompts = f"{{{{ {[FOXES, *birds]!r}[ti.try_number - 1] }}}}"

        def cleared_once(context):
            context["ti"].max_tries += 10 * (context["ti"].try_number > 1)

        outcome = run(prompts, pre_execute=cleared_once, retries=3)

        assert (outcome.state, outcome.result["saved"], outcome.tries) == ("success", 6, 3), outcome.error
        assert len(requests_to(kie)) == 6 + 6 + 1
        # five owls of the second try, and the one gull for the owl that Kie has failed
        saved = [item["input"]["prompt"] for item in manifest(outcome)["items"]]
        assert sorted(saved) == sorted([birds[1][0], *birds[0][1:]])


@not_durable
@DEFERRABLE
def test_without_a_journal_nothing_is_ordered_twice(run, kie, deferrable):
    kie.fault({**INTERNAL, "match": {"prompt": "number 2"}})

    outcome = run(deferrable=deferrable)

    assert (outcome.state, outcome.retried) == ("failed", False)
    assert_tells(outcome.error, "No retry")
    assert "running" not in str(outcome.error)
    assert len(requests_to(kie)) == 6
