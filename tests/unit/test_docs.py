"""The documentation says what the code does: examples run, tables match, links lead somewhere."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import Connection

from kie_provider.client import errors
from kie_provider.client.models import TaskRecord, TaskState
from kie_provider.emulator import __main__ as emulator_command
from kie_provider.emulator import faults
from kie_provider.emulator.models import MODELS
from kie_provider.hooks.kie import KieHook, endpoint_from_connection
from kie_provider.operators.flux2 import Flux2CreateTaskOperator, Flux2GenerateImageOperator
from kie_provider.operators.kie import KieCreateTaskOperator
from kie_provider.sensors.kie import KieTaskSensor
from tests.support.airflow_inprocess import initialise_database, load_dag, run_dag

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])
FENCE = re.compile(r"^ *(`{3,})(\S*).*?\n(.*?)^ *\1 *$", re.MULTILINE | re.DOTALL)


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return [body for _, kind, body in FENCE.findall(text(page)) if kind == language]


def prose(page: str | Path) -> str:
    """Return a page without its code blocks."""
    return FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))


def section(page: str, heading: str) -> str:
    return re.split(r"\n## ", text(page).split(f"\n## {heading}\n", 1)[1])[0]


def rows(markdown: str, header: str) -> list[list[str]]:
    """Return the cells of the table under a header line that begins with ``header``."""
    lines = markdown.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {header} |"))
    table: list[list[str]] = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


# ---- links and commands


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]*)\)", prose(page)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in map(slug, re.findall(r"^#+ (.+)$", prose(file), re.MULTILINE)), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page):
    for name in code(prose(page)):
        if re.fullmatch(r"(kie_provider|dags|docs|tests|requirements|client)/[\w./]+", name) and "build" not in name:
            assert (ROOT / name).exists() or (ROOT / "kie_provider" / name).exists(), name


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", text("Makefile"), re.MULTILINE))
    for page in PAGES:
        used = re.findall(r"(?:`|^)make ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(used) <= targets, page


def test_readme_begins_with_two_commands():
    commands = [line.split("#")[0].strip() for line in blocks("README.md", "bash")[0].splitlines()]
    assert commands == ["make demo", "make test"]


def test_documentation_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", str(tmp_path / "doctrees")]
    done = subprocess.run([*build, str(DOCS), str(tmp_path / "html")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- examples


def test_readme_dag_loads(tmp_path):
    [source] = blocks("README.md", "python")
    assert len(source.splitlines()) <= 15
    file = tmp_path / "lighthouse.py"
    file.write_text(source, encoding="utf-8")
    dag = load_dag(file)
    assert [task.task_id for task in dag.topological_sort()] == ["image", "show"]
    assert dag.get_task("image").deferrable is True


def test_readme_dag_makes_an_image(tmp_path, kie_connection, kie_emulator, capsys):
    file = tmp_path / "lighthouse.py"
    file.write_text(blocks("README.md", "python")[0], encoding="utf-8")
    initialise_database()
    outcomes = run_dag(load_dag(file))
    [url] = outcomes["image", -1].result["urls"]
    assert url in capsys.readouterr().out
    assert kie_emulator.bill()["charged_total"] == 5


def test_emulator_example_runs(capsys):
    source = text("docs/examples/emulator.py")
    runpy.run_path(str(DOCS / "examples" / "emulator.py"))
    assert capsys.readouterr().out.strip() == re.search(r"# (generating .*)", source)[1]


@pytest.mark.e2e
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


def test_connections_as_documented(monkeypatch, kie_connection):
    exports = [
        re.search(r"export AIRFLOW_CONN_KIE_DEFAULT='(.*)'", block)[1]
        for block in [text("README.md"), *blocks("docs/connection.md", "bash")]
        if "AIRFLOW_CONN" in block
    ]
    assert len(exports) == 3
    for value in exports:
        monkeypatch.setenv("AIRFLOW_CONN_KIE_DEFAULT", value.replace("<API key>", "secret-key"))
        endpoint = endpoint_from_connection(KieHook.get_connection("kie_default"))
        assert (endpoint.api_key, endpoint.host) == ("secret-key", "https://api.kie.ai")
        assert endpoint.request_timeout == (30 if "request_timeout" in value else 60)
    [uri] = [name for name in code(prose("docs/connection.md")) if name.startswith("kie://")]
    assert endpoint_from_connection(Connection.from_uri(uri, conn_id="x")).host == "http://127.0.0.1:8787"


def test_connection_check_as_documented(kie_connection):
    [line] = blocks("docs/connection.md", "python")
    call, _, answer = line.partition("#")
    shown = answer.strip().replace("995", "1000")
    assert repr(eval(call, {"KieHook": KieHook})) == shown


def test_connection_fields_have_the_documented_defaults():
    endpoint = endpoint_from_connection(Connection(conn_id="x", conn_type="kie", password="key"))
    documented = {
        code(name)[-1]: default for name, _, default in rows(text("docs/connection.md"), "Field") if "`" in name
    }
    assert documented["upload_host"] == f"`{endpoint.upload_host}`"
    assert documented["request_timeout"] == f"{endpoint.request_timeout:g}"


# ---- tables


def test_readme_says_how_every_error_ends():
    reference = load(DOCS / "error_reference.py")
    table = {code(name)[0]: (create, sensor) for name, _, create, sensor, _ in rows(text("README.md"), "Error")}
    classes = reference.error_classes()
    assert set(table) == {error.__name__ for error in classes if error is not errors.KieError}
    for error in classes[1:]:
        create, sensor = table[error.__name__]
        assert create.startswith(reference.create_ends(error)), error
        assert sensor.startswith(reference.sensor_ends(error)), error


def test_errors_page_has_every_error():
    names = [error.__name__ for error in load(DOCS / "error_reference.py").error_classes()]
    page = text("docs/errors.md")
    assert sorted(re.findall(r"^### (\w+)$", page, re.MULTILINE)) == sorted(names)
    assert set(re.findall(r"^```\{kie-error\} (\w+)$", page, re.MULTILINE)) == set(names)


@pytest.mark.parametrize(
    ("heading", "operator"),
    [
        ("Flux2GenerateImageOperator", Flux2GenerateImageOperator),
        ("Flux2CreateTaskOperator", Flux2CreateTaskOperator),
        ("KieCreateTaskOperator", KieCreateTaskOperator),
        ("Flux2TaskSensor, KieTaskSensor", KieTaskSensor),
    ],
)
def test_parameters_are_documented(heading, operator):
    table = {
        code(name)[0]: (about, default)
        for name, about, default in rows(section("docs/operators.md", heading), "Parameter")
    }
    parameters = {
        name: parameter.default
        for name, parameter in inspect.signature(operator.__init__).parameters.items()
        if name not in ("self", "kwargs")
    }
    assert list(table) == list(parameters)
    for name, default in parameters.items():
        shown = table[name][1].strip("`")
        if shown in ("as above", "[operators] default_deferrable"):
            continue
        assert shown == (
            "required"
            if default is inspect.Parameter.empty
            else f"{default:g}"
            if isinstance(default, float)
            else str(default)
        )
    if operator is Flux2GenerateImageOperator:
        assert operator.template_fields == Flux2CreateTaskOperator.template_fields
    elif operator is not KieTaskSensor:
        assert set(operator.template_fields) == {
            name for name, (about, _) in table.items() if "no template field" not in about
        }
    else:
        assert set(operator.template_fields) == {
            name for name, (about, _) in table.items() if "template field" in about
        }


def test_result_dict_is_documented():
    result = TaskRecord(kie_task_id="x", state=TaskState.SUCCESS, kie_state="success").to_result()
    assert [code(row[0])[0] for row in rows(text("docs/operators.md"), "Key")] == list(result)


def test_hook_methods_are_documented():
    for call, _ in rows(section("docs/operators.md", "KieHook"), "Method"):
        name, arguments = re.fullmatch(r"(\w+)\((.*)\)", code(call)[0]).groups()
        parameters = list(inspect.signature(getattr(KieHook, name)).parameters.values())[1:]
        assert [argument.split("=")[0] for argument in arguments.split(", ") if argument] == [
            p.name for p in parameters
        ]


def test_prices_are_those_of_the_emulator():
    for models, *cells in rows(text("README.md"), "Model"):
        for model in code(models):
            shown = [float(re.match(r"(\d+) credits \(([\d.]+) USD\)", cell)[1]) for cell in cells]
            dollars = [float(re.match(r"(\d+) credits \(([\d.]+) USD\)", cell)[2]) for cell in cells]
            assert shown == [MODELS[model].prices["1K"], MODELS[model].prices["2K"]]
            assert dollars == pytest.approx([price * 0.005 for price in shown])


def test_fault_grammar_is_documented():
    page = section("docs/testing.md", "Faults")
    table = {code(row[0])[0]: row for row in rows(page, "Value of `do`")}
    assert set(table) == set(faults.ACTIONS)
    for name, action in faults.ACTIONS.items():
        required = {field for field, (_, is_required) in action.fields.items() if is_required}
        assert set(code(table[name][2])) == set(action.fields), name
        assert set(re.findall(r"`(\w+)` \(required\)", table[name][2])) == required, name
        if len(action.on) == 1:
            assert f"on `{action.on[0]}` only" in table[name][1], name
    [on] = [row for row in rows(page, "Field") if row[0] == "`on`"]
    assert tuple(code(on[1])) == faults.ENDPOINTS


def test_example_faults_are_accepted():
    for fault in json.loads(text("docs/examples/faults.json")):
        faults.parse(fault)


def test_emulator_options_are_documented(capsys):
    with pytest.raises(SystemExit):
        emulator_command.main(["--help"])
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    assert {name for row in rows(text("docs/testing.md"), "Option") for name in code(row[0])} == options
