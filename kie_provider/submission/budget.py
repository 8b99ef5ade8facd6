"""The budget: what the images of a task instance may cost, checked before the first is paid for."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kie_provider.client.errors import KieBudgetError, KieError, KieInsufficientCreditsError
from kie_provider.client.plain import counted

if TYPE_CHECKING:
    from kie_provider.client.prices import PriceTable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """The limits that the author of a DAG sets; None: no limit.

    :param max_credits: most credits to spend.
    :param min_credits_left: fewest credits to leave on the account.
    """

    max_credits: float | None = None
    min_credits_left: float | None = None

    def check(self, what: str, estimate: float | None, get_credits: Callable[[], float], *, spent: float = 0.0) -> None:
        """Raise if the images exceed the budget.

        :param what: the images, for the message.
        :param estimate: credits that they cost; None: one of them is not in the price table.
        :param get_credits: returns the balance; called only if it matters.
        :param spent: credits that the same batch has already cost.
        :raises KieBudgetError: they cost too much, leave too little, or their price is not known.
        """
        if self.max_credits is None and self.min_credits_left is None:
            return
        if estimate is None:
            raise KieBudgetError(f"{what}: no price in the table; put one into [kie] prices")
        if self.max_credits is not None and spent + estimate > self.max_credits:
            beside = f" beside the {spent:.12g} that are spent" if spent else ""
            raise KieBudgetError(
                f"{what}: {counted(estimate, 'credit')}{beside}, more than max_credits={self.max_credits:.12g}"
            )
        if self.min_credits_left is not None:
            balance = get_credits()
            if balance - estimate < self.min_credits_left:
                raise KieBudgetError(
                    f"{what}: {counted(estimate, 'credit')} of {balance:.12g} on the account, which leaves "
                    f"{balance - estimate:.12g}, less than min_credits_left={self.min_credits_left:.12g}"
                )


def refuse_unpayable(what: str, price: float | None, get_credits: Callable[[], float]) -> None:
    """Refuse images that the account cannot pay for together.

    :param what: the images, for the message.
    :param price: credits that they cost; None: not known, so nothing is checked.
    :param get_credits: returns the balance, free of charge.
    :raises KieInsufficientCreditsError: there are too few credits.
    """
    if not price:
        return
    try:
        balance = get_credits()
    except KieError as error:
        if not error.is_transient:
            raise
        log.warning("The balance could not be read, so it was not checked: %s", error)
        return
    if balance < price:
        raise KieInsufficientCreditsError(
            f"{what} would cost {counted(price, 'credit')}, and the account has {balance:.12g}: "
            f"{price - balance:.12g} too few. Nothing was sent"
        )


def estimate(kinds: Iterable[tuple[str, object]], prices: PriceTable) -> tuple[float | None, str]:
    """Return the credits that images cost (None: one is not in the price table), and the calculation as text.

    :param kinds: model and resolution of each image.
    """
    counts = Counter(kinds)
    by_kind = {kind: prices.credits_for(*kind) for kind in counts}
    words = ", ".join(
        f"{number} x {kind[0]} at {kind[1]}" + ("" if (price := by_kind[kind]) is None else f" for {price:g}")
        for kind, number in counts.items()
    )
    known = [price * counts[kind] for kind, price in by_kind.items() if price is not None]
    return sum(known) if len(known) == len(counts) else None, words
