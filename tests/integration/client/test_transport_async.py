"""The event loop's transport over real sockets: one session per loop, nothing blocks, nothing leaks."""

import asyncio
import gc
import gzip
import logging
import threading
import time
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import pytest
from blockbuster import blockbuster_ctx

from kie_provider import __version__
from kie_provider.client import protocol, transport
from kie_provider.client.endpoint import Endpoint
from kie_provider.client.errors import KieConnectionError, KieError, KieTransportError
from kie_provider.client.polling import Waiting, watch
from kie_provider.client.protocol import Answer
from kie_provider.client.records import TaskState
from kie_provider.client.transport import send_async, shared_session
from tests.support.api_key import KEY, assert_no_key
from tests.support.servers import (
    DRIPS,
    HTML,
    OK,
    ScriptedServer,
    close,
    echo,
    envelope,
    hang,
    raw,
    refusing_port,
    reply,
    reset,
    truncated,
    tunnel,
)
from tests.support.waits import wait_until_async

TASK = "ee9c2715375b7837f8bb51d641ff5863"
CREDITS = envelope(5.5)


def endpoint(url, key=KEY, timeout=5.0):
    return Endpoint(key, host=url, request_timeout=timeout)


async def get_credits(of):
    async with shared_session() as session:
        return protocol.read_credits(await send_async(session, of, protocol.get_credits()))


async def error_of(of):
    with pytest.raises(KieError) as caught:
        await get_credits(of)
    assert_no_key(caught.value)
    return caught.value


def run_cleanly(main):
    """Run a coroutine function on a loop of its own and see that nothing is left open, nor any exception lost."""
    complaints = []

    async def watched():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
        return await main()

    gc.freeze()  # only what comes now counts, and is quick to look through
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = asyncio.run(watched())
        gc.collect()
    gc.unfreeze()
    assert [str(warning.message) for warning in caught] == []
    assert complaints == []
    return result


# ---------------------------------------------------------------- one session per loop


def test_concurrent_users_share_one_session():
    sessions = set()

    async def user(of):
        async with shared_session() as session:
            sessions.add(session)
            for _ in range(3):
                await send_async(session, of, protocol.get_credits())

    async def main():
        async with shared_session() as session:
            await asyncio.gather(*(user(endpoint(server.url)) for _ in range(20)))
            assert not session.session.closed
        assert sessions == {session}
        assert session.session.closed

    with ScriptedServer(CREDITS) as server:
        run_cleanly(main)
    assert len(server.requests) == 60
    assert server.connections <= 20


def test_the_last_to_leave_closes_it_and_the_next_gets_a_new_one():
    async def main():
        async with shared_session() as first, shared_session() as same:
            assert first is same
        assert first.session.closed
        async with shared_session() as second:
            assert second is not first
            assert not second.session.closed
        assert second.session.closed

    run_cleanly(main)


def test_the_first_user_may_leave_before_the_others():
    async def main():
        lease = shared_session()
        first = await lease.__aenter__()
        async with shared_session() as second:
            await lease.__aexit__(None, None, None)
            assert second is first
            assert protocol.read_credits(await send_async(second, endpoint(server.url), protocol.get_credits())) == 5.5
        assert second.session.closed

    with ScriptedServer(CREDITS) as server:
        run_cleanly(main)


def test_an_error_gives_the_lease_back():
    async def main():
        with pytest.raises(ZeroDivisionError):
            async with shared_session() as session:
                raise ZeroDivisionError
        assert session.session.closed

    run_cleanly(main)


def test_a_cancelled_user_leaves_the_session_to_the_others():
    async def main():
        async with shared_session() as session:
            waiting = asyncio.create_task(get_credits(endpoint(server.url)))
            await wait_until_async(lambda: server.requests)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert not session.session.closed
            assert await get_credits(endpoint(server.url)) == 5.5
        assert session.session.closed

    with ScriptedServer(hang, CREDITS) as server:
        run_cleanly(main)


def test_the_last_user_cancelled_in_mid_request_closes_it():
    sessions = []

    async def user():
        async with shared_session() as session:
            sessions.append(session)
            await send_async(session, endpoint(server.url), protocol.get_credits())

    async def main():
        users = [asyncio.create_task(user()) for _ in range(3)]
        await wait_until_async(lambda: len(server.requests) == 3)
        for task in users:
            task.cancel()
        outcomes = await asyncio.gather(*users, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}
        assert len(set(sessions)) == 1
        assert sessions[0].session.closed

    with ScriptedServer(hang) as server:
        run_cleanly(main)


class Closing:
    """Sessions close only once they are let, so that something can happen in between."""

    def __init__(self):
        self.begun, self.done, self.let = [], [], False

    async def close(self, session):
        self.begun.append(session)
        await wait_until_async(lambda: self.let)
        await self.real_close(session)
        self.done.append(session)


@pytest.fixture
def closing(monkeypatch):
    state = Closing()
    state.real_close = aiohttp.ClientSession.close
    monkeypatch.setattr(aiohttp.ClientSession, "close", lambda session: state.close(session))  # noqa: PLW0108  # bound  # noqa: PLW0108 - binds
    return state


def test_a_newcomer_while_the_last_closes_gets_a_fresh_session(closing):
    async def main():
        first = asyncio.create_task(get_credits(endpoint(server.url)))
        await wait_until_async(lambda: closing.begun)
        newcomer = asyncio.create_task(get_credits(endpoint(server.url)))
        await wait_until_async(lambda: len(closing.begun) == 2)
        closing.let = True
        assert [await first, await newcomer] == [5.5, 5.5]

    with ScriptedServer(CREDITS) as server:
        run_cleanly(main)
    assert len(set(closing.done)) == 2


def test_cancelled_while_closing_it_is_closed_all_the_same(closing):
    async def main():
        user = asyncio.create_task(get_credits(endpoint(server.url)))
        await wait_until_async(lambda: closing.begun)
        user.cancel()
        with pytest.raises(asyncio.CancelledError):
            await user
        closing.let = True
        await wait_until_async(lambda: closing.done)

    with ScriptedServer(CREDITS) as server:
        run_cleanly(main)
    assert closing.done[0].closed


def test_two_loops_do_not_share():
    sessions, both = [], threading.Barrier(2, timeout=10)

    async def user():
        async with shared_session() as session:
            sessions.append(session)
            both.wait()
            for _ in range(5):
                await send_async(session, endpoint(server.url), protocol.get_credits())
            both.wait()
            assert not session.session.closed

    with ScriptedServer(CREDITS) as server, ThreadPoolExecutor(2) as threads:
        for future in [threads.submit(asyncio.run, user()) for _ in range(2)]:
            future.result(timeout=10)
    assert sessions[0] is not sessions[1]
    assert sessions[0].session.closed
    assert sessions[1].session.closed


def test_a_loop_that_has_ended_leaves_nothing_to_the_next():
    for _ in range(3):
        with ScriptedServer(CREDITS) as server:
            assert run_cleanly(lambda: get_credits(endpoint(server.url))) == 5.5
    assert not transport._shared_sessions


# ---------------------------------------------------------------- what is sent


async def test_each_request_has_its_own_key():
    other = "f" * 32
    with ScriptedServer(CREDITS) as server:
        async with shared_session() as session:
            for key in (KEY, other, KEY):
                await send_async(session, endpoint(server.url, key), protocol.get_credits())
            assert "Authorization" not in session.session.headers
    assert [request.headers["authorization"] for request in server.requests] == [
        f"Bearer {KEY}",
        f"Bearer {other}",
        f"Bearer {KEY}",
    ]
    assert server.connections == 1


async def test_the_request_on_the_wire():
    with ScriptedServer(envelope({"state": "waiting"})) as server:
        async with shared_session() as session:
            answer = await send_async(session, endpoint(f"{server.url}/"), protocol.get_task("a&b=ä /"))
    assert protocol.read_task(answer, TASK).state is TaskState.RUNNING
    (request,) = server.requests
    assert (request.method, request.path, request.query) == (
        "GET",
        "/api/v1/jobs/recordInfo",
        {"taskId": ["a&b=ä /"]},
    )


async def test_cookies_are_not_kept():
    with ScriptedServer(envelope(5.5, Set_Cookie="JSESSIONID=1; Path=/")) as server:
        async with shared_session():
            await get_credits(endpoint(server.url))
            await get_credits(endpoint(server.url))
    assert len(server.requests) == 2
    assert not [request for request in server.requests if "cookie" in request.headers]


async def test_netrc_neither_replaces_the_key_nor_stops_the_request(netrc):
    with ScriptedServer(CREDITS) as server:
        assert await get_credits(endpoint(server.url)) == 5.5
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(status):
    with ScriptedServer(CREDITS) as elsewhere, ScriptedServer(reply(b"", status, Location=elsewhere.url)) as server:
        assert (await error_of(endpoint(server.url))).http_status == status
    assert elsewhere.connections == 0


async def test_a_redirect_to_nowhere():
    with ScriptedServer(reply(b"", 302, Location="http://[bad/")) as server:
        assert (await error_of(endpoint(server.url))).http_status == 302


# ---------------------------------------------------------------- proxies


async def test_through_a_plain_proxy(monkeypatch):
    with ScriptedServer(CREDITS) as proxy:
        for url in (proxy.url, proxy.host, f"http://me:secret@{proxy.host}"):
            monkeypatch.setenv("HTTP_PROXY", url)
            assert await get_credits(endpoint("http://api.example")) == 5.5
    assert {request.target for request in proxy.requests} == {"http://api.example/api/v1/chat/credit"}
    assert {request.headers["authorization"] for request in proxy.requests} == {f"Bearer {KEY}"}
    assert [request.headers.get("proxy-authorization") for request in proxy.requests] == [
        None,
        None,
        "Basic bWU6c2VjcmV0",
    ]


async def test_the_proxy_is_passed_by_when_the_environment_says_so(monkeypatch):
    with ScriptedServer(CREDITS) as server, ScriptedServer(reply(HTML, 502)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert await get_credits(endpoint(server.url)) == 5.5
    assert proxy.connections == 0


@pytest.mark.parametrize("step", [reply(HTML, 403), close, reset], ids=["403", "close", "reset"])
async def test_a_proxy_that_does_not_connect(step, monkeypatch):
    with ScriptedServer(step) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        assert type(await error_of(endpoint("https://api.example"))) is KieTransportError
    assert {request.method for request in proxy.requests} == {"CONNECT"}
    assert KEY.encode() not in b"".join(request.raw for request in proxy.requests)


@pytest.mark.parametrize("url", ["http://[bad", "http://127.0.0.1:x"])
async def test_a_proxy_url_that_is_none(url, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", url)
    assert type(await error_of(endpoint("http://api.example"))) is KieTransportError


def ways(url):
    """How a worker and the triggerer fare: credits, or the class of the error."""

    def outcome(ask):
        try:
            return ask()
        except KieError as error:
            return type(error)

    def worker():
        with transport.reusable_session() as session:
            return protocol.read_credits(transport.send(session, endpoint(url), protocol.get_credits()))

    return [outcome(worker), outcome(lambda: asyncio.run(get_credits(endpoint(url))))]


@pytest.mark.parametrize(
    ("variables", "through"),
    [
        ({"HTTP_PROXY": "{}"}, True),
        ({"http_proxy": "{}"}, True),
        ({"ALL_PROXY": "{}"}, True),
        ({"all_proxy": "{}"}, True),
        ({"HTTPS_PROXY": "{}"}, False),
        ({"ALL_PROXY": "socks5://127.0.0.1:1", "HTTP_PROXY": "{}"}, True),
        ({"HTTP_PROXY": "{}", "NO_PROXY": "127.0.0.0/8"}, False),
        ({"HTTP_PROXY": "{}", "NO_PROXY": "10.0.0.0/8, 127.0.0.1"}, False),
        ({"HTTP_PROXY": "{}", "NO_PROXY": "10.0.0.0/8"}, True),
        ({"HTTP_PROXY": "{}", "no_proxy": "*"}, False),
        ({"ALL_PROXY": "{}", "NO_PROXY": "127.0.0.0/8"}, False),
        ({"ALL_PROXY": "socks5h://127.0.0.1:1", "NO_PROXY": "127.0.0.0/8"}, False),
    ],
)
def test_worker_and_triggerer_take_the_same_way(variables, through, monkeypatch):
    with ScriptedServer(CREDITS) as server, ScriptedServer(CREDITS) as proxy:
        for name, value in variables.items():
            monkeypatch.setenv(name, value.format(proxy.url))
        assert ways(server.url) == [5.5, 5.5]
    assert (len(server.requests), len(proxy.requests)) == ((0, 2) if through else (2, 0))


@pytest.mark.parametrize("scheme", ["socks4", "socks5", "socks5h", "SOCKS5", "ftp"])
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
def test_worker_and_triggerer_refuse_the_same_proxies(variable, scheme, monkeypatch):
    with ScriptedServer(CREDITS) as server:
        monkeypatch.setenv(variable, f"{scheme}://me:hunter2@{server.host}")
        assert ways(server.url) == [KieConnectionError, KieConnectionError]
        with transport.reusable_session() as session, pytest.raises(KieConnectionError) as caught:
            transport.send(session, endpoint(server.url), protocol.get_credits())
    assert f"a proxy with {scheme.lower()}://" in caught.value.message
    assert "hunter2" not in caught.value.message
    assert server.connections == 0


@pytest.mark.parametrize("proxy", ["http://me:hunter2@[bad", "me:hunter2@[bad", "http://me:hunter2@127.0.0.1:x"])
def test_the_password_of_a_proxy_is_in_no_error(proxy, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", proxy)

    async def triggerer():
        return await error_of(endpoint("http://api.example"))

    with transport.reusable_session() as session, pytest.raises(KieTransportError) as caught:
        transport.send(session, endpoint("http://api.example"), protocol.get_credits())
    assert "hunter2" not in str(caught.value) + str(asyncio.run(triggerer()))


# ---------------------------------------------------------------- trouble


@pytest.mark.parametrize(
    "step",
    [
        reset,
        close,
        truncated(b'{"code":200'),
        raw(OK + b'Transfer-Encoding: chunked\r\n\r\n50\r\n{"code":200'),
        raw(OK + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello"),
        raw(bytes(range(256))),
        raw(OK + b"X: " + b"x" * 100_000),
        echo,
    ],
    ids=["reset", "closed", "truncated", "truncated chunk", "bad gzip", "not HTTP", "long header", "echo"],
)
async def test_broken_answers(step):
    with ScriptedServer(step) as server:
        error = await error_of(endpoint(server.url))
    assert type(error) is KieTransportError
    assert error.is_transient
    assert error.message.startswith(f"GET {server.url}/api/v1/chat/credit: no usable answer (")


async def test_a_slow_answer():
    with ScriptedServer(hang) as server:
        error = await asyncio.wait_for(error_of(endpoint(server.url, timeout=0.05)), 2)
    assert type(error) is KieTransportError
    assert "Timeout" in error.message


@pytest.mark.parametrize("name", DRIPS)
async def test_an_answer_in_drips(name):
    with ScriptedServer(DRIPS[name]) as server:
        error = await asyncio.wait_for(error_of(endpoint(server.url, timeout=0.3)), 2)
    assert type(error) is KieTransportError


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip"])
async def test_a_compressed_answer_is_not_read(encoding):
    with ScriptedServer(reply(gzip.compress(bytes(50_000_000)), Content_Encoding=encoding)) as server:
        tracemalloc.start()
        error = await error_of(endpoint(server.url))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert type(error) is KieTransportError
    assert f"Content-Encoding is '{encoding}'" in error.message
    assert server.requests[0].headers["accept-encoding"] == "identity"
    assert server.requests[0].headers["user-agent"] == f"airflow-provider-kie/{__version__}"
    assert peak < 10_000_000


async def test_an_answer_that_does_not_end():
    def pour(exchange):
        exchange.send(OK + b"Content-Length: 999999999\r\n\r\n")
        while True:  # until the client has gone
            exchange.send(b" " * 65536)

    with ScriptedServer(pour) as server:
        error = await error_of(endpoint(server.url))
    assert type(error) is KieTransportError
    assert "the answer has more than 4194304 bytes" in error.message


async def test_hosts_that_are_not_there(certificate):
    with refusing_port() as port, ScriptedServer(CREDITS) as server, ScriptedServer(tls=certificate[0]) as untrusted:
        for url in (
            f"http://127.0.0.1:{port}",
            "http://no-such-host.invalid",
            f"http://{'a' * 80}.invalid",
            f"https://{server.host}",
            untrusted.url,
        ):
            assert type(await error_of(endpoint(url))) is KieTransportError
    assert server.requests == untrusted.requests == []


async def test_a_certificate_of_the_bundle_that_requests_trusts(tls):
    with ScriptedServer(CREDITS, tls=tls) as server:
        async with shared_session() as session:
            answer = await send_async(session, endpoint(server.url), protocol.get_credits())
    assert protocol.read_credits(answer) == 5.5


async def test_a_bundle_that_is_not_there(monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/bundle.pem")
    with pytest.raises(KieConnectionError, match="REQUESTS_CA_BUNDLE: cannot read the certificates in '/no/such"):
        async with shared_session():
            pass


async def test_a_handshake_that_hangs(monkeypatch):
    monkeypatch.setattr(transport, "CONNECT_TIMEOUT", 0.05)
    with ScriptedServer(on_accept=hang) as server:
        assert type(await error_of(endpoint(f"https://{server.host}"))) is KieTransportError


async def test_waiting_for_a_socket_of_the_pool_is_not_on_the_clock(monkeypatch):
    def trickle(exchange):
        body = b'{"code":200,"data":5.5}'
        exchange.send(OK + b"Content-Length: %d\r\n\r\n" % len(body))
        for n in range(0, len(body), 2):
            exchange.send(body[n : n + 2])
            time.sleep(0.05)

    monkeypatch.setattr(transport, "POOL_SIZE", 1)  # the second waits for the socket of the first
    with ScriptedServer(trickle) as server:
        of = endpoint(server.url, timeout=1.0)
        async with shared_session():
            assert await asyncio.gather(get_credits(of), get_credits(of)) == [5.5, 5.5]
    assert server.connections == 1


@pytest.mark.parametrize(
    "step",
    [
        raw(f"Bearer {KEY}\r\n\r\n".encode()),
        raw(OK + f"Authorization Bearer {KEY}\r\n\r\n".encode()),
        raw(OK + f"Content-Length: {KEY}\r\n\r\n".encode()),
        raw(OK + f"Transfer-Encoding: chunked\r\n\r\nBearer {KEY}\r\n".encode()),
        raw(OK + f"Content-Length: 2\r\nConnection: close\r\n\r\n{{}}Bearer {KEY}".encode()),
        reply(f"bad header: Authorization: Bearer {KEY}", 400),
        envelope(code=401, msg=f"bad header: Authorization: Bearer {KEY}"),
        reply(b"", 302, Location=f"http://x:{KEY}@[bad/"),
        envelope(code=401, msg="x", Set_Cookie=f"a@{KEY}(=1"),
    ],
)
async def test_the_key_is_in_no_error_and_no_log(step, caplog):
    with ScriptedServer(step) as server, caplog.at_level(logging.DEBUG):
        await error_of(endpoint(server.url))
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    "step",
    [
        CREDITS,
        envelope(code=429, msg="busy", status=429, Retry_After="7"),
        envelope(code=401, msg=f"no {KEY}"),
        reply(HTML, 502, Content_Type="text/html"),
        reply(b"", 204),
        reply(b"", 302, Location="http://127.0.0.1:1/"),
        reply('{"code": 200, "msg": "Grüße"}', Content_Type="application/json; charset=latin-1"),
    ],
)
async def test_both_transports_read_the_same(step):
    with ScriptedServer(step) as server:
        with transport.reusable_session() as blocking:
            expected = transport.send(blocking, endpoint(server.url), protocol.get_credits())
        async with shared_session() as session:
            answer = await send_async(session, endpoint(server.url), protocol.get_credits())
    assert isinstance(answer, Answer)
    assert answer == expected


# ---------------------------------------------------------------- the loop stays free


class NoThreads(ThreadPoolExecutor):
    def submit(self, *args, **kwargs):
        raise AssertionError("a poll took a thread")


async def test_a_wait_never_blocks_the_loop_nor_takes_a_thread(netrc, monkeypatch):
    def record(**data):
        return envelope({"taskId": TASK, "state": "waiting"} | data)

    script = [
        envelope(code=422, msg="recordInfo is null"),
        record(),
        envelope(code=401, msg="Unauthorized"),
        record(state="generating"),
        reply(HTML, 502),
        reset,
        record(state="success", response={"resultUrls": ["https://x.example/1.png"]}),
    ]
    naps, refreshed = [], []

    async def nap(seconds):
        naps.append(seconds)
        await asyncio.sleep(0)

    with ScriptedServer(*script) as server, ScriptedServer(tunnel) as unused:
        monkeypatch.setenv("HTTPS_PROXY", unused.url)

        async def poll(*, refresh_key=False):
            refreshed.extend([True] * refresh_key)
            try:
                async with shared_session() as session:
                    answer = await send_async(session, endpoint(server.url), protocol.get_task(TASK))
                return protocol.read_task(answer, TASK)
            except KieError as error:
                return error

        asyncio.get_running_loop().set_default_executor(NoThreads(1))
        with blockbuster_ctx():
            async with shared_session():
                result = await watch(Waiting(time.time()), poll, sleep=nap)
    assert result.urls == ("https://x.example/1.png",)
    assert refreshed == [True]
    assert len(naps) >= 5


async def test_blockbuster_would_have_noticed():
    with blockbuster_ctx(), pytest.raises(Exception, match="Blocking call"):
        time.sleep(0.001)  # noqa: ASYNC251
