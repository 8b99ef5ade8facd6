import socket

import pytest

from kie_provider.client.endpoint import Endpoint, is_private_address, without_userinfo
from kie_provider.client.errors import KieAuthError, KieError

KEY = "0123456789abcdef0123456789abcdef"


def test_defaults():
    endpoint = Endpoint(KEY)
    assert endpoint.url("/api/v1/chat/credit") == "https://api.kie.ai/api/v1/chat/credit"
    assert endpoint.url("/api/file-stream-upload", upload=True) == (
        "https://kieai.redpandaai.co/api/file-stream-upload"
    )
    assert endpoint.request_timeout == 60.0


def test_the_key_is_not_in_the_repr():
    assert KEY not in repr(Endpoint(KEY))
    assert KEY not in str(Endpoint(KEY))


@pytest.mark.parametrize("key", ["", None])
def test_no_key(key):
    with pytest.raises(KieAuthError, match="no API key"):
        Endpoint(key)


@pytest.mark.parametrize("key", [f"{KEY}\n", f" {KEY}", f"{KEY[:9]}\r\nX-Injected: 1", f"{KEY[:9]}é", f"{KEY}\x00"])
def test_a_key_that_cannot_be_one_is_refused_and_not_shown(key):
    with pytest.raises(KieAuthError, match="white space or other characters") as caught:
        Endpoint(key)
    assert KEY[:9] not in str(caught.value)
    assert KEY[:9] not in repr(caught.value)


@pytest.mark.parametrize(
    "host",
    [
        "https://api.kie.ai",
        "https://api.kie.ai/",
        "http://127.0.0.1:8080",
        "http://[::1]:8080",
        "HTTPS://api.kie.ai",
        "https://gateway.example/kie",
    ],
)
def test_good_hosts(host):
    assert Endpoint(KEY, host=host).url("/x") == host.rstrip("/") + "/x"


@pytest.mark.parametrize("name", ["host", "upload_host"])
@pytest.mark.parametrize(
    "host",
    [
        " ",
        "api.kie.ai",
        "ftp://api.kie.ai",
        "https://",
        "https:///path",
        "//api.kie.ai",
        "http://[::1",
        "https://user@api.kie.ai",
        "https://api.kie.ai?x=1",
        "https://api.kie.ai#x",
        "https://api.kie.ai /",
        "https://api.kie.ai\n",
        "https://127.0.0.1\\.kie.ai",
        "https://api.kie.ai:port",
        "https://api.kie.ai:65536",
        "https://api.kie.ai:0",
        "https://api.kie.ai:",
        "https://https:host",
        "https://api..kie.ai",
        "https://api.kie.ai,proxy.example",
        "https://api.kie.ai;proxy",
        "https://%61pi.kie.ai",
        "https://${KIE_HOST}",
        "https://<host>",
        "https://api.kie.ai/\ud800",
        None,
        17,
    ],
)
def test_bad_hosts_are_named(name, host):
    with pytest.raises(KieError, match=f"^.*{name}: must be scheme, host and port"):
        Endpoint(KEY, **{name: host})


@pytest.mark.parametrize("name", ["host", "upload_host"])
@pytest.mark.parametrize(
    "url",
    [
        "https://me:{}@api.kie.ai",
        "https://{}@api.kie.ai",
        "me:{}@api.kie.ai",
        "//me:{}@api.kie.ai",
        "HTTPS://me:{}@api.kie.ai",
    ],
)
@pytest.mark.parametrize(
    "password", ["hunter2", "hun/ter2", "hun@ter2", "hun ter2", "hun?ter2", "hun#ter2", "hun\nter2"]
)
def test_a_password_in_the_host_is_not_shown(name, url, password):
    with pytest.raises(KieError) as caught:
        Endpoint(KEY, **{name: url.format(password)})
    assert "hun" not in str(caught.value)
    assert "ter2" not in str(caught.value)
    assert "***@api.kie.ai" in str(caught.value)


@pytest.mark.parametrize(
    ("host", "upload_host"),
    [
        ("https://api.kie.ai", "https://kieai.redpandaai.co"),
        ("https://api.kie.ai/", "https://kieai.redpandaai.co"),
        ("http://API.kie.ai:8443", "https://kieai.redpandaai.co"),
        ("https://kie.ai", "https://kieai.redpandaai.co"),
        ("https://gateway.example/kie", "https://gateway.example/kie"),
        ("https://api.kie.ai.example", "https://api.kie.ai.example"),
        ("https://notkie.ai", "https://notkie.ai"),
        ("http://127.0.0.1:8787", "http://127.0.0.1:8787"),
        ("http://[::1]:8787", "http://[::1]:8787"),
    ],
)
def test_uploads_go_to_kie_only_where_the_host_is_kies(host, upload_host):
    assert Endpoint(KEY, host=host).upload_host == upload_host
    assert Endpoint(KEY, host=host, upload_host="https://up.example").upload_host == "https://up.example"


@pytest.mark.parametrize(
    ("host", "is_private"),
    [
        ("http://127.0.0.1:1", True),
        ("http://localhost:1", True),
        ("http://emulator.example", True),
        ("http://gateway.example", False),
        ("http://unknown.example", False),
        (f"http://{'a' * 80}.example", False),
    ],
)
def test_a_host_at_a_private_address(host, is_private, monkeypatch):
    def getaddrinfo(name, *args, **kwargs):
        known = {"emulator.example": "172.18.0.2", "gateway.example": "8.8.8.8"}
        if name not in known:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (known[name], 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert Endpoint(KEY, host=host).is_private is is_private


@pytest.mark.parametrize(
    ("address", "is_private"),
    [
        ("127.0.0.1", True),
        ("10.0.0.1", True),
        ("169.254.169.254", True),
        ("8.8.8.8", False),
        ("2606:4700::1", False),
        ("::1", True),
        ("::", True),
        ("fe80::1%eth0", True),
        ("::ffff:10.0.0.1", True),
        ("::ffff:8.8.8.8", False),
        ("::7f00:1", True),
        ("64:ff9b::127.0.0.1", True),
        ("64:ff9b::8.8.8.8", False),
        ("2002:7f00:1::", True),
        ("2002:808:808::", False),
    ],
)
def test_what_only_this_network_knows(address, is_private):
    assert is_private_address(address) is is_private


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ValueError: http://me:pw@host/x", "ValueError: http://***@host/x"),
        ("Failed to parse: me:p/w@[bad", "Failed to parse: ***@[bad"),
        ("('http://me:p@w@host')", "***@host')"),
        ("no name at all", "no name at all"),
    ],
)
def test_users_and_passwords_of_urls_are_hidden(text, shown):
    assert without_userinfo(text) == shown


@pytest.mark.parametrize(("given", "seconds"), [(5, 5.0), (0.1, 0.1), ("30", 30.0), (" 1.5 ", 1.5)])
def test_good_timeouts(given, seconds):
    assert Endpoint(KEY, request_timeout=given).request_timeout == seconds


@pytest.mark.parametrize("given", [0, -1, "0", "soon", "", None, [], float("nan"), float("inf"), "inf"])
def test_bad_timeouts(given):
    with pytest.raises(KieError, match="request_timeout: must be a number of seconds above 0"):
        Endpoint(KEY, request_timeout=given)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("https://airflow.example", "https://airflow.example"),
        ("https://airflow.example/", "https://airflow.example"),
        ("https://airflow.example:8443/deployment/", "https://airflow.example:8443/deployment"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
    ],
)
def test_where_callbacks_go(given, url):
    assert Endpoint(KEY, callback_base_url=given).callback_base_url == url


@pytest.mark.parametrize(
    "given",
    [
        "airflow.example",
        "ftp://airflow.example",
        "https://",
        "https://airflow.example?key=hunter2",
        "https://airflow.example#hunter2",
        "https://me:hunter2@airflow.example",
        "https://airflow.example/ ",
        "https://airflow.example/kie/callbacks",
        "https://airflow.example/x/kie/callbacks/kie_default",
        "https://<host>",
        None,
        17,
    ],
)
def test_where_callbacks_cannot_go(given):
    with pytest.raises(KieError, match="callback_base_url: must be where Kie reaches Airflow's API server") as caught:
        Endpoint(KEY, callback_base_url=given)
    assert "hunter2" not in str(caught.value)


def test_the_webhook_secret_is_not_in_the_repr():
    assert "hunter2" not in repr(Endpoint(KEY, webhook_secret="hunter2"))


@pytest.mark.parametrize("given", ["hunter2 ", "hun ter2", "hunter2é", "hunter2\n", None, 17, ["hunter2"]])
def test_a_webhook_secret_that_cannot_be_one_is_refused_and_not_shown(given):
    with pytest.raises(KieError, match="webhook_secret: must be the webhook HMAC key") as caught:
        Endpoint(KEY, webhook_secret=given)
    assert "hun" not in str(caught.value)
