"""Where Kie calls back. Anybody can call here, so everything is checked, the cheapest first, and no body is believed.

The reference in the address is checked before anything is read, and nothing is looked up for one that cannot be. Two
threads at most touch the database; while it is slow, callbacks wait and nobody else.
"""

# No "from __future__ import annotations": FastAPI reads the annotations.

import asyncio
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect

from kie_provider.client.endpoint import Endpoint
from kie_provider.client.errors import KieConnectionError
from kie_provider.client.plain import is_kie_task_id
from kie_provider.client.webhook import (
    SIGNATURE_HEADER,
    TEST_TI_ID,
    TIMESTAMP_HEADER,
    Reference,
    derive_key,
    is_genuine,
    parse_reference,
    verify,
)
from kie_provider.hooks.connection import SHARED_SECONDS, read_endpoint_outside_tasks

log = logging.getLogger(__name__)

MAX_BODY = 256 * 1024
#: Callbacks that wait for a thread; 200 are done long before Kie gives up.
MAX_WAITING = 200
#: Names of connections that do not exist, looked up within SHARED_SECONDS.
MAX_UNKNOWN = 64

_T = TypeVar("_T")


class _BusyError(Exception):
    """Too much to do; Kie repeats the callback."""


class _Threads:
    """A few threads, and a queue that has an end."""

    def __init__(self, number: int, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(number, thread_name_prefix="kie-callbacks")
        self._free = number + waiting

    async def run(self, function: Callable[..., _T], *args: Any) -> _T:
        """Call a function that blocks.

        :raises _BusyError: the queue is full.
        """
        if not self._free:
            raise _BusyError
        self._free -= 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)
        finally:
            self._free += 1


class _Connections:
    """What connections say, kept for a minute; also which there are not, or else anybody could have them looked up."""

    def __init__(self) -> None:
        self._threads = _Threads(1, MAX_WAITING)
        self._known: dict[str, tuple[Endpoint, float]] = {}
        self._unknown: dict[str, float] = {}

    async def get(self, conn_id: str) -> Endpoint | None:
        """Return what a connection says; None: there is no such connection.

        :raises _BusyError: too many names that do not exist were asked for.
        """
        if self._is_fresh(conn_id):
            return self._kept(conn_id)
        return await self._threads.run(self._look_up, conn_id)

    def _is_fresh(self, conn_id: str) -> bool:
        _, read_at = self._known.get(conn_id, (None, self._unknown.get(conn_id, -SHARED_SECONDS)))
        return time.monotonic() - read_at < SHARED_SECONDS

    def _kept(self, conn_id: str) -> Endpoint | None:
        endpoint, _ = self._known.get(conn_id, (None, 0.0))
        return endpoint

    def _look_up(self, conn_id: str) -> Endpoint | None:
        if self._is_fresh(conn_id):  # looked up while this call waited
            return self._kept(conn_id)
        if conn_id not in self._known and len(self._unknown) >= MAX_UNKNOWN:
            self._unknown = {name: at for name, at in self._unknown.items() if self._is_fresh(name)}
            if len(self._unknown) >= MAX_UNKNOWN:
                raise _BusyError
        endpoint = _read_connection(conn_id)
        if endpoint is None:
            self._known.pop(conn_id, None)
            self._unknown[conn_id] = time.monotonic()
        else:
            self._unknown.pop(conn_id, None)
            self._known[conn_id] = endpoint, time.monotonic()
        return endpoint


def _read_connection(conn_id: str) -> Endpoint | None:
    try:
        return read_endpoint_outside_tasks(conn_id)
    except KieConnectionError as error:
        log.warning("Kie's callbacks are refused: %s", error)
        return None


class _Hidden:
    """Keeps references out of access logs: those name the path that the scope has when the answer begins."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            root = scope.get("root_path", "")
            scope["kie.reference"] = scope["path"].removeprefix(root).removeprefix("/")
            scope["path"] = f"{root}/reference"
            scope["raw_path"] = scope["path"].encode()
        await self.app(scope, receive, send)


app = FastAPI(title="Kie.ai callbacks", docs_url=None, redoc_url=None, openapi_url=None)
app.add_middleware(_Hidden)
_connections = _Connections()
_database = _Threads(2, MAX_WAITING)


@app.post("/reference")
async def receive(request: Request) -> Response:
    """Take a callback."""
    try:
        return await _receive(request)
    except ClientDisconnect:
        return _answer(400, "the body is incomplete")
    except _BusyError:
        return _answer(503, "busy")
    except Exception:
        log.exception("A callback of Kie could not be taken; Kie repeats it")
        return _answer(500, "internal error")


async def _receive(request: Request) -> Response:
    reference = parse_reference(request.scope["kie.reference"])
    endpoint = None if reference is None else await _connections.get(reference.conn_id)
    if reference is None or endpoint is None or not is_genuine(derive_key(endpoint), reference):
        return _not_found()
    body = await _read_body(request)
    if body is None:
        return _answer(413, f"more than {MAX_BODY} bytes")
    kie_task_id = _kie_task_id(body)
    if kie_task_id is None:
        return _answer(400, "not a callback of Kie")
    timestamp, signature = (request.headers.get(name) for name in (TIMESTAMP_HEADER, SIGNATURE_HEADER))
    secret = endpoint.webhook_secret
    if secret and not verify(secret, kie_task_id, timestamp, signature, now=time.time()):
        return _answer(401, "not signed by Kie")
    if not await _database.run(_deliver, reference, kie_task_id) and reference.ti_id != TEST_TI_ID:
        return _not_found()
    return _answer(200, "success")


async def _read_body(request: Request) -> bytes | None:
    """Return the body; None: it is too large, and the rest was not read."""
    if int(request.headers.get("content-length", 0)) > MAX_BODY:
        return None
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY:
            return None
    return bytes(body)


def _kie_task_id(body: bytes) -> str | None:
    """Return the task that a body is about; Kie's pages name three places for it."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    data = content["data"] if isinstance(content.get("data"), dict) else {}
    found = data.get("taskId") or data.get("task_id") or content.get("taskId")
    return found if is_kie_task_id(found) else None


_is_said = False


def _deliver(reference: Reference, kie_task_id: str) -> bool:
    """Hand a callback to Airflow; True also if this Airflow's internals are other ones, and tasks must poll."""
    try:
        from kie_provider.plugin.wake import deliver

        return deliver(reference, kie_task_id, time.time())
    except (ImportError, AttributeError, TypeError):
        global _is_said  # noqa: PLW0603
        if not _is_said:
            log.exception("This version of Airflow cannot be told of callbacks: tasks are not woken, they poll")
            _is_said = True
        return True


def _not_found() -> Response:
    return _answer(404, "not found")


def _answer(status: int, message: str) -> Response:
    # What was not read of a body is left unread.
    headers = None if status == 200 else {"Connection": "close"}
    return JSONResponse({"code": status, "msg": message}, status, headers)
