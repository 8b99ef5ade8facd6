"""Kie's record of a task, parsed: :class:`TaskRecord`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from typing import TypedDict

import pendulum

from kie_provider.client.plain import one_line, storable
from kie_provider.client.results import decoded, result_forms, result_object, result_urls


class TaskState(str, Enum):
    """State of a Kie task; anything that is neither success nor failure counts as running, unknown states included."""

    RUNNING = "running"
    SUCCESS = "success"
    FAIL = "fail"


class ResultDict(TypedDict):
    """The result dict that operators and sensors return, as JSON."""

    kie_task_id: str
    model: str | None
    state: str
    urls: list[str]
    #: Whatever the model returned, if that is more than URLs.
    result: object
    credits_consumed: float | None
    cost_seconds: int | None
    #: ISO 8601, in UTC.
    created_at: str | None
    completed_at: str | None
    #: As Kie recorded it.
    input: dict[str, object]


@dataclass(frozen=True)
class TaskRecord:
    """The record of one task, from recordInfo.

    Kie sends fields late, as null, as "", double-encoded or not at all; this class hides all of that.
    """

    kie_task_id: str
    state: TaskState
    #: Kie's own term: ``waiting``, ``queuing``, ``generating``, ``success``, ``fail``, or one yet unknown.
    kie_state: str
    model: str | None = None
    input: Mapping[str, object] = field(default_factory=dict)
    #: Where Kie was told to call back.
    callback_url: str | None = None
    #: http(s) URLs of the results; they can expire within 24 hours.
    urls: tuple[str, ...] = ()
    #: What the model returned, if that is more than URLs: the ``resultObject`` of text models, else its own structure.
    result: object = None
    fail_code: str | None = None
    fail_message: str | None = None
    #: Credits held while running, charged on success.
    credits_consumed: float | None = None
    #: Whole seconds. The vendor's page says milliseconds; recorded answers show seconds.
    cost_seconds: int | None = None
    created_at: datetime | None = None
    completed_at: datetime | None = None

    @property
    def has_result(self) -> bool:
        """Whether there is a usable result; a success without one counts as an error."""
        return bool(self.urls) or self.result is not None

    @classmethod
    def from_data(cls, data: Mapping[str, object], kie_task_id: str) -> TaskRecord:
        """Parse the ``data`` object of a recordInfo answer.

        :param data: the object, in any of the forms that Kie is known to send.
        :param kie_task_id: the id that was asked for; it takes precedence.
        """
        word = _text(data.get("state")) or _text(data.get("status"))
        kie_state = word or _STATE_BY_SUCCESS_FLAG.get(_number(data.get("successFlag")), "unknown")
        forms = result_forms(data)
        return cls(
            kie_task_id=kie_task_id,
            state=_STATES.get(kie_state.lower(), TaskState.RUNNING),
            kie_state=kie_state,
            model=_text(data.get("model")),
            input=_object(_param(data).get("input")),
            callback_url=_text(_param(data).get("callBackUrl")),
            urls=tuple(result_urls(forms)),
            result=result_object(forms),
            fail_code=_text(data.get("failCode")),
            fail_message=_text(data.get("failMsg")),
            credits_consumed=_number(data.get("creditsConsumed")),
            cost_seconds=None if (cost := _number(data.get("costTime"))) is None else int(cost),
            created_at=_time(data.get("createTime")),
            completed_at=_time(data.get("completeTime")),
        )

    def to_result(self) -> ResultDict:
        """Return the result dict that operators and sensors push to XCom: JSON, times as ISO 8601 in UTC."""
        result: ResultDict = {
            "kie_task_id": self.kie_task_id,
            "model": self.model,
            "state": self.state.value,
            "urls": list(self.urls),
            "result": self.result,
            "credits_consumed": self.credits_consumed,
            "cost_seconds": self.cost_seconds,
            "created_at": _iso(self.created_at),
            "completed_at": _iso(self.completed_at),
            "input": dict(self.input),
        }
        return storable(result)


#: Kie's terms for tasks that have not ended; an unknown term counts as one, too.
RUNNING_WORDS = ("waiting", "queuing", "generating")
# Besides Kie's own two: terms seen at models that came from other Kie endpoints.
_STATES = {
    **dict.fromkeys(("success", "succeeded", "succeed", "completed", "complete", "finished"), TaskState.SUCCESS),
    **dict.fromkeys(("fail", "failed", "failure", "error"), TaskState.FAIL),
    **dict.fromkeys(("canceled", "cancelled", "rejected", "expired", "aborted"), TaskState.FAIL),
    **dict.fromkeys(("create_task_failed", "generate_audio_failed", "sensitive_word_error"), TaskState.FAIL),
}
# Newer answers carry successFlag beside state; it only decides when state is missing.
_STATE_BY_SUCCESS_FLAG: Mapping[float | None, str] = {0: "generating", 1: "success", 2: "fail", 3: "fail"}


_SCALARS = (str, int, float)


def _text(value: object) -> str | None:
    """Return a non-empty string, or None; numbers (codes) become text."""
    if isinstance(value, bool) or not isinstance(value, _SCALARS):
        return None
    return one_line(str(value)) or None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, _SCALARS):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < 1e15 else None  # neither nan nor inf nor nonsense


def _time(milliseconds: object) -> datetime | None:
    number = _number(milliseconds)
    if not number or not 0 < number < 4e12:  # the year 2096; anything later is not a time
        return None
    # Not pendulum's: it takes 40 microseconds, and every poll of every trigger comes through here.
    return datetime.fromtimestamp(number / 1000, timezone.utc)


def _iso(at: datetime | None) -> str | None:
    return None if at is None else pendulum.instance(at).to_iso8601_string()


def _object(value: object) -> Mapping[str, object]:
    """Return a JSON object given as such or as text; anything else is an empty one."""
    value = decoded(value)
    return value if isinstance(value, dict) else {}


def _param(data: Mapping[str, object]) -> Mapping[str, object]:
    """Return createTask's body as Kie tells it: JSON text whose ``input`` is JSON text once more."""
    return _object(data.get("param")) or _object(data.get("paramJson"))
