"""Downloads over real sockets: a file appears only when complete, and the file host learns no secret."""

import gzip
import hashlib
import json
import time
from pathlib import Path

import pytest

from kie_provider.client import download as download_module
from kie_provider.client.download import DownloadedFile, download
from kie_provider.client.endpoint import is_private_host
from kie_provider.client.errors import KieError, KieFileError, KieResultError
from tests.integration.client.conftest import KEY, assert_no_key
from tests.support.servers import (
    ScriptedServer,
    close,
    hang,
    raw,
    refusing_port,
    reply,
    reset,
    truncated,
)

IMAGE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 10_000  # 2.5 MB: several chunks
PNG = {"Content_Type": "image/png"}


def fetch(url, path, read_timeout=5.0, **kwargs):
    """Once, from the servers of these tests, which are on this machine."""
    return download(url, Path(path), read_timeout=read_timeout, allow_private=True, **kwargs)


def files(directory):
    return sorted(path.name for path in directory.rglob("*"))


def error_of(url, path, **kwargs):
    with pytest.raises(KieError) as caught:
        fetch(url, path, **kwargs)
    assert_no_key(caught.value)
    return caught.value


def test_a_file(tmp_path):
    with ScriptedServer(reply(IMAGE, **PNG)) as server:
        file = fetch(f"{server.url}/f/1.png?x=1", tmp_path / "cat.png")
    assert file == DownloadedFile(tmp_path / "cat.png", hashlib.sha256(IMAGE).hexdigest(), len(IMAGE))
    assert file.path.read_bytes() == IMAGE
    assert files(tmp_path) == ["cat.png"]
    assert server.requests[0].target == "/f/1.png?x=1"


def test_directories_are_made(tmp_path):
    with ScriptedServer(reply(IMAGE, **PNG)) as server:
        fetch(server.url, tmp_path / "a" / "b" / "cat.png")
    assert (tmp_path / "a" / "b" / "cat.png").read_bytes() == IMAGE


def test_an_older_file_is_replaced_only_by_a_complete_one(tmp_path):
    path = tmp_path / "cat.png"
    path.write_bytes(b"old")
    with ScriptedServer(truncated(IMAGE, content_type="image/png"), reply(IMAGE, **PNG)) as server:
        error_of(server.url, path)
        assert path.read_bytes() == b"old"
        fetch(server.url, path)
    assert path.read_bytes() == IMAGE


def test_nothing_is_there_before_all_of_it_is(tmp_path):
    seen = []

    def slowly(exchange):
        exchange.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 2000000\r\n\r\n" + b"x" * 1_999_999
        )
        while not (tmp_path / ".cat.png.part").exists():
            pass
        seen.extend(files(tmp_path))
        exchange.send(b"x")

    with ScriptedServer(slowly) as server:
        fetch(server.url, tmp_path / "cat.png")
    assert seen == [".cat.png.part"]
    assert files(tmp_path) == ["cat.png"]


@pytest.mark.parametrize(
    "step",
    [
        truncated(IMAGE, content_type="image/png"),
        truncated(b"", content_type="image/png"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello"),
        reset,
        close,
        hang,
        raw(b"nonsense"),
        reply(b"", 302, Location="http://[bad/"),
    ],
    ids=[
        "truncated",
        "no byte",
        "no last chunk",
        "bad chunk",
        "bad gzip",
        "reset",
        "closed",
        "hung",
        "odd",
        "redirect",
    ],
)
def test_a_broken_download_leaves_nothing(step, tmp_path):
    with ScriptedServer(step) as server:
        error = error_of(server.url, tmp_path / "cat.png", read_timeout=0.1 if step is hang else 5.0)
    assert type(error) is KieFileError
    assert error.is_transient
    assert f"downloading {server.url} broke off" in error.message
    assert files(tmp_path) == []
    assert len(server.requests) == 1


def test_a_file_host_that_is_not_there(tmp_path):
    with refusing_port() as port:
        assert type(error_of(f"http://127.0.0.1:{port}", tmp_path / "a" / "cat.png")) is KieFileError
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (reply("<html>expired</html>", 200, Content_Type="text/html; charset=utf-8"), KieFileError),
        (reply("<html>expired</html>", 200, Content_Type="TEXT/HTML"), KieFileError),
        (reply(b"", 200, **PNG), KieFileError),
        (reply(b"", 204, **PNG), KieResultError),
        (reply(IMAGE, 206, **PNG), KieResultError),
        (reply("AccessDenied", 403, Content_Type="application/xml"), KieResultError),
        (reply("gone", 404), KieResultError),
        (reply("gone", 410), KieResultError),
        (reply("busy", 503), KieFileError),
        (reply("too many", 429, Retry_After="7"), KieFileError),
        (reply(b"", 302), KieResultError),
    ],
    ids=["html", "HTML", "empty", "204", "206", "403", "404", "410", "503", "429", "302"],
)
def test_an_answer_that_is_no_file(step, kind, tmp_path):
    with ScriptedServer(step) as server:
        error = error_of(server.url, tmp_path / "cat.png")
    assert type(error) is kind
    assert server.url in error.message
    assert error.retry_after == (7 if "HTTP 429" in error.message else None)
    assert files(tmp_path) == []


@pytest.mark.parametrize("url", ["", "cat.png", "file:///etc/passwd", "ftp://x/1.png", None])
def test_what_is_no_url(url, tmp_path):
    assert type(error_of(url, tmp_path / "cat.png")) is KieResultError
    assert files(tmp_path) == []


def test_a_redirect_is_followed(tmp_path):
    with (
        ScriptedServer(reply(IMAGE, **PNG)) as elsewhere,
        ScriptedServer(reply(b"", 302, Location=f"{elsewhere.url}/1.png")) as server,
    ):
        fetch(server.url, tmp_path / "cat.png")
    assert (tmp_path / "cat.png").read_bytes() == IMAGE


@pytest.mark.parametrize(
    ("location", "kind", "requests"),
    [("/", KieFileError, 4), ("file:///etc/passwd", KieResultError, 1), ("//[bad", KieFileError, 1)],
)
def test_a_redirect_that_leads_nowhere(location, kind, requests, tmp_path):
    with ScriptedServer(*[reply(b"", 302, Location=location)] * requests) as server:
        assert type(error_of(server.url, tmp_path / "cat.png")) is kind
    assert len(server.requests) == requests
    assert files(tmp_path) == []


def test_compressed_on_the_way(tmp_path):
    with ScriptedServer(reply(gzip.compress(IMAGE), Content_Encoding="gzip", **PNG)) as server:
        fetch(server.url, tmp_path / "cat.png")
    assert (tmp_path / "cat.png").read_bytes() == IMAGE


def test_the_file_host_sees_no_key_no_cookie_and_no_netrc(tmp_path, netrc):
    with (
        ScriptedServer(reply(IMAGE, Set_Cookie="a=1", **PNG)) as elsewhere,
        ScriptedServer(reply(b"", 302, Location=elsewhere.url)) as server,
    ):
        for _ in range(2):
            fetch(server.url, tmp_path / "cat.png")
    assert len(server.requests + elsewhere.requests) == 4
    for request in server.requests + elsewhere.requests:
        assert "authorization" not in request.headers
        assert "cookie" not in request.headers
        assert KEY.encode() not in request.raw


def test_a_file_in_the_way_of_the_directory(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with ScriptedServer(reply(IMAGE, **PNG)) as server, pytest.raises(OSError, match="file"):
        fetch(server.url, tmp_path / "file" / "cat.png")
    assert files(tmp_path) == ["file"]


PRIVATE = [
    "http://127.0.0.1/",
    "http://127.1/",
    "http://2130706433/",
    "http://0x7f.0.0.1/",
    "http://0/",
    "http://10.1.2.3:8080/a.png",
    "https://172.16.0.1/",
    "https://192.168.1.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://100.64.0.1/",
    "http://[::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[fe80::1%25eth0]/",
    "http://[fd00::1]/",
    "http://224.0.0.1/",
    "http://localhost:9000/",
    "http://LOCALHOST./",
    "http://a.localhost/",
]


@pytest.mark.parametrize("url", PRIVATE)
def test_a_private_address_is_refused(url, tmp_path):
    with pytest.raises(KieResultError, match="is a private address"):
        download(url, tmp_path / "cat.png", read_timeout=1)


@pytest.mark.parametrize(
    "url", ["https://8.8.8.8/", "https://tempfile.aiquickdraw.com/h/1.png", "http://[2606:4700::1]/"]
)
def test_a_public_address_is_not(url):
    assert not is_private_host(url)


@pytest.fixture
def public(monkeypatch):
    """Take every port but that of the second server for public: a public host that redirects to a private one."""
    hidden = []
    monkeypatch.setattr(download_module, "is_private_host", lambda url: any(each in url for each in hidden))
    return hidden


def test_a_redirect_to_a_private_address_is_refused(public, tmp_path):
    with ScriptedServer() as inside, ScriptedServer(reply(b"", 302, Location=f"{inside.url}/secret")) as server:
        public.append(inside.url)
        with pytest.raises(KieResultError, match=f"/secret', where {server.url} redirects to, is a private address"):
            download(server.url, tmp_path / "cat.png", read_timeout=1)
    assert inside.requests == []
    assert files(tmp_path) == []


@pytest.mark.parametrize("chunked", [False, True])
def test_a_file_that_is_too_large(chunked, tmp_path):
    body = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"a\r\n0123456789\r\n" * 11 + b"0\r\n\r\n"
    step = raw(body) if chunked else reply(b"x" * 101, **PNG)
    with ScriptedServer(step) as server:
        error = error_of(server.url, tmp_path / "cat.png", max_bytes=100)
    assert type(error) is KieResultError
    assert "more than max_bytes=100 bytes" in error.message
    assert files(tmp_path) == []


def test_a_drip_is_not_waited_for(monkeypatch, tmp_path):
    monkeypatch.setattr(download_module, "SLOW_START_SECONDS", 0.2)

    def drip(exchange):
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        for _ in range(100):
            exchange.send(b"x")
            time.sleep(0.05)

    began = time.monotonic()
    with ScriptedServer(drip) as server:
        error = error_of(server.url, tmp_path / "cat.png")
        assert time.monotonic() - began < 3
    assert type(error) is KieFileError
    assert "too slow" in error.message
    assert files(tmp_path) == []


class TestClient:
    """What is tried again, and where a fresh link comes from."""

    LINK = "/api/v1/common/download-url"

    def fresh(self, url):
        return reply(json.dumps({"code": 200, "msg": "success", "data": url}))

    def test_a_dead_link_is_replaced_by_a_fresh_one(self, connect, tmp_path):
        with (
            ScriptedServer(reply("gone", 404), reply(IMAGE, **PNG)) as host,
            ScriptedServer(self.fresh(f"{host.url}/fresh")) as api,
        ):
            file = connect(api.url).download_file(f"{host.url}/dead", tmp_path / "cat.png")
        assert file.bytes == len(IMAGE)
        assert [request.target for request in host.requests] == ["/dead", "/fresh"]
        assert json.loads(api.requests[0].body) == {"url": f"{host.url}/dead"}
        assert all("authorization" not in request.headers for request in host.requests)

    def test_a_fresh_link_that_is_dead_too(self, connect, tmp_path):
        with (
            ScriptedServer(reply("gone", 410), reply("gone", 403)) as host,
            ScriptedServer(self.fresh(f"{host.url}/fresh")) as api,
            pytest.raises(KieResultError) as caught,
        ):
            connect(api.url).download_file(f"{host.url}/dead", tmp_path / "cat.png")
        assert caught.value.http_status == 403
        assert len(api.requests) == 1

    def test_no_fresh_link_says_what_is_lost(self, connect, tmp_path):
        refusal = reply(json.dumps({"code": 422, "msg": "url is wrong", "data": None}))
        with (
            ScriptedServer(reply("gone", 404)) as host,
            ScriptedServer(refusal) as api,
            pytest.raises(KieResultError, match=r"no fresh link either \(url is wrong\), so this file is lost"),
        ):
            connect(api.url).download_file(f"{host.url}/dead", tmp_path / "cat.png")
        assert files(tmp_path) == []

    def test_a_broken_download_is_tried_again(self, connect, tmp_path):
        steps = (truncated(IMAGE, content_type="image/png"), reply("busy", 503), reply("<p>", Content_Type="text/html"))
        with ScriptedServer(*steps, reply(IMAGE, **PNG)) as host:
            connect(host.url).download_file(host.url, tmp_path / "cat.png")
        assert len(host.requests) == 4
        assert files(tmp_path) == ["cat.png"]

    def test_but_not_for_ever(self, connect, tmp_path):
        with ScriptedServer(*[reset] * 4) as host, pytest.raises(KieFileError):
            connect(host.url).download_file(host.url, tmp_path / "cat.png")
        assert len(host.requests) == 4
