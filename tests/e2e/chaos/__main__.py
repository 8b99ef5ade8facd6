"""`make chaos`: kill -9 at random moments, then count what was paid.

Half of the trials are scenarios, each with its promised outcome. The other half are killed at any time, while the
triggerer, the scheduler and the API server are killed and started again; of those only what always holds is expected.
"""

from __future__ import annotations

import argparse
import random
import secrets
import signal
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from tests.e2e.chaos.arena import Arena
from tests.e2e.chaos.scenarios import SCENARIOS
from tests.e2e.chaos.verdict import Verdict, try_out, weather

if TYPE_CHECKING:
    from types import FrameType

    from tests.e2e.chaos.arena import Trial
    from tests.e2e.chaos.procedures import Procedure

DAGS = ("chaos_generate", "chaos_on_worker", "chaos_two_tasks")
PARTS = ("triggerer", "scheduler", "api-server")


def main(arguments: list[str] | None = None) -> int:
    """Run the trials and print the tally; 0 when every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.chaos", description=__doc__)
    parser.add_argument("--trials", type=int, default=100, help="how many task instances to torment (default 100)")
    parser.add_argument(
        "--seed", type=int, default=secrets.randbelow(10**6), help="repeat the choices of an earlier run"
    )
    parser.add_argument("--at-once", type=int, default=8, help="how many at the same time (default 8)")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _end)
    print(f"Seed {options.seed}. Starting Airflow ...", flush=True)
    began = time.monotonic()
    try:
        with Arena() as arena:
            verdicts = run(arena, options.trials, options.seed, options.at_once)
            kills = arena.kills
    except KeyboardInterrupt:
        print("Stopped; nothing is left running.")
        return 128 + signal.SIGINT
    return report(verdicts, kills, options.seed, time.monotonic() - began)


def run(arena: Arena, trials: int, seed: int, at_once: int) -> list[Verdict]:
    """First the scenarios, then the weather."""
    draw = random.Random(seed)
    quiet = [scenario for scenario in SCENARIOS if not scenario.alone and not scenario.is_long]
    chosen = [scenario for scenario in SCENARIOS if scenario.is_long]
    chosen += [draw.choice(quiet) for _ in range(trials // 2 - len(chosen))]
    jobs = [partial(try_out, arena, scenario, f"{scenario.name}-{number}") for number, scenario in enumerate(chosen)]
    verdicts = arena.run([partial(_shown, job) for job in jobs], at_once)

    names = [f"weather-{number}" for number in range(len(chosen), trials)]
    jobs = [partial(weather, arena, bad_weather(random.Random(f"{seed} {name}")), name) for name in names]
    over = threading.Event()
    storm = threading.Thread(target=_storm, args=(arena, random.Random(f"{seed} storm"), over))
    storm.start()
    try:
        return verdicts + arena.run([partial(_shown, job) for job in jobs], at_once)
    finally:
        over.set()
        storm.join()


def bad_weather(draw: random.Random) -> Procedure:
    """One run that is killed a few times, whatever it does at the moment, and for which Kie finishes at some time."""

    def procedure(trial: Trial) -> None:
        trial.start(draw.choice(DAGS))
        for _ in range(draw.randint(1, 3)):
            trial.arena.stopping.wait(draw.uniform(0, 10))
            trial.kill_if_running(supervisor=draw.random() < 0.7)

        def maybe_finish() -> None:
            if draw.random() < 0.1:
                trial.finish_at_kie()

        trial.wait_for_end(maybe_finish)

    return procedure


def _storm(arena: Arena, draw: random.Random, over: threading.Event) -> None:
    """Kill a part of Airflow now and then, and start it again."""
    while not over.wait(draw.uniform(5, 25)):
        part = draw.choice(PARTS)
        with arena.without(part):
            over.wait(draw.uniform(0, 3))
        print(f"  {part} was killed and started again", flush=True)


def _shown(job: partial[Verdict]) -> Verdict:
    verdict = job()
    print(f"  {verdict.name}: {'as promised' if not verdict.problems else 'NOT AS PROMISED'}", flush=True)
    return verdict


def report(verdicts: list[Verdict], kills: int, seed: int, seconds: float) -> int:
    """Print the tally; 1 if a promise was broken."""
    broken = [verdict for verdict in verdicts if verdict.problems]
    for verdict in broken:
        print(f"\n=== {verdict.name}\n" + "\n".join(verdict.problems))
    tally = {
        "trials": len(verdicts),
        "kills": kills,
        "tasks at Kie": sum(verdict.kie_tasks for verdict in verdicts),
        "charged": sum(verdict.charged for verdict in verdicts),
        "known to Kie only, and the task says so": sum(verdict.unknown for verdict in verdicts),
        "double-charged": sum(verdict.doubled for verdict in verdicts),
        "lost": sum(verdict.lost for verdict in verdicts),
        "unexpected": len(broken),
    }
    print(f"\nSeed {seed}, {seconds:.0f} s")
    for name, number in tally.items():
        print(f"  {name:<40} {number:>5}")
    return 1 if broken else 0


def _end(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
