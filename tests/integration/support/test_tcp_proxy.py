"""The proxy of the fleet: what it passes on, holds and breaks."""

from __future__ import annotations

import socket
import time

import pytest

from tests.support.servers import ScriptedServer, refusing_port, reply
from tests.support.tcp_proxy import TcpProxy
from tests.support.waits import wait_until

REQUEST = b"GET / HTTP/1.1\r\n\r\n"


def connect(proxy):
    client = socket.create_connection(("127.0.0.1", proxy.port), timeout=5)
    client.settimeout(5)
    return client


def ask(client):
    client.sendall(REQUEST)
    if not (answer := client.recv(4096)):
        raise ConnectionResetError
    return answer


@pytest.fixture
def server():
    with ScriptedServer(reply(b"yes")) as server:
        yield server


def test_it_leads_to_all_ports_in_turn_and_passes_over_one_that_refuses(server):
    with (
        ScriptedServer(reply(b"other")) as other,
        refusing_port() as gone,
        TcpProxy(server.port, gone, other.port) as proxy,
    ):
        answers = []
        for _ in range(4):
            with connect(proxy) as client:
                answers.append(ask(client)[-5:])

    assert answers.count(b"other") == 2


def test_what_is_held_arrives_after_its_sender_has_gone(server):
    with TcpProxy(server.port) as proxy:
        with connect(proxy) as client:
            ask(client)
            proxy.hold()
            client.sendall(REQUEST)
        time.sleep(0.2)
        held = len(server.requests)
        proxy.release()
        wait_until(lambda: len(server.requests) == 2)

    assert held == 1
    assert len(server.requests) == 2


def test_new_connections_may_pass_while_the_old_ones_are_held(server):
    with TcpProxy(server.port) as proxy, connect(proxy) as old:
        ask(old)
        proxy.hold(new=False)
        old.settimeout(0.3)
        with pytest.raises(TimeoutError):
            ask(old)
        with connect(proxy) as new:
            assert ask(new).endswith(b"yes")


def test_a_dropped_connection_breaks_and_new_ones_too_until_release(server):
    with TcpProxy(server.port) as proxy:
        with connect(proxy) as client:
            ask(client)
            proxy.drop()
            with pytest.raises(ConnectionError):
                ask(client)
        with connect(proxy) as client, pytest.raises(ConnectionError):
            ask(client)
        proxy.release()
        with connect(proxy) as client:
            assert ask(client).endswith(b"yes")


def test_a_delay_holds_up_every_piece(server):
    with TcpProxy(server.port) as proxy, connect(proxy) as client:
        proxy.delay(0.2)
        began = time.monotonic()
        ask(client)

    assert time.monotonic() - began >= 0.4
