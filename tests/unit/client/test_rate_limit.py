from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest

from kie_provider.client import rate_limit
from kie_provider.client.endpoint import Endpoint
from kie_provider.client.errors import KieConnectionError
from kie_provider.client.rate_limit import MARGIN, LocalWindow, SharedWindow, Slot, forget_windows, window_of


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

        def time(self):
            return self.now

        def sleep(self, seconds):
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(rate_limit, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def no_windows():
    forget_windows()
    yield
    forget_windows()


def seconds(taken):
    """How long to wait for what was not taken."""
    return 0 if isinstance(taken, Slot) else pytest.approx(taken)


def test_so_many_at_once_and_the_next_when_the_first_is_ten_seconds_old(clock):
    window = LocalWindow(3)
    waits = []
    for _ in range(5):
        waits.append(seconds(window.take()))
        clock.now += 1
    assert waits == [0, 0, 0, 7 + MARGIN, 6 + MARGIN]
    clock.now = 1010 - MARGIN
    assert window.take() == pytest.approx(2 * MARGIN)
    clock.now = 1010 + MARGIN
    assert isinstance(window.take(), Slot)
    assert window.take() == pytest.approx(1)


def test_kie_counts_from_when_the_request_has_left(clock):
    window = LocalWindow(1)
    slot = window.take()
    clock.now += 3
    slot.leave()  # the machine is slow

    assert window.take() == pytest.approx(10 + MARGIN)
    clock.now += 10 + MARGIN
    assert isinstance(window.take(), Slot)


def test_a_slot_is_taken_before_it_is_free_so_that_its_request_stands_ready_then(clock):
    window = LocalWindow(10)
    for _ in range(10):
        slot = window.take()
        clock.now += 0.3  # to write the intent, and to connect
        slot.leave()
    assert window.take() == pytest.approx(10 + MARGIN - 0.3 - 9 * 0.3)
    clock.now = 1010 + MARGIN
    slot = window.take()
    clock.now += 0.1
    slot.leave()
    assert clock.now == pytest.approx(1010.3 + MARGIN)  # ten seconds after the first one has left, and the margin


def test_whatever_the_machine_does_kie_sees_no_more_than_the_limit(clock):
    random = Random(7)
    window, left = LocalWindow(20), []
    for _ in range(400):
        while not isinstance(slot := window.take(), Slot):
            clock.now += slot
        clock.now += random.choice((0.0, 0.01, 0.2, 0.2, 3.0)) * random.random()
        slot.leave()
        left.append(clock.now)
    assert min(later - first for first, later in zip(left, left[20:], strict=False)) > 10 + MARGIN - 1e-6


def test_slots_of_others_are_taken_later_where_this_machine_is_slow(clock, monkeypatch):
    monkeypatch.setattr(rate_limit.random, "uniform", lambda low, high: high)
    window = SharedWindow(10, "account", "memory://")
    assert window._margin == pytest.approx(2 * MARGIN + 0.01)
    for delay in (0.1, 0.1, 0.3, 0.3, 0.3, 0.3, 0.3, 9.0):  # an outlier does not count
        window._local.pace.took(delay)
    assert window._margin == pytest.approx(2 * MARGIN + 0.2 + 0.01)
    for _ in range(10):
        window._local.take()
    assert window._margin == 0.01  # all slots are this process's own


def test_each_refusal_adds_to_the_margin(clock):
    window = LocalWindow(1)
    slot = window.take()
    slot.leave()
    assert window.take() == pytest.approx(10 + MARGIN)
    slot.refused()
    assert window.take() == pytest.approx(10 + 2 * MARGIN)
    for _ in range(100):
        slot.refused()
    assert window.take() == pytest.approx(10 + 10 * MARGIN)


def test_a_slot_that_was_refused_is_good_for_one_more_attempt(clock):
    window = LocalWindow(1)
    slot = window.take()
    slot.leave()
    assert slot.refused() is slot
    clock.now += 0.5
    slot.leave()
    assert window.take() == pytest.approx(10 + 2 * MARGIN)  # Kie counts from when it took the second attempt
    assert slot.refused() is None


def test_one_that_is_sent_again_does_not_hold_up_the_others(clock):
    window = LocalWindow(2)
    first, second = window.take(), window.take()
    first.leave()
    second.leave()
    first.refused()
    clock.now += 4
    first.leave()
    assert window.take() == pytest.approx(6 + 2 * MARGIN)


def test_threads_share_it():
    window = LocalWindow(20)
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda _: window.take(), range(200)))
    assert sum(isinstance(each, Slot) for each in taken) == 20


def test_connections_with_the_same_key_share_a_window():
    one = Endpoint(api_key="a-key-of-kie")
    assert window_of(one) is window_of(Endpoint(api_key="a-key-of-kie", request_timeout=5))
    assert window_of(one) is not window_of(Endpoint(api_key="another-key"))
    assert window_of(one) is not window_of(Endpoint(api_key="a-key-of-kie", host="http://127.0.0.1:1"))
    assert window_of(one) is not window_of(one, "memory://")
    assert "a-key-of-kie" not in str(rate_limit._windows)


def test_a_storage_in_memory_counts_the_same():
    window = window_of(Endpoint(api_key="k", submit_limit=2), "memory://")
    assert isinstance(window, SharedWindow)
    assert [isinstance(window.take(), Slot) for _ in range(3)] == [True, True, False]
    assert 9 < window.take() <= 10 + MARGIN


def test_a_slot_that_gets_free_while_the_storage_is_asked_is_not_waited_for():
    window = SharedWindow(2, "account", "memory://")
    limiter = window._limiter
    limiter.hit(window._item, "account")
    limiter.hit(window._item, "account")
    hit = limiter.hit

    def free_meanwhile(*args):
        taken = hit(*args)
        limiter.clear(*args)
        hit(*args)
        return taken

    limiter.hit = free_meanwhile
    assert window.take() < 1


def test_a_slot_that_the_storage_has_granted_is_not_lost(clock):
    """A request that leaves meanwhile can show that slots are taken too early."""
    window = SharedWindow(6, "account", "memory://")
    for _ in range(6):
        slot = window.take()
        clock.now += 0.4  # the machine is slow
        slot.leave()
    clock.now = 1010 + MARGIN
    hit = window._limiter.hit

    def faster_meanwhile(*args):
        granted = hit(*args)
        for _ in range(40):
            window._local.pace.took(0.0)
        return granted

    window._limiter.hit = faster_meanwhile
    window._limiter.storage.reset()  # it counts with a clock of its own
    slot = window.take()
    assert isinstance(slot, Slot)
    slot.leave()
    assert clock.now == pytest.approx(1010.4 + MARGIN)  # held back all the same


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
    assert [seconds(window.take()) for _ in range(3)] == [0, 0, 10 + MARGIN]
    assert caplog.text.count("does not answer") == 1
    clock.now += 31
    window.take()
    assert caplog.text.count("does not answer") == 2
