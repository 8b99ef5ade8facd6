"""What is done to a fleet, and which sentence of the documentation each attack tries.

This list is data: `procedures.py` has a function for every line. It imports nothing of Airflow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

SUCCESS, UNKNOWN, MARKED, FINAL = "success", "unknown", "marked", "final"
# How a task instance may end, and what its log says then.
ENDS = {
    UNKNOWN: r"(?i)add its id",
    MARKED: r"keeps running and is billed",
    FINAL: r"No retry: it would",  # before Airflow 3.3
}
PROMPTS = {
    "chaos_generate": 1,
    "chaos_save": 1,
    "chaos_on_worker": 1,
    "chaos_resubmit": 1,
    "chaos_rarely_polled": 1,
    "chaos_mapped_few": 5,
    "chaos_batch": 8,
    "chaos_batch_of_1000": 1000,
}
LOAD = ("chaos_mapped_few", "chaos_batch", "chaos_save", "chaos_on_worker")

PAYS_ONCE = (
    "reliability.md",
    "Retries, killed workers, triggerers, schedulers and API servers, deferral, and clearing while it runs lead back "
    "to the same Kie task.",
)
IN_DOUBT = (
    "reliability.md",
    "If Kie may have created a task and nobody knows its id, the operator fails without retry",
)
NOTHING_LOST = (
    "reliability.md",
    "The Kie task id is stored before anything else is done with it, and the write is repeated until Airflow has "
    "accepted it.",
)
HALF_A_MINUTE = (
    "reliability.md",
    "With Airflow's default settings, nobody has to act when an API server or a database is away for half a minute.",
)
FROZEN = ("reliability.md", "Airflow refuses everything the old try writes from then on, the store included")
REFUSED = (
    "reliability.md",
    "the refusal is recorded before the operator waits, so a try that is killed while it waits leaves no doubt.",
)
SAVED_ONCE = ("saving.md", "keeps a file whose JSON file names this Kie task and whose hash matches")
LATE = ("reliability.md", "No key is written twice with different values, and none is removed.")
NO_REDIS = ("limits.md", "Nothing waits for Redis, and nothing is lost.")
MARKED_ENDS = ("reliability.md", "Marking a task instance as failed, clearing or killing it ends the wait")
WOKEN = ("waiting.md", "`Flux2GenerateImageOperator` and the sensors are woken when Kie calls.")
ADOPTED = (
    "reliability.md",
    "It then continues with the Kie task that called, if Kie's own record of it names this URL",
)
WOKEN_ONCE = ("waiting.md", "However often Kie calls, and whichever API server it reaches, a task is woken once.")
NEVER_IN_THE_WAY = ("waiting.md", "A callback does not wait for a task instance that Airflow has locked")
SAVING_FAILS = ("saving.md", "so a failure to save costs only time.")


@dataclass(frozen=True)
class Attack:
    """One attack, and what is promised for it.

    :param name: key of its procedure.
    :param what: what happens, one sentence.
    :param promise: page of the documentation, and the sentence there that is tried.
    :param dags: the runs that are under way meanwhile.
    :param ends: how a task instance may end besides success.
    :param kie: settings of the emulator.
    :param when: ``alone``: it takes down a part of the fleet; ``together``: it touches its own runs only, so all of
        this kind are made at once; ``throughout``: it takes long, so it is under way during all others, and is hit.
    :param on_journal: whether it meets the journal, which there is from Airflow 3.3 on; before, it is not made.
    """

    name: str
    what: str
    promise: tuple[str, str]
    dags: tuple[str, ...] = LOAD
    ends: frozenset[str] = frozenset()
    kie: dict[str, Any] = field(default_factory=dict)
    when: Literal["alone", "together", "throughout"] = "alone"
    on_journal: bool = False

    @property
    def prompts(self) -> int:
        return sum(PROMPTS[dag_id] for dag_id in self.dags)


MAY_STOP = frozenset({UNKNOWN})

ATTACKS = (
    # First, while the workers' own logs are small: the limit is on them, too.
    Attack(
        "fill_disk",
        "For a while the disks of the workers are full.",
        SAVING_FAILS,
        dags=("chaos_save",) * 4 + ("chaos_batch",),
        kie={"generating_seconds": 5.0},
    ),
    Attack("kill_workers", "Workers, and children of them, are killed at random.", PAYS_ONCE, ends=MAY_STOP),
    Attack(
        "kill_workers_in_createtask",
        "Both workers are killed while Kie holds the answers to createTask.",
        IN_DOUBT,
        ends=MAY_STOP,
    ),
    Attack(
        "kill_workers_while_refused",
        "Both workers are killed while Kie refuses createTask with 429.",
        REFUSED,
    ),
    Attack("kill_workers_while_saving", "Both workers are killed while images are downloaded.", SAVED_ONCE),
    Attack(
        "freeze_task_in_createtask",
        "A task and its supervisor stop in createTask until the next try has ended, and wake up then.",
        FROZEN,
        dags=("chaos_generate",),
        ends=MAY_STOP,
        kie={"generating_seconds": 5.0},
        when="together",
    ),
    Attack(
        "freeze_task_in_saving",
        "A task and its supervisor stop while they save until the next try has ended, and wake up then.",
        SAVED_ONCE,
        dags=("chaos_save",),
        kie={"generating_seconds": 5.0},
        when="together",
    ),
    Attack(
        "freeze_database_while_ordering",
        "The database connections of the API servers freeze while batches end submitting; others are opened meanwhile.",
        LATE,
        dags=("chaos_batch",) * 3,
        on_journal=True,
    ),
    Attack("freeze_worker", "A worker stops for 25 seconds with all its tasks.", FROZEN, ends=MAY_STOP),
    Attack("stop_database", "PostgreSQL is away for 20 seconds.", HALF_A_MINUTE, ends=MAY_STOP),
    Attack("kill_api_server", "One of two API servers is killed, and is back after 30 seconds.", NOTHING_LOST),
    Attack("freeze_api_server", "One of two API servers stops for 12 seconds.", NOTHING_LOST, ends=MAY_STOP),
    Attack("stop_redis", "Redis, the broker and the shared rate limit, is away for 20 seconds.", NO_REDIS),
    Attack(
        "deliver_twice",
        "The broker's visibility timeout is 10 seconds, and tasks take 30.",
        PAYS_ONCE,
        dags=("chaos_on_worker",) * 6,
        kie={"generating_seconds": 30.0},
    ),
    Attack(
        "people",
        "Under load, tasks are cleared and marked, a DAG is paused, and a run deleted.",
        MARKED_ENDS,
        dags=("chaos_mapped_few", "chaos_batch", "chaos_generate", "chaos_save"),
        ends=frozenset({UNKNOWN, MARKED}),
        when="together",
    ),
    Attack(
        "spray_callbacks",
        "Kie calls back twice for each image, over both API servers; the answers to four createTasks are lost.",
        ADOPTED,
        kie={"generating_seconds": 15.0},
        when="together",
    ),
    Attack(
        "repeat_callback",
        "The same callback comes 20 times at once, over both API servers.",
        WOKEN_ONCE,
        dags=("chaos_rarely_polled",),
        kie={"generating_seconds": 3600.0},
        when="together",
    ),
    Attack(
        "lock_task_row",
        "A task instance's row is locked in PostgreSQL for 12 seconds while 30 callbacks come for it.",
        NEVER_IN_THE_WAY,
        dags=("chaos_rarely_polled",),
        kie={"generating_seconds": 3600.0},
    ),
    Attack(
        "kill_triggerers_when_called",
        "Both triggerers are killed when callbacks have woken their tasks, and before these run again.",
        WOKEN,
        dags=("chaos_rarely_polled",) * 4,
        kie={"generating_seconds": 3600.0},
    ),
    Attack(
        "freeze_triggerer",
        "A triggerer stops until the other one has its waits, and wakes up then.",
        PAYS_ONCE,
        kie={"generating_seconds": 45.0},
    ),
    Attack("kill_triggerers", "Both triggerers are gone for a minute.", PAYS_ONCE, kie={"generating_seconds": 45.0}),
    Attack("kill_schedulers", "One scheduler is killed, then the other one too.", PAYS_ONCE),
    Attack(
        "large_batch",
        "A batch of 1,000; its worker is killed while it submits and while it saves.",
        PAYS_ONCE,
        dags=("chaos_batch_of_1000",),
        ends=MAY_STOP,
        kie={"generating_seconds": 3.0, "credits": 10_000.0},
        when="throughout",
    ),
)
