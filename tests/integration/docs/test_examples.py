"""What the documentation shows of the emulator runs as it stands there."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

from tests.support.pages import DOCS, ROOT, blocks, text


def test_emulator_example_runs(capsys):
    source = text("docs/examples/emulator.py")
    runpy.run_path(str(DOCS / "examples" / "emulator.py"))
    assert capsys.readouterr().out.strip() == re.search(r"# (generating .*)", source)[1]


def test_example_tests_pass_as_described(tmp_path):
    [commands] = [block for block in blocks("docs/testing.md", "bash") if "pytest" in block]
    commands = commands.replace("$PWD/build/airflow-test", str(tmp_path))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTEST"))}
    environment |= {"PATH": path, "PYTEST_ADDOPTS": "-p no:cacheprovider", "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    done = subprocess.run(
        ["sh", "-ec", commands], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
