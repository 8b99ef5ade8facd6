"""A real Redis on loopback, for as long as a test needs it."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING

from tests.support.processes import ChildProcess, stop_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Redis:
    """One server without persistence, on a free port."""

    def __init__(self, program: str, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        options = {"port": self.port, "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": folder}
        arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        self._child = ChildProcess("redis", [program, *arguments], log=folder / "redis.log", env=os.environ, cwd=folder)

    def wait_until_ready(self, timeout: float = 20) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as client:
                client.sendall(b"PING\r\n")
                if client.recv(16).startswith(b"+PONG"):
                    return
            time.sleep(0.05)
        raise RuntimeError(f"Redis did not start\n{self._child.tail()}")

    def stop(self) -> None:
        """End it, as a machine does that goes down."""
        stop_all([self._child], grace=0)


@contextlib.contextmanager
def running_redis(program: str, folder: Path) -> Iterator[Redis]:
    """Run a Redis for the block."""
    server = Redis(program, folder)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()
