"""The README for package indexes, which do not resolve links into this repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")


class ReadmeHook(MetadataHookInterface):
    """Make the links of the README absolute when a distribution is built."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set ``readme``. The address of the repository is ``Source`` in ``[project.urls]``."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        source = metadata.get("urls", {}).get("Source")
        metadata["readme"] = {"content-type": "text/markdown", "text": with_absolute_links(text, source)}


def with_absolute_links(markdown: str, source: str | None) -> str:
    """Return Markdown that reads the same anywhere.

    Without a source, links become plain text, and pictures are left out: better than dead links.
    """

    def replacement(link: re.Match[str]) -> str:
        picture, text, path = link.groups()
        if not source:
            return "" if picture else text
        return f"{picture}[{text}]({source.rstrip('/')}/{'raw' if picture else 'blob'}/HEAD/{path})"

    return _LINK.sub(replacement, markdown)
