"""What this provider adds to Airflow's API server: a page of images.

Airflow loads plugins in every process, workers and DAG processors included. So this module only declares names; the
rest is imported when the API server asks for the plugin's applications.
"""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import AirflowPlugin

from kie_provider.addresses import IMAGES


class KiePlugin(AirflowPlugin):
    """The page of all images, and a tab on each DAG run with the images of the run."""

    name = "kie"
    external_views: list[Any] = [  # noqa: RUF012  # as AirflowPlugin declares it
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

    @property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]  # a property: imported on demand
        """The page's application; only the API server asks for it."""
        from kie_provider.plugin.gallery import app

        return [{"app": app, "url_prefix": f"/{IMAGES}".rstrip("/"), "name": "Kie.ai images"}]
