"""What a batch has to do: its items by state, and their deadlines."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from kie_provider.batch import manifest

if TYPE_CHECKING:
    from kie_provider.batch.items import Item
    from kie_provider.batch.report import Report
    from kie_provider.files.saving import ResultSaver
    from kie_provider.hooks.kie import KieHook
    from kie_provider.submission.journal import Journal


@dataclass(frozen=True)
class Plan:
    """What a batch has to do, and what it needs for that.

    :param callback_url: public URL that Kie calls when a task ends.
    :param poll_interval: seconds between two polls of a Kie task, at first.
    :param timeout: seconds that one image may take, from its submission or the start of this try, whichever is later.
    :param batch_timeout: seconds from the start of this try, after which it neither polls nor submits; None: no limit.
    :param defers: whether the wait moves to the triggerer once everything possible was submitted.
    :param on_progress: called every few seconds.
    """

    report: Report
    journal: Journal
    hook: KieHook
    saver: ResultSaver
    callback_url: str | None
    poll_interval: float
    timeout: float
    batch_timeout: float | None
    defers: bool
    on_progress: Callable[[], object]

    @property
    def running(self) -> list[Item]:
        """The items whose Kie tasks are waited for or whose files are being saved."""
        return [item for item in self.report.items if item.state in ("running", "saving")]

    @property
    def to_submit(self) -> list[Item]:
        """The items that are to be submitted, for the first time or again."""
        return [item for item in self.report.items if item.state == "to_submit"]

    @property
    def ends_at(self) -> float:
        """Epoch seconds at which the time of the whole batch is over."""
        return math.inf if self.batch_timeout is None else self.journal.begun_at + self.batch_timeout

    def deadline_of(self, item: Item) -> float:
        """Return the epoch seconds at which an item times out."""
        submitted_at = item.record.at if item.record else 0.0
        return min(max(submitted_at, self.journal.begun_at) + self.timeout, self.ends_at)

    def manifest_writer(self) -> Callable[[], None]:
        """Return a function that writes the manifest as the items are now."""
        return partial(manifest.write, self.report.manifest, self.report.manifest_content(self.journal.estimate))
