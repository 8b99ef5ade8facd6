"""Run benchmarks: ``python -m tests.bench [names] [--write-docs]``."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from typing import NoReturn

#: Each is a module here with ``run(quick: bool) -> Report``.
BENCHMARKS = ("imports", "waiting", "callbacks", "submission", "batch", "saving", "pipeline")


def main(argv: list[str] | None = None) -> int:
    """Run what is asked for, print the tables, and return 1 if a goal was missed."""
    parser = argparse.ArgumentParser(prog="make bench", description="Measure, side by side with others")
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], help="default: all")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--write-docs", action="store_true", help="write the tables into docs/benchmarks")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)  # else it would leave processes behind
    missed = 0
    for name in options.names or BENCHMARKS:
        report = importlib.import_module(f"tests.bench.{name}").run(quick=options.quick)
        print(f"\n{report.as_text()}\n", flush=True)
        missed += sum(not goal.is_met for goal in report.goals)
        if options.write_docs:
            report.write()
    return 1 if missed else 0


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt("SIGTERM")


if __name__ == "__main__":
    sys.exit(main())
