"""This provider in one task instance for all images. It saves them too, which the other ways here do not."""

import pendulum
from airflow.sdk import DAG

from kie_provider.operators.batch import Flux2BatchOperator

for images in (1, 3, 10, 100):
    with DAG(
        f"batch_{images}",
        schedule=None,
        start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
        default_args={"retries": 5, "retry_delay": pendulum.duration(seconds=10)},
    ):
        Flux2BatchOperator(
            task_id="images",
            prompts=[f"picture {number} of {images}" for number in range(images)],
            target="{{ var.value.bench_target }}",
            deferrable=True,
        )
