"""Kie's limit on new tasks, kept before Kie has to refuse: 20 in ten seconds for the whole account.

One process keeps a window of its own. A fleet of workers shares one in Redis, through the ``limits`` library (extra
``redis``); while that is away, every process falls back to its own, and to Kie's refusals, which cost nothing.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from kie_provider.client.endpoint import Endpoint
from kie_provider.client.errors import KieConnectionError, KieRateLimitError, clean_text
from kie_provider.client.wording import counted

log = logging.getLogger(__name__)

#: Kie counts a task when its request arrives. Who waits for a slot takes it so many seconds later than it is free, and
#: later still where some requests took longer than others to leave this machine.
LEAST_MARGIN, MOST_MARGIN = 0.05, 1.0
#: So many requests are remembered for that, and one that Kie refused counts as one that left so many seconds early.
_REMEMBERED = 40
_EARLY = 0.25
#: Kie counts new tasks in windows of so many seconds.
WINDOW_SECONDS = 10
#: A shared storage that failed is left alone for so many seconds.
_RECOVERY_SECONDS = 30.0
_STORAGE_TIMEOUT = 2.0


class Pace:
    """How evenly the requests of this process leave it after their slots were taken."""

    def __init__(self) -> None:
        self._delays: deque[float] = deque(maxlen=_REMEMBERED)

    @property
    def margin(self) -> float:
        """Seconds that a slot is taken later than it is free, so that Kie does not get two requests too close."""
        delays = list(self._delays)
        spread = max(delays) - min(delays) if delays else 0.0
        return min(LEAST_MARGIN + spread, MOST_MARGIN)

    def sent(self, delay: float) -> None:
        """Learn that a request left this machine so many seconds after its slot was taken."""
        self._delays.append(delay)

    def refused(self) -> None:
        """Learn that Kie has refused one all the same."""
        self._delays.append(max(self._delays, default=0.0) + _EARLY)


class LocalWindow(Pace):
    """The window of one account as this process knows it; its threads share it.

    :param limit: new tasks per window.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self._taken: deque[float] = deque()
        self._lock = threading.Lock()

    def take(self) -> float:
        """Take a slot for one new task: return 0, or the seconds until one is free, and none was taken."""
        with self._lock:
            now = time.monotonic()
            while self._taken and self._taken[0] <= now - WINDOW_SECONDS:
                self._taken.popleft()
            if len(self._taken) < self.limit:
                self._taken.append(now)
                return 0.0
            return self._taken[0] + WINDOW_SECONDS - now


class SharedWindow(Pace):
    """The window of one account as a whole fleet knows it. The clocks of its machines should agree.

    :param limit: new tasks per window.
    :param account: tells accounts apart in the storage.
    :param storage_uri: as ``redis://host:6379/0``; any storage of the ``limits`` library with moving windows.
    :raises KieConnectionError: that is no such storage, or the library for it is missing.
    """

    def __init__(self, limit: int, account: str, storage_uri: str) -> None:
        super().__init__()
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

    def take(self) -> float:
        """As :meth:`LocalWindow.take`, for the whole fleet; alone, while the storage is away."""
        if time.monotonic() >= self._away_until:
            try:
                if self._limiter.hit(self._item, self._account):
                    return 0.0
                reset_at, _ = self._limiter.get_window_stats(self._item, self._account)
            except Exception as error:  # noqa: BLE001  # every storage has errors of its own; no image waits for them
                self._away_until = time.monotonic() + _RECOVERY_SECONDS
                log.warning(
                    "The storage of [kie] rate_limit_storage does not answer (%s); this process keeps the limit on its "
                    "own for %.0f seconds, and Kie refuses what is too much",
                    clean_text(type(error).__name__),
                    _RECOVERY_SECONDS,
                )
            else:
                return min(max(reset_at - time.time(), 0.05), float(WINDOW_SECONDS))
        return self._local.take()


Window = LocalWindow | SharedWindow


def waits_for_slot(window: Window, patience: float) -> Iterator[float]:
    """Yield how many seconds to wait before the next attempt, until a slot was taken.

    :param patience: seconds to wait at most.
    :raises KieRateLimitError: no slot will be free so soon; ``retry_after`` says when one may be.
    """
    give_up_at = time.monotonic() + patience
    while seconds := window.take():
        if time.monotonic() + seconds > give_up_at:
            raise KieRateLimitError(
                f"this account may create {counted(window.limit, 'task')} in {WINDOW_SECONDS} seconds, and has done so",
                retry_after=seconds,
            )
        yield seconds + window.margin


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
    """Begin anew, as a test does that begins with a new emulator."""
    with _windows_lock:
        _windows.clear()
