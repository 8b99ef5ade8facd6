"""Every scenario of the list that does not take minutes, in a real Airflow, with kill -9."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.e2e.chaos.arena import Arena
from tests.e2e.chaos.procedures import PROCEDURES
from tests.e2e.chaos.scenarios import SCENARIOS, Scenario
from tests.e2e.chaos.verdict import Verdict, try_out_all
from tests.support.versions import durable

if TYPE_CHECKING:
    from collections.abc import Iterator

SHORT = [scenario for scenario in SCENARIOS if not scenario.is_long]


def test_every_scenario_has_a_procedure_and_the_other_way_round() -> None:
    assert [scenario.name for scenario in SCENARIOS] == list(dict.fromkeys(scenario.name for scenario in SCENARIOS))
    assert {scenario.name for scenario in SCENARIOS} == set(PROCEDURES)


@pytest.fixture(scope="module")
def verdicts() -> Iterator[dict[str, Verdict]]:
    """All of them, in one Airflow."""
    before = signal.signal(signal.SIGTERM, _interrupt)  # else a SIGTERM would leave Airflow behind
    try:
        with Arena() as arena:
            verdicts = {verdict.name: verdict for verdict in try_out_all(arena, SHORT)}
            if any(verdict.problems for verdict in verdicts.values()):
                print(arena.airflow.tails())  # pytest shows it with the first that failed
            yield verdicts
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.e2e
@pytest.mark.timeout(900)
@durable
@pytest.mark.parametrize("scenario", SHORT, ids=lambda scenario: scenario.name)
def test_the_outcome_is_as_promised(scenario: Scenario, verdicts: dict[str, Verdict]) -> None:
    assert not verdicts[scenario.name].problems, "\n".join(verdicts[scenario.name].problems)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt("SIGTERM")
