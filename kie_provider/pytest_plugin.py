"""Fixtures for people who test their own DAGs: a Kie.ai on loopback and a connection to it.

pytest loads this module at every start (entry point ``pytest11``), so it imports nothing but pytest and the standard
library; the emulator comes in with the first test that asks for it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kie_provider.emulator import KieEmulator


@pytest.fixture(scope="session")
def kie_emulator_server() -> Iterator[KieEmulator]:
    """One emulator for the whole session: tasks take 0.05 s. Override it to choose other settings."""
    from kie_provider.emulator import KieEmulator

    with KieEmulator(generating_seconds=0.05) as kie:
        yield kie


@pytest.fixture
def kie_emulator(kie_emulator_server: KieEmulator) -> KieEmulator:
    """Return the session's emulator with nothing in it: no tasks, faults or recorded requests, all credits back."""
    from kie_provider.client.rate_limit import forget_windows

    kie_emulator_server.reset()
    forget_windows()
    return kie_emulator_server


@pytest.fixture
def kie_connection(kie_emulator: KieEmulator, monkeypatch: pytest.MonkeyPatch) -> str:
    """Point the Airflow connection ``kie_default`` at the emulator and return its id."""
    monkeypatch.setenv("AIRFLOW_CONN_KIE_DEFAULT", json.dumps(kie_emulator.connection))
    return "kie_default"
