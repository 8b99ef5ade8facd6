"""`.ci/run` installs the programs that tests need; `make test` and the tests install none."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / ".ci" / "run"
needs_ci_run = pytest.mark.skipif(not RUN.exists(), reason=".ci is not part of a source distribution")


@pytest.fixture
def ci_run(tmp_path):
    """Run ``.ci/run`` on a machine that has these programs only; return what they were called with."""

    def run(*programs, user=0):
        calls = tmp_path / "calls"
        for name in ("apt-get", "python3", *programs):
            (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {calls}\n')
        (tmp_path / "sudo").write_text(f'#!/bin/sh\necho sudo >> {calls}\nexec "$@"\n')
        (tmp_path / "id").write_text(f"#!/bin/sh\necho {user}\n")
        for file in tmp_path.iterdir():
            file.chmod(0o755)
        for name in ("bash", "dirname", "env", "sh"):
            (tmp_path / name).symlink_to(shutil.which(name))
        environment = {"PATH": str(tmp_path)}
        done = subprocess.run([RUN, "AIRFLOW=3.1"], env=environment, capture_output=True, text=True, check=True)
        return calls.read_text().splitlines(), done.stderr

    return run


TESTS = "python3 .ci/run_tests.py make test AIRFLOW=3.1"
INSTALL = [
    "apt-get update -qq",
    "apt-get install -y -qq --no-install-recommends chromium chromium-driver libimage-exiftool-perl "
    "postgresql redis-server",
]


@needs_ci_run
@pytest.mark.parametrize("programs", [(), ("exiftool",), ("redis-server", "chromium"), ("exiftool", "redis-server")])
def test_what_is_missing_is_installed_first(ci_run, programs):
    calls, problems = ci_run(*programs)
    assert calls == [*INSTALL, TESTS]
    absent = {"exiftool", "redis-server", "chromium", "chromedriver", "postgresql"} - set(programs)
    assert set(re.findall(r"(\S+) is not installed: its tests will be skipped", problems)) == absent


@needs_ci_run
def test_who_is_not_root_asks_sudo(ci_run):
    calls, _ = ci_run(user=1000)
    assert calls == ["sudo", INSTALL[0], "sudo", INSTALL[1], TESTS]


@needs_ci_run
def test_what_is_there_is_not_installed_again(ci_run):
    assert ci_run("exiftool", "redis-server", "chromium", "chromedriver", "postgres") == ([TESTS], "")


def test_a_fleet_says_what_it_cannot_install(tmp_path):
    for name in ("bash", "env", "sed"):
        (tmp_path / name).symlink_to(shutil.which(name))
    programs = ROOT / "tests" / "e2e" / "fleet" / "programs"

    done = subprocess.run([programs], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert done.stderr == "A fleet needs redis-server and postgresql: there is no apt-get to install it with\n"


def test_make_and_the_tests_install_no_system_package():
    files = [ROOT / "Makefile", *(file for file in (ROOT / "tests").rglob("*.py") if file != Path(__file__))]
    assert [file for file in files if re.search(r"apt-get|\bsudo\b|\bbrew\b|\bdnf\b", file.read_text("utf-8"))] == []
