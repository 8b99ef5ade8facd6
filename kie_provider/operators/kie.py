"""Create a Kie.ai task with any model of the market."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowTaskTimeout,
    BaseOperator,
    BaseOperatorLink,
)

from kie_provider.airflow_errors import operator_failure
from kie_provider.client.errors import (
    LOGS_PAGE,
    KieError,
    KieNotFoundError,
    KieRateLimitError,
    KieSubmitUnknownError,
    KieTaskFailedError,
    KieValidationError,
)
from kie_provider.hooks.kie import DEFAULT_CONN_ID, KieHook
from kie_provider.ledger import KEY, SETTLE, GoOn, Ledger, Submission, Unknown, next_step, no_alarm
from kie_provider.links import KieLogsLink
from kie_provider.waiting import LONGEST_SUBMIT_WAIT, come_back_later, goes_on, log_last_words

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

UNKNOWN_SUBMIT_CHOICES = ("fail", "resubmit")


class KieCreateTaskOperator(BaseOperator):
    """Create one task at Kie.ai and return its Kie task id (str), for a sensor to wait for.

    Kie bills the task when it succeeds. On Airflow 3.3 and later, every later try of this task instance goes on with
    the task that was created, after a crash too; only clearing a task that had succeeded, or clearing with other
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
    operator_extra_links: Collection[BaseOperatorLink] = (KieLogsLink(),)
    ui_color = "#e8e4f8"

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
        self._submitted_id: str | None = None
        self._is_submitting = False

    def execute(self, context: Context) -> Any:
        """Check the rendered fields, create the task unless an earlier try has, return its Kie task id."""
        ledger = Ledger(context)
        with self._failures(ledger):
            kie_task_id = self._create_once(ledger)
        ledger.delivered(kie_task_id)
        return kie_task_id

    def on_kill(self) -> None:
        """Say in the log that the Kie task goes on."""
        if self._submitted_id is not None:
            log_last_words(self.log, goes_on(self._submitted_id))
        elif self._is_submitting:
            log_last_words(
                self.log,
                "createTask was sent and is not answered yet. If Kie accepts it, the Kie task goes on and is billed "
                f"when it succeeds. If the answer still comes, its id follows here; see {LOGS_PAGE}",
            )

    def _order(self) -> tuple[str, Mapping[str, Any]]:
        """Return createTask's ``model`` and ``input`` from the rendered fields."""
        return self.model, self.input

    def _make_ready(self, hook: KieHook, request: Mapping[str, Any]) -> Mapping[str, Any]:  # noqa: ARG002
        """Do what must be done before a new task is paid for, and return the input to send."""
        task_input: Mapping[str, Any] = request["input"]
        return task_input

    def _create_once(self, ledger: Ledger) -> str:
        """Return the id of this task instance's one Kie task: that of an earlier try, or of a new one."""
        submission = ledger.recall()
        request = self._request(ledger)
        step = next_step(submission, request, is_cleared=ledger.is_cleared)
        with KieHook(self.kie_conn_id) as hook:
            if isinstance(step, GoOn):
                if self._still_counts(step.kie_task_id, step.submission, hook, is_cleared=ledger.is_cleared):
                    return self._go_on(step)
                superseded = (*step.submission.superseded, step.kie_task_id)
                if ledger.is_cleared:
                    request = self._new_request()
            elif isinstance(step, Unknown):
                problem = f"an earlier try sent createTask at {step.submission.at} and died before it knew the answer"
                if self.on_unknown_submit == "fail":
                    raise KieSubmitUnknownError(problem)
                self.log.warning(
                    "%s; sending it again, because on_unknown_submit='resubmit': you may pay twice", problem
                )
                superseded = step.submission.superseded
            else:
                superseded = step.superseded
            return self._submit(hook, ledger, request, superseded)

    def _request(self, ledger: Ledger) -> Mapping[str, Any]:
        """Return the body of createTask; that of the submission, if a retry's fields are not valid any more.

        :raises KieValidationError: the rendered fields cannot be sent.
        """
        from kie_provider.client.models import raise_for_problems, shorten

        try:
            if self.on_unknown_submit not in UNKNOWN_SUBMIT_CHOICES:
                choices = " or ".join(map(repr, UNKNOWN_SUBMIT_CHOICES))
                raise_for_problems([f"on_unknown_submit: must be {choices}, got {shorten(self.on_unknown_submit)}"])
            return self._new_request()
        except KieValidationError as error:
            recorded = ledger.submission.request if ledger.submission else None
            if not recorded or ledger.is_cleared:
                raise
            self.log.warning("The inputs are not valid any more, but were submitted before, so this goes on: %s", error)
            return recorded

    def _new_request(self) -> Mapping[str, Any]:
        """Return the body of createTask for the fields as they are now.

        :raises KieValidationError: they cannot be sent.
        """
        from kie_provider.client.protocol import create_task

        return create_task(*self._order(), self.callback_url).json_body or {}

    def _go_on(self, step: GoOn) -> str:
        self._submitted_id = step.kie_task_id
        self.log.info("Going on with Kie task %s, which an earlier try created", step.kie_task_id)
        if step.changed:
            self.log.warning(
                "The inputs are not what they were when Kie task %s was created; this try goes on with that task. "
                "Different now: %s. Clear the task to submit the new inputs.",
                step.kie_task_id,
                ", ".join(step.changed),
            )
        return step.kie_task_id

    def _still_counts(self, kie_task_id: str, submission: Submission, hook: KieHook, *, is_cleared: bool) -> bool:
        """Whether to go on with a task that an earlier try created; if not, a new one costs nothing or is wanted.

        :raises KieNotFoundError: Kie does not know it.
        :raises AirflowFailException: it failed and was charged.
        """
        from kie_provider.client.models import TaskState
        from kie_provider.client.polling import VISIBILITY_GRACE

        if submission.phase == "delivered":
            return True
        try:
            record = hook.get_task(kie_task_id)
        except KieNotFoundError as error:
            if submission.age < VISIBILITY_GRACE:
                return True
            origin = f"It was created at {submission.at} with connection {submission.conn_id!r} at {submission.host}. "
            raise KieNotFoundError(
                f"{error.message}. {origin if submission.host else ''}No new one was created: to order one, delete the "
                f"key {KEY!r} of this task instance's state store and clear this task",
                code=error.code,
                http_status=error.http_status,
                kie_task_id=kie_task_id,
            ) from None
        if record.state is TaskState.FAIL:
            reason = f"Kie task {kie_task_id} failed ({record.fail_message or 'Kie gave no reason'})"
            if record.credits_consumed and not is_cleared:
                raise AirflowFailException(
                    f"{reason}, but {record.credits_consumed:g} credits were charged; see {LOGS_PAGE}. No new one was "
                    "created: to order one, clear this task."
                )
            self.log.warning("%s; creating a new one", reason)
            return False
        if record.state is TaskState.SUCCESS and not record.has_result and is_cleared:
            self.log.warning("Kie task %s succeeded without a result; creating a new one", kie_task_id)
            return False
        return True

    def _submit(self, hook: KieHook, ledger: Ledger, request: Mapping[str, Any], superseded: tuple[str, ...]) -> str:
        """Create a task: the intent first, its id right after the answer."""
        if not ledger.is_durable:
            self.log.info(
                "There is no task state store (Airflow 3.3 brought it). If this try dies after createTask was sent, "
                "the next one creates and pays for another task. Use retries=0 here."
            )
        host = hook.get_conn().endpoint.host
        task_input = self._make_ready(hook, request)
        try:
            hook.take_submit_place(None if ledger.is_durable else LONGEST_SUBMIT_WAIT)
        except KieRateLimitError as error:
            come_back_later(error, is_durable=ledger.is_durable)
        with no_alarm():
            ledger.intend(request, superseded, conn_id=self.kie_conn_id, host=host)
            self._is_submitting = True
            try:
                kie_task_id = hook.get_conn().create_task(request["model"], task_input, request.get("callBackUrl"))
            except KieSubmitUnknownError:
                raise  # the intent stays: it says what nobody knows
            except KieRateLimitError as error:
                ledger.withdraw()
                come_back_later(error, is_durable=ledger.is_durable)
            except KieError:
                ledger.withdraw()
                raise
            finally:
                self._is_submitting = False
            self._submitted_id = kie_task_id
            ledger.submitted(kie_task_id)
        return kie_task_id

    @contextlib.contextmanager
    def _failures(self, ledger: Ledger) -> Iterator[None]:
        """Turn Kie errors into what Airflow understands."""
        try:
            yield
        except (Exception, AirflowTaskTimeout) as error:  # noqa: BLE001  # raised again
            failure = self._failure(error, ledger)
            raise failure from (None if failure is error else error)

    def _failure(self, error: BaseException, ledger: Ledger) -> BaseException:
        if isinstance(error, KieSubmitUnknownError):
            if self.on_unknown_submit == "resubmit":
                return error  # the next try sends it again
            return AirflowFailException(f"{error} {SETTLE}" if ledger.is_durable else str(error))
        if isinstance(error, KieTaskFailedError) and error.may_succeed_anew:
            return error
        if self._submitted_id is not None and not ledger.has_noted(self._submitted_id):
            return AirflowFailException(
                f"{error}. No retry, it would not know the Kie task: {goes_on(self._submitted_id)}."
            )
        return operator_failure(error) if isinstance(error, KieError) else error
