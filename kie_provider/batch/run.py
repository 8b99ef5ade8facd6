"""A batch in one task instance: plan it, work on it, finish it."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred

from kie_provider import parameters
from kie_provider.batch import manifest
from kie_provider.batch.engine import PARALLEL_SAVES, work
from kie_provider.batch.items import Item
from kie_provider.batch.names import read_names, refuse_existing
from kie_provider.batch.plan import Plan
from kie_provider.batch.prompts import duplicate_problems, read_prompts, read_requests
from kie_provider.batch.report import Report
from kie_provider.client.errors import KieBatchError, KieRateLimitError, KieSubmitUnknownError, raise_for_problems
from kie_provider.client.plain import counted, sentence
from kie_provider.config import callback_patience, price_table
from kie_provider.failures import FailureContext, failures, log_on_kill, operator_failure, tasks_still_billed_message
from kie_provider.files.provenance import RunFacts
from kie_provider.files.storage import storage_path
from kie_provider.hooks.kie import KieHook
from kie_provider.parameters import DEFAULT_FILE_NAME
from kie_provider.submission.budget import Budget, estimate, refuse_unpayable
from kie_provider.submission.callbacks import adopt, may_still_be_called
from kie_provider.submission.decide import assign, claim, of_this_try
from kie_provider.submission.journal import WORTH_A_SUMMARY, open_journal
from kie_provider.triggers.batch import KieBatchTrigger
from kie_provider.waiting import await_callback, count_trigger_restart, deferral, pull_xcom, push_xcom, reschedule

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from kie_provider.submission.record import SubmissionRecord

log = logging.getLogger(__name__)

#: XCom key of the counts while the batch runs.
PROGRESS_KEY = "progress"
_DEFAULTS = ("model", "aspect_ratio", "resolution", "input_images", "nsfw_checker")


class BatchRun:
    """The batch of a task instance.

    :param operator: the running :class:`~kie_provider.operators.batch.Flux2BatchOperator`, with rendered parameters.
    """

    def __init__(self, operator: Any, context: Context) -> None:
        self._operator = operator
        self._ti: Any = context["ti"]
        self._journal = open_journal(operator, context)
        self._plan: Plan | None = None
        self._reported: dict[str, object] | None = None
        self._is_final = False  # a retry would save no more images

    def execute(self) -> dict[str, object]:
        """Check the whole list, then submit, wait and save until every image is saved; return the counts.

        :raises TaskDeferred: nothing but waiting is left to do.
        """
        with failures(log, self._facts, self._failure), KieHook(self._operator.kie_conn_id) as hook:
            self._journal.read()
            adopt(self._journal, hook)
            return self._work(self._begin(hook))

    def resume(self, trigger_error: Exception, position: Sequence[int] | None = None) -> dict[str, object]:
        """Resume after a deferral; otherwise as :meth:`execute`.

        :param trigger_error: raised if triggers keep ending although no Kie task has.
        :param position: of the journal when the task was deferred; None: not known.
        """
        with failures(log, self._facts, self._failure), KieHook(self._operator.kie_conn_id) as hook:
            self._journal.resume(position)
            if not self._journal.has_begun:
                raise AirflowFailException(
                    "The journal of this batch disappeared while it was deferred, so it is not known what was "
                    "submitted. Nothing more was sent. Clear this task to start over."
                )
            raise_for_problems(
                parameters.problems(self._operator), "nothing more was sent; the Kie tasks already there keep running."
            )
            adopt(self._journal, hook)
            items, _ = self._read_items()
            claimed = of_this_try(self._journal.records, len(items))
            told = pull_xcom(self._ti, PROGRESS_KEY)
            plan = self._new_plan(items, claimed, hook, told if isinstance(told, Mapping) else {})
            return self._work(plan, trigger_error)

    def stop(self) -> None:
        """Log that the Kie tasks keep running. For ``on_kill``, which may interrupt a call to Airflow."""
        self._journal.stop()
        if self._plan is not None and (running := len(self._plan.running)):
            log_on_kill(log, tasks_still_billed_message(running))

    def _begin(self, hook: KieHook) -> Plan:
        """Check everything, decide what there is to do, and record the beginning of this try.

        :raises KieError: nothing more was sent.
        """
        journal = self._journal
        items, problems = self._read_items()
        problems = [*parameters.problems(self._operator), *problems]
        requests, request_problems = read_requests([item.fields for item in items], self._operator.callback_url)
        if not request_problems and not self._operator.allow_duplicates:
            problems += duplicate_problems([request.fingerprint for request in requests])
        has_submitted = any(record.state in ("submitted", "unknown") for record in journal.records)
        raise_for_problems(
            [*problems, *request_problems],
            "nothing more was sent; the Kie tasks already there keep running."
            if has_submitted
            else "nothing was sent.",
        )
        for item, request in zip(items, requests, strict=True):
            item.request = request
        # A try whose success was not recorded is repeated as it was; one that was rescheduled has already begun.
        returns_the_same = journal.is_complete and not journal.is_cleared
        fingerprints, kept = [request.fingerprint for request in requests], journal.records
        if journal.has_begun:
            claimed = of_this_try(journal.records, len(items))
        elif returns_the_same:
            claimed = claim(journal.records, fingerprints, max_tries=journal.max_tries)
        else:
            resubmits = self._operator.on_unknown_submit == "resubmit"
            claimed, kept = assign(
                journal.records, fingerprints, max_tries=journal.max_tries, resubmit_unknown=resubmits
            )
        plan = self._new_plan(items, claimed, hook, {"try_number": journal.read_try_number})
        if returns_the_same:
            for item in plan.to_submit:
                item.become("left_out")  # as before; what Kie has made is saved again if its files are gone
        self._warn_of_changes(items)
        self._check_before_paying(plan, hook, has_submitted=has_submitted)
        credits_in_all, words = estimate((request.kind for request in requests), price_table())
        log.info("%s, %s credits by the price table: %s", counted(len(items), "image"), _credits(credits_in_all), words)
        if not journal.has_begun:
            plan.manifest_writer()()  # before anything is submitted: a later try that misses it is on another disk
            journal.begin(kept, claimed, estimate=credits_in_all)
        return plan

    def _check_before_paying(self, plan: Plan, hook: KieHook, *, has_submitted: bool) -> None:
        """Run the checks that precede paying for the first image, or for more.

        :param has_submitted: whether an earlier try has submitted something.
        :raises KieError: nothing more was sent.
        """
        report = plan.report
        if not plan.to_submit:
            return
        self._operator.saver(hook, images_only=True, file_name=DEFAULT_FILE_NAME).check_target()
        if not self._operator.overwrite:
            refuse_existing(report.target, [item.file_name for item in plan.to_submit])
        to_pay = [item.request.kind for item in (*plan.running, *plan.to_submit) if item.request]
        credits_to_pay, words = estimate(to_pay, price_table())
        what = f"{counted(len(to_pay), 'image')} ({words})"
        get_credits = functools.cache(hook.get_credits)
        budget = Budget(self._operator.max_credits, self._operator.min_credits_left)
        budget.check(what, credits_to_pay, get_credits, spent=report.credits)
        if not has_submitted:
            refuse_unpayable(what, credits_to_pay, get_credits)
        if not self._journal.is_durable:
            log.info(
                "This Airflow has no task state store (3.3 and later have). If this try dies, the next one creates and "
                "pays for all images again. Use retries=0."
            )

    def _work(self, plan: Plan, trigger_error: Exception | None = None) -> dict[str, object]:
        """Save, submit and wait until nothing is left to wait for.

        :param trigger_error: raised if triggers keep ending although no Kie task has.
        """
        ended = 0
        while True:
            ended += work(plan)
            if plan.running or self._check_listed(plan):
                break
        self._report_progress()
        if plan.running:
            if trigger_error is not None and not ended:
                count_trigger_restart(self._ti, trigger_error)
            self._journal.summarize()
            raise self._deferral(plan)
        self._await_callbacks(plan)
        halted = plan.report.halted
        if isinstance(halted, KieRateLimitError) and plan.to_submit:
            self._journal.summarize(at_least=WORTH_A_SUMMARY)
            reschedule(halted, is_durable=self._journal.is_durable)
        return self._finish(plan)

    def _await_callbacks(self, plan: Plan) -> None:
        """Reschedule the task if Kie may still call back for an item whose submission is unknown.

        :raises AirflowRescheduleException: it may.
        """
        unknown = [item.record for item in plan.report.items if item.state == "unknown" and item.record]
        awaited = [record for record in unknown if may_still_be_called(record, callback_patience())]
        if awaited and self._journal.is_durable:
            self._journal.summarize(at_least=WORTH_A_SUMMARY)
            await_callback(awaited[0].at)

    def _finish(self, plan: Plan) -> dict[str, object]:
        report = plan.report
        plan.manifest_writer()()
        saved, wanted = report.counts()["saved"], len(report.items)
        needed = math.ceil(self._operator.min_success * wanted - 1e-9)
        estimated = self._journal.estimate
        log.info(
            "%g credits were charged, %s were estimated; see %s", report.credits, _credits(estimated), report.manifest
        )
        if saved < wanted:
            log.warning("%s missing:", counted(wanted - saved, "image"))
            for line in report.failure_lines().splitlines():
                log.warning(line)
        if saved < needed:
            halted = f"{sentence(f'Submitting stopped: {report.halted}')} " if report.halted else ""
            settle_advice = report.settle_advice() if self._journal.is_durable else ""
            error = KieBatchError(
                f"{saved} of {wanted} are saved, and min_success={self._operator.min_success:g} requires {needed}. "
                f"{halted}{report.manifest} lists them.\n{report.failure_lines()}\n{settle_advice}"
            )
            self._journal.summarize()
            may_help = any(item.may_succeed_later for item in report.items) or (
                report.halted and report.halted.is_transient
            )
            self._is_final = not may_help
            raise error
        self._journal.summarize(is_complete=True)
        return {**report.told(), "estimated_credits": estimated}

    def _report_progress(self) -> None:
        if self._plan is None:
            return
        report = self._plan.report
        progress = report.told()
        if progress == self._reported:
            return
        self._reported = progress
        push_xcom(self._ti, PROGRESS_KEY, progress)
        log.info(
            "%d of %d images saved, %d failed, %d unknown, %d running, %d to submit; %g credits",
            *(progress[name] for name in ("saved", "images", "failed", "unknown", "running", "not_submitted")),
            progress["credits"],
        )

    def _deferral(self, plan: Plan) -> TaskDeferred:
        deadline = max(map(plan.deadline_of, plan.running))
        trigger = KieBatchTrigger(
            kie_conn_id=self._operator.kie_conn_id,
            kie_task_ids=[item.kie_task_id for item in plan.running],
            poll_interval=self._operator.poll_interval,
            deadline=deadline,
        )
        return deferral(trigger, deadline, {"journal": self._journal.position})

    def _read_items(self) -> tuple[list[Item], list[str]]:
        operator = self._operator
        fields, problems = read_prompts(operator.prompts, {name: getattr(operator, name) for name in _DEFAULTS})
        # The file name is not part of the request: a new name does not pay for a new image.
        rows = [(each.pop("file_name", None), each.get("prompt")) for each in fields]
        names, name_problems = read_names(rows, operator.file_name, redact_prompt=operator.redact_prompt is True)
        items = [
            Item(index, each, name or DEFAULT_FILE_NAME)
            for index, (each, name) in enumerate(zip(fields, names, strict=True))
        ]
        return items, [*problems, *name_problems]

    def _new_plan(
        self, items: list[Item], claimed: Sequence[SubmissionRecord | None], hook: KieHook, told: Mapping[str, object]
    ) -> Plan:
        """Return what there is to do.

        :param told: what is known of the manifest that the last phase or try has written.
        """
        operator = self._operator
        limit = operator.execution_timeout
        report = Report(
            items,
            price_table(),
            RunFacts.of(self._ti),
            target=storage_path("target", operator.target),
            redact_prompt=operator.redact_prompt,
        )
        self._plan = Plan(
            report,
            self._journal,
            hook,
            operator.saver(hook, images_only=True, file_name=DEFAULT_FILE_NAME),  # every item has its own name
            callback_url=operator.callback_url,
            poll_interval=operator.poll_interval,
            timeout=operator.timeout,
            batch_timeout=None if limit is None else limit.total_seconds(),
            defers=operator.deferrable,
            on_progress=self._report_progress,
        )
        self._recall(self._plan, claimed, told)
        return self._plan

    def _recall(self, plan: Plan, claimed: Sequence[SubmissionRecord | None], told: Mapping[str, object]) -> None:
        """Take over what the journal and the manifest say about the items."""
        content = manifest.read(plan.report.manifest)
        if told.get("try_number") and (problem := manifest.problem(content, told)):
            what = "The images that were saved before are saved again"
            log.warning("%s %s, %s. %s.", plan.report.manifest, problem, manifest.ANOTHER_DISK, what)
        saved = {entry["kie_task_id"]: entry for entry in manifest.items_of(content) if manifest.is_saved(entry)}
        for item, record in zip(plan.report.items, claimed, strict=True):
            item.recall(record)
            result = saved.get(item.kie_task_id) if item.state == "running" else None
            if result and plan.saver.named(item.file_name).could_have_saved(result):
                item.become("listed", result=result)

    def _check_listed(self, plan: Plan) -> bool:
        """Check the files that the manifest lists; an item without its files becomes ``running`` again.

        :return: whether all files are there.
        :raises KieError: the storage failed.
        """
        listed = [item for item in plan.report.items if item.state == "listed"]
        pool = ThreadPoolExecutor(PARALLEL_SAVES)
        try:
            found = list(pool.map(lambda item: plan.saver.named(item.file_name).saved(item.result), listed))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # a time-out does not wait for slow storage
        for item, result in zip(listed, found, strict=True):
            if result is None:
                log.warning("prompts[%d]: its files were removed or changed after they were saved", item.index)
                item.become("running")
            else:
                item.become("saved", result=result)
        return all(found)

    def _warn_of_changes(self, items: Sequence[Item]) -> None:
        changed = [item for item in items if item.is_changed]
        if changed:
            log.warning(
                "%s changed since the images were submitted, the first is prompts[%d]; this try continues with what "
                "was submitted. Clear the task to submit the new ones.",
                f"{counted(len(changed), 'item')} {'has' if len(changed) == 1 else 'have'}",
                changed[0].index,
            )

    def _facts(self) -> FailureContext:
        conn_id = self._operator.kie_conn_id
        if self._plan is None:
            return FailureContext(conn_id)
        report = self._plan.report
        charged = f"{counted(report.credits, 'credit')} for {counted(report.counts()['saved'], 'image')} saved"
        if running := len(self._plan.running):
            charged += f"; {counted(running, 'Kie task')} more running, charged on success"
        return FailureContext(conn_id, charged=charged)

    def _failure(self, error: BaseException) -> BaseException:
        journal = self._journal
        unwritten = journal.write_again()
        if isinstance(error, AirflowFailException):
            return error
        if unwritten:
            advice = " ".join(f"Kie task {record.kie_task_id}: key {record.settled_key!r}." for record in unwritten)
            return AirflowFailException(
                f"{sentence(str(error))} No retry: it would not know all Kie tasks. Add their ids, as JSON strings, to "
                f"this task instance's state store, and clear this task. {advice}"
            )
        if not journal.is_durable and any(each.kie_task_id or each.state == "unknown" for each in journal.records):
            running = len(self._plan.running) if self._plan else 0
            about = f" {tasks_still_billed_message(running)}." if running else ""
            return AirflowFailException(f"{sentence(str(error))} No retry: it would pay for all images again.{about}")
        if isinstance(error, KieSubmitUnknownError):
            return AirflowFailException(str(error))
        return error if isinstance(error, KieBatchError) and not self._is_final else operator_failure(error)


def _credits(number: float | None) -> str:
    return "an unknown number of" if number is None else f"{number:g}"
