"""Many Flux-2 images in one task instance."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    BaseOperatorLink,
    TaskDeferred,
    conf,
)

from kie_provider import parameters
from kie_provider.airflow_errors import Facts, failures, operator_failure
from kie_provider.assets import tell_assets
from kie_provider.client.errors import (
    KieBatchError,
    KieRateLimitError,
    KieSubmitUnknownError,
)
from kie_provider.client.wording import counted, sentence
from kie_provider.config import price_table
from kie_provider.hooks.kie import DEFAULT_CONN_ID, DEFAULT_POLL_INTERVAL, DEFAULT_TIMEOUT, KieHook
from kie_provider.last_words import go_on, log_last_words
from kie_provider.links import KieImagesLink, KieLogsLink
from kie_provider.operators.flux2 import DEFAULT_MODEL
from kie_provider.operators.results import DEFAULT_FILE_NAME, SavingOperator
from kie_provider.waiting import (
    DEFERRAL_MARGIN,
    come_back_later,
    count_trigger_restart,
    deadline_seconds,
    deferral_exceptions,
    push_xcom,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath

    from kie_provider.batch.run import BatchRun, Item
    from kie_provider.submission.journal import Journal
    from kie_provider.submission.record import SubmissionRecord

#: XCom key under which the counts stand while the batch runs.
PROGRESS_KEY = "progress"
_DEFAULTS = ("model", "aspect_ratio", "resolution", "input_images", "nsfw_checker")


class Flux2BatchOperator(SavingOperator):
    """Make hundreds or thousands of Flux-2 images in one task instance, save them all, and return counts.

    The worker orders up to 100 images at the pace that Kie allows, then waits in the triggerer without a worker slot.
    It comes back when they are done, or after a minute with a quarter of them, saves, orders more, and waits again.

    Every order is fenced as that of :class:`~kie_provider.operators.kie.KieCreateTaskOperator`: whatever dies, a retry
    goes on with the Kie tasks that are there and orders only what is missing (Airflow 3.3 and later). So does clearing
    a batch that failed, with a changed list too; clearing one that had succeeded makes all images anew. Before 3.3
    nothing outlives a try: use ``retries=0``.

    Returns ``manifest`` (path of a JSON file with the result dict of every item, or why there is none), the number of
    ``images`` asked for, of those ``saved``, ``failed``, ``unknown`` (createTask's answer was lost), ``running`` (not
    done in time) and ``not_ordered`` (the account was empty, for example), ``credits`` (charged for what was saved)
    and ``estimated_credits``. While the batch runs, XCom ``progress`` has the counts and ``manifest``.

    The parameters that are not listed here are those of :class:`~kie_provider.operators.results.KieSaveResultOperator`;
    in ``file_name``, ``{item}`` is the place in the list, from 0, and ``{prompt_slug}`` the prompt as part of a name.
    Two images of one name are refused before anything is sent, and so is a batch that the account cannot pay.

    :param prompts: a list whose items are prompts, or dicts with ``prompt`` and any of ``model``, ``aspect_ratio``,
        ``resolution``, ``input_images``, ``input_urls`` and ``nsfw_checker``, as
        :class:`~kie_provider.operators.flux2.Flux2CreateTaskOperator` takes them, and ``file_name`` (templated). All
        are checked before the first is sent.
    :param target: folder for the images, their JSON files and the manifest (templated).
    :param model: for items that do not name one; so are ``aspect_ratio``, ``resolution``, ``input_images`` (templated)
        and ``nsfw_checker``.
    :param min_success: the task succeeds if this share of the images is saved, default 1.0: all (templated).
    :param allow_duplicates: order an image for each of several equal items. Default: refuse the list.
    :param max_credits: fail, before anything is sent, if the whole batch costs more credits than this. Default: no
        limit (templated).
    :param min_credits_left: fail, before anything is sent, if fewer credits than this would be left on the account.
        Default: no limit (templated).
    :param on_unknown_submit: what a later try does about items of which nobody knows whether a task was created:
        ``fail`` (default) leaves them alone, ``resubmit`` orders them anew and can pay twice.
    :param deferrable: wait in the triggerer. Default: ``[operators] default_deferrable``.
    :param poll_interval: seconds or timedelta between two looks at a Kie task, default 3, at least 1; grows to 15 s
        after the first minute (templated).
    :param timeout: seconds or timedelta that one image may take, default 900 s, from its submission or the start of the
        try. What is not done then goes on at Kie, and a retry waits for it again. ``execution_timeout`` ends the whole
        batch (templated).
    :param kie_conn_id: Airflow connection of type ``kie``, default ``kie_default`` (templated).
    """

    template_fields: Sequence[str] = (
        "prompts",
        "model",
        "aspect_ratio",
        "resolution",
        "input_images",
        *SavingOperator.template_fields,
        "min_success",
        "max_credits",
        "min_credits_left",
        "poll_interval",
        "timeout",
        "kie_conn_id",
    )
    template_fields_renderers = {"prompts": "json"}  # noqa: RUF012  # as BaseOperator declares it
    operator_extra_links: Collection[BaseOperatorLink] = (KieImagesLink(), KieLogsLink())
    ui_color = "#e8e4f8"
    _makes_images = True

    def __init__(
        self,
        *,
        prompts: Sequence[str | Mapping[str, Any]],
        target: str | ObjectStoragePath,
        model: str = DEFAULT_MODEL,
        aspect_ratio: str = "1:1",
        resolution: str = "1K",
        input_images: Any = None,
        nsfw_checker: bool | None = None,
        min_success: float | str = 1.0,
        allow_duplicates: bool = False,
        max_credits: float | str | None = None,
        min_credits_left: float | str | None = None,
        on_unknown_submit: str = "fail",
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: timedelta | float | str = DEFAULT_POLL_INTERVAL,
        timeout: timedelta | float | str = DEFAULT_TIMEOUT,
        kie_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(target=target, **kwargs)
        self.prompts = prompts
        self.model = model
        self.aspect_ratio = aspect_ratio
        self.resolution = resolution
        self.input_images = input_images
        self.nsfw_checker = nsfw_checker
        self.min_success: Any = min_success
        self.allow_duplicates = allow_duplicates
        self.max_credits: Any = max_credits
        self.min_credits_left: Any = min_credits_left
        self.on_unknown_submit = on_unknown_submit
        self.deferrable = deferrable
        self.poll_interval: Any = poll_interval
        self.timeout: Any = timeout
        self.kie_conn_id = kie_conn_id
        self._run: BatchRun | None = None
        self._reported: dict[str, Any] | None = None
        self._is_hopeless = False  # a retry would save no more images
        parameters.check_constants(self)

    def execute(self, context: Context) -> dict[str, Any]:
        """Check the whole list, then order, wait and save until every image is there."""
        with self._at_work(context) as (journal, hook):
            journal.read()
            return self._go_on(self._begin(journal, hook, context), context)

    def execute_complete(self, context: Context, event: Any, journal: Sequence[int] | None = None) -> dict[str, Any]:
        """Save what has ended, order more, and wait again if need be.

        :param journal: how much the journal held when the task was deferred; None: not known.
        """
        from kie_provider.triggers.batch import read_error

        return self._resume(context, read_error(event), journal)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after the deferral, also when the trigger timed out or crashed."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except deferral_exceptions() as error:
            self.log.warning("The trigger ended without an event (%s); looking at the Kie tasks", error)
            return self._resume(context, error)

    def on_kill(self) -> None:
        """Say in the log that the Kie tasks go on. Nothing else: the signal may come within a call to Airflow."""
        if self._run is None:
            return
        self._run.journal.stop()
        if running := len(self._run.running):
            log_last_words(self.log, go_on(running))

    def _begin(self, journal: Journal, hook: KieHook, context: Context) -> BatchRun:
        """Check everything, decide what there is to do, and write down that this try is at work.

        :raises KieError: nothing more was sent.
        """
        from kie_provider.batch.names import refuse_taken
        from kie_provider.batch.prompts import estimate, read_orders
        from kie_provider.client.budget import Budget, refuse_unpayable
        from kie_provider.client.models import raise_for_problems
        from kie_provider.submission.decide import assign, claim

        items, problems = self._read_items()
        parameter_problems = parameters.problems(self)
        budget = Budget(self.max_credits, self.min_credits_left)
        orders, order_problems = read_orders([item.fields for item in items])
        has_submitted = any(record.state in ("submitted", "unknown") for record in journal.records)
        raise_for_problems(
            [*parameter_problems, *problems, *order_problems],
            "no more was sent; the Kie tasks of earlier tries go on." if has_submitted else "nothing was sent.",
        )
        # A try that comes back later has begun; one whose success was not recorded returns the same again.
        returns_the_same = journal.is_complete and not journal.is_cleared
        fingerprints, kept = [item.fingerprint for item in items], journal.records
        if journal.has_begun or returns_the_same:
            claimed = claim(journal.records, fingerprints, max_tries=journal.max_tries)
        else:
            resubmits = self.on_unknown_submit == "resubmit"
            claimed, kept = assign(
                journal.records, fingerprints, max_tries=journal.max_tries, resubmit_unknown=resubmits
            )
        run = self._new_run(items, claimed, journal, hook, context)
        for item, order in zip(items, orders, strict=True):
            item.order = order
            if returns_the_same and item.outcome == "not_ordered":
                item.settle("not_ordered")  # as it was; what is at Kie is saved again if its files are gone
        self._warn_of_changes(run)
        if run.to_order:
            self._saver(hook, file_name=DEFAULT_FILE_NAME).check_target()
            if not self.overwrite:
                refuse_taken(run.target, [item.file_name for item in run.to_order])
            to_pay = [order for item, order in zip(items, orders, strict=True) if not item.is_settled]
            credits_to_pay, words = estimate(to_pay, price_table())
            what = f"{counted(len(to_pay), 'image')} ({words})"
            get_credits = functools.cache(hook.get_credits)
            budget.check(what, credits_to_pay, get_credits, spent=run.credits)
            if not has_submitted:
                refuse_unpayable(what, credits_to_pay, get_credits)
            if not journal.is_durable:
                self.log.info(
                    "There is no task state store (Airflow 3.3 brought it). If this try dies, the next one creates and "
                    "pays for all images again. Use retries=0 here."
                )
        credits_in_all, words = estimate(orders, price_table())
        self.log.info(
            "%s, %s credits by the price table: %s", counted(len(items), "image"), _credits(credits_in_all), words
        )
        if not journal.has_begun:
            journal.begin(kept, claimed, estimate=credits_in_all)
        return run

    def _resume(
        self, context: Context, trigger_error: Exception, position: Sequence[int] | None = None
    ) -> dict[str, Any]:
        from kie_provider.client.models import raise_for_problems
        from kie_provider.submission.decide import claim

        with self._at_work(context) as (journal, hook):
            journal.resume(position)
            if not journal.has_begun:
                raise AirflowFailException(
                    "The journal of this batch has gone while it was deferred, so nobody knows what was submitted. "
                    "Nothing more was sent; clear this task to begin anew."
                )
            raise_for_problems(parameters.problems(self), "no more was sent; the Kie tasks that are there go on.")
            items, _ = self._read_items()
            claimed = claim(journal.records, [item.fingerprint for item in items], max_tries=journal.max_tries)
            run = self._new_run(items, claimed, journal, hook, context)
            return self._go_on(run, context, trigger_error)

    def _go_on(self, run: BatchRun, context: Context, trigger_error: Exception | None = None) -> dict[str, Any]:
        """Save, order and wait until nothing is left to wait for.

        :param trigger_error: what to raise in the end, if triggers keep coming back though nothing has ended.
        """
        self._run = run
        while True:
            ended = run.look()
            if trigger_error is not None and run.running and not ended:
                count_trigger_restart(context["ti"], trigger_error)
            run.order()
            if not run.running and not run.confirm():
                continue
            self._report(run, context)
            if not run.running:
                break
            if self.deferrable:
                run.journal.summarize()
                raise self._deferral(run)
            time.sleep(self.poll_interval)
        if isinstance(run.halted, KieRateLimitError) and run.to_order:
            from kie_provider.submission.journal import WORTH_A_SUMMARY

            run.journal.summarize(at_least=WORTH_A_SUMMARY)
            come_back_later(run.halted, is_durable=run.journal.is_durable)
        return self._finish(run, context)

    def _finish(self, run: BatchRun, context: Context) -> dict[str, Any]:
        run.write_manifest()
        counts = run.counts()
        needed = math.ceil(self.min_success * len(run.items) - 1e-9)
        estimated = run.journal.estimate
        self.log.info(
            "%g credits were charged, %s were estimated; see %s", run.credits, _credits(estimated), run.manifest
        )
        if counts["saved"] < len(run.items):
            self.log.warning("%s missing:", counted(len(run.items) - counts["saved"], "image"))
            for line in run.named_failures().splitlines():
                self.log.warning(line)
        if counts["saved"] < needed:
            halted = f"{sentence(f'No more was ordered: {run.halted}')} " if run.halted else ""
            error = KieBatchError(
                f"{counts['saved']} of {len(run.items)} are saved, and min_success={self.min_success:g} asks for "
                f"{needed}. {halted}{run.manifest} lists them.\n{run.named_failures()}\n{run.settle_advice()}"
            )
            run.journal.summarize()
            may_help = any(item.may_succeed_later for item in run.items) or (run.halted and run.halted.is_transient)
            self._is_hopeless = not may_help
            raise error
        run.journal.summarize(is_complete=True)
        result = {**run.progress(), "manifest": str(run.manifest), "estimated_credits": estimated}
        tell_assets(self, context, result)
        return result

    def _report(self, run: BatchRun, context: Context) -> None:
        progress = run.progress()
        if progress == self._reported:
            return
        self._reported = progress
        push_xcom(context["ti"], PROGRESS_KEY, {**progress, "manifest": str(run.manifest)})
        self.log.info(
            "%d of %d images saved, %d failed, %d unknown, %d running, %d to order; %g credits",
            *(progress[name] for name in ("saved", "images", "failed", "unknown", "running", "not_ordered", "credits")),
        )

    def _deferral(self, run: BatchRun) -> TaskDeferred:
        from kie_provider.triggers.batch import KieBatchTrigger

        deadline = run.deadline
        return TaskDeferred(
            trigger=KieBatchTrigger(
                kie_conn_id=self.kie_conn_id,
                kie_task_ids=run.running_ids,
                poll_interval=self.poll_interval,
                deadline=deadline,
            ),
            method_name="execute_complete",
            kwargs={"journal": run.journal.position},
            timeout=timedelta(seconds=max(deadline - time.time(), 0.0) + DEFERRAL_MARGIN),
        )

    def _read_items(self) -> tuple[list[Item], list[str]]:
        from kie_provider.batch.names import read_names
        from kie_provider.batch.prompts import duplicate_problems, read_prompts
        from kie_provider.batch.run import Item
        from kie_provider.submission.record import fingerprint_of

        fields, problems = read_prompts(self.prompts, {name: getattr(self, name) for name in _DEFAULTS})
        # The name is no part of what is ordered: another one orders nothing anew.
        rows = [(each.pop("file_name", None), each.get("prompt")) for each in fields]
        names, name_problems = read_names(rows, self.file_name, redact_prompt=self.redact_prompt is True)
        problems += name_problems
        items = [
            Item(index, each, fingerprint_of(each), name or DEFAULT_FILE_NAME)
            for index, (each, name) in enumerate(zip(fields, names, strict=True))
        ]
        if not self.allow_duplicates:
            problems += duplicate_problems([item.fingerprint for item in items])
        return items, problems

    def _new_run(
        self,
        items: list[Item],
        claimed: Sequence[SubmissionRecord | None],
        journal: Journal,
        hook: KieHook,
        context: Context,
    ) -> BatchRun:
        from kie_provider.batch.run import BatchRun
        from kie_provider.files.provenance import RunFacts
        from kie_provider.files.storage import storage_path

        saver = self._saver(hook, file_name=DEFAULT_FILE_NAME)  # every item has a name of its own
        for item, record in zip(items, claimed, strict=True):
            item.record = record
        run = BatchRun(
            items,
            journal,
            hook,
            saver,
            price_table(),
            RunFacts.of(context["ti"]),
            target=storage_path("target", self.target),
            redact_prompt=self.redact_prompt,
            timeout=deadline_seconds(self.timeout, None),
            batch_timeout=None if self.execution_timeout is None else self.execution_timeout.total_seconds(),
        )
        run.recall()
        return run

    def _warn_of_changes(self, run: BatchRun) -> None:
        changed = [item for item in run.items if item.is_changed]
        if changed:
            self.log.warning(
                "%d items, the first of them prompts[%d], are not what they were when they were ordered; this try goes "
                "on with what was ordered. Clear the task to order the new ones.",
                len(changed),
                changed[0].index,
            )

    @contextlib.contextmanager
    def _at_work(self, context: Context) -> Iterator[tuple[Journal, KieHook]]:
        """Open the journal and the hook; log what goes wrong, and turn Kie errors into what Airflow understands."""
        from kie_provider.submission.journal import open_journal

        journal = open_journal(self, context)
        with (
            failures(self.log, self._facts, lambda error: self._failure(error, journal)),
            KieHook(self.kie_conn_id) as hook,
        ):
            yield journal, hook

    def _facts(self) -> Facts:
        run = self._run
        if run is None:
            return Facts(self.kie_conn_id)
        charged = f"{counted(run.credits, 'credit')} for {counted(run.counts()['saved'], 'image')} saved"
        if running := len(run.running):
            charged += f"; {counted(running, 'Kie task')} more at work, charged on success"
        return Facts(self.kie_conn_id, charged=charged)

    def _failure(self, error: BaseException, journal: Journal) -> BaseException:
        unwritten = journal.write_again()
        if isinstance(error, AirflowFailException):
            return error
        if unwritten:
            advice = " ".join(f"Kie task {record.kie_task_id}: key {record.settled_key!r}." for record in unwritten)
            return AirflowFailException(
                f"{sentence(str(error))} No retry, it would not know all Kie tasks. Add their ids, as JSON strings, to "
                f"this task instance's state store, and clear this task. {advice}"
            )
        if not journal.is_durable and any(each.kie_task_id or each.state == "unknown" for each in journal.records):
            running = sum(record.state == "submitted" for record in journal.records)
            return AirflowFailException(
                f"{sentence(str(error))} No retry, it would order all images again. {go_on(running)}."
            )
        if isinstance(error, KieSubmitUnknownError):
            return AirflowFailException(str(error))
        return error if isinstance(error, KieBatchError) and not self._is_hopeless else operator_failure(error)


def _credits(number: float | None) -> str:
    return "an unknown number of" if number is None else f"{number:g}"
