"""What an attack has come to, compared with what the documentation says."""

from __future__ import annotations

import re
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.e2e.fleet.attacks import ENDS, FINAL, PROMPTS, SUCCESS, UNKNOWN
from tests.e2e.fleet.procedures import PROCEDURES
from tests.e2e.fleet.rig import Fleet, Load

if TYPE_CHECKING:
    from random import Random

    from tests.e2e.chaos.arena import Trial
    from tests.e2e.fleet.attacks import Attack


@dataclass
class Outcome:
    """One line of the table.

    :param ends: how many task instances have ended how.
    :param paid: how many Kie tasks are charged.
    :param twice: how many prompts were paid more than once, without anybody asking for it.
    :param unknown: how many paid images only Kie knows, and a task says so.
    :param lost: how many paid images nobody knows, and nobody says so.
    :param problems: whatever is not as the documentation says.
    """

    attack: Attack
    ends: Counter[str] = field(default_factory=Counter)
    paid: int = 0
    twice: int = 0
    unknown: int = 0
    lost: int = 0
    images: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def attack(fleet: Fleet, what: Attack, draw: Random) -> Outcome:
    """Make an attack, and judge what has become of the runs."""
    outcome = Outcome(what)
    began = time.monotonic()
    with Load(fleet, what.name, what.dags, **what.kie) as load:
        try:
            PROCEDURES[what.name](load, draw)
        except Exception:  # noqa: BLE001  # whatever it is, the bill is looked at, and the other attacks follow
            outcome.problems.append(f"{traceback.format_exc()}\n{load}")
        try:
            _judge(load, outcome)
        except Exception:  # noqa: BLE001
            outcome.problems.append(traceback.format_exc())
    outcome.seconds = time.monotonic() - began
    return outcome


def _judge(load: Load, outcome: Outcome) -> None:
    charged = {task["taskId"]: task["prompt"] for task in load.kie.bill()["tasks"] if task["credits"]}
    outcome.paid = len(charged)
    outcome.twice = sum(number > 1 for number in Counter(charged.values()).values())
    if outcome.twice and load.fleet.has_journal:
        prompts = [prompt for prompt, number in Counter(charged.values()).items() if number > 1]
        outcome.problems.append(f"paid twice: { {i: p for i, p in charged.items() if p in prompts} }")
    unheard = dict(charged)
    for trial in load.trials:
        if trial.name in load.deleted:
            unheard = {i: prompt for i, prompt in unheard.items() if trial.name not in prompt}
            continue
        unheard = _judge_run(load, trial, unheard, outcome)
    outcome.lost = len(unheard)
    if unheard and load.fleet.has_journal:
        outcome.problems.append(f"paid, and known to nobody: {unheard}")


def _judge_run(load: Load, trial: Trial, unheard: dict[str, str], outcome: Outcome) -> dict[str, str]:
    """Note how a run has ended, and return the charged ids that are not known to it."""
    logs: dict[int, str] = {}
    unknown, final = 0, 0
    ends = outcome.attack.ends if load.fleet.has_journal else outcome.attack.ends | {UNKNOWN, FINAL}
    for state, _, map_index in trial.task_instances():
        logs[map_index] = "" if state == SUCCESS else trial.log(map_index=map_index)
        end = _end(str(state), logs[map_index], ends)
        outcome.ends[end] += 1
        unknown += end == UNKNOWN
        final += end == FINAL
        if end not in {SUCCESS, *ends}:
            outcome.problems.append(f"{trial.name} [{map_index}] is {state}\n{logs[map_index][-6000:]}")
    known = load.fleet.facts(trial)
    left = {i: prompt for i, prompt in unheard.items() if i not in known}
    if any(trial.name in prompt for prompt in left.values()):
        known = "\n".join(trial.log(map_index=map_index) for map_index in logs)
        left = {i: prompt for i, prompt in left.items() if i not in known}
    only_kie = [i for i, prompt in left.items() if trial.name in prompt] if unknown else []
    outcome.unknown += len(only_kie)
    _judge_images(load, trial, outcome, ended_well=not (unknown or final))
    return {i: prompt for i, prompt in left.items() if i not in only_kie}


def _judge_images(load: Load, trial: Trial, outcome: Outcome, *, ended_well: bool) -> None:
    if trial.dag_id not in ("chaos_save", "chaos_batch", "chaos_batch_of_1000"):
        return
    images = len(load.fleet.images(trial.name))
    outcome.images += images
    wanted = PROMPTS[trial.dag_id]
    if images > wanted or (ended_well and images != wanted):
        outcome.problems.append(f"{trial.name} has saved {images} images, not {wanted}")


def _end(state: str, log: str, allowed: frozenset[str]) -> str:
    if state == "failed":
        return next((end for end in sorted(allowed) if re.search(ENDS[end], log)), state)
    return state
