"""Dependencies point one way and nowhere in a circle; an import inside a function has a reason."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: From the top down. What stands in one line knows nothing of its neighbours.
FLOORS = (
    ("pytest_plugin", "plugin", "cli"),
    ("decorators",),
    ("operators", "sensors"),
    ("batch",),
    ("submission",),
    ("waiting", "emulator"),
    ("triggers", "contact_sheet", "links", "assets"),
    ("failures", "files", "parameters"),
    ("hooks",),
    ("config", "execution_timeout", "compat"),
    ("client", "addresses", "get_provider_info"),
    ("kie_provider",),
)
#: What a DAG file imports.
DAG_ROOMS = ("operators", "sensors", "decorators", "links")
#: What every process of Airflow, or every run of pytest, imports.
LIGHT = ("kie_provider.get_provider_info", "kie_provider.plugin", "kie_provider.pytest_plugin")
HEAVY = {"requests", "aiohttp", "PIL", "limits"}


@dataclass(frozen=True)
class Import:
    """One module that another one imports.

    :param is_local: inside a function.
    :param is_for_types: below ``if TYPE_CHECKING``.
    """

    name: str
    is_local: bool
    is_for_types: bool


@cache
def imports() -> dict[str, list[Import]]:
    """Return what each module of the package imports."""
    found = {}
    for path in ROOT.joinpath("kie_provider").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        local, for_types = set(), set()
        for block in ast.walk(tree):
            if isinstance(block, ast.FunctionDef | ast.AsyncFunctionDef):
                local |= {id(node) for node in ast.walk(block)}
            elif isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test):
                for_types |= {id(node) for node in ast.walk(block)}
        found[module] = [
            Import(name, id(node) in local, id(node) in for_types)
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in names_of(node)
        ]
    return found


def names_of(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    for alias in node.names:
        if isinstance(node, ast.Import):
            yield alias.name
        else:
            module = f"{node.module}.{alias.name}"
            yield module if is_module(module) else str(node.module)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or path.joinpath("__init__.py").exists()


def ours(module: str) -> list[Import]:
    return [each for each in imports()[module] if each.name.split(".")[0] == "kie_provider"]


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def loaded_with(*modules: str) -> set[str]:
    """Return what is loaded of the package when these modules are imported."""
    loaded: set[str] = set()
    queue = list(modules)
    while queue:
        if (module := queue.pop()) not in loaded:
            loaded.add(module)
            queue += [each.name for each in ours(module) if not each.is_local and not each.is_for_types]
            queue += [module.rpartition(".")[0] or "kie_provider"]
    return loaded


def loads(libraries: set[str], module: str) -> bool:
    """Whether importing the module loads one of the libraries."""
    return any(
        each.name.split(".")[0] in libraries
        for part in loaded_with(module)
        for each in imports()[part]
        if not each.is_local and not each.is_for_types
    )


def test_there_is_no_circle():
    """Not even one of imports that only types need."""
    arrows = {module: {each.name for each in ours(module)} for module in imports()}
    TopologicalSorter(arrows).prepare()  # CycleError names it


def test_no_arrow_points_up():
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    arrows = {(room(module), room(each.name)) for module in imports() for each in ours(module) if not each.is_for_types}
    assert len(arrows) > 40
    assert [arrow for arrow in sorted(arrows) if arrow[0] != arrow[1] and floor[arrow[0]] >= floor[arrow[1]]] == []


def with_dags() -> set[str]:
    """Return what is loaded with DAG files."""
    return loaded_with(*(module for module in imports() if room(module) in DAG_ROOMS))


def test_our_modules_are_imported_inside_functions_only_for_a_reason():
    light, emulator = with_dags() | loaded_with(*LIGHT), loaded_with("kie_provider.emulator.__main__")
    assert len(light) > 20
    assert len(emulator) > 20
    needless = [
        f"{module} imports {each.name} inside a function"
        for module in imports()
        for each in ours(module)
        if each.is_local
        and not loads(HEAVY, each.name)
        and not (module in light and each.name not in with_dags())
        and not (module in emulator and loads({"airflow"}, each.name))
        and each.name != "kie_provider.plugin.wake"  # where Airflow's internals are other ones, the receiver goes on
    ]
    assert needless == []


def test_what_dag_files_load_is_not_heavy():
    assert [module for module in sorted(with_dags() | loaded_with(*LIGHT)) if loads(HEAVY, module)] == []


def test_the_emulator_loads_no_airflow():
    assert not loads({"airflow"}, "kie_provider.emulator.__main__")


def test_the_client_imports_no_airflow():
    client = [module for module in imports() if room(module) == "client"]
    assert [module for module in client for each in imports()[module] if each.name.split(".")[0] == "airflow"] == []


def test_the_metadata_library_needs_the_standard_library_only():
    library = "kie_provider.files.metadata"
    named = {each.name for module in imports() if library in module for each in imports()[module]}
    assert {"zlib", f"{library}.exif"} <= named
    assert [name for name in named if name.split(".")[0] not in sys.stdlib_module_names and library not in name] == []
