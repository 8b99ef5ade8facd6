"""The DAGs that are measured. Every run has a Kie account of its own: its connection is named like the run."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from typing import Any
from urllib.request import urlopen

import pendulum
from airflow.providers.common.compat.sdk import BaseHook
from airflow.sdk import DAG, task

from kie_provider.operators.batch import Flux2BatchOperator
from kie_provider.operators.flux2 import Flux2GenerateImageOperator
from kie_provider.sensors.kie import KieTaskSensor

IMAGES = 100
COMMON: dict[str, Any] = {
    "kie_conn_id": "{{ run_id }}",
    "deferrable": True,
    "retries": 3,
    "retry_delay": timedelta(minutes=1),
}
PROMPTS = [f"a red fox, number {number}" for number in range(IMAGES)]
TARGET = os.environ["KIE_CHAOS_TARGET"] + "/{{ run_id }}"


def dag(dag_id: str) -> DAG:
    start = pendulum.datetime(2026, 1, 1, tz="UTC")
    return DAG(dag_id, schedule=None, start_date=start, default_args=COMMON, max_active_tasks=IMAGES)


@task
def created(run_id: str) -> list[str]:
    """Return the ids of all Kie tasks of the run's account."""
    with urlopen(f"{BaseHook.get_connection(run_id).host}/_emulator/bill") as answer:
        return [each["taskId"] for each in json.load(answer)["tasks"]]


with dag("fleet_warm_up"):
    Flux2GenerateImageOperator(task_id="image", prompt="a red fox", target=TARGET)

with dag("fleet_mapped"):
    Flux2GenerateImageOperator.partial(task_id="image", target=TARGET).expand(prompt=PROMPTS)

with dag("fleet_batch"):
    Flux2BatchOperator(task_id="image", prompts=PROMPTS, target=TARGET)

with dag("fleet_waits"):
    ids = created.override(retries=0)()
    KieTaskSensor.partial(task_id="image", pool="fleet_waits", timeout=7200).expand(kie_task_id=ids)
