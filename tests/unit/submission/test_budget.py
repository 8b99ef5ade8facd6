import pytest

from kie_provider.client.errors import KieBudgetError
from kie_provider.submission.budget import Budget
from tests.support.messages import assert_tells


def never():
    raise AssertionError("the balance was asked for")


def refusal(budget, estimate, balance=100.0):
    with pytest.raises(KieBudgetError) as caught:
        budget.check("the order", estimate, lambda: balance)
    assert not caught.value.is_transient
    return caught.value.message


def test_no_budget_allows_anything_and_asks_nothing():
    Budget().check("the order", 1e9, never)
    Budget().check("the order", None, never)


def test_the_limit_itself_is_allowed_and_a_credit_more_is_not():
    Budget(max_credits=5).check("the order", 5, never)
    assert_tells(refusal(Budget(max_credits=4), 5), "the order: 5 credits", "max_credits=4")


def test_what_is_left_on_the_account():
    Budget(min_credits_left=95).check("the order", 5, lambda: 100)
    assert_tells(refusal(Budget(min_credits_left=96), 5), "the order: 5 credits of 100", "95", "min_credits_left=96")


@pytest.mark.parametrize("budget", [Budget(max_credits=0.5), Budget(min_credits_left=100)])
def test_one_credit_is_no_plural(budget):
    assert refusal(budget, 1).startswith("the order: 1 credit")
    assert "1 credits" not in refusal(budget, 1)


def test_what_has_no_price_is_not_guessed():
    assert_tells(refusal(Budget(max_credits=5), None), "the order: ", "no price", "[kie] prices")
