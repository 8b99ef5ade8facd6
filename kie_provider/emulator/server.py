"""The HTTP side of the emulator: routes, callbacks, the record of both, and what a fault does to them."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import secrets
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, cast
from urllib.parse import quote, unquote, urlsplit

import aiohttp
from aiohttp import web

from kie_provider.client.webhook import sign
from kie_provider.emulator import callbacks, faults, images, page
from kie_provider.emulator.account import Account
from kie_provider.emulator.faults import Fault, FaultBook
from kie_provider.emulator.files import Files, Upload, decode
from kie_provider.emulator.models import Refusal, accept
from kie_provider.emulator.settings import RETENTION_SECONDS, Settings
from kie_provider.emulator.tasks import Fate, Task, ends_at, record, result_path, state_at

MAX_BODY_BYTES = 140 * 2**20
"""100 MB, the largest upload Kie advises, fits in base64."""
KEPT_REQUESTS = 10_000
CLOCK_LOOK_SECONDS = 0.05
"""How often a callback that is not due looks at the clock, which may have jumped."""


class World:
    """All that a reset forgets."""

    def __init__(self, settings: Settings) -> None:
        self.account = Account(settings)
        self.files = Files()
        self.faults = FaultBook()
        self.requests: deque[dict[str, Any]] = deque(maxlen=KEPT_REQUESTS)
        self.callbacks: deque[dict[str, Any]] = deque(maxlen=KEPT_REQUESTS)
        self.released = asyncio.Event()  # answers that are held or slow wait for it


@dataclass(frozen=True)
class Call:
    """One request to an endpoint.

    :param body: parsed JSON, or None.
    :param now: epoch seconds.
    """

    request: web.Request
    world: World
    body: Any
    fault: Fault | None
    now: float

    @property
    def base_url(self) -> str:
        """The emulator's address as the client wrote it, so that URLs work from wherever the client is."""
        return f"http://{self.request.host}"

    def field(self, name: str) -> Any:
        """Return a field of the JSON body, None when it is not there."""
        return self.body.get(name) if isinstance(self.body, dict) else None


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Work = Callable[[Call], Awaitable[web.Response]]


class Server:
    """Kie.ai, its upload service and its file host under one address.

    The event loop of the server is the only one to change a world. Other threads may read it, arm faults and replace
    it: each of these is one step of the interpreter, so no lock is needed (and no event loop ever waits for one).

    :param clock: returns epoch seconds.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self.settings = settings
        self.clock = clock
        self.world = World(settings)
        self._deliveries: set[asyncio.Task[None]] = set()

    def app(self) -> web.Application:
        """Return the aiohttp application."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.add_routes(
            [
                web.post("/api/v1/jobs/createTask", self._endpoint("createTask", self._create_task)),
                web.get("/api/v1/jobs/recordInfo", self._endpoint("recordInfo", self._record_info)),
                web.get("/api/v1/chat/credit", self._endpoint("credit", self._credit)),
                web.post("/api/v1/common/download-url", self._endpoint("download-url", self._download_url)),
                web.post("/api/file-base64-upload", self._endpoint("upload", self._upload_base64)),
                web.post("/api/file-stream-upload", self._endpoint("upload", self._upload_stream)),
                web.post("/api/file-url-upload", self._endpoint("upload", self._upload_url)),
                web.get("/{root:h|kieai|direct}/{rest:.+}", self._endpoint("file", self._file)),
                web.get("/", self._page),
                web.get("/_emulator/thumbnail/{task_id}", self._thumbnail),
                web.get("/_emulator/bill", self._control(lambda _: self.bill())),
                web.get("/_emulator/requests", self._control(lambda _: self.requests())),
                web.get("/_emulator/callbacks", self._control(lambda _: self.callbacks())),
                web.get("/_emulator/faults", self._control(lambda _: self.world.faults.as_json())),
                web.post("/_emulator/faults", self._control(self.arm)),
                web.post("/_emulator/release", self._control(lambda _: self.release())),
                web.post("/_emulator/reset", self._control(lambda _: self.reset().released.set())),
            ]
        )
        return app

    # ---- control: also called from other threads by KieEmulator

    def bill(self) -> dict[str, Any]:
        """Return what was charged for which task."""
        return self.world.account.bill(self.clock())

    def requests(self) -> list[dict[str, Any]]:
        """Return the last 10,000 requests to the API and the file host, oldest first."""
        return list(self.world.requests)

    def callbacks(self) -> list[dict[str, Any]]:
        """Return the last 10,000 callbacks that were delivered or should have been, oldest first."""
        return list(self.world.callbacks)

    def arm(self, body: Any) -> None:
        """Arm a fault; ValueError names what is wrong with it."""
        self.world.faults.arm(faults.parse(body))

    def reset(self) -> World:
        """Start from nothing, and return the old world, in which answers may still be held."""
        old, self.world = self.world, World(self.settings)
        return old

    def release(self) -> None:
        """Let all answers go that are held or slow (only from the event loop)."""
        self.world.released.set()
        self.world.released = asyncio.Event()

    def drop_callbacks(self) -> None:
        """Give up all callbacks that are not yet delivered (only from the event loop)."""
        for delivery in self._deliveries:
            delivery.cancel()

    def _control(self, act: Callable[[Any], Any]) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            if not _is_loopback(request.remote):
                return web.json_response({"error": "only for clients on this machine"}, status=403)
            if not _is_of_our_own(request):
                return web.json_response({"error": "not for pages of other sites"}, status=403)
            try:
                result = act(await request.json() if request.can_read_body else None)
            except ValueError as error:
                return web.json_response({"error": str(error)}, status=400)
            return web.json_response({"ok": True} if result is None else result)

        return handle

    async def _page(self, _request: web.Request) -> web.Response:
        return web.Response(text=page.render(self.bill()), content_type="text/html")

    async def _thumbnail(self, request: web.Request) -> web.Response:
        # Not the result URL: looking at the page must not be recorded, or meet a fault.
        world = self.world
        task = world.account.tasks.get(request.match_info["task_id"])
        if task is None or not task.fate.urls:
            raise web.HTTPNotFound
        picture = await self._picture(Call(request, world, None, None, self.clock()), task)
        small = await asyncio.to_thread(images.thumbnail, picture)
        return web.Response(body=small, content_type="image/jpeg", headers={"Cache-Control": "max-age=3600"})

    # ---- one request, from arrival to answer

    def _endpoint(self, on: str, work: Work) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            world, now = self.world, self.clock()
            body = await _read_json(request)
            call = Call(request, world, body, None, now)
            call = replace(call, fault=world.faults.take(on, self._subject(on, call)))
            key_is_valid = world.account.knows(request.headers.get("Authorization"))
            world.requests.append(_recorded(call, key_is_valid=key_is_valid))
            if call.fault and call.fault.do in faults.INSTEAD:
                return _instead(call.fault, request)
            try:
                if on != "file" and not key_is_valid:
                    raise Refusal(401)
                response = await work(call)
            except Refusal as refusal:
                response = _envelope(refusal.code, refusal.msg, upload=on == "upload")
            return await _deliver(call, response)

        return handle

    def _subject(self, on: str, call: Call) -> Mapping[str, str]:
        """Return what a fault can be narrowed to: prompt and task id of the request, where there are such."""
        if on == "createTask":
            fields = call.field("input")
            prompt = fields.get("prompt") if isinstance(fields, dict) else None
            return {"prompt": prompt} if isinstance(prompt, str) else {}
        task = None
        if on == "recordInfo":
            task = call.world.account.tasks.get(call.request.query.get("taskId", ""))
        elif on == "download-url":
            task = self._task_behind(call, _own_path(call, call.field("url")))
        elif on == "file":
            task = self._task_behind(call, call.request.path)
        return {"prompt": task.order.prompt, "taskId": task.id} if task else {}

    # ---- the API

    async def _create_task(self, call: Call) -> web.Response:
        account = call.world.account
        account.count_create(call.now)
        task = account.create(accept(call.body), _fate(call.fault), call.now)
        if task.order.callback_url:
            delivery = asyncio.create_task(self._call_back(task, task.order.callback_url, call.world, call.base_url))
            self._deliveries.add(delivery)  # the event loop itself would let it be collected
            delivery.add_done_callback(self._deliveries.discard)
        return _envelope(200, "success", {"taskId": task.id, "recordId": task.id})

    async def _record_info(self, call: Call) -> web.Response:
        task_id = call.request.query.get("taskId")
        if not task_id:
            raise Refusal(400, "taskId parameter is required")
        task = call.world.account.task(task_id)
        return _envelope(200, "success", record(task, self.settings, call.now, call.base_url))

    async def _credit(self, call: Call) -> web.Response:
        return _envelope(200, "success", call.world.account.credits_left(call.now))

    async def _download_url(self, call: Call) -> web.Response:
        path = _own_path(call, call.field("url"))
        if path is None or self._find(call, path, RETENTION_SECONDS) is None:
            raise Refusal(422, "url is wrong")
        return _envelope(200, "success", call.base_url + quote(call.world.files.link(path, call.now)))

    # ---- callbacks

    async def _call_back(self, task: Task, url: str, world: World, base_url: str) -> None:
        """Send a task's callback when the task has ended, unless a reset has forgotten the task by then."""
        end, subject = ends_at(task, self.settings), {"prompt": task.order.prompt, "taskId": task.id}
        fault = world.faults.take("callback", subject, is_early=True)
        if end is None:
            return
        while not fault and world is self.world and (left := end - self.clock()) > 0:  # noqa: ASYNC110 - it may jump
            await asyncio.sleep(min(left, CLOCK_LOOK_SECONDS))
        fault = fault or world.faults.take("callback", subject)
        do = fault.do if fault else None
        if fault and do == "late":
            await _until_released(world, fault)
        if do == "reordered":
            await self._until_another(world)
        for number in range({"twice": 2, "repeated": 1 + callbacks.MAX_REPEATS}.get(do or "", 1)):
            if number and fault and "delay_seconds" in fault.details:
                await asyncio.sleep(fault.details["delay_seconds"])
            if world is not self.world:
                return
            kept = await self._post(task, url, base_url, do)
            world.callbacks.append(kept)
            if do == "repeated" and kept["http_status"] == 200:
                return

    async def _until_another(self, world: World) -> None:
        """Wait until another callback has been delivered."""
        before, released = len(world.callbacks), world.released
        while world is self.world and len(world.callbacks) == before and not released.is_set():  # noqa: ASYNC110
            await asyncio.sleep(CLOCK_LOOK_SECONDS)

    async def _post(self, task: Task, url: str, base_url: str, fault: str | None) -> dict[str, Any]:
        """Send a callback and return what is kept of it. Only loopback is called: no test reaches out by accident."""
        body = callbacks.body(task, self.settings, base_url)
        key = secrets.token_hex() if fault == "forged" else self.settings.webhook_hmac_key
        headers = sign(key, task.id, self.clock()) if key else {}
        status = error = None
        if fault == "lost":
            error = "not sent: lost"
        elif not _is_loopback_url(url):
            error = "not sent: not an http(s) URL of this machine (localhost or a loopback address)"
        else:
            limit = aiohttp.ClientTimeout(total=callbacks.ANSWER_SECONDS)
            try:
                async with (
                    aiohttp.ClientSession(timeout=limit) as session,
                    session.post(url, json=body, headers=headers, allow_redirects=False) as answer,
                ):
                    status = answer.status
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as failure:
                error = f"{type(failure).__name__}: {failure}"
        kept = {"taskId": task.id, "url": url, "headers": {name.lower(): value for name, value in headers.items()}}
        return kept | {"json": body, "fault": fault, "http_status": status, "error": error}

    # ---- uploads and files

    async def _upload_base64(self, call: Call) -> web.Response:
        content, media_type = decode(call.field("base64Data"))
        return self._keep(call, content, call.field("uploadPath"), call.field("fileName"), media_type)

    async def _upload_stream(self, call: Call) -> web.Response:
        form = await call.request.post()
        file = form.get("file")
        if not isinstance(file, web.FileField):
            raise Refusal(400, "file is required")
        content = await asyncio.to_thread(_read_all, cast("BinaryIO", file.file))
        return self._keep(call, content, form.get("uploadPath"), form.get("fileName"), file.content_type)

    async def _upload_url(self, call: Call) -> web.Response:
        url = call.field("fileUrl")
        if not isinstance(url, str) or not url:
            raise Refusal(400, "fileUrl is required")
        name = call.field("fileName") or urlsplit(url).path.rpartition("/")[2]
        own = _own_path(call, url)
        content = await self._content(call, own) if own else None
        if content is None:
            raise Refusal(400, f"the emulator fetches its own files only, and has none at {url}")
        return self._keep(call, content, call.field("uploadPath"), name, None)

    def _keep(self, call: Call, content: bytes, folder: Any, name: Any, media_type: str | None) -> web.Response:
        upload = call.world.files.add(content, folder, name, media_type, call.now)
        return _envelope(200, "File uploaded successfully", upload.as_data(call.base_url), upload=True)

    async def _file(self, call: Call) -> web.Response:
        found = self._find(call, call.request.path, self.settings.result_seconds)
        if found is None:
            return web.Response(status=404, text="404 Not Found")
        if isinstance(found, Upload):
            return web.Response(body=found.content, headers={"Content-Type": found.media_type})
        picture = await self._picture(call, found)
        return web.Response(body=picture, content_type=f"image/{self.settings.image_format}")

    def _find(self, call: Call, path: str, seconds: float) -> Task | Upload | None:
        """Return what is at a path: an upload, or the task whose result ended at most ``seconds`` ago."""
        behind = call.world.files.behind(path, call.now)
        if behind is not None:
            return self._find(call, behind, RETENTION_SECONDS)
        task = self._task_behind(call, path)
        if task is None:
            return call.world.files.upload(path, call.now)
        end = ends_at(task, self.settings)
        there = state_at(task, self.settings, call.now) == "success" and task.fate.urls
        return task if there and end is not None and call.now < end + seconds else None

    def _task_behind(self, call: Call, path: str | None) -> Task | None:
        """Return the task whose result file, or a direct link to it, is at a path."""
        path = call.world.files.behind(path or "", call.now) or path or ""
        task = call.world.account.tasks.get(path.removeprefix("/h/").partition("_")[0])
        return task if task and path == result_path(task, self.settings) else None

    async def _content(self, call: Call, path: str) -> bytes | None:
        found = self._find(call, path, RETENTION_SECONDS)
        if isinstance(found, Task):
            return await self._picture(call, found)
        return found.content if found else None

    async def _picture(self, call: Call, task: Task) -> bytes:
        """Draw a task's result; image-to-image starts from its first input image if that is one of ours."""
        order, source = task.order, None
        if order.input_urls:
            own = _own_path(call, order.input_urls[0])
            source = await self._content(call, own) if own else None
        ratio, image_format = order.ratio, self.settings.image_format
        try:
            if ratio == "auto":
                ratio = await asyncio.to_thread(images.ratio_of, source or b"")
            return await asyncio.to_thread(
                images.render, order.prompt, ratio, order.resolution, image_format, source, task.id
            )
        except images.PillowMissingError as error:
            raise web.HTTPNotImplemented(text=str(error)) from error


async def _read_json(request: web.Request) -> Any:
    if request.content_type.startswith("multipart/") or not request.can_read_body:
        return None
    try:
        return json.loads(await request.read())
    except ValueError:
        return None


def _read_all(file: BinaryIO) -> bytes:
    with file:
        return file.read()


def _recorded(call: Call, *, key_is_valid: bool) -> dict[str, Any]:
    """Return a request as it is kept: of the key only whether it was the right one."""
    headers: dict[str, str | None] = {name.lower(): value for name, value in call.request.headers.items()}
    sent = "authorization" in headers
    headers["authorization"] = ("valid" if key_is_valid else "invalid") if sent else None
    return {
        "method": call.request.method,
        "path": call.request.path,
        "query": dict(call.request.query),
        "headers": headers,
        "json": call.body,
        "fault": call.fault.do if call.fault else None,
    }


def _own_path(call: Call, url: Any) -> str | None:
    """Return the path of a URL of this emulator, by whatever name of the machine; None for any other URL."""
    if not isinstance(url, str):
        return None
    try:
        parts, here = urlsplit(url), urlsplit(call.base_url)
        ours = parts.netloc == here.netloc or (_is_loopback(parts.hostname) and parts.port == here.port)
    except ValueError:
        return None
    return unquote(parts.path) if ours and parts.scheme == "http" else None


def _is_loopback(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _is_of_our_own(request: web.Request) -> bool:
    """Whether a request may come from our own page, or no page: a browser of this machine also runs those of others.

    Their scripts send an ``Origin`` of theirs, or, if DNS takes their name to this machine, that name as ``Host``.
    """
    here = f"http://{request.host}"
    return _is_loopback_url(here) and request.headers.get("Origin", here) == here


def _is_loopback_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and _is_loopback(parts.hostname)


def _envelope(code: int, msg: str, data: Any = None, *, upload: bool = False, http_status: int = 200) -> web.Response:
    """Return an answer as Kie wraps it: HTTP 200 whatever happened, ``code`` tells."""
    body: dict[str, Any] = {"success": code == 200} if upload and code != 401 else {}
    body |= {"code": code, "msg": msg}
    if code != 401:  # recorded: an answer to a bad key has no data at all
        body["data"] = data
    return web.Response(
        text=json.dumps(body, separators=(",", ":")),
        content_type="application/json",
        charset="UTF-8",
        status=http_status,
    )


def _fate(fault: Fault | None) -> Fate:
    """Return how the task will end that a createTask with this fault makes."""
    if fault is None:
        return Fate()
    if fault.do == "fail":
        given = {"fail_code": fault.details.get("failCode"), "fail_msg": fault.details.get("failMsg")}
        return Fate("fail", **{name: text for name, text in given.items() if text is not None})
    return {"no_urls": Fate(urls=False), "stuck": Fate(end=None)}.get(fault.do, Fate())


def _instead(fault: Fault, request: web.Request) -> web.Response:
    """Answer without doing anything."""
    details = fault.details
    if fault.do == "reset":
        return _hang_up(request, reset=True)
    if fault.do == "not_visible":
        return _envelope(422, "recordInfo is null")
    if fault.do == "code":
        refusal, status = Refusal(details["code"], details.get("msg")), details.get("http_status", 200)
        response = _envelope(refusal.code, refusal.msg, upload=fault.on == "upload", http_status=status)
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


async def _deliver(call: Call, response: web.Response) -> web.StreamResponse:
    """Send the answer of work that was done, unless a fault has other plans for it."""
    do = call.fault.do if call.fault else ""
    if call.fault and do in ("slow", "hold"):
        await _until_released(call.world, call.fault)
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


async def _until_released(world: World, fault: Fault) -> None:
    """Wait for a release, at most as long as the fault says."""
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(world.released.wait(), fault.details.get("delay_seconds"))


def _hang_up(request: web.Request, *, reset: bool = False) -> web.Response:
    """Close the connection: with TCP reset, or after sending what was written."""
    transport = request.transport
    if transport is not None and reset:
        linger = struct.pack("ii", 1, 0)  # on, 0 s: the kernel sends RST instead of FIN
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        transport.abort()
    elif transport is not None:
        transport.close()
    return web.Response()  # reaches nobody
