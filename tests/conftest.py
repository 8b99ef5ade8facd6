"""Give every test run an Airflow of its own, before anything imports Airflow."""

import os
import tempfile
from pathlib import Path

import pytest

_AIRFLOW_HOME = tempfile.TemporaryDirectory(prefix="kie-tests-")
Path(_AIRFLOW_HOME.name).chmod(0o711)  # PostgreSQL does not run as root, and has to get through

for name in [name for name in os.environ if name.startswith("AIRFLOW") or name.lower().endswith("_proxy")]:
    del os.environ[name]
os.environ |= {
    "AIRFLOW_HOME": _AIRFLOW_HOME.name,
    "TMPDIR": _AIRFLOW_HOME.name,  # notes about uploads and whatever a killed process leaves go with it
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__DAGS_FOLDER": os.devnull,
    "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
}
tempfile.tempdir = None


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch):
    """Images of the emulator take milliseconds: look as often, and do not wait for a scheduler that is not there."""
    monkeypatch.setattr("kie_provider.parameters.SHORTEST_POLL_INTERVAL", 0.01)
    monkeypatch.setattr("kie_provider.triggers.kie.FIRST_POLL_AFTER", 0.0)


def pytest_unconfigure() -> None:
    _AIRFLOW_HOME.cleanup()
