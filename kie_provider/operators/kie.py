"""Create a Kie.ai task with any model of the market."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from kie_provider.airflow_errors import operator_failures
from kie_provider.client.errors import LOGS_PAGE
from kie_provider.hooks.kie import DEFAULT_CONN_ID, KieHook
from kie_provider.links import KieLogsLink

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class KieCreateTaskOperator(BaseOperator):
    """Create one task at Kie.ai and return its Kie task id (str), for a sensor to wait for.

    Kie bills the task when it succeeds. createTask is never sent again when the first one may have arrived: then the
    operator fails without retry and says how to find out. Wait with
    :class:`~kie_provider.sensors.kie.KieTaskSensor`, whose retries cost nothing.

    :param model: any model id of Kie's market (templated).
    :param input: the model's input object, passed on as it is (templated).
    :param callback_url: public URL that Kie calls when the task ends; optional (templated).
    :param kie_conn_id: Airflow connection of type ``kie``, default ``kie_default`` (templated).
    """

    template_fields: Sequence[str] = ("model", "input", "callback_url", "kie_conn_id")
    template_fields_renderers = {"input": "json"}  # noqa: RUF012  # as BaseOperator declares it
    operator_extra_links = (KieLogsLink(),)
    ui_color = "#e8e4f8"

    def __init__(
        self,
        *,
        model: str,
        input: Mapping[str, Any],  # noqa: A002
        callback_url: str | None = None,
        kie_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.input = input
        self.callback_url = callback_url
        self.kie_conn_id = kie_conn_id

    def execute(self, context: Context) -> str:  # noqa: ARG002
        """Check the rendered fields, create the task, return its Kie task id."""
        with operator_failures():
            task_input = self._task_input()
            kie_task_id = KieHook(self.kie_conn_id).create_task(self.model, task_input, self.callback_url)
        self.log.info("Created Kie task %s with %s; all tasks and charges: %s", kie_task_id, self.model, LOGS_PAGE)
        return kie_task_id

    def _task_input(self) -> Mapping[str, Any]:
        """Return createTask's ``input`` from the rendered fields."""
        return self.input
