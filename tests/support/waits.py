"""Waiting for something to become true, instead of sleeping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], timeout: float = 30.0, pause: float = 0.005) -> T:
    """Call ``condition`` until it returns something true, and return that; fail after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not so after {timeout:g} seconds"
        time.sleep(pause)
    return found


async def wait_until_async(condition: Callable[[], T], timeout: float = 30.0, pause: float = 0.005) -> T:
    """Do the same and let the event loop go on meanwhile."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not so after {timeout:g} seconds"
        await asyncio.sleep(pause)
    return found
