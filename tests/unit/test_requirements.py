"""The lower bounds of `pyproject.toml` are the versions that `make test AIRFLOW=lowest` runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REQUIREMENTS = [
    Requirement(line)
    for lines in (
        PROJECT["build-system"]["requires"],
        PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"].values(),
        *(PROJECT["dependency-groups"][name] for name in ("test", "lint", "docs")),
    )
    for line in lines
]


@pytest.fixture(scope="module")
def lowest() -> dict[str, Version]:
    lines = (ROOT / "requirements" / "airflow-lowest.lock").read_text(encoding="utf-8").splitlines()
    pins = [line.split(";")[0].strip().split("==") for line in lines if "==" in line.split("#")[0]]
    return {canonicalize_name(name): Version(version) for name, version in pins}


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_the_lower_bound_is_what_was_run(requirement, lowest):
    [bound] = [Version(each.version) for each in requirement.specifier if each.operator == ">="]
    run = lowest[canonicalize_name(requirement.name)]
    assert run.release[: len(bound.release)] == bound.release, f"{requirement}, but {run} was run"
