"""Wait for a Flux-2 image."""

from __future__ import annotations

from kie_provider.sensors.kie import KieTaskSensor


class Flux2TaskSensor(KieTaskSensor):
    """Wait until a Flux-2 task has made its image and return the result dict, whose ``urls`` are never empty.

    Otherwise as :class:`~kie_provider.sensors.kie.KieTaskSensor`.
    """

    _requires_image = True
