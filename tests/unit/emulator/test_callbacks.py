"""The body of a callback."""

from __future__ import annotations

import pytest

from kie_provider.emulator.callbacks import body
from kie_provider.emulator.models import TaskRequest
from kie_provider.emulator.settings import Settings
from kie_provider.emulator.tasks import Outcome, Task

REQUEST = TaskRequest("flux-2/pro-text-to-image", {"prompt": "a fox"}, "http://localhost/hook", 5.0)
SHAPES = pytest.mark.parametrize("shape", ["2026-04", "2026-09"])


def task(outcome=None, created_at=1_789_126_694.25):
    return Task("ab" * 16, REQUEST, created_at, outcome or Outcome())


@SHAPES
def test_success(shape):
    sent = body(task(), Settings(generating_seconds=10, record_shape=shape), "http://kie")
    param = sent["data"].pop("param")
    assert '"callBackUrl":"http://localhost/hook"' in param
    assert sent == {
        "code": 200,
        "msg": "Playground task completed successfully.",
        "data": {
            "taskId": "ab" * 16,
            "model": "flux-2/pro-text-to-image",
            "state": "success",
            "resultJson": f'{{"resultUrls":["http://kie/h/{"ab" * 16}_1789126704.png"]}}',
            "costTime": 10,
            "creditsConsumed": 5.0,
            "createTime": 1_789_126_694_250,
            "completeTime": 1_789_126_704_250,
            "updateTime": 1_789_126_704_250,
        },
    }


@SHAPES
def test_failure(shape):
    settings = Settings(generating_seconds=10, record_shape=shape)
    sent = body(task(Outcome("fail", "400", "no foxes")), settings, "http://kie")
    assert sent["data"].pop("param")
    assert sent == {
        "code": 501,
        "msg": "Playground task failed.",
        "data": {
            "taskId": "ab" * 16,
            "model": "flux-2/pro-text-to-image",
            "state": "fail",
            "resultJson": None,
            "costTime": 10,
            "creditsConsumed": 0.0,
            "failCode": "400",
            "failMsg": "no foxes",
        },
    }


def test_a_task_has_ended_when_it_is_called_back_whatever_the_rounding():
    settings = Settings(waiting_seconds=0.1, queuing_seconds=0.2, generating_seconds=0)
    for tenth in range(1000):
        assert body(task(created_at=1_789_126_694 + tenth / 10), settings, "")["data"]["state"] == "success"
