"""Tries of a task instance under ``dag.test()``: a worker that dies, a person who clears, and what outlives a try."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Hook = Callable[..., None]


def at_first_try(do: Callable[[Any], None]) -> Hook:
    """Return a callable for pre_execute or post_execute that calls ``do(context)`` in the first try only."""

    def hook(context: Any, result: Any = None) -> None:
        if context["ti"].try_number == 1:
            do(context)

    return hook


def crash(context: Any, result: Any = None) -> None:
    """As pre_execute or post_execute: let the worker die there."""
    raise RuntimeError("the worker died")


def cleared(context: Any) -> None:
    """As pre_execute: make it look as if a person had cleared the task before this try, which raises max_tries."""
    context["ti"].max_tries += 10 * (context["ti"].try_number - 1)
