"""What a task costs: the one price table, and the one answer to what a result has cost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

_PRO, _FLEX = {"1K": 5.0, "2K": 7.0}, {"1K": 14.0, "2K": 24.0}
#: Model -> resolution -> credits per image (https://kie.ai/flux-2, August 2026).
LIST_PRICES: Mapping[str, Mapping[str, float]] = {
    "flux-2/pro-text-to-image": _PRO,
    "flux-2/pro-image-to-image": _PRO,
    "flux-2/flex-text-to-image": _FLEX,
    "flux-2/flex-image-to-image": _FLEX,
}
#: Dollars per credit (https://kie.ai/pricing).
LIST_USD_PER_CREDIT = 0.005


@dataclass(frozen=True)
class PriceTable:
    """Prices of an account; make it with :meth:`parse`.

    :param credits: model -> resolution -> credits per image.
    :param usd_per_credit: dollars.
    """

    credits: Mapping[str, Mapping[str, float]]
    usd_per_credit: float

    @classmethod
    def parse(cls, prices: object = "", usd_per_credit: Any = "") -> PriceTable:
        """Return the list prices, with those of ``prices`` in their place. Settings are text, and taken as such.

        :param prices: ``{model: {resolution: credits}}``, an object or its JSON; other models keep their list price.
        :param usd_per_credit: dollars; default 0.005.
        :raises ValueError: names what is not a price.
        """
        if isinstance(prices, str):
            prices = _json(prices)
        if not isinstance(prices, Mapping):
            raise ValueError(  # noqa: TRY004
                f"prices: must be an object {{model: {{resolution: credits}}}}, got {prices!r}"
            )
        for model, by_resolution in prices.items():
            if not isinstance(by_resolution, Mapping) or not all(map(is_amount, by_resolution.values())):
                raise ValueError(f"prices: {model!r} must have credits by resolution, got {by_resolution!r}")
        usd = LIST_USD_PER_CREDIT if usd_per_credit in (None, "") else usd_per_credit
        try:
            usd = float(usd)
        except (TypeError, ValueError):
            usd = -1.0
        if not is_amount(usd):
            raise ValueError(f"usd_per_credit: must be a number of dollars, got {usd_per_credit!r}")
        return cls({**LIST_PRICES, **prices}, usd)

    def credits_for(self, model: str | None, resolution: object) -> float | None:
        """Return the credits that one image costs; None: not in the table."""
        return self.credits.get(model or "", {}).get(str(resolution))

    def cost_of(self, result: Mapping[str, object]) -> float | None:
        """Return the credits that a result has cost: what Kie charged, 0 included, or else the price.

        :param result: a result dict, which anybody may have changed.
        :return: None: Kie does not say, and the model or resolution is not in the table.
        """
        charged = result.get("credits_consumed")
        if is_amount(charged):
            return float(charged)
        model, task_input = result.get("model"), result.get("input")
        resolution = task_input.get("resolution") if isinstance(task_input, Mapping) else None
        return self.credits_for(model if isinstance(model, str) else None, resolution)

    def total_of(self, results: Iterable[Mapping[str, object]]) -> float:
        """Return the credits that results have cost together, to a millionth; those of unknown cost count as 0."""
        return round(sum(self.cost_of(result) or 0.0 for result in results), 6)

    def usd(self, credits_used: float | None) -> float | None:
        """Return what credits cost in dollars, to a hundredth of a cent."""
        return None if credits_used is None else round(credits_used * self.usd_per_credit, 4)


def _json(text: str) -> object:
    try:
        return json.loads(text) if text.strip() else {}
    except ValueError:
        return text


def is_amount(value: object) -> TypeGuard[float]:
    """Whether this is a number of credits or dollars that makes sense."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
