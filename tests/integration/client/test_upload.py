"""Uploads over a real socket."""

import json
import os
import socket
import time
from email import message_from_bytes

import pytest

from kie_provider.client import errors, protocol, transport
from kie_provider.client.client import KieClient
from kie_provider.client.endpoint import Endpoint
from tests.support.api_key import KEY, assert_no_key
from tests.support.servers import ScriptedServer, envelope, reply

IMAGE = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
UPLOADED = reply(
    {
        "success": True,
        "code": 200,
        "msg": "File uploaded successfully",
        "data": {
            "success": True,
            "fileName": "cat.png",
            "filePath": "kieai/1/airflow/cat.png",
            "downloadUrl": "https://tempfile.example/kieai/1/airflow/cat.png",
            "fileSize": 264,
            "mimeType": "image/png",
            "uploadedAt": "2026-09-22T10:13:20.000Z",
        },
    }
)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "cat.png"
    path.write_bytes(IMAGE)
    return path


def form(request):
    """Return the fields of a multipart request: name -> (content, file name)."""
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    parts = message_from_bytes(head + request.body).get_payload()
    return {
        part.get_param("name", header="Content-Disposition"): (part.get_payload(decode=True), part.get_filename())
        for part in parts
    }


def test_the_request_on_the_wire(connect, image):
    with ScriptedServer(UPLOADED) as server:
        url = connect("http://api.invalid", upload_host=server.url).upload_file(image)
    assert url == "https://tempfile.example/kieai/1/airflow/cat.png"
    (request,) = server.requests
    assert (request.method, request.target) == ("POST", "/api/file-stream-upload")
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert form(request) == {
        "uploadPath": (b"airflow", None),
        "fileName": (b"cat.png", None),
        "file": (IMAGE, "cat.png"),
    }


@pytest.mark.parametrize("folder", ["a/b", "/a/b", "a/b/", "/a/b/"])
def test_the_folder_has_no_slashes_around_it(folder, connect, image):
    with ScriptedServer(UPLOADED) as server:
        connect(server.url).upload_file(str(image), folder)
    assert form(server.requests[0])["uploadPath"] == (b"a/b", None)


def test_a_file_name_of_any_language(connect, tmp_path):
    path = tmp_path / 'Käse "猫".png'
    path.write_bytes(IMAGE)
    with ScriptedServer(UPLOADED) as server:
        connect(server.url).upload_file(path)
    fields = form(server.requests[0])
    assert fields["fileName"] == ('Käse "猫".png'.encode(), None)
    assert fields["file"][0] == IMAGE


def test_an_upload_is_free_so_it_is_repeated(connect, image, pauses):
    with ScriptedServer(envelope(code=500, msg="Server exception"), UPLOADED) as server:
        connect(server.url).upload_file(image)
    assert [form(request)["file"][0] for request in server.requests] == [IMAGE, IMAGE]
    assert len(pauses) == 1


def test_a_refused_upload(connect, image):
    refused = reply({"success": False, "code": 400, "msg": f"bad {KEY}"})
    with ScriptedServer(refused) as server, pytest.raises(errors.KieValidationError) as caught:
        connect(server.url).upload_file(image)
    assert_no_key(caught.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize("name", ["none.png", ".", "none/cat.png", "x" * 300, "nul\0.png"])
def test_no_file(name, connect, tmp_path):
    with ScriptedServer(UPLOADED) as server, pytest.raises(errors.KieValidationError, match="path: must be a file"):
        connect(server.url).upload_file(tmp_path / name)
    assert server.connections == 0


@pytest.mark.parametrize("path", ["fifo", "/dev/zero"])
def test_what_could_be_read_for_ever(path, connect, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with ScriptedServer(UPLOADED) as server, pytest.raises(errors.KieValidationError, match="it is not a regular file"):
        connect(server.url).upload_file(tmp_path / path)
    assert server.connections == 0


def test_files_and_key_stay_with_a_host_of_ones_own(image):
    with ScriptedServer(UPLOADED) as server, KieClient(Endpoint(KEY, host=server.url)) as client:
        client.upload_file(image)
    assert len(server.requests) == 1


def test_a_host_that_takes_no_bytes(connect, image, monkeypatch):
    def read_slowly(exchange):
        exchange.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(100):
            exchange.sock.recv(256)
            time.sleep(0.05)

    monkeypatch.setattr(transport, "SLOWEST_UPLOAD", 1e9)
    image.write_bytes(bytes(20_000_000))
    began = time.monotonic()
    with ScriptedServer(on_accept=read_slowly) as server:
        observed = connect(server.url, request_timeout=0.3)
        with pytest.raises(errors.KieTransportError):
            transport.send(
                observed._session, observed.endpoint, protocol.upload_file("a", image.read_bytes(), "airflow")
            )
        assert time.monotonic() - began < 3


def test_a_slow_line_gets_more_time_for_a_large_file(connect, image, monkeypatch):
    def answer_late(exchange):
        time.sleep(0.5)
        UPLOADED(exchange)

    monkeypatch.setattr(transport, "SLOWEST_UPLOAD", len(IMAGE) / 2)
    with ScriptedServer(answer_late) as server:
        connect(server.url, request_timeout=0.1).upload_file(image)
    assert len(server.requests) == 1


def test_the_upload_answer_without_a_link(connect, image):
    body = json.dumps({"success": True, "code": 200, "data": {"fileUrl": "https://x/1"}})
    with ScriptedServer(reply(body)) as server, pytest.raises(errors.KieServerError, match="without a downloadUrl"):
        connect(server.url).upload_file(image)
