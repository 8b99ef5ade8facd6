"""Where Kie.ai is and with which key: what an Airflow connection, or a script, tells the client."""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from kie_provider.client.errors import KieConnectionError
from kie_provider.client.plain import is_http_url, shorten
from kie_provider.client.redaction import keep_out_of_logs

DEFAULT_HOST = "https://api.kie.ai"
#: Kie's uploads go to a host of their own; the vendor's OpenAPI names the API host there, wrongly.
KIE_UPLOAD_HOST = "https://kieai.redpandaai.co"
DEFAULT_REQUEST_TIMEOUT = 60.0
#: Seconds; sockets cannot wait for ever.
LONGEST_REQUEST_TIMEOUT = 86_400.0
DEFAULT_SUBMIT_LIMIT = 20
_NAME = re.compile(r"[\w-]+(\.[\w-]+)*\.?")


@dataclass(frozen=True)
class Endpoint:
    """Checked settings of one Kie account.

    :param api_key: kept out of the repr.
    :param host: base URL of the API.
    :param upload_host: base URL of the upload service; empty: Kie's own if ``host`` is Kie's, else ``host``, so that
        neither files nor the key of a gateway or emulator go to anybody else.
    :param request_timeout: seconds for one request, from connecting to the last byte of the answer; a day at most.
    :param submit_limit: new tasks that Kie allows the account in ten seconds.
    :param callback_base_url: where Kie reaches Airflow's API server; empty: no callbacks.
    :param webhook_secret: the key with which the account signs callbacks, kept out of the repr; empty: it signs none.
    :raises KieConnectionError: the key is empty or cannot be one, a host is not an http(s) base URL, or a number is
        not one that makes sense.
    """

    api_key: str = field(repr=False)
    host: str = DEFAULT_HOST
    upload_host: str = ""
    request_timeout: float = DEFAULT_REQUEST_TIMEOUT
    submit_limit: int = DEFAULT_SUBMIT_LIMIT
    callback_base_url: str = ""
    webhook_secret: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if not self.api_key:
            raise KieConnectionError("there is no API key; set the password to one from https://kie.ai/api-key")
        if not re.fullmatch(r"[\x21-\x7e]+", self.api_key):
            raise KieConnectionError("the API key has white space or other characters that no key has")
        keep_out_of_logs(self.api_key)
        _check_base_url("host", self.host)
        if self.upload_host == "":
            object.__setattr__(self, "upload_host", KIE_UPLOAD_HOST if _is_kies_own(self.host) else self.host)
        _check_base_url("upload_host", self.upload_host)
        try:
            # A form sends text.
            seconds = 0.0 if isinstance(self.request_timeout, bool) else float(self.request_timeout)
        except (TypeError, ValueError, OverflowError):
            seconds = 0.0
        if not 0 < seconds <= LONGEST_REQUEST_TIMEOUT:
            raise KieConnectionError(
                f"request_timeout: must be a number of seconds above 0, up to {LONGEST_REQUEST_TIMEOUT:.0f} (a day), "
                f"got {shorten(self.request_timeout)}"
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
        if self.callback_base_url != "":
            object.__setattr__(self, "callback_base_url", check_callback_base_url(self.callback_base_url))
        if not isinstance(self.webhook_secret, str) or not re.fullmatch(r"[\x21-\x7e]*", self.webhook_secret):
            raise KieConnectionError(
                "webhook_secret: must be the webhook HMAC key from https://kie.ai/settings, without white space"
            )

    @functools.cached_property
    def is_private(self) -> bool:
        """Whether a host is at a loopback or private address, as an emulator is. Names are looked up."""
        return any(is_private_host(host) or _resolves_to_private(host) for host in (self.host, self.upload_host))

    def url(self, path: str, *, upload: bool = False) -> str:
        """Return the full URL of an absolute ``path``."""
        return (self.upload_host if upload else self.host).rstrip("/") + path


def check_callback_base_url(url: str) -> str:
    """Return a base URL for callbacks, without a slash at its end.

    :raises KieConnectionError: it is not one.
    """
    if not _is_base_url(url) or re.search(r"/kie/callbacks(/|$)", url):
        raise KieConnectionError(
            "callback_base_url: must be where Kie reaches Airflow's API server, like https://airflow.example.com, "
            f"without /kie/callbacks and without a query, got {shorten(_without_secrets(url))}"
        )
    return url.rstrip("/")


def is_private_host(url: str) -> bool:
    """Whether the host of an http(s) URL is written as an address that only this machine or network knows.

    Names are not looked up: only literal addresses (in every notation that the C library reads) and ``localhost``.
    """
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return is_private_address(host)
    except ValueError:
        try:
            return is_private_address(socket.inet_ntoa(socket.inet_aton(host)))  # 127.1, 0x7f000001, 2130706433
        except (OSError, ValueError):
            return False  # a name


def is_private_address(text: str) -> bool:
    """Whether an IP address is one that only this machine or network knows.

    :raises ValueError: it is none.
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        address = _ipv4_within(address) or address
    return not address.is_global or address.is_multicast


def without_userinfo(text: str) -> str:
    """Hide users and passwords of the URLs in a text."""
    return re.sub(r"(\w+://)?\S*@", r"\1***@", text)


def _ipv4_within(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that an IPv6 one stands for; it decides where the packets go."""
    if any(address in network for network in _LAST_BITS_ARE_IPV4):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)


#: NAT64, and what came before IPv4-mapped addresses.
_LAST_BITS_ARE_IPV4 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96"))


def _check_base_url(name: str, url: str) -> None:
    if not _is_base_url(url):
        raise KieConnectionError(
            f"{name}: must be scheme, host and port, like https://api.kie.ai, got {shorten(_without_secrets(url))}"
        )


def _is_base_url(url: str) -> bool:
    return is_http_url(url) and not re.search(r"[@?#\\]", url) and _has_host(url)


def _without_secrets(url: object) -> str:
    # A password may hold any character, so all before the last @ is hidden; and keys stand in queries.
    return re.sub(r"(?s)[?#].*", "?***", re.sub(r"(?s)^([a-z]+://)?.*@", r"\1***@", str(url)))


def _has_host(url: str) -> bool:
    """Whether the host can be a name or an address: no list, no variable that was not filled in, no stray colon."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return not parts.netloc.endswith(":") and (":" in host or bool(_NAME.fullmatch(host)))


def _is_kies_own(url: str) -> bool:
    return bool(re.fullmatch(r"(.+\.)?kie\.ai", (urlsplit(url).hostname or "").rstrip(".")))


def _resolves_to_private(url: str) -> bool:
    try:
        found = socket.getaddrinfo(urlsplit(url).hostname, None, type=socket.SOCK_STREAM)
    except (OSError, ValueError):  # ValueError: a name that cannot be encoded
        return False
    return any(is_private_address(str(address[0])) for *_, address in found)
