import pytest

from kie_provider.client.endpoint import Endpoint
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
        "",
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
        None,
        17,
    ],
)
def test_bad_hosts_are_named(name, host):
    with pytest.raises(KieError, match=f"^.*{name}: must be scheme, host and port"):
        Endpoint(KEY, **{name: host})


def test_a_password_in_the_host_is_not_shown():
    with pytest.raises(KieError) as caught:
        Endpoint(KEY, host="https://me:hunter2@api.kie.ai")
    assert "hunter2" not in str(caught.value)
    assert "https://***@api.kie.ai" in str(caught.value)


@pytest.mark.parametrize(("given", "seconds"), [(5, 5.0), (0.1, 0.1), ("30", 30.0), (" 1.5 ", 1.5)])
def test_good_timeouts(given, seconds):
    assert Endpoint(KEY, request_timeout=given).request_timeout == seconds


@pytest.mark.parametrize("given", [0, -1, "0", "soon", "", None, [], float("nan"), float("inf"), "inf"])
def test_bad_timeouts(given):
    with pytest.raises(KieError, match="request_timeout: must be a number of seconds above 0"):
        Endpoint(KEY, request_timeout=given)
