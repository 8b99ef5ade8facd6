"""Waiting for a Kie task: one decision, :func:`judge`, and one loop around it, :func:`watch`.

Triggers, workers that do not defer, and the sensor's poke all decide here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from kie_provider.client.errors import (
    KieAuthError,
    KieError,
    KieNotFoundError,
    KieResultError,
    KieTaskFailedError,
    KieTaskTimeoutError,
)
from kie_provider.client.plain import counted
from kie_provider.client.records import TaskRecord, TaskState
from kie_provider.client.retry import backoff, jitter

#: The outcome of one poll: the record of the task, or why there is none.
Observation = TaskRecord | KieError

#: A record may be invisible for this many seconds after it was last seen, or the wait began. Market tasks are
#: normally visible at once; clients of other Kie families have met lags of up to a minute.
VISIBILITY_GRACE = 90.0
#: The interval stays as asked for this many seconds, then grows.
STEADY_SECONDS = 60.0
INTERVAL_GROWTH = 1.5
LONGEST_INTERVAL = 15.0
#: Where a callback is to end the wait, polls only stand in for one that does not come: the first ones after so many
#: seconds of the wait, then at this interval.
BACKSTOP_POLLS = (10.0, 30.0)
BACKSTOP_INTERVAL = 60.0
#: Transient errors are waited out for this many seconds in a row.
FAILURE_PATIENCE = 360.0
LONGEST_FAILURE_DELAY = 60.0


#: ``expected``: Kie calls back when the task has ended. ``came``: it has, so the task ends about now.
Callback = Literal["expected", "came"]


@dataclass(frozen=True)
class Waiting:
    """What one wait knows so far. All times are epoch seconds, so that any process can go on with it.

    :param started_at: when the wait began.
    :param poll_interval: seconds between two polls, at first.
    :param deadline: the last poll is due at this time; None: no deadline.
    :param visible_at: when the record was last seen, or may have been; None: not yet.
    :param interval: the present interval, grown from ``poll_interval``; None: not grown.
    :param failures: transient errors in a row.
    :param failing_since: when the first of them was seen; None: the last poll succeeded.
    :param key_was_refreshed: the connection was read again after a 401, with no good answer since.
    :param callback: what is known of Kie's callback; None: nothing, so polls alone end the wait.
    """

    started_at: float
    poll_interval: float = 3.0
    deadline: float | None = None
    visible_at: float | None = None
    interval: float | None = None
    failures: int = 0
    failing_since: float | None = None
    key_was_refreshed: bool = False
    callback: Callback | None = None


@dataclass(frozen=True)
class Done:
    """The task succeeded."""

    record: TaskRecord


@dataclass(frozen=True)
class PollAgain:
    """Look again after ``delay`` seconds, with ``waiting``; first read the connection anew if ``refresh_key``."""

    delay: float
    waiting: Waiting
    reason: str
    refresh_key: bool = False


@dataclass(frozen=True)
class Raise:
    """The wait is over without a result."""

    error: KieError


Verdict = Done | PollAgain | Raise


def judge(observation: Observation, waiting: Waiting, now: float) -> Verdict:
    """Decide what one poll of a task means.

    :param observation: the record, or the error in its place.
    :param waiting: the wait before this poll.
    :param now: epoch seconds at which the poll ended.
    """
    if isinstance(observation, TaskRecord):
        verdict = _judge_record(observation, waiting, now)
    else:
        verdict = _judge_error(observation, waiting, now)
    if isinstance(verdict, PollAgain) and waiting.deadline is not None and now >= waiting.deadline:
        return Raise(
            KieTaskTimeoutError(
                f"{verdict.reason} after {counted(round(now - waiting.started_at), 'second')} of this wait",
                kie_task_id=observation.kie_task_id,
            )
        )
    return verdict


def _judge_record(record: TaskRecord, waiting: Waiting, now: float) -> Verdict:
    if record.state is TaskState.SUCCESS:
        if record.has_result:
            return Done(record)
        return Raise(KieResultError("it has neither URLs nor a result object", kie_task_id=record.kie_task_id))
    if record.state is TaskState.FAIL:
        return Raise(
            KieTaskFailedError(
                record.fail_message or "Kie gave no reason",
                code=record.fail_code,
                kie_task_id=record.kie_task_id,
                credits_consumed=record.credits_consumed,
            )
        )
    interval = _next_interval(waiting, now - waiting.started_at)
    return PollAgain(
        interval,
        # What went wrong before is forgotten.
        Waiting(
            waiting.started_at,
            waiting.poll_interval,
            waiting.deadline,
            visible_at=now,
            interval=interval,
            callback=waiting.callback,
        ),
        f"still {record.kie_state}",
    )


def _next_interval(waiting: Waiting, elapsed: float) -> float:
    """Return the seconds to the next poll of a task that is running.

    :param elapsed: seconds since the wait began.
    """
    if waiting.callback == "expected" or (waiting.callback == "came" and elapsed >= STEADY_SECONDS):
        to_come = [at - elapsed for at in BACKSTOP_POLLS if at > elapsed * 1.25]  # jitter may have put one forward
        return max(to_come[0] if to_come else BACKSTOP_INTERVAL, waiting.poll_interval)
    interval = waiting.interval or waiting.poll_interval
    if elapsed < STEADY_SECONDS:
        return interval
    return max(min(interval * INTERVAL_GROWTH, LONGEST_INTERVAL), waiting.poll_interval)


def _judge_error(error: KieError, waiting: Waiting, now: float) -> Verdict:
    interval = waiting.interval or waiting.poll_interval
    reason = f"the last poll failed ({error.summary}: {error.message})"
    if isinstance(error, KieAuthError) and not error.is_transient and not waiting.key_was_refreshed:
        return PollAgain(0.0, replace(waiting, key_was_refreshed=True), reason, refresh_key=True)
    if isinstance(error, KieNotFoundError):
        since = waiting.started_at if waiting.visible_at is None else waiting.visible_at
        if now - since < VISIBILITY_GRACE:
            return PollAgain(interval, replace(waiting, failures=0, failing_since=None), error.message)
        return Raise(error)
    failing_since = now if waiting.failing_since is None else waiting.failing_since
    if not error.is_transient or now - failing_since >= FAILURE_PATIENCE:
        return Raise(error)
    failures = waiting.failures + 1
    delay = max(
        backoff(failures, first=max(interval, 1.0), longest=max(LONGEST_FAILURE_DELAY, interval)),
        error.retry_after or 0.0,
    )
    return PollAgain(
        delay,
        replace(waiting, failures=failures, failing_since=failing_since),
        reason,
    )


class Poll(Protocol):
    """Polls a Kie task once; see :class:`~kie_provider.hooks.kie.TaskPoll`."""

    async def __call__(self, *, refresh_key: bool = False) -> Observation:
        """Return the record, or the error instead.

        :param refresh_key: read the connection again before: Kie has refused the key.
        """


async def watch(
    waiting: Waiting,
    poll: Poll,
    *,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> TaskRecord:
    """Wait until a Kie task has succeeded: the one loop in which triggers and workers wait.

    The first poll is due at once, the last one at the deadline. Delays are spread by 10 % and never reach past the
    deadline.

    :raises KieError: the task failed, timed out, or cannot be polled.
    """
    refresh_key = False
    while True:
        observation = await poll(refresh_key=refresh_key)
        verdict = judge(observation, waiting, clock())
        if isinstance(verdict, Done):
            return verdict.record
        if isinstance(verdict, Raise):
            raise verdict.error
        waiting, refresh_key = verdict.waiting, verdict.refresh_key
        delay = jitter(verdict.delay, at_least=observation.retry_after if isinstance(observation, KieError) else None)
        if waiting.deadline is not None:
            delay = min(delay, max(waiting.deadline - clock(), 0.0))
        await sleep(delay)
