"""What Airflow finds of the plugin, in every one of its processes."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from urllib.parse import urlsplit

import pytest
from airflow.providers.common.compat.sdk import TaskInstanceKey

from kie_provider.addresses import airflow_address, run_address
from kie_provider.compat import has_login_cookie
from kie_provider.links import KieImagesLink, KieRunImagesLink
from kie_provider.plugin import KiePlugin
from tests.support.versions import with_image_page


def test_airflow_finds_it():
    [found] = [each for each in entry_points(group="airflow.plugins") if each.name == "kie"]
    assert found.load() is KiePlugin


def test_loading_it_imports_nothing_heavy():
    """Workers, DAG processor and triggerer load plugins too."""
    script = (
        "import sys; from airflow.providers.common.compat.sdk import DAG, AirflowPlugin; before = set(sys.modules);"
        "from kie_provider.plugin import KiePlugin; plugin = KiePlugin(); plugin.external_views;"
        "print(*(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert {name for name in loaded if not name.startswith("kie_provider")} == set()
    assert len(loaded) <= 4


@pytest.mark.skipif(has_login_cookie(), reason="Airflow 3.1.1 and later know who looks at a page in a frame")
def test_before_airflow_311_nothing_leads_to_pages_that_would_be_refused():
    key = TaskInstanceKey(dag_id="d", task_id="t", run_id="r", try_number=1, map_index=-1)
    assert KiePlugin.external_views == []
    assert [link.get_link(None, ti_key=key) for link in (KieImagesLink(), KieRunImagesLink())] == ["", ""]


@with_image_page
def test_addresses_are_relative():
    """Airflow may be served below a path."""
    for view in KiePlugin.external_views:
        assert not urlsplit(view["href"]).netloc
        assert not view["href"].startswith("/")
    assert {view["destination"] for view in KiePlugin.external_views} == {"nav", "dag_run"}


def test_addresses_are_quoted():
    assert run_address("a b", "manual__2026-11-26T00:00:00+00:00", "x&y", 3) == (
        "kie/images/dags/a%20b/run?run_id=manual__2026-11-26T00%3A00%3A00%2B00%3A00&task_id=x%26y&map_index=3"
    )
    assert airflow_address("d", "r+1/2", "t") == "dags/d/runs/r%2B1%2F2/tasks/t"
    assert airflow_address("d", "r", "t", 0) == "dags/d/runs/r/tasks/t/mapped/0"
