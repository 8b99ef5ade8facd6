# ruff: noqa: INP001
"""A task that uses the images of a batch."""

import json

from airflow.sdk import ObjectStoragePath, task


@task
def paths_by_prompt(batch: dict) -> dict[str, str]:
    """Return the path of each saved image by its prompt."""
    items = json.loads(ObjectStoragePath(batch["manifest"]).read_text())["items"]
    return {item["input"]["prompt"]: item["files"][0]["path"] for item in items if item["outcome"] == "saved"}
