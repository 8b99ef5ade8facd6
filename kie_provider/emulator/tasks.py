"""The states of a task: pure functions of its creation time and the current time."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal

from kie_provider.emulator.models import MODELS, TaskRequest
from kie_provider.emulator.settings import Settings

State = Literal["waiting", "queuing", "generating", "success", "fail"]
SUCCESS_FLAGS = {"success": 1, "fail": 3}


@dataclass(frozen=True)
class Outcome:
    """How a task will end.

    :param end: ``success``, ``fail``, or None: it stays in ``waiting`` for ever.
    :param fail_code: ``failCode``: a numeric string for most models.
    :param fail_msg: ``failMsg``.
    :param urls: False: a success without any URL.
    """

    end: Literal["success", "fail"] | None = "success"
    fail_code: str = "500"
    fail_msg: str = "Internal Error, Please try again later."
    urls: bool = True


@dataclass(frozen=True)
class Task:
    """A task.

    :param id: 32 lower-case hexadecimal characters.
    :param created_at: epoch seconds.
    """

    id: str
    request: TaskRequest
    created_at: float
    outcome: Outcome


def ends_at(task: Task, settings: Settings) -> float | None:
    """Return when the task ends and its callback is due (epoch seconds); None: never."""
    if task.outcome.end is None:
        return None
    return task.created_at + settings.waiting_seconds + settings.queuing_seconds + settings.generating_seconds


def state_at(task: Task, settings: Settings, now: float) -> State:
    """Return the state at ``now`` (epoch seconds)."""
    end, age = ends_at(task, settings), now - task.created_at
    if end is None or task.outcome.end is None or age < settings.waiting_seconds:
        return "waiting"
    if age < settings.waiting_seconds + settings.queuing_seconds:
        return "queuing"
    return "generating" if now < end else task.outcome.end


def cost_at(task: Task, settings: Settings, now: float) -> float:
    """Return the credits held or charged at ``now``: held from the start, released when the task fails."""
    return 0.0 if state_at(task, settings, now) == "fail" else task.request.price


def result_path(task: Task, settings: Settings) -> str:
    """Return the path of the result file; Kie's look like ``/h/<task id>_<unix seconds>.png``."""
    extension = "png" if settings.image_format == "png" else "jpg"
    return f"/h/{task.id}_{int(ends_at(task, settings) or 0)}.{extension}"


def record(task: Task, settings: Settings, now: float, base_url: str) -> dict[str, Any]:  # Kie's JSON
    """Return ``data`` of recordInfo, field by field as recorded from the real API.

    ``param`` is JSON whose ``input`` is itself a JSON string; ``costTime`` is in whole seconds although the
    documentation says milliseconds; ``updateTime`` and ``progress`` are documented but never sent.
    """
    state = state_at(task, settings, now)
    end = ends_at(task, settings) if state in SUCCESS_FLAGS else None
    result = _result(task, settings, base_url) if state == "success" else None
    param = _compact(
        {
            **({"callBackUrl": task.request.callback_url} if task.request.callback_url else {}),
            "input": _compact(task.request.input),
            "model": task.request.model,
        }
    )
    data: dict[str, Any] = {
        "taskId": task.id,
        "model": task.request.model,
        "state": state,
        "param": param,
        "resultJson": _compact(result) if result else "",
        "failCode": task.outcome.fail_code if state == "fail" else None,
        "failMsg": task.outcome.fail_msg if state == "fail" else None,
        "costTime": int(end - task.created_at) if end else None,
        "completeTime": int(end * 1000) if end else None,
        "createTime": int(task.created_at * 1000),
    }
    if settings.record_shape == "2026-09":
        data["creditsConsumed"] = cost_at(task, settings, now)
        data["operationType"] = task.request.model
        if result:
            data["response"] = result
        data["successFlag"] = SUCCESS_FLAGS.get(state, 0)
        data["paramJson"] = param
    return data


def _result(task: Task, settings: Settings, base_url: str) -> dict[str, object]:
    if MODELS[task.request.model].result == "text":
        words = [{"text": word, "type": "word"} for word in ("An", "emulated", "transcript")]
        return {"resultObject": {"language_code": "eng", "text": "An emulated transcript", "words": words}}
    return {"resultUrls": [base_url + result_path(task, settings)] if task.outcome.urls else []}


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, sort_keys=True)


def iso(when: float) -> str:
    """Return epoch seconds as ISO-8601 in UTC, with milliseconds, as Kie's upload service writes it."""
    return datetime.fromtimestamp(when, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
