"""Colours, CSS and number formats shared by the contact sheet, Airflow's image page and the emulator's page."""

from __future__ import annotations

from collections.abc import Mapping

from kie_provider.files.thumbnails import BACKGROUND

PAGE, PANEL, WELL, LINE = "#111216", "#191a20", BACKGROUND, "#2b2d36"
INK, MUTED, ALARM = "#e9e7e2", "#8f919c", "#d9897f"
DARK: Mapping[str, str] = {
    "page": PAGE,
    "panel": PANEL,
    "well": WELL,
    "line": LINE,
    "ink": INK,
    "muted": MUTED,
    "alarm": ALARM,
}
LIGHT: Mapping[str, str] = {
    "page": "#f8f7f4",
    "panel": "#eeece7",
    "well": "#e6e4de",
    "line": "#d3d0c8",
    "ink": "#1c1d21",
    "muted": "#5f616b",
    "alarm": "#a3342a",
}
SEPARATOR = " \u00b7 "


def count(number: float, noun: str) -> str:
    """Return ``1 image`` or ``2 images``."""
    text = f"{number:,.2f}".rstrip("0").rstrip(".")
    return f"{text} {noun}{'' if number == 1 else 's'}"


def dollars(amount: float) -> str:
    """Return dollars and cents, with a third decimal if it is not 0: an image may cost half a cent."""
    return f"${amount:,.3f}".removesuffix("0")


def colours(*, has_light: bool) -> str:
    """Return the colours as CSS variables.

    :param has_light: follow the reader's theme, or ``data-theme="light"`` or ``"dark"`` of the root element; otherwise
        always dark.
    """
    if not has_light:
        names = " ".join(f"--{name}: {dark};" for name, dark in DARK.items())
        return f"  :root {{ color-scheme: dark; {names} }}\n"
    names = " ".join(f"--{name}: light-dark({LIGHT[name]}, {dark});" for name, dark in DARK.items())
    return (
        f"  :root {{ color-scheme: light dark; {names} }}\n"
        '  :root[data-theme="light"] { color-scheme: light; }\n  :root[data-theme="dark"] { color-scheme: dark; }\n'
    )


STYLE = """\
  * { box-sizing: border-box; margin: 0; }
  body { padding: clamp(1.25rem, 4vw, 3.5rem); background: var(--page); color: var(--ink);
    font: 14px/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
  header { padding-bottom: 1.25rem; margin-bottom: 2rem; border-bottom: 1px solid var(--line); }
  h1 { font-size: 2rem; font-weight: 300; line-height: 1.2; letter-spacing: -.02em; overflow-wrap: anywhere; }
  header p { margin-top: .5rem; color: var(--muted); font-variant-numeric: tabular-nums; }
  main { display: grid; gap: 2rem 1.5rem; grid-template-columns: repeat(auto-fill, minmax(min(260px, 100%), 1fr)); }
  figure { min-width: 0; content-visibility: auto; contain-intrinsic-size: auto 340px; }
  a { color: inherit; text-decoration: none; }
  .view { display: grid; place-items: center; aspect-ratio: var(--ratio, 1); background: var(--well);
    border-radius: 4px; overflow: hidden; }
  .view img { display: block; width: 100%; height: 100%; min-height: 0; object-fit: contain; }
  a .view { transition: opacity .15s; }
  a:hover .view { opacity: .85; }
  a:focus-visible { outline: 2px solid var(--ink); outline-offset: 2px; }
  .view span { padding: 1rem; max-width: 100%; text-align: center; color: var(--muted); overflow-wrap: anywhere; }
  .missing, .running { background: none; border: 1px dashed var(--line); }
  .view.unreadable span, .view.failed span, .alarm { color: var(--alarm); }
  .other, .failed { background: var(--panel); }
  figcaption { padding-top: .7rem; }
  .prompt { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden;
    overflow-wrap: anywhere; }
  .facts, .model, .links { margin-top: .3rem; font-size: 12px; color: var(--muted);
    font-variant-numeric: tabular-nums; }
  .model, .links { display: flex; gap: .75rem; margin-top: 0; min-width: 0; }
  .model span, .where { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
  .model b { font-weight: inherit; }
  .links a { flex: none; color: var(--ink); border-bottom: 1px solid var(--line); }
  .links a:hover { border-color: var(--ink); }
"""
