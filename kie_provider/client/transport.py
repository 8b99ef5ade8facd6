"""Send a request, hand back the answer: requests for workers, aiohttp for the triggerer. Nothing is retried here."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kie_provider.client.endpoint import Endpoint
from kie_provider.client.errors import KieTransportError, one_line
from kie_provider.client.protocol import Answer, Request
from kie_provider.client.redaction import blot
from kie_provider.client.retry import parse_retry_after

if TYPE_CHECKING:
    from http.cookiejar import CookiePolicy

    import aiohttp
    import requests

CONNECT_TIMEOUT = 10.0
#: More polls than this at the same moment wait for a free socket of the pool.
POOL_SIZE = 512


def send(session: requests.Session, endpoint: Endpoint, request: Request) -> Answer:
    """Send ``request`` once, with the key, following no redirect.

    :param session: from :func:`reusable_session` or :func:`fresh_connection`.
    :raises KieTransportError: no complete answer; ``may_have_arrived`` is False only if nothing was sent.
    """
    import requests

    url = endpoint.url(request.target, upload=request.to_upload_host)
    try:
        response = session.request(
            request.method,
            url,
            json=request.json_body,
            data=request.form,
            files={"file": request.file} if request.file else None,
            auth=_bearer_auth(endpoint.api_key),
            timeout=(CONNECT_TIMEOUT, endpoint.request_timeout),
            allow_redirects=False,
        )
        body = response.content
    except (requests.RequestException, ValueError) as error:
        # A plain ValueError comes from the bad Location of a redirect, which is read though it is not followed.
        raise _transport_error(endpoint, request, error, may_have_arrived=_was_sent(session, url)) from None
    return Answer(
        response.status_code,
        body,
        parse_retry_after(response.headers.get("Retry-After"), time.time()),
        endpoint.api_key,
    )


def reusable_session() -> requests.Session:
    """Return a session that keeps connections alive and remembers no cookies; for requests that may be repeated."""
    import requests

    class Session(requests.Session):
        def rebuild_auth(self, prepared_request: requests.PreparedRequest, _: requests.Response) -> None:
            """Take no credentials along to where a redirect leads; requests would look for some in .netrc."""
            prepared_request.headers.pop("Authorization", None)

    session = Session()
    session.cookies.set_policy(_no_cookies())
    return session


@contextlib.contextmanager
def fresh_connection() -> Iterator[requests.Session]:
    """Open a session whose connection is new, used once, and knows whether anything was sent over it.

    For createTask: the reset of a stale kept-alive connection is the commonest reason for not knowing whether a
    request arrived.
    """
    from kie_provider.client.sent_bytes import SentBytesAdapter

    with reusable_session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, SentBytesAdapter())
        yield session


def _was_sent(session: requests.Session, url: str) -> bool:
    from kie_provider.client.sent_bytes import SentBytesAdapter

    adapter = session.get_adapter(url)
    return adapter.request_was_sent if isinstance(adapter, SentBytesAdapter) else True


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
    import aiohttp

    try:
        async with (
            shared.slots,
            shared.session.request(
                request.method,
                endpoint.url(request.target, upload=request.to_upload_host),
                proxy=_proxy_from_environment(endpoint.url("", upload=request.to_upload_host)),
                # Per request, never a default of the session: triggers of several accounts share it.
                headers={"Authorization": f"Bearer {endpoint.api_key}"},
                allow_redirects=False,
                timeout=_async_timeout(endpoint.request_timeout),
            ) as response,
        ):
            body = await response.read()
    except (aiohttp.ClientError, TimeoutError, asyncio.TimeoutError, OSError, ValueError) as error:
        # A plain ValueError comes from a host name that cannot be encoded, or a bad proxy URL.
        raise _transport_error(endpoint, request, error, may_have_arrived=True) from None
    return Answer(
        response.status,
        body,
        parse_retry_after(response.headers.get("Retry-After"), time.time()),
        endpoint.api_key,
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
    shared = _shared_sessions.get(loop)
    if shared is None:
        shared = _shared_sessions[loop] = SharedSession(_new_async_session(), asyncio.Semaphore(POOL_SIZE))
    shared.users += 1
    try:
        yield shared
    finally:
        shared.users -= 1
        if not shared.users:
            # Forgotten before the close is awaited, or a newcomer would lease a closing session.
            del _shared_sessions[loop]
            await asyncio.shield(shared.session.close())


def _new_async_session() -> aiohttp.ClientSession:
    import aiohttp

    _proxy_from_environment.cache_clear()  # a new session looks at the environment anew
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=POOL_SIZE),
        cookie_jar=aiohttp.DummyCookieJar(),
    )


@functools.lru_cache(maxsize=64)
def _async_timeout(seconds: float) -> aiohttp.ClientTimeout:
    import aiohttp

    # Not sock_read, which sets a timer for every piece of an answer: that is noticed with thousands of waits.
    return aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_TIMEOUT)


@functools.lru_cache(maxsize=64)  # the look-up scans the whole environment, at half the cost of the request itself
def _proxy_from_environment(url: str) -> str | None:
    """Return the proxy for ``url`` that HTTP_PROXY, HTTPS_PROXY and NO_PROXY name.

    aiohttp's ``trust_env`` would look into .netrc as well: file access before every poll, and a matching entry there
    is refused beside an Authorization header.
    """
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if not proxy or proxy_bypass(parts.hostname or ""):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _transport_error(
    endpoint: Endpoint, request: Request, error: BaseException, *, may_have_arrived: bool
) -> KieTransportError:
    host = endpoint.url("", upload=request.to_upload_host)
    outcome = "no usable answer" if may_have_arrived else "the request never left this machine"
    # Protocol errors quote the answer, which may quote the key.
    cause = one_line(blot(_root_cause(error), endpoint.api_key))
    return KieTransportError(
        f"{request.method} {host}{request.path}: {outcome} ({cause})",
        may_have_arrived=may_have_arrived,
    )


def _root_cause(error: BaseException) -> str:
    """Return the innermost reason; the HTTP libraries wrap it up to four deep."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        inner = (getattr(error, "reason", None), error.__cause__, *error.args)
        error = next((e for e in inner if isinstance(e, Exception)), error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
