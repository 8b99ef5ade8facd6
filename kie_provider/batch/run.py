"""One worker phase of a batch: save what is ready, order more, and say how it stands."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from kie_provider.batch import manifest
from kie_provider.batch.prompts import Order
from kie_provider.client.errors import (
    LOGS_PAGE,
    KieError,
    KieNotFoundError,
    KieResultError,
    KieStorageError,
    KieSubmitUnknownError,
    KieTargetError,
    KieTaskFailedError,
    KieTaskTimeoutError,
    KieValidationError,
)
from kie_provider.client.models import TaskRecord, shorten
from kie_provider.client.polling import Again, Raise, Waiting, judge
from kie_provider.files.provenance import credits_of, input_of, prompt_sha256
from kie_provider.orders import read_order, upload_files
from kie_provider.submission.journal import Journal
from kie_provider.submission.record import NOTHING, SubmissionRecord, iso
from kie_provider.submission.submit import submit

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    from kie_provider.client.prices import PriceTable
    from kie_provider.files.provenance import RunFacts
    from kie_provider.files.saving import ResultSaver
    from kie_provider.hooks.kie import KieHook

log = logging.getLogger(__name__)

#: So many results are looked at and saved at the same time; an image takes up to 48 MB while it is decoded.
AT_ONCE = 4
#: So many images are made at the same time.
MAX_RUNNING = 100
#: After so many unknown submissions in a row no more is sent: each may be a task that is paid for and lost.
UNKNOWN_IN_A_ROW = 3
#: So many items are named in a message; the manifest has them all.
NAMED = 10

Outcome = Literal["saved", "failed", "unknown", "running", "not_ordered"]
OUTCOMES: tuple[Outcome, ...] = ("saved", "failed", "unknown", "running", "not_ordered")


@dataclass
class Item:
    """One image of the batch.

    :param file_name: pattern of its name below the target.
    :param record: what is known of its submission; None: there is none yet.
    :param reason: why it is not saved, for people.
    :param is_settled: nothing more is done about it in this try.
    :param is_hearsay: that it is saved stands in the manifest, and nobody has looked at its files yet.
    :param may_succeed_later: a retry may help.
    """

    index: int
    fields: Mapping[str, Any]
    fingerprint: str
    file_name: str
    record: SubmissionRecord | None = None
    order: Order | None = None
    outcome: Outcome = "not_ordered"
    reason: str = ""
    is_settled: bool = False
    is_hearsay: bool = False
    may_succeed_later: bool = False
    result: Mapping[str, Any] | None = None

    @property
    def is_changed(self) -> bool:
        """Whether it is not what was submitted for it, and that is what counts."""
        return self.record is not None and self.record.fingerprint != self.fingerprint

    @property
    def kie_task_id(self) -> str | None:
        """Kie's id of its task, once known."""
        return self.record.kie_task_id if self.record else None

    @property
    def submitted_at(self) -> float:
        """Epoch seconds when it was submitted; 0 if that is not known."""
        return self.record.at if self.record else 0.0

    def settle(self, outcome: Outcome, reason: str = "", *, may_succeed_later: bool = False) -> None:
        """Say how it has ended."""
        self.outcome, self.reason, self.may_succeed_later = outcome, reason, may_succeed_later
        self.is_settled = True


@dataclass(frozen=True)
class Look:
    """What one look at a Kie task, and saving its result, have come to.

    :param error: why there is no saved result; None beside no result: it is still running.
    :param is_at_kie: the error is how the Kie task has ended, so no retry finds it otherwise.
    """

    result: Mapping[str, Any] | None = None
    error: KieError | None = None
    is_at_kie: bool = False
    was_charged: bool = False


class BatchRun:
    """The batch, as one worker process knows it.

    :param timeout: seconds that one image may take, from its submission or the start of this try.
    :param batch_timeout: seconds from the start of this try, after which nothing more is waited for or ordered; None:
        no end.
    """

    def __init__(
        self,
        items: Sequence[Item],
        journal: Journal,
        hook: KieHook,
        saver: ResultSaver,
        prices: PriceTable,
        run: RunFacts,
        *,
        target: ObjectStoragePath,
        redact_prompt: bool,
        timeout: float,
        batch_timeout: float | None = None,
    ) -> None:
        self.items = items
        self.journal = journal
        self.manifest = manifest.manifest_path(target, run)
        self.halted: KieError | None = None
        self.target = target
        self._hook = hook
        self._saver = saver
        self._prices = prices
        self._run = run
        self._redact_prompt = redact_prompt
        self._timeout = timeout
        self._batch_timeout = batch_timeout

    def recall(self) -> None:
        """Take over what the journal and the manifest know of the items."""
        saved = {item["kie_task_id"]: item for item in manifest.read_items(self.manifest) if manifest.is_saved(item)}
        for item in self.items:
            record = item.record
            if record is None:
                continue
            if record.state == "submitted":
                item.outcome = "running"
                result = saved.get(item.kie_task_id or "")
                if result and self._saver.named(item.file_name).could_have_saved(result):
                    item.result, item.is_hearsay = result, True
                    item.settle("saved")
            elif record.state == "unknown":
                item.settle(
                    "unknown",
                    f"try {record.try_number} sent createTask at {iso(record.at)} and knows no answer"
                    + self._settled_with(record),
                )
            else:
                item.settle("failed", record.reason, may_succeed_later=record.may_succeed_anew)

    def confirm(self) -> bool:
        """Look at the files of what the manifest says is saved; what is not there goes on as if it were running.

        :return: whether all of them are there.
        :raises KieError: the storage failed.
        """
        hearsay = [item for item in self.items if item.is_hearsay]
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            found = list(pool.map(lambda item: self._saver.named(item.file_name).saved(item.result), hearsay))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # a time-out does not wait for slow storage
        for item, result in zip(hearsay, found, strict=True):
            item.result, item.is_hearsay = result, False
            if result is None:
                log.warning("prompts[%d]: its files are gone or were changed since they were saved", item.index)
                item.outcome, item.is_settled = "running", False
        return all(found)

    @property
    def running(self) -> list[Item]:
        """The items that are worth waiting for."""
        return [item for item in self.items if item.outcome == "running" and not item.is_settled]

    @property
    def running_ids(self) -> list[str]:
        """The Kie task ids of those."""
        return [item.kie_task_id or "" for item in self.running]

    @property
    def deadline(self) -> float:
        """Epoch seconds when the last running item has had its time."""
        return max(map(self._deadline, self.running))

    @property
    def to_order(self) -> list[Item]:
        """The items that have not been ordered, or are to be ordered anew."""
        return [item for item in self.items if item.outcome == "not_ordered" and not item.is_settled]

    def look(self) -> int:
        """Look at every running item, save what is ready, and return how many have ended.

        :raises KieError: what will go wrong for the others too; what could be saved is saved.
        """
        running = self.running
        if not running:
            return 0
        self._hook.get_conn()  # read once, not by every thread
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            looks = list(pool.map(self._look, running))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # a time-out does not wait for slow hosts
        fatal = [error for item, look in zip(running, looks, strict=True) if (error := self._judge(item, look))]
        ended = sum(item.is_settled for item in running)
        if ended:
            self.write_manifest()
        if fatal:
            raise fatal[0]
        return ended

    def order(self) -> None:
        """Order what is missing, until a slice is running or something speaks against more."""
        self.halted = None
        room, unknown_in_a_row = MAX_RUNNING - len(self.running), self._unknown_in_a_row()
        if unknown_in_a_row >= UNKNOWN_IN_A_ROW:
            self.halted = KieSubmitUnknownError(f"the last {unknown_in_a_row} of this try were not answered")
            return
        for item in self.to_order:
            if room <= 0:
                return
            if time.time() >= self._ends_at:
                self.halted = KieTaskTimeoutError("execution_timeout is over")
                return
            try:
                self._order(item)
            except KieSubmitUnknownError as error:
                item.record = self.journal.latest
                item.settle("unknown", error.message + self._settled_with(item.record))
                log.error("prompts[%d]: %s", item.index, error)  # noqa: TRY400  # a traceback adds nothing
                unknown_in_a_row += 1
                if unknown_in_a_row == UNKNOWN_IN_A_ROW:
                    self.halted = error
                    return
            except KieError as error:
                is_its_own = isinstance(error, KieValidationError | KieTargetError | KieStorageError)
                if not is_its_own or error.is_from_gateway:
                    self.halted = error
                    log.warning("No more is ordered for now: %s", error)
                    return
                item.settle("failed", error.message, may_succeed_later=error.is_transient)
                log.warning("prompts[%d]: %s", item.index, error)
                unknown_in_a_row = 0
            else:
                room, unknown_in_a_row = room - 1, 0

    def counts(self) -> dict[str, int]:
        """Return how many items are at each outcome."""
        counted = Counter(item.outcome for item in self.items)
        return {outcome: counted[outcome] for outcome in OUTCOMES}

    @property
    def credits(self) -> float:
        """What the saved images have cost."""
        return sum(credits_of(item.result, self._prices) or 0.0 for item in self.items if item.result is not None)

    def progress(self) -> dict[str, Any]:
        """Return the counts and the credits: what XCom shows while the batch runs."""
        return {"images": len(self.items), **self.counts(), "credits": self.credits}

    def named_failures(self) -> str:
        """Return one line for each of the first items that are not saved."""
        missing = [item for item in self.items if item.outcome != "saved"]
        lines = [
            f"  - prompts[{item.index}] {shorten(self._prompt(item))}: {item.outcome.replace('_', ' ')}"
            + (f" ({item.reason.splitlines()[-1].strip()})" if item.reason else "")
            for item in missing[:NAMED]
        ]
        more = len(missing) - NAMED
        return "\n".join([*lines, *([f"  - and {more} more"] if more > 0 else [])])

    def settle_advice(self) -> str:
        """Say how unknown submissions are settled, if there are any."""
        if not (self.journal.is_durable and any(item.outcome == "unknown" for item in self.items)):
            return ""
        return (
            f"Of an unknown one, {LOGS_PAGE} shows whether a Kie task was created. Add its id, as a JSON string, or "
            f'"{NOTHING}", under the key that is named to this task instance\'s state store, and clear this task.\n'
        )

    def write_manifest(self) -> None:
        """Write down what has become of every item."""
        manifest.write(
            self.manifest,
            {
                **self.progress(),
                "items": [self._told(item) for item in self.items],
                "estimated_credits": self.journal.estimate,
                "usd": self._prices.usd(self.credits),
                "airflow": asdict(self._run),
            },
        )

    def _look(self, item: Item) -> Look:
        assert item.kie_task_id is not None  # noqa: S101  # it was submitted
        waiting = Waiting(
            max(item.submitted_at, self.journal.begun_at),
            deadline=self._deadline(item),
            key_was_refreshed=True,  # the connection was just read, so a refused key is final
        )
        observation = self._hook.look(item.kie_task_id)
        verdict = judge(observation, waiting, time.time())
        if isinstance(verdict, Again):
            return Look()
        if isinstance(verdict, Raise):
            was_charged = isinstance(observation, TaskRecord) and bool(observation.credits_consumed)
            return Look(error=verdict.error, is_at_kie=True, was_charged=was_charged)
        try:
            return Look(self._saver.named(item.file_name).save(verdict.record.to_result(), self._run))
        except KieError as error:
            return Look(error=error)

    def _judge(self, item: Item, look: Look) -> KieError | None:
        """Settle an item; return an error that is not this item's alone."""
        error = look.error
        if look.result is not None:
            item.result = look.result
            item.settle("saved")
            log.info(
                "prompts[%d] saved (%d of %d): %s",
                item.index,
                self.counts()["saved"],
                len(self.items),
                ", ".join(self._name(file["path"]) for file in look.result["files"]),
            )
        elif error is None:
            return None
        elif isinstance(error, KieTaskTimeoutError):
            item.settle("running", error.message, may_succeed_later=True)
        elif look.is_at_kie and isinstance(error, KieTaskFailedError | KieResultError):
            anew = isinstance(error, KieTaskFailedError) and error.may_succeed_anew and not look.was_charged
            charged = ", but was charged" if look.was_charged else ""
            assert item.record is not None  # noqa: S101  # it was submitted
            item.record = self.journal.failed(item.record, f"{error.message}{charged}", may_succeed_anew=anew)
            item.settle("failed", f"{error.message}{charged}", may_succeed_later=anew)
        elif isinstance(error, KieNotFoundError | KieResultError) or (
            error.is_transient and not isinstance(error, KieStorageError)
        ):
            item.settle("failed", str(error), may_succeed_later=error.is_transient)
        else:
            return error
        if error is not None:
            log.warning("prompts[%d]: %s", item.index, error)
        return None

    def _order(self, item: Item) -> None:
        """Create the Kie task of an item."""
        flux2, images = item.order or read_order(item.fields)
        payload = flux2.to_payload()
        task_input = upload_files(payload, lambda: images, self._hook)
        request = {"model": flux2.model, "input": payload}
        item.record = submit(self.journal, self._hook, request, task_input, item.fingerprint, item=item.index)
        item.outcome = "running"

    def _unknown_in_a_row(self) -> int:
        """Return how many submissions of this try, the last ones, are unknown; an earlier phase may have sent them."""
        sent = [each for each in self.journal.submissions_of_this_try if each.state == "unknown" or each.kie_task_id]
        return sum(1 for _ in itertools.takewhile(lambda each: each.state == "unknown", reversed(sent)))

    def _settled_with(self, record: SubmissionRecord | None) -> str:
        return f"; settled with the key {record.settled_key!r}" if record and self.journal.is_durable else ""

    @property
    def _ends_at(self) -> float:
        return math.inf if self._batch_timeout is None else self.journal.begun_at + self._batch_timeout

    def _deadline(self, item: Item) -> float:
        deadline = max(item.submitted_at, self.journal.begun_at) + self._timeout
        return min(deadline, self._ends_at)

    def _name(self, path: str) -> str:
        """Return a path as it is named below the target."""
        return path.removeprefix(str(self.target)).lstrip("/")

    def _prompt(self, item: Item) -> Any:
        prompt = item.fields.get("prompt")
        return prompt_sha256(prompt) if self._redact_prompt else prompt

    def _told(self, item: Item) -> dict[str, Any]:
        """Return what the manifest says of an item; of a saved one, the result dict."""
        facts: dict[str, Any] = {"item": item.index, "outcome": item.outcome}
        if self._redact_prompt:
            facts["prompt_sha256"] = self._prompt(item)
        if item.result is not None:
            task_input = dict(input_of(item.result))
            if self._redact_prompt:
                task_input.pop("prompt", None)
            return {**item.result, "input": task_input, **facts}
        task_input = {name: value for name, value in item.fields.items() if name != "prompt" or not self._redact_prompt}
        return {
            **facts,
            "kie_task_id": item.kie_task_id,
            "reason": item.reason or (str(self.halted) if self.halted and item.outcome == "not_ordered" else ""),
            "input": task_input,
        }
