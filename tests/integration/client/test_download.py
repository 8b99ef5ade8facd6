"""Downloads over real sockets: a file appears only when complete, and the file host learns no secret."""

import gzip

import pytest

from kie_provider.client.errors import KieError, KieResultError, KieTransportError
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


@pytest.fixture
def client(connect):
    return connect("http://api.invalid")


def files(directory):
    return sorted(path.name for path in directory.rglob("*"))


def error_of(client, url, path):
    with pytest.raises(KieError) as caught:
        client.download_file(url, path)
    assert_no_key(caught.value)
    return caught.value


def test_a_file(client, tmp_path):
    with ScriptedServer(reply(IMAGE, **PNG)) as server:
        path = client.download_file(f"{server.url}/f/1.png?x=1", tmp_path / "cat.png")
    assert path == tmp_path / "cat.png"
    assert path.read_bytes() == IMAGE
    assert files(tmp_path) == ["cat.png"]
    assert server.requests[0].target == "/f/1.png?x=1"


def test_directories_are_made_and_text_is_a_path_too(client, tmp_path):
    with ScriptedServer(reply(IMAGE, **PNG)) as server:
        client.download_file(server.url, str(tmp_path / "a" / "b" / "cat.png"))
    assert (tmp_path / "a" / "b" / "cat.png").read_bytes() == IMAGE


def test_an_older_file_is_replaced_only_by_a_complete_one(client, tmp_path):
    path = tmp_path / "cat.png"
    path.write_bytes(b"old")
    with ScriptedServer(truncated(IMAGE, content_type="image/png"), reply(IMAGE, **PNG)) as server:
        error_of(client, server.url, path)
        assert path.read_bytes() == b"old"
        client.download_file(server.url, path)
    assert path.read_bytes() == IMAGE


def test_nothing_is_there_before_all_of_it_is(client, tmp_path):
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
        client.download_file(server.url, tmp_path / "cat.png")
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
def test_a_broken_download_leaves_nothing(step, connect, tmp_path):
    client = connect("http://api.invalid", request_timeout=0.1 if step is hang else 5.0)
    with ScriptedServer(step) as server:
        error = error_of(client, server.url, tmp_path / "cat.png")
    assert type(error) is KieTransportError
    assert error.is_transient
    assert f"downloading {server.url} broke off" in error.message
    assert files(tmp_path) == []
    assert len(server.requests) == 1


def test_a_file_host_that_is_not_there(client, tmp_path):
    with refusing_port() as port:
        assert type(error_of(client, f"http://127.0.0.1:{port}", tmp_path / "a" / "cat.png")) is KieTransportError
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "step",
    [
        reply("<html>expired</html>", 200, Content_Type="text/html; charset=utf-8"),
        reply("<html>expired</html>", 200, Content_Type="TEXT/HTML"),
        reply(b"", 200, **PNG),
        reply(b"", 204, **PNG),
        reply(IMAGE, 206, **PNG),
        reply("AccessDenied", 403, Content_Type="application/xml"),
        reply("gone", 404),
        reply("gone", 410),
        reply("busy", 503),
        reply(b"", 302),
    ],
    ids=["html", "HTML", "empty", "204", "206", "403", "404", "410", "503", "302"],
)
def test_an_answer_that_is_no_file(step, client, tmp_path):
    with ScriptedServer(step) as server:
        error = error_of(client, server.url, tmp_path / "cat.png")
    assert type(error) is KieResultError
    assert not error.is_transient
    assert server.url in error.message
    assert files(tmp_path) == []


@pytest.mark.parametrize("url", ["", "cat.png", "file:///etc/passwd", "ftp://x/1.png", None])
def test_what_is_no_url(url, client, tmp_path):
    assert type(error_of(client, url, tmp_path / "cat.png")) is KieResultError
    assert files(tmp_path) == []


def test_a_redirect_is_followed(client, tmp_path):
    with (
        ScriptedServer(reply(IMAGE, **PNG)) as elsewhere,
        ScriptedServer(reply(b"", 302, Location=f"{elsewhere.url}/1.png")) as server,
    ):
        client.download_file(server.url, tmp_path / "cat.png")
    assert (tmp_path / "cat.png").read_bytes() == IMAGE


@pytest.mark.parametrize("location", ["/", "file:///etc/passwd"])
def test_a_redirect_that_leads_nowhere(location, client, tmp_path):
    with ScriptedServer(reply(b"", 302, Location=location)) as server:
        assert type(error_of(client, server.url, tmp_path / "cat.png")) is KieTransportError
    assert files(tmp_path) == []


def test_compressed_on_the_way(client, tmp_path):
    with ScriptedServer(reply(gzip.compress(IMAGE), Content_Encoding="gzip", **PNG)) as server:
        client.download_file(server.url, tmp_path / "cat.png")
    assert (tmp_path / "cat.png").read_bytes() == IMAGE


def test_the_file_host_sees_no_key_no_cookie_and_no_netrc(client, tmp_path, netrc):
    with (
        ScriptedServer(reply(IMAGE, Set_Cookie="a=1", **PNG)) as elsewhere,
        ScriptedServer(reply(b"", 302, Location=elsewhere.url)) as server,
    ):
        for _ in range(2):
            client.download_file(server.url, tmp_path / "cat.png")
    assert len(server.requests + elsewhere.requests) == 4
    for request in server.requests + elsewhere.requests:
        assert "authorization" not in request.headers
        assert "cookie" not in request.headers
        assert KEY.encode() not in request.raw


def test_a_file_in_the_way_of_the_directory(client, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with ScriptedServer(reply(IMAGE, **PNG)) as server, pytest.raises(OSError, match="file"):
        client.download_file(server.url, tmp_path / "file" / "cat.png")
    assert files(tmp_path) == ["file"]
