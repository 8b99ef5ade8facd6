"""With Airflow's HTTP provider: an operator that orders, a sensor that waits.

The sensor holds its worker: with a ``response_check``, which it needs here, ``deferrable=True`` does nothing.
"""

import json

import pendulum
from airflow.exceptions import AirflowFailException
from airflow.providers.http.operators.http import HttpOperator
from airflow.providers.http.sensors.http import HttpSensor
from airflow.sdk import DAG


def is_done(response):
    """Tell whether the image is there."""
    data = response.json()["data"]
    if data["state"] == "fail":
        raise AirflowFailException(data["failMsg"])
    return data["state"] == "success"


def order(prompt):
    """Return the body of createTask."""
    task_input = {"prompt": prompt, "aspect_ratio": "1:1", "resolution": "1K"}
    return json.dumps({"model": "flux-2/pro-text-to-image", "input": task_input})


for images in (1, 3, 10, 100):
    with DAG(
        f"http_operators_{images}",
        schedule=None,
        start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
        default_args={"retries": 5, "retry_delay": pendulum.duration(seconds=10)},
    ):
        create = HttpOperator.partial(
            task_id="create",
            http_conn_id="bench_http",
            endpoint="/api/v1/jobs/createTask",
            headers={"Content-Type": "application/json"},
            response_check=lambda response: response.json()["code"] == 200,
            response_filter=lambda response: {"taskId": response.json()["data"]["taskId"]},
        ).expand(data=[order(f"picture {number} of {images}") for number in range(images)])
        HttpSensor.partial(
            task_id="wait",
            http_conn_id="bench_http",
            endpoint="/api/v1/jobs/recordInfo",
            response_check=is_done,
            deferrable=True,
            poke_interval=3,
        ).expand(request_params=create.output)
