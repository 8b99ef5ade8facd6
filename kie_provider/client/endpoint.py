"""Where Kie.ai is and with which key: what an Airflow connection, or a script, tells the client."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from kie_provider.client.errors import KieConnectionError
from kie_provider.client.models import is_http_url, shorten
from kie_provider.client.redaction import keep_out_of_logs

DEFAULT_HOST = "https://api.kie.ai"
#: Uploads go to a host of their own; the vendor's OpenAPI names the API host there, wrongly.
DEFAULT_UPLOAD_HOST = "https://kieai.redpandaai.co"
DEFAULT_REQUEST_TIMEOUT = 60.0
DEFAULT_SUBMIT_LIMIT = 20


@dataclass(frozen=True)
class Endpoint:
    """Checked settings of one Kie account.

    :param api_key: kept out of the repr.
    :param host: base URL of the API.
    :param upload_host: base URL of the upload service.
    :param request_timeout: seconds to wait for an answer.
    :param submit_limit: new tasks that Kie allows the account in ten seconds.
    :raises KieConnectionError: the key is empty or cannot be one, a host is not an http(s) base URL, or a number is
        not one that makes sense.
    """

    api_key: str = field(repr=False)
    host: str = DEFAULT_HOST
    upload_host: str = DEFAULT_UPLOAD_HOST
    request_timeout: float = DEFAULT_REQUEST_TIMEOUT
    submit_limit: int = DEFAULT_SUBMIT_LIMIT

    def __post_init__(self) -> None:
        if not self.api_key:
            raise KieConnectionError("there is no API key; set the password to one from https://kie.ai/api-key")
        if not re.fullmatch(r"[\x21-\x7e]+", self.api_key):
            raise KieConnectionError("the API key has white space or other characters that no key has")
        keep_out_of_logs(self.api_key)
        for name in ("host", "upload_host"):
            url: str = getattr(self, name)
            if not is_http_url(url) or re.search(r"[@?#\s]", url):
                raise KieConnectionError(
                    f"{name}: must be scheme, host and port, like https://api.kie.ai, "
                    f"got {shorten(_without_userinfo(url))}"
                )
        try:
            seconds = float(self.request_timeout)  # a form sends text
        except (TypeError, ValueError):
            seconds = 0.0
        if not 0 < seconds < float("inf"):
            raise KieConnectionError(
                f"request_timeout: must be a number of seconds above 0, got {shorten(self.request_timeout)}"
            )
        object.__setattr__(self, "request_timeout", seconds)
        try:
            limit = int(str(self.submit_limit))
        except ValueError:
            limit = 0
        if limit < 1:
            raise KieConnectionError(
                f"submit_limit: must be a whole number of new tasks per 10 seconds, at least 1, got "
                f"{shorten(self.submit_limit)}"
            )
        object.__setattr__(self, "submit_limit", limit)

    @property
    def is_private(self) -> bool:
        """Whether a host is written as a loopback or private address, as that of an emulator is."""
        return is_private_host(self.host) or is_private_host(self.upload_host)

    def url(self, path: str, *, upload: bool = False) -> str:
        """Return the full URL of an absolute ``path``."""
        return (self.upload_host if upload else self.host).rstrip("/") + path


def is_private_host(url: str) -> bool:
    """Whether the host of an http(s) URL is written as an address that only this machine or network knows.

    Names are not looked up: only literal addresses (in every notation that the C library reads) and ``localhost``.
    """
    host = (urlsplit(url).hostname or "").rstrip(".").partition("%")[0]
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            address = ipaddress.ip_address(socket.inet_aton(host))  # 127.1, 0x7f000001, 2130706433
        except OSError:
            return False  # a name
    mapped = getattr(address, "ipv4_mapped", None)
    address = mapped or address
    return not address.is_global or address.is_multicast


def _without_userinfo(url: str) -> str:
    return re.sub(r"//[^/]*@", "//***@", str(url))
