"""What Airflow's API server gets from this provider: a page of images, and where Kie calls back.

Airflow loads plugins in every process, workers and DAG processors included. So this module only declares names; the
rest is imported when the API server asks for the plugin's applications.
"""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import AirflowPlugin

from kie_provider.addresses import IMAGES
from kie_provider.compat import has_login_cookie

_VIEWS = [
    {
        "name": "Kie.ai images",
        "href": IMAGES,
        "destination": "nav",
        "category": "browse",
        "url_route": "kie-images",
    },
    {
        "name": "Images",
        "href": f"{IMAGES}dags/{{DAG_ID}}/run?run_id={{RUN_ID}}",
        "destination": "dag_run",
        "url_route": "kie-run-images",
    },
]


class KiePlugin(AirflowPlugin):
    """The page of all images, a tab of each DAG run with its own, and the receiver of callbacks."""

    name = "kie"
    external_views: list[Any] = _VIEWS if has_login_cookie() else []  # as AirflowPlugin declares it

    @property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]  # imported when it is asked for
        """The applications of the API server, which alone asks for them."""
        from kie_provider.client.webhook import CALLBACKS
        from kie_provider.plugin import callbacks, gallery

        return [
            {"app": gallery.app, "url_prefix": f"/{IMAGES}".rstrip("/"), "name": "Kie.ai images"},
            {"app": callbacks.app, "url_prefix": f"/{CALLBACKS}".rstrip("/"), "name": "Kie.ai callbacks"},
        ]
