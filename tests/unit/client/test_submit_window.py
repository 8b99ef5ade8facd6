from concurrent.futures import ThreadPoolExecutor

import pytest

from kie_provider.client import submit_window
from kie_provider.client.endpoint import Endpoint
from kie_provider.client.errors import KieConnectionError
from kie_provider.client.submit_window import LocalWindow, SharedWindow, forget_windows, window_of


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

        def time(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(submit_window, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def no_windows():
    forget_windows()
    yield
    forget_windows()


def test_so_many_at_once_and_the_next_when_the_first_is_ten_seconds_old(clock):
    window = LocalWindow(3)
    waits = []
    for _ in range(5):
        waits.append(window.take())
        clock.now += 1
    assert waits == [0, 0, 0, 7, 6]
    clock.now = 1009.9
    assert window.take() == pytest.approx(0.1)
    clock.now = 1010.0
    assert window.take() == 0
    assert window.take() == 1


def test_threads_share_it():
    window = LocalWindow(20)
    with ThreadPoolExecutor(8) as pool:
        waits = list(pool.map(lambda _: window.take(), range(200)))
    assert waits.count(0) == 20


def test_connections_with_the_same_key_share_a_window():
    one = Endpoint(api_key="a-key-of-kie")
    assert window_of(one) is window_of(Endpoint(api_key="a-key-of-kie", request_timeout=5))
    assert window_of(one) is not window_of(Endpoint(api_key="another-key"))
    assert window_of(one) is not window_of(Endpoint(api_key="a-key-of-kie", host="http://127.0.0.1:1"))
    assert window_of(one) is not window_of(one, "memory://")
    assert "a-key-of-kie" not in str(submit_window._windows)


def test_a_storage_in_memory_counts_the_same():
    window = window_of(Endpoint(api_key="k", submit_limit=2), "memory://")
    assert isinstance(window, SharedWindow)
    assert [window.take() == 0 for _ in range(3)] == [True, True, False]
    assert 9 < window.take() <= 10


SECRETS = ["redis//:secret@host", "redis:/:secret@host", ":secret@host", "redis:secret@x://host", "//:secret@host://x"]


@pytest.mark.parametrize("uri", ["nonsense", "nosuch://x", "redis+nosuch://x", "redis://:secret@host:port/x", *SECRETS])
def test_a_storage_that_is_none(uri):
    with pytest.raises(KieConnectionError, match=r"\[kie\] rate_limit_storage: .*redis://host:6379/0") as caught:
        window_of(Endpoint(api_key="k"), uri).take()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("limit", [0, -1, "many", "1.5", None, True])
def test_a_limit_that_makes_no_sense(limit):
    with pytest.raises(KieConnectionError, match="submit_limit: must be a whole number"):
        Endpoint(api_key="k", submit_limit=limit)


def test_a_limit_from_a_form():
    assert Endpoint(api_key="k", submit_limit="50").submit_limit == 50


def test_while_the_storage_is_away_the_process_counts_alone(clock, caplog):
    window = SharedWindow(2, "account", "redis://127.0.0.1:1/0")
    assert [window.take() for _ in range(3)] == [0, 0, 10]
    assert caplog.text.count("does not answer") == 1
    clock.now += 31
    window.take()
    assert caplog.text.count("does not answer") == 2
