"""This provider in two steps: an operator that orders, a deferrable sensor that waits."""

import pendulum
from airflow.sdk import DAG

from kie_provider.operators.flux2 import Flux2CreateTaskOperator
from kie_provider.sensors.flux2 import Flux2TaskSensor

for images in (1, 3, 10, 100):
    with DAG(
        f"create_and_wait_{images}",
        schedule=None,
        start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
        default_args={"retries": 5, "retry_delay": pendulum.duration(seconds=10)},
    ):
        create = Flux2CreateTaskOperator.partial(task_id="create").expand(
            prompt=[f"picture {number} of {images}" for number in range(images)]
        )
        Flux2TaskSensor.partial(task_id="wait", deferrable=True).expand(kie_task_id=create.output)
