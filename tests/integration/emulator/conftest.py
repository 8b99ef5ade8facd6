"""Emulators: one of the session, and one whose clock the test turns."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kie_provider.emulator import KieEmulator
from tests.support.emulator_client import Client, Clock


@pytest.fixture
def client(kie_emulator: KieEmulator) -> Client:
    """Client of the emulator that the pytest plugin provides."""
    return Client(kie_emulator)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timed(clock: Clock) -> Iterator[Client]:
    """Client of an emulator whose clock the test turns: 2 s waiting, 3 s queuing, 10 s generating; 20 credits."""
    with KieEmulator(clock=clock, waiting_seconds=2, queuing_seconds=3, generating_seconds=10, credits=20) as kie:
        yield Client(kie)
