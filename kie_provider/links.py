"""Buttons on a task instance: Kie's logs page, and the first result once it is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import BaseOperatorLink, XCom

from kie_provider.client.errors import LOGS_PAGE

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator, TaskInstanceKey


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
