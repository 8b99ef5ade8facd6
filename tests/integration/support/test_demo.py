"""`make demo` spends credits only when it is told to on make's command line."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess

import pytest

from tests.support import demo
from tests.support.demo import ROOT, Demo, DemoError

KEY = "a-real-key"


@pytest.fixture
def cleanup(monkeypatch):
    monkeypatch.setattr(demo, "_SECRETS", set())
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", ["demo", "airflow"])
@pytest.mark.parametrize(("arguments", "is_real"), [([], False), (["REAL=0"], False), (["REAL=1"], True)])
def test_only_the_command_line_makes_it_real(target, arguments, is_real):
    environment = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}  # of a make above this
    environment |= {"KIE_API_KEY": KEY, "REAL": "1"}
    done = subprocess.run(
        ["make", "--no-print-directory", "-n", target, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    [command] = [line for line in done.stdout.splitlines() if "tests.support.demo" in line]
    assert ("--real" in command) is is_real


def test_a_key_in_the_environment_is_not_used(cleanup, monkeypatch, capsys):
    monkeypatch.setenv("KIE_API_KEY", KEY)

    connection = Demo(cleanup).connect()

    assert connection["host"].startswith("http://127.0.0.1:")
    assert KEY not in str(connection)
    assert "KIE_API_KEY is not used" in capsys.readouterr().out


def test_it_says_what_it_will_spend_before_it_does(cleanup, monkeypatch, capsys):
    monkeypatch.setenv("KIE_API_KEY", KEY)

    connection = Demo(cleanup, is_real=True).connect()

    assert connection == {"conn_type": "kie", "password": KEY}
    assert "will spend 20 REAL credits (0.1 USD" in capsys.readouterr().out


def test_real_without_a_key_does_not_begin(cleanup, monkeypatch):
    monkeypatch.setenv("KIE_API_KEY", " ")

    with pytest.raises(DemoError, match="REAL=1 needs a key in KIE_API_KEY"):
        Demo(cleanup, is_real=True).connect()


def test_kie_itself_cannot_call_back_here(cleanup, monkeypatch):
    monkeypatch.setenv("KIE_API_KEY", KEY)

    with pytest.raises(DemoError, match="CALLBACKS=1 needs the emulator"):
        Demo(cleanup, is_real=True, is_called=True).connect()
