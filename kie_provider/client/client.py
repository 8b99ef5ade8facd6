"""The synchronous Kie.ai client: what :class:`~kie_provider.hooks.kie.KieHook` does for a worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kie_provider.client import protocol, retry, transport
from kie_provider.client.endpoint import Endpoint
from kie_provider.client.errors import KieError, KieResultError, KieSubmitUnknownError, KieTransportError
from kie_provider.client.models import TaskRecord, is_http_url, shorten
from kie_provider.client.polling import Observation

if TYPE_CHECKING:
    import requests

T = TypeVar("T")
_CHUNK = 1 << 20


class KieClient:
    """Talks to one Kie account. Close it, or use it as a context manager.

    :param endpoint: where, and with which key.
    :param sleep: waits between attempts.
    """

    def __init__(self, endpoint: Endpoint, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.endpoint = endpoint
        self._sleep = sleep
        self._lazy_session: requests.Session | None = None

    def create_task(self, model: str, task_input: Mapping[str, Any], callback_url: str | None = None) -> str:
        """Create a billed task and return its id.

        Sent once over a new connection. It is sent again, for about twelve seconds, only if Kie refused it for the
        moment (429, 455) or if it never left this machine.

        :raises KieSubmitUnknownError: sent, but it is not known whether a task was created.
        :raises KieError: nothing was created.
        """
        request = protocol.create_task(model, task_input, callback_url)
        attempt, waited = 1, 0.0
        while True:
            try:
                with transport.fresh_connection() as session:
                    return protocol.read_created(transport.send(session, self.endpoint, request))
            except KieError as error:
                delay = retry.submit_delay(error, attempt, waited)
                if delay is None:
                    if isinstance(error, KieTransportError) and error.may_have_arrived:
                        raise KieSubmitUnknownError(error.message) from error
                    raise
                delay = retry.jitter(delay, at_least=error.retry_after)
            self._sleep(delay)
            attempt, waited = attempt + 1, waited + delay

    def get_task(self, kie_task_id: str) -> TaskRecord:
        """Return the record of a task.

        :raises KieNotFoundError: Kie does not know it (yet).
        :raises KieError: any other failure, after a few attempts if it may pass.
        """
        request = protocol.get_task(kie_task_id)
        return self._look_up(request, lambda answer: protocol.read_task(answer, kie_task_id))

    def look(self, kie_task_id: str) -> Observation:
        """Take one look at a task, for a wait that decides itself what an error means."""
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
        """
        path = Path(path)
        request = protocol.upload_file(path.name, path.read_bytes(), upload_path.strip("/"))
        return self._look_up(request, protocol.read_upload)

    def download_file(self, url: str, path: str | Path) -> Path:
        """Download a public result URL to a local file, which appears only when complete.

        The file host never sees the API key, nor credentials from .netrc.

        :raises KieResultError: the URL is unusable, or answers with an error or a web page.
        :raises KieTransportError: the download broke off.
        """
        import requests

        path = Path(path)
        if not is_http_url(url):
            raise KieResultError(f"not an http(s) URL: {shorten(url)}")
        part = path.with_name(f".{path.name}.part")
        try:
            with (
                transport.reusable_session() as session,
                session.get(
                    url,
                    stream=True,
                    timeout=(transport.CONNECT_TIMEOUT, self.endpoint.request_timeout),
                    auth=lambda request: request,
                ) as response,
            ):
                kind = response.headers.get("Content-Type", "").split(";")[0].strip().lower()
                if response.status_code != 200 or kind == "text/html":
                    raise KieResultError(
                        f"{url} answered {kind or 'without a content type'}; result links can expire within 24 hours",
                        http_status=response.status_code,
                    )
                path.parent.mkdir(parents=True, exist_ok=True)
                with part.open("wb") as file:
                    for chunk in response.iter_content(_CHUNK):
                        file.write(chunk)
                if not part.stat().st_size:
                    raise KieResultError(f"{url} answered with an empty file", http_status=response.status_code)
            part.replace(path)
        except (requests.RequestException, ValueError) as error:  # ValueError: a redirect to what is no URL
            raise KieTransportError(f"downloading {url} broke off ({type(error).__name__}: {error})") from None
        finally:
            part.unlink(missing_ok=True)
        return path

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
        if self._lazy_session is None:
            self._lazy_session = transport.reusable_session()
        return self._lazy_session

    def _look_up(self, request: protocol.Request, read: Callable[[protocol.Answer], T]) -> T:
        """Send a free request, again if that may help, and read the answer."""
        attempt = 1
        while True:
            try:
                return read(transport.send(self._session, self.endpoint, request))
            except KieError as error:
                delay = retry.lookup_delay(error, attempt)
                if delay is None:
                    raise
                delay = retry.jitter(delay, at_least=error.retry_after)
            self._sleep(delay)
            attempt += 1
