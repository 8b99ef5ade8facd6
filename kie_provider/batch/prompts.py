"""Reading the list of a batch: every item is checked before the first is sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kie_provider.client.errors import KieValidationError
from kie_provider.client.models import Flux2Input, from_text, got, is_blank
from kie_provider.files.inputs import InputImage, read_input_images
from kie_provider.orders import read_order
from kie_provider.parameters import ORDER_FIELDS

if TYPE_CHECKING:
    from kie_provider.client.prices import PriceTable

#: What an item may have.
ITEM_FIELDS = (*ORDER_FIELDS, "file_name")
#: Blank, these mean the default; the other fields mean nothing.
_LEFT_OUT_IF_BLANK = ("model", "aspect_ratio", "resolution")

Order = tuple[Flux2Input, Sequence[InputImage]]


def read_prompts(value: Any, defaults: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the fields of every image, and what is wrong with the list as a whole. Nothing is checked in it.

    :param value: a list of prompts, or of dicts with a prompt and other fields; a template may have made it text.
    :param defaults: fields of the items that do not name them.
    """
    value = from_text(value)
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
        return [], [f"prompts: must be a list of prompts or dicts, {got(value)}"]
    items = [{**defaults, **_given(item if isinstance(item, Mapping) else {"prompt": item})} for item in value]
    return items, [] if items else ["prompts: is empty; give at least one"]


def _given(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an item without those that an empty cell leaves to the batch."""
    return {name: value for name, value in item.items() if name not in _LEFT_OUT_IF_BLANK or not is_blank(value)}


def duplicate_problems(fingerprints: Sequence[str]) -> list[str]:
    """Say which items are the same as one before."""
    first: dict[str, int] = {}
    return [
        f"prompts[{index}]: is the same as prompts[{first[print_]}]; set allow_duplicates=True for an image of each"
        for index, print_ in enumerate(fingerprints)
        if first.setdefault(print_, index) != index
    ]


def read_orders(items: Sequence[Mapping[str, Any]]) -> tuple[list[Order], list[str]]:
    """Check all items, and look at their input images, each of which is opened once.

    :return: an order for every item, if nothing is wrong with any, and what is wrong.
    :raises KieStorageError: the storage of an input image failed; it may work later.
    """
    seen: dict[str, tuple[Sequence[InputImage], list[str]]] = {}

    def read_images(value: Any) -> tuple[Sequence[InputImage], list[str]]:
        key = str(value)
        if key not in seen:
            seen[key] = read_input_images(value)
        return seen[key]

    orders, problems = [], []
    for index, fields in enumerate(items):
        try:
            orders.append(read_order(fields, allowed=ITEM_FIELDS, read_images=read_images))
        except KieValidationError as error:  # noqa: PERF203  # all of them are wanted
            problems += [f"prompts[{index}].{problem}" for problem in error.problems]
    return orders, problems


def estimate(orders: Iterable[Order], prices: PriceTable) -> tuple[float | None, str]:
    """Return the credits that the orders cost, and the sum in words; None: one of them is not in the price table."""
    kinds = Counter((order.model, order.resolution) for order, _ in orders)
    prices_by_kind = {kind: prices.credits_for(*kind) for kind in kinds}
    words = ", ".join(_priced(number, kind, prices_by_kind[kind]) for kind, number in kinds.items())
    known = [price * kinds[kind] for kind, price in prices_by_kind.items() if price is not None]
    return sum(known) if len(known) == len(kinds) else None, words


def _priced(number: int, kind: tuple[str, str], price: float | None) -> str:
    return f"{number} x {kind[0]} at {kind[1]}" + ("" if price is None else f" for {price:g}")
