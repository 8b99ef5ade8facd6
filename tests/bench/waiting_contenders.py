"""Who waits: each contender's connection, and one wait for one task."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import aiohttp

from tests.bench.waiting_server import kie_task_id

#: Seconds between an answer and the next poll.
INTERVAL = 3.0
#: Sockets of the bare loop's pool: as many as ours.
POOL_SIZE = 512
#: Ours where Kie is to call back, which never happens here: a contender of the benchmark of callbacks alone.
CALLED = "called"
_FOR_EVER = 7 * 24 * 3600.0

#: Waits for the task of this number; true if the end was a success.
Wait = Callable[[int], Awaitable[bool]]


@dataclass(frozen=True)
class Contender:
    """One way to wait.

    :param title: its name in the table.
    :param shape: what the server answers as.
    :param opens: makes a context manager around all waits of a process, which gives the function that waits.
    :param connection: of the connection that is to be there, as ``AIRFLOW_CONN_BENCH`` has it; given the port.
    """

    title: str
    shape: str
    opens: Callable[[], contextlib.AbstractAsyncContextManager[Wait]]
    connection: Callable[[int], dict[str, Any]]


def _of_triggers(
    make: Callable[[], Callable[[int], Any]],
) -> Callable[[], contextlib.AbstractAsyncContextManager[Wait]]:
    """Wait with triggers, as the triggerer does: each runs until its first event."""

    @contextlib.asynccontextmanager
    async def opens() -> AsyncIterator[Wait]:
        trigger_for = make()

        async def wait(number: int) -> bool:
            async with contextlib.aclosing(trigger_for(number).run()) as events:
                payload = (await anext(events)).payload
            return payload is True or (isinstance(payload, dict) and payload.get("status") == "success")

        yield wait

    return opens


def _kie(callback: Literal["expected"] | None = None) -> Callable[[int], Any]:
    from kie_provider.triggers.kie import KieTaskTrigger

    return lambda number: KieTaskTrigger("bench", kie_task_id(number), INTERVAL, time.time() + _FOR_EVER, callback)


def _http() -> Callable[[int], Any]:
    from airflow.providers.http.triggers.http import HttpSensorTrigger

    return lambda number: HttpSensorTrigger(f"tasks/{number}", "bench", poke_interval=INTERVAL)


def _dbt() -> Callable[[int], Any]:
    from airflow.providers.dbt.cloud.triggers.dbt import DbtCloudRunJobTrigger

    return lambda number: DbtCloudRunJobTrigger("bench", number, time.time() + _FOR_EVER, INTERVAL, account_id=1)


def _openai() -> Callable[[int], Any]:
    from airflow.providers.openai.triggers.openai import OpenAIBatchTrigger

    return lambda number: OpenAIBatchTrigger("bench", f"batch_{number:08}", INTERVAL, timeout=_FOR_EVER)


def _anthropic() -> Callable[[int], Any]:
    from airflow.providers.anthropic.triggers.batch import AnthropicBatchTrigger

    return lambda number: AnthropicBatchTrigger("bench", f"msgbatch_{number:08}", INTERVAL, time.time() + _FOR_EVER)


@contextlib.asynccontextmanager
async def _bare() -> AsyncIterator[Wait]:
    """Do the least that can be done with aiohttp: one pooled session, the bytes, JSON, sleep.

    It also begins at a random moment, and has a pool as large as ours: what differs is what we do above that.
    """
    url = f"{json.loads(os.environ['AIRFLOW_CONN_BENCH'])['host']}/api/v1/jobs/recordInfo?taskId="
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=POOL_SIZE),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Authorization": "Bearer key"},
    ) as session:

        async def wait(number: int) -> bool:
            await asyncio.sleep(random.uniform(0.0, INTERVAL))
            while True:
                async with session.get(url + kie_task_id(number)) as response:
                    record = json.loads(await response.read())
                if record["data"]["state"] == "success":
                    return True
                await asyncio.sleep(INTERVAL)

        yield wait


def _url(port: int, path: str = "", conn_type: str = "generic") -> dict[str, Any]:
    return {"conn_type": conn_type, "host": f"https://127.0.0.1:{port}{path}", "password": "key"}


#: In the order of the table.
CONTENDERS = {
    "ours": Contender("**KieTaskTrigger**", "kie", _of_triggers(_kie), lambda port: _url(port, conn_type="kie")),
    "bare": Contender("bare aiohttp", "kie", _bare, _url),
    "http": Contender("http: HttpSensorTrigger", "http", _of_triggers(_http), _url),
    "dbt-cloud": Contender(
        "dbt-cloud: DbtCloudRunJobTrigger",
        "dbt",
        _of_triggers(_dbt),
        # The host alone: the provider writes https:// before it.
        lambda port: {"conn_type": "generic", "host": f"127.0.0.1:{port}", "password": "key"},
    ),
    "openai": Contender("openai: OpenAIBatchTrigger", "openai", _of_triggers(_openai), lambda port: _url(port, "/v1")),
    "anthropic": Contender("anthropic: AnthropicBatchTrigger", "anthropic", _of_triggers(_anthropic), _url),
    CALLED: Contender(
        "KieTaskTrigger, to be called",
        "kie",
        _of_triggers(partial(_kie, "expected")),
        lambda port: _url(port, conn_type="kie"),
    ),
}
#: Providers to compare with, as they are called.
PEERS = ("http", "dbt-cloud", "openai", "anthropic")
