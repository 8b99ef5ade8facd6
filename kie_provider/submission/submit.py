"""The paid call: the only place from which operators send createTask."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from kie_provider.client.errors import KieError, KieRateLimitError, KieSubmitUnknownError
from kie_provider.client.rate_limit import Slot, SlotWait
from kie_provider.client.retry import SUBMIT_PATIENCE, SubmitPatience
from kie_provider.submission.callbacks import CallbackUrls

if TYPE_CHECKING:
    from kie_provider.execution_timeout import Alarm
    from kie_provider.hooks.kie import KieHook
    from kie_provider.submission.inputs import TaskRequest
    from kie_provider.submission.journal import Journal
    from kie_provider.submission.record import SubmissionRecord

T = TypeVar("T")

#: Number of createTasks of a task instance in flight at a time; a crash can leave as many submissions unknown. Kie
#: answers within a second, so four keep up with the 20 in ten seconds that it allows.
MAX_IN_FLIGHT = 4
#: Seconds. Before Airflow 3.3 a reschedule would use up the try, so a submission waits for its slot on the worker.
LONGEST_SLOT_WAIT = 600.0


class Submitter:
    """Creates the Kie tasks of a task instance, up to :data:`MAX_IN_FLIGHT` at a time, on an event loop.

    Each submission waits for a slot, writes the intent, sends createTask from a thread, and records the answer. The
    journal is written only in the thread of the event loop. Use it as a context manager.

    :param alarm: of ``execution_timeout``; once it has rung, nothing more is sent.
    """

    def __init__(self, journal: Journal, hook: KieHook, alarm: Alarm) -> None:
        import requests  # noqa: F401  # not between the slot and the request

        self._journal = journal
        self._hook = hook
        self._alarm = alarm
        self._client = hook.get_conn()
        self._window = hook.rate_limit_window
        self._callbacks = CallbackUrls(self._client.endpoint, hook.kie_conn_id, journal.ti_id)
        self._turn = asyncio.Lock()  # slots go in the order of the submissions
        self._in_flight = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._unwritten: set[asyncio.Future[str]] = set()  # answers of createTask that are not recorded yet
        self._threads = ThreadPoolExecutor(MAX_IN_FLIGHT, thread_name_prefix="kie-submit")

    def __enter__(self) -> Submitter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def submit(self, request: TaskRequest, *, item: int = 0) -> SubmissionRecord:
        """Create a Kie task, and return its record, with the Kie task id.

        A temporary refusal (429, 455) is recorded before the wait for the next attempt, for about twelve seconds in
        all: an intent has no answer only while a request is under way. If cancelled, it sends nothing more, but records
        the answer to what it has sent.

        :param item: index in the list of a batch.
        :raises KieSubmitUnknownError: sent, but it is not known whether a task was created; the intent says so.
        :raises KieError: nothing was created.
        """
        async with self._in_flight:
            body = await self._in_thread(partial(request.upload_files, self._hook))
            patience, slot = SubmitPatience(), None
            while True:
                if slot is None:
                    async with self._turn:
                        slot = await self._acquire_slot()
                await self._catch_up()
                try:
                    return await _finish_before_cancel(self._send(request, body, item, slot))
                except KieError as error:
                    slot = slot.refused() if isinstance(error, KieRateLimitError) else None
                    delay = patience.delay_after(error)
                await asyncio.sleep(delay)

    async def _acquire_slot(self) -> Slot:
        wait = SlotWait(self._window, SUBMIT_PATIENCE if self._journal.is_durable else LONGEST_SLOT_WAIT)
        for seconds in wait:
            await asyncio.sleep(seconds)
        return wait.slot

    async def _catch_up(self) -> None:
        """Let the answers that have arrived be recorded before more is sent."""
        await asyncio.sleep(0)
        while any(answer.done() for answer in self._unwritten):  # noqa: ASYNC110  # they are about to be
            await asyncio.sleep(0)

    def _send(
        self, request: TaskRequest, body: Mapping[str, object], item: int, slot: Slot
    ) -> asyncio.Future[SubmissionRecord]:
        """Write the intent and send createTask; the future has the answer, once it is recorded."""
        body, nonce = self._callbacks.added_to(body)
        record = self._journal.intend(
            request.body,
            request.fingerprint,
            item=item,
            conn_id=self._hook.kie_conn_id,
            host=self._client.endpoint.host,
            nonce=nonce,
        )
        if self._alarm.has_rung or self._journal.is_stopping:
            error = InterruptedError("the try ended before createTask was sent")
            self._journal.refused(record, error, self._alarm)
            raise error
        answer = self._in_thread(partial(self._client.create_task_once, body, slot.leave))
        self._unwritten.add(answer)
        return asyncio.ensure_future(self._recorded(record, answer))

    async def _recorded(self, record: SubmissionRecord, answer: asyncio.Future[str]) -> SubmissionRecord:
        try:
            kie_task_id = await answer
        except KieSubmitUnknownError:
            raise  # the intent remains as it is: unknown
        except KieError as error:
            self._journal.refused(record, error, self._alarm)
            raise
        else:
            return self._journal.created(record, kie_task_id, self._alarm)
        finally:
            self._unwritten.discard(answer)

    def _in_thread(self, call: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, call)


async def _finish_before_cancel(future: asyncio.Future[T]) -> T:
    """Return the result of a future. If cancelled, wait for the future first."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:  # noqa: PERF203
            cancelled = error
    if cancelled is not None:
        future.exception()  # whatever it is, the cancellation counts
        raise cancelled
    return future.result()
