"""The HTTP side of the emulator: routes, the API, callbacks, and the record of all of them."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from urllib.parse import quote

import aiohttp
from aiohttp import web

from kie_provider.client.webhook import sign
from kie_provider.emulator import callbacks, faults, images, page
from kie_provider.emulator.account import Bill
from kie_provider.emulator.faults import Fault
from kie_provider.emulator.file_host import FileHost
from kie_provider.emulator.loopback import is_loopback, is_loopback_url, is_own_page, own_path
from kie_provider.emulator.models import Refusal, accept
from kie_provider.emulator.responses import deliver, envelope, instead, until_released
from kie_provider.emulator.settings import RETENTION_SECONDS, Settings
from kie_provider.emulator.tasks import Outcome, Task, ends_at, record
from kie_provider.emulator.world import Call, RecordedCallback, RecordedRequest, World

MAX_BODY_BYTES = 140 * 2**20
"""100 MB, the largest upload Kie advises, fits in base64."""
CLOCK_POLL_SECONDS = 0.05
"""How often a callback that is not due reads the clock, which may have jumped."""


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Work = Callable[[Call], Awaitable[web.Response]]


class Server:
    """Kie.ai, its upload service and its file host under one address.

    Only the server's event loop changes a world. Other threads may read it, arm faults and replace it: each of these is
    atomic in the interpreter, so no lock is needed, and the event loop never waits for one.

    :param clock: returns epoch seconds.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self.settings = settings
        self.clock = clock
        self.world = World(settings)
        self._files = FileHost(settings)
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
                web.post("/api/file-base64-upload", self._endpoint("upload", self._files.upload_base64)),
                web.post("/api/file-stream-upload", self._endpoint("upload", self._files.upload_stream)),
                web.post("/api/file-url-upload", self._endpoint("upload", self._files.upload_url)),
                web.get("/{root:h|kieai|direct}/{rest:.+}", self._endpoint("file", self._files.download)),
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

    # ---- control; KieEmulator calls these from other threads, too

    def bill(self) -> Bill:
        """Return what each task was charged."""
        return self.world.account.bill(self.clock())

    def requests(self) -> list[RecordedRequest]:
        """Return the last 10,000 requests to the API and the file host, oldest first."""
        return list(self.world.requests)

    def callbacks(self) -> list[RecordedCallback]:
        """Return the last 10,000 callbacks, sent or not, oldest first."""
        return list(self.world.callbacks)

    def arm(self, body: object) -> None:
        """Arm a fault.

        :raises ValueError: names the field that is wrong.
        """
        self.world.faults.arm(faults.parse(body))

    def reset(self) -> World:
        """Start over, and return the old world, in which responses may still be held."""
        old, self.world = self.world, World(self.settings)
        return old

    def release(self) -> None:
        """Send all responses that are held or slow (only from the event loop)."""
        self.world.released.set()
        self.world.released = asyncio.Event()

    def drop_callbacks(self) -> None:
        """Cancel all callbacks that are not yet delivered (only from the event loop)."""
        for delivery in self._deliveries:
            delivery.cancel()

    def _control(self, act: Callable[[object], object]) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            if not is_loopback(request.remote):
                return web.json_response({"error": "only for clients on this machine"}, status=403)
            if not is_own_page(request):
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
        # Not the result URL: viewing the page must neither be recorded nor meet a fault.
        world = self.world
        task = world.account.tasks.get(request.match_info["task_id"])
        if task is None or not task.outcome.urls:
            raise web.HTTPNotFound
        picture = await self._files.picture(Call(request, world, None, None, self.clock()), task)
        small = await asyncio.to_thread(images.thumbnail, picture)
        return web.Response(body=small, content_type="image/jpeg", headers={"Cache-Control": "max-age=3600"})

    # ---- one request, from arrival to response

    def _endpoint(self, on: str, work: Work) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            world, now = self.world, self.clock()
            body = await _read_json(request)
            call = Call(request, world, body, None, now)
            call = replace(call, fault=world.faults.take(on, self._subject(on, call)))
            key_is_valid = world.account.accepts(request.headers.get("Authorization"))
            world.requests.append(_recorded(call, key_is_valid=key_is_valid))
            if call.fault and call.fault.do in faults.INSTEAD:
                return instead(call.fault, request)
            try:
                if on != "file" and not key_is_valid:
                    raise Refusal(401)
                response = await work(call)
            except Refusal as refusal:
                response = envelope(refusal.code, refusal.msg, upload=on == "upload")
            return await deliver(call, response)

        return handle

    def _subject(self, on: str, call: Call) -> Mapping[str, str]:
        """Return what ``match`` of a fault is compared with: prompt and task id of the request, where it has them."""
        if on == "createTask":
            fields = call.field("input")
            prompt = fields.get("prompt") if isinstance(fields, dict) else None
            return {"prompt": prompt} if isinstance(prompt, str) else {}
        task = None
        if on == "recordInfo":
            task = call.world.account.tasks.get(call.request.query.get("taskId", ""))
        elif on == "download-url":
            task = self._files.task_behind(call, own_path(call.base_url, call.field("url")))
        elif on == "file":
            task = self._files.task_behind(call, call.request.path)
        return {"prompt": task.request.prompt, "taskId": task.id} if task else {}

    # ---- the API

    async def _create_task(self, call: Call) -> web.Response:
        account = call.world.account
        account.count_create(call.now)
        task = account.create(accept(call.body), _outcome(call.fault), call.now)
        if task.request.callback_url:
            delivery = asyncio.create_task(self._call_back(task, task.request.callback_url, call.world, call.base_url))
            self._deliveries.add(delivery)  # the event loop alone keeps only a weak reference
            delivery.add_done_callback(self._deliveries.discard)
        return envelope(200, "success", {"taskId": task.id, "recordId": task.id})

    async def _record_info(self, call: Call) -> web.Response:
        task_id = call.request.query.get("taskId")
        if not task_id:
            raise Refusal(400, "taskId parameter is required")
        task = call.world.account.task(task_id)
        return envelope(200, "success", record(task, self.settings, call.now, call.base_url))

    async def _credit(self, call: Call) -> web.Response:
        return envelope(200, "success", call.world.account.credits_left(call.now))

    async def _download_url(self, call: Call) -> web.Response:
        path = own_path(call.base_url, call.field("url"))
        if path is None or self._files.find(call, path, RETENTION_SECONDS) is None:
            raise Refusal(422, "url is wrong")
        return envelope(200, "success", call.base_url + quote(call.world.files.link(path, call.now)))

    # ---- callbacks

    async def _call_back(self, task: Task, url: str, world: World, base_url: str) -> None:
        """Send a task's callback when the task has ended, unless a reset has forgotten the task by then."""
        end, subject = ends_at(task, self.settings), {"prompt": task.request.prompt, "taskId": task.id}
        fault = world.faults.take("callback", subject, is_early=True)
        if end is None:
            return
        while not fault and world is self.world and (left := end - self.clock()) > 0:  # noqa: ASYNC110 - it may jump
            await asyncio.sleep(min(left, CLOCK_POLL_SECONDS))
        fault = fault or world.faults.take("callback", subject)
        do = fault.do if fault else None
        if fault and do == "late":
            await until_released(world, fault)
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
            await asyncio.sleep(CLOCK_POLL_SECONDS)

    async def _post(self, task: Task, url: str, base_url: str, fault: str | None) -> RecordedCallback:
        """Send a callback and return its record. Only loopback is called, so that no test reaches out by accident."""
        body = callbacks.body(task, self.settings, base_url)
        key = secrets.token_hex() if fault == "forged" else self.settings.webhook_hmac_key
        headers = sign(key, task.id, self.clock()) if key else {}
        status: int | None = None
        error: str | None = None
        if fault == "lost":
            error = "not sent: lost"
        elif not is_loopback_url(url):
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
        return {
            "taskId": task.id,
            "url": url,
            "headers": {name.lower(): value for name, value in headers.items()},
            "json": body,
            "fault": fault,
            "http_status": status,
            "error": error,
        }


async def _read_json(request: web.Request) -> object:
    if request.content_type.startswith("multipart/") or not request.can_read_body:
        return None
    try:
        return json.loads(await request.read())
    except ValueError:
        return None


def _recorded(call: Call, *, key_is_valid: bool) -> RecordedRequest:
    """Return a request in the form in which it is kept, with ``valid`` or ``invalid`` instead of the key."""
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


def _outcome(fault: Fault | None) -> Outcome:
    """Return how a task will end whose createTask met this fault."""
    if fault is None:
        return Outcome()
    if fault.do == "fail":
        given = {"fail_code": fault.details.get("failCode"), "fail_msg": fault.details.get("failMsg")}
        return Outcome("fail", **{name: text for name, text in given.items() if text is not None})
    return {"no_urls": Outcome(urls=False), "stuck": Outcome(end=None)}.get(fault.do, Outcome())
