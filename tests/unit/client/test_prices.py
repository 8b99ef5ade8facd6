import pytest

from kie_provider.client.prices import LIST_PRICES, PriceTable


def test_list_prices():
    table = PriceTable.parse()
    assert {
        (model, resolution): table.credits_for(model, resolution)
        for model in LIST_PRICES
        for resolution in ("1K", "2K")
    } == {
        ("flux-2/pro-text-to-image", "1K"): 5,
        ("flux-2/pro-text-to-image", "2K"): 7,
        ("flux-2/pro-image-to-image", "1K"): 5,
        ("flux-2/pro-image-to-image", "2K"): 7,
        ("flux-2/flex-text-to-image", "1K"): 14,
        ("flux-2/flex-text-to-image", "2K"): 24,
        ("flux-2/flex-image-to-image", "1K"): 14,
        ("flux-2/flex-image-to-image", "2K"): 24,
    }
    assert (table.usd(5), table.usd(7), table.usd(None)) == (0.025, 0.035, None)


@pytest.mark.parametrize(
    "prices", ['{"flux-2/pro-text-to-image": {"1K": 4.5}}', {"flux-2/pro-text-to-image": {"1K": 4.5}}]
)
def test_ones_own_prices_count_where_there_are_some(prices):
    table = PriceTable.parse(prices, "0.004")
    assert table.credits_for("flux-2/pro-text-to-image", "1K") == 4.5
    assert table.credits_for("flux-2/pro-text-to-image", "2K") is None
    assert table.credits_for("flux-2/flex-text-to-image", "1K") == 14
    assert table.usd(4.5) == 0.018


def test_what_is_not_in_the_table():
    assert PriceTable.parse().credits_for("google/nano-banana", None) is None
    assert PriceTable.parse().credits_for(None, "1K") is None


@pytest.mark.parametrize(
    "prices", ["{", "[]", "3", '{"x": 3}', '{"x": {"1K": "5"}}', '{"x": {"1K": -1}}', '{"x": {"1K": NaN}}']
)
def test_bad_prices_are_named(prices):
    with pytest.raises(ValueError, match=r"^prices: "):
        PriceTable.parse(prices)


@pytest.mark.parametrize("usd", ["free", -1, "inf", "nan"])
def test_a_bad_rate_is_named(usd):
    with pytest.raises(ValueError, match=r"^usd_per_credit: must be a number of dollars"):
        PriceTable.parse("", usd)
