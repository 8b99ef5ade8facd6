"""A real Redis on loopback, for as long as a test needs it."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING

from tests.support.processes import ChildProcess, free_port, stop_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Redis:
    """One server on a free port; unless told otherwise, it forgets all when it ends."""

    def __init__(self, program: str, folder: Path, *, appendonly: str = "no") -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        options = {"port": self.port, "bind": "127.0.0.1", "save": "", "appendonly": appendonly, "dir": folder}
        self._command = [program, *(text for name, value in options.items() for text in (f"--{name}", str(value)))]
        self._folder = folder
        self.start()

    def start(self) -> None:
        """Start it, or start it again."""
        log = self._folder / "redis.log"
        self._child = ChildProcess("redis", self._command, log=log, env=os.environ, cwd=self._folder)

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
