"""An adapter for requests that knows whether any byte of the HTTP request was handed to the network.

Exceptions cannot tell: a TLS error, for one, looks the same during the handshake (nothing was sent) and while the
answer is read (the task may exist). So the connection itself keeps the record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.poolmanager import PoolManager


class SentBytesAdapter(HTTPAdapter):
    """Sends like requests' own adapter and remembers in ``request_was_sent`` whether a request went out."""

    def __init__(self) -> None:
        self.request_was_sent = False
        super().__init__(max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make pools whose connections report to this adapter."""
        super().init_poolmanager(*args, **kwargs)
        self._watch(self.poolmanager)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        """Do the same for connections through a proxy."""
        manager = super().proxy_manager_for(*args, **kwargs)
        self._watch(manager)
        return manager

    def _watch(self, manager: PoolManager) -> None:
        adapter = self

        class Watched:
            """Mixed into urllib3's connections: notes the first byte after the connection is ready."""

            _connecting = False

            def connect(self) -> None:
                # A proxy's CONNECT is sent in here, and the TLS handshake: neither carries the request.
                self._connecting = True
                super().connect()  # type: ignore[misc]
                self._connecting = False

            def send(self, data: Any) -> None:
                if self.sock is None:  # type: ignore[attr-defined]
                    self.connect()
                if not self._connecting:
                    adapter.request_was_sent = True
                super().send(data)  # type: ignore[misc]

        def watched(pool: Any) -> Any:
            connection = type("WatchedConnection", (Watched, pool.ConnectionCls), {})
            return type("WatchedPool", (pool,), {"ConnectionCls": connection})

        # Made from the manager's own classes, which differ for a SOCKS proxy.
        pools: Mapping[str, Any] = manager.pool_classes_by_scheme
        manager.pool_classes_by_scheme = {scheme: watched(pool) for scheme, pool in pools.items()}
