"""Directive for reliability.md: the accidents that the tests go through, so that page and tests cannot disagree."""  # noqa: INP001

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.e2e.chaos.scenarios import SCENARIOS

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx


class ScenarioTable(SphinxDirective):
    """``{kie-scenarios}``: one row per scenario."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        lines = ["| What happens | What follows | Ends as | Charged | Tries |", "| --- | --- | --- | --- | --- |"]
        for scenario in SCENARIOS:
            ends = f"{scenario.state} | {scenario.charged} | {scenario.tries}"
            lines.append(f"| {scenario.what} | {scenario.outcome} | {ends} |")
        return self.parse_text_to_nodes(StringList(lines, source="kie-scenarios"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("kie-scenarios", ScenarioTable)
    return {"parallel_read_safe": True}
