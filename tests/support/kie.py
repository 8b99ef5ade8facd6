"""What tests ask of Kie, and what the emulator has to tell about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kie_provider.hooks.kie import KieHook
from tests.support.waits import wait_until

if TYPE_CHECKING:
    from kie_provider.emulator import KieEmulator

MODEL = "flux-2/pro-text-to-image"
PROMPT = "a red fox"
INPUT = {"prompt": PROMPT, "aspect_ratio": "1:1", "resolution": "1K"}

# Faults of the emulator. Unless changed, each is for one request.
#: The task never ends.
STUCK = {"on": "createTask", "do": "stuck"}
#: The task succeeds, without an image.
NO_URLS = {"on": "createTask", "do": "no_urls"}
#: The task fails, and a new one may succeed.
INTERNAL = {"on": "createTask", "do": "fail", "failCode": "500", "failMsg": "Internal Error, Please try again later."}
#: The task fails, and so will every other one with this prompt.
REFUSED = {"on": "createTask", "do": "fail", "failCode": "500", "failMsg": "The content was flagged as NSFW"}
#: The task is created, and the connection breaks before the answer.
LOST = {"on": "createTask", "do": "lost_answer"}
#: The first poll does not find the task yet, so that what can defer does.
LATE = {"on": "recordInfo", "do": "not_visible"}


def create_task(kie: KieEmulator, *faults: Mapping[str, Any], model: str = MODEL, **fields: Any) -> str:
    """Set the faults, create a Kie task over the connection ``kie_default``, and return its id.

    :param fields: change :data:`INPUT`.
    """
    for fault in faults:
        kie.fault(fault)
    with KieHook() as hook:
        return hook.create_task(model, INPUT | fields)


def wait_for_end(kie_task_id: str) -> None:
    """Wait until a Kie task has ended, well or not."""
    with KieHook() as hook:
        wait_until(lambda: hook.get_task(kie_task_id).state != "running")


def requests_to(kie: KieEmulator, endpoint: str = "createTask") -> list[dict[str, Any]]:
    """Return the requests to an endpoint, named by the end of its path, in the order they came."""
    return [each for each in kie.requests() if each["path"].endswith(endpoint)]


def created_bodies(kie: KieEmulator) -> list[Any]:
    """Return the bodies of all createTask requests."""
    return [each["json"] for each in requests_to(kie)]
