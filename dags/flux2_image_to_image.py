"""One picture in several styles: the image of one task is the input of the next ones.

The saved file is uploaded to Kie once, free of charge, however many tasks use it.
"""

import pendulum
from airflow.sdk import DAG, Param

from kie_provider.operators.flux2 import Flux2GenerateImageOperator

with DAG(
    dag_id="flux2_image_to_image",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    params={"output_dir": Param("kie_images", type="string", description="A folder, or s3://connection@bucket/prefix")},
    default_args={
        "target": "{{ params.output_dir }}/{{ run_id }}",
        "deferrable": True,
        "retries": 2,
        "retry_delay": pendulum.duration(seconds=10),
    },
    tags=["kie", "flux-2"],
    doc_md=__doc__,
):
    original = Flux2GenerateImageOperator(
        task_id="original", prompt="a small wooden house at a lake, early morning", aspect_ratio="3:2"
    )

    Flux2GenerateImageOperator.partial(
        task_id="restyle",
        input_images=original.output,  # a path or a URL works too
        aspect_ratio="auto",
    ).expand(prompt=["as a watercolour", "as a woodcut", "in deep winter, at night"])
