"""A gate in front of Airflow's execution API: everything passes, except requests that a test wants to hold.

A worker tells Airflow with one request each what it is about to do or has done: it starts a task, writes to its state
store, defers, pushes an XCom, reports success. Whoever holds such a request stops the task at an exact point, without
any code in the DAG or in the operator::

    hold = gate.hold(Rule("PUT", r"/store/ti/.*\\.answer$", run_id="one"))
    ...  # start the run
    while hold.caught is None:
        time.sleep(0.1)
    ...  # kill hold.caught.by.pid: the id is known to the task, and not yet to Airflow
    hold.drop()              # the request never arrives
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from typing_extensions import Self

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


@dataclass
class Try:
    """One try of a task instance, as far as the gate has seen it.

    :param ti_id: Airflow's id of it; every try has its own.
    :param pid: the process of the task, or the last one; the process above it, its supervisor, sends the requests.
    :param phases: how often it has started: once, and once after every deferral.
    :param killed: how many of these phases were killed; noted by who kills.
    """

    ti_id: str
    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    pid: int = 0
    phases: int = 0
    killed: int = 0


@dataclass(frozen=True)
class Caught:
    """A request that is being held."""

    method: str
    path: str
    body: str
    by: Try


@dataclass(frozen=True)
class Passed:
    """A request that was answered.

    :param seconds: from the gate to Airflow and back.
    :param sent: bytes of its body; ``answered``: bytes of the answer's.
    """

    run_id: str
    method: str
    path: str
    seconds: float
    sent: int
    answered: int


@dataclass(frozen=True)
class Rule:
    """Which request to hold.

    :param path: regular expression, searched in the path.
    :param body: regular expression, searched in the body.
    :param skip: how many matching requests pass first.
    :param at: hold the request itself, or its answer: what was asked for is done then, and the worker does not know.
    :param once: when Airflow's client gives up after five seconds and sends the request again, that one passes.
    """

    method: str
    path: str
    body: str = ""
    run_id: str = ""
    task_id: str = ""
    map_index: int | None = None
    try_number: int | None = None
    skip: int = 0
    at: Literal["request", "answer"] = "request"
    once: bool = False

    def fits(self, request: Caught) -> bool:
        by = request.by
        return (
            request.method == self.method
            and self.run_id in ("", by.run_id)
            and self.task_id in ("", by.task_id)
            and self.map_index in (None, by.map_index)
            and self.try_number in (None, by.try_number)
            and re.search(self.path, request.path) is not None
            and re.search(self.body, request.body) is not None
        )


class Hold:
    """One rule that was set up; it catches one request, and the same when it is sent again."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._skip = rule.skip
        self._caught: Caught | None = None
        self._is_decided = threading.Event()
        self._drop = False

    @property
    def caught(self) -> Caught | None:
        """The request, once it has come."""
        return self._caught

    def release(self) -> None:
        """Let it pass."""
        self._is_decided.set()

    def drop(self) -> None:
        """Close its connection: the request never arrives, or its answer does not."""
        self._drop = True
        self._is_decided.set()

    def take(self, request: Caught) -> bool:
        """Whether this is the request; called with the gate's lock."""
        if self._is_decided.is_set():
            return False
        if self._caught is not None:
            return request == self._caught and not self.rule.once
        if not self.rule.fits(request):
            return False
        self._skip -= 1
        if self._skip >= 0:
            return False
        self._caught = request
        return True

    def is_dropped(self) -> bool:
        """Wait for the decision."""
        self._is_decided.wait()
        return self._drop


class Gate:
    """An HTTP proxy on 127.0.0.1, in threads.

    :param upstream: returns the base URL behind it.
    :param look_up: returns the try with an Airflow id, or None.
    :param one_at_a_time: let no two requests that write pass at once. On SQLite, Airflow's API server can lock itself
        out for the whole time-out of the database: while one request waits in the event loop for the right to write,
        the one that has it cannot end there.
    """

    def __init__(
        self, upstream: Callable[[], str], look_up: Callable[[str], Try | None], *, one_at_a_time: bool
    ) -> None:
        self.upstream = upstream
        self.on_pass: Callable[[Passed], None] | None = None  # called with every request that a task has sent
        self.writing: AbstractContextManager[Any] = threading.Lock() if one_at_a_time else contextlib.nullcontext()
        self._look_up = look_up
        self._lock = threading.Lock()
        self._holds: list[Hold] = []
        self._cut_off: set[str] = set()
        self._tries: dict[str, Try] = {}
        gate = self

        class Handler(_Handler):
            def handle_request(self) -> None:
                gate._pass_on(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self._server.request_queue_size = 256
        self._server.daemon_threads = True
        self._server.server_bind()
        self._server.server_activate()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="gate", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        for hold in self._holds:
            hold.drop()
        self._server.server_close()

    def hold(self, rule: Rule) -> Hold:
        """Catch the next request that fits."""
        hold = Hold(rule)
        with self._lock:
            self._holds.append(hold)
        return hold

    @contextlib.contextmanager
    def cut_off(self, run_id: str) -> Iterator[None]:
        """No worker of a run reaches Airflow meanwhile."""
        self._cut_off.add(run_id)
        try:
            yield
        finally:
            self._cut_off.discard(run_id)

    def tries(self) -> list[Try]:
        """Every try that has started, in this order; most of them have ended."""
        with self._lock:
            return list(self._tries.values())

    def _pass_on(self, handler: _Handler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        by = self._sender(handler)
        if by is not None and by.run_id in self._cut_off:
            handler.close_connection = True
            return
        hold = None if by is None else self._hold_for(by, handler, body)
        if hold is not None and hold.rule.at == "request" and hold.is_dropped():
            handler.close_connection = True
            return
        began = time.monotonic()
        try:
            status, headers, answer = self._forward(handler, body)
        except (OSError, http.client.HTTPException):
            handler.close_connection = True  # as if it had been sent there
            return
        if by is not None and self.on_pass is not None:
            seconds = time.monotonic() - began
            self.on_pass(Passed(by.run_id, handler.command, handler.path, seconds, len(body), len(answer)))
        if hold is not None and hold.rule.at == "answer" and hold.is_dropped():
            handler.close_connection = True
            return
        handler.send_response_only(status)
        for name, value in headers:
            if name.lower() not in HOP_BY_HOP:
                handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(answer)))
        handler.end_headers()
        handler.wfile.write(answer)

    def _sender(self, handler: _Handler) -> Try | None:
        ti_id = _subject(handler.headers.get("Authorization", ""))
        return (self._tries.get(ti_id) or self._look_up(ti_id)) if ti_id else None

    def _hold_for(self, by: Try, handler: _Handler, body: bytes) -> Hold | None:
        path = urlsplit(handler.path).path
        with self._lock:
            by = self._tries.setdefault(by.ti_id, by)
            if path.endswith("/run") and by.pid != (pid := json.loads(body)["pid"]):  # else it is sent again
                by.pid = pid
                by.phases += 1
            request = Caught(handler.command, path, body.decode(errors="replace"), by)
            return next((hold for hold in self._holds if hold.take(request)), None)

    def _forward(self, handler: _Handler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection(urlsplit(self.upstream()).netloc, timeout=60)
        reads = handler.command in ("GET", "HEAD")
        with contextlib.closing(upstream), contextlib.nullcontext() if reads else self.writing:
            headers = {name: value for name, value in handler.headers.items() if name.lower() not in HOP_BY_HOP}
            upstream.request(handler.command, handler.path, body or None, headers)
            response = upstream.getresponse()
            return response.status, response.getheaders(), response.read()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_request(self) -> None:
        raise NotImplementedError

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the client was killed
            super().handle()

    def do_GET(self) -> None:  # as http.server wants it
        self.handle_request()

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


def _subject(authorization: str) -> str:
    """The task instance a token was made for; the API behind checks the token, not we."""
    parts = authorization.removeprefix("Bearer ").split(".")
    if len(parts) != 3:
        return ""
    with contextlib.suppress(ValueError):
        return str(json.loads(base64.urlsafe_b64decode(parts[1] + "==")).get("sub", ""))
    return ""
