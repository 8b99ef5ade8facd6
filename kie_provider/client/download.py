"""One result link -> one local file: streamed, hashed, never with the API key, never from a private address."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin

from kie_provider.client import transport
from kie_provider.client.endpoint import without_userinfo
from kie_provider.client.errors import KieFileError, KieResultError
from kie_provider.client.plain import is_http_url, shorten
from kie_provider.client.retry import parse_retry_after

if TYPE_CHECKING:
    from collections.abc import Callable

    import requests

#: HTTP statuses of a link that has expired; a fresh one may work.
DEAD_LINK = (403, 404, 410)
MAX_REDIRECTS = 3
#: A host that sends less than this, but for a minute, is given up: a drip could hold a worker for ever.
SLOWEST_BYTES_PER_SECOND = 1024
SLOW_START_SECONDS = 60.0
_CHUNK = 256 * 1024


@dataclass(frozen=True)
class DownloadedFile:
    """A file as it was delivered.

    :param sha256: of its bytes, in hexadecimal.
    """

    path: Path
    sha256: str
    bytes: int


def download(
    url: str,
    path: Path,
    *,
    read_timeout: float,
    max_bytes: int | None = None,
    may_be_private: Callable[[], bool] = lambda: False,
) -> DownloadedFile:
    """Download ``url`` to ``path``, which appears only when complete. Nothing is retried here.

    :param read_timeout: seconds until the answer begins, and without a byte after that; then the host is given up.
    :param max_bytes: refuse a file that is larger; None: any size.
    :param may_be_private: whether to fetch from a loopback, link-local or private address; asked when one is met.
    :raises KieResultError: the link is dead, not http(s), private, or leads to a file that is too large.
    :raises KieFileError: the download broke off or was too slow, or the answer is a web page, or empty.
    """
    import requests

    from kie_provider.client.adapter import Deadline

    part = path.with_name(f".{path.name}.part")
    deadline = Deadline(SLOW_START_SECONDS, SLOWEST_BYTES_PER_SECOND)
    try:
        with (
            transport.reusable_session(deadline, may_be_private) as session,
            _open(session, url, read_timeout) as response,
        ):
            _check_answer(url, response)
            path.parent.mkdir(parents=True, exist_ok=True)
            digest, size = _stream(url, response, part, max_bytes)
        part.replace(path)
    except (requests.RequestException, ValueError) as error:  # ValueError: a redirect to what is no URL
        cause = without_userinfo(transport.root_cause(error))
        raise KieFileError(f"downloading {url} broke off ({cause})") from None
    finally:
        part.unlink(missing_ok=True)
    return DownloadedFile(path, digest, size)


def is_there(url: str) -> bool:
    """Whether a public file of Kie's is still there; one look, without the key."""
    import requests

    try:
        with transport.reusable_session() as session:
            limits = (transport.CONNECT_TIMEOUT, transport.CONNECT_TIMEOUT)
            answer = session.head(url, timeout=limits, auth=lambda request: request)
    except (requests.RequestException, ValueError):
        return False
    return answer.status_code == 200


def _open(session: requests.Session, url: str, read_timeout: float) -> requests.Response:
    """Send the GET and follow a few redirects."""
    import requests

    from kie_provider.client.adapter import PrivateAddressError

    link = url
    for _ in range(MAX_REDIRECTS + 1):
        redirected = "" if link == url else f", where {url} redirects to,"
        if not is_http_url(link):
            raise KieResultError(f"{shorten(link)}{redirected} is not an http(s) URL")
        try:
            response = session.get(
                link,
                stream=True,
                timeout=(transport.CONNECT_TIMEOUT, read_timeout),
                auth=lambda request: request,  # else requests looks for credentials in .netrc
                allow_redirects=False,
            )
        except PrivateAddressError as error:
            raise KieResultError(
                f"{shorten(link)}{redirected} leads to the private address {error}; results are only fetched from "
                "there when the connection's host is at one too"
            ) from None
        if not response.is_redirect:
            return response
        response.close()
        link = urljoin(link, requests.utils.requote_uri(response.headers["Location"]))
    raise KieFileError(f"downloading {url} broke off (more than {MAX_REDIRECTS} redirects)")


def _check_answer(url: str, response: requests.Response) -> None:
    status = response.status_code
    kind = response.headers.get("Content-Type", "").split(";")[0].strip().lower()
    if status == 429 or status >= 500:
        retry_after = parse_retry_after(response.headers.get("Retry-After"), time.time())
        raise KieFileError(f"downloading {url} broke off (HTTP {status})", retry_after=retry_after)
    if status != 200:
        expired = "; result links can expire within 24 hours" if status in DEAD_LINK else ""
        raise KieResultError(f"{url} answered {kind or 'without a content type'}{expired}", http_status=status)
    if kind == "text/html":
        raise KieFileError(f"{url} answered with a web page", http_status=status)


def _stream(url: str, response: requests.Response, part: Path, max_bytes: int | None) -> tuple[str, int]:
    """Write the body to ``part``; return its sha256 and size."""
    import requests
    from urllib3.exceptions import HTTPError

    declared = response.headers.get("Content-Length", "")
    if declared.isdigit():
        _check_size(url, int(declared), max_bytes)
    digest, size = hashlib.sha256(), 0
    with part.open("wb") as file:
        while True:
            try:
                # Not iter_content: it waits until a whole chunk is there, which a slow host can draw out.
                chunk = response.raw.read1(_CHUNK, decode_content=True)
            except (HTTPError, OSError) as error:
                raise requests.ConnectionError(error) from None
            if not chunk:
                break
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            _check_size(url, size, max_bytes)
    if declared.isdigit() and "Content-Encoding" not in response.headers and size != int(declared):
        raise KieFileError(f"downloading {url} broke off ({size} of {declared} bytes arrived)")
    if not size:
        raise KieFileError(f"{url} answered with an empty file", http_status=response.status_code)
    return digest.hexdigest(), size


def _check_size(url: str, size: int, max_bytes: int | None) -> None:
    if max_bytes is not None and size > max_bytes:
        raise KieResultError(f"{url} has more than max_bytes={max_bytes} bytes; nothing was saved")
