"""What can be told of the fleet without starting it; `make fleet` does that."""

from __future__ import annotations

import ast
import inspect
import itertools
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from airflow.jobs.triggerer_job_runner import TriggerRunner

from tests.e2e.fleet import numbers
from tests.e2e.fleet.attacks import ATTACKS, ENDS, PROMPTS, Attack
from tests.e2e.fleet.ground import FleetError, ground
from tests.e2e.fleet.procedures import PROCEDURES
from tests.e2e.fleet.rig import Fleet, Load

ROOT = Path(__file__).resolve().parents[3]
WATCHDOG = textwrap.dedent(inspect.getsource(TriggerRunner.block_watchdog))


def test_every_attack_has_a_procedure_and_the_other_way_round() -> None:
    assert [attack.name for attack in ATTACKS] == list(PROCEDURES)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_tries_a_sentence_of_the_documentation(attack: Attack) -> None:
    page, sentence = attack.promise
    text = " ".join((ROOT / "docs" / page).read_text(encoding="utf-8").split())

    assert sentence in text
    assert attack.ends <= set(ENDS)
    assert set(attack.dags) <= set(PROMPTS)


def test_the_stalls_are_those_that_airflow_tells_of(tmp_path: Path) -> None:
    told = [each.value for each in ast.walk(ast.parse(WATCHDOG)) if isinstance(each, ast.Constant)]
    [sentence] = [each for each in told if isinstance(each, str) and "was blocked" in each]
    log = tmp_path / "triggerer.log"
    lines = [
        f"2026-11-26T07:00:00Z [info] {sentence.replace('%.2f', str(seconds), 1)}\n"
        for seconds in (0.5, 0.15, 0.31, 0.7)
    ]
    log.write_text("".join(lines))
    first, last = len(lines[0]), len("".join(lines[:3]))

    assert numbers._stalls(log, first, last) == pytest.approx([0.05, 0.21])


def test_fifty_of_a_thousand_waits_end_one_after_another() -> None:
    kie = {"generating_seconds": numbers.LONG, "create_limit": 10**6, "credits": 10.0**6}
    with Load(Fleet(Path("unused")), "numbers", (), **kie) as load:
        ended = numbers._order(load)
        ends = [ended[index] for index in sorted(ended)]
        load.ahead = ends[9] - time.time() + 0.5
        states = [task["state"] for task in load.kie.bill()["tasks"]]

    assert len(states) == numbers.WAITS
    assert len(ends) == numbers.WAITS_THAT_END
    assert all(0.9 < later - earlier < 5 for earlier, later in itertools.pairwise(ends))
    assert [index for index, state in enumerate(states) if state == "success"] == sorted(ended)[:10]


def test_the_ground_is_for_one_run_at_a_time_and_empty_after_it(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    with ground(folder):
        (folder / "file").touch()
        with pytest.raises(FleetError, match=f"running already, in process {os.getpid()}:"), ground(folder):
            pass

    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_has_left_is_cleared_away_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "fleet"
    (folder / "cluster").mkdir(parents=True)
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], cwd=folder / "cluster")
    deadline = time.monotonic() + 10
    while not Path(psutil.Process(left.pid).cwd()).is_relative_to(folder) and time.monotonic() < deadline:
        time.sleep(0.01)

    with ground(folder):
        assert list(folder.iterdir()) == []

    left.wait(5)
    assert not psutil.pid_exists(left.pid)
    assert "1 processes" in capsys.readouterr().out
