"""Tiny servers on 127.0.0.1: every request is met by the next step of a script, over a real socket.

A step is a function of one :class:`Exchange`; the last step of a script goes on for ever::

    with ScriptedServer(reply({"code": 429}), reset) as server:
        ...  # the first request is answered, all others meet a reset
    assert len(server.requests) == 2
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import json
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

#: What a gateway says instead of Kie.
HTML = "<html><body><h1>Bad Gateway</h1></body></html>"
#: The first line of an answer.
OK = b"HTTP/1.1 200 OK\r\n"

_TLS_HANDSHAKE = b"\x16"


@dataclass(frozen=True)
class Received:
    """One HTTP request as it arrived.

    :param headers: names in lower case.
    :param connection: which of the server's connections it came on, from 1.
    :param raw: every byte of it.
    """

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int
    raw: bytes

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)

    def json(self) -> Any:
        return json.loads(self.body)


class Exchange:
    """A request, and the socket to answer it on; a step may also break the connection.

    :param request: None if the step runs before anything was read.
    """

    def __init__(self, sock: socket.socket, request: Received | None) -> None:
        self.sock = sock
        self.request = request
        self.over = False

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def send_beneath_tls(self, data: bytes) -> None:
        """Write to the TCP connection under a TLS one."""
        os.write(self.sock.fileno(), data)

    def reset(self) -> None:
        """End the connection with RST instead of FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self.over = True
        self.sock.close()

    def wait_for_the_client(self) -> None:
        """Send nothing until the client has gone, or the server is closed."""
        while self.sock.recv(1024):
            pass
        self.over = True


Step = Callable[[Exchange], None]


def reply(body: Any = b"", status: int = 200, *, reason: str = "Whatever", **headers: str) -> Step:
    """Answer with bytes, text, or an object as JSON; ``Content_Type="..."`` names a header."""
    kind = "application/octet-stream" if isinstance(body, bytes) else "text/plain"
    if not isinstance(body, bytes | str):
        body, kind = json.dumps(body), "application/json"
    content = body.encode() if isinstance(body, str) else body
    fields = {"Content-Type": kind, "Content-Length": str(len(content))}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    answer = "\r\n".join(lines).encode() + content

    def step(exchange: Exchange) -> None:
        exchange.send(answer)

    return step


def envelope(data: Any = None, *, code: int = 200, msg: str = "success", status: int = 200, **headers: str) -> Step:
    """Answer as Kie does: its JSON with a code of its own."""
    return reply({"code": code, "msg": msg, "data": data}, status, **headers)


def raw(data: bytes) -> Step:
    """Send exactly these bytes and close."""

    def step(exchange: Exchange) -> None:
        exchange.send(data)
        exchange.close()

    return step


def truncated(body: bytes, missing: int = 10, content_type: str = "application/json") -> Step:
    """Announce more than is sent, then close."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {len(body) + missing}\r\n\r\n"
    return raw(head.encode() + body)


def drip(head: bytes, drop: bytes, every: float = 0.02) -> Step:
    """Send ``head``, then ``drop`` again and again, for ten seconds at most: never silent, never done."""

    def step(exchange: Exchange) -> None:
        exchange.send(head)
        for _ in range(int(10 / every)):
            exchange.send(drop)
            time.sleep(every)
        exchange.close()

    return step


def in_turn(*steps: Step) -> Step:
    """Do several steps for one request."""

    def step(exchange: Exchange) -> None:
        for one in steps:
            one(exchange)

    return step


#: Answers that never end, though a byte comes every now and then.
DRIPS = {
    "before the status line": drip(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "in the status line": drip(b"HTTP/1.1 200 ", b"O"),
    "in a header": drip(b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "headers": drip(b"HTTP/1.1 200 OK\r\n", b"X: x\r\n", every=0.15),
    "in the body": drip(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 9999\r\n\r\n", b" "),
    "in a body without end": drip(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n", b" "),
    "in a chunk": drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n", b" "),
    "in the size of a chunk": drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
    "in the body of a redirect": drip(b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 9999\r\n\r\n", b" "),
}


def hang(exchange: Exchange) -> None:
    """Never answer."""
    exchange.wait_for_the_client()


def reset(exchange: Exchange) -> None:
    """Reset the connection."""
    exchange.reset()


def close(exchange: Exchange) -> None:
    """Close the connection without an answer."""
    exchange.close()


def echo(exchange: Exchange) -> None:
    """Send the request back, Authorization header and all, as a misconfigured port may do."""
    assert exchange.request is not None
    exchange.send(exchange.request.raw)
    exchange.close()


def tunnel(exchange: Exchange) -> None:
    """Do what a proxy does with CONNECT: pass bytes both ways until one side closes."""
    assert exchange.request is not None
    host, _, port = exchange.request.target.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as upstream:
        exchange.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        back = threading.Thread(target=_pump, args=(upstream, exchange.sock))
        back.start()
        _pump(exchange.sock, upstream)
        back.join()
    exchange.over = True


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for sock in (source, sink):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


class ScriptedServer:
    """Serves on a free port of 127.0.0.1 until closed; see the module's docstring.

    :param script: what to do with each request, over all connections.
    :param tls: serve HTTPS.
    :param on_accept: done with every connection before anything is read, instead of the script.
    """

    def __init__(self, *script: Step, tls: ssl.SSLContext | None = None, on_accept: Step | None = None) -> None:
        self.requests: list[Received] = []
        self.connections = 0
        self._script = script
        self._tls = tls
        self._on_accept = on_accept
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._closing = False
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"http{'s' if tls else ''}://{self.host}"

    def __enter__(self) -> ScriptedServer:
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._closing = True
            still_open = list(self._open)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        for sock in still_open:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # wakes recv()
        self._accepting.join()
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def join(self) -> None:
        """Wait until every connection there has been is over."""
        for thread in list(self._threads):
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._closing:
                    sock.close()
                    return
                self.connections += 1
                self._open.add(sock)
                thread = threading.Thread(target=self._serve, args=(sock, self.connections))
                self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket, connection: int) -> None:
        plain = sock
        try:
            if self._on_accept is not None:
                self._on_accept(Exchange(sock, None))
                return
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
                with self._lock:
                    self._open.add(sock)
            while request := _read_request(sock, connection):
                with self._lock:
                    self.requests.append(request)
                    step = self._script[min(len(self.requests), len(self._script)) - 1]
                exchange = Exchange(sock, request)
                step(exchange)
                if exchange.over:
                    return
        except OSError:  # the client has gone, or this server is being closed
            pass
        finally:
            with self._lock:
                self._open -= {sock, plain}
            sock.close()
            plain.close()


def _read_request(sock: socket.socket, connection: int) -> Received | None:
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        if not more:
            return None
        data += more
        if data.startswith(_TLS_HANDSHAKE):  # TLS at a plain port: what web servers say to that
            sock.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
            return None
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        more = sock.recv(65536)
        if not more:
            return None
        body += more
    method, target, _ = first.split(" ")
    return Received(method, target, headers, body, connection, head + b"\r\n\r\n" + body)


@contextlib.contextmanager
def refusing_port() -> Iterator[int]:
    """Hold a port at which every connection is refused."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def self_signed_certificate(directory: Path) -> tuple[ssl.SSLContext, Path]:
    """Make a certificate for 127.0.0.1 and return a server's TLS context and the file a client must trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests of kie_provider")])
    now = dt.datetime.now(dt.timezone.utc)
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
    ) | dict.fromkeys(("digital_signature", "key_cert_sign", "crl_sign"), True)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage, encipher_only=False, decipher_only=False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = directory / "certificate.pem", directory / "key.pem"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate_file, key_file)
    return context, certificate_file
