"""Small words of messages."""

from __future__ import annotations

import re


def counted(number: float, noun: str) -> str:
    """Return a number with its noun: ``1 image``, ``2 images``."""
    return f"{number:.12g} {noun}" if number == 1 else f"{number:.12g} {noun}s"


def sentence(text: str) -> str:
    """Return text that ends with one full stop, so that another sentence can follow."""
    return text if text.endswith(("!", "?")) else f"{text.rstrip('. ')}."


def sentences(text: str) -> list[str]:
    """Return the sentences of a text; a list keeps its lines."""
    return [each for line in text.splitlines() for each in re.split(r"(?<=[.!?]) (?=[A-Z])", line) if each.strip()]
