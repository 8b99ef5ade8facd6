"""Send a request, hand back the answer: requests for workers, aiohttp for the triggerer. Nothing is retried here."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kie_provider import __version__
from kie_provider.client.endpoint import Endpoint, without_userinfo
from kie_provider.client.errors import KieConnectionError, KieTransportError
from kie_provider.client.plain import one_line
from kie_provider.client.protocol import Answer, Request
from kie_provider.client.proxies import proxy_for
from kie_provider.client.redaction import redact
from kie_provider.client.retry import parse_retry_after

if TYPE_CHECKING:
    import ssl
    from http.cookiejar import CookiePolicy

    import aiohttp
    import requests

    from kie_provider.client.adapter import Deadline

CONNECT_TIMEOUT = 10.0
#: Sent with every request. Answers are never asked for in a compressed form, and one that comes so is not read: a few
#: bytes can swell to gigabytes.
HEADERS = {"User-Agent": f"airflow-provider-kie/{__version__}", "Accept-Encoding": "identity"}
#: An answer of Kie's API has a few kilobytes.
LARGEST_ANSWER = 4 * 2**20
#: Bytes per second: uploading an input image gets one more second for each.
SLOWEST_UPLOAD = 16 * 1024
#: More polls than this at the same moment wait for a free socket of the pool.
POOL_SIZE = 512


def send(session: requests.Session, endpoint: Endpoint, request: Request) -> Answer:
    """Send ``request`` once, with the key, following no redirect.

    :param session: from :func:`reusable_session` or :func:`fresh_connection`.
    :raises KieTransportError: no complete answer; ``may_have_arrived`` is False only if nothing was sent.
    """
    import requests

    url = endpoint.url(request.target, upload=request.to_upload_host)
    seconds = endpoint.request_timeout + (len(request.file[1]) / SLOWEST_UPLOAD if request.file else 0.0)
    try:
        with session.request(
            request.method,
            url,
            json=request.json_body,
            data=request.form,
            files={"file": request.file} if request.file else None,
            auth=_bearer_auth(endpoint.api_key),
            timeout=(CONNECT_TIMEOUT, seconds),
            allow_redirects=False,
            stream=True,
        ) as response:
            _check_encoding(response.headers)
            body = bytearray()
            for piece in response.iter_content(64 * 1024):
                _add(body, piece)
    except (requests.RequestException, ValueError) as error:  # ValueError: a bad proxy URL, or an answer too large
        raise _transport_error(endpoint, request, error, may_have_arrived=_was_sent(session, url)) from None
    return Answer(
        response.status_code,
        bytes(body),
        parse_retry_after(response.headers.get("Retry-After"), time.time()),
        endpoint.api_key,
    )


def reusable_session(
    body_deadline: Deadline | None = None,
    may_be_private: Callable[[], bool] | None = None,
    before_sending: Callable[[], object] | None = None,
) -> requests.Session:
    """Return a session that keeps connections alive and remembers no cookies; for requests that may be repeated.

    The second ``timeout`` of a request bounds the whole exchange. Redirects are never followed.

    :param body_deadline: for the body of an answer, in place of that.
    :param may_be_private: whether private addresses may be talked to; asked when one is met. None: they may.
    :param before_sending: called with the connection open, just before the first byte of a request leaves.
    """
    import requests

    from kie_provider.client.adapter import KieAdapter

    class Session(requests.Session):
        def get_redirect_target(self, resp: requests.Response) -> str | None:  # noqa: ARG002
            """Know of none: requests reads the whole body of a redirect, and looks into .netrc, even to follow none."""
            return None

    session = Session()
    session.headers.update(HEADERS)
    session.cookies.set_policy(_no_cookies())
    for scheme in ("http://", "https://"):
        session.mount(scheme, KieAdapter(body_deadline, may_be_private, before_sending))
    return session


@contextlib.contextmanager
def fresh_connection(before_sending: Callable[[], object] | None = None) -> Iterator[requests.Session]:
    """Open a session whose connection is new and used once.

    For createTask: the reset of a stale kept-alive connection is the commonest reason for not knowing whether a
    request arrived.

    :param before_sending: as of :func:`reusable_session`.
    """
    with reusable_session(before_sending=before_sending) as session:
        yield session


def _check_encoding(headers: Mapping[str, str]) -> None:
    encoding = headers.get("Content-Encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        raise ValueError(f"the answer is compressed, which was not asked for: Content-Encoding is {encoding[:40]!r}")


def _add(body: bytearray, piece: bytes) -> None:
    body += piece
    if len(body) > LARGEST_ANSWER:
        raise ValueError(f"the answer has more than {LARGEST_ANSWER} bytes")


def _was_sent(session: requests.Session, url: str) -> bool:
    """Whether a byte of the latest request of this thread has left it."""
    exchange = getattr(session.get_adapter(url), "exchange", None)
    return exchange is not None and exchange.was_sent


def _bearer_auth(api_key: str) -> Any:
    """Return the key as an auth object: a plain header would be replaced by a matching .netrc entry."""
    from requests.auth import AuthBase

    class BearerAuth(AuthBase):
        def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
            request.headers["Authorization"] = f"Bearer {api_key}"
            return request

    return BearerAuth()


def _no_cookies() -> CookiePolicy:
    from http.cookiejar import DefaultCookiePolicy

    return DefaultCookiePolicy(allowed_domains=[])


async def send_async(shared: SharedSession, endpoint: Endpoint, request: Request) -> Answer:
    """Send a GET once on the event loop, with the key, following no redirect.

    :param shared: from :func:`shared_session`.
    :raises KieTransportError: no complete answer.
    """
    return await RepeatedGet(endpoint, request).send(shared)


class RepeatedGet:
    """A GET that is sent many times, on the event loop: what stays the same is worked out once."""

    def __init__(self, endpoint: Endpoint, request: Request) -> None:
        self.endpoint = endpoint
        self._request = request

    @functools.cached_property
    def _arguments(self) -> dict[str, Any]:
        """What aiohttp is given."""
        from yarl import URL

        endpoint, request = self.endpoint, self._request
        return {
            "method": request.method,
            # As an object, which keeps what aiohttp asks of it; a text would be parsed for each poll.
            "url": URL(endpoint.url(request.target, upload=request.to_upload_host)),
            "proxy": proxy_for(endpoint.url("", upload=request.to_upload_host)),
            # Per request, never a default of the session: triggers of several accounts share it.
            "headers": {"Authorization": f"Bearer {endpoint.api_key}"},
            "allow_redirects": False,
            "timeout": _async_timeout(endpoint.request_timeout),
        }

    async def send(self, shared: SharedSession) -> Answer:
        """Send it as :func:`send_async` does."""
        import aiohttp

        try:
            async with shared.slots, shared.session.request(**self._arguments) as response:
                _check_encoding(response.headers)
                body = bytearray()
                while not response.content.at_eof():
                    _add(body, await response.content.readany())
        except (aiohttp.ClientError, TimeoutError, asyncio.TimeoutError, OSError, ValueError) as error:
            # A plain ValueError comes from a host name that cannot be encoded, a bad proxy URL, or an answer too large.
            raise _transport_error(self.endpoint, self._request, error, may_have_arrived=True) from None
        return Answer(
            response.status,
            bytes(body),
            parse_retry_after(response.headers.get("Retry-After"), time.time()),
            self.endpoint.api_key,
        )


@dataclass(eq=False)
class SharedSession:
    """The session of one event loop.

    :param slots: as many as the pool has sockets: who waits for one is not on the clock of the request yet.
    :param users: leases that have not ended.
    """

    session: aiohttp.ClientSession
    slots: asyncio.Semaphore
    users: int = 0


_shared_sessions: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, SharedSession] = weakref.WeakKeyDictionary()


@contextlib.asynccontextmanager
async def shared_session() -> AsyncIterator[SharedSession]:
    """Lease the one pooled session of this event loop; it is closed when the last leaves, cancelled ones included.

    Yield no trigger event inside the lease: a generator suspended there would keep the session open.
    """
    loop = asyncio.get_running_loop()
    trusted = await _certificates() if loop not in _shared_sessions else None
    shared = _shared_sessions.get(loop)
    if shared is None:
        shared = _shared_sessions[loop] = SharedSession(_new_async_session(trusted), asyncio.Semaphore(POOL_SIZE))
    shared.users += 1
    try:
        yield shared
    finally:
        shared.users -= 1
        if not shared.users:
            # Forgotten before the close is awaited, or a newcomer would lease a closing session.
            del _shared_sessions[loop]
            await asyncio.shield(shared.session.close())


def _new_async_session(trusted: ssl.SSLContext | None) -> aiohttp.ClientSession:
    import aiohttp

    proxy_for.cache_clear()  # a new session looks at the environment anew
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=POOL_SIZE, ssl=trusted or True),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=HEADERS,
        auto_decompress=False,
    )


_trusted: dict[tuple[str, str], ssl.SSLContext] = {}
_trusted_lock = threading.Lock()


async def _certificates() -> ssl.SSLContext | None:
    """Return what the bundle that requests is told to trust makes aiohttp trust; None: what OpenSSL does.

    :raises KieConnectionError: the bundle cannot be read.
    """
    bundles = [(name, os.environ[name]) for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE") if os.environ.get(name)]
    if not bundles:
        return None
    return _trusted.get(bundles[0]) or await asyncio.to_thread(_read_certificates, *bundles[0])


def _read_certificates(name: str, bundle: str) -> ssl.SSLContext:
    import ssl

    with _trusted_lock:  # many waits may begin at once
        if (name, bundle) in _trusted:
            return _trusted[name, bundle]
        kind = "capath" if Path(bundle).is_dir() else "cafile"
        try:
            context = ssl.create_default_context(**{kind: bundle})  # type: ignore[arg-type]
        except OSError as error:
            raise KieConnectionError(f"{name}: cannot read the certificates in {bundle!r} ({error})") from None
        _trusted[name, bundle] = context
        return context


@functools.lru_cache(maxsize=64)
def _async_timeout(seconds: float) -> aiohttp.ClientTimeout:
    import aiohttp

    # Not sock_read, which sets a timer for every piece of an answer: that is noticed with thousands of waits.
    return aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_TIMEOUT)


def _transport_error(
    endpoint: Endpoint, request: Request, error: BaseException, *, may_have_arrived: bool
) -> KieTransportError:
    host = endpoint.url("", upload=request.to_upload_host)
    outcome = "no usable answer" if may_have_arrived else "the request never left this machine"
    # Protocol errors quote the answer, which may quote the key; others quote the proxy, which may hold a password.
    cause = one_line(redact(without_userinfo(root_cause(error)), endpoint.api_key))
    return KieTransportError(
        f"{request.method} {host}{request.path}: {outcome} ({cause})",
        may_have_arrived=may_have_arrived,
    )


def root_cause(error: BaseException) -> str:
    """Return the innermost reason; the HTTP libraries wrap it up to four deep."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        inner = (getattr(error, "reason", None), error.__cause__, *error.args)
        error = next((e for e in inner if isinstance(e, Exception)), error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
