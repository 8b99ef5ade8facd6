"""What the page and the picture have in common: colours, and how numbers are written."""

from __future__ import annotations

from kie_provider.files.thumbnails import BACKGROUND

PAGE, PANEL, WELL, LINE = "#111216", "#191a20", BACKGROUND, "#2b2d36"
INK, MUTED, ALARM = "#e9e7e2", "#8f919c", "#d9897f"
SEPARATOR = " \u00b7 "


def count(number: float, noun: str) -> str:
    """Return ``1 image`` or ``2 images``."""
    text = f"{number:,.2f}".rstrip("0").rstrip(".")
    return f"{text} {noun}{'' if number == 1 else 's'}"


def dollars(amount: float) -> str:
    """Return dollars and cents, and half a cent if it is there: an image may cost that."""
    return f"${amount:,.3f}".removesuffix("0")
