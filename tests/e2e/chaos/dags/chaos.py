"""The DAGs that are killed. Every run has a Kie account of its own: its connection is named like the run."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import pendulum
from airflow.sdk import DAG

from kie_provider.operators.batch import Flux2BatchOperator
from kie_provider.operators.flux2 import Flux2CreateTaskOperator, Flux2GenerateImageOperator
from kie_provider.sensors.flux2 import Flux2TaskSensor

MAPPED = 10
COMMON: dict[str, Any] = {
    "kie_conn_id": "{{ run_id }}",
    "retries": 10,
    "retry_delay": timedelta(seconds=0.5),
}
PROMPT = "a red fox, {{ run_id }}"
# A relative one is below the folder in which workers are started.
TARGET = os.environ.get("KIE_CHAOS_TARGET", "saved") + "/{{ run_id }}"


def fail_in_the_first_try(context: Any, result: Any) -> None:
    if context["ti"].try_number == 1:
        raise RuntimeError("behind the delivery")


def dag(dag_id: str) -> DAG:
    start = pendulum.datetime(2026, 1, 1, tz="UTC")
    return DAG(dag_id, schedule=None, start_date=start, default_args=COMMON, max_active_runs=100, max_active_tasks=100)


with dag("chaos_generate"):
    Flux2GenerateImageOperator(task_id="image", prompt=PROMPT, deferrable=True, poll_interval=1)

with dag("chaos_rarely_polled"):
    Flux2GenerateImageOperator(task_id="image", prompt=PROMPT, deferrable=True, poll_interval=600)

with dag("chaos_save"):
    Flux2GenerateImageOperator(task_id="image", prompt=PROMPT, deferrable=True, poll_interval=1, target=TARGET)

with dag("chaos_no_retries"):
    Flux2GenerateImageOperator(task_id="image", prompt=PROMPT, deferrable=True, poll_interval=1, retries=0)

with dag("chaos_slow_retries"):  # no retry while the API server is away
    Flux2GenerateImageOperator(
        task_id="image", prompt=PROMPT, deferrable=True, poll_interval=1, retry_delay=timedelta(seconds=60)
    )

with dag("chaos_post_execute"):
    Flux2GenerateImageOperator(
        task_id="image", prompt=PROMPT, deferrable=True, poll_interval=1, retries=0, post_execute=fail_in_the_first_try
    )

with dag("chaos_on_worker"):
    Flux2GenerateImageOperator(task_id="image", prompt=PROMPT, deferrable=False, poll_interval=1)

with dag("chaos_resubmit"):
    Flux2GenerateImageOperator(
        task_id="image", prompt=PROMPT, deferrable=True, poll_interval=1, on_unknown_submit="resubmit"
    )

with dag("chaos_changing"):
    Flux2GenerateImageOperator(
        task_id="image", prompt=PROMPT + ", try {{ ti.try_number }}", deferrable=True, poll_interval=1
    )

with dag("chaos_two_tasks"):
    create = Flux2CreateTaskOperator(task_id="image", prompt=PROMPT)
    Flux2TaskSensor(task_id="wait", kie_task_id=create.output, deferrable=True, poke_interval=1)

with dag("chaos_mapped"):
    Flux2GenerateImageOperator.partial(task_id="image", deferrable=True, poll_interval=1).expand(
        prompt=[f"{PROMPT}, number {number}" for number in range(MAPPED)]
    )

with dag("chaos_mapped_few"):
    Flux2GenerateImageOperator.partial(task_id="image", deferrable=True, poll_interval=1).expand(
        prompt=[f"{PROMPT}, number {number}" for number in range(5)]
    )

with dag("chaos_batch_of_1000"):
    Flux2BatchOperator(
        task_id="image",
        prompts=[f"{PROMPT}, number {number}" for number in range(1000)],
        target=TARGET,
        retries=50,
        deferrable=True,
        poll_interval=1,
    )

with dag("chaos_batch"):
    Flux2BatchOperator(
        task_id="image",
        prompts=[f"{PROMPT}, number {number}" for number in range(8)],
        target=TARGET,
        deferrable=True,
        poll_interval=1,
    )
