"""`make fleet`: a fleet on one machine, attacked in every way that is listed, and a table of what was paid."""

from __future__ import annotations

import argparse
import random
import secrets
import signal
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

from tests.e2e.fleet import numbers
from tests.e2e.fleet.attacks import ATTACKS
from tests.e2e.fleet.ground import folder_of_this_user, ground
from tests.e2e.fleet.rig import Fleet
from tests.e2e.fleet.verdict import Outcome, attack
from tests.support.processes import ProcessError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import FrameType

    from tests.e2e.fleet.attacks import Attack


def main(arguments: list[str] | None = None) -> int:
    """Make the attacks and print the table; 0 when every end is one that the documentation describes."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.fleet", description=__doc__)
    names = [each.name for each in ATTACKS]
    parser.add_argument("--only", action="append", choices=names, metavar="ATTACK", help=f"one of {', '.join(names)}")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="repeat an earlier run's choices")
    parser.add_argument("--numbers", action="store_true", help="measure what the fleet does, and attack nothing")
    parser.add_argument("--write-docs", action="store_true", help="with --numbers: write docs/benchmarks/fleet.md")
    options = parser.parse_args(arguments)
    if options.write_docs and not options.numbers:
        parser.error("--write-docs needs --numbers")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    began = time.monotonic()
    try:
        with ground(folder_of_this_user()) as folder:
            if options.numbers:
                return measure_all(folder, write_docs=options.write_docs)
            print(f"Seed {options.seed}. Starting the fleet ...", flush=True)
            with Fleet(folder) as fleet:
                print(f"  it works after {time.monotonic() - began:.0f} s", flush=True)
                chosen = [what for what in ATTACKS if what.name in (options.only or names)]
                chosen = [what for what in chosen if fleet.has_journal or not what.on_journal]
                outcomes = make(fleet, chosen, options.seed)
    except KeyboardInterrupt:
        print("Stopped; nothing is left running.")
        return 128 + signal.SIGINT
    except (ProcessError, OSError) as error:
        print(f"The fleet did not work: {error}", file=sys.stderr)
        return 1
    report(outcomes)
    print(f"Seed {options.seed}, {time.monotonic() - began:.0f} s")
    return 1 if any(outcome.problems for outcome in outcomes) else 0


def measure_all(folder: Path, *, write_docs: bool) -> int:
    """Measure, print the table, and write it down if that is wanted."""
    began = time.monotonic()
    print("Starting the fleet ...", flush=True)
    with Fleet(folder, numbers.DAGS, numbers.ENV) as fleet:
        print(f"  it works after {time.monotonic() - began:.0f} s", flush=True)
        found = numbers.measure(fleet)
    print(f"\n{found.as_text()}\n{time.monotonic() - began:.0f} s")
    if write_docs:
        found.write()
    return 0


def make(fleet: Fleet, attacks: Sequence[Attack], seed: int) -> list[Outcome]:
    """Make each when it is to be made."""

    def job(what: Attack) -> Outcome:
        outcome = attack(fleet, what, random.Random(f"{seed} {what.name}"))
        print("\n\n".join([line(outcome), *outcome.problems]), flush=True)
        return outcome

    def jobs(when: str) -> list[partial[Outcome]]:
        return [partial(job, what) for what in attacks if what.when == when]

    def short_ones() -> list[Outcome]:
        return fleet.run(jobs("alone"), 1) + fleet.run(jobs("together"), 5)

    def long_ones() -> list[Outcome]:
        return fleet.run(jobs("throughout"), 2)

    return [outcome for part in fleet.run([short_ones, long_ones], 2) for outcome in part]


def report(outcomes: list[Outcome]) -> None:
    """Print the table."""
    print()
    print(f"{'attack':<32} {'prompts':>7}  {'outcome':<44} {'bill':<52} {'seconds':>7}")
    for outcome in outcomes:
        print(line(outcome))
    for outcome in outcomes:
        page, sentence = outcome.attack.promise
        print(f"  {outcome.attack.name}: {outcome.attack.what}\n    {page}: {sentence}")


def line(outcome: Outcome) -> str:
    """One attack: how its task instances have ended, and what Kie charges for."""
    ends = ", ".join(f"{number} {end}" for end, number in sorted(outcome.ends.items()))
    bill = f"{outcome.paid} paid, {outcome.twice} twice, {outcome.unknown} known to Kie only, {outcome.lost} lost"
    promised = "as promised" if not outcome.problems else "NOT AS PROMISED"
    text = f"{outcome.attack.name:<32} {outcome.attack.prompts:>7}  {ends:<44} {bill:<52} {outcome.seconds:>7.0f}"
    return f"{text}  {promised}"


def _end(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
