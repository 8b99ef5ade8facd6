from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _airflow_database():
    from tests.support.airflow_inprocess import initialise_database

    initialise_database()


@pytest.fixture(autouse=True)
def _connected(kie_connection):
    """Every test has an emulator of its own behind ``kie_default``."""
