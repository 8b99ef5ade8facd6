"""What a trial has come to, compared with what was promised."""

from __future__ import annotations

import re
import traceback
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from tests.e2e.chaos.arena import Arena, Trial
from tests.e2e.chaos.procedures import PROCEDURES
from tests.e2e.chaos.scenarios import STORE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.e2e.chaos.procedures import Procedure
    from tests.e2e.chaos.scenarios import Scenario

SAYS_UNKNOWN = "add its id"
AT_ONCE = 16  # with more, two cores miss heartbeats of tasks that nobody has killed


@dataclass
class Verdict:
    """The outcome of one trial.

    :param kie_tasks: how many tasks Kie has.
    :param charged: how many of them it charges for.
    :param unknown: how many of those only Kie knows, which the task says.
    :param doubled: how many were paid beyond what was promised.
    :param lost: how many were paid, are found nowhere, and nobody says so.
    :param problems: whatever is not as promised, these two included.
    """

    name: str
    kie_tasks: int = 0
    charged: int = 0
    unknown: int = 0
    doubled: int = 0
    lost: int = 0
    problems: list[str] = field(default_factory=list)


def try_out_all(arena: Arena, scenarios: Sequence[Scenario]) -> list[Verdict]:
    """Bring all scenarios about; at the end those that take down a part of Airflow, so that they disturb no other."""

    def job(scenario: Scenario) -> Verdict:
        try:
            return try_out(arena, scenario, scenario.name)
        finally:
            arena.undisturbed.discard(scenario.name)

    verdicts: list[Verdict] = []
    for alone in (False, True):
        chosen = [scenario for scenario in scenarios if scenario.alone is alone]
        chosen.sort(key=lambda scenario: scenario.charged, reverse=True)  # the longest first
        arena.undisturbed |= {scenario.name for scenario in chosen}
        verdicts += arena.run([partial(job, scenario) for scenario in chosen], AT_ONCE)
    return verdicts


def try_out(arena: Arena, scenario: Scenario, name: str) -> Verdict:
    """Bring a scenario about, and compare."""
    verdict = Verdict(name)
    with Trial(arena, name) as trial:
        if not _carry_out(PROCEDURES[scenario.name], trial, verdict):
            return verdict
        found = trial.task_instances()
        places = _places(trial, verdict)
        log = "\n".join(trial.log(map_index=map_index) for *_, map_index in found)
        verdict.unknown = min(sum(not each for each in places.values()), scenario.unknown)
        verdict.lost = sum(not each for each in places.values()) - verdict.unknown
        verdict.doubled = max(0, verdict.charged - scenario.charged)
        facts = {
            f"not all {scenario.state}: {found}": all(state == scenario.state for state, _, _ in found),
            f"not {scenario.tries} tries: {found}": all(number == scenario.tries for _, number, _ in found),
            f"{verdict.charged} tasks are charged, not {scenario.charged}": verdict.charged == scenario.charged,
            f"ids are found in {places}, not in {scenario.found_in}": all(
                set(scenario.found_in) <= each for each in places.values() if each
            ),
            f"{verdict.lost} ids are lost": not verdict.lost,
            f"the log does not say {scenario.says!r}": re.search(scenario.says, log) is not None,
        }
        verdict.problems += [problem for problem, is_as_promised in facts.items() if not is_as_promised]
        if verdict.problems:
            verdict.problems.append(log)
    return verdict


def weather(arena: Arena, procedure: Procedure, name: str) -> Verdict:
    """Let anything happen at any time, and compare with what holds whatever happens.

    No task instance is charged twice. It ends well, with its id in the state store, or stops because it does not know.
    """
    verdict = Verdict(name)
    with Trial(arena, name) as trial:
        if not _carry_out(procedure, trial, verdict):
            return verdict
        ((state, _, _),) = trial.task_instances()
        places = _places(trial, verdict)
        log = trial.log()
        stops = state == "failed" and SAYS_UNKNOWN in log
        nowhere = sum(not each for each in places.values())
        verdict.unknown, verdict.lost = (nowhere, 0) if stops else (0, nowhere)
        verdict.doubled = max(0, verdict.charged - 1)
        facts = {
            f"it is {state} and does not say why": state == "success" or stops,
            f"{verdict.charged} tasks are charged": verdict.charged == 1 or (stops and not verdict.charged),
            f"the id is not in the state store: {places}": stops or all(STORE in each for each in places.values()),
            f"{verdict.lost} ids are lost": not verdict.lost,
        }
        verdict.problems += [problem for problem, is_as_promised in facts.items() if not is_as_promised]
        if verdict.problems:
            verdict.problems.append(log)
    return verdict


def _carry_out(procedure: Procedure, trial: Trial, verdict: Verdict) -> bool:
    try:
        procedure(trial)
    except Exception:  # noqa: BLE001  # whatever it is, the other trials go on
        verdict.problems.append(traceback.format_exc())
    verdict.kie_tasks = len(trial.kie.bill()["tasks"])
    verdict.charged = len(trial.charged())
    return not verdict.problems


def _places(trial: Trial, verdict: Verdict) -> dict[str, set[str]]:
    """Where in Airflow each charged id is found, with any task instance."""
    indexes = [map_index for *_, map_index in trial.task_instances()]
    return {
        kie_task_id: set().union(*(trial.places(kie_task_id, map_index) for map_index in indexes))
        for kie_task_id in trial.charged()
    }
