"""A catalogue: one image for every product in every colour, all in one task instance.

It submits as fast as Kie allows and waits in the triggerer. A retry submits only what is missing.
"""

import pendulum
from airflow.sdk import DAG, Param, task

from kie_provider.operators.batch import Flux2BatchOperator
from kie_provider.operators.contact_sheet import KieContactSheetOperator

PRODUCTS = ["teapot", "armchair", "bicycle", "raincoat", "desk lamp", "pair of boots"]
COLOURS = ["red", "green", "blue", "yellow"]

with DAG(
    dag_id="flux2_batch",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    params={"output_dir": Param("kie_images", type="string", description="A folder, or s3://connection@bucket/prefix")},
    default_args={"retries": 2, "retry_delay": pendulum.duration(seconds=10)},
    tags=["kie", "flux-2"],
    doc_md=__doc__,
):
    folder = "{{ params.output_dir }}/{{ run_id }}"

    @task
    def write_prompts() -> list[dict]:
        """List the products to show; this could come from a database."""
        return [
            {"prompt": f"studio photograph of a {colour} {product}", "aspect_ratio": "4:3"}
            for product in PRODUCTS
            for colour in COLOURS
        ]

    images = Flux2BatchOperator(
        task_id="images",
        prompts=write_prompts(),
        target=folder,
        min_success=0.9,  # the sheet shows what is missing
        max_credits=200,
        deferrable=True,
    )

    KieContactSheetOperator(task_id="contact_sheet", results=images.output, target=folder, title="Catalogue")
