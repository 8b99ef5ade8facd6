"""What the emulator keeps between requests, and one request."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TypedDict

from aiohttp import web

from kie_provider.emulator.account import Account
from kie_provider.emulator.faults import Fault, FaultBook
from kie_provider.emulator.files import Files
from kie_provider.emulator.settings import Settings

KEPT_REQUESTS = 10_000


class RecordedRequest(TypedDict):
    """A request as it is kept.

    ``headers`` have names in lower case, and "valid", "invalid" or None in place of the key; ``json`` is the body, or
    None; ``fault`` is the ``do`` of the fault that the request met, or None.
    """

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str | None]
    json: object  # whatever the client has sent
    fault: str | None


class RecordedCallback(TypedDict):
    """A callback that was sent or should have been.

    ``headers`` is the signature; ``json`` the body; ``fault`` the ``do`` of the fault that it met, or None;
    ``http_status`` that of the receiver's response, or None; ``error`` says why there is none.
    """

    taskId: str
    url: str
    headers: dict[str, str]
    json: dict[str, object]  # Kie's JSON
    fault: str | None
    http_status: int | None
    error: str | None


class World:
    """Everything that a reset forgets."""

    def __init__(self, settings: Settings) -> None:
        self.account = Account(settings)
        self.files = Files()
        self.faults = FaultBook()
        self.requests: deque[RecordedRequest] = deque(maxlen=KEPT_REQUESTS)
        self.callbacks: deque[RecordedCallback] = deque(maxlen=KEPT_REQUESTS)
        self.released = asyncio.Event()  # held and slow responses wait for it


@dataclass(frozen=True)
class Call:
    """One request to an endpoint.

    :param body: parsed JSON; None: there is none.
    :param fault: the fault that the request meets; None: none.
    :param now: time of arrival, epoch seconds.
    """

    request: web.Request
    world: World
    body: object
    fault: Fault | None
    now: float

    @property
    def base_url(self) -> str:
        """The emulator's URL as the client addressed it, so that URLs in responses work for the client."""
        return f"http://{self.request.host}"

    def field(self, name: str) -> object:
        """Return a field of the JSON body; None: it is missing."""
        return self.body.get(name) if isinstance(self.body, dict) else None
