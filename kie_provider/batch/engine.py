"""One worker phase of a batch: submit, poll and save concurrently."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from kie_provider.batch.items import Item, settled_with
from kie_provider.batch.prompts import ITEM_FIELDS
from kie_provider.client.errors import (
    KieAuthError,
    KieError,
    KieInsufficientCreditsError,
    KieNotFoundError,
    KieRateLimitError,
    KieResultError,
    KieStorageError,
    KieSubmitUnknownError,
    KieTargetError,
    KieTaskFailedError,
    KieTaskTimeoutError,
    KieValidationError,
)
from kie_provider.client.polling import Observation, Waiting, watch
from kie_provider.execution_timeout import Alarm, run
from kie_provider.submission.inputs import flux2_request
from kie_provider.submission.submit import MAX_IN_FLIGHT, Submitter
from kie_provider.waiting import RATE_LIMIT_SECONDS

if TYPE_CHECKING:
    from kie_provider.batch.plan import Plan
    from kie_provider.client.polling import Poll
    from kie_provider.client.records import ResultDict, TaskRecord
    from kie_provider.hooks.kie import TaskPoll
    from kie_provider.submission.journal import Journal

log = logging.getLogger(__name__)

#: Number of results saved in parallel; an image takes up to 48 MB while it is decoded.
PARALLEL_SAVES = 4
#: Number of polls under way at a time.
PARALLEL_POLLS = 10
#: Number of Kie tasks running at a time: as many as can be submitted in two minutes, so that images which take that
#: long do not slow down submitting.
MAX_RUNNING = 240
#: Number of unknown submissions in a row after which nothing more is submitted: each may be a task that is paid for and
#: lost.
UNKNOWN_IN_A_ROW = 3
#: Seconds between two writes of the manifest, which only saves later tries some polls.
MANIFEST_SECONDS = 10.0
#: Seconds between two progress reports.
REPORT_SECONDS = 5.0


def work(plan: Plan) -> int:
    """Submit, poll and save until nothing is left to do, or only a wait that the triggerer takes over.

    :return: the number of items that have ended.
    :raises KieError: an error that concerns all items; what could be saved is saved by then.
    """
    plan.report.halted = None
    if not plan.running and not plan.to_submit:
        return 0
    plan.hook.get_conn()

    async def work_on_loop(alarm: Alarm) -> int:
        async with plan.hook.polling(asyncio.Semaphore(PARALLEL_POLLS)) as poll_of:
            with Submitter(plan.journal, plan.hook, alarm) as submitter, Phase(plan, submitter, poll_of) as phase:
                return await phase.work()

    return run(work_on_loop)


class Phase:
    """One worker phase on an event loop. Use it as a context manager."""

    def __init__(self, plan: Plan, submitter: Submitter, poll_of: Callable[[str], TaskPoll]) -> None:
        self._plan = plan
        self._report = plan.report
        self._journal = plan.journal
        self._submitter = submitter
        self._poll_of = poll_of
        self._ended = 0
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lanes: list[asyncio.Task[None]] = []
        self._unknown_in_a_row = _unknown_in_a_row(plan.journal)
        running = plan.running
        self._unpolled = {item.index for item in running}
        self._room = asyncio.Semaphore(max(MAX_RUNNING - len(running), 0))
        self._is_manifest_due = False
        self._halted_until = 0.0
        self._may_try_once_more = bool(running)
        self._saves = ThreadPoolExecutor(PARALLEL_SAVES, thread_name_prefix="kie-save")

    def __enter__(self) -> Phase:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._saves.shutdown(wait=False, cancel_futures=True)  # a timeout does not wait for slow hosts

    async def work(self) -> int:
        """Run the phase; return the number of items that have ended."""
        try:
            for item in self._plan.running:
                self._start(self._follow(item))
            self._submit_all()
            manifest_at, report_at, had_stopped = time.monotonic(), time.monotonic(), False
            while not self._is_over():
                await self._next_change()
                now = time.monotonic()
                self._submit_the_rest(now)
                if self._is_manifest_due and now - manifest_at >= MANIFEST_SECONDS:
                    self._is_manifest_due, manifest_at = False, now
                    await self._in_thread(self._plan.manifest_writer())
                has_stopped = self._has_stopped_submitting()
                if now - report_at >= REPORT_SECONDS or has_stopped is not had_stopped:
                    report_at, had_stopped = now, has_stopped
                    self._plan.on_progress()
        finally:
            for task in self._tasks:
                task.cancel()
            if self._tasks:  # the answer to a createTask in flight is recorded first
                await asyncio.wait(self._tasks)
        if self._is_manifest_due:
            self._plan.manifest_writer()()
        if self._failure is not None:
            raise self._failure
        return self._ended

    def _is_over(self) -> bool:
        if not self._has_stopped_submitting():
            return False
        states = {item.state for item in self._plan.running}
        if self._failure is not None:
            return "saving" not in states
        if self._may_submit():
            return False
        return not states or (self._plan.defers and not self._unpolled and states == {"running"})

    async def _next_change(self) -> None:
        change = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait([change], timeout=1.0)  # wait_for can swallow a cancellation before Python 3.12
        finally:
            change.cancel()
        self._changed.clear()

    def _start(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)
        self._changed.set()

    def _fail(self, error: BaseException) -> None:
        """End the phase once the saves under way have finished; the first error counts."""
        self._failure = self._failure or error
        for lane in self._lanes:
            lane.cancel()

    def _in_thread(self, call: Callable[[], Any]) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().run_in_executor(self._saves, call)

    # Submitting

    def _submit_all(self) -> None:
        """Start submitting, until something halts it."""
        self._report.halted = None
        if self._unknown_in_a_row >= UNKNOWN_IN_A_ROW:
            self._halt(KieSubmitUnknownError(f"the last {self._unknown_in_a_row} of this try were not answered"))
            return
        queue = iter(self._plan.to_submit)
        self._lanes = [self._start(self._submit_next(queue)) for _ in range(MAX_IN_FLIGHT)]

    def _has_stopped_submitting(self) -> bool:
        return all(lane.done() for lane in self._lanes)

    def _may_submit(self) -> bool:
        """Whether there is something to submit, room for it, and nothing that halts it."""
        if self._report.halted is not None or self._failure is not None or self._journal.is_stopping:
            return False
        return bool(self._plan.to_submit) and not self._room.locked()

    def _submit_the_rest(self, now: float) -> None:
        """Resume submitting once there is room, or once the cause of a halt may have passed."""
        if not self._has_stopped_submitting():
            return
        if (halted := self._report.halted) is not None and self._may_resume(halted, now):
            self._may_try_once_more = bool(self._plan.running)
            self._report.halted = None
        if self._may_submit():
            self._submit_all()

    def _may_resume(self, halted: KieError, now: float) -> bool:
        """Whether Kie may accept more by now; refusals cost nothing."""
        if not (halted.is_transient or isinstance(halted, KieInsufficientCreditsError)):
            return False
        if self._plan.running:  # from time to time, as long as this worker waits anyway
            return now >= self._halted_until and not self._plan.defers
        # Once more at the end, unless the task is rescheduled for it.
        return self._may_try_once_more and not isinstance(halted, KieRateLimitError)

    def _halt(self, error: KieError) -> None:
        self._report.halted = self._report.halted or error
        self._halted_until = time.monotonic() + max(error.retry_after or 0.0, RATE_LIMIT_SECONDS)

    async def _submit_next(self, queue: Iterator[Item]) -> None:
        """Submit one item after another, until there are no more or something halts it."""
        for item in queue:
            if self._plan.defers and self._room.locked():
                return  # the triggerer waits until there is room
            await self._room.acquire()
            if time.time() >= self._plan.ends_at:
                self._halt(KieTaskTimeoutError("execution_timeout is over"))
            if self._report.halted is not None or self._journal.is_stopping:
                self._room.release()
                return
            if await self._submit(item):
                self._start(self._follow(item, self._plan.poll_interval))
            else:
                self._room.release()

    async def _submit(self, item: Item) -> bool:
        """Create the Kie task of an item; return whether that succeeded."""
        try:
            if item.request is None:  # an earlier phase has checked it
                item.request = flux2_request(item.fields, self._plan.callback_url, allowed=ITEM_FIELDS)
            item.record = await self._submitter.submit(item.request, item=item.index)
        except asyncio.CancelledError:  # the answer is recorded by now, if there is one
            item.recall(self._journal.latest_of(item.index))
            raise
        except KieSubmitUnknownError as error:
            item.record = self._journal.latest_of(item.index)
            item.become("unknown", error.message + (settled_with(item.record) if item.record else ""))
            log.error("prompts[%d]: %s", item.index, error)  # noqa: TRY400  # a traceback adds nothing
            self._unknown_in_a_row += 1
            if self._unknown_in_a_row >= UNKNOWN_IN_A_ROW:
                self._halt(error)
        except KieError as error:
            is_its_own = isinstance(error, KieValidationError | KieTargetError | KieStorageError)
            if is_its_own and not error.is_from_gateway:
                item.become("failed", error.message, may_succeed_later=error.is_transient)
                log.warning("prompts[%d]: %s", item.index, error)
                self._unknown_in_a_row = 0
            else:
                if self._report.halted is None:
                    log.warning("Submitting stopped for now: %s", error)
                self._halt(error)
        else:
            item.become("running")
            self._unknown_in_a_row, self._may_try_once_more = 0, True
            return True
        return False

    # Waiting and saving

    async def _follow(self, item: Item, delay: float = 0.0) -> None:
        """Wait for the Kie task of an item, and save its result.

        :param delay: seconds until the first poll.
        """
        try:
            await asyncio.sleep(delay)
            record = await self._wait(item)
            if record is not None:
                await self._save(item, record.to_result())
        finally:
            self._unpolled.discard(item.index)
            self._room.release()
        self._ended += 1
        self._is_manifest_due = True

    async def _wait(self, item: Item) -> TaskRecord | None:
        """Return the record of the Kie task; None: it has not succeeded, and the item's state says why."""
        assert item.record is not None  # noqa: S101  # it was submitted
        waiting = Waiting(
            max(item.record.at, self._journal.begun_at),
            self._plan.poll_interval,
            deadline=self._plan.deadline_of(item),
            visible_at=time.time(),  # assumed, so that a single "not found" does not end the wait
        )
        try:
            return await watch(waiting, self._marking_polled(item, self._poll_of(item.kie_task_id)))
        except KieTaskTimeoutError as error:
            item.become("timed_out", error.message, may_succeed_later=True)
        except (KieTaskFailedError, KieResultError) as error:
            anew = isinstance(error, KieTaskFailedError) and error.may_succeed_anew
            charged = ", but was charged" if getattr(error, "credits_consumed", None) else ""
            reason = f"{error.message}{charged}"
            item.record = self._journal.failed(item.record, reason, may_succeed_anew=anew)
            item.become("failed", reason, may_succeed_later=anew)
        except KieError as error:
            self._leave(item, error)
        log.warning("prompts[%d]: %s", item.index, item.reason)
        return None

    def _marking_polled(self, item: Item, poll: TaskPoll) -> Poll:
        """Wrap ``poll``, so that the phase knows which items were polled."""

        async def poll_and_mark(*, refresh_key: bool = False) -> Observation:
            observation = await poll(refresh_key=refresh_key)
            if item.index in self._unpolled and not isinstance(observation, KieAuthError):
                self._unpolled.discard(item.index)
                self._changed.set()
            return observation

        return poll_and_mark

    async def _save(self, item: Item, result: ResultDict) -> None:
        item.become("saving")
        save = partial(self._plan.saver.named(item.file_name).save, result, self._report.run)
        try:
            saved = await self._in_thread(save)
        except KieError as error:
            self._leave(item, error)
            log.warning("prompts[%d]: %s", item.index, error)
            return
        item.become("saved", result=saved)
        log.info(
            "prompts[%d] saved (%d of %d): %s",
            item.index,
            self._report.counts()["saved"],
            len(self._report.items),
            ", ".join(self._report.name(file["path"]) for file in saved["files"]),
        )

    def _leave(self, item: Item, error: KieError) -> None:
        """Leave an item to later tries, or end the phase if the error concerns other items too."""
        is_its_own = isinstance(error, KieNotFoundError | KieResultError) or (
            error.is_transient and not isinstance(error, KieStorageError)
        )
        if is_its_own:
            item.become("failed", str(error), may_succeed_later=error.is_transient)
        else:
            item.become("running", str(error))
            self._fail(error)


def _unknown_in_a_row(journal: Journal) -> int:
    """Return the number of unknown submissions at the end of this try's list, including those of earlier phases."""
    sent = [record for record in journal.submissions_of_this_try if record.state == "unknown" or record.kie_task_id]
    return sum(1 for _ in itertools.takewhile(lambda record: record.state == "unknown", reversed(sent)))
