"""Scripted faults: which request goes wrong, and how (pure).

A fault is a JSON object: ``on`` names the endpoint, ``do`` what happens; ``skip``, ``times`` and ``match`` choose the
requests. Faults are tried in the order in which they were armed, and a request meets at most one. ``callback`` is the
request that the emulator itself sends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

ENVELOPES = ("createTask", "recordInfo", "credit", "download-url", "upload")
ANSWERED = (*ENVELOPES, "file")
ENDPOINTS = (*ANSWERED, "callback")
_NUMBER = (int, float)
_HTTP_ANSWER = {
    "http_status": (int, False),
    "headers": (dict, False),
    "content_type": (str, False),
    "body": (str, False),
    "json": (object, False),
}


@dataclass(frozen=True)
class Action:
    """An action: the endpoints that it works on, and its fields (type, and whether the field is required)."""

    on: tuple[str, ...] = ANSWERED
    fields: Mapping[str, tuple[type | tuple[type, ...], bool]] = field(default_factory=dict)


# A new kind of fault is one line here and one branch where the server applies it.
ACTIONS: Mapping[str, Action] = {
    # instead of the work of the endpoint
    "answer": Action(fields=_HTTP_ANSWER),
    "code": Action(
        ENVELOPES,
        {"code": (int, True), "msg": (str, False), "http_status": (int, False), "retry_after": ((int, str), False)},
    ),
    "reset": Action(),
    "not_visible": Action(("recordInfo",)),
    # how the new task will end
    "fail": Action(("createTask",), {"failCode": (str, False), "failMsg": (str, False)}),
    "no_urls": Action(("createTask",)),
    "stuck": Action(("createTask",)),
    # after the work was done
    "lost_answer": Action(),
    "swap": Action(fields=_HTTP_ANSWER),
    "slow": Action(fields={"delay_seconds": (_NUMBER, True)}),
    "hold": Action(),
    "truncate": Action(),
    "half": Action(("file",)),
    # the callback of a task that has ended
    "lost": Action(("callback",)),
    "late": Action(("callback",), {"delay_seconds": (_NUMBER, False)}),
    "twice": Action(("callback",)),
    "forged": Action(("callback",)),
    "early": Action(("callback",)),
    "reordered": Action(("callback",)),
    "repeated": Action(("callback",), {"delay_seconds": (_NUMBER, False)}),
}
INSTEAD = frozenset({"answer", "code", "reset", "not_visible"})

# What ``match`` can compare, by endpoint; a task has no id until createTask has responded.
MATCHES = {
    "createTask": ("prompt",),
    "recordInfo": ("prompt", "taskId"),
    "download-url": ("prompt", "taskId"),
    "file": ("prompt", "taskId"),
    "callback": ("prompt", "taskId"),
}


@dataclass(frozen=True)
class Fault:
    """One fault.

    :param on: the endpoint.
    :param do: the action; see :data:`ACTIONS`.
    :param times: how many requests meet it; None: all, until a reset.
    :param skip: how many matching requests are spared first.
    :param match: ``prompt``: a part of the prompt; ``taskId``: the whole id.
    :param details: the fields of the action.
    """

    on: str
    do: str
    times: int | None = 1
    skip: int = 0
    match: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)  # of the types in ACTIONS, which parse() has checked

    def fits(self, on: str, subject: Mapping[str, str]) -> bool:
        """Whether this is for a request to ``on`` about ``subject`` (its prompt and taskId, where known)."""
        return on == self.on and all(
            (wanted in subject.get(name, "")) if name == "prompt" else (wanted == subject.get(name))
            for name, wanted in self.match.items()
        )


def parse(body: object) -> Fault:
    """Parse a fault.

    :raises ValueError: names the field that is unknown, missing or wrong.
    """
    if not isinstance(body, dict):
        raise ValueError(f"'fault' must be dict; got {body!r}")  # noqa: TRY004
    on, do = body.get("on"), body.get("do")
    if on not in ENDPOINTS:
        raise ValueError(f"'on' must be one of {', '.join(ENDPOINTS)}; got {on!r}")
    if not isinstance(do, str) or do not in ACTIONS:
        raise ValueError(f"'do' must be one of {', '.join(ACTIONS)}; got {do!r}")
    action = ACTIONS[do]
    if on not in action.on:
        raise ValueError(f"'do': {do!r} works on {', '.join(action.on)} only, not on {on!r}")
    _refuse_unknown(body, {"on", "do", "times", "skip", "match", *action.fields}, f"'do': {do!r}")
    for name, (kind, required) in action.fields.items():
        if name in body or required:
            _check(name, body.get(name), kind)
    times, skip, match = body.get("times", 1), body.get("skip", 0), body.get("match", {})
    for name, number, least in (("times", 1 if times is None else times, 1), ("skip", skip, 0)):
        _check(name, number, int)
        if number < least:
            raise ValueError(f"{name!r} must be at least {least}; got {number!r}")
    _check("match", match, dict)
    _refuse_unknown(match, set(MATCHES.get(on, ())), f"'match' on {on!r}")
    for name, wanted in match.items():
        _check(name, wanted, str)
    return Fault(on, do, times, skip, match, {name: body[name] for name in action.fields if name in body})


def _refuse_unknown(given: Iterable[str], known: set[str], where: str) -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"unknown field {name!r} for {where}; known: {', '.join(sorted(known)) or 'none'}")


def _check(name: str, value: object, kind: type | tuple[type, ...]) -> None:
    # bool is an int in Python, but never what is meant in a fault
    if not isinstance(value, kind) or (kind is not object and isinstance(value, bool)):
        kinds = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{name!r} must be {kinds}; got {value!r}")


@dataclass
class _Armed:
    fault: Fault
    seen: int = 0
    met: int = 0


class FaultBook:
    """The faults that are armed, and how often each was met."""

    def __init__(self) -> None:
        self._armed: list[_Armed] = []

    def arm(self, fault: Fault) -> None:
        """Add a fault after the existing ones."""
        self._armed.append(_Armed(fault))

    def take(self, on: str, subject: Mapping[str, str], *, is_early: bool = False) -> Fault | None:
        """Return the fault a request meets, and count it.

        :param is_early: ask for the fault of a callback that is not due yet.
        """
        for armed in self._armed:
            fault = armed.fault
            if (fault.times is not None and armed.met >= fault.times) or not fault.fits(on, subject):
                continue
            if (fault.do == "early") != is_early:
                continue
            armed.seen += 1
            if armed.seen > fault.skip:
                armed.met += 1
                return fault
        return None

    def as_json(self) -> list[dict[str, object]]:
        """Return every fault since the last reset, oldest first, with the number of requests that met it."""
        return [
            {"on": a.fault.on, "do": a.fault.do, "times": a.fault.times, "skip": a.fault.skip, "match": a.fault.match}
            | dict(a.fault.details)
            | {"met": a.met}
            for a in self._armed
        ]
