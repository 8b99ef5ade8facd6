"""One Kie account: its key, its rate limit, its tasks and what they cost."""

from __future__ import annotations

import hmac
import secrets
from typing import TypedDict

from kie_provider.emulator.models import Refusal, TaskRequest
from kie_provider.emulator.settings import Settings
from kie_provider.emulator.tasks import Outcome, State, Task, cost_at, iso, state_at


class BilledTask(TypedDict):
    """A task on the bill; ``credits`` are those held or charged, ``created_at`` is ISO 8601."""

    taskId: str
    model: str
    prompt: str
    state: State
    credits: float
    created_at: str


class Bill(TypedDict):
    """What an account was charged, in credits."""

    credits_start: float
    credits_left: float
    charged_total: float
    tasks: list[BilledTask]


class Account:
    """An account and its tasks. Balance and states are computed from the tasks and the time, never stored.

    :param settings: its key, credits, limits and durations.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.tasks: dict[str, Task] = {}
        self._admitted: list[float] = []

    def accepts(self, authorization: str | None) -> bool:
        """Whether an Authorization header has this account's key."""
        expected = f"Bearer {self.settings.api_key}"
        return hmac.compare_digest((authorization or "").encode(errors="replace"), expected.encode())

    def count_create(self, now: float) -> None:
        """Count one createTask request.

        :raises Refusal: 429: too many in the window; such a request is not counted.
        """
        self._admitted = [at for at in self._admitted if now - at < self.settings.create_window_seconds]
        if len(self._admitted) >= self.settings.create_limit:
            raise Refusal(429)
        self._admitted.append(now)

    def create(self, request: TaskRequest, outcome: Outcome, now: float) -> Task:
        """Create a task and hold its price.

        :raises Refusal: 402: the balance is too low.
        """
        if self.credits_left(now) < request.price:
            raise Refusal(402)
        task = Task(secrets.token_hex(16), request, now, outcome)
        self.tasks[task.id] = task
        return task

    def task(self, task_id: str) -> Task:
        """Return a task.

        :raises Refusal: 422, Kie's answer to an id it does not know; 404 is documented but never sent.
        """
        try:
            return self.tasks[task_id]
        except KeyError:
            raise Refusal(422, "recordInfo is null") from None

    def credits_left(self, now: float) -> float:
        """Return the balance: the initial credits less what is held or charged."""
        return self.settings.credits - self._charged(list(self.tasks.values()), now)

    def bill(self, now: float) -> Bill:
        """Return what each task was charged, oldest first; credits still held count as charged."""
        tasks = list(self.tasks.values())
        charged = self._charged(tasks, now)
        return {
            "credits_start": self.settings.credits,
            "credits_left": self.settings.credits - charged,
            "charged_total": charged,
            "tasks": [
                {
                    "taskId": task.id,
                    "model": task.request.model,
                    "prompt": task.request.prompt,
                    "state": state_at(task, self.settings, now),
                    "credits": cost_at(task, self.settings, now),
                    "created_at": iso(task.created_at),
                }
                for task in tasks
            ],
        }

    def _charged(self, tasks: list[Task], now: float) -> float:
        return sum((cost_at(task, self.settings, now) for task in tasks), 0.0)
