"""Dependencies point one way, and nowhere in a circle; imports inside functions count too."""

from __future__ import annotations

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: From the top down. What stands in one line knows nothing of its neighbours.
FLOORS = (
    ("pytest_plugin", "plugin"),
    ("decorators",),
    ("operators", "sensors"),
    ("batch",),
    ("submission",),
    ("waiting", "emulator"),
    ("triggers", "contact_sheet", "links", "assets"),
    ("failures", "files", "parameters", "last_words"),
    ("hooks",),
    ("config", "execution_timeout", "get_provider_info"),
    ("client", "addresses"),
    ("kie_provider",),
)


def imports(*, with_types: bool = False) -> dict[str, set[str]]:
    """Return which modules of the package each module imports; those that only types need are left out by default."""
    found: dict[str, set[str]] = {}
    for path in ROOT.joinpath("kie_provider").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for_types = {
            id(node)
            for block in ast.walk(tree)
            if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
            for node in ast.walk(block)
        }
        found[module] = {
            f"{node.module}.{alias.name}" if is_module(f"{node.module}.{alias.name}") else str(node.module)
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kie_provider")
            if with_types or id(node) not in for_types
            for alias in node.names
        }
    return found


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or path.joinpath("__init__.py").exists()


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def test_there_is_no_circle():
    TopologicalSorter(imports(with_types=True)).prepare()  # CycleError names it


def test_no_arrow_points_up():
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    arrows = {(room(module), room(other)) for module, others in imports().items() for other in others}
    assert len(arrows) > 40
    assert [arrow for arrow in sorted(arrows) if arrow[0] != arrow[1] and floor[arrow[0]] >= floor[arrow[1]]] == []


def test_the_metadata_library_needs_the_standard_library_only():
    room, named = "kie_provider.files.metadata", set()
    for path in ROOT.joinpath(*room.split(".")).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                named.add(str(node.module))
            elif isinstance(node, ast.Import):
                named.update(alias.name for alias in node.names)
    assert {"zlib", room} <= named
    assert [name for name in named if name.split(".")[0] not in sys.stdlib_module_names and room not in name] == []
