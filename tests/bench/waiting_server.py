"""The service that all contenders wait for: one process, told by lines on its stdin, gone when that is closed.

Run as ``python -m tests.bench.waiting_server <shape> <certificate> <its key>``. Prints ``{"port": ...}``, and at the
end ``{"polls": [...]}``: when each poll arrived.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import sys
import threading
import time
from array import array
from collections.abc import Callable
from random import Random
from typing import Any

from aiohttp import web

#: An answer takes so many seconds.
ANSWER_SECONDS = 0.3
#: The task that is done from the beginning, to warm up with.
WARM_UP = 0

_PROMPT = (
    "A lighthouse on a cliff at dawn, gulls above the surf, soft light, 35 mm, the paint is peeling a little. " * 3
)


def kie(number: int, is_done: bool) -> tuple[int, Any]:
    """Answer as Kie's recordInfo does, recorded shape."""
    task_input = {"prompt": _PROMPT, "aspect_ratio": "1:1", "resolution": "1K"}
    param = json.dumps({"input": json.dumps(task_input), "model": "flux-2/pro-text-to-image"})
    result = {"resultUrls": ["https://tempfile.example/0123456789abcdef0123456789abcdef.png"]}
    return 200, {
        "code": 200,
        "msg": "success",
        "data": {
            "taskId": kie_task_id(number),
            "model": "flux-2/pro-text-to-image",
            "state": "success" if is_done else "generating",
            "param": param,
            "resultJson": json.dumps(result) if is_done else "",
            "failCode": None,
            "failMsg": None,
            "costTime": 12 if is_done else None,
            "completeTime": 1788950412000 if is_done else None,
            "createTime": 1788950400000,
        },
    }


def http(number: int, is_done: bool) -> tuple[int, Any]:
    """Answer 404 for as long as the HTTP sensor is to go on."""
    return (200, {"number": number}) if is_done else (404, {"error": "not there yet"})


def dbt(number: int, is_done: bool) -> tuple[int, Any]:
    """Answer as dbt Cloud does for a run."""
    status = 10 if is_done else 3
    return 200, {"status": {"code": 200, "is_success": True}, "data": {"id": number, "job_id": 1, "status": status}}


def openai(number: int, is_done: bool) -> tuple[int, Any]:
    """Answer as OpenAI does for a batch."""
    return 200, {
        "id": f"batch_{number:08}",
        "object": "batch",
        "endpoint": "/v1/chat/completions",
        "input_file_id": "file-1",
        "completion_window": "24h",
        "status": "completed" if is_done else "in_progress",
        "created_at": 1788950400,
        "request_counts": {"total": 1, "completed": int(is_done), "failed": 0},
    }


def anthropic(number: int, is_done: bool) -> tuple[int, Any]:
    """Answer as Anthropic does for a message batch."""
    return 200, {
        "id": f"msgbatch_{number:08}",
        "type": "message_batch",
        "processing_status": "ended" if is_done else "in_progress",
        "request_counts": {
            "processing": int(not is_done),
            "succeeded": int(is_done),
            "errored": 0,
            "canceled": 0,
            "expired": 0,
        },
        "created_at": "2026-09-09T12:00:00Z",
        "expires_at": "2026-09-10T12:00:00Z",
        "archived_at": None,
        "cancel_initiated_at": None,
        "ended_at": "2026-09-09T12:10:00Z" if is_done else None,
        "results_url": None,
    }


SHAPES: dict[str, Callable[[int, bool], tuple[int, Any]]] = {
    shape.__name__: shape for shape in (kie, http, dbt, openai, anthropic)
}


def kie_task_id(number: int) -> str:
    """Return an id as long as Kie's."""
    return f"{number:032}"


def done_at(number: int, since: float, within: float) -> float:
    """Return when a task is done: at a random moment of the window, the same one for everybody who asks."""
    return since + within * Random(number).random()


class Service:
    """All tasks, and a note of every poll.

    :param shape: one of :data:`SHAPES`.
    """

    def __init__(self, shape: str) -> None:
        self.polls = array("d")
        self._shape = SHAPES[shape]
        self._window: tuple[float, float] | None = None

    def finish(self, since: float, within: float) -> None:
        """Let every task be done at some moment of this window (of the monotonic clock, which processes share)."""
        self._window = (since, within)

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """Answer what was true when the question came."""
        now = time.monotonic()
        number = int(re.findall(r"\d+", request.raw_path)[-1])
        if number != WARM_UP:
            self.polls.append(now)
        is_done = number == WARM_UP or (self._window is not None and now >= done_at(number, *self._window))
        status, content = self._shape(number, is_done)
        await asyncio.sleep(ANSWER_SECONDS)
        return web.Response(status=status, text=json.dumps(content), content_type="application/json")


async def serve(shape: str, certificate: str, key: str) -> None:
    """Serve until stdin is closed."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    service = Service(shape)
    loop, over = asyncio.get_running_loop(), asyncio.Event()

    def listen() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(service.finish, *json.loads(line))
        loop.call_soon_threadsafe(over.set)

    runner = web.ServerRunner(web.Server(service.answer, access_log=None, keepalive_timeout=3600))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls, backlog=8192, shutdown_timeout=0)
    await site.start()
    print(json.dumps({"port": runner.addresses[0][1]}), flush=True)
    threading.Thread(target=listen, daemon=True).start()
    await over.wait()
    await site.stop()
    print(json.dumps({"polls": list(service.polls)}), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
