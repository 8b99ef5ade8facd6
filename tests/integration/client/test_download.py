"""Downloads over real sockets: a file appears only when complete, and the file host learns no secret."""

import gzip
import hashlib
import json
import socket
import time
from pathlib import Path
from urllib.parse import urljoin

import pytest

from kie_provider.client import adapter
from kie_provider.client import download as download_module
from kie_provider.client.download import DownloadedFile, download
from kie_provider.client.endpoint import is_private_host
from kie_provider.client.errors import KieError, KieFileError, KieResultError, KieTargetError
from tests.support.api_key import KEY, error_of
from tests.support.servers import (
    DRIPS,
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
    return download(url, Path(path), read_timeout=read_timeout, may_be_private=lambda: True, **kwargs)


def files(directory):
    return sorted(path.name for path in directory.rglob("*"))


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
        error_of(fetch, server.url, path)
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
        error = error_of(fetch, server.url, tmp_path / "cat.png", read_timeout=0.1 if step is hang else 5.0)
    assert type(error) is KieFileError
    assert error.is_transient
    assert f"downloading {server.url} broke off" in error.message
    assert files(tmp_path) == []
    assert len(server.requests) == 1


def test_a_file_host_that_is_not_there(tmp_path):
    with refusing_port() as port:
        assert type(error_of(fetch, f"http://127.0.0.1:{port}", tmp_path / "a" / "cat.png")) is KieFileError
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
        error = error_of(fetch, server.url, tmp_path / "cat.png")
    assert type(error) is kind
    assert server.url in error.message
    assert error.retry_after == (7 if "HTTP 429" in error.message else None)
    assert files(tmp_path) == []


@pytest.mark.parametrize("url", ["", "cat.png", "file:///etc/passwd", "ftp://x/1.png", None])
def test_what_is_no_url(url, tmp_path):
    assert type(error_of(fetch, url, tmp_path / "cat.png")) is KieResultError
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
        assert type(error_of(fetch, server.url, tmp_path / "cat.png")) is kind
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
    with pytest.raises(KieResultError, match="leads to the private address"):
        download(url, tmp_path / "cat.png", read_timeout=1)


@pytest.mark.parametrize(
    "url", ["https://8.8.8.8/", "https://tempfile.aiquickdraw.com/h/1.png", "http://[2606:4700::1]/"]
)
def test_a_public_address_is_not(url):
    assert not is_private_host(url)


@pytest.fixture
def names(monkeypatch):
    """Return names that lead to addresses, each to several in turn; the tests' own servers count as public."""
    known = {}
    really = socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        addresses = known.get(host)
        return really(addresses.pop(0) if addresses else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(adapter, "is_private_host", lambda url: "127.0.0.2" in url)
    monkeypatch.setattr(adapter, "is_private_address", lambda address: address == "127.0.0.2")
    return known


def test_a_redirect_to_a_private_address_is_refused(names, tmp_path):
    with (
        ScriptedServer(reply(b"", 302, Location="http://127.0.0.2/secret")) as server,
        pytest.raises(KieResultError, match=f"secret', where {server.url} redirects to, leads to the private address"),
    ):
        download(server.url, tmp_path / "cat.png", read_timeout=1)
    assert files(tmp_path) == []


@pytest.mark.parametrize("is_redirect", [False, True])
def test_a_name_that_leads_to_a_private_address_is_refused(is_redirect, names, tmp_path):
    with socket.create_server(("127.0.0.2", 0)) as inside:
        names["inside.example"] = ["127.0.0.2"]
        link = f"http://inside.example:{inside.getsockname()[1]}/x.png"
        with ScriptedServer(reply(b"", 302, Location=link)) as server:
            url = server.url if is_redirect else link
            with pytest.raises(KieResultError, match=r"leads to the private address 127\.0\.0\.2"):
                download(url, tmp_path / "cat.png", read_timeout=1)
        inside.settimeout(5)
        connection, _ = inside.accept()
        with connection:
            assert connection.recv(1000) == b""  # nothing was asked
    assert files(tmp_path) == []


def test_it_does_not_help_to_change_where_a_name_leads(names, tmp_path):
    with socket.create_server(("127.0.0.2", 0)) as inside, ScriptedServer() as server:
        names["rebound.example"] = ["127.0.0.1", "127.0.0.2"]
        port = inside.getsockname()[1]
        assert socket.getaddrinfo("rebound.example", port)[0][4][0] == "127.0.0.1"
        with pytest.raises(KieResultError, match="leads to the private address"):
            download(f"http://rebound.example:{port}/x.png", tmp_path / "cat.png", read_timeout=1)
    assert server.connections == 0


@pytest.mark.parametrize(
    "link",
    [
        "{}\\@good.example/x.png",
        "{}/\\@good.example/x.png",
        "{}#@good.example/x.png",
        "{}?@good.example/x.png",
        "http://good.example@{host}/x.png",
        "http://①②⑦.0.0.1:{port}/x.png",
        "http://127。0。0。1:{port}/x.png",
        "http://localhost:{port}/x.png",
        "http://here.example:{port}/x.png",
        " {}/x.png",
        "http:/\t/{host}/x.png",
    ],
)
@pytest.mark.parametrize("is_redirect", [False, True])
def test_no_spelling_leads_to_this_machine(link, is_redirect, tmp_path, monkeypatch):
    really = socket.getaddrinfo
    here = {"here.example": "127.0.0.1"}
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **kw: really(here.get(host, host), *args, **kw))
    with ScriptedServer(reply(IMAGE, **PNG)) as server:
        url = link.format(server.url, host=server.host, port=server.port)
        if is_redirect:
            url = urljoin("https://tempfile.example/x.png", url)
        with pytest.raises(KieError):
            download(url, tmp_path / "cat.png", read_timeout=1)
    assert server.requests == []
    assert files(tmp_path) == []


def test_a_proxy_may_be_at_a_private_address(tmp_path, monkeypatch):
    with ScriptedServer(reply(IMAGE, **PNG)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        download("http://tempfile.example/x.png", tmp_path / "cat.png", read_timeout=1)
        for url in ("http://10.0.0.1/x.png", f"{proxy.url}\\@good.example/x.png"):
            with pytest.raises(KieResultError, match="leads to the private address"):
                download(url, tmp_path / "dog.png", read_timeout=1)
    assert [request.target for request in proxy.requests] == ["http://tempfile.example/x.png"]


def test_a_connection_by_name_to_a_private_address(connect, tmp_path, monkeypatch):
    """As an emulator is in a container beside this one."""
    really = socket.getaddrinfo
    here = {"emulator": "127.0.0.1"}
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **kw: really(here.get(host, host), *args, **kw))
    with ScriptedServer(reply(IMAGE, **PNG)) as server:
        url = f"http://emulator:{server.port}"
        connect(url).download_file(f"{url}/x.png", tmp_path / "cat.png")
    assert len(server.requests) == 1


@pytest.mark.parametrize("chunked", [False, True])
def test_a_file_that_is_too_large(chunked, tmp_path):
    body = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"a\r\n0123456789\r\n" * 11 + b"0\r\n\r\n"
    step = raw(body) if chunked else reply(b"x" * 101, **PNG)
    with ScriptedServer(step) as server:
        error = error_of(fetch, server.url, tmp_path / "cat.png", max_bytes=100)
    assert type(error) is KieResultError
    assert "more than max_bytes=100 bytes" in error.message
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", DRIPS)
def test_a_drip_is_not_waited_for(name, monkeypatch, tmp_path):
    monkeypatch.setattr(download_module, "SLOW_START_SECONDS", 0.3)
    began = time.monotonic()
    with ScriptedServer(DRIPS[name]) as server:
        error = error_of(fetch, server.url, tmp_path / "cat.png", read_timeout=0.3)
        assert time.monotonic() - began < 3
    assert type(error) is KieFileError
    assert "redirects" in error.message or "is too slow" in error.message or "timed out" in error.message
    assert files(tmp_path) == []


def test_a_large_file_takes_as_long_as_it_takes(monkeypatch, tmp_path):
    def slowly(exchange):
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 20000\r\n\r\n")
        for _ in range(20):
            exchange.send(b"x" * 1000)
            time.sleep(0.05)

    monkeypatch.setattr(download_module, "SLOW_START_SECONDS", 0.3)
    with ScriptedServer(slowly) as server:
        assert fetch(server.url, tmp_path / "cat.png", read_timeout=0.3).bytes == 20_000


def test_what_cannot_be_written_is_a_kie_error(connect, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with ScriptedServer(reply(IMAGE, **PNG)) as server, pytest.raises(KieTargetError, match="file"):
        connect(server.url).download_file(server.url, tmp_path / "file" / "cat.png")
    assert files(tmp_path) == ["file"]


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
        assert f"refused both '{host.url}/dead' and the fresh link" in caught.value.message
        assert "can expire" not in caught.value.message
        assert "airflow-provider-kie/" in caught.value.message
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
