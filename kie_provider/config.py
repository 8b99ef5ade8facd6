"""Section ``[kie]`` of Airflow's configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import AirflowFailException, conf

if TYPE_CHECKING:
    from kie_provider.client.prices import PriceTable

SECTION = "kie"


def price_table() -> PriceTable:
    """Return the list prices, with what ``[kie] prices`` and ``[kie] usd_per_credit`` put in their place.

    :raises AirflowFailException: an option makes no sense; the message names it.
    """
    from kie_provider.client.prices import PriceTable

    try:
        return PriceTable.parse(
            conf.get(SECTION, "prices", fallback=""), conf.get(SECTION, "usd_per_credit", fallback="")
        )
    except ValueError as error:
        raise AirflowFailException(f"Airflow's configuration, section [{SECTION}], {error}") from None


def shown_prices() -> PriceTable:
    """Return the price table for what only tells a cost, such as a log line: a wrong option does not stop that."""
    from kie_provider.client.prices import PriceTable

    try:
        return price_table()
    except AirflowFailException:
        return PriceTable.parse()


def rate_limit_storage() -> str:
    """Return where the fleet shares the limit on new tasks; empty: every process keeps it alone."""
    return str(conf.get(SECTION, "rate_limit_storage", fallback="") or "").strip()
