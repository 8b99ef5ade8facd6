"""Plain values and texts: checks of rendered values, values that can be stored, and parts of messages."""

from __future__ import annotations

import ast
import contextlib
import json
import math
import re
from typing import TypeGuard, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")


def from_text(value: object) -> object:  # whatever the text holds
    """Return the list or object that a template has turned into text; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(value)
        with contextlib.suppress(ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return ast.literal_eval(value.strip())
    return value


def shorten(value: object, limit: int = 60) -> str:
    """Return ``repr(value)``, cut to ``limit`` characters, for an error message."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"<{type(value).__name__} nested too deep>"
    return text if len(text) <= limit else f"{text[:limit]}..."


def got(value: object) -> str:
    """Say which value was given, for an error message."""
    if value is None or value == "None":
        return f"got {value!r}: the upstream task returned nothing"
    return f"got {shorten(value)}"


def is_kie_task_id(value: object) -> TypeGuard[str]:
    """Whether ``value`` can be the id of a Kie task. Kie's have 32 characters; their form is not promised."""
    return isinstance(value, str) and bool(re.fullmatch(r"[!-~]{1,200}", value))


def is_blank(value: object) -> bool:
    """Whether ``value`` is None, or what a template or an empty cell of a CSV file makes of it."""
    if isinstance(value, float):
        return math.isnan(value)  # pandas
    return value is None or (isinstance(value, str) and value.strip() in ("", "None"))


#: White space, control characters and lone surrogates. urlsplit accepts some of them.
_NOT_IN_A_URL = "[\\s\x00-\x1f\x7f\ud800-\udfff]"


def is_http_url(value: object) -> TypeGuard[str]:
    """Whether ``value`` is an absolute http or https URL, as it can be sent."""
    if not isinstance(value, str) or re.search(_NOT_IN_A_URL, value):
        return False
    try:
        parts = urlsplit(value)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # also of a port that is none
        return False


def clean_text(text: str) -> str:
    """Return text that can be encoded: half of an emoji becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def one_line(text: str) -> str:
    """Return foreign text as one line that can be logged: without control characters, and of limited length."""
    text = re.sub(_CONTROL, " ", clean_text(text)).strip()
    return text if len(text) <= _LONGEST_LINE else f"{text[:_LONGEST_LINE]}..."


# The last two ranges change the direction in which text is displayed.
_CONTROL = r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+"
_LONGEST_LINE = 2000


def storable(value: T) -> T:
    """Return JSON without what only Python's JSON allows: lone surrogates, NUL, NaN, infinity, integers over 64 bits.

    Airflow's API or PostgreSQL refuses these; and a triggerer that cannot encode an event ends, with all its triggers.
    """
    text = re.sub(_ESCAPED_NUL, r"\1?", clean_text(json.dumps(value, ensure_ascii=False)))
    stored: T = json.loads(text, parse_int=_stored_number, parse_float=_stored_number, parse_constant=_stored_number)
    return stored


# Not a backslash that is escaped itself, followed by "u0000".
_ESCAPED_NUL = r"(?<!\\)((?:\\\\)*)\\u0000"


def _stored_number(text: str) -> int | float | None:
    if text.lstrip("-").isdigit() and len(text) <= 20 and abs(int(text)) < 2**63:
        return int(text)
    number = float(text)
    return number if math.isfinite(number) else None


def counted(number: float, noun: str) -> str:
    """Return a number with its noun: ``1 image``, ``2 images``."""
    return f"{number:.12g} {noun}" if number == 1 else f"{number:.12g} {noun}s"


def sentence(text: str) -> str:
    """Return text that ends with one full stop, so that another sentence can follow."""
    return text if text.endswith(("!", "?")) else f"{text.rstrip('. ')}."


def sentences(text: str) -> list[str]:
    """Return the sentences of a text; a list keeps its lines."""
    return [each for line in text.splitlines() for each in re.split(r"(?<=[.!?]) (?=[A-Z])", line) if each.strip()]
