"""Previews of new images: runs when the asset `flux2_images` has new files."""

import pendulum
from airflow.sdk import DAG, Asset, ObjectStoragePath, task

IMAGES = Asset("flux2_images")

with DAG(
    dag_id="flux2_asset_downstream",
    schedule=[IMAGES],
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    default_args={"retries": 2, "retry_delay": pendulum.duration(seconds=10)},
    tags=["kie", "flux-2"],
    doc_md=__doc__,
):

    @task
    def new_images(triggering_asset_events=None) -> list[str]:  # noqa: ANN001
        """List the files of all events; each has those of one image or of a whole contact sheet."""
        return [file["path"] for event in triggering_asset_events[IMAGES] for file in event.extra["files"]]

    @task
    def make_preview(path: str) -> str:
        """Write a small WebP next to the image."""
        from PIL import Image

        source = ObjectStoragePath(path)
        preview = source.parent / f"{source.stem}.preview.webp"
        with source.open("rb") as file, Image.open(file) as image, preview.open("wb") as out:
            image.thumbnail((512, 512))
            image.save(out, "WEBP")
        return str(preview)

    make_preview.expand(path=new_images())
