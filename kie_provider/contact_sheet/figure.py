"""A tile as HTML, as the contact sheet, Airflow's image page and the emulator's page show it."""

from __future__ import annotations

import html
from collections.abc import Sequence

from kie_provider.contact_sheet.style import SEPARATOR
from kie_provider.contact_sheet.tiles import Tile

#: States that are not shown in the colour of an alarm.
_CALM = ("", "success", "waiting", "queuing", "generating", "running")


def figure(
    tile: Tile, *, src: str = "", facts: Sequence[str] = (), links: Sequence[str] = (), more: str = "", opens: str = ""
) -> str:
    """Return a tile as HTML. Its texts are escaped.

    :param src: URL of the thumbnail; without one the tile shows its note instead.
    :param facts: texts of the line below the prompt.
    :param links: HTML of the links below that line.
    :param more: HTML that follows the links.
    :param opens: HTML attributes of the link around the image, if the tile has one.
    """
    prompt = html.escape(tile.prompt)
    if src:
        alt = prompt or "image without a prompt"
        view = f'<div class="view"><img src="{html.escape(src)}" alt="{alt}" loading="lazy"></div>'
    else:
        view = f'<div class="view {tile.kind}"><span>{html.escape(tile.note)}</span></div>'
    if tile.link:
        view = f'<a href="{html.escape(tile.link)}"{opens}>{view}</a>'
    rows = [f'<p class="prompt" dir="auto" title="{prompt}">{prompt}</p>']
    if facts:
        rows.append(f'<p class="facts">{html.escape(SEPARATOR.join(facts))}</p>')
    if tile.model or tile.state:
        state = "" if tile.state in _CALM else ' class="alarm"'
        rows.append(
            f'<p class="model"><span>{html.escape(tile.model)}</span> <b{state}>{html.escape(tile.state)}</b></p>'
        )
    if links:
        rows.append(f'<p class="links">{" ".join(links)}</p>')
    return f"<figure>{view}<figcaption>{''.join(rows)}{more}</figcaption></figure>"


def link(label: str, address: str) -> str:
    """Return a link as HTML."""
    return f'<a href="{html.escape(address)}">{html.escape(label)}</a>'
