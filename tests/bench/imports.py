"""What a DAG file pays to import one module of ours, beside those of others."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import kie_provider
from tests.bench.report import Goal, Report

PACKAGE = Path(kie_provider.__file__).parent


def _modules(*kinds: str) -> tuple[str, ...]:
    return tuple(
        f"kie_provider.{kind}.{file.stem}" for kind in kinds for file in sorted((PACKAGE / kind).glob("[!_]*.py"))
    )


#: Every module that a DAG file imports.
IN_DAG_FILES = ("kie_provider.hooks.kie", *_modules("operators", "sensors", "decorators"))
TRIGGERS = _modules("triggers")
OURS = (*IN_DAG_FILES, *TRIGGERS)
#: Most of what a trigger costs.
TRIGGER_BASE = "airflow.triggers.base"
HTTP = "airflow.providers.http.operators.http"
PEERS = (
    TRIGGER_BASE,
    HTTP,
    "airflow.providers.http.sensors.http",
    "airflow.providers.dbt.cloud.operators.dbt",
    "airflow.providers.openai.operators.openai",
    "airflow.providers.anthropic.operators.batch",
)
#: Milliseconds; of a trigger, on top of Airflow's own base of triggers.
LIMIT, TRIGGER_LIMIT = 18.0, 8.0

METHOD = """\
Each import has a fresh process, forked from one that has done `import airflow.sdk`, which every DAG file pays anyway:
what is shown comes on top. Bytecode is there already. The modules take turns, {rounds} times each. Triggers are
imported by the triggerer and not by DAG files; most of what they cost is `airflow.triggers.base`.
"""
_PROGRAM = """\
import os, sys, time
import airflow.sdk
rounds, *modules = sys.argv[1:]
for module in modules * int(rounds):
    sys.stderr.flush()
    if not (child := os.fork()):
        before, since = len(sys.modules), time.perf_counter()
        __import__(module)
        taken = time.perf_counter() - since
        os.write(2, f"{module} {taken * 1000} {len(sys.modules) - before}\\n".encode())
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"cannot import {module}")
"""


def run(quick: bool) -> Report:
    """Import each module in turn, several times."""
    rounds = 3 if quick else 21
    taken: dict[str, list[float]] = {module: [] for module in (*OURS, *PEERS)}
    loaded: dict[str, str] = {}
    for module, milliseconds, modules in _imports(rounds + 1):
        taken[module].append(float(milliseconds))
        loaded[module] = modules
    for values in taken.values():
        del values[0]  # the first round writes bytecode, and fills the file system's cache
    medians = {module: statistics.median(values) for module, values in taken.items()}
    slowest = max(IN_DAG_FILES, key=lambda module: medians[module])
    share = medians[slowest] / medians[HTTP]
    slowest_trigger = max(TRIGGERS, key=lambda module: medians[module])
    on_top = medians[slowest_trigger] - medians[TRIGGER_BASE]
    return Report(
        name="imports",
        title="Imports: what a DAG file pays",
        method=METHOD.format(rounds=rounds),
        columns=("Module", "Median", "Fastest", "Modules loaded"),
        rows=[
            (
                f"**{module}**" if module in OURS else module.removeprefix("airflow.providers."),
                f"{medians[module]:.1f} ms",
                f"{min(taken[module]):.1f} ms",
                loaded[module],
            )
            for module in taken
        ],
        goals=[
            Goal(
                f"What DAG files import: each below {LIMIT:.0f} ms",
                f"{medians[slowest]:.1f} ms ({slowest})",
                medians[slowest] < LIMIT,
            ),
            Goal(
                "What DAG files import: each a tenth of the http operator's at most",
                f"{share:.1%} ({slowest})",
                share <= 0.1,
            ),
            Goal(
                f"Triggers: each below {TRIGGER_LIMIT:.0f} ms over {TRIGGER_BASE}",
                f"{on_top:.1f} ms ({slowest_trigger})",
                on_top < TRIGGER_LIMIT,
            ),
        ],
        packages=(
            "apache-airflow",
            *(f"apache-airflow-providers-{name}" for name in ("http", "dbt-cloud", "openai", "anthropic")),
        ),
    )


def _imports(rounds: int) -> list[list[str]]:
    """Return module, milliseconds and number of modules loaded, of each import in turn."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHON"))}
    with tempfile.TemporaryDirectory(prefix="kie-bench-") as home:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _PROGRAM, str(rounds), *OURS, *PEERS],
            env=kept | {"AIRFLOW_HOME": home},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=600,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    lines = [line.split() for line in done.stderr.splitlines()]
    return [words for words in lines if len(words) == 3 and words[0] in (*OURS, *PEERS)]
