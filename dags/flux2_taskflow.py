"""TaskFlow: a function returns the prompt, its task returns the image.

A retry does not call the function again once its prompt was submitted, so an LLM in it is paid only once too.
"""

import pendulum
from airflow.sdk import DAG, ObjectStoragePath, Param, task

with DAG(
    dag_id="flux2_taskflow",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    params={"output_dir": Param("kie_images", type="string", description="A folder, or s3://connection@bucket/prefix")},
    default_args={"retries": 2, "retry_delay": pendulum.duration(seconds=10)},
    tags=["kie", "flux-2"],
    doc_md=__doc__,
):

    @task
    def headlines() -> list[str]:
        """List the headlines to illustrate; this could come from a feed or a database."""
        return ["Bees return to the city", "The last night train", "A library under the sea"]

    @task.flux2(target="{{ params.output_dir }}/{{ run_id }}", deferrable=True)
    def illustrate(headline: str) -> dict:
        """Return a prompt, or a dict with a prompt and other inputs."""
        return {"prompt": f"editorial illustration for the headline: {headline}", "aspect_ratio": "16:9"}

    @task
    def publish(image: dict) -> str:
        """Use the file: here, a page that shows it."""
        picture = ObjectStoragePath(image["files"][0]["path"])
        page = picture.with_suffix(".html")
        page.write_text(f"<h1>{image['input']['prompt']}</h1><img src='{picture.name}'>")
        return str(page)

    publish.expand(image=illustrate.expand(headline=headlines()))
