"""One real Airflow and one emulated Kie.ai for all end-to-end tests."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kie_provider.emulator import KieEmulator
from tests.support.airflow_stack import AirflowStack
from tests.support.postgres import postgres_if_installed

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
GENERATING_SECONDS = 3600.0


class EmulatorClock:
    """The emulator's time: real time, until a test lets Kie finish what it is working on."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self._ahead

    def finish_all_tasks(self) -> None:
        """From now on every task that exists is done; later ones take their time again."""
        self._ahead += GENERATING_SECONDS + 1


@pytest.fixture(scope="session")
def kie_clock() -> EmulatorClock:
    return EmulatorClock()


@pytest.fixture(scope="session")
def kie_emulator_server(kie_clock: EmulatorClock) -> Iterator[KieEmulator]:
    """An emulator whose images are ready when the test says so, however slow the machine is."""
    with KieEmulator(generating_seconds=GENERATING_SECONDS, clock=kie_clock) as kie:
        yield kie


@pytest.fixture(scope="session")
def airflow_stack(kie_emulator_server: KieEmulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowStack]:
    """Airflow with the example DAGs and those of the end-to-end tests; kie_default leads to the emulator."""
    dags = tmp_path_factory.mktemp("dags")
    for source in (ROOT / "dags", Path(__file__).parent / "dags"):
        if source.is_dir():
            (dags / "_".join(source.relative_to(ROOT).parts)).symlink_to(source)
    before = signal.signal(signal.SIGTERM, _interrupt)  # else a SIGTERM would leave Airflow behind
    try:
        env = {
            "AIRFLOW_CONN_KIE_DEFAULT": json.dumps(kie_emulator_server.connection),
            "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "True",  # a DAG that is unpaused runs as it says
        }
        with postgres_if_installed() as database, AirflowStack(dags, env=env, database=database) as stack:
            yield stack
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt("SIGTERM")
