"""Which hosts, URLs and pages are this machine's own: the emulator calls no others, and lets no others control it."""

from __future__ import annotations

import ipaddress
from urllib.parse import unquote, urlsplit

from aiohttp import web


def is_loopback(host: str | None) -> bool:
    """Whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def is_loopback_url(url: str) -> bool:
    """Whether this is an http(s) URL of this machine."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and is_loopback(parts.hostname)


def own_path(base_url: str, url: object) -> str | None:
    """Return the path of a URL of the emulator at ``base_url``, under any name of this machine; None: another URL."""
    if not isinstance(url, str):
        return None
    try:
        parts, here = urlsplit(url), urlsplit(base_url)
        ours = parts.netloc == here.netloc or (is_loopback(parts.hostname) and parts.port == here.port)
    except ValueError:
        return None
    return unquote(parts.path) if ours and parts.scheme == "http" else None


def is_own_page(request: web.Request) -> bool:
    """Whether a request comes from the emulator's own page or from no page at all, rather than from another site's.

    A browser on this machine also runs the scripts of other sites. Those send their own ``Origin`` or, where DNS points
    their name at this machine, their own name as ``Host``.
    """
    here = f"http://{request.host}"
    return is_loopback_url(here) and request.headers.get("Origin", here) == here
