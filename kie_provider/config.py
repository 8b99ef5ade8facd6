"""Section ``[kie]`` of Airflow's configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import AirflowFailException, conf

from kie_provider.client.errors import KieConnectionError

if TYPE_CHECKING:
    from kie_provider.client.prices import PriceTable

SECTION = "kie"
#: Kie repeats a callback for minutes, not for days.
MAX_CALLBACK_PATIENCE = 86_400.0


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


def callback_patience() -> float:
    """Return for how many seconds an unknown submission waits for Kie's callback; default 1200.

    :raises AirflowFailException: it is not a number in that range.
    """
    given = conf.get(SECTION, "callback_patience", fallback="") or "1200"
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MAX_CALLBACK_PATIENCE:
        raise AirflowFailException(
            f"Airflow's configuration, section [{SECTION}], callback_patience: must be seconds from 0 to "
            f"{MAX_CALLBACK_PATIENCE:.0f}, got {given!r:.100}"
        )
    return seconds


def callback_base_url() -> str:
    """Return where Kie reaches the API server, for connections that do not say it; empty: nowhere.

    :raises KieConnectionError: it is not a base URL.
    """
    from kie_provider.client.endpoint import check_callback_base_url

    url = str(conf.get(SECTION, "callback_base_url", fallback="") or "").strip()
    try:
        return url and check_callback_base_url(url)
    except KieConnectionError as error:
        raise KieConnectionError(f"Airflow's configuration, section [{SECTION}], {error.message}") from None
