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
    """What a batch has to do, and with what.

    :param callback_url: public URL that Kie calls when a task ends.
    :param poll_interval: seconds between two polls of a Kie task, at first.
    :param timeout: seconds that one image may take, from its submission or the start of this try.
    :param batch_timeout: seconds from the start of this try, after which nothing more is waited for or submitted; None:
        no end.
    :param defers: the waiting is left to the triggerer, once all that is possible was submitted.
    :param on_progress: called now and then.
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
        """The items whose Kie tasks are worth waiting for."""
        return [item for item in self.report.items if item.state in ("running", "saving")]

    @property
    def to_submit(self) -> list[Item]:
        """The items that have not been submitted, or are to be submitted anew."""
        return [item for item in self.report.items if item.state == "to_submit"]

    @property
    def ends_at(self) -> float:
        """Epoch seconds when the time of the whole batch is over."""
        return math.inf if self.batch_timeout is None else self.journal.begun_at + self.batch_timeout

    def deadline_of(self, item: Item) -> float:
        """Epoch seconds when an item has had its time."""
        submitted_at = item.record.at if item.record else 0.0
        return min(max(submitted_at, self.journal.begun_at) + self.timeout, self.ends_at)

    def manifest_writer(self) -> Callable[[], None]:
        """Return what writes down what has become of every item so far."""
        return partial(manifest.write, self.report.manifest, self.report.entries(self.journal.estimate))
