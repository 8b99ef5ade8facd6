"""The budget guard in a task: refused before anything is sent, and never in the way of what is paid already."""

from __future__ import annotations

import pytest

from kie_provider.operators.flux2 import Flux2CreateTaskOperator, Flux2GenerateImageOperator
from tests.support.airflow_inprocess import run_task
from tests.support.kie import requests_to
from tests.support.messages import assert_tells
from tests.support.versions import durable


@pytest.mark.parametrize(
    ("budget", "facts"),
    [
        ({"max_credits": 6}, ("flux-2/pro-text-to-image at 2K: 7 credits", "max_credits=6")),
        (
            {"min_credits_left": 994},
            ("flux-2/pro-text-to-image at 2K: 7 credits of 1000", "993", "min_credits_left=994"),
        ),
        ({"max_credits": "6"}, ("flux-2/pro-text-to-image at 2K: 7 credits", "max_credits=6")),
        ({"max_credits": "{{ 'six' }}"}, ("max_credits: ", "at least 0, or None", "'six'")),
    ],
)
def test_too_small_by_one_credit(kie_emulator, budget, facts):
    outcome = run_task(lambda **kw: Flux2CreateTaskOperator(prompt="a red fox", resolution="2K", **budget, **kw))

    assert (outcome.state, outcome.retried) == ("failed", False)
    assert_tells(outcome.error, *facts)
    assert not requests_to(kie_emulator)


def test_just_enough(kie_emulator):
    budget = {"max_credits": 7, "min_credits_left": 993}
    outcome = run_task(
        lambda **kw: Flux2GenerateImageOperator(prompt="a red fox", resolution="2K", poll_interval=0.1, **budget, **kw)
    )

    assert outcome.state == "success", outcome.error
    assert kie_emulator.bill()["charged_total"] == 7


@durable
def test_a_retry_of_what_was_paid_needs_no_budget(kie_emulator, tmp_path):
    kie_emulator.fault({"on": "file", "do": "swap", "content_type": "image/png", "body": "<html>"})
    outcome = run_task(
        lambda **kw: Flux2GenerateImageOperator(
            prompt="a red fox", poll_interval=0.1, target=str(tmp_path), min_credits_left=995, **kw
        )
    )

    assert (outcome.state, outcome.tries) == ("success", 2)
    assert kie_emulator.bill()["charged_total"] == 5
