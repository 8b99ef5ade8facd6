"""Read result dicts of unknown content, and match them with prompts."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

from kie_provider.client.plain import storable


def result_dicts(results: Iterable[object] | Mapping[str, object] | None) -> list[dict[str, object]]:
    """Return the dicts in ``results``, however nested, as plain JSON values; anything else is left out."""
    found = [dict(item) for item in flat(results) if isinstance(item, Mapping)]
    return list(storable(json.loads(json.dumps(found, default=str, skipkeys=True))))


def flat(value: object) -> Iterator[object]:
    """Yield the items of ``value`` and of the iterables in it; a text or a mapping is one item."""
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        for item in value:
            yield from flat(item)
    else:
        yield value


def match_prompts(
    results: Sequence[dict[str, object]], prompts: Sequence[str]
) -> list[tuple[str, dict[str, object] | None]]:
    """Pair every prompt with its result, or None; results of other prompts follow, with their own prompt."""
    waiting: dict[str, deque[int]] = {}
    for index, result in enumerate(results):
        waiting.setdefault(prompt_of(result), deque()).append(index)
    chosen = [waiting[prompt].popleft() if waiting.get(prompt) else None for prompt in prompts]
    rest = sorted(index for indexes in waiting.values() for index in indexes)
    rows = [(prompt, None if i is None else results[i]) for prompt, i in zip(prompts, chosen, strict=True)]
    return [*rows, *((prompt_of(results[i]), results[i]) for i in rest)]


def prompt_of(result: Mapping[str, object]) -> str:
    """Return the prompt of a result dict, or ``""``."""
    task_input = result.get("input")
    return text_of(task_input.get("prompt")).strip() if isinstance(task_input, dict) else ""


def text_of(value: object) -> str:
    """Return ``value`` if it is a text, else ``""``."""
    return value if isinstance(value, str) else ""


def number_of(value: object) -> float | None:
    """Return ``value`` if it is a number, else None."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def list_of(value: object) -> list[object]:
    """Return ``value`` if it is a list, else an empty one."""
    return value if isinstance(value, list) else []
