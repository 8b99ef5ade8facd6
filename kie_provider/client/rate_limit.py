"""Kie's limit on new tasks, enforced before Kie has to refuse: 20 in ten seconds for the whole account.

A process has its own window. A fleet of workers shares one in Redis, through the ``limits`` library (extra ``redis``);
while Redis is down, every process falls back to its own, and to Kie's refusals, which cost nothing.
"""

from __future__ import annotations

import hashlib
import logging
import random
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from kie_provider.client.endpoint import Endpoint
from kie_provider.client.errors import KieConnectionError, KieRateLimitError
from kie_provider.client.plain import clean_text, counted

log = logging.getLogger(__name__)

#: Length of Kie's window for new tasks, in seconds.
WINDOW_SECONDS = 10
#: Kie counts a task when its request arrives, and requests travel unequally fast; so a slot is free this many seconds
#: after the window. Each request that Kie refuses although it had a slot adds as much again, up to ten times in all.
MARGIN = 0.03
_MOST_MARGINS = 10
#: Number of requests whose time until they could leave is remembered; a tenth of them counts as outliers.
_REMEMBERED = 40
_OUTLIERS = 4
_LONGEST = 0.5
_LEAST_WAIT = 0.01
#: Seconds for which a shared storage that failed is not used.
_RECOVERY_SECONDS = 30.0
_STORAGE_TIMEOUT = 2.0


class Slot:
    """Room for one new task in the window, from some moment on.

    :param pace: learns how long it takes until the request could leave this machine.
    :param free_at: that moment, by ``time.monotonic()``.
    """

    def __init__(self, pace: Pace, free_at: float) -> None:
        self._pace = pace
        self._free_at = free_at
        self._taken_at = time.monotonic()
        self._refusals = 0
        self.at = max(self._taken_at, free_at)

    def leave(self) -> None:
        """Wait for that moment, and record that the request leaves this machine now: Kie begins to count.

        Called with the connection open, so that nothing comes between.
        """
        ready_at = time.monotonic()
        if not self._refusals:
            self._pace.took(ready_at - self._taken_at)
        time.sleep(max(self._free_at - ready_at, 0.0))
        self.at = time.monotonic()

    def refused(self) -> Slot | None:
        """Note that Kie has refused the request; return the slot for the next attempt, None: take another.

        Kie does not count what it refuses, so the slot is still free. If that is refused too, others have taken it.
        """
        self._pace.refusals += 1
        self._refusals += 1
        return self if self._refusals == 1 else None


class Pace:
    """How long it takes from taking a slot until its request could leave: to write the intent, and to connect.

    :ivar refusals: how many requests Kie has refused although they had slots.
    """

    def __init__(self) -> None:
        self.refusals = 0
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED)

    def took(self, seconds: float) -> None:
        """Record the seconds of one request."""
        self._seconds.append(seconds)

    @property
    def margin(self) -> float:
        """Seconds by which requests may overtake each other on the way to Kie."""
        return MARGIN * min(1 + self.refusals, _MOST_MARGINS)

    @property
    def most(self) -> float:
        """Seconds that it takes at most, but for outliers."""
        seconds = sorted(self._seconds)
        return min(seconds[-1 - _OUTLIERS], _LONGEST) if len(seconds) > _OUTLIERS else 0.0

    @property
    def spread(self) -> float:
        """Seconds by which they differ, but for outliers."""
        return max(self.most - min(self._seconds, default=0.0), 0.0)


class LocalWindow:
    """The window of one account as this process knows it; its threads share it.

    :param limit: new tasks per window.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.pace = Pace()
        self._slots: list[Slot] = []  # the last ones, as many as the limit allows at most
        self._lock = threading.Lock()

    @property
    def taken(self) -> int:
        """How many slots of this window are taken."""
        with self._lock:
            return sum(slot.at + self._lasts > time.monotonic() for slot in self._slots)

    def wait(self) -> float:
        """Return the seconds until a slot can be taken; 0: now."""
        with self._lock:
            return self._seconds()

    def take(self) -> Slot | float:
        """Take a slot for one new task, or return the seconds until one can be taken."""
        with self._lock:
            return self._seconds() or self._next_slot()

    def reserve(self) -> Slot:
        """Take the next slot, whenever it gets free: its request is held back until then."""
        with self._lock:
            return self._next_slot()

    def _next_slot(self) -> Slot:
        slot = Slot(self.pace, self._free_at)
        if len(self._slots) == self.limit:
            self._slots.remove(self._oldest)
        self._slots.append(slot)
        return slot

    @property
    def _lasts(self) -> float:
        return WINDOW_SECONDS + self.pace.margin

    @property
    def _oldest(self) -> Slot:
        return min(self._slots, key=lambda slot: slot.at)

    @property
    def _free_at(self) -> float:
        """When Kie forgets the request that left first, so that another one can take its place."""
        return self._oldest.at + self._lasts if len(self._slots) == self.limit else 0.0

    def _seconds(self) -> float:
        # Taken before it is free, so that the request stands ready then.
        return max(self._free_at - self.pace.most - time.monotonic(), 0.0)


class SharedWindow:
    """The window of one account as a whole fleet knows it. The clocks of its machines should agree.

    :param limit: new tasks per window.
    :param account: tells accounts apart in the storage.
    :param storage_uri: as ``redis://host:6379/0``; any storage of the ``limits`` library with moving windows.
    :raises KieConnectionError: that is no such storage, or the library for it is missing.
    """

    def __init__(self, limit: int, account: str, storage_uri: str) -> None:
        self.limit = limit
        try:
            from limits import RateLimitItemPerSecond
            from limits.storage import storage_from_string
            from limits.strategies import MovingWindowRateLimiter
        except ImportError:
            raise KieConnectionError(
                "[kie] rate_limit_storage needs the limits library: pip install 'airflow-provider-kie[redis]'"
            ) from None
        timeouts = {"socket_timeout": _STORAGE_TIMEOUT, "socket_connect_timeout": _STORAGE_TIMEOUT}
        options: dict[str, Any] = timeouts if storage_uri.startswith("redis") else {}
        try:
            self._limiter = MovingWindowRateLimiter(storage_from_string(storage_uri, **options))
        except Exception as error:  # noqa: BLE001  # whatever the storage makes of a URL
            scheme = re.match(r"[\w+.-]+(?=://)", storage_uri)  # anything else may be a part of a password
            raise KieConnectionError(
                f"[kie] rate_limit_storage: cannot use a storage {f'of {scheme[0]}://' if scheme else 'without ://'} "
                f"({type(error).__name__}); it must be like redis://host:6379/0"
            ) from None
        self._item = RateLimitItemPerSecond(limit, WINDOW_SECONDS, namespace="kie_create_task")
        self._account = account
        self._local = LocalWindow(limit)
        self._away_until = 0.0

    def take(self) -> Slot | float:
        """As :meth:`LocalWindow.take`, for the whole fleet; alone, while the storage is away."""
        if seconds := self._local.wait():
            return seconds  # this process knows when its own requests have left
        if time.monotonic() >= self._away_until:
            try:
                if not self._limiter.hit(self._item, self._account):
                    reset_at, free = self._limiter.get_window_stats(self._item, self._account)
                    # One that has got free since then is there now: the next one may take seconds.
                    seconds = 0.0 if free else min(max(reset_at - time.time(), 0.0), float(WINDOW_SECONDS))
                    return seconds + self._margin
                # Not to be asked for again: the storage has counted it.
                return self._local.reserve()
            except Exception as error:  # noqa: BLE001  # every storage has errors of its own; no image waits for them
                self._away_until = time.monotonic() + _RECOVERY_SECONDS
                log.warning(
                    "The storage of [kie] rate_limit_storage does not answer (%s); this process keeps the limit on its "
                    "own for %.0f seconds, and Kie refuses any excess",
                    clean_text(type(error).__name__),
                    _RECOVERY_SECONDS,
                )
        return self._local.take()

    @property
    def _margin(self) -> float:
        """Seconds that a slot is taken later than it is free: when the requests of others left is not known here."""
        others, pace = max(self.limit - self._local.taken, 0) / self.limit, self._local.pace
        return _LEAST_WAIT + (random.uniform(pace.margin, 2 * pace.margin) + pace.spread) * others


Window = LocalWindow | SharedWindow


class SlotWait:
    """The waiting for a slot: yields how many seconds to wait before the next attempt, until :attr:`slot` was taken.

    :param patience: seconds to wait at most.
    """

    slot: Slot

    def __init__(self, window: Window, patience: float) -> None:
        self._window = window
        self._patience = patience

    def __iter__(self) -> Iterator[float]:
        """Wait.

        :raises KieRateLimitError: no slot will be free so soon; ``retry_after`` says when one may be.
        """
        give_up_at = time.monotonic() + self._patience
        while not isinstance(taken := self._window.take(), Slot):
            if time.monotonic() + taken > give_up_at:
                limit = counted(self._window.limit, "task")
                raise KieRateLimitError(
                    f"this account may create {limit} in {WINDOW_SECONDS} seconds, and has done so", retry_after=taken
                )
            yield taken
        self.slot = taken


_windows: dict[tuple[str, int, str], Window] = {}
_windows_lock = threading.Lock()


def window_of(endpoint: Endpoint, storage_uri: str = "") -> Window:
    """Return the window of an account, which all connections with its key share.

    :param storage_uri: where the fleet shares it; empty: only this process does.
    :raises KieConnectionError: the storage cannot be used.
    """
    account = hashlib.sha256(f"{endpoint.host} {endpoint.api_key}".encode()).hexdigest()[:16]
    key = (account, endpoint.submit_limit, storage_uri)
    with _windows_lock:
        if key not in _windows:
            limit = endpoint.submit_limit
            _windows[key] = SharedWindow(limit, account, storage_uri) if storage_uri else LocalWindow(limit)
        return _windows[key]


def forget_windows() -> None:
    """Discard all windows, for a test that starts with a new emulator."""
    with _windows_lock:
        _windows.clear()
