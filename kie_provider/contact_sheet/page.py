"""The sheet as an HTML page."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

from kie_provider.contact_sheet.look import ALARM, INK, LINE, MUTED, PAGE, PANEL, SEPARATOR, WELL
from kie_provider.contact_sheet.tiles import Tile, height_ratio


def draw_page(tiles: Sequence[Tile], title: str, headline: str, usd_per_credit: float) -> str:
    """Return the sheet as one HTML page that loads nothing: thumbnails are in it, and there are no scripts."""
    figures = "\n".join(_figure(tile, usd_per_credit) for tile in tiles)
    heading = html.escape(title)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{heading}</title>
<style>{_STYLE}  :root {{ --ratio: {1 / height_ratio(tiles):.4f}; }}
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


def _figure(tile: Tile, usd_per_credit: float) -> str:
    prompt = html.escape(tile.prompt)
    if tile.thumbnail is None:
        view = f'<div class="view {tile.kind}"><span>{html.escape(tile.note)}</span></div>'
    else:
        data = base64.b64encode(tile.thumbnail).decode()
        view = f'<div class="view"><img src="data:image/jpeg;base64,{data}" alt="{prompt}"></div>'
    if tile.link:
        view = f'<a href="{html.escape(tile.link)}">{view}</a>'
    rows = [f'<p class="prompt" dir="auto" title="{prompt}">{prompt}</p>']
    if facts := SEPARATOR.join(tile.facts(usd_per_credit)):
        rows.append(f'<p class="facts">{html.escape(facts)}</p>')
    if tile.model or tile.state:
        state = "" if tile.state in ("", "success") else ' class="alarm"'
        rows.append(
            f'<p class="model"><span>{html.escape(tile.model)}</span> <b{state}>{html.escape(tile.state)}</b></p>'
        )
    links = [
        f'<a href="{html.escape(href)}">{label}</a>'
        for label, href in (("full image" if tile.kind != "other" else "file", tile.link), ("JSON", tile.sidecar))
        if href
    ]
    if tile.where and not tile.link:
        links.insert(0, f'<span class="where" title="{html.escape(tile.where)}">{html.escape(tile.where)}</span>')
    if links:
        rows.append(f'<p class="links">{" ".join(links)}</p>')
    return f"<figure>{view}<figcaption>{''.join(rows)}</figcaption></figure>"


_STYLE = f"""
  :root {{ color-scheme: dark; }}
  * {{ box-sizing: border-box; margin: 0; }}
  body {{ padding: clamp(1.25rem, 4vw, 3.5rem); background: {PAGE}; color: {INK};
    font: 14px/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }}
  header {{ padding-bottom: 1.25rem; margin-bottom: 2rem; border-bottom: 1px solid {LINE}; }}
  h1 {{ font-size: 2rem; font-weight: 300; line-height: 1.2; letter-spacing: -.02em; overflow-wrap: anywhere; }}
  header p {{ margin-top: .5rem; color: {MUTED}; font-variant-numeric: tabular-nums; }}
  main {{ display: grid; gap: 2rem 1.5rem; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); }}
  figure {{ min-width: 0; content-visibility: auto; contain-intrinsic-size: auto 340px; }}
  a {{ color: inherit; text-decoration: none; }}
  .view {{ display: grid; place-items: center; aspect-ratio: var(--ratio); background: {WELL}; border-radius: 4px;
    overflow: hidden; }}
  .view img {{ display: block; width: 100%; height: 100%; min-height: 0; object-fit: contain; }}
  a .view {{ transition: opacity .15s; }}
  a:hover .view {{ opacity: .85; }}
  a:focus-visible {{ outline: 2px solid {INK}; outline-offset: 2px; }}
  .view span {{ padding: 1rem; max-width: 100%; text-align: center; color: {MUTED}; overflow-wrap: anywhere; }}
  .missing {{ background: none; border: 1px dashed {LINE}; }}
  .unreadable span, .alarm {{ color: {ALARM}; }}
  .other {{ background: {PANEL}; }}
  figcaption {{ padding-top: .7rem; }}
  .prompt {{ display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden;
    overflow-wrap: anywhere; }}
  .facts, .model, .links {{ margin-top: .3rem; font-size: 12px; color: {MUTED}; font-variant-numeric: tabular-nums; }}
  .model, .links {{ display: flex; gap: .75rem; margin-top: 0; min-width: 0; }}
  .model span, .where {{ overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }}
  .model b {{ font-weight: inherit; }}
  .links a {{ flex: none; color: {INK}; border-bottom: 1px solid {LINE}; }}
  .links a:hover {{ border-color: {INK}; }}
"""
