"""Images of which Kie tells when they are done, or not: the connection of the run decides."""

import pendulum
from airflow.sdk import DAG

from kie_provider.operators.flux2 import Flux2GenerateImageOperator

for images in (1, 20):
    with DAG(
        f"callbacks_{images}",
        schedule=None,
        start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
        default_args={"retries": 5, "retry_delay": pendulum.duration(seconds=10)},
        max_active_runs=100,
        max_active_tasks=100,
    ):
        Flux2GenerateImageOperator.partial(
            task_id="image", kie_conn_id="{{ dag_run.conf['conn_id'] }}", deferrable=True
        ).expand(prompt=[f"picture {number} of {images}" for number in range(images)])
