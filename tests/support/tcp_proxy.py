"""A proxy on loopback that passes bytes on, or holds, delays or drops them, as a network does that is in trouble."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from typing_extensions import Self

T = TypeVar("T")


class TcpProxy:
    """Listens on a free port until closed, with an event loop in a thread of its own.

    :param ports: where connections are led to, one after the other; a port that refuses one is passed over.
    """

    def __init__(self, *ports: int) -> None:
        self.port = 0
        self._ports = list(ports)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tcp-proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._gates: set[asyncio.Event] = set()
        self._holds_new = False
        self._refuses = False
        self._delay = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=512))
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # Trouble

    def hold(self, *, new: bool = True) -> None:
        """Let nothing pass, neither way, and no end of a connection either, until `release`.

        :param new: hold connections that are yet to come, too.
        """
        self._call(self._hold, new)

    def delay(self, seconds: float) -> None:
        """Let every piece wait for so long before it is passed on."""
        self._delay = seconds

    def drop(self, *, new: bool = True) -> None:
        """Break all connections.

        :param new: break those that are yet to come, too, until `release`.
        """
        self._call(self._drop, new)

    def release(self) -> None:
        """Pass on what was held, in its order, and all that comes."""
        self._call(self._release)

    def _hold(self, new: bool) -> None:
        self._holds_new = new
        for gate in self._gates:
            gate.clear()

    def _drop(self, new: bool) -> None:
        self._refuses = new
        for writer in self._writers:
            writer.transport.abort()
        for gate in self._gates:
            gate.set()

    def _release(self) -> None:
        self._holds_new = self._refuses = False
        self._delay = 0.0
        for gate in self._gates:
            gate.set()

    # Passing on

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        gate = asyncio.Event()
        if not self._holds_new:
            gate.set()
        self._gates.add(gate)
        self._writers.add(writer)
        try:
            upstream = None if self._refuses else await self._connect()
            if upstream is None:
                return
            self._writers.add(upstream[1])
            try:
                await asyncio.gather(self._pass(reader, upstream[1], gate), self._pass(upstream[0], writer, gate))
            finally:
                self._writers.discard(upstream[1])
                upstream[1].transport.abort()
        finally:
            self._tasks.discard(task)
            self._gates.discard(gate)
            self._writers.discard(writer)
            writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for _ in self._ports:
            port = self._ports.pop(0)
            self._ports.append(port)
            with contextlib.suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", port)
        return None

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self._delay:
                    await asyncio.sleep(self._delay)
                await gate.wait()
                writer.write(data)
                await writer.drain()
            await gate.wait()
            if writer.can_write_eof():
                writer.write_eof()

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        self._drop(new=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # From other threads

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _call(self, change: Callable[..., None], *arguments: Any) -> None:
        async def call() -> None:
            change(*arguments)

        self._do(call())
