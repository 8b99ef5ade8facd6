"""Run the emulator: in a thread of a Python program, or in the foreground."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from aiohttp import web

from kie_provider.emulator.account import Bill
from kie_provider.emulator.server import Server
from kie_provider.emulator.settings import Settings
from kie_provider.emulator.world import RecordedCallback, RecordedRequest


def connection(url: str, api_key: str) -> dict[str, object]:
    """Return the Airflow connection to an emulator, as in the JSON of ``AIRFLOW_CONN_KIE_DEFAULT``."""
    return {"conn_type": "kie", "host": url, "password": api_key, "extra": {"upload_host": url}}


async def serve(server: Server, host: str, port: int, on_start: Callable[[str], None], stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set.

    :param on_start: called with the base URL once connections are accepted.
    :raises OSError: it cannot listen on the address.
    """
    runner = web.AppRunner(server.app(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        name = "127.0.0.1" if host in ("0.0.0.0", "") else host  # noqa: S104
        on_start(f"http://{name}:{runner.addresses[0][1]}")
        await stop.wait()
    finally:
        server.drop_callbacks()
        server.release()
        await runner.cleanup()


class KieEmulator:
    """An emulated Kie.ai on loopback, in a thread with its own event loop.

    Use it as a context manager, or call ``start()`` and ``stop()``; its methods may be called from any thread.

    :param port: 0 chooses a free one.
    :param host: address to listen on.
    :param clock: returns epoch seconds; pass another one to jump ahead.
    :param settings: fields of :class:`~kie_provider.emulator.settings.Settings`: ``api_key``, ``credits``,
        ``waiting_seconds``, ``generating_seconds`` and others.

    A task's ``callBackUrl`` is called only if its host is ``localhost`` or a loopback address.
    """

    def __init__(
        self, port: int = 0, *, host: str = "127.0.0.1", clock: Callable[[], float] = time.time, **settings: Any
    ) -> None:
        self.url = ""
        self.settings = Settings(**settings)
        self._server = Server(self.settings, clock)
        self._address = (host, port)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._error: Exception | None = None

    @property
    def api_key(self) -> str:
        """The key that is accepted."""
        return self.settings.api_key

    @property
    def connection(self) -> dict[str, object]:
        """The Airflow connection, ready for ``json.dumps``."""
        return connection(self.url, self.api_key)

    def start(self) -> KieEmulator:
        """Start serving and return when connections are accepted.

        :raises OSError: it cannot listen on the address.
        :raises OverflowError: the port does not exist.
        """
        if self._thread is not None:
            raise RuntimeError("the emulator is running already")
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="kie-emulator", daemon=True)
        self._thread.start()
        ready.wait()
        if self._error is not None:
            error, self._error = self._error, None
            self._thread.join()
            self._thread = self._loop = self._stop = None
            raise error
        return self

    def stop(self) -> None:
        """Stop serving: held responses are sent, callbacks dropped, all connections closed; then the thread ends."""
        if self._thread is None or self._loop is None or self._stop is None:
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._thread = self._loop = self._stop = None

    def bill(self) -> Bill:
        """Return what each task was charged, as ``GET /_emulator/bill``."""
        return self._server.bill()

    def requests(self) -> list[RecordedRequest]:
        """Return the recorded requests to the API and the file host, oldest first.

        Each has ``method``, ``path``, ``query``, ``headers`` (names in lower case; ``authorization`` is "valid",
        "invalid" or None), ``json`` (the body, or None) and ``fault`` (the ``do`` of the fault it met, or None).
        """
        return self._server.requests()

    def callbacks(self) -> list[RecordedCallback]:
        """Return the callbacks of ended tasks, oldest first, as ``GET /_emulator/callbacks``.

        Each has ``taskId``, ``url``, ``headers`` (the signature), ``json`` (the body), ``fault`` (the
        ``do`` of the fault it met, or None), ``http_status`` (of the receiver's response, or None) and ``error`` (why
        there is none). URLs that are not on loopback are only listed here, never called.
        """
        return self._server.callbacks()

    def fault(self, fault: Mapping[str, object]) -> None:
        """Arm a fault, as ``POST /_emulator/faults``.

        :raises ValueError: names the field that is unknown or wrong.
        """
        self._server.arm(fault)

    def release(self) -> None:
        """Send what a ``hold``, ``slow`` or ``late`` fault holds back."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._server.release)

    def reset(self) -> None:
        """Forget tasks, files, faults, bill, requests and callbacks, restore all credits, and send held responses."""
        old = self._server.reset()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(old.released.set)

    def __enter__(self) -> KieEmulator:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self, ready: threading.Event) -> None:
        def on_start(url: str) -> None:
            self.url = url
            ready.set()

        async def main() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            await serve(self._server, *self._address, on_start, self._stop)

        try:
            asyncio.run(main())
        except (OSError, OverflowError) as error:  # OverflowError: the port does not exist
            self._error = error
        finally:
            ready.set()
