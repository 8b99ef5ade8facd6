"""Addresses of the image page; all are relative to where Airflow is served, which may be below a path."""

from __future__ import annotations

from urllib.parse import quote, urlencode

#: Where the page of all images is; what belongs to a DAG is below ``dags/``.
IMAGES = "kie/images/"


def run_address(dag_id: str, run_id: str, task_id: str | None = None, map_index: int = -1) -> str:
    """Return the page of a run, or of one task instance in it."""
    query = {"run_id": run_id}
    if task_id is not None:
        query |= {"task_id": task_id, "map_index": str(map_index)}
    return f"{IMAGES}dags/{quote(dag_id, safe='')}/run?{urlencode(query)}"


def airflow_address(dag_id: str, run_id: str, task_id: str | None = None, map_index: int = -1) -> str:
    """Return Airflow's own page of a run, or of a task instance, where its log is."""
    address = f"dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe='')}"
    if task_id is not None:
        address += f"/tasks/{quote(task_id, safe='')}" + (f"/mapped/{map_index}" if map_index >= 0 else "")
    return address
