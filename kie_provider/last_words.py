"""What a task says in its log when it is killed: the Kie task goes on."""

from __future__ import annotations

import contextlib
from typing import Any

from kie_provider.client.errors import LOGS_PAGE


def goes_on(kie_task_id: str) -> str:
    """Say what it means to stop waiting."""
    return f"Kie cannot cancel tasks: Kie task {kie_task_id} goes on and is billed when it succeeds; see {LOGS_PAGE}"


def go_on(number: int) -> str:
    """Say what it means to stop waiting for a batch."""
    if number == 1:
        return f"Kie cannot cancel tasks: 1 Kie task goes on and is billed when it succeeds; see {LOGS_PAGE}"
    return f"Kie cannot cancel tasks: {number} Kie tasks go on and are billed when they succeed; see {LOGS_PAGE}"


def log_last_words(log: Any, text: str) -> None:
    """Write one line when a task is killed. Never raises: the signal may have come in the middle of another line."""
    with contextlib.suppress(Exception):
        log.warning(text)
