"""Wait for a Flux-2 image."""

from __future__ import annotations

from typing import Any

from kie_provider.sensors.kie import KieTaskSensor
from kie_provider.waiting import require_image


class Flux2TaskSensor(KieTaskSensor):
    """Wait until a Flux-2 task has made its image and return the result dict, whose ``urls`` are never empty.

    Otherwise as :class:`~kie_provider.sensors.kie.KieTaskSensor`.
    """

    def _finish(self, result: dict[str, Any]) -> dict[str, Any]:
        return super()._finish(require_image(result))
