"""The alarm of execution_timeout, held back."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from kie_provider.execution_timeout import held
from tests.support.waits import wait_until


@pytest.fixture
def rings():
    """The times at which the alarm has gone off."""
    heard = []
    previous = signal.signal(signal.SIGALRM, lambda *_: heard.append(time.monotonic()))
    yield heard
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


def test_it_waits_for_the_end_of_the_block(rings):
    with held() as alarm:
        assert not alarm.has_rung
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        wait_until(lambda: alarm.has_rung)
        end_of_block = time.monotonic()
        assert not rings

    assert len(rings) == 1
    assert rings[0] >= end_of_block


def test_it_waits_for_the_end_of_the_outermost_block(rings):
    with held() as outer:
        with held() as inner:
            signal.raise_signal(signal.SIGALRM)
        assert (inner.has_rung, outer.has_rung, rings) == (True, True, [])

    assert len(rings) == 1


def test_it_does_not_hide_how_the_block_failed(rings):
    def fails_after_an_alarm():
        signal.raise_signal(signal.SIGALRM)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), held():
        fails_after_an_alarm()

    assert not rings


def test_outside_the_main_thread_no_alarm_can_cut_in():
    def in_a_thread():
        with held() as alarm:
            return alarm.has_rung

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(in_a_thread).result() is False
