"""The one Kie task that an operator for a single task pays for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException

from kie_provider import parameters
from kie_provider.client.errors import (
    LOGS_PAGE,
    KieError,
    KieJournalError,
    KieNotFoundError,
    KieRateLimitError,
    KieResultError,
    KieSubmitUnknownError,
    KieTaskFailedError,
    KieValidationError,
)
from kie_provider.client.plain import counted, sentence
from kie_provider.client.polling import VISIBILITY_GRACE
from kie_provider.client.records import TaskState
from kie_provider.config import callback_patience
from kie_provider.execution_timeout import run
from kie_provider.failures import FailureContext, failures, log_on_kill, operator_failure, still_billed_message
from kie_provider.hooks.kie import KieHook
from kie_provider.submission.callbacks import adopt, may_still_be_called
from kie_provider.submission.decide import Reattach, Step, Unknown, changed_fields, next_step
from kie_provider.submission.inputs import TaskRequest
from kie_provider.submission.journal import WORTH_A_SUMMARY, open_journal
from kie_provider.submission.record import SubmissionRecord, iso
from kie_provider.submission.submit import Submitter
from kie_provider.waiting import await_callback, reschedule

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from kie_provider.execution_timeout import Alarm
    from kie_provider.files.inputs import InputImage


class SingleSubmission:
    """The one Kie task of a task instance: that of an earlier try, or a new one.

    :ivar kie_task_id: its id, once it is known.
    :ivar expects_callback: whether Kie was told to call back when it has ended.

    :param operator: the running operator; ``kie_conn_id`` and ``on_unknown_submit`` are its parameters.
    :param charged: returns the credits that the result has cost, once known; for the log of a failure.
    """

    def __init__(self, operator: Any, context: Context, charged: Callable[[], float | None] = lambda: None) -> None:
        self.kie_task_id: str | None = None
        self.expects_callback = False
        self._operator = operator
        self._log = operator.log
        self._conn_id: str = operator.kie_conn_id
        self._resubmits = operator.on_unknown_submit == "resubmit"
        self._charged = charged
        self._journal = open_journal(operator, context)

    # Ending

    def failures(self) -> contextlib.AbstractContextManager[None]:
        """Log what goes wrong in the block, and turn Kie errors into exceptions of Airflow."""
        return failures(self._log, self._facts, self._failure)

    def stop(self) -> None:
        """Log that the Kie task keeps running. For ``on_kill``, which may interrupt a call to Airflow."""
        self._journal.stop()
        latest = self._journal.latest
        if kie_task_id := self._known_id():
            log_on_kill(self._log, still_billed_message(kie_task_id))
        elif latest and latest.state == "unknown":
            log_on_kill(
                self._log,
                "createTask was sent and is not answered yet. If Kie accepts it, the Kie task keeps running and is "
                f"billed when it succeeds. If the answer still arrives, its id follows here; see {LOGS_PAGE}",
            )

    # Submitting

    def create(
        self,
        read_request: Callable[[], TaskRequest],
        *,
        before_paying: Callable[[KieHook, TaskRequest], object] = lambda _hook, _request: None,
        find_images: Callable[[], Sequence[InputImage]] = tuple,
        on_recorded: Callable[[], object] | None = None,
    ) -> str:
        """Return the id of the one Kie task.

        :param read_request: returns the request that the fields ask for now.
        :param before_paying: runs the checks that precede paying for a new Kie task.
        :param find_images: returns the input images again, if those of an earlier try are to be sent again.
        :param on_recorded: called if an earlier try has submitted something: its request is used, and the fields are
            not read. None: they are read in any case.
        """
        self._journal.read()
        with KieHook(self._conn_id) as hook:
            adopt(self._journal, hook)
            request = self._recorded_request() if on_recorded else None
            if request and on_recorded:
                on_recorded()
            else:
                request = self._valid_request(read_request)
            step = self._next_step(request)
            if isinstance(step, Unknown):
                raise KieSubmitUnknownError(
                    f"try {step.record.try_number} sent createTask at {iso(step.record.at)} and died before it "
                    "recorded the answer. If an answer arrived, the Kie task id is in the log of that try"
                )
            if isinstance(step, Reattach):
                if self._can_reattach(step.record, hook):
                    return self._reattach(step, request.body)
                if step.record.is_cleared_since(self._journal.max_tries):
                    request = read_request()
            elif any(record.state == "unknown" for record in self._journal.records):
                self._log.warning(
                    "An earlier try sent createTask and died before it recorded the answer; sending it again, because "
                    "on_unknown_submit='resubmit': you may pay twice"
                )
            if request.files and not request.images:
                request = replace(request, images=find_images())
            before_paying(hook, request)
            return self._submit(hook, request)

    def _next_step(self, request: TaskRequest) -> Step:
        records, max_tries = self._journal.records, self._journal.max_tries
        step = next_step(records, request.fingerprint, max_tries=max_tries)
        if isinstance(step, Unknown):
            self._await_callback(step.record)
            if self._resubmits:
                return next_step(records, request.fingerprint, max_tries=max_tries, resubmit_unknown=True)
        return step

    def _await_callback(self, record: SubmissionRecord | None) -> None:
        """Reschedule the task if Kie may still call back for an unknown submission.

        :raises AirflowRescheduleException: it may.
        """
        if record and self._journal.is_durable and may_still_be_called(record, callback_patience()):
            await_callback(record.at)

    def _valid_request(self, read_request: Callable[[], TaskRequest]) -> TaskRequest:
        """Return the request that the fields ask for; on a retry with invalid fields, the one that was submitted.

        :raises KieValidationError: the fields cannot be sent.
        """
        try:
            return read_request()
        except KieValidationError as error:
            recorded = self._recorded_request()
            if recorded is None or self._journal.is_cleared or parameters.problems(self._operator):
                raise
            self._log.warning(
                "The inputs are no longer valid, but an earlier try submitted them, so this try continues: %s", error
            )
            return recorded

    def _recorded_request(self) -> TaskRequest | None:
        """Return the request that an earlier try has sent; None: there is none."""
        sent = [record for record in self._journal.records if record.state in ("submitted", "unknown")]
        body = self._journal.request_of(sent[-1]) if sent else None
        return TaskRequest(body) if body else None

    def _reattach(self, step: Reattach, body: Mapping[str, object]) -> str:
        kie_task_id = self.kie_task_id = str(step.record.kie_task_id)
        self._log.info("Continuing with Kie task %s, which an earlier try created", kie_task_id)
        if step.has_changed and (before := self._journal.request_of(step.record)):
            self._log.warning(
                "The inputs have changed since Kie task %s was created (%s); this try continues with that task. "
                "Clear the task to submit the new inputs.",
                kie_task_id,
                ", ".join(changed_fields(before, body)),
            )
        self._begin(step.record)
        self.expects_callback = bool(step.record.nonce)
        return kie_task_id

    def _begin(self, continued: SubmissionRecord | None = None) -> None:
        """Record what the earlier tries knew, so that it is not lost however this try ends."""
        known = [record for record in self._journal.records if record.state in ("submitted", "unknown")]
        if known and not self._journal.has_begun:
            self._journal.begin(known, [continued])

    def _can_reattach(self, record: SubmissionRecord, hook: KieHook) -> bool:
        """Whether to continue with a task that an earlier try created; if not, a new one is free or wanted.

        :raises KieNotFoundError: Kie does not know it.
        :raises AirflowFailException: it failed and was charged.
        """
        kie_task_id, is_cleared = str(record.kie_task_id), record.is_cleared_since(self._journal.max_tries)
        try:
            task = hook.get_task(kie_task_id)
        except KieNotFoundError as error:
            if time.time() - record.at < VISIBILITY_GRACE:
                return True
            intent = self._journal.intent_of(record)
            origin = f" with connection {intent.conn_id!r} at {intent.host}" if intent else ""
            raise KieNotFoundError(
                f"{error.message}. It was created at {iso(record.at)}{origin}. No new one was created: to create one, "
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
                    "one was created: to create one, clear this task."
                )
            self._log.warning("%s; creating a new one", reason)
            return False
        if task.state is TaskState.SUCCESS and not task.has_result and is_cleared:
            self._log.warning("Kie task %s succeeded without a result; creating a new one", kie_task_id)
            return False
        return True

    def _submit(self, hook: KieHook, request: TaskRequest) -> str:
        """Create a task."""
        if not self._journal.is_durable:
            self._log.info(
                "This Airflow has no task state store (3.3 and later have). If this try dies after createTask was "
                "sent, the next one creates and pays for another task. Use retries=0."
            )
        self._begin()

        async def submit(alarm: Alarm) -> SubmissionRecord:
            with Submitter(self._journal, hook, alarm) as submitter:
                return await submitter.submit(request)

        try:
            record = run(submit)
        except KieSubmitUnknownError:
            self._await_callback(self._journal.latest)
            raise
        except KieRateLimitError as error:
            self._journal.summarize(at_least=WORTH_A_SUMMARY)
            reschedule(error, is_durable=self._journal.is_durable)
        self.kie_task_id, self.expects_callback = record.kie_task_id, bool(record.nonce)
        return str(record.kie_task_id)

    # Failing

    def _known_id(self) -> str | None:
        """Return the Kie task id that this process knows, recorded or not."""
        latest = self._journal.latest
        return self.kie_task_id or (latest.kie_task_id if latest else None)

    def _facts(self) -> FailureContext:
        """Return what is known when the task fails."""
        latest = self._journal.latest
        is_in_doubt = latest is not None and latest.state == "unknown"
        return FailureContext(self._conn_id, self._known_id(), self._charged(), is_in_doubt=is_in_doubt)

    def _failure(self, error: BaseException) -> BaseException:
        unwritten = self._journal.write_again()
        if isinstance(error, KieJournalError):
            return AirflowFailException(str(error))
        if isinstance(error, KieSubmitUnknownError):
            if self._resubmits:
                return error  # the next try sends it again
            doubt = [record for record in self._journal.records if record.state == "unknown"]
            if self._journal.is_durable and doubt:
                error.advice += f" {doubt[-1].settle_advice()}"
            return AirflowFailException(str(error))
        if isinstance(error, AirflowFailException):
            return error
        settle_advice = f" {unwritten[-1].settle_advice()}" if unwritten else ""
        if isinstance(error, KieTaskFailedError):
            if error.may_succeed_anew:
                return error
            error.advice += settle_advice
            return operator_failure(error)
        if (kie_task_id := self._known_id()) and (unwritten or not self._journal.is_durable):
            has_succeeded = isinstance(error, KieResultError) or self._charged() is not None
            about = (
                f"Kie task {kie_task_id} has succeeded and is billed; its files are at {LOGS_PAGE}"
                if has_succeeded
                else still_billed_message(kie_task_id)
            )
            advice = f"No retry: it would not know the Kie task. {about}.{settle_advice}"
            if isinstance(error, KieError):
                error.advice = advice
                return AirflowFailException(str(error))
            return AirflowFailException(f"{sentence(str(error))} {advice}")
        return operator_failure(error)
