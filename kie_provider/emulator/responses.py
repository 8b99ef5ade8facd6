"""Kie's responses, and what a fault does to them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from kie_provider.emulator.faults import Fault
from kie_provider.emulator.models import Refusal
from kie_provider.emulator.world import Call, World


def envelope(code: int, msg: str, data: object = None, *, upload: bool = False, http_status: int = 200) -> web.Response:
    """Return a response in Kie's envelope: HTTP 200 whatever happened; ``code`` says what."""
    body: dict[str, object] = {"success": code == 200} if upload and code != 401 else {}
    body |= {"code": code, "msg": msg}
    if code != 401:  # as recorded: the response to a wrong key has no data at all
        body["data"] = data
    return web.Response(
        text=json.dumps(body, separators=(",", ":")),
        content_type="application/json",
        charset="UTF-8",
        status=http_status,
    )


def instead(fault: Fault, request: web.Request) -> web.Response:
    """Return the response of a fault that replaces the work of the endpoint."""
    details = fault.details
    if fault.do == "reset":
        return _hang_up(request, reset=True)
    if fault.do == "not_visible":
        return envelope(422, "recordInfo is null")
    if fault.do == "code":
        refusal, status = Refusal(details["code"], details.get("msg")), details.get("http_status", 200)
        response = envelope(refusal.code, refusal.msg, upload=fault.on == "upload", http_status=status)
        if "retry_after" in details:
            response.headers["Retry-After"] = str(details["retry_after"])
        return response
    return _scripted(details)


def _scripted(details: Mapping[str, Any]) -> web.Response:
    text = json.dumps(details["json"]) if "json" in details else details.get("body", "")
    kind = details.get("content_type", "application/json" if "json" in details else "text/html")
    response = web.Response(body=text.encode(), status=details.get("http_status", 200), headers={"Content-Type": kind})
    for name, value in details.get("headers", {}).items():
        response.headers[name] = str(value)
    return response


async def deliver(call: Call, response: web.Response) -> web.StreamResponse:
    """Send the response after the work was done, or what a fault makes of it."""
    do = call.fault.do if call.fault else ""
    if call.fault and do in ("slow", "hold"):
        await until_released(call.world, call.fault)
    if do == "lost_answer":
        return _hang_up(call.request)
    if call.fault and do == "swap":
        return _scripted(call.fault.details)
    if do not in ("truncate", "half"):
        return response
    body = response.body if isinstance(response.body, bytes) else b""
    if do == "half":
        response.body = body[: len(body) // 2]
        return response
    half = web.StreamResponse(status=response.status, headers={"Content-Type": response.headers["Content-Type"]})
    half.content_length = len(body)
    await half.prepare(call.request)
    await half.write(body[: len(body) // 2])
    _hang_up(call.request)
    return half


async def until_released(world: World, fault: Fault) -> None:
    """Wait for a release, at most for the fault's ``delay_seconds``."""
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(world.released.wait(), fault.details.get("delay_seconds"))


def _hang_up(request: web.Request, *, reset: bool = False) -> web.Response:
    """Close the connection, after sending what was written or, with ``reset``, at once with a TCP RST."""
    transport = request.transport
    if transport is not None and reset:
        linger = struct.pack("ii", 1, 0)  # on, 0 s: the kernel sends RST instead of FIN
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        transport.abort()
    elif transport is not None:
        transport.close()
    return web.Response()  # is never received
