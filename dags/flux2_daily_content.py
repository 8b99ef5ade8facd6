"""A day's illustrations.

An editorial plan becomes prompts, each prompt an image, and all images one contact sheet.

Every prompt has a task group of its own (image, download), so that a failed one holds up no other: mapping the two
steps separately would let one refused prompt strand the paid images of all the rest.
"""

import json
from pathlib import Path

import pendulum
from airflow.sdk import DAG, Param, XComArg, task, task_group

from kie_provider.contact_sheet import SheetItem, write_html, write_png
from kie_provider.hooks.kie import KieHook
from kie_provider.operators.flux2 import Flux2GenerateImageOperator

PLAN = [
    {"slot": "cover", "topic": "a lighthouse above a stormy sea", "style": "oil painting"},
    {"slot": "news", "topic": "a night market in a rainy city", "style": "cinematic photograph"},
    {"slot": "science", "topic": "a forest of giant glowing mushrooms", "style": "paper cut-out"},
    {"slot": "travel", "topic": "terraced hills at sunrise", "style": "flat poster"},
]

DAY = "{{ (logical_date | default(dag_run.run_after)) | ds }}"
FOLDER = "{{ params.output_dir }}/{{ dag_run.run_after.strftime('%Y%m%dT%H%M%S') }}"

with DAG(
    dag_id="flux2_daily_content",
    schedule="@daily",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    params={
        "output_dir": Param(
            "kie_images", type="string", description="Folder on the worker; each run makes a subfolder."
        )
    },
    # Retries pay nothing twice: the next try goes on with the same Kie task (Airflow 3.3 and later).
    default_args={"retries": 2, "retry_delay": pendulum.duration(seconds=10)},
    tags=["kie", "flux-2"],
    doc_md=__doc__,
):

    @task
    def write_prompts(day: str) -> list[str]:
        """Turn the plan into prompts; an LLM could do this."""
        return [f"{item['topic']}, {item['style']}, the {item['slot']} of {day}" for item in PLAN]

    @task
    def download(prompt: str, result: dict, folder: str) -> dict:
        """Save the image at once: Kie's links can die within a day. The file host does not get the key."""
        url = result["urls"][0]
        file = Path(folder).absolute() / f"{result['kie_task_id']}{Path(url).suffix}"
        with KieHook() as hook:
            hook.download_file(url, file)
        return result | {"prompt": prompt, "file": str(file)}

    @task_group
    def make_image(prompt: str) -> XComArg:
        """One image from prompt to file."""
        image = Flux2GenerateImageOperator(task_id="image", prompt=prompt, aspect_ratio="4:3", deferrable=True)
        return download(prompt, image.output, FOLDER)

    @task(trigger_rule="all_done")
    def contact_sheet(prompts: list[str], images: list[dict], folder: str) -> str:
        """Show every prompt with its image, or the gap it left."""
        made = {image["prompt"]: image for image in images if isinstance(image, dict)}  # 3.1 fills gaps, see manifest
        items = [
            SheetItem(prompt, Path(image["file"]), f"{image['credits_consumed']:g} credits, {image['cost_seconds']} s")
            if (image := made.get(prompt))
            else SheetItem(prompt, note="failed: see the logs of its task group")
            for prompt in prompts
        ]
        base = Path(folder).absolute()
        base.mkdir(parents=True, exist_ok=True)
        write_png(items, base / "contact_sheet.png")
        return str(write_html(items, base / "contact_sheet.html", "Today's illustrations"))

    @task(trigger_rule="all_done")
    def manifest(images: list[dict], folder: str) -> str:
        """List what was made, for whoever comes next."""
        path = Path(folder).absolute() / "manifest.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Airflow 3.1 puts a placeholder where a mapped task has returned nothing; later ones leave it out.
        made = [image for image in images if isinstance(image, dict)]
        path.write_text(json.dumps(made, indent=2), encoding="utf-8")
        return str(path)

    all_prompts = write_prompts(DAY)
    all_images = make_image.expand(prompt=all_prompts)
    contact_sheet(all_prompts, all_images, FOLDER)
    manifest(all_images, FOLDER)
