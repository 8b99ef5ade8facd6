from __future__ import annotations

import functools
import json

import pytest


@pytest.fixture(scope="session", autouse=True)
def _airflow_database():
    from tests.support.airflow_inprocess import initialise_database

    initialise_database()


@pytest.fixture(autouse=True)
def _connected(kie_connection):
    """Every test has an emulator of its own behind ``kie_default``."""


@pytest.fixture
def create(kie_emulator):
    """Return a function that sets faults, creates a Kie task, and returns its id."""
    from tests.support.kie import create_task

    return functools.partial(create_task, kie_emulator)


@pytest.fixture
def create_ended(create):
    """Return a function that does the same and waits until the task has ended; a stuck one never does."""
    from tests.support.kie import STUCK, wait_for_end

    def create_ended(*faults, **fields):
        kie_task_id = create(*faults, **fields)
        if STUCK not in faults:
            wait_for_end(kie_task_id)
        return kie_task_id

    return create_ended


@pytest.fixture
def kie(monkeypatch, request):
    """An emulator without a limit on new tasks behind ``kie_default``; a parameter has other settings of it."""
    from kie_provider.client.rate_limit import forget_windows
    from kie_provider.emulator import KieEmulator

    forget_windows()
    settings = {"generating_seconds": 0.05, "create_limit": 10_000, **getattr(request, "param", {})}
    with KieEmulator(**settings) as kie:
        extra = {**kie.connection["extra"], "submit_limit": settings["create_limit"]}
        monkeypatch.setenv("AIRFLOW_CONN_KIE_DEFAULT", json.dumps({**kie.connection, "extra": extra}))
        yield kie


@pytest.fixture
def run_batch(kie, tmp_path):
    """Return a function that runs a batch with these prompts in a DAG of its own."""
    from kie_provider.operators.batch import Flux2BatchOperator
    from tests.support.airflow_inprocess import run_task

    def run_batch(prompts, *, retries=1, **fields):
        fields = {"target": str(tmp_path), "poll_interval": 0.1, "prompts": prompts, **fields}
        return run_task(functools.partial(Flux2BatchOperator, **fields), retries=retries)

    return run_batch


@pytest.fixture
def log(capsys, caplog):
    """Return a function that returns what was logged since the last time."""
    return lambda: capsys.readouterr().out + caplog.text
