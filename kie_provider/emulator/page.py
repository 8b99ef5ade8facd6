"""The page that a browser shows at the emulator's URL."""

from __future__ import annotations

from kie_provider.client.plain import clean_text
from kie_provider.contact_sheet.figure import figure
from kie_provider.contact_sheet.style import STYLE, colours
from kie_provider.contact_sheet.tiles import Tile
from kie_provider.emulator.account import Bill, BilledTask
from kie_provider.emulator.models import MODELS


def render(bill: Bill) -> str:
    """Return the HTML page: the balance and every task, newest first. It reloads every 3 s."""
    cards = "\n".join(_card(task) for task in reversed(bill["tasks"]))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Kie.ai emulator</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta http-equiv="refresh" content="3">
<style>
{colours(has_light=True)}{STYLE}  header a {{ border-bottom: 1px solid var(--line); }}
</style></head><body>
<header><h1>Kie.ai emulator</h1>
<p>{len(bill["tasks"])} tasks, {bill["charged_total"]:g} credits charged, {bill["credits_left"]:g} left.
Nothing here costs money. <a href="/_emulator/bill">Bill</a>, <a href="/_emulator/requests">requests</a>,
<a href="/_emulator/callbacks">callbacks</a>, <a href="/_emulator/faults">faults</a>.</p></header>
<main>{cards or "<p>No task yet.</p>"}</main></body></html>
"""


def _card(task: BilledTask) -> str:
    state, kie_task_id = task["state"], task["taskId"]
    has_picture = state == "success" and MODELS[task["model"]].result == "image"
    tile = Tile(
        prompt=clean_text(task["prompt"])[:200] or "(no prompt)",
        kind={"success": "other", "fail": "failed"}.get(state, "running"),
        note=state,
        model=task["model"],
        state=state,
        credits=task["credits"],
    )
    return figure(
        tile,
        src=f"/_emulator/thumbnail/{kie_task_id}" if has_picture else "",
        facts=[*tile.facts(), task["created_at"], kie_task_id],
    )
