"""Numbers and choices that operators and sensors take, checked as constants and again after rendering."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException

from kie_provider.client.plain import got, is_blank, shorten

#: Seconds. Kie allows ten polls of a task per second; one is enough for images that take ten seconds. Tests lower it.
SHORTEST_POLL_INTERVAL = 1.0
#: Seconds; Kie forgets a task after two months, and a year from now is still a date.
LONGEST_WAIT = 366 * 86_400.0
#: The fields that determine an image.
IMAGE_FIELDS = ("prompt", "model", "aspect_ratio", "resolution", "input_images", "input_urls", "nsfw_checker")
DEFAULT_FILE_NAME = "{kie_task_id}-{index}.{extension}"
UNKNOWN_SUBMIT_CHOICES = ("fail", "resubmit")
_DURATION = r"(?:(\d+) days?, )?(\d+):([0-5]\d):([0-5]\d(?:\.\d+)?)"


def problems(operator: object) -> list[str]:
    """Check the rendered parameters of an operator, and replace text by the number that it stands for.

    :return: for every invalid parameter its name, its value, and what is allowed.
    """
    found = []
    for name, read in _READERS.items():
        if hasattr(operator, name):
            try:
                value = read(getattr(operator, name))
            except ValueError as error:
                found.append(f"{name}: {error}")
            else:
                setattr(operator, name, value)
    return found


def check_constants(operator: Any) -> None:
    """Check, when the DAG is parsed, the parameters that no template fills in later.

    :raises AirflowFailException: one of them is invalid. Not ValueError: the worker creates mapped tasks, and a retry
        would fail again.
    """
    found = []
    for name, read in _READERS.items():
        value = getattr(operator, name, "{{")
        if not _is_filled_in_later(value):
            try:
                read(value)
            except ValueError as error:
                found.append(f"{name}: {error}")
    if found:
        raise AirflowFailException(
            "\n".join([f"task {operator.task_id!r} has wrong parameters.", *(f"  - {problem}" for problem in found)])
        )


def _is_filled_in_later(value: object) -> bool:
    """Whether this is a template, or a reference to what another task returns."""
    return hasattr(value, "resolve") or (isinstance(value, str) and re.search(r"\{[{%#]", value) is not None)


def _seconds(value: object) -> float:
    """Return the seconds of a number, a timedelta, or the text of either; NaN for anything else."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, str) and (match := re.fullmatch(_DURATION, value.strip())):
        days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    return _number(value)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, str | numbers.Real):
        return math.nan
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return math.nan
    return int(number) if number.is_integer() else number


def _poll_interval(value: object) -> float:
    seconds, shortest = _seconds(value), SHORTEST_POLL_INTERVAL
    if shortest <= seconds <= LONGEST_WAIT:
        return seconds
    raise _refused(f"must be a number of seconds or a timedelta, at least {shortest:g}", value)


def _timeout(value: object) -> float:
    seconds = _seconds(value)
    if 0 <= seconds <= LONGEST_WAIT:
        return seconds
    raise _refused(f"must be a number of seconds or a timedelta, from 0 to {LONGEST_WAIT:.0f} (a year)", value)


def _credits(value: object) -> float | None:
    if is_blank(value):
        return None
    number = _number(value)
    if 0 <= number < math.inf:
        return number
    raise _refused("must be a number of credits, at least 0, or None", value)


def _share(value: object) -> float:
    number = _number(value)
    if 0 < number <= 1:
        return number
    raise _refused("must be a share above 0, up to 1", value)


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise _refused("must be True or False", value)


def _unknown_submit(value: object) -> object:
    if value in UNKNOWN_SUBMIT_CHOICES:
        return value
    raise _refused(f"must be {' or '.join(map(repr, UNKNOWN_SUBMIT_CHOICES))}", value)


def _refused(allowed: str, value: object) -> ValueError:
    return ValueError(f"{allowed}, {got(value) if isinstance(value, str) else f'got {shorten(value)}'}")


_READERS: Mapping[str, Callable[[object], object]] = {
    "poll_interval": _poll_interval,
    "poke_interval": _poll_interval,
    "timeout": _timeout,
    "max_credits": _credits,
    "min_credits_left": _credits,
    "min_success": _share,
    "allow_duplicates": _flag,
    "on_unknown_submit": _unknown_submit,
}
