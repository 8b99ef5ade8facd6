"""What only some of the supported Airflow versions can do."""

from __future__ import annotations

import importlib.util

import pytest
from airflow import __version__

from kie_provider.compat import has_login_cookie

HAS_STATE_STORE = importlib.util.find_spec("airflow.models.task_state_store") is not None
durable = pytest.mark.skipif(not HAS_STATE_STORE, reason="nothing outlives a try before Airflow 3.3")
not_durable = pytest.mark.skipif(HAS_STATE_STORE, reason="the state store of Airflow 3.3 outlives a try")
with_image_page = pytest.mark.skipif(not has_login_cookie(), reason="before Airflow 3.1.1 a frame has no login")
finds_no_connection = pytest.mark.skipif(
    __version__ == "3.1.0", reason="outside of tasks, Airflow 3.1.0 fails where it does not find a connection"
)
