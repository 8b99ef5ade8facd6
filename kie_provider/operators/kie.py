"""Create a Kie.ai task with any model of the market."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator, BaseOperatorLink

from kie_provider import parameters
from kie_provider.hooks.kie import DEFAULT_CONN_ID
from kie_provider.links import KieImagesLink, KieLogsLink

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from kie_provider.submission.single import SingleSubmission


class SubmittingOperator(BaseOperator):
    """Base class of the operators that create one Kie task; not for use in a DAG."""

    operator_extra_links: Collection[BaseOperatorLink] = (KieImagesLink(), KieLogsLink())
    ui_color = "#e8e4f8"
    #: Set while the operator is running.
    _submission: SingleSubmission | None = None

    def on_kill(self) -> None:
        """Log that the Kie task keeps running. Nothing else: the signal may interrupt a call to Airflow."""
        if self._submission is not None:
            self._submission.stop()


class KieCreateTaskOperator(SubmittingOperator):
    """Create one task at Kie.ai and return its Kie task id (str), for a sensor to wait for.

    Kie bills the task when it succeeds. On Airflow 3.3 and later, every later try of this task instance continues
    with the task that was created, after a crash too; only clearing a task that had succeeded, or clearing with other
    inputs, pays for a new one. Before 3.3 nothing outlives a try: use ``retries=0``.

    createTask is never sent again when the first one may have arrived: the operator then fails without retry and says
    how to find out.

    :param model: any model id of Kie's market (templated).
    :param input: the model's input object, passed on as it is (templated).
    :param callback_url: public URL that Kie calls when the task ends; optional (templated).
    :param on_unknown_submit: what a try does when an earlier one may have created a task and nobody knows its id:
        ``fail`` (default) or ``resubmit``, which can pay twice.
    :param kie_conn_id: Airflow connection of type ``kie``, default ``kie_default`` (templated).
    """

    template_fields: Sequence[str] = ("model", "input", "callback_url", "kie_conn_id")
    template_fields_renderers = {"input": "json"}  # noqa: RUF012  # as BaseOperator declares it

    def __init__(
        self,
        *,
        model: str,
        input: Mapping[str, Any],  # noqa: A002
        callback_url: str | None = None,
        on_unknown_submit: str = "fail",
        kie_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.input = input
        self.callback_url = callback_url
        self.on_unknown_submit = on_unknown_submit
        self.kie_conn_id = kie_conn_id
        parameters.check_constants(self)

    def execute(self, context: Context) -> str:
        """Check the rendered fields, create the task unless an earlier try has, return its Kie task id."""
        from kie_provider.submission.inputs import market_request
        from kie_provider.submission.single import SingleSubmission

        self._submission = submission = SingleSubmission(self, context)
        with submission.failures():
            return submission.create(
                lambda: market_request(self.model, self.input, self.callback_url, parameters.problems(self))
            )
