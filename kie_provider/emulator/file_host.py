"""Kie's upload service and its file host."""

from __future__ import annotations

import asyncio
from typing import BinaryIO, cast
from urllib.parse import urlsplit

from aiohttp import web

from kie_provider.emulator import images
from kie_provider.emulator.files import Upload, decode
from kie_provider.emulator.loopback import own_path
from kie_provider.emulator.models import Refusal
from kie_provider.emulator.responses import envelope
from kie_provider.emulator.settings import RETENTION_SECONDS, Settings
from kie_provider.emulator.tasks import Task, ends_at, result_path, state_at
from kie_provider.emulator.world import Call


class FileHost:
    """Takes uploads, and serves them and the results of tasks."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def upload_base64(self, call: Call) -> web.Response:
        """Take an upload as base64 in JSON."""
        content, media_type = decode(call.field("base64Data"))
        return self._keep(call, content, call.field("uploadPath"), call.field("fileName"), media_type)

    async def upload_stream(self, call: Call) -> web.Response:
        """Take an upload as a multipart form."""
        form = await call.request.post()
        file = form.get("file")
        if not isinstance(file, web.FileField):
            raise Refusal(400, "file is required")
        content = await asyncio.to_thread(_read_all, cast("BinaryIO", file.file))
        return self._keep(call, content, form.get("uploadPath"), form.get("fileName"), file.content_type)

    async def upload_url(self, call: Call) -> web.Response:
        """Take an upload by URL; only the emulator's own URLs are fetched."""
        url = call.field("fileUrl")
        if not isinstance(url, str) or not url:
            raise Refusal(400, "fileUrl is required")
        name = call.field("fileName") or urlsplit(url).path.rpartition("/")[2]
        own = own_path(call.base_url, url)
        content = await self._content(call, own) if own else None
        if content is None:
            raise Refusal(400, f"the emulator fetches its own files only, and has none at {url}")
        return self._keep(call, content, call.field("uploadPath"), name, None)

    def _keep(self, call: Call, content: bytes, folder: object, name: object, media_type: str | None) -> web.Response:
        upload = call.world.files.add(content, folder, name, media_type, call.now)
        return envelope(200, "File uploaded successfully", upload.as_data(call.base_url), upload=True)

    async def download(self, call: Call) -> web.Response:
        """Send an upload or a result."""
        found = self.find(call, call.request.path, self._settings.result_seconds)
        if found is None:
            return web.Response(status=404, text="404 Not Found")
        if isinstance(found, Upload):
            return web.Response(body=found.content, headers={"Content-Type": found.media_type})
        picture = await self.picture(call, found)
        return web.Response(body=picture, content_type=f"image/{self._settings.image_format}")

    def find(self, call: Call, path: str, seconds: float) -> Task | Upload | None:
        """Return what is at a path: an upload, or a task that ended at most ``seconds`` ago with a result there."""
        behind = call.world.files.behind(path, call.now)
        if behind is not None:
            return self.find(call, behind, RETENTION_SECONDS)
        task = self.task_behind(call, path)
        if task is None:
            return call.world.files.upload(path, call.now)
        end = ends_at(task, self._settings)
        there = state_at(task, self._settings, call.now) == "success" and task.outcome.urls
        return task if there and end is not None and call.now < end + seconds else None

    def task_behind(self, call: Call, path: str | None) -> Task | None:
        """Return the task whose result file is at a path, possibly by a direct link."""
        path = call.world.files.behind(path or "", call.now) or path or ""
        task = call.world.account.tasks.get(path.removeprefix("/h/").partition("_")[0])
        return task if task and path == result_path(task, self._settings) else None

    async def _content(self, call: Call, path: str) -> bytes | None:
        found = self.find(call, path, RETENTION_SECONDS)
        if isinstance(found, Task):
            return await self.picture(call, found)
        return found.content if found else None

    async def picture(self, call: Call, task: Task) -> bytes:
        """Draw a task's result; image-to-image starts from its first input image if the emulator serves it."""
        request, source = task.request, None
        if request.input_urls:
            own = own_path(call.base_url, request.input_urls[0])
            source = await self._content(call, own) if own else None
        ratio, image_format = request.ratio, self._settings.image_format
        try:
            if ratio == "auto":
                ratio = await asyncio.to_thread(images.ratio_of, source or b"")
            return await asyncio.to_thread(
                images.render, request.prompt, ratio, request.resolution, image_format, source, task.id
            )
        except images.PillowMissingError as error:
            raise web.HTTPNotImplemented(text=str(error)) from error


def _read_all(file: BinaryIO) -> bytes:
    with file:
        return file.read()
