"""The sheet as an HTML page."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

from kie_provider.client.prices import PriceTable
from kie_provider.contact_sheet.figure import figure, link
from kie_provider.contact_sheet.style import STYLE, colours
from kie_provider.contact_sheet.tiles import Tile, height_ratio


def draw_page(tiles: Sequence[Tile], title: str, headline: str, prices: PriceTable) -> str:
    """Return the sheet as one self-contained HTML page: thumbnails are embedded, and there are no scripts."""
    figures = "\n".join(_figure(tile, prices) for tile in tiles)
    heading = html.escape(title)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{heading}</title>
<style>
{colours(has_light=False)}{STYLE}  :root {{ --ratio: {1 / height_ratio(tiles):.4f}; }}
</style>
</head>
<body>
<header>
<h1>{heading}</h1>
<p>{html.escape(headline)}</p>
</header>
<main>
{figures}
</main>
</body>
</html>
"""


def _figure(tile: Tile, prices: PriceTable) -> str:
    src = "" if tile.thumbnail is None else f"data:image/jpeg;base64,{base64.b64encode(tile.thumbnail).decode()}"
    image = "full image" if tile.kind != "other" else "file"
    links = [link(label, address) for label, address in ((image, tile.link), ("JSON", tile.sidecar)) if address]
    if tile.where and not tile.link:
        links.insert(0, f'<span class="where" title="{html.escape(tile.where)}">{html.escape(tile.where)}</span>')
    return figure(tile, src=src, facts=tile.facts(prices), links=links)
