"""Create a Kie.ai task with any model of the market."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    BaseOperator,
    BaseOperatorLink,
)

from kie_provider import parameters
from kie_provider.airflow_errors import Facts, failures, operator_failure
from kie_provider.client.errors import (
    LOGS_PAGE,
    KieError,
    KieJournalError,
    KieNotFoundError,
    KieRateLimitError,
    KieSubmitUnknownError,
    KieTaskFailedError,
    KieValidationError,
)
from kie_provider.client.wording import counted, sentence
from kie_provider.hooks.kie import DEFAULT_CONN_ID, KieHook
from kie_provider.last_words import goes_on, log_last_words
from kie_provider.links import KieImagesLink, KieLogsLink
from kie_provider.waiting import come_back_later

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from kie_provider.submission.decide import Reattach
    from kie_provider.submission.journal import Journal
    from kie_provider.submission.record import SubmissionRecord


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
    operator_extra_links: Collection[BaseOperatorLink] = (KieImagesLink(), KieLogsLink())
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
        self._journal: Journal | None = None
        parameters.check_constants(self)

    def execute(self, context: Context) -> Any:
        """Check the rendered fields, create the task unless an earlier try has, return its Kie task id."""
        journal = self._open_journal(context)
        with self._failures(journal):
            return self._create_once(journal)

    def _failures(self, journal: Journal) -> contextlib.AbstractContextManager[None]:
        """Log what goes wrong, and turn Kie errors into what Airflow understands."""
        return failures(self.log, self._facts, lambda error: self._failure(error, journal))

    def _facts(self) -> Facts:
        """Return what is known, for the log of a failure."""
        latest = self._journal and self._journal.latest
        return Facts(self.kie_conn_id, self._known_id(), is_in_doubt=bool(latest and latest.state == "unknown"))

    def on_kill(self) -> None:
        """Say in the log that the Kie task goes on. Nothing else: the signal may come within a call to Airflow."""
        if self._journal is not None:
            self._journal.stop()
        latest = self._journal and self._journal.latest
        if kie_task_id := self._known_id():
            log_last_words(self.log, goes_on(kie_task_id))
        elif latest and latest.state == "unknown":
            log_last_words(
                self.log,
                "createTask was sent and is not answered yet. If Kie accepts it, the Kie task goes on and is billed "
                f"when it succeeds. If the answer still comes, its id follows here; see {LOGS_PAGE}",
            )

    def _open_journal(self, context: Context) -> Journal:
        from kie_provider.submission.journal import open_journal

        self._journal = open_journal(self, context)
        return self._journal

    def _order(self) -> tuple[str, Mapping[str, Any]]:
        """Return createTask's ``model`` and ``input`` from the rendered fields, all parameters checked.

        :raises KieValidationError: names every field that is wrong, its value, and what is allowed.
        """
        from kie_provider.client.models import raise_for_problems

        raise_for_problems(parameters.problems(self))
        return self.model, self.input

    def _make_ready(self, hook: KieHook, request: Mapping[str, Any]) -> Mapping[str, Any]:  # noqa: ARG002
        """Do what must be done before a new task is paid for, and return the input to send."""
        task_input: Mapping[str, Any] = request["input"]
        return task_input

    def _create_once(self, journal: Journal) -> str:
        """Return the id of this task instance's one Kie task: that of an earlier try, or of a new one."""
        from kie_provider.submission.decide import Reattach, Unknown, next_step
        from kie_provider.submission.record import fingerprint_of_request, iso

        journal.read()
        request = self._request(journal)
        step = next_step(
            journal.records,
            fingerprint_of_request(request),
            max_tries=journal.max_tries,
            resubmit_unknown=self.on_unknown_submit == "resubmit",
        )
        with KieHook(self.kie_conn_id) as hook:
            if isinstance(step, Unknown):
                raise KieSubmitUnknownError(
                    f"try {step.record.try_number} sent createTask at {iso(step.record.at)} and died before it knew "
                    "the answer. If an answer came, the Kie task id is in the log of that try"
                )
            if isinstance(step, Reattach):
                if self._can_reattach(step.record, hook, journal):
                    return self._reattach(step, request, journal)
                if step.record.is_cleared_since(journal.max_tries):
                    request = self._new_request()
            elif any(record.state == "unknown" for record in journal.records):
                self.log.warning(
                    "An earlier try sent createTask and died before it knew the answer; sending it again, because "
                    "on_unknown_submit='resubmit': you may pay twice"
                )
            return self._submit(hook, journal, request)

    def _request(self, journal: Journal) -> Mapping[str, Any]:
        """Return the body of createTask; that of the submission, if a retry's fields are not valid any more.

        :raises KieValidationError: the rendered fields cannot be sent.
        """
        try:
            return self._new_request()
        except KieValidationError as error:
            recorded = self._recorded_request(journal)
            if not recorded or journal.is_cleared or parameters.problems(self):
                raise
            self.log.warning("The inputs are not valid any more, but were submitted before, so this goes on: %s", error)
            return recorded

    def _recorded_request(self, journal: Journal) -> Mapping[str, Any]:
        """Return the body of createTask that an earlier try has sent; empty if there is none."""
        sent = [record for record in journal.records if record.state in ("submitted", "unknown")]
        return journal.request_of(sent[-1]) if sent else {}

    def _new_request(self) -> Mapping[str, Any]:
        """Return the body of createTask for the fields as they are now.

        :raises KieValidationError: they cannot be sent.
        """
        from kie_provider.client.protocol import create_task

        return create_task(*self._order(), self.callback_url).json_body or {}

    def _reattach(self, step: Reattach, request: Mapping[str, Any], journal: Journal) -> str:
        from kie_provider.submission.decide import changed_fields

        kie_task_id = str(step.record.kie_task_id)
        self._submitted_id = kie_task_id
        self.log.info("Going on with Kie task %s, which an earlier try created", kie_task_id)
        if step.has_changed and (before := journal.request_of(step.record)):
            self.log.warning(
                "The inputs are not what they were when Kie task %s was created; this try goes on with that task. "
                "Different now: %s. Clear the task to submit the new inputs.",
                kie_task_id,
                ", ".join(changed_fields(before, request)),
            )
        self._begin(journal, step.record)
        return kie_task_id

    def _begin(self, journal: Journal, goes_on_with: SubmissionRecord | None = None) -> None:
        """Have this try know what the tries before it knew, however it ends."""
        known = [record for record in journal.records if record.state in ("submitted", "unknown")]
        if known and not journal.has_begun:
            journal.begin(known, [goes_on_with])

    def _known_id(self) -> str | None:
        """Return the Kie task id that this process knows, be it written down or not."""
        latest = self._journal and self._journal.latest
        return self._submitted_id or (latest.kie_task_id if latest else None)

    def _can_reattach(self, record: SubmissionRecord, hook: KieHook, journal: Journal) -> bool:
        """Whether to go on with a task that an earlier try created; if not, a new one costs nothing or is wanted.

        :raises KieNotFoundError: Kie does not know it.
        :raises AirflowFailException: it failed and was charged.
        """
        from kie_provider.client.models import TaskState
        from kie_provider.client.polling import VISIBILITY_GRACE
        from kie_provider.submission.record import iso

        kie_task_id, is_cleared = str(record.kie_task_id), record.is_cleared_since(journal.max_tries)
        try:
            task = hook.get_task(kie_task_id)
        except KieNotFoundError as error:
            if time.time() - record.at < VISIBILITY_GRACE:
                return True
            intent = journal.intent_of(record)
            origin = f" with connection {intent.conn_id!r} at {intent.host}" if intent else ""
            raise KieNotFoundError(
                f"{error.message}. It was created at {iso(record.at)}{origin}. No new one was created: to order one, "
                "remove the keys that begin with 'kie.' from this task instance's state store and clear this task",
                code=error.code,
                http_status=error.http_status,
                kie_task_id=kie_task_id,
            ) from None
        if task.state is TaskState.FAIL:
            reason = f"Kie task {kie_task_id} failed ({task.fail_message or 'Kie gave no reason'})"
            if task.credits_consumed and not is_cleared:
                raise AirflowFailException(
                    f"{reason}, but was charged {counted(task.credits_consumed, 'credit')}; see {LOGS_PAGE}. No new "
                    "one was created: to order one, clear this task."
                )
            self.log.warning("%s; creating a new one", reason)
            return False
        if task.state is TaskState.SUCCESS and not task.has_result and is_cleared:
            self.log.warning("Kie task %s succeeded without a result; creating a new one", kie_task_id)
            return False
        return True

    def _submit(self, hook: KieHook, journal: Journal, request: Mapping[str, Any]) -> str:
        """Create a task."""
        from kie_provider.submission.journal import WORTH_A_SUMMARY
        from kie_provider.submission.record import fingerprint_of_request
        from kie_provider.submission.submit import submit

        if not journal.is_durable:
            self.log.info(
                "There is no task state store (Airflow 3.3 brought it). If this try dies after createTask was sent, "
                "the next one creates and pays for another task. Use retries=0 here."
            )
        task_input = self._make_ready(hook, request)
        self._begin(journal)
        try:
            record = submit(journal, hook, request, task_input, fingerprint_of_request(request))
        except KieRateLimitError as error:
            journal.summarize(at_least=WORTH_A_SUMMARY)
            come_back_later(error, is_durable=journal.is_durable)
        self._submitted_id = record.kie_task_id
        return str(record.kie_task_id)

    def _failure(self, error: BaseException, journal: Journal) -> BaseException:
        unwritten = journal.write_again()
        if isinstance(error, KieJournalError):
            return AirflowFailException(str(error))
        if isinstance(error, KieSubmitUnknownError):
            if self.on_unknown_submit == "resubmit":
                return error  # the next try sends it again
            doubt = [record for record in journal.records if record.state == "unknown"]
            if journal.is_durable and doubt:
                error.advice += f" {doubt[-1].settle_advice()}"
            return AirflowFailException(str(error))
        if isinstance(error, AirflowFailException) or (
            isinstance(error, KieTaskFailedError) and error.may_succeed_anew
        ):
            return error
        if (kie_task_id := self._known_id()) and (unwritten or not journal.is_durable):
            advice = f" {unwritten[-1].settle_advice()}" if unwritten else ""
            advice = f"No retry, it would not know the Kie task: {goes_on(kie_task_id)}.{advice}"
            if isinstance(error, KieError):
                error.advice = advice
                return AirflowFailException(str(error))
            return AirflowFailException(f"{sentence(str(error))} {advice}")
        return operator_failure(error)
