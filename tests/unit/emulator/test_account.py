"""Balance, holds, bill and the window of the rate limit."""

from __future__ import annotations

import pytest

from kie_provider.emulator.account import Account
from kie_provider.emulator.models import Refusal, accept
from kie_provider.emulator.settings import Settings
from kie_provider.emulator.tasks import Outcome

NOW = 1_789_126_694.0


def request(resolution: str = "1K"):
    fields = {"prompt": "a red fox", "aspect_ratio": "1:1", "resolution": resolution}
    return accept({"model": "flux-2/pro-text-to-image", "input": fields})


def test_price_is_held_at_once_and_released_only_by_failure():
    account = Account(Settings(credits=20, generating_seconds=10))
    account.create(request(), Outcome(), NOW)
    account.create(request("2K"), Outcome("fail"), NOW)
    assert account.credits_left(NOW) == 20 - 5 - 7
    assert account.credits_left(NOW + 11) == 20 - 5


def test_a_task_beyond_the_balance_is_refused_until_a_hold_is_released():
    account = Account(Settings(credits=9, generating_seconds=10))
    account.create(request(), Outcome("fail"), NOW)
    with pytest.raises(Refusal) as caught:
        account.create(request(), Outcome(), NOW + 1)
    assert caught.value.code == 402
    assert caught.value.msg.startswith("Credits insufficient : Your current balance isn't enough")
    assert len(account.tasks) == 1
    account.create(request(), Outcome(), NOW + 11)
    assert account.credits_left(NOW + 11) == 4


def test_the_last_credit_can_be_spent():
    account = Account(Settings(credits=5))
    account.create(request(), Outcome(), NOW)
    assert account.credits_left(NOW) == 0


def test_bill_adds_up():
    account = Account(Settings(credits=100, generating_seconds=10))
    first = account.create(request(), Outcome(), NOW)
    second = account.create(request("2K"), Outcome("fail"), NOW + 1)
    running, ended = account.bill(NOW + 2), account.bill(NOW + 20)
    for bill in (running, ended):
        assert bill["credits_start"] == bill["credits_left"] + bill["charged_total"] == 100
        assert bill["charged_total"] == sum(task["credits"] for task in bill["tasks"])
        assert [task["taskId"] for task in bill["tasks"]] == [first.id, second.id]
    assert (running["charged_total"], ended["charged_total"]) == (12, 5)
    assert ended["tasks"][1] == {
        "taskId": second.id,
        "model": "flux-2/pro-text-to-image",
        "prompt": "a red fox",
        "state": "fail",
        "credits": 0.0,
        "created_at": "2026-09-11T11:38:15.000Z",
    }


def test_ids_are_32_lower_case_hex_and_differ():
    account = Account(Settings())
    ids = {account.create(request(), Outcome(), NOW).id for _ in range(50)}
    assert len(ids) == 50
    assert all(len(i) == 32 and set(i) <= set("0123456789abcdef") for i in ids)


def test_window_lets_through_its_limit_and_slides():
    account = Account(Settings())
    for n in range(20):
        account.count_create(NOW + n * 0.1)
    with pytest.raises(Refusal) as caught:
        account.count_create(NOW + 9.99)
    assert (caught.value.code, caught.value.msg) == (429, "Your call frequency is too high. Please try again later.")
    account.count_create(NOW + 10.0)  # the first of the 20 has left the window; the refused one never entered it
    with pytest.raises(Refusal):
        account.count_create(NOW + 10.05)


@pytest.mark.parametrize(
    ("header", "known"),
    [
        ("Bearer emulator-key", True),
        ("Bearer other", False),
        ("Bearer emulator-key ", False),
        ("emulator-key", False),
        ("Basic emulator-key", False),
        ("Bearer schlüssel", False),
        ("", False),
        (None, False),
    ],
)
def test_only_the_exact_bearer_header_is_known(header, known):
    assert Account(Settings()).accepts(header) is known


def test_unknown_task():
    with pytest.raises(Refusal) as caught:
        Account(Settings()).task("nope")
    assert (caught.value.code, caught.value.msg) == (422, "recordInfo is null")
