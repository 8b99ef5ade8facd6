"""One Kie task, waited for in every way that can go wrong without Kie: no code of the provider is replaced."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pendulum
from airflow.providers.common.compat.sdk import TaskDeferred
from airflow.sdk import DAG

from kie_provider.operators.flux2 import Flux2CreateTaskOperator
from kie_provider.sensors.flux2 import Flux2TaskSensor
from kie_provider.triggers.kie import KieTaskTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context

    from kie_provider.client.polling import Callback


class UnloadableTrigger(KieTaskTrigger):
    """A trigger of a release that the triggerer does not have."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "kie_provider.triggers.kie.GoneTrigger", super().serialize()[1]


class FirstTriggerLostSensor(Flux2TaskSensor):
    """Its first trigger of a try ends without an event; the later ones are the provider's own."""

    def __init__(self, *, loss: str, **kwargs: Any) -> None:
        super().__init__(deferrable=True, **kwargs)
        self.loss = loss

    def _poll_or_defer(
        self, context: Context, callback: Callback | None = None, trigger_error: Exception | None = None
    ) -> dict[str, Any]:
        try:
            return super()._poll_or_defer(context, callback, trigger_error)
        except TaskDeferred:
            if trigger_error is None:
                raise self._lost_deferral() from None
            raise

    def _lost_deferral(self) -> TaskDeferred:
        arguments = {"kie_conn_id": self.kie_conn_id, "kie_task_id": self.kie_task_id, "poll_interval": 1.0}
        if self.loss == "unloadable":
            return TaskDeferred(trigger=UnloadableTrigger(**arguments), method_name="execute_complete")
        if self.loss == "crashing":
            arguments["deadline"] = "no number"
        timeout = timedelta(seconds=1) if self.loss == "timed_out" else None
        return TaskDeferred(trigger=KieTaskTrigger(**arguments), method_name="execute_complete", timeout=timeout)


with DAG(
    "lost_triggers",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    # A trigger may be lost before the worker that deferred has quite ended; on a busy machine Airflow's scheduler then
    # takes the resumed task for a killed one.
    default_args={"retries": 3, "retry_delay": pendulum.duration(seconds=1)},
):
    create = Flux2CreateTaskOperator(task_id="create", prompt="a red fox in every light", retries=0)
    for loss in ("unloadable", "crashing", "timed_out"):
        FirstTriggerLostSensor(task_id=loss, loss=loss, kie_task_id=create.output)
    # Airflow 3.1 takes a task that comes back before its last process has quite ended for a killed one.
    Flux2TaskSensor(
        task_id="rescheduled", kie_task_id=create.output, mode="reschedule", deferrable=False, poke_interval=6
    )
