"""What Airflow finds when it discovers the provider."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from importlib import import_module

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, conf
from airflow.providers_manager import ProvidersManager
from airflow.sdk import task

import kie_provider
from kie_provider import __version__
from kie_provider.client.prices import LIST_USD_PER_CREDIT, PriceTable
from kie_provider.config import SECTION, price_table, shown_prices
from kie_provider.get_provider_info import CONFIG, CONN_FIELDS, UI_FIELD_BEHAVIOUR, get_provider_info
from kie_provider.hooks.kie import KieHook


def test_airflow_discovers_the_provider():
    manager = ProvidersManager()

    assert manager.providers["airflow-provider-kie"].version == __version__
    assert manager.hooks["kie"].hook_name == KieHook.hook_name == "Kie.ai"
    assert {"kie_provider.links.KieLogsLink", "kie_provider.links.KieResultLink"} <= set(
        manager.extra_links_class_names
    )


def modules_in(kind: str) -> list[str]:
    """Return the modules of one of our packages."""
    package = import_module(f"{kie_provider.__name__}.{kind}")
    return [f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]


@pytest.mark.parametrize("kind", ["operators", "sensors", "triggers"])
def test_every_module_is_named(kind):
    named = [module for entry in get_provider_info()[kind] for module in entry["python-modules"]]
    assert named == modules_in(kind)


def test_every_class_named_exists():
    info = get_provider_info()
    classes = [
        *info["extra-links"],
        *(entry["hook-class-name"] for entry in info["connection-types"]),
        *(entry["class-name"] for entry in info["task-decorators"]),
    ]
    for path in classes:
        module, _, name = path.rpartition(".")
        assert callable(getattr(import_module(module), name))


def test_decorator_is_found_as_airflow_finds_it():
    [entry] = get_provider_info()["task-decorators"]
    decorator = getattr(task, entry["name"])

    assert f"{decorator.__module__}.{decorator.__name__}" == entry["class-name"]


def test_configuration_is_described_and_read(monkeypatch):
    assert dict(ProvidersManager().provider_configs)["airflow-provider-kie"] == CONFIG
    assert set(CONFIG) == {SECTION}
    assert price_table().usd_per_credit == LIST_USD_PER_CREDIT

    for name, option in CONFIG[SECTION]["options"].items():
        monkeypatch.setenv(f"AIRFLOW__{SECTION}__{name}".upper(), option["example"])
        assert conf.get(SECTION, name) == option["example"]
    assert price_table().usd_per_credit == 0.0045
    assert price_table().credits_for("flux-2/pro-text-to-image", "1K") == 4.5


def test_a_wrong_price_stops_what_pays_but_not_what_only_tells_a_cost(monkeypatch):
    monkeypatch.setenv("AIRFLOW__KIE__USD_PER_CREDIT", "free")
    with pytest.raises(AirflowFailException, match="usd_per_credit: must be a number of dollars, got 'free'"):
        price_table()
    assert shown_prices() == PriceTable.parse()


def test_form_fields_are_those_the_hook_reads():
    fields = {"upload_host", "request_timeout", "submit_limit", "callback_base_url", "webhook_secret"}
    assert set(CONN_FIELDS) == fields
    assert KieHook.get_ui_field_behaviour() == {
        "hidden_fields": UI_FIELD_BEHAVIOUR["hidden-fields"],
        "relabeling": UI_FIELD_BEHAVIOUR["relabeling"],
        "placeholders": UI_FIELD_BEHAVIOUR["placeholders"],
    }


def test_parsing_a_dag_pulls_in_no_http_image_or_storage_library():
    """Airflow itself may import some of these (3.1 requests, 3.3 fsspec): what counts is what our imports add."""
    kinds = ("operators", "decorators", "sensors", "hooks")
    modules = [module for kind in kinds for module in modules_in(kind)]
    modules += [f"kie_provider.{name}" for name in ("links", "config", "contact_sheet", "pytest_plugin")]
    heavy = {"requests", "urllib3", "aiohttp", "PIL", "fsspec", "upath", "kie_provider.files.storage"}
    script = (
        "import sys, airflow.sdk; from airflow.sdk import BaseSensorOperator, DAG; before = set(sys.modules);"
        f"import {', '.join(modules)}; print(*({heavy} & (set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == ""


def test_the_client_never_imports_airflow():
    script = (
        "import sys; import kie_provider.client.client, kie_provider.client.polling, kie_provider.client.adapter;"
        "assert not [m for m in sys.modules if m.split('.')[0] == 'airflow']"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
