"""The documentation says what the code does: tables match, and links lead somewhere."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import textwrap
from pathlib import Path

import jinja2
import jinja2.nodes
import pytest
from airflow.providers.common.compat.sdk import Connection

from kie_provider.client import errors
from kie_provider.client.download import DownloadedFile
from kie_provider.client.prices import LIST_USD_PER_CREDIT, PriceTable
from kie_provider.client.records import TaskRecord, TaskState
from kie_provider.config import price_table
from kie_provider.decorators.flux2 import Flux2DecoratedOperator
from kie_provider.emulator import __main__ as emulator_command
from kie_provider.emulator import faults
from kie_provider.emulator.models import MODELS
from kie_provider.files import naming
from kie_provider.files.provenance import SavedFile
from kie_provider.files.storage import PACKAGES
from kie_provider.hooks.connection import endpoint_from_connection
from kie_provider.hooks.kie import KieHook
from kie_provider.operators.batch import Flux2BatchOperator
from kie_provider.operators.contact_sheet import KieContactSheetOperator
from kie_provider.operators.flux2 import REQUEST_FIELDS, Flux2CreateTaskOperator, Flux2GenerateImageOperator
from kie_provider.operators.kie import KieCreateTaskOperator
from kie_provider.operators.results import KieSaveResultOperator, SavingOperator
from kie_provider.sensors.kie import KieTaskSensor
from tests.support.pages import DOCS, FENCE, PAGES, ROOT, blocks, code, prose, rows, section, slug, text


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


# ---- examples


def snippets():
    """Return all Python code of the pages, of `dags/` and of `docs/examples/`."""
    for file in (*ROOT.glob("dags/*.py"), *DOCS.glob("examples/*.py")):
        yield file.read_text(encoding="utf-8")
    for page in PAGES:
        yield from (textwrap.dedent(source) for source in blocks(page, "python"))


def test_examples_need_no_logical_date():
    """A run that was triggered without one has none of these names, and rendering the template would fail the task."""
    dated = re.compile(r"(prev_)?data_interval_\w+|logical_date|[dt]s(_nodash(_with_tz)?)?")
    # The names of a page's prose are told apart from whole examples by what stands before the braces.
    examples = [*snippets(), *(name for page in PAGES for name in code(prose(page)) if not name.startswith("{{"))]
    templates = [template for example in examples for template in re.findall(r"\{\{.*?\}\}", example)]
    assert "{{ run_id }}" in templates
    for template in templates:
        tree = jinja2.Environment().parse(template)
        names = [node.name for node in tree.find_all(jinja2.nodes.Name)]
        names += [node.attr for node in tree.find_all(jinja2.nodes.Getattr)]
        assert not list(filter(dated.fullmatch, names)), template


def test_every_task_of_a_snippet_has_retries():
    sources = list(snippets())
    assert len(sources) > 5
    for source in sources:
        keywords = [
            {keyword.arg for keyword in call.keywords}
            for call in ast.walk(ast.parse(source))
            if isinstance(call, ast.Call)
        ]
        if not any("default_args" in names for names in keywords):
            assert all("retries" in names for names in keywords if "task_id" in names), source


def test_price_settings_as_documented(monkeypatch):
    [block] = blocks("docs/provenance.md", "ini")
    settings = dict(line.split(" = ", 1) for line in block.strip().splitlines()[1:])
    prices = PriceTable.parse(**settings)
    assert prices.credits_for("flux-2/pro-text-to-image", "2K") == 6.5
    assert prices.credits_for("flux-2/flex-text-to-image", "2K") == MODELS["flux-2/flex-text-to-image"].prices["2K"]
    page = " ".join(text("docs/provenance.md").split())
    assert f"`usd_per_credit` ({LIST_USD_PER_CREDIT})" in page
    for name, value in settings.items():
        assert f"`AIRFLOW__KIE__{name.upper()}`" in page
        monkeypatch.setenv(f"AIRFLOW__KIE__{name.upper()}", value)
    assert price_table() == prices


def test_file_name_patterns_as_documented():
    page = section("docs/saving.md", "Names")
    assert [code(row[0])[0].strip("{}") for row in rows(page, "Field")] == list(naming.FIELDS)
    patterns = [name for name in code(page) if "{extension}" in name and len(name) > len(".{extension}")]
    assert len(patterns) == 3
    for pattern in patterns:
        assert naming.pattern_problem(re.sub(r"\{\{.*?\}\}", "x", pattern)) is None, pattern
    assert naming.file_name("{index:03}", "", 0, "") == "000"


def test_storage_packages_are_documented():
    table = {scheme: code(row[1]) for row in rows(text("docs/saving.md"), "Scheme") for scheme in code(row[0])}
    del table["file"]
    assert table == {scheme: [PACKAGES[scheme]] for scheme in table}
    assert set(table) == {"s3", "gs", "abfs"}


def test_connections_as_documented(monkeypatch):
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
    table = {code(name)[0]: ends for name, _, *ends, _ in rows(text("README.md"), "Error")}
    classes = errors.error_classes()
    assert set(table) == {error.__name__ for error in classes if error is not errors.KieError}
    for error in classes[1:]:
        create, sensor, saving = table[error.__name__]
        assert create.startswith(reference.create_ends(error)), error
        assert sensor.startswith(reference.sensor_ends(error)), error
        assert saving.startswith(reference.saving_ends(error)), error


def test_errors_page_has_every_error():
    names = [error.__name__ for error in errors.error_classes()]
    page = text("docs/errors.md")
    assert sorted(re.findall(r"^### (\w+)$", page, re.MULTILINE)) == sorted(names)
    assert set(re.findall(r"^```\{kie-error\} (\w+)$", page, re.MULTILINE)) == set(names)


def parameters_of(operator):
    """Return names and defaults of what an operator takes, as its signature says it, which has a type for each."""
    parameters = inspect.signature(operator.__init__).parameters.values()
    own = [each for each in parameters if each.name not in ("self", "kwargs")]
    assert not [each.name for each in own if each.annotation is inspect.Parameter.empty]
    return {each.name: each.default for each in own}


def parameter_table(*headings):
    """Return the parameter tables of these sections as one: name -> (about, default); the first has the last word."""
    return {
        code(name)[0]: (about, default)
        for heading in reversed(headings)
        for name, about, default in rows(section("docs/operators.md", heading), "Parameter")
    }


GENERATE = ("Flux2GenerateImageOperator", "Flux2CreateTaskOperator", "KieSaveResultOperator")


@pytest.mark.parametrize(
    ("headings", "operator", "without"),
    [
        (GENERATE, Flux2GenerateImageOperator, {"result"}),
        (("Flux2CreateTaskOperator",), Flux2CreateTaskOperator, set()),
        (("KieCreateTaskOperator",), KieCreateTaskOperator, set()),
        (("Flux2TaskSensor, KieTaskSensor",), KieTaskSensor, set()),
        (("KieSaveResultOperator",), KieSaveResultOperator, set()),
        (("KieContactSheetOperator",), KieContactSheetOperator, set()),
        (("Flux2BatchOperator", "KieSaveResultOperator"), Flux2BatchOperator, {"result"}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_parameters_are_documented(headings, operator, without):
    table = {name: row for name, row in parameter_table(*headings).items() if name not in without}
    parameters = {name: default for name, default in parameters_of(operator).items() if name not in without}
    assert set(table) == set(parameters)
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
        ), name


def test_signatures_come_in_the_documented_order():
    for heading, operator in [
        ("Flux2CreateTaskOperator", Flux2CreateTaskOperator),
        ("KieCreateTaskOperator", KieCreateTaskOperator),
        ("KieContactSheetOperator", KieContactSheetOperator),
        ("Flux2TaskSensor, KieTaskSensor", KieTaskSensor),
    ]:
        signature = inspect.signature(operator.__init__).parameters
        assert list(parameter_table(heading)) == [name for name in signature if name not in ("self", "kwargs")]


def test_template_fields_are_documented():
    all_but = {
        "Flux2CreateTaskOperator": Flux2CreateTaskOperator,
        "KieCreateTaskOperator": KieCreateTaskOperator,
        "KieContactSheetOperator": KieContactSheetOperator,
    }
    for heading, operator in all_but.items():
        fields = {name for name, (about, _) in parameter_table(heading).items() if "no template field" not in about}
        assert set(operator.template_fields) == fields, heading
    only = {"Flux2TaskSensor, KieTaskSensor": KieTaskSensor, "KieSaveResultOperator": KieSaveResultOperator}
    for heading, operator in only.items():
        fields = {name for name, (about, _) in parameter_table(heading).items() if "template field" in about}
        assert set(operator.template_fields) == fields, heading
    fields = {name for name, (about, _) in parameter_table("Flux2BatchOperator").items() if "template field" in about}
    assert set(Flux2BatchOperator.template_fields) == fields | set(SavingOperator.template_fields)
    own = {name for name, (about, _) in parameter_table(GENERATE[0]).items() if "template field" in about}
    inherited = {*Flux2CreateTaskOperator.template_fields, *KieSaveResultOperator.template_fields} - {"result"}
    assert set(Flux2GenerateImageOperator.template_fields) == inherited | own


def test_decorator_is_documented():
    page = FENCE.sub("", section("docs/operators.md", "@task.flux2"))
    assert set(REQUEST_FIELDS) <= set(code(page))
    assert parameters_of(Flux2DecoratedOperator).keys() - parameters_of(Flux2GenerateImageOperator).keys() == {
        "python_callable",
        "op_args",
        "op_kwargs",
    }


def test_result_dict_is_documented():
    result = TaskRecord(kie_task_id="x", state=TaskState.SUCCESS, kie_state="success").to_result()
    page = text("docs/operators.md")
    assert [code(row[0])[0] for row in rows(page, "Key")] == [*result, "files"]
    assert [name for row in rows(page, "Entry") for name in code(row[0])] == list(
        inspect.signature(SavedFile).parameters
    )


def test_hook_methods_are_documented():
    table = rows(section("docs/operators.md", "KieHook"), "Method")
    assert len(table) > 5
    for call, returns in table:
        name, arguments = re.fullmatch(r"(\w+)\((.*)\)", code(call)[0]).groups()
        parameters = list(inspect.signature(getattr(KieHook, name)).parameters.values())[1:]
        assert [argument.split("=")[0] for argument in arguments.split(", ") if argument] == [
            p.name for p in parameters
        ]
        if name == "download_file":
            assert set(inspect.signature(DownloadedFile).parameters) <= set(code(returns))


def test_prices_are_those_of_the_emulator():
    table = rows(text("README.md"), "Model")
    assert {model for models, *_ in table for model in code(models)} == {
        model for model in MODELS if model.startswith("flux-2/")
    }
    for models, *cells in table:
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
