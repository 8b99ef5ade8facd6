"""As one writes it in an afternoon: a Python task per image that asks every three seconds."""

import os
import time

import pendulum
from airflow.sdk import DAG, task


@task
def image(prompt: str) -> list[str]:
    """Order one image and wait for its links."""
    import requests

    host, headers = os.environ["BENCH_KIE_URL"], {"Authorization": f"Bearer {os.environ['BENCH_KIE_KEY']}"}
    order = {
        "model": "flux-2/pro-text-to-image",
        "input": {"prompt": prompt, "aspect_ratio": "1:1", "resolution": "1K"},
    }
    answer = requests.post(f"{host}/api/v1/jobs/createTask", json=order, headers=headers, timeout=60).json()
    if answer["code"] != 200:
        raise RuntimeError(answer["msg"])
    kie_task_id = answer["data"]["taskId"]
    while True:
        answer = requests.get(
            f"{host}/api/v1/jobs/recordInfo", params={"taskId": kie_task_id}, headers=headers, timeout=60
        ).json()
        if answer["code"] != 200:
            raise RuntimeError(answer["msg"])
        if answer["data"]["state"] == "success":
            return answer["data"]["response"]["resultUrls"]
        if answer["data"]["state"] == "fail":
            raise RuntimeError(answer["data"]["failMsg"])
        time.sleep(3)


for images in (1, 3, 10, 100):
    with DAG(
        f"hand_written_{images}",
        schedule=None,
        start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
        default_args={"retries": 5, "retry_delay": pendulum.duration(seconds=10)},
    ):
        image.expand(prompt=[f"picture {number} of {images}" for number in range(images)])
