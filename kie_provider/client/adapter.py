"""The one way out of a worker: an adapter for requests that keeps a deadline, and knows what was sent, and to whom.

All three are known for sure only where the socket is:

- Exceptions cannot tell whether a request was sent: a TLS error, for one, looks the same during the handshake (nothing
  was sent) and while the answer is read (the task may exist).
- A socket's time-out begins anew with every byte, so an answer in drips could hold a worker for hours.
- Which address a URL leads to is a matter of opinion (of parsers, of DNS at that moment) until a socket is connected.
"""

from __future__ import annotations

import http.client
import io
import math
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.poolmanager import PoolManager

from kie_provider.client.endpoint import is_private_address, is_private_host
from kie_provider.client.proxies import check_proxy

_SEND_CHUNK = 64 * 1024


class PrivateAddressError(Exception):
    """The request leads to an address of this machine or network; its text is that address."""


@dataclass(frozen=True)
class Deadline:
    """How long an answer may take: ``grace`` seconds, and one more for every ``bytes_per_second`` that have arrived."""

    grace: float
    bytes_per_second: float = math.inf


class Exchange:
    """One request and its answer, as the connection under it sees them.

    :param deadline: for everything from connecting to the last byte, until :meth:`set_deadline` sets another.
    """

    def __init__(self, deadline: Deadline) -> None:
        self.was_sent = False
        self._longest_pause = deadline.grace
        self.set_deadline(deadline)

    def set_deadline(self, deadline: Deadline) -> None:
        """Set another deadline, for what arrives from now on."""
        self._deadline, self._began, self._received = deadline, time.monotonic(), 0

    def received(self, count: int) -> None:
        """Record the number of bytes that have arrived."""
        self._received += count

    def seconds_left(self) -> float:
        """Return how many seconds the next step may take.

        :raises TimeoutError: the deadline has passed.
        """
        seconds = time.monotonic() - self._began
        left = self._deadline.grace + self._received / self._deadline.bytes_per_second - seconds
        if left <= 0:
            raise TimeoutError(f"{self._received} bytes in {seconds:.3g} s is too slow")
        return min(left, self._longest_pause)


class KieAdapter(HTTPAdapter):
    """Sends like requests' own adapter, and never again what has failed. Its threads do not disturb each other.

    The second ``timeout`` of a request is the deadline of the whole exchange, and the longest pause in it.

    :param body_deadline: for the body of an answer, in place of that deadline.
    :param may_be_private: says whether a private address may be talked to, when one is met; None: it may.
    :param before_sending: called with the connection open, just before the first byte of a request leaves.
    """

    def __init__(
        self,
        body_deadline: Deadline | None = None,
        may_be_private: Callable[[], bool] | None = None,
        before_sending: Callable[[], object] | None = None,
    ) -> None:
        self._body_deadline = body_deadline
        self._may_be_private = may_be_private
        self._before_sending = before_sending
        self._of_thread = threading.local()
        super().__init__(max_retries=0)

    @property
    def exchange(self) -> Exchange | None:
        """The latest exchange of this thread; None: there was none."""
        return getattr(self._of_thread, "exchange", None)

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Send a request; the answer's headers are there when this returns.

        :raises PrivateAddressError: it leads to a private address, and must not.
        """
        exchange = self._of_thread.exchange = Exchange(Deadline(kwargs["timeout"][1]))
        # The URL as requests has read and rewritten it. Behind a proxy, nothing more is known of where it leads.
        if is_private_host(str(request.url)):
            self._refuse_private(str(urlsplit(str(request.url)).hostname))
        response = super().send(request, *args, **kwargs)
        if self._body_deadline is not None:
            exchange.set_deadline(self._body_deadline)
        return response

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make pools whose connections report to this adapter."""
        super().init_poolmanager(*args, **kwargs)
        self._watch(self.poolmanager, is_direct=True)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        """Do the same for connections through a proxy.

        :raises KieConnectionError: the proxy is of a kind that is not used here.
        """
        check_proxy(proxy)
        is_new = proxy not in self.proxy_manager
        manager = super().proxy_manager_for(proxy, **kwargs)
        if is_new:
            self._watch(manager, is_direct=False)
        return manager

    def _refuse_private(self, address: str) -> None:
        if self._may_be_private is not None and not self._may_be_private():
            raise PrivateAddressError(address)

    def _watch(self, manager: PoolManager, *, is_direct: bool) -> None:
        adapter, of_thread = self, self._of_thread

        class Watched:
            """Mixed into urllib3's connections."""

            _connecting = False

            def connect(self) -> None:
                # A proxy's CONNECT is sent in here, and the TLS handshake: neither carries the request.
                self._connecting = True
                self.timeout = min(self.timeout, of_thread.exchange.seconds_left())  # type: ignore[has-type]
                super().connect()  # type: ignore[misc]
                self._connecting = False

            def _new_conn(self) -> socket.socket:
                sock: socket.socket = super()._new_conn()  # type: ignore[misc]
                try:
                    peer = str(sock.getpeername()[0])
                    if is_direct and is_private_address(peer):
                        adapter._refuse_private(peer)
                except BaseException:
                    sock.close()
                    raise
                return sock

            def send(self, data: Any) -> None:
                if self.sock is None:  # type: ignore[attr-defined]
                    self.connect()
                whole = memoryview(data)
                for start in range(0, len(whole), _SEND_CHUNK):
                    self.sock.settimeout(of_thread.exchange.seconds_left())  # type: ignore[attr-defined]
                    if not self._connecting and not of_thread.exchange.was_sent:
                        if adapter._before_sending is not None:
                            adapter._before_sending()
                        of_thread.exchange.was_sent = True
                    super().send(whole[start : start + _SEND_CHUNK])  # type: ignore[misc]

            def response_class(self, sock: Any, *args: Any, **kwargs: Any) -> http.client.HTTPResponse:
                timed: Any = _TimedSocket(sock, of_thread.exchange)
                return http.client.HTTPResponse(timed, *args, **kwargs)

        def watched(pool: Any) -> Any:
            connection = type("WatchedConnection", (Watched, pool.ConnectionCls), {})
            return type("WatchedPool", (pool,), {"ConnectionCls": connection})

        pools: Mapping[str, Any] = manager.pool_classes_by_scheme
        manager.pool_classes_by_scheme = {scheme: watched(pool) for scheme, pool in pools.items()}


class _TimedSocket:
    """What an HTTP answer is read from."""

    def __init__(self, sock: Any, exchange: Exchange) -> None:
        self._sock = sock
        self._exchange = exchange

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._sock, self._exchange))


class _TimedReader(io.RawIOBase):
    """Reads from a socket until the deadline of the exchange."""

    def __init__(self, sock: Any, exchange: Exchange) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._exchange = exchange

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._exchange.seconds_left())
        count: int | None = self._raw.readinto(buffer)
        self._exchange.received(count or 0)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()
