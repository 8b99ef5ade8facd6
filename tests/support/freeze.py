"""`python -m tests.support.freeze`: keep what this release stores in Airflow's database while a task is deferred.

That is the rows of its triggers, the events they end with, and the journals of its operators. Every later release has
to understand them, as a deployment is upgraded while tasks wait: `tests/integration/airflow/test_frozen_releases.py`
reads all that was ever frozen. Run it with the newest Airflow, for a new version after raising `__version__`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import kie_provider

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.triggers.base import BaseTrigger

    from kie_provider.triggers.batch import KieBatchTrigger
    from kie_provider.triggers.kie import KieTaskTrigger

DATA = Path(__file__).resolve().parents[1] / "data"
KIE_TASK_ID = "ee9c2715375b7837f8bb51d641ff5863"
DEADLINE = 1_790_000_900.0


def main() -> None:
    """Write the files of this release."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.freeze", description=__doc__)
    parser.add_argument(
        "--replace", action="store_true", help="overwrite the files of this version: only while it is not yet released"
    )
    options = parser.parse_args()
    import tests.conftest  # noqa: F401  # gives Airflow a home of its own, before it is imported

    folder = folder_of(kie_provider.__version__)
    if folder.exists() and not options.replace:
        parser.error(f"{folder} exists. Raise __version__ in kie_provider/__init__.py, or see --replace.")
    folder.mkdir(exist_ok=True)
    contents = {
        "triggers.json": rows(triggers()),
        "events.json": events(),
        "batch_triggers.json": rows(batch_triggers()),
        "batch_events.json": batch_events(),
        "journal.json": journal(),
    }
    for name, content in contents.items():
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")
        print(folder / name)


def folder_of(version: str) -> Path:
    return DATA / f"release-{version}"


def triggers() -> dict[str, KieTaskTrigger]:
    """Return the triggers that this release defers with, by name."""
    from kie_provider.triggers.kie import KieTaskTrigger

    return {
        "sensor": KieTaskTrigger("kie_default", KIE_TASK_ID, 3.0, DEADLINE),
        "whole seconds": KieTaskTrigger("kie_default", KIE_TASK_ID, poll_interval=1, deadline=int(DEADLINE)),
        "without a deadline": KieTaskTrigger("kie_default", KIE_TASK_ID, poll_interval=0.05),
    }


def batch_triggers() -> dict[str, KieBatchTrigger]:
    """Return the triggers that a batch defers with."""
    from kie_provider.triggers.batch import KieBatchTrigger

    return {
        "two tasks": KieBatchTrigger("kie_default", [KIE_TASK_ID, KIE_TASK_ID[::-1]], 3.0, DEADLINE),
        "without a deadline": KieBatchTrigger("kie_default", [KIE_TASK_ID], poll_interval=0.05),
    }


def batch_events() -> dict[str, Any]:
    """Return the method that Airflow resumes a batch with, and the events it may be given."""
    from kie_provider.client.errors import KieTransportError
    from kie_provider.triggers.batch import ended_event

    return {
        "next_method": "execute_complete",
        "events": {
            "all": ended_event(100, 0, []),
            "some": ended_event(25, 75, []),
            "an error": ended_event(1, 0, [KieTransportError("no route to host", kie_task_id=KIE_TASK_ID)]),
        },
    }


def journal() -> dict[str, Any]:
    """Return all facts of a task instance whose second try has succeeded."""
    from kie_provider.client.errors import KieRateLimitError, KieValidationError
    from kie_provider.execution_timeout import Alarm
    from kie_provider.submission.decide import of_this_try
    from kie_provider.submission.facts import success_fact, success_key
    from kie_provider.submission.journal import Journal
    from kie_provider.submission.record import fingerprint_of_request

    facts: dict[str, Any] = {}

    class Store:
        get = facts.get

        def set(self, key: str, value: Any, *, retention: Any) -> None:
            facts[key] = value

    def open_journal(try_number: int) -> Journal:
        ti = SimpleNamespace(try_number=try_number, max_tries=2)
        journal = Journal({"ti": ti, "task_state_store": Store()})  # type: ignore[typeddict-item]
        journal.read()
        return journal

    def intend(journal: Journal, prompt: str, item: int) -> Any:
        task_input = {"prompt": prompt, "aspect_ratio": "1:1", "resolution": "1K"}
        request = {"model": "flux-2/pro-text-to-image", "input": task_input}
        print_ = fingerprint_of_request(request)
        return journal.intend(request, print_, item=item, conn_id="kie_default", host="https://api.kie.ai")

    with patch("time.time", return_value=DEADLINE - 900):
        first = open_journal(1)
        first.begin([], estimate=20.0)
        first.refused(intend(first, "a red fox, 狐", 0), KieRateLimitError("too many", code=429), Alarm())
        first.created(intend(first, "a red fox, 狐", 0), KIE_TASK_ID, Alarm())
        first.refused(intend(first, "no foxes", 1), KieValidationError("not allowed", code=422), Alarm())
        failed = first.created(intend(first, "an owl", 2), KIE_TASK_ID[::-1], Alarm())
        first.failed(failed, "Internal Error", may_succeed_anew=True)
        first.summarize()
        intend(first, "a hare", 3)
        intend(first, "a gull", 4)
        facts["kie.1.6.settled"] = KIE_TASK_ID.replace("e", "a")
        second = open_journal(2)
        second.begin(second.records, of_this_try(second.records, 5), estimate=20.0)
        second.created(intend(second, "an owl", 2), KIE_TASK_ID.replace("e", "b"), Alarm())
        second.summarize(is_complete=True)
        facts[success_key(2)] = success_fact(2)
    return facts


def rows(triggers: Mapping[str, BaseTrigger]) -> dict[str, dict[str, str]]:
    """Return the rows of these triggers as Airflow stores them, but for the encryption, whose key every site has anew.

    ``kwargs`` is what Airflow writes now, ``kwargs_3_1`` what 3.1 writes and later ones still read.
    """
    from airflow.models.crypto import get_fernet
    from airflow.models.trigger import Trigger
    from airflow.serialization.serialized_objects import BaseSerialization

    found = {}
    for name, trigger in triggers.items():
        row = Trigger.from_object(trigger)
        found[name] = {
            "classpath": row.classpath,
            "kwargs": get_fernet().decrypt(row.encrypted_kwargs.encode()).decode(),
            "kwargs_3_1": json.dumps(BaseSerialization.serialize(row.kwargs)),
        }
    return found


def events() -> dict[str, Any]:
    """Return the method that Airflow resumes a task with, and every event it may be given."""
    from datetime import datetime, timezone

    from kie_provider.client import errors
    from kie_provider.client.records import TaskRecord, TaskState
    from kie_provider.triggers.kie import error_event, success_event

    common = {
        "kie_task_id": KIE_TASK_ID,
        "state": TaskState.SUCCESS,
        "kie_state": "success",
        "credits_consumed": 5.0,
        "cost_seconds": 14,
        "created_at": datetime(2026, 9, 22, 10, 13, 20, 456_000, timezone.utc),
        "completed_at": datetime(2026, 9, 22, 10, 13, 34, 456_000, timezone.utc),
    }
    image = TaskRecord(
        model="flux-2/pro-text-to-image",
        input={"prompt": "a red fox, 狐", "aspect_ratio": "1:1", "resolution": "1K"},
        urls=("https://tempfile.example/h/ee9c2715375b7837f8bb51d641ff5863_1790072014.png",),
        **common,
    )
    text = TaskRecord(
        model="elevenlabs/speech-to-text",
        input={"audio_url": "https://example.com/a.mp3"},
        result={"text": "A red fox."},
        **common,
    )
    found = {"image": success_event(image), "text": success_event(text)}
    for error in sorted(errors.error_classes(), key=lambda error: error.__name__):
        facts = {"code": 500, "http_status": 200, "kie_task_id": KIE_TASK_ID, "retry_after": 1.5}
        found[error.__name__] = error_event(error("Internal Error, Please try again later.", **facts))
    return {"next_method": "execute_complete", "events": found}


if __name__ == "__main__":
    main()
