"""What Kie sends to a task's ``callBackUrl`` once the task has ended (pure).

Documented: which fields the body has, its ``code`` and ``msg``, and the signature. Not documented for market tasks,
and so the plainest is assumed here: one delivery (the fault ``repeated`` does as Kie's other families do), an answer
expected within 15 s (as there), no User-Agent of its own, ``updateTime`` equal to ``completeTime``, and ``resultJson``
null after a failure.
"""

from __future__ import annotations

import math

from kie_provider.emulator.settings import Settings
from kie_provider.emulator.tasks import Task, record

ANSWER_SECONDS = 15.0
MAX_REPEATS = 3
_COMMON = ("taskId", "model", "state", "param", "resultJson", "costTime", "creditsConsumed")
_FIELDS = {
    "success": (*_COMMON, "createTime", "completeTime", "updateTime"),
    "fail": (*_COMMON, "failCode", "failMsg"),
}


def body(task: Task, settings: Settings, base_url: str) -> dict[str, object]:
    """Return the body for a task that has ended."""
    # Not at the very second of its end: by rounding, the task could still be in the state before.
    data = {"creditsConsumed": 0.0, **record(task, settings, math.inf, base_url)}
    data["updateTime"] = data["completeTime"]
    if data["state"] == "success":
        code, msg, data["creditsConsumed"] = 200, "Playground task completed successfully.", task.request.price
    else:
        code, msg, data["resultJson"] = 501, "Playground task failed.", None
    return {"code": code, "msg": msg, "data": {name: data[name] for name in _FIELDS[data["state"]]}}
