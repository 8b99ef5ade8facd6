"""The synchronous Kie.ai client: what :class:`~kie_provider.hooks.kie.KieHook` does for a worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kie_provider.client import protocol, retry, transport
from kie_provider.client.download import DEAD_LINK, DownloadedFile, download
from kie_provider.client.endpoint import Endpoint
from kie_provider.client.errors import (
    KieError,
    KieNotFoundError,
    KieResultError,
    KieSubmitUnknownError,
    KieTransportError,
    KieValidationError,
    storage_error,
)
from kie_provider.client.plain import shorten
from kie_provider.client.polling import Observation
from kie_provider.client.records import TaskRecord

if TYPE_CHECKING:
    import requests

T = TypeVar("T")


class KieClient:
    """Talks to one Kie account. Close it, or use it as a context manager.

    :param endpoint: where, and with which key.
    :param sleep: waits between attempts.
    """

    def __init__(self, endpoint: Endpoint, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.endpoint = endpoint
        self._sleep = sleep
        self._lazy_session: requests.Session | None = None
        self._lock = threading.Lock()

    def create_task(
        self,
        model: str,
        task_input: Mapping[str, object],
        callback_url: str | None = None,
        before_sending: Callable[[], object] | None = None,
    ) -> str:
        """Create a billed task and return its id.

        Sent once over a new connection. It is sent again, for about twelve seconds, only if Kie refused it for the
        moment (429, 455) or if it never left this machine.

        :raises KieSubmitUnknownError: sent, but it is not known whether a task was created.
        :raises KieError: nothing was created.
        """
        body, patience = protocol.create_task_body(model, task_input, callback_url), retry.SubmitPatience()
        while True:
            try:
                return self.create_task_once(body, before_sending)
            except KieError as error:
                delay = patience.delay_after(error)
            self._sleep(delay)

    def create_task_once(self, body: Mapping[str, object], before_sending: Callable[[], object] | None = None) -> str:
        """Send createTask once and return the id of the billed task.

        :param body: of :func:`~kie_provider.client.protocol.create_task_body`.
        :param before_sending: called with the connection open, just before the request leaves this machine.
        :raises KieSubmitUnknownError: sent, but it is not known whether a task was created.
        :raises KieError: nothing was created.
        """
        with transport.fresh_connection(before_sending) as session:
            try:
                answer = transport.send(session, self.endpoint, protocol.create_task(body))
            except KieTransportError as error:
                if error.may_have_arrived:
                    raise KieSubmitUnknownError(error.message) from error
                raise
            return protocol.read_created(answer)

    def get_task(self, kie_task_id: str) -> TaskRecord:
        """Return the record of a task.

        :raises KieNotFoundError: Kie does not know it (yet).
        :raises KieError: any other failure, after a few attempts if it may pass.
        """
        request = protocol.get_task(kie_task_id)
        return self._look_up(request, lambda answer: protocol.read_task(answer, kie_task_id))

    def poll(self, kie_task_id: str) -> Observation:
        """Poll a task once, for a wait that decides itself what an error means."""
        try:
            answer = transport.send(self._session, self.endpoint, protocol.get_task(kie_task_id))
            return protocol.read_task(answer, kie_task_id)
        except KieError as error:
            error.kie_task_id = kie_task_id
            return error

    def get_credits(self) -> float:
        """Return the account's balance in credits (1 credit = 0.005 USD); free of charge."""
        return self._look_up(protocol.get_credits(), protocol.read_credits)

    def get_download_url(self, url: str) -> str:
        """Return a fresh link, valid for 20 minutes, to one of Kie's own result or upload URLs.

        :raises KieValidationError: the URL is not Kie's.
        """
        return self._look_up(protocol.get_download_url(url), protocol.read_download_url)

    def upload_file(self, path: str | Path, upload_path: str = "airflow") -> str:
        """Upload an input file (free; Kie keeps it for at least 24 hours) and return its public URL.

        :param path: a local file, read into memory; Kie advises 10 MB at most for images.
        :param upload_path: folder at Kie, without slashes around it. A file of the same name there is replaced.
        :raises KieValidationError: there is no such file, or it must not be read; nothing was sent.
        :raises KieStorageError: it could not be read.
        """
        path = Path(path)
        request = protocol.upload_file(path.name, _read(path), upload_path.strip("/"))
        return self._look_up(request, protocol.read_upload)

    def download_file(self, url: str, path: str | Path, *, max_bytes: int | None = None) -> DownloadedFile:
        """Download a public result URL to a local file, which appears only when complete.

        A link that has died is replaced by a fresh one, and a download that breaks off is tried again. The file host
        never sees the API key, nor credentials from .netrc.

        :param max_bytes: refuse a file that is larger; None: any size.
        :raises KieResultError: the file is lost, larger than allowed, or at an address where no result can be.
        :raises KieFileError: the download broke off, repeatedly, or the host answers with a web page or nothing.
        :raises KieTargetError: there can be no file at ``path``.
        :raises KieStorageError: the file could not be written.
        """
        try:
            return self._download(url, path, max_bytes)
        except KieResultError as error:
            if error.http_status not in DEAD_LINK:
                raise
            fresh = self._fresh_link(url, error)
        try:
            return self._download(fresh, path, max_bytes)
        except KieResultError as error:
            if error.http_status in DEAD_LINK:
                raise KieResultError(
                    f"the file host refused both {shorten(url, 200)} and the fresh link that Kie gave in its place, so "
                    "it is not the link that has expired: the file is gone, or the host, or a firewall on the way, "
                    f"lets this machine or program in no more (User-Agent {transport.HEADERS['User-Agent']!r})",
                    http_status=error.http_status,
                ) from None
            raise

    def _download(self, url: str, path: str | Path, max_bytes: int | None) -> DownloadedFile:
        try:
            return self._retrying(
                lambda: download(
                    url,
                    Path(path),
                    read_timeout=self.endpoint.request_timeout,
                    max_bytes=max_bytes,
                    may_be_private=lambda: self.endpoint.is_private,
                )
            )
        except OSError as error:
            raise storage_error(path, error) from error

    def _fresh_link(self, url: str, dead: KieResultError) -> str:
        try:
            return self.get_download_url(url)
        except (KieNotFoundError, KieValidationError) as error:  # "url is wrong"
            raise KieResultError(
                f"{dead.message}; Kie gives no fresh link either ({error.message}), so this file is lost. Kie keeps "
                "results for 14 days and warns that links may die within 24 hours",
                http_status=dead.http_status,
            ) from None

    def close(self) -> None:
        """Close kept-alive connections."""
        if self._lazy_session is not None:
            self._lazy_session.close()
            self._lazy_session = None

    def __enter__(self) -> KieClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def _session(self) -> requests.Session:
        with self._lock:  # several downloads may ask for fresh links at once
            if self._lazy_session is None:
                self._lazy_session = transport.reusable_session()
            return self._lazy_session

    def _look_up(self, request: protocol.Request, read: Callable[[protocol.Answer], T]) -> T:
        """Send a free request and read the answer."""
        return self._retrying(lambda: read(transport.send(self._session, self.endpoint, request)))

    def _retrying(self, attempt_once: Callable[[], T]) -> T:
        """Make an attempt that is free of charge, and retry if that may help."""
        attempt = 1
        while True:
            try:
                return attempt_once()
            except KieError as error:
                delay = retry.lookup_delay(error, attempt)
                if delay is None:
                    raise
                delay = retry.jitter(delay, at_least=error.retry_after)
            self._sleep(delay)
            attempt += 1


def _read(path: Path) -> bytes:
    try:
        if path.is_file() or not path.exists():
            return path.read_bytes()
        reason: object = "it is not a regular file"  # of which reading one could take for ever
    except ValueError as error:  # a path with NUL
        reason = error
    except OSError as error:
        failure = storage_error(path, error)
        if failure.is_transient:
            raise failure from error
        reason = error.strerror or error
    raise KieValidationError(f"path: must be a file that can be read, got {str(path)!r} ({reason}); nothing was sent")
