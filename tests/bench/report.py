"""What a benchmark found: a table, and how it stands to its goals."""

from __future__ import annotations

import datetime as dt
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"


@dataclass(frozen=True)
class Goal:
    """One goal, and what was measured.

    :param text: as ``CPU per poll within 1.25x of bare aiohttp at 1,000``.
    :param measured: as ``1.08x``.
    """

    text: str
    measured: str
    is_met: bool


@dataclass
class Report:
    """The findings of one benchmark.

    :param name: its name on the command line.
    :param title: as ``Waiting: many triggers in one process``.
    :param method: how it was measured, in a few sentences (Markdown).
    :param columns: heads of the table; the first names the contender.
    :param rows: its cells, as text.
    :param packages: distributions whose versions matter here.
    :param again: the command that measures it; default: `make bench`.
    """

    name: str
    title: str
    method: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    packages: Sequence[str] = ()
    again: str = ""

    def as_text(self) -> str:
        """Return the table for a terminal."""
        widths = [max(len(row[i]) for row in [self.columns, *self.rows]) for i in range(len(self.columns))]
        lines = [
            "  ".join(_aligned(cell, widths[i], i) for i, cell in enumerate(row)) for row in [self.columns, *self.rows]
        ]
        goals = [f"{'met   ' if goal.is_met else 'MISSED'}  {goal.text}: {goal.measured}" for goal in self.goals]
        return "\n".join([self.title, "", *lines, "", *goals])

    def as_markdown(self, when: str) -> str:
        """Return what the documentation includes.

        :param when: the day of the measurement.
        """
        head = [_row(self.columns), _row(["---", *["---:"] * (len(self.columns) - 1)])]
        goals = [_row(["Goal", "Measured", ""]), _row(["---", "---:", "---"])]
        goals += [_row([goal.text, goal.measured, "met" if goal.is_met else "**missed**"]) for goal in self.goals]
        facts = f"Measured {when} on {machine()}, Python {platform.python_version()}, {versions(self.packages)}."
        again = self.again or f'make bench BENCH_ARGS="{self.name}"'
        rows = [*head, *map(_row, self.rows)]
        return "\n".join(
            [self.method, "", *rows, "", *(goals if self.goals else []), "", facts, "", f"Again with: `{again}`", ""]
        )

    def write(self) -> None:
        """Write it where the documentation includes it from."""
        DOCS.mkdir(exist_ok=True)
        today = dt.datetime.now(dt.timezone.utc).date().isoformat()
        (DOCS / f"{self.name}.md").write_text(self.as_markdown(today), encoding="utf-8")


def machine() -> str:
    """Return processor, number of processors and memory."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores of {names[0] if names else platform.machine()}, {memory:.0f} GB, {platform.system()}"


def versions(packages: Sequence[str]) -> str:
    """Return the installed versions of these distributions."""
    return ", ".join(f"{package} {_version(package)}" for package in ("airflow-provider-kie", *packages))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column else cell.ljust(width)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
