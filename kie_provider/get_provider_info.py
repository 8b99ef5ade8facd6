"""What Airflow learns when it discovers the provider. Imports nothing."""

from __future__ import annotations

from typing import Any

UI_FIELD_BEHAVIOUR: dict[str, Any] = {
    "hidden-fields": ["login", "extra"],
    "relabeling": {"password": "API key"},
    "placeholders": {
        "host": "https://api.kie.ai",
        "password": "from https://kie.ai/api-key",
    },
}

CONN_FIELDS: dict[str, Any] = {
    "upload_host": {
        "label": "Upload host",
        "description": "Base URL of the upload service. Default: https://kieai.redpandaai.co",
        "schema": {"type": ["string", "null"]},
    },
    "request_timeout": {
        "label": "Request timeout (s)",
        "description": "Seconds to wait for an answer. Default: 60",
        "schema": {"type": ["integer", "null"], "minimum": 1},
    },
}


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata for Airflow's discovery."""
    return {
        "package-name": "airflow-provider-kie",
        "name": "Kie.ai",
        "description": "Kie.ai image generation (Flux-2 and any other market model).",
        "integrations": [
            {
                "integration-name": "Kie.ai",
                "external-doc-url": "https://docs.kie.ai",
                "tags": ["service"],
            }
        ],
        "hooks": [{"integration-name": "Kie.ai", "python-modules": ["kie_provider.hooks.kie"]}],
        "operators": [
            {
                "integration-name": "Kie.ai",
                "python-modules": ["kie_provider.operators.flux2", "kie_provider.operators.kie"],
            }
        ],
        "sensors": [
            {
                "integration-name": "Kie.ai",
                "python-modules": ["kie_provider.sensors.flux2", "kie_provider.sensors.kie"],
            }
        ],
        "triggers": [{"integration-name": "Kie.ai", "python-modules": ["kie_provider.triggers.kie"]}],
        "connection-types": [
            {
                "connection-type": "kie",
                "hook-class-name": "kie_provider.hooks.kie.KieHook",
                "hook-name": "Kie.ai",
                "ui-field-behaviour": UI_FIELD_BEHAVIOUR,
                "conn-fields": CONN_FIELDS,
            }
        ],
        "extra-links": ["kie_provider.links.KieLogsLink", "kie_provider.links.KieResultLink"],
    }
