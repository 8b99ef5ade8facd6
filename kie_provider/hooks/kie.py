"""KieHook: from an Airflow connection to the Kie.ai client."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseHook

from kie_provider.client.errors import KieError
from kie_provider.client.plain import counted
from kie_provider.compat import connection_form, connection_form_widgets
from kie_provider.config import rate_limit_storage
from kie_provider.execution_timeout import run

# The rest of the client is imported where it is used: DAG files import this module.
if TYPE_CHECKING:
    from kie_provider.client.client import KieClient
    from kie_provider.client.download import DownloadedFile
    from kie_provider.client.endpoint import Endpoint
    from kie_provider.client.polling import Callback, Observation
    from kie_provider.client.rate_limit import Slot, Window
    from kie_provider.client.records import TaskRecord
    from kie_provider.client.transport import RepeatedGet, SharedSession

DEFAULT_CONN_ID = "kie_default"
DEFAULT_POLL_INTERVAL = 3.0
DEFAULT_TIMEOUT = 900.0


class KieHook(BaseHook):
    """Authentication and transport for Kie.ai; every method that talks to Kie raises a ``KieError`` on failure.

    The connection's password is the API key. Host, schema and port are optional (default ``https://api.kie.ai``), as
    are the extras ``upload_host`` (default: Kie's own, or ``host`` if that is not Kie's), ``request_timeout`` (seconds,
    default 60), ``submit_limit`` (new tasks per ten seconds, default 20), ``callback_base_url`` (where Kie reaches
    Airflow's API server; default: no callbacks) and ``webhook_secret`` (with which Kie signs callbacks).

    The hook keeps HTTP connections alive: use it as a context manager, or call :meth:`close`.

    :param kie_conn_id: the Airflow connection, of type ``kie``.
    """

    conn_name_attr = "kie_conn_id"
    default_conn_name = DEFAULT_CONN_ID
    conn_type = "kie"
    hook_name = "Kie.ai"

    def __init__(self, kie_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.kie_conn_id = kie_conn_id
        self._endpoint: Endpoint | None = None
        self._refused: Endpoint | None = None
        self._client: KieClient | None = None

    def get_conn(self) -> KieClient:
        """Return the client for the connection, which is read when first needed.

        :raises KieConnectionNotFoundError: Airflow does not find it: there is none, or its database is away.
        :raises KieConnectionError: a field of it is not valid.
        """
        from kie_provider.hooks.connection import read_endpoint

        if self._client is None:
            self._client = self._new_client(self._endpoint or read_endpoint(self.kie_conn_id))
        return self._client

    def _new_client(self, endpoint: Endpoint) -> KieClient:
        from kie_provider.client.client import KieClient

        self._endpoint = endpoint
        return KieClient(endpoint)

    def create_task(self, model: str, input: Mapping[str, object], callback_url: str | None = None) -> str:  # noqa: A002
        """Create a task, which Kie bills when it succeeds, and return its Kie task id.

        Never sent twice when the first one may have arrived. Waits for a slot in the account's window of new tasks, as
        :meth:`acquire_slot` does.

        :param model: any model of Kie's market, such as ``flux-2/pro-text-to-image``.
        :param input: the model's input object.
        :param callback_url: public URL that Kie calls when the task ends; optional.
        :raises KieSubmitUnknownError: sent, but it is not known whether a task was created.
        :raises KieError: nothing was created.
        """
        slot = self._take_slot(None)
        return self.get_conn().create_task(model, input, callback_url, slot.leave)

    def acquire_slot(self, timeout: float | None = None) -> None:
        """Wait until one more task may be created: Kie allows an account 20 in ten seconds, and refuses more.

        All connections of this process with the same key share a window; with ``[kie] rate_limit_storage``, all workers
        do. :meth:`create_task` calls this itself.

        :param timeout: seconds to wait at most; default 12, which is Kie's window and a margin.
        :raises KieRateLimitError: no slot will be free by then; ``retry_after`` says when one may be.
        :raises KieConnectionError: ``[kie] rate_limit_storage`` cannot be used.
        """
        self._take_slot(timeout).leave()

    def _take_slot(self, timeout: float | None) -> Slot:
        import requests  # noqa: F401  # not between the slot and the request

        from kie_provider.client.rate_limit import SlotWait
        from kie_provider.client.retry import SUBMIT_PATIENCE

        wait = SlotWait(self.rate_limit_window, SUBMIT_PATIENCE if timeout is None else timeout)
        for seconds in wait:
            time.sleep(seconds)
        return wait.slot

    @property
    def rate_limit_window(self) -> Window:
        """The account's window of new tasks.

        :raises KieConnectionError: ``[kie] rate_limit_storage`` cannot be used.
        """
        from kie_provider.client.rate_limit import window_of

        return window_of(self.get_conn().endpoint, rate_limit_storage())

    def get_task(self, kie_task_id: str) -> TaskRecord:
        """Return the record of a task.

        :raises KieNotFoundError: Kie does not know it (yet).
        """
        return self.get_conn().get_task(kie_task_id)

    def poll(self, kie_task_id: str) -> Observation:
        """Poll a task once and return its record, or the error instead; nothing is retried."""
        try:
            return self.get_conn().poll(kie_task_id)
        except KieError as error:  # the connection itself
            return error

    def wait(
        self, kie_task_id: str, *, poll_interval: float = DEFAULT_POLL_INTERVAL, timeout: float = DEFAULT_TIMEOUT
    ) -> TaskRecord:
        """Wait in this process until the task has succeeded. Prefer the deferrable sensor: it holds no worker slot.

        :param poll_interval: seconds between two polls; grows to 15 after the first minute.
        :param timeout: seconds, after which the task is polled once more.
        :raises KieTaskTimeoutError: it was still running then; nothing is lost, and another wait may follow.
        :raises KieTaskFailedError: it ended in ``state=fail``.
        :raises KieResultError: it succeeded without a result.
        """
        from kie_provider.client.polling import Waiting, watch

        self.get_conn()  # in this thread, whatever thread waits

        async def wait() -> TaskRecord:
            now = time.time()
            async with self.polling() as poll_of:
                return await watch(Waiting(now, poll_interval, deadline=now + timeout), poll_of(kie_task_id))

        return run(lambda _: wait())

    def get_credits(self) -> float:
        """Return the balance in credits (1 credit = 0.005 USD)."""
        return self.get_conn().get_credits()

    def get_download_url(self, url: str) -> str:
        """Return a fresh link, valid for 20 minutes, to a result or upload URL of Kie's."""
        return self.get_conn().get_download_url(url)

    def download_file(self, url: str, path: str | Path, *, max_bytes: int | None = None) -> DownloadedFile:
        """Download a result URL to a local file, which appears only when complete; the key stays here.

        A dead link is replaced by a fresh one, and a download that breaks off is tried again.

        :param max_bytes: refuse a file that is larger; None: any size.
        :raises KieResultError: the file is lost, larger than allowed, or at an address where no result can be.
        :raises KieFileError: the download broke off, repeatedly, or the host answers with a web page or nothing.
        :raises KieTargetError: there can be no file at ``path``.
        :raises KieStorageError: the file could not be written.
        """
        return self.get_conn().download_file(url, path, max_bytes=max_bytes)

    def upload_file(self, path: str | Path, upload_path: str = "airflow") -> str:
        """Upload a local input file (free, kept for at least 24 hours) and return its public URL.

        :raises KieValidationError: there is no such file, or it must not be read; nothing was sent.
        """
        return self.get_conn().upload_file(path, upload_path)

    def test_connection(self) -> tuple[bool, str]:
        """Check host and key by reading the credit balance, which costs nothing."""
        try:
            with self:
                return True, f"Connected to Kie.ai: {counted(self.get_credits(), 'credit')} left"
        except KieError as error:
            return False, str(error)

    async def aget_task(self, kie_task_id: str) -> TaskRecord:
        """Return the record of a task, on the event loop, over the session that all its triggers share.

        :raises KieNotFoundError: Kie does not know it (yet).
        """
        from kie_provider.client import protocol, transport

        try:
            async with transport.shared_session() as shared:
                answer = await transport.send_async(shared, await self._aget_endpoint(), protocol.get_task(kie_task_id))
            return protocol.read_task(answer, kie_task_id)
        except KieError as error:
            error.kie_task_id = kie_task_id
            raise

    async def await_task(
        self,
        kie_task_id: str,
        *,
        poll_interval: float = DEFAULT_POLL_INTERVAL,
        deadline: float | None = None,
        gate: AbstractAsyncContextManager[object] | None = None,
        callback: Callback | None = None,
    ) -> TaskRecord:
        """Wait on the event loop until the task has succeeded; otherwise as :meth:`wait`.

        The first poll is due at a random time within one interval: the worker has just polled, and thousands of waits
        that start together, as after a restart of the triggerer, share a few connections.

        :param deadline: epoch seconds of the last poll; None: wait forever.
        :param gate: held during each poll; a semaphore bounds their number.
        :param callback: ``expected`` if Kie calls back when the task has ended: polls are rare then, the first one is
            taken after ten seconds. ``came`` if it has called: they get rare after a minute.
        """
        from kie_provider.client.polling import BACKSTOP_POLLS, Waiting, watch
        from kie_provider.client.retry import jitter

        waiting = Waiting(time.time(), poll_interval, deadline, callback=callback)
        spread = min(poll_interval, DEFAULT_POLL_INTERVAL)
        delay = jitter(BACKSTOP_POLLS[0]) if callback == "expected" else random.uniform(0.0, spread)
        if deadline is not None:
            delay = min(delay, max(deadline - time.time(), 0.0))
        await asyncio.sleep(delay)
        async with self.polling(gate) as poll_of:
            return await watch(waiting, poll_of(kie_task_id))

    async def callback_base_url(self) -> str:
        """Return where Kie reaches Airflow's API server for tasks of this connection; empty: callbacks are off."""
        return (await self._aget_endpoint()).callback_base_url

    @contextlib.asynccontextmanager
    async def polling(
        self, gate: AbstractAsyncContextManager[object] | None = None
    ) -> AsyncIterator[Callable[[str], TaskPoll]]:
        """Lease the pooled session of this event loop, for polls of Kie tasks.

        :param gate: held during each poll.
        """
        from kie_provider.client.transport import shared_session

        async with shared_session() as shared:
            yield lambda kie_task_id: TaskPoll(self, shared, kie_task_id, gate)

    def refresh_key(self, refused: Endpoint | None) -> None:
        """Read the connection again, because Kie has refused its key: it may have been rotated.

        :param refused: the endpoint in use then; nothing is read if another one is in use by now.
        :raises KieConnectionNotFoundError: Airflow does not find it: it was removed, or its database is away.
        :raises KieConnectionError: a field of it is not valid.
        """
        if self._endpoint is not refused:
            return
        if self._client is None:  # in the triggerer, where the next poll reads it
            self._refused, self._endpoint = refused, None
            return
        from kie_provider.hooks.connection import read_endpoint

        # Replaced, never missing: other threads use it, and only this one may ask Airflow.
        before, self._client = self._client, self._new_client(read_endpoint(self.kie_conn_id))
        before.close()

    def close(self) -> None:
        """Close kept-alive HTTP connections; the next call opens new ones."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def __enter__(self) -> KieHook:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def _aget_endpoint(self) -> Endpoint:
        if self._endpoint is None:
            from kie_provider.hooks.connection import aread_endpoint

            self._endpoint = await aread_endpoint(self.kie_conn_id, self._refused)
        return self._endpoint

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Describe the connection form for Airflow 3.1; later ones read it from the provider info."""
        return connection_form()

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the extra fields of the connection form for Airflow 3.1; later ones read the provider info."""
        return connection_form_widgets()


class TaskPoll:
    """Polls one Kie task on the event loop; what it is called with is described at ``client.polling.Poll``."""

    def __init__(
        self, hook: KieHook, shared: SharedSession, kie_task_id: str, gate: AbstractAsyncContextManager[object] | None
    ) -> None:
        from kie_provider.client.protocol import get_task, read_poll
        from kie_provider.client.transport import RepeatedGet

        self._hook = hook
        self._shared = shared
        self._kie_task_id = kie_task_id
        self._gate = gate
        self._get_from = functools.partial(RepeatedGet, request=get_task(kie_task_id))
        self._read = read_poll
        self._get: RepeatedGet | None = None

    async def __call__(self, *, refresh_key: bool = False) -> Observation:
        """Return the record, or the error in its place; nothing is retried."""
        try:
            if refresh_key and self._get is not None:
                self._hook.refresh_key(self._get.endpoint)
            endpoint = self._hook._endpoint or await self._hook._aget_endpoint()  # noqa: SLF001
            if self._get is None or self._get.endpoint is not endpoint:
                self._get = self._get_from(endpoint)
            if self._gate is None:
                answer = await self._get.send(self._shared)
            else:
                async with self._gate:
                    answer = await self._get.send(self._shared)
            return self._read(answer, self._kie_task_id)
        except KieError as error:
            error.kie_task_id = self._kie_task_id
            return error
