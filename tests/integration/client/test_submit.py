"""createTask over real sockets: sent once, and sent again only when nothing can have been created."""

import gc
import gzip
import logging
from email.utils import formatdate
from time import time

import pytest
from urllib3 import HTTPConnectionPool, PoolManager

from kie_provider.client import errors, transport
from kie_provider.client.adapter import KieAdapter
from tests.support.api_key import KEY, error_of
from tests.support.messages import assert_tells
from tests.support.servers import (
    DRIPS,
    HTML,
    OK,
    Exchange,
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

MODEL, INPUT = "flux-2/pro-text-to-image", {"prompt": "a cat", "aspect_ratio": "1:1", "resolution": "1K"}
TASK = "ee9c2715375b7837f8bb51d641ff5863"
CREATED = envelope({"taskId": TASK, "recordId": TASK})

#: What can happen to a request that was sent, and leaves open whether a task was created.
DOUBTS = {
    "no answer in time": hang,
    "reset": reset,
    "closed without an answer": close,
    "part of a status line": raw(b"HTTP/1."),
    "headers only": raw(OK + b"Content-Length: 80\r\n\r\n"),
    "truncated body": truncated(b'{"code":200,"msg":"success","data":{"taskId":"ee9c'),
    "truncated after valid JSON": truncated(b'{"code":200,"msg":"success","data":{"taskId":"ee9c"}}', missing=1),
    "truncated chunk": raw(OK + b'Transfer-Encoding: chunked\r\n\r\n50\r\n{"code":200'),
    "broken gzip": raw(OK + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello"),
    "not HTTP": raw(bytes(range(256))),
    "its own request": echo,
    "early hints, then nothing": raw(b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "HTML 200": reply(HTML, 200, Content_Type="text/html"),
    "HTML 400": reply(HTML, 400, Content_Type="text/html"),
    "HTML 403": reply(HTML, 403, Content_Type="text/html"),
    "HTML 404 that names a task": reply(f'<html>{{"taskId": "{TASK}"}}', 404, Content_Type="text/html"),
    "HTML 408": reply(HTML, 408, Content_Type="text/html"),
    "HTML 409": reply(HTML, 409, Content_Type="text/html"),
    "HTML 425": reply(HTML, 425, Content_Type="text/html"),
    "HTML 429": reply(HTML, 429, Content_Type="text/html", Retry_After="1"),
    "HTML 500": reply(HTML, 500, Content_Type="text/html"),
    "HTML 502": reply(HTML, 502, Content_Type="text/html"),
    "HTML 504": reply(HTML, 504, Content_Type="text/html"),
    "empty 200": reply(b"", 200),
    "empty 204": raw(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "JSON without code": reply({"error": "overloaded"}, 503),
    "JSON list": reply([]),
    "code null": reply({"code": None, "data": {"taskId": TASK}}),
    "success without data": envelope(None),
    "success without taskId": envelope({"recordId": TASK}),
    "success with empty taskId": envelope({"taskId": ""}),
    "code 200 with HTTP 500": envelope({"taskId": TASK}, status=500),
    "code 408": envelope(code=408, msg="Upstream gave nothing"),
    "code 500": envelope(code=500, msg="Server exception, please try again later"),
    "code 500 that sounds like a refusal": envelope(code=500, msg="the connection must be reset by peer"),
    "code 500 with HTTP 500": envelope(code=500, msg="Internal Error", status=500),
    "code 501": envelope(code=501, msg="Playground task failed."),
    "code 503": envelope(code=503, msg="?"),
    "code 430": envelope(code=430, msg="?"),
    "code 999": envelope(code=999, msg="?"),
    "code -1": envelope(code=-1, msg="?"),
    "gzip": reply(gzip.compress(b'{"code":429,"msg":"busy"}'), 429, Content_Encoding="gzip"),
    "more than an answer has": reply(b" " * 5 * 2**20 + b'{"code":429,"msg":"busy"}'),
    "code 422 with a taskId": envelope({"taskId": TASK}, code=422, msg="x"),
    "code 401 with a taskId": envelope({"taskId": TASK}, code=401, msg="x"),
    "code 429 with a taskId": envelope({"taskId": TASK}, code=429, msg="x", Retry_After="0"),
    "code 455 with a taskId, HTTP 503": envelope({"taskId": TASK}, code=455, msg="x", status=503),
    "code 500 with a taskId": envelope({"taskId": TASK}, code=500, msg="aspect_ratio is required"),
    "a taskId with a line break": envelope({"taskId": "e760\nINFO forged"}),
    "a taskId with half an emoji": reply('{"code":200,"data":{"taskId":"ab\\ud800c"}}'),
    "a taskId of 100 kB": envelope({"taskId": "a" * 100_000}),
    "redirect to nowhere": reply(b"", 302),
    "redirect to a bad host": reply(b"", 302, Location="http://[bad/"),
}

REFUSALS = {
    400: errors.KieValidationError,
    401: errors.KieAuthError,
    402: errors.KieInsufficientCreditsError,
    404: errors.KieNotFoundError,
    422: errors.KieValidationError,
    433: errors.KieQuotaError,
    505: errors.KieFeatureDisabledError,
}


def error_of_create(client):
    return error_of(client.create_task, MODEL, INPUT)


# ---------------------------------------------------------------- what is sent


def test_the_request_on_the_wire(connect):
    with ScriptedServer(CREATED) as server:
        client = connect(f"{server.url}/")
        assert client.create_task(MODEL, INPUT, "https://me.example/hook?a=b") == TASK
        assert client.create_task(MODEL, INPUT) == TASK
    first, second = server.requests
    assert (first.method, first.target) == ("POST", "/api/v1/jobs/createTask")
    assert first.headers["authorization"] == f"Bearer {KEY}"
    assert first.headers["content-type"] == "application/json"
    assert first.json() == {"model": MODEL, "input": INPUT, "callBackUrl": "https://me.example/hook?a=b"}
    assert second.json() == {"model": MODEL, "input": INPUT}


def test_text_of_any_language_arrives(connect):
    prompt = 'Grüße, 猫 🐈 "quoted"\n\u2028 \ud800'
    with ScriptedServer(CREATED) as server:
        connect(server.url).create_task(MODEL, {"prompt": prompt})
    assert server.requests[0].json()["input"]["prompt"] == prompt


def test_what_cannot_be_sent_is_not_sent(connect):
    with ScriptedServer(CREATED) as server:
        with pytest.raises(errors.KieValidationError):
            connect(server.url).create_task("", INPUT)
        with pytest.raises(errors.KieValidationError):
            connect(server.url).create_task(MODEL, {"prompt": object()})
    assert server.connections == 0


def test_every_createtask_has_a_connection_of_its_own(connect):
    with ScriptedServer(CREATED) as server:
        client = connect(server.url)
        for _ in range(3):
            client.create_task(MODEL, INPUT)
    assert [request.connection for request in server.requests] == [1, 2, 3]


def test_it_does_not_use_the_kept_alive_connection_of_look_ups(connect):
    with ScriptedServer(envelope(5.0), envelope(5.0), CREATED) as server:
        client = connect(server.url)
        client.get_credits()
        client.get_credits()
        client.create_task(MODEL, INPUT)
    assert [request.connection for request in server.requests] == [1, 1, 2]


def test_netrc_does_not_replace_the_key(connect, netrc):
    with ScriptedServer(CREATED) as server:
        connect(server.url).create_task(MODEL, INPUT)
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


def test_cookies_are_not_sent_back(connect):
    created = envelope({"taskId": TASK}, Set_Cookie="JSESSIONID=1; Path=/")
    with ScriptedServer(created) as server:
        client = connect(server.url)
        for _ in range(2):
            client.create_task(MODEL, INPUT)
            client.get_task(TASK)
    assert not [request for request in server.requests if "cookie" in request.headers]


# ---------------------------------------------------------------- sent: once, whatever happens


@pytest.mark.parametrize("name", DOUBTS)
def test_a_doubtful_outcome_is_not_sent_again(name, connect, pauses):
    with ScriptedServer(DOUBTS[name], CREATED) as server:
        error = error_of_create(connect(server.url, request_timeout=0.1 if name == "no answer in time" else 5.0))
    assert type(error) is errors.KieSubmitUnknownError
    assert not error.is_transient
    assert (len(server.requests), server.connections, pauses) == (1, 1, [])


@pytest.mark.parametrize("name", DRIPS)
def test_an_answer_in_drips_is_a_doubtful_outcome(name, connect, pauses):
    began = time()
    with ScriptedServer(DRIPS[name], CREATED) as server:
        error = error_of_create(connect(server.url, request_timeout=0.3))
        assert 0.25 < time() - began < 2
    assert type(error) is errors.KieSubmitUnknownError
    assert (len(server.requests), server.connections, pauses) == (1, 1, [])


@pytest.mark.parametrize("name", ["in a header", "in the body"])
def test_drips_over_tls(name, tls, connect):
    began = time()
    with ScriptedServer(DRIPS[name], tls=tls) as server:
        assert type(error_of_create(connect(server.url, request_timeout=0.3))) is errors.KieSubmitUnknownError
        assert time() - began < 2
    assert len(server.requests) == 1


def test_a_proxy_that_drips(connect, pauses, monkeypatch):
    began = time()
    with ScriptedServer(DRIPS["in a header"]) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        assert_it_never_left(error_of_create(connect("https://api.example", request_timeout=0.1)), pauses)
        assert time() - began < 5
    assert {request.method for request in proxy.requests} == {"CONNECT"}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(status, connect):
    with (
        ScriptedServer(CREATED) as elsewhere,
        ScriptedServer(reply(b"", status, Location=f"{elsewhere.url}/api/v1/jobs/createTask")) as server,
    ):
        assert type(error_of_create(connect(server.url))) is errors.KieSubmitUnknownError
    assert (len(server.requests), elsewhere.connections) == (1, 0)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # requests leaves this connection to the collector
def test_a_redirect_that_is_not_even_text(connect):
    with ScriptedServer(raw(b"HTTP/1.1 307 T\r\nLocation: http://\xff/\r\nContent-Length: 0\r\n\r\n")) as server:
        assert type(error_of_create(connect(server.url))) is errors.KieSubmitUnknownError
    assert len(server.requests) == 1
    gc.collect()


def test_half_a_request_counts_as_sent(connect, pauses):
    def read_a_little(exchange):
        exchange.sock.recv(10)
        exchange.reset()

    with ScriptedServer(on_accept=read_a_little) as server, pytest.raises(errors.KieSubmitUnknownError):
        connect(server.url).create_task(MODEL, {"prompt": "x" * 10_000_000})
    assert (server.connections, pauses) == (1, [])


def test_the_doubt_is_explained(connect):
    with ScriptedServer(reset) as server:
        error = error_of_create(connect(server.url))
    assert_tells(
        error,
        errors.KieSubmitUnknownError,
        f"POST {server.url}/api/v1/jobs/createTask",
        "ConnectionResetError",
        errors.KieSubmitUnknownError.advice,
    )


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("code", REFUSALS)
def test_a_refusal_is_final(code, status, connect, pauses):
    with ScriptedServer(envelope(code=code, msg="no", status=status), CREATED) as server:
        error = error_of_create(connect(server.url))
    assert type(error) is REFUSALS[code]
    assert (error.code, error.message, error.http_status) == (code, "no", status)
    assert (len(server.requests), pauses) == (1, [])


@pytest.mark.parametrize("body", [b"nope", b"", HTML, {"error": "unknown route"}])
@pytest.mark.parametrize("status", [401, 404, 405, 407, 411, 413, 414, 415, 421, 431])
def test_what_a_proxy_has_not_passed_on_is_refused(status, body, connect, pauses):
    with ScriptedServer(reply(body, status), CREATED) as server:
        error = error_of_create(connect(server.url))
    assert type(error) is (errors.KieAuthError if status == 401 else errors.KieValidationError)
    assert (error.code, error.http_status) == (None, status)
    assert (len(server.requests), pauses) == (1, [])


@pytest.mark.parametrize(
    ("text", "error_class"),
    [
        ("aspect_ratio is required", errors.KieValidationError),
        (
            "Credits insufficient : Your current balance isn't enough to run this request. Please top up to continue.",
            errors.KieInsufficientCreditsError,
        ),
    ],
)
def test_code_500_with_a_reason_is_a_refusal(text, error_class, connect):
    with ScriptedServer(envelope(code=500, msg=text)) as server:
        assert type(error_of_create(connect(server.url))) is error_class
    assert len(server.requests) == 1


# ---------------------------------------------------------------- refused for the moment: sent again


@pytest.mark.parametrize("status", [200, 429, 503])
@pytest.mark.parametrize("code", [429, 455])
def test_busy_is_asked_again(code, status, connect, pauses):
    busy = envelope(code=code, msg="Your call frequency is too high. Please try again later.", status=status)
    with ScriptedServer(busy, busy, CREATED) as server:
        assert connect(server.url).create_task(MODEL, INPUT) == TASK
    assert [request.connection for request in server.requests] == [1, 2, 3]
    assert len({request.body for request in server.requests}) == 1
    assert [round(2 * pause) for pause in pauses] == [1, 2]


@pytest.mark.parametrize(("code", "error_class"), [(429, errors.KieRateLimitError), (455, errors.KieMaintenanceError)])
def test_busy_for_too_long(code, error_class, connect, pauses):
    with ScriptedServer(envelope(code=code, msg="busy")) as server:
        error = error_of_create(connect(server.url))
    assert type(error) is error_class
    assert len(server.requests) == 6
    assert 12 * 0.9 <= sum(pauses) <= 12 * 1.1


def test_retry_after_is_honoured(connect, pauses):
    with ScriptedServer(envelope(code=429, msg="busy", Retry_After="6"), CREATED) as server:
        assert connect(server.url).create_task(MODEL, INPUT) == TASK
    assert 6 <= pauses[0] <= 6.6
    assert len(server.requests) == 2


def test_retry_after_as_a_date(connect, pauses):
    with ScriptedServer(envelope(code=429, Retry_After=formatdate(time() + 6, usegmt=True)), CREATED) as server:
        assert connect(server.url).create_task(MODEL, INPUT) == TASK
    assert 4.9 <= pauses[0] <= 6.6


@pytest.mark.parametrize("seconds", ["13", "3600"])
def test_a_long_retry_after_is_left_to_airflow(seconds, connect, pauses):
    with ScriptedServer(envelope(code=429, msg="busy", Retry_After=seconds), CREATED) as server:
        error = error_of_create(connect(server.url))
    assert type(error) is errors.KieRateLimitError
    assert error.retry_after == min(float(seconds), 600.0)
    assert (len(server.requests), pauses) == (1, [])


def test_patience_is_spent_once(connect, pauses):
    with ScriptedServer(envelope(code=429, msg="busy", Retry_After="7")) as server:
        assert type(error_of_create(connect(server.url))) is errors.KieRateLimitError
    assert (len(server.requests), len(pauses)) == (2, 1)


def test_a_doubt_after_a_refusal_ends_it(connect):
    with ScriptedServer(envelope(code=429, msg="busy"), reset, CREATED) as server:
        assert type(error_of_create(connect(server.url))) is errors.KieSubmitUnknownError
    assert len(server.requests) == 2


# ---------------------------------------------------------------- it never left: sent again


def assert_it_never_left(error, pauses):
    assert type(error) is errors.KieTransportError
    assert error.may_have_arrived is False
    assert error.is_transient
    assert "the request never left this machine" in error.message
    assert [round(2 * pause) for pause in pauses[:3]] == [1, 2, 4]
    assert 12 * 0.9 <= sum(pauses) <= 12 * 1.1


@pytest.mark.parametrize("host", ["no-such-host.invalid", f"{'a' * 80}.invalid"])
def test_unknown_and_impossible_hosts(host, connect, pauses):
    assert_it_never_left(error_of_create(connect(f"http://{host}")), pauses)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_refused_port(scheme, connect, pauses):
    with refusing_port() as port:
        error = error_of_create(connect(f"{scheme}://127.0.0.1:{port}"))
    assert_it_never_left(error, pauses)
    assert "Connection refused" in error.message


def test_tls_to_a_plain_port(connect, pauses):
    with ScriptedServer(CREATED) as server:
        error = error_of_create(connect(f"https://{server.host}"))
    assert_it_never_left(error, pauses)
    assert (server.requests, server.connections) == ([], 6)


def test_a_certificate_nobody_trusts(certificate, connect, pauses):
    with ScriptedServer(CREATED, tls=certificate[0]) as server:
        error = error_of_create(connect(server.url))
    assert_it_never_left(error, pauses)
    assert "CERTIFICATE_VERIFY_FAILED" in error.message
    assert server.requests == []


@pytest.mark.parametrize("step", [close, raw(b"HTTP/1.1 400 Bad Request\r\n\r\n")], ids=["close", "http"])
def test_a_tls_handshake_that_breaks_off(step, connect, pauses):
    with ScriptedServer(on_accept=step) as server:
        assert_it_never_left(error_of_create(connect(f"https://{server.host}")), pauses)


@pytest.mark.filterwarnings(
    "ignore:unclosed:ResourceWarning"
)  # Python's ssl module leaves this socket to the collector
def test_a_tls_handshake_that_is_reset(connect, pauses):
    with ScriptedServer(on_accept=reset) as server:
        assert_it_never_left(error_of_create(connect(f"https://{server.host}")), pauses)
    gc.collect()


def test_a_tls_handshake_that_hangs(connect, pauses, monkeypatch):
    monkeypatch.setattr(transport, "CONNECT_TIMEOUT", 0.05)
    with ScriptedServer(on_accept=hang) as server:
        assert_it_never_left(error_of_create(connect(f"https://{server.host}")), pauses)


@pytest.mark.parametrize(
    "step",
    [reply(HTML, 403), reply(b"", 407, Proxy_Authenticate="Basic"), reply(HTML, 502), close, reset, raw(b"\x00\x01")],
    ids=["403", "407", "502", "close", "reset", "garbage"],
)
def test_a_proxy_that_does_not_connect(step, connect, pauses, monkeypatch):
    with ScriptedServer(step) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        assert_it_never_left(error_of_create(connect("https://api.example")), pauses)
    assert {request.method for request in proxy.requests} == {"CONNECT"}
    assert KEY.encode() not in b"".join(request.raw for request in proxy.requests)


def test_a_proxy_that_is_not_there(connect, pauses, monkeypatch):
    with refusing_port() as port:
        for scheme in ("http", "https"):
            monkeypatch.setenv(f"{scheme}_proxy", f"http://127.0.0.1:{port}")
            assert_it_never_left(error_of_create(connect(f"{scheme}://api.example")), pauses)
            pauses.clear()


def test_a_socks_proxy_keeps_its_own_way_of_connecting():
    class SocksPool(HTTPConnectionPool):
        """Stands for urllib3's, which needs another package."""

    manager = PoolManager()
    manager.pool_classes_by_scheme = {"http": SocksPool}
    KieAdapter()._watch(manager, is_direct=False)
    assert issubclass(manager.pool_classes_by_scheme["http"], SocksPool)


def test_a_tunnel_to_a_certificate_nobody_trusts(certificate, connect, pauses, monkeypatch):
    with ScriptedServer(CREATED, tls=certificate[0]) as server, ScriptedServer(tunnel) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        assert_it_never_left(error_of_create(connect(server.url)), pauses)
    assert server.requests == []


def test_it_is_sent_when_the_way_is_free_again(tls, connect, pauses, monkeypatch):
    with ScriptedServer(CREATED, tls=tls) as server, ScriptedServer(reply(HTML, 503), reset, tunnel) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        assert connect(server.url).create_task(MODEL, INPUT) == TASK
    assert (len(proxy.requests), len(server.requests)) == (3, 1)


# ---------------------------------------------------------------- TLS and proxies that break after it left


def garbage_in_tls(exchange: Exchange) -> None:
    exchange.send_beneath_tls(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
    exchange.close()


def half_an_answer_then_garbage(exchange: Exchange) -> None:
    exchange.send(OK + b'Content-Length: 80\r\n\r\n{"code":')
    garbage_in_tls(exchange)


BREAKS = {
    "reset": reset,
    "closed": close,
    "garbage": garbage_in_tls,
    "half an answer, then garbage": half_an_answer_then_garbage,
    "no answer": hang,
}


@pytest.mark.parametrize("through_a_proxy", [False, True])
@pytest.mark.parametrize("name", BREAKS)
def test_tls_that_breaks_after_the_request(name, through_a_proxy, tls, connect, pauses, monkeypatch):
    with ScriptedServer(BREAKS[name], CREATED, tls=tls) as server, ScriptedServer(tunnel) as proxy:
        if through_a_proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        error = error_of_create(connect(server.url, request_timeout=0.1 if name == "no answer" else 5.0))
    assert type(error) is errors.KieSubmitUnknownError
    assert (len(server.requests), len(proxy.requests), pauses) == (1, int(through_a_proxy), [])


def test_created_over_tls(tls, connect):
    with ScriptedServer(CREATED, tls=tls) as server:
        client = connect(server.url)
        assert client.create_task(MODEL, INPUT) == TASK
        assert client.create_task(MODEL, INPUT) == TASK
    assert [request.connection for request in server.requests] == [1, 2]


@pytest.mark.parametrize(
    "step", [reset, close, reply(HTML, 502), reply(HTML, 503)], ids=["reset", "close", "502", "503"]
)
def test_a_plain_proxy_that_takes_the_request_and_dies(step, connect, pauses, monkeypatch):
    with ScriptedServer(step, CREATED) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        error = error_of_create(connect("http://api.example"))
    assert type(error) is errors.KieSubmitUnknownError
    assert (len(proxy.requests), pauses) == (1, [])
    assert proxy.requests[0].target == "http://api.example/api/v1/jobs/createTask"


def test_created_through_a_plain_proxy(connect, monkeypatch):
    with ScriptedServer(CREATED) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        assert connect("http://api.example").create_task(MODEL, INPUT) == TASK
    assert proxy.requests[0].headers["authorization"] == f"Bearer {KEY}"


def test_the_proxy_is_passed_by_when_the_environment_says_so(connect, monkeypatch):
    with ScriptedServer(CREATED) as server, ScriptedServer(reply(HTML, 502)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert connect(server.url).create_task(MODEL, INPUT) == TASK
    assert proxy.connections == 0


# ---------------------------------------------------------------- secrets


@pytest.mark.parametrize(
    "step",
    [
        echo,
        raw(f"Bearer {KEY}\r\n\r\n".encode()),
        raw(OK + f"Transfer-Encoding: chunked\r\n\r\nBearer {KEY}\r\n".encode()),
        raw(OK + f"Content-Length: 1, {KEY}\r\n\r\n{{}}".encode()),
        reply(f"bad header: Authorization: Bearer {KEY}", 400),
        reply({"error": f"bad header: Authorization: Bearer {KEY}"}, 500),
        envelope(code=401, msg=f"bad header: Authorization: Bearer {KEY}"),
        envelope(code=500, msg=f"bad header: Authorization: Bearer {KEY}"),
        envelope({"taskId": None, "seen": KEY}),
        reply(b"", 302, Location=f"http://x:{KEY}@[bad/"),
        reply(b"", 302, reason=f"Bearer {KEY}"),
        raw(OK + f"Bearer {KEY}\r\nContent-Length: 2\r\n\r\n{{}}".encode()),
        reply('{"code": 401, "msg": "Bearer ' + "".join(f"\\u{ord(each):04x}" for each in KEY) + '"}'),
        reply('{"code": 401, "msg": "Bearer ' + KEY.replace("0", "\\u0030") + '"}'),
    ],
)
def test_the_key_is_in_no_error_and_no_log(step, connect, caplog):
    with ScriptedServer(step) as server, caplog.at_level(logging.DEBUG):
        error_of_create(connect(server.url))
    assert KEY not in caplog.text
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
