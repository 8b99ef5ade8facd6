"""A client of the emulator that is nothing but requests, and a clock to turn by hand."""

from __future__ import annotations

from typing import Any

import requests

from kie_provider.emulator import KieEmulator

PRO = "flux-2/pro-text-to-image"


class Client:
    """Sends what it is told to; the key of the emulator unless another one is given."""

    def __init__(self, kie: KieEmulator) -> None:
        self.kie = kie

    def send(self, method: str, path: str, key: str | None = ..., **options: Any) -> requests.Response:
        key = self.kie.api_key if key is ... else key
        headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
        url = path if path.startswith("http") else self.kie.url + path
        return requests.request(method, url, headers=headers | options.pop("headers", {}), timeout=10, **options)

    def body(self, prompt: str = "a red fox", model: str = PRO, **fields: Any) -> dict[str, Any]:
        return {"model": model, "input": {"prompt": prompt, "aspect_ratio": "1:1", "resolution": "1K", **fields}}

    def create(self, *args: Any, **fields: Any) -> dict[str, Any]:
        return self.send("POST", "/api/v1/jobs/createTask", json=self.body(*args, **fields)).json()

    def new_task(self, *args: Any, **fields: Any) -> str:
        return self.create(*args, **fields)["data"]["taskId"]

    def look(self, task_id: str) -> dict[str, Any]:
        return self.send("GET", "/api/v1/jobs/recordInfo", params={"taskId": task_id}).json()

    def url_of(self, task_id: str) -> str:
        return self.look(task_id)["data"]["response"]["resultUrls"][0]

    def credit(self) -> dict[str, Any]:
        return self.send("GET", "/api/v1/chat/credit").json()

    def direct(self, url: str) -> dict[str, Any]:
        return self.send("POST", "/api/v1/common/download-url", json={"url": url}).json()

    def get(self, url: str, **options: Any) -> requests.Response:
        return requests.get(url, timeout=10, **options)


class Clock:
    """Stands still until it is turned."""

    def __init__(self) -> None:
        self.now = 1_789_126_694.0

    def __call__(self) -> float:
        return self.now
