"""What a batch reports: counts, failures, and the content of the manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from kie_provider.batch import manifest
from kie_provider.batch.items import OUTCOMES, Item
from kie_provider.client.errors import LOGS_PAGE, KieError
from kie_provider.client.plain import shorten
from kie_provider.files.provenance import input_of, prompt_sha256
from kie_provider.submission.record import NOTHING

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    from kie_provider.client.prices import PriceTable
    from kie_provider.files.provenance import RunFacts

#: Number of items named in a message; the manifest has them all.
NAMED = 10


@dataclass
class Report:
    """What a batch reports.

    :param redact_prompt: whether the prompts must not appear.
    :param halted: why submitting has stopped; None: it has not.
    """

    items: Sequence[Item]
    prices: PriceTable
    run: RunFacts
    target: ObjectStoragePath
    redact_prompt: bool
    halted: KieError | None = None

    def __post_init__(self) -> None:
        self.manifest = manifest.manifest_path(self.target, self.run)

    def counts(self) -> dict[str, int]:
        """Return the number of items per outcome."""
        counted = Counter(item.outcome for item in self.items)
        return {outcome: counted[outcome] for outcome in OUTCOMES}

    @property
    def credits(self) -> float:
        """What the saved images have cost."""
        return self.prices.total_of(item.result for item in self.items if item.result is not None)

    def progress(self) -> dict[str, object]:
        """Return the counts and the credits."""
        return {"images": len(self.items), **self.counts(), "credits": self.credits}

    def told(self) -> dict[str, object]:
        """Return what XCom shows while the batch runs, and in the end."""
        return {**self.progress(), "manifest": str(self.manifest), "try_number": self.run.try_number}

    def failure_lines(self) -> str:
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
        """Say how to settle unknown submissions, if there are any."""
        if not any(item.state == "unknown" for item in self.items):
            return ""
        return (
            f"For an unknown one, {LOGS_PAGE} shows whether a Kie task was created. Add its id, as a JSON string, or "
            f'"{NOTHING}", under the key named above to this task instance\'s state store, and clear this task.\n'
        )

    def name(self, path: str) -> str:
        """Return a path relative to the target."""
        return path.removeprefix(str(self.target)).lstrip("/")

    def manifest_content(self, estimate: float | None) -> dict[str, object]:
        """Return the content of the manifest.

        :param estimate: credits that the whole batch should cost.
        """
        return {
            **self.progress(),
            "items": [self._manifest_entry(item) for item in self.items],
            "estimated_credits": estimate,
            "usd": self.prices.usd(self.credits),
            "airflow": asdict(self.run),
        }

    def _prompt(self, item: Item) -> object:
        prompt = item.fields.get("prompt")
        return prompt_sha256(prompt) if self.redact_prompt else prompt

    def _manifest_entry(self, item: Item) -> dict[str, object]:
        """Return the manifest's entry of an item; that of a saved one is the result dict."""
        facts: dict[str, object] = {"item": item.index, "outcome": item.outcome}
        if self.redact_prompt:
            facts["prompt_sha256"] = self._prompt(item)
        if item.result is not None:
            task_input = dict(input_of(item.result))
            if self.redact_prompt:
                task_input.pop("prompt", None)
            return {**item.result, "input": task_input, **facts}
        task_input = {name: value for name, value in item.fields.items() if name != "prompt" or not self.redact_prompt}
        return {
            **facts,
            "kie_task_id": item.kie_task_id or None,
            "reason": item.reason or (str(self.halted) if self.halted and item.outcome == "not_submitted" else ""),
            "input": task_input,
        }
