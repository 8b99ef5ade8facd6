"""Twenty images of one run, with the connection that the run names, and polls that are a minute apart."""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG

from kie_provider.operators.flux2 import Flux2GenerateImageOperator

with DAG(
    "called_back",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    default_args={"retries": 2, "retry_delay": pendulum.duration(seconds=1)},
    max_active_runs=10,
):
    Flux2GenerateImageOperator.partial(
        task_id="image", kie_conn_id="{{ dag_run.conf['conn_id'] }}", deferrable=True, poll_interval=60
    ).expand(prompt=[f"a red fox in light number {number}" for number in range(20)])
