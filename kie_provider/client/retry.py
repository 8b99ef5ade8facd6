"""What may be sent again, and after how many seconds. Pure: the caller sleeps.

A createTask is sent again only after an explicit refusal or when it cannot have left this machine; everything
else may already run and cost credits.
"""

from __future__ import annotations

import email.utils
import math
import random
from collections.abc import Callable

from kie_provider.client.errors import (
    KieError,
    KieMaintenanceError,
    KieRateLimitError,
    KieTransportError,
)

#: A single look-up (credits, one record, a download link) or download is attempted at most this many times.
LOOKUP_ATTEMPTS = 4
#: Seconds for which createTask is retried in place: Kie's window for 20 creations, and a margin.
SUBMIT_PATIENCE = 12.0
#: Seconds. A longer ``Retry-After`` is not waited out in place.
LONGEST_RETRY_AFTER = 30.0
#: Seconds. A longer ``Retry-After`` is cut to this.
BELIEVED_RETRY_AFTER = 600.0


def backoff(attempt: int, *, first: float = 0.5, longest: float = 8.0) -> float:
    """Return the nominal seconds before attempt number ``attempt + 1``: first, doubled each time, capped."""
    return float(min(first * 2 ** min(attempt - 1, 30), longest))


def jitter(
    seconds: float, *, at_least: float | None = None, uniform: Callable[[float, float], float] = random.uniform
) -> float:
    """Spread ``seconds`` by 10 % either way, so that many tasks do not march in step.

    :param at_least: what a ``Retry-After`` asked for; coming back sooner would be refused again.
    """
    return max(seconds * uniform(0.9, 1.1), at_least or 0.0)


def lookup_delay(error: KieError, attempt: int) -> float | None:
    """Return after how many seconds a failed look-up or download may be tried again; None: not at all.

    :param attempt: how often it has been sent, from 1.
    """
    if not error.is_transient or attempt >= LOOKUP_ATTEMPTS:
        return None
    return _polite(error, backoff(attempt), LONGEST_RETRY_AFTER)


def submit_delay(error: KieError, attempt: int, waited: float) -> float | None:
    """Return after how many seconds createTask may be sent again; None: not at all.

    :param attempt: how often it has been sent, from 1.
    :param waited: seconds already spent waiting in place.
    """
    refused = isinstance(error, KieRateLimitError | KieMaintenanceError)
    never_left = isinstance(error, KieTransportError) and not error.may_have_arrived
    if not (refused or never_left):
        return None
    remaining = SUBMIT_PATIENCE - waited
    # The last wait takes what remains: a longer one would give up before the window has passed.
    return _polite(error, min(backoff(attempt), remaining), remaining) if remaining > 1 else None


class SubmitPatience:
    """How long one createTask is sent again in place, while it is certain that nothing was created."""

    def __init__(self) -> None:
        self._attempt, self._waited = 1, 0.0

    def delay_after(self, error: KieError) -> float:
        """Return after how many seconds it may be sent again.

        :raises KieError: ``error``; it may not.
        """
        delay = submit_delay(error, self._attempt, self._waited)
        if delay is None:
            raise error
        delay = jitter(delay, at_least=error.retry_after)
        self._attempt, self._waited = self._attempt + 1, self._waited + delay
        return delay


def _polite(error: KieError, delay: float, longest: float) -> float | None:
    if error.retry_after is not None:
        delay = max(delay, error.retry_after)
    return delay if delay <= longest else None


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Return the seconds that a ``Retry-After`` header asks for, as a number or an HTTP date; ten minutes at most.

    :param now: epoch seconds, to measure a date against.
    """
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), BELIEVED_RETRY_AFTER)
