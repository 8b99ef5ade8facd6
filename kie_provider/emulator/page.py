"""The page a person sees at the emulator's address."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from kie_provider.emulator.models import MODELS

_STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d9d9de, #3a3a42); --soft: light-dark(#5c5c66, #a4a4ae);
  --card: light-dark(#ffffff, #202026); }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 1.5rem;
  background: light-dark(#f5f5f7, #141418); }
h1 { font-size: 1.3rem; margin: 0; } p { color: var(--soft); margin: .3rem 0 1.2rem; }
main { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); }
article { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; overflow: hidden; }
.view { aspect-ratio: 4 / 3; background: var(--line); display: grid; place-items: center; color: var(--soft); }
.view img { width: 100%; height: 100%; object-fit: contain; }
.text { padding: .7rem .9rem; overflow-wrap: anywhere; }
small { color: var(--soft); display: block; } .fail { color: light-dark(#b3261e, #ff8a80); }
"""


def render(bill: Mapping[str, Any]) -> str:
    """Return the HTML page: the balance and every task, newest first. It reloads every 3 s."""
    cards = "".join(_card(task) for task in reversed(bill["tasks"]))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Kie.ai emulator</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta http-equiv="refresh" content="3">
<style>{_STYLE}</style></head><body>
<h1>Kie.ai emulator</h1>
<p>{len(bill["tasks"])} tasks, {bill["charged_total"]:g} credits charged, {bill["credits_left"]:g} left.
Nothing here costs money. <a href="/_emulator/bill">Bill</a>, <a href="/_emulator/requests">requests</a>,
<a href="/_emulator/callbacks">callbacks</a>, <a href="/_emulator/faults">faults</a>.</p>
<main>{cards or "<p>No task yet.</p>"}</main></body></html>
"""


def _card(task: Mapping[str, Any]) -> str:
    state = task["state"]
    view = state
    if state == "success" and MODELS[task["model"]].result == "image":
        view = f'<img loading="lazy" alt="no picture" src="/_emulator/thumbnail/{task["taskId"]}">'
    text = task["prompt"].encode("utf-8", "replace").decode() or "(no prompt)"
    return f"""<article><div class="view">{view}</div><div class="text">{escape(text[:200])}
<small>{escape(task["model"])}</small>
<small><span class="{state}">{state}</span>, {task["credits"]:g} credits, {task["created_at"]}</small>
<small>{task["taskId"]}</small></div></article>"""
