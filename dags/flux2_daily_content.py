"""A day's illustrations.

An editorial plan becomes prompts, each prompt an image file, and all images one contact sheet. The asset `flux2_images`
then has new files, which starts `flux2_asset_downstream`.
"""

import pendulum
from airflow.sdk import DAG, Asset, Param, task

from kie_provider.operators.contact_sheet import KieContactSheetOperator
from kie_provider.operators.flux2 import Flux2GenerateImageOperator

PLAN = [
    {"slot": "cover", "topic": "a lighthouse above a stormy sea", "style": "oil painting"},
    {"slot": "news", "topic": "a night market in a rainy city", "style": "cinematic photograph"},
    {"slot": "science", "topic": "a forest of giant glowing mushrooms", "style": "paper cut-out"},
    {"slot": "travel", "topic": "terraced hills at sunrise", "style": "flat poster"},
]

with DAG(
    dag_id="flux2_daily_content",
    schedule="@daily",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    params={"output_dir": Param("kie_images", type="string", description="A folder, or s3://connection@bucket/prefix")},
    # Retries never pay twice: the next try continues with the same Kie task (Airflow 3.3 and later).
    default_args={"retries": 2, "retry_delay": pendulum.duration(seconds=10)},
    tags=["kie", "flux-2"],
    doc_md=__doc__,
):
    folder = "{{ params.output_dir }}/{{ dag_run.run_after.strftime('%Y%m%dT%H%M%S') }}"

    @task
    def write_prompts(day: str) -> list[str]:
        """Turn the plan into prompts; an LLM could do this."""
        return [f"{item['topic']}, {item['style']}, the {item['slot']} of {day}" for item in PLAN]

    prompts = write_prompts("{{ dag_run.run_after | ds }}")

    images = Flux2GenerateImageOperator.partial(
        task_id="image", aspect_ratio="4:3", target=folder, deferrable=True
    ).expand(prompt=prompts)

    KieContactSheetOperator(
        task_id="contact_sheet",
        results=images.output,
        prompts=prompts,
        target=folder,
        title="Today's illustrations",
        outlets=[Asset("flux2_images")],
        trigger_rule="all_done",  # the sheet shows a refused prompt as missing
    )
