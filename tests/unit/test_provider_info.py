"""What Airflow finds when it discovers the provider."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

from airflow.providers_manager import ProvidersManager

from kie_provider import __version__
from kie_provider.get_provider_info import CONN_FIELDS, UI_FIELD_BEHAVIOUR, get_provider_info
from kie_provider.hooks.kie import KieHook


def test_airflow_discovers_the_provider():
    manager = ProvidersManager()

    assert manager.providers["airflow-provider-kie"].version == __version__
    assert manager.hooks["kie"].hook_name == KieHook.hook_name == "Kie.ai"
    assert {"kie_provider.links.KieLogsLink", "kie_provider.links.KieResultLink"} <= set(
        manager.extra_links_class_names
    )


def test_every_class_and_module_named_exists():
    info = get_provider_info()
    modules = [
        m for kind in ("hooks", "operators", "sensors", "triggers") for i in info[kind] for m in i["python-modules"]
    ]
    classes = [*info["extra-links"], *(c["hook-class-name"] for c in info["connection-types"])]

    for module in modules:
        import_module(module)
    for path in classes:
        module, _, name = path.rpartition(".")
        assert hasattr(import_module(module), name)


def test_form_fields_are_those_the_hook_reads():
    assert set(CONN_FIELDS) == {"upload_host", "request_timeout"}
    assert KieHook.get_ui_field_behaviour() == {
        "hidden_fields": UI_FIELD_BEHAVIOUR["hidden-fields"],
        "relabeling": UI_FIELD_BEHAVIOUR["relabeling"],
        "placeholders": UI_FIELD_BEHAVIOUR["placeholders"],
    }


def test_importing_pulls_in_no_http_or_image_library():
    """Airflow itself may import requests (3.1 does): what counts is what our imports add."""
    modules = (
        "operators.kie, operators.flux2, sensors.kie, sensors.flux2, hooks.kie, links, contact_sheet, pytest_plugin"
    )
    imports = ", ".join(f"kie_provider.{name.strip()}" for name in modules.split(","))
    script = (
        "import sys, airflow.sdk; from airflow.sdk import BaseSensorOperator, DAG; before = set(sys.modules);"
        f"import {imports}; print(*({{'requests', 'aiohttp', 'PIL', 'urllib3'}} & (set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == ""


def test_the_client_never_imports_airflow():
    script = (
        "import sys; import kie_provider.client.client, kie_provider.client.polling, kie_provider.client.sent_bytes;"
        "assert not [m for m in sys.modules if m.split('.')[0] == 'airflow']"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
