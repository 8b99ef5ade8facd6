"""The image page as HTML. Pure: every input is text and escaped, so none of it becomes markup or script."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote, urlencode

from kie_provider.addresses import airflow_address, run_address
from kie_provider.client.plain import clean_text
from kie_provider.contact_sheet.figure import figure
from kie_provider.contact_sheet.style import SEPARATOR, STYLE, colours, count
from kie_provider.contact_sheet.tiles import height_ratio
from kie_provider.plugin.pictures import STATES, Picture

#: Images per page.
PAGE_SIZE = 60
DAYS = (1, 7, 30, 90, 365)
_STATE_NAMES = {"": "all", "image": "images", "failed": "failures", "running": "running"}


@dataclass(frozen=True)
class View:
    """Which images are requested; the fields are the parameters of the query string.

    :param dag: only images of this DAG; empty: of all.
    :param state: one of STATES; empty: all.
    :param days: only images of this many days.
    :param q: a text in the prompt, or a Kie task id.
    :param page: from 1.
    """

    dag: str = ""
    state: str = ""
    days: int = 7
    q: str = ""
    page: int = 1

    def chosen(self, pictures: Iterable[Picture]) -> list[Picture]:
        """Return the pictures that match, of all pages."""
        text = self.q.strip().casefold()
        return [
            picture
            for picture in pictures
            if (not self.state or picture.state == self.state) and (not text or picture.matches(text))
        ]


def all_page(
    pictures: Sequence[Picture], view: View, *, dags: Sequence[str], nonce: str, limit: int | None = None
) -> str:
    """Return the page of all DAGs.

    :param pictures: of all pages; the view chooses among them.
    :param nonce: for the script, as in the Content-Security-Policy.
    :param limit: how many task instances were read, if there are more.
    """
    chosen = view.chosen(pictures)
    options = {
        "dag": {"": "all DAGs", **{dag: dag for dag in dags}},
        "state": _STATE_NAMES,
        "days": {str(d): "last day" if d == 1 else f"last {d} days" for d in DAYS},
    }
    fields = "".join(_select(name, choices, str(getattr(view, name))) for name, choices in options.items())
    q = html.escape(view.q)
    form = f"""<form method="get" role="search">{fields}
<label>Prompt <input type="search" name="q" value="{q}" placeholder="text to find"></label>
<button>Show</button></form>"""
    note = f"Only the {limit:,} latest task instances of these days are shown." if limit else ""
    query = {name: str(value) for name, value in vars(view).items() if name != "page"}
    return _document("Kie.ai images", chosen, view.page, query, nonce, here="", form=form, note=note, names_run=True)


def run_page(
    pictures: Sequence[Picture],
    view: View,
    *,
    dag_id: str,
    run_id: str,
    task: tuple[str, int | None] | None = None,
    nonce: str,
    limit: int | None = None,
) -> str:
    """Return the page of one run, or of one task instance in it."""
    here = "../../"
    query = {"run_id": run_id}
    title, back = f"{dag_id}, {run_id}", airflow_address(dag_id, run_id)
    if task is not None:
        task_id, map_index = task
        query |= {"task_id": task_id} | ({} if map_index is None else {"map_index": str(map_index)})
        title += f", {task_id}" + (f" [{map_index}]" if map_index is not None and map_index >= 0 else "")
    states = " ".join(
        f'<a href="?{html.escape(urlencode(query | {"state": state}))}"{_current(state == view.state)}>{label}</a>'
        for state, label in _STATE_NAMES.items()
    )
    whole = f"{here}../../{run_address(dag_id, run_id)}"
    links = f'<a href="{html.escape(whole)}">all images of the run</a>' if task is not None else ""
    links += f' <a class="back" href="{html.escape(f"{here}../../{back}")}">the run in Airflow</a>'
    form = f'<nav class="states" aria-label="States">{states} {links}</nav>'
    note = f"Only the first {limit:,} task instances of this run are shown." if limit else ""
    chosen = view.chosen(pictures)
    query |= {"state": view.state}
    return _document(title, chosen, view.page, query, nonce, here=here, form=form, note=note, totals=pictures)


def _document(
    title: str,
    pictures: Sequence[Picture],
    page: int,
    query: Mapping[str, str],
    nonce: str,
    *,
    here: str,
    form: str,
    note: str,
    totals: Sequence[Picture] | None = None,
    names_run: bool = False,
) -> str:
    pages = max(1, -(-len(pictures) // PAGE_SIZE))
    page = min(max(page, 1), pages)
    shown = pictures[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
    figures = "\n".join(_figure(picture, here, names_run=names_run) for picture in shown)
    if not shown:
        figures = '<p class="none">No images here.</p>'
    heading = html.escape(title)
    ratio = 1 / height_ratio([picture.tile() for picture in shown])
    document = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{heading}</title>
<style>
{colours(has_light=True)}{STYLE}{_STYLE}  :root {{ --ratio: {ratio:.4f}; }}
</style>
</head>
<body>
<header{"" if names_run else ' class="run"'}>
<h1>{heading}</h1>
<p>{html.escape(headline(pictures if totals is None else totals))}</p>
{form}
{f"<p>{html.escape(note)}</p>" if note else ""}
</header>
<main>
{figures}
</main>
{_pager(page, pages, query)}
<dialog id="full" aria-label="Full size">
<form method="dialog"><button type="button" data-step="-1">Previous</button>
<button type="button" data-step="1">Next</button> <a id="download" download data-outer href="">Download</a>
<button>Close</button></form>
<img alt=""><div id="facts"></div>
</dialog>
<script nonce="{html.escape(nonce)}">{_SCRIPT}</script>
</body>
</html>
"""
    return clean_text(document)


def headline(pictures: Iterable[Picture]) -> str:
    """Return the number of images and failures, and their cost in credits."""
    pictures = list(pictures)
    numbers = {state: sum(picture.state == state for picture in pictures) for state in STATES}
    credits_used = sum(picture.credits or 0 for picture in pictures)
    return SEPARATOR.join(
        [
            count(numbers["image"], "image"),
            *([count(numbers["failed"], "failure")] if numbers["failed"] else []),
            *([f"{numbers['running']} running"] if numbers["running"] else []),
            count(round(credits_used, 6), "credit"),
        ]
    )


def placeholder(reason: str) -> str:
    """Return an image, as SVG, that says why the requested one is not shown."""
    words, lines = clean_text(reason).split(), [""]
    for word in words:
        for start in range(0, len(word), 36):
            piece = word[start : start + 36]
            if len(lines[-1]) + len(piece) >= 38 and lines[-1]:
                lines.append("")
            lines[-1] += f" {piece}" if lines[-1] and not start else piece
    lines = [*lines[:9], "..."] if len(lines) > 10 else lines
    top = 160 - 9 * (len(lines) - 1)
    spans = "".join(f'<tspan x="160" y="{top + 18 * n}">{html.escape(line)}</tspan>' for n, line in enumerate(lines))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="320" height="320" viewBox="0 0 320 320">'
        f'<text text-anchor="middle" font-family="sans-serif" font-size="13" fill="#85878f">{spans}</text></svg>'
    )


def _figure(picture: Picture, here: str, *, names_run: bool) -> str:
    tile, output = picture.tile(), picture.output
    task = output.task_id + (f" [{output.map_index}]" if output.map_index >= 0 else "")
    if picture.item >= 0:
        task += f" {picture.item}"
    log = html.escape(f"{here}../../{airflow_address(*output.key)}")
    links = [f'<a href="{log}" data-outer title="task and log">{html.escape(task)}</a>']
    if names_run:
        run = html.escape(f"{here}../../{run_address(output.dag_id, output.run_id)}")
        links.insert(0, f'<a href="{run}" title="all images of this run">{html.escape(output.dag_id)}</a>')
    src, opens = "", ""
    if picture.file is not None:
        full, download = (_file(picture, here, **more) for more in ({}, {"download": "1"}))
        links.append(f'<a href="{html.escape(download)}" download data-outer>download</a>')
        if tile.kind == "image":
            tile, opens = replace(tile, link=full), f' data-full="{html.escape(download)}"'
            src = _file(picture, here, thumb="1") if picture.has_thumbnail else full
    elif tile.link:
        links.append(f'<a href="{html.escape(tile.link)}" data-outer>at Kie</a>')
        tile = replace(tile, link=None)
    facts = {
        "Prompt": tile.prompt,
        "State": tile.note,
        "Model": tile.model,
        "Facts": SEPARATOR.join(tile.facts()),
        "Kie task": picture.kie_task_id,
        "DAG": output.dag_id,
        "Run": output.run_id,
        "Task": task,
        "File": tile.where,
    }
    rows = "".join(f'<dt>{name}</dt><dd dir="auto">{html.escape(text)}</dd>' for name, text in facts.items() if text)
    more = f"<template><dl>{rows}</dl></template>" if opens else ""
    return figure(tile, src=src, facts=tile.facts(), links=links, more=more, opens=opens)


def _file(picture: Picture, here: str, **more: str) -> str:
    dag_id, run_id, task_id, map_index = picture.output.key
    query = {
        "run_id": run_id,
        "task_id": task_id,
        "map_index": str(map_index),
        "item": str(picture.item),
        "number": str(picture.number),
        "v": picture.version,
        **more,
    }
    return f"{here}dags/{quote(dag_id, safe='')}/file?{urlencode(query)}"


def _select(name: str, choices: Mapping[str, str], chosen: str) -> str:
    options = "".join(
        f'<option value="{html.escape(value)}"{" selected" if value == chosen else ""}>{html.escape(label)}</option>'
        for value, label in choices.items()
    )
    return f'<label>{_LABELS[name]} <select name="{name}">{options}</select></label>'


_LABELS = {"dag": "DAG", "state": "State", "days": "Days"}


def _pager(page: int, pages: int, query: Mapping[str, str]) -> str:
    if pages == 1:
        return ""

    def to(number: int, label: str) -> str:
        if not 1 <= number <= pages or number == page:
            return f'<span aria-disabled="true">{label}</span>'
        return f'<a href="?{html.escape(urlencode({**query, "page": str(number)}))}">{label}</a>'

    steps = [to(1, "First"), to(page - 1, "Previous"), f"Page {page} of {pages:,}", to(page + 1, "Next")]
    return f'<nav class="pages" aria-label="Pages">{" ".join([*steps, to(pages, "Last")])}</nav>'


def _current(is_current: bool) -> str:
    return ' aria-current="true"' if is_current else ""


_STYLE = """\
  body { padding: clamp(1rem, 3vw, 2.5rem); }
  header { margin-bottom: 1.5rem; }
  h1 { font-size: 1.5rem; }
  form, .states, .pages { display: flex; flex-wrap: wrap; gap: .6rem 1rem; align-items: end; }
  header form, .states { margin-top: 1rem; }
  label { display: grid; gap: .2rem; font-size: 12px; color: var(--muted); min-width: 0; }
  select, input, button { font: inherit; font-size: 14px; color: var(--ink); background: var(--panel);
    border: 1px solid var(--line); border-radius: 4px; padding: .35rem .6rem; max-width: 100%; min-height: 2.2rem; }
  button { cursor: pointer; }
  header a, .pages a, #download { border-bottom: 1px solid var(--line); }
  .states a[aria-current] { border-color: var(--ink); border-width: 2px; }
  :focus-visible { outline: 2px solid var(--ink); outline-offset: 2px; }
  .links { flex-wrap: wrap; row-gap: .2rem; }
  .links a { max-width: 100%; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; flex: 0 1 auto; }
  .view span { max-height: 100%; overflow: auto; }
  .pages { margin-top: 2rem; color: var(--muted); }
  .none { color: var(--muted); }
  :root[data-framed] :is(.back, .run h1) { display: none; }
  dialog { margin: auto; max-width: min(96vw, 1400px); max-height: 96vh; padding: 1rem; overflow: auto;
    color: var(--ink); background: var(--page); border: 1px solid var(--line); border-radius: 6px; }
  dialog::backdrop { background: rgb(0 0 0 / .7); }
  dialog form { margin-bottom: .8rem; align-items: center; }
  dialog img { display: block; max-width: 100%; max-height: 74vh; margin: 0 auto; background: var(--well); }
  dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin-top: .8rem; font-size: 13px; }
  dt { color: var(--muted); } dd { overflow-wrap: anywhere; white-space: pre-wrap; }
  @media (max-width: 500px) { dl { grid-template-columns: 1fr; } dt { margin-top: .4rem; } }
"""

# Airflow shows the page in a frame that may neither open windows nor navigate its parent and, up to 3.2, not download.
# The parent may, and has the same origin: links that lead out of the frame are clicked there.
_SCRIPT = """
(() => {
  const root = document.documentElement;
  const outer = (() => { try { return parent !== window && parent.document; } catch { return null; } })();
  if (outer) {
    const follow = () => {
      const names = outer.documentElement.classList;
      root.dataset.theme = names.contains("dark") ? "dark" : names.contains("light") ? "light" : "";
    };
    follow();
    new MutationObserver(follow).observe(outer.documentElement, { attributes: true, attributeFilter: ["class"] });
    root.dataset.framed = "";
    document.addEventListener("click", (event) => {
      const link = event.target.closest("a[data-outer]");
      if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      const twin = outer.createElement("a");
      twin.href = link.href;
      if (link.hasAttribute("download")) twin.download = "";
      outer.body.append(twin);
      twin.click();
      twin.remove();
    });
  }
  const dialog = document.getElementById("full"), image = dialog.querySelector("img");
  const links = [...document.querySelectorAll("a[data-full]")];
  let current = 0;
  const show = (index) => {
    current = (index + links.length) % links.length;
    const link = links[current];
    image.src = link.href;
    image.alt = link.querySelector("img").alt;
    document.getElementById("download").href = link.dataset.full;
    const facts = link.closest("figure").querySelector("template").content.cloneNode(true);
    document.getElementById("facts").replaceChildren(facts);
    if (!dialog.open) dialog.showModal();
  };
  links.forEach((link, index) => link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    show(index);
  }));
  dialog.addEventListener("close", () => { image.removeAttribute("src"); links[current].focus(); });
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) show(current + step);
  });
  dialog.querySelectorAll("[data-step]").forEach((button) =>
    button.addEventListener("click", () => show(current + Number(button.dataset.step))));
})();
"""
