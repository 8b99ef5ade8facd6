"""Buttons on a task instance: its images, Kie's logs page, and the first result once it is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import BaseOperatorLink, XCom

from kie_provider.addresses import run_address
from kie_provider.client.errors import LOGS_PAGE
from kie_provider.compat import has_login_cookie

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator, TaskInstanceKey

#: Airflow pushes a button's address under this key after every phase of a task, and so marks what has images.
IMAGES_XCOM_KEY = "_link_KieImagesLink"


class KieImagesLink(BaseOperatorLink):
    """The task instance's images, on the page that this provider adds to Airflow."""

    name = "Kie images"

    @property
    def xcom_key(self) -> str:
        """The XCom key of the address."""
        return IMAGES_XCOM_KEY

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002
        """Return the page's address, relative to where Airflow is served: a worker need not know that."""
        return run_address(ti_key.dag_id, ti_key.run_id, ti_key.task_id, ti_key.map_index) if has_login_cookie() else ""


class KieRunImagesLink(BaseOperatorLink):
    """All images of the run: for a task that makes none itself."""

    name = "Kie images"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002
        """Return the page's address, relative to where Airflow is served."""
        return run_address(ti_key.dag_id, ti_key.run_id) if has_login_cookie() else ""


class KieLogsLink(BaseOperatorLink):
    """Kie's page of all tasks and charges; it has no address per task."""

    name = "Kie logs"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002
        """Return the page's URL."""
        return LOGS_PAGE


class KieResultLink(BaseOperatorLink):
    """The task's first result, as Kie serves it; such URLs can expire within 24 hours."""

    name = "Kie result"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002
        """Return the first result URL from the task's result dict, or "" while there is none."""
        result = XCom.get_value(key="return_value", ti_key=ti_key)
        urls = result.get("urls") if isinstance(result, Mapping) else None
        return str(urls[0]) if urls else ""
