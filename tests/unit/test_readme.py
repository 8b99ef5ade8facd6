"""The README that a distribution carries has no link that a package index could not follow."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def readme_of(project: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "metadata"], cwd=project, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["readme"]["text"]


def copy_of_project(folder: Path, source: str | None) -> Path:
    """Return a project folder with the files that the metadata is made from, and another address."""
    (folder / "kie_provider").mkdir()
    for name in ("README.md", "hatch_build.py", "LICENSE", "kie_provider/__init__.py"):
        shutil.copy(ROOT / name, folder / name)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = re.sub(r"^\[project\.urls\]\n(.+\n)*", "", project, flags=re.MULTILINE)
    if source:
        project += f'\n[project.urls]\nSource = "{source}"\n'
    (folder / "pyproject.toml").write_text(project, encoding="utf-8")
    return folder


def test_links_and_pictures_lead_to_the_repository(tmp_path):
    readme = readme_of(copy_of_project(tmp_path, "https://example.org/kie"))

    for target in LINK.findall(readme):
        path = re.fullmatch(r"https://example\.org/kie/(?:blob|raw)/HEAD/([^#]+)(?:#.*)?", target)
        assert (ROOT / path[1]).exists() if path else target.startswith("https://"), target
    assert "](https://example.org/kie/raw/HEAD/docs/pictures/page-light.webp)" in readme
    assert "](https://example.org/kie/blob/HEAD/docs/saving.md)" in readme


def test_without_an_address_links_are_text(tmp_path):
    readme = readme_of(copy_of_project(tmp_path, None))
    original = (ROOT / "README.md").read_text(encoding="utf-8")

    assert all(target.startswith("https://") for target in LINK.findall(readme))
    assert "![" not in readme
    assert FENCE.findall(readme) == FENCE.findall(original)
