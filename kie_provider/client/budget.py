"""The budget guard: what an order may cost, looked at before it is sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kie_provider.client.errors import KieBudgetError


@dataclass(frozen=True)
class Budget:
    """What the author of a DAG allows; None: anything.

    :param max_credits: the order may cost so many credits.
    :param min_credits_left: so many credits must be left on the account when it is paid.
    """

    max_credits: float | None = None
    min_credits_left: float | None = None

    def check(self, what: str, estimate: float | None, get_credits: Callable[[], float], *, spent: float = 0.0) -> None:
        """Allow an order, or not.

        :param what: the order, for the message.
        :param estimate: credits that it costs; None: not in the price table.
        :param get_credits: asks for the balance; only called if it matters.
        :param spent: credits that the same batch has cost already.
        :raises KieBudgetError: it costs too much, leaves too little, or nobody knows.
        """
        if self.max_credits is None and self.min_credits_left is None:
            return
        if estimate is None:
            raise KieBudgetError(f"{what} has no price in the table; put one into [kie] prices")
        if self.max_credits is not None and spent + estimate > self.max_credits:
            beside = f" beside the {spent:g} that are spent" if spent else ""
            raise KieBudgetError(f"{what} costs {estimate:g} credits{beside}, and max_credits={self.max_credits:g}")
        if self.min_credits_left is not None:
            balance = get_credits()
            if balance - estimate < self.min_credits_left:
                raise KieBudgetError(
                    f"{what} costs {estimate:g} credits of the {balance:g} that are left, which leaves "
                    f"{balance - estimate:g}, and min_credits_left={self.min_credits_left:g}"
                )
