"""What README and documentation show of DAGs runs as it stands there."""

from __future__ import annotations

import hashlib
import json
import textwrap
from pathlib import Path

import pytest

from kie_provider.hooks.kie import KieHook
from tests.support.airflow_inprocess import load_dag, run_dag
from tests.support.pages import blocks, code, rows, section


@pytest.fixture
def readme_dag(tmp_path):
    """The README's DAG, with the other snippets in its body, on a disk of its own."""
    whole, *others = blocks("README.md", "python")
    assert all(len(source.splitlines()) <= 15 for source in (whole, *others))
    source = "\n".join([whole, *(textwrap.indent(other, "    ") for other in others)])
    file = tmp_path / "lighthouse.py"
    assert source.count('"/data/') == 5
    file.write_text(source.replace('"/data/', f'"{tmp_path}/data/'), encoding="utf-8")
    return load_dag(file)


def test_readme_dag_loads(readme_dag):
    assert set(readme_dag.task_ids) == {"image", "show", "illustrate", "winter", "create", "wait", "save", "catalogue"}
    assert readme_dag.get_task("image").deferrable is True
    assert [task.task_id for task in readme_dag.tasks if not task.retries] == []


def test_readme_dag_makes_images(readme_dag, tmp_path, kie_emulator, capsys):
    outcomes = run_dag(readme_dag, logical_date=None)
    assert {outcome.state for outcome in outcomes.values()} == {"success"}
    results = [outcome.result for outcome in outcomes.values() if isinstance(outcome.result, dict)]
    paths = [file["path"] for result in results for file in result.get("files", [])]
    assert sorted(paths) == sorted(map(str, tmp_path.glob("data/images/*/*.png")))
    assert outcomes["image", -1].result["files"][0]["path"] in capsys.readouterr().out
    assert kie_emulator.bill()["charged_total"] == 5 * (len(paths) + 3) == 40  # three of the batch


def test_hook_example_runs(tmp_path, monkeypatch, capsys):
    [source] = blocks("docs/operators.md", "python")
    monkeypatch.chdir(tmp_path)
    exec(compile(source, "operators.md", "exec"), {})
    size, sha256 = capsys.readouterr().out.split()
    assert (tmp_path / "fox.png").stat().st_size == int(size)
    assert sha256 == hashlib.sha256((tmp_path / "fox.png").read_bytes()).hexdigest()


def test_connection_check_as_documented():
    [line] = blocks("docs/connection.md", "python")
    call, _, answer = line.partition("#")
    shown = answer.strip().replace("995", "1000")
    assert repr(eval(call, {"KieHook": KieHook})) == shown


def test_sidecar_is_documented(readme_dag):
    def keys(value, prefix=""):
        if not isinstance(value, dict):
            return {prefix}
        return {prefix}.union(*(keys(item, f"{prefix}.{name}") for name, item in value.items()))

    page = section("docs/provenance.md", "The JSON file")
    [shown] = [json.loads(body) for body in blocks("docs/provenance.md", "json")]
    [file] = run_dag(readme_dag.partial_subset(["image"]))["image", -1].result["files"]
    facts = json.loads(Path(file["sidecar"]).read_text(encoding="utf-8"))
    assert keys(shown) == keys(facts)
    for name in ("v", "model", "prompt", "input", "credits", "usd", "digital_source_type", "embedded_provenance"):
        assert shown[name] == facts[name], name
    assert {name for row in rows(page, "Field") for name in code(row[0])} == {*facts, "prompt_sha256"}
