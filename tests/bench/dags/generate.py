"""This provider in one step per image."""

import pendulum
from airflow.sdk import DAG

from kie_provider.operators.flux2 import Flux2GenerateImageOperator

for images in (1, 3, 10, 100):
    with DAG(
        f"generate_{images}",
        schedule=None,
        start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
        default_args={"retries": 5, "retry_delay": pendulum.duration(seconds=10)},
    ):
        Flux2GenerateImageOperator.partial(task_id="image", deferrable=True).expand(
            prompt=[f"picture {number} of {images}" for number in range(images)]
        )
