"""A client that does not really wait, and certificates."""

import os
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kie_provider.client.client import KieClient
from kie_provider.client.endpoint import Endpoint
from tests.support.api_key import KEY
from tests.support.servers import self_signed_certificate


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """Nothing of this machine's own network settings gets into a test."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("NETRC", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", os.devnull)


@pytest.fixture
def pauses() -> list[float]:
    """Return the seconds that clients of this test would have waited."""
    return []


@pytest.fixture
def connect(pauses) -> Iterator[Callable[..., KieClient]]:
    """Return a function that makes a client for a base URL; further arguments are fields of its endpoint."""
    clients = []

    def make(url: str, **fields) -> KieClient:
        fields = {"api_key": KEY, "host": url, "upload_host": url, "request_timeout": 5.0} | fields
        clients.append(KieClient(Endpoint(**fields), sleep=pauses.append))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory) -> tuple[ssl.SSLContext, Path]:
    """Return a server's TLS context and the certificate that a client has to trust."""
    return self_signed_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def tls(certificate, monkeypatch) -> ssl.SSLContext:
    """Return a server's TLS context that clients of this test trust."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate[1]))
    return certificate[0]


@pytest.fixture
def netrc(tmp_path, monkeypatch) -> None:
    """Put credentials for every host into .netrc."""
    file = tmp_path / "netrc"
    file.write_text("machine 127.0.0.1 login somebody password something\ndefault login somebody password something\n")
    monkeypatch.setenv("NETRC", str(file))
