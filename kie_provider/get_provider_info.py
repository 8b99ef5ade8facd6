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
        "description": "Base URL of the upload service. Default: Kie's own, or the host if that is not Kie's",
        "schema": {"type": ["string", "null"]},
    },
    "request_timeout": {
        "label": "Request timeout (s)",
        "description": "Seconds to wait for an answer. Default: 60",
        "schema": {"type": ["integer", "null"], "minimum": 1},
    },
    "submit_limit": {
        "label": "New tasks per 10 s",
        "description": "What Kie allows your account. Default: 20",
        "schema": {"type": ["integer", "null"], "minimum": 1},
    },
    "callback_base_url": {
        "label": "Callback base URL",
        "description": "Where Kie reaches Airflow's API server. Default: none, and no callbacks",
        "schema": {"type": ["string", "null"]},
    },
    # Airflow masks it for its name.
    "webhook_secret": {
        "label": "Webhook secret",
        "description": "The webhook HMAC key from https://kie.ai/settings. With it, only signed callbacks are accepted",
        "schema": {"type": ["string", "null"], "format": "password"},
    },
}


CONFIG: dict[str, Any] = {
    "kie": {
        "description": "Settings of the Kie.ai provider.",
        "options": {
            "callback_base_url": {
                "description": (
                    "Where Kie reaches Airflow's API server, for the connections that do not say it themselves. Empty: "
                    "no callbacks."
                ),
                "version_added": "0.1.0",
                "type": "string",
                "example": "https://airflow.example.com",
                "default": "",
            },
            "callback_patience": {
                "description": (
                    "For how many seconds after createTask a task whose answer was lost waits for Kie's callback; at "
                    "most 86400. Airflow 3.3 and later."
                ),
                "version_added": "0.1.0",
                "type": "float",
                "example": "600",
                "default": "1200",
            },
            "prices": {
                "description": (
                    "Credits per image, as JSON {model: {resolution: credits}}, where they differ from Kie's list: for "
                    "the cost in the JSON files beside images, if Kie does not say it."
                ),
                "version_added": "0.1.0",
                "type": "string",
                "example": '{"flux-2/pro-text-to-image": {"1K": 4.5, "2K": 6.5}}',
                "default": "",
            },
            "rate_limit_storage": {
                "description": (
                    "Where all workers share the limit on new tasks, as a URL of the limits library; needs the extra "
                    "redis. Empty: every process keeps the limit on its own, and Kie refuses what is too much."
                ),
                "version_added": "0.1.0",
                "type": "string",
                "example": "redis://redis:6379/0",
                "default": "",
                "sensitive": True,
            },
            "usd_per_credit": {
                "description": "What a credit costs you in US dollars; Kie's list says 0.005.",
                "version_added": "0.1.0",
                "type": "float",
                "example": "0.0045",
                "default": "",
            },
        },
    }
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
                "python-modules": [
                    "kie_provider.operators.batch",
                    "kie_provider.operators.contact_sheet",
                    "kie_provider.operators.flux2",
                    "kie_provider.operators.kie",
                    "kie_provider.operators.results",
                ],
            }
        ],
        "sensors": [
            {
                "integration-name": "Kie.ai",
                "python-modules": ["kie_provider.sensors.flux2", "kie_provider.sensors.kie"],
            }
        ],
        "triggers": [
            {
                "integration-name": "Kie.ai",
                "python-modules": ["kie_provider.triggers.batch", "kie_provider.triggers.kie"],
            }
        ],
        "connection-types": [
            {
                "connection-type": "kie",
                "hook-class-name": "kie_provider.hooks.kie.KieHook",
                "hook-name": "Kie.ai",
                "ui-field-behaviour": UI_FIELD_BEHAVIOUR,
                "conn-fields": CONN_FIELDS,
            }
        ],
        "task-decorators": [{"name": "flux2", "class-name": "kie_provider.decorators.flux2.flux2_task"}],
        "config": CONFIG,
        "cli": ["kie_provider.cli.definition.get_commands"],  # since Airflow 3.2
        "extra-links": [
            "kie_provider.links.KieImagesLink",
            "kie_provider.links.KieLogsLink",
            "kie_provider.links.KieResultLink",
            "kie_provider.links.KieRunImagesLink",
        ],
    }
