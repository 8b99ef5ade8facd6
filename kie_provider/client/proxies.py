"""Which proxy a request goes through: the same answer for requests (workers) and aiohttp (the triggerer)."""

from __future__ import annotations

import functools

from kie_provider.client.errors import KieConnectionError


@functools.lru_cache(maxsize=64)  # the look-up scans the whole environment, at half the cost of the request itself
def proxy_for(url: str) -> str | None:
    """Return the proxy that HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY name for ``url``, read as requests does.

    aiohttp's ``trust_env`` knows neither ALL_PROXY nor networks in NO_PROXY, and would look into .netrc as well: file
    access before every poll, and a matching entry there is refused beside an Authorization header.

    :raises KieConnectionError: it is of a kind that is not used here.
    """
    from requests.utils import get_environ_proxies, prepend_scheme_if_needed, select_proxy

    proxy = select_proxy(url, get_environ_proxies(url))
    if not proxy:
        return None
    with_scheme = str(prepend_scheme_if_needed(proxy, "http"))  # type: ignore[no-untyped-call]
    check_proxy(with_scheme)
    return with_scheme


def check_proxy(proxy: str) -> None:
    """Refuse what only one of the two HTTP libraries can do.

    :raises KieConnectionError: it is no http:// or https:// proxy.
    """
    scheme = proxy.partition("://")[0].lower()
    if scheme not in ("http", "https"):
        raise KieConnectionError(
            f"the proxy variables of this machine (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY) name a proxy with {scheme}://; "
            "only http:// and https:// ones can be used. Set HTTPS_PROXY to one, or name the host in NO_PROXY"
        )
