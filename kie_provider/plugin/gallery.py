"""The routes of the image page. Each requires a user; those of a DAG require the right to read its XComs."""

# No "from __future__ import annotations": FastAPI reads the annotations.

import secrets
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Annotated

from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, Response, StreamingResponse

from kie_provider.compat import run_ids
from kie_provider.config import shown_prices
from kie_provider.files.media import EXTENSIONS
from kie_provider.plugin import page, query, stored
from kie_provider.plugin.pictures import STATES, file_of, pictures_of

#: Task instances that a page shows at most; it says if there are more.
MOST = 5000
_POLICY = "default-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'; img-src 'self'"
_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "private, no-cache"}

app = FastAPI(title="Kie.ai images", docs_url=None, redoc_url=None, openapi_url=None)
_manifests = stored.Manifests()
_ACCESS = [Depends(requires_access_dag("GET", DagAccessEntity.XCOM))]

Text = Annotated[str, Query(max_length=500)]
PageNumber = Annotated[int, Query(alias="page", ge=1, le=1_000_000)]


@app.get("/")
def show_all(
    request: Request,
    user: GetUserDep,
    dag: Text = "",
    state: Text = "",
    days: int = 7,
    q: Text = "",
    page_number: PageNumber = 1,
) -> Response:
    """Show the latest images of all DAGs whose XComs the user may read."""
    days = min(max(days, 1), max(page.DAYS))
    view = page.View(dag, state if state in STATES else "", days, q, page_number)
    since = datetime.now(timezone.utc) - timedelta(days=days)
    dags = query.readable_dags(user, since, _may_read(request, user))
    outputs = query.latest([each for each in dags if dag in ("", each)], since, MOST)
    pictures = pictures_of(outputs, _manifests.read, shown_prices())
    limit = MOST if len(outputs) == MOST else None
    return _html(lambda nonce: page.all_page(pictures, view, dags=dags, nonce=nonce, limit=limit))


@app.get("/dags/{dag_id}/run", dependencies=_ACCESS)
def show_run(
    dag_id: str,
    run_id: Text,
    task_id: Text | None = None,
    map_index: int | None = None,
    state: Text = "",
    page_number: PageNumber = 1,
) -> Response:
    """Show the images of a run, or of one task instance in it."""
    for meant in run_ids(run_id):
        if outputs := query.of_run(dag_id, meant, task_id, map_index, limit=MOST):
            run_id = meant
            break
    pictures = pictures_of(outputs, _manifests.read, shown_prices())
    view = page.View(state=state if state in STATES else "", page=page_number)
    task = None if task_id is None else (task_id, map_index)
    limit = MOST if len(outputs) == MOST else None
    return _html(
        lambda nonce: page.run_page(pictures, view, dag_id=dag_id, run_id=run_id, task=task, nonce=nonce, limit=limit)
    )


@app.get("/dags/{dag_id}/file", dependencies=_ACCESS)
def send_file(
    request: Request,
    dag_id: str,
    run_id: Text,
    task_id: Text,
    map_index: int = -1,
    item: int = -1,
    number: int = 0,
    thumb: bool = False,
    download: bool = False,
) -> Response:
    """Send an image, or its thumbnail, that a task instance has saved."""
    output = query.one((dag_id, run_id, task_id, map_index))
    file = None if output is None else file_of(output, item, number, _manifests.read)
    if output is None or file is None:
        raise HTTPException(404, "There is no such image")
    path = file.thumbnail if thumb else file.path
    tag = f'"{file.version}{"t" if thumb else ""}"'
    if file.version and request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={**_HEADERS, "ETag": tag})
    try:
        stream, media_type = stored.open_file(file, path, output)
    except stored.NotShownError as error:
        headers = {**_HEADERS, "Content-Security-Policy": _POLICY}
        return Response(page.placeholder(str(error)), 404, headers, media_type="image/svg+xml")
    is_shown = media_type in stored.SHOWN_TYPES
    headers = {**_HEADERS, "Content-Security-Policy": f"{_POLICY}; sandbox", "ETag": tag}
    if download or not is_shown:
        name = f"{file.kie_task_id or 'image'}-{number}.{EXTENSIONS[media_type]}"
        safe = "".join(each if each.isascii() and (each.isalnum() or each in "-_.") else "_" for each in name)
        headers["Content-Disposition"] = f'attachment; filename="{safe}"'
    return StreamingResponse(
        stored.blocks(stream), headers=headers, media_type=media_type if is_shown else "application/octet-stream"
    )


def _may_read(request: Request, user: BaseUser) -> Callable[[str], bool]:
    """Return a function that says whether the user may read the XComs of a DAG, checked as by Airflow's own routes."""

    def may_read(dag_id: str) -> bool:
        try:
            requires_access_dag("GET", DagAccessEntity.XCOM, dag_id)(request, user)
        except HTTPException:
            return False
        return True

    return may_read


def _html(draw: Callable[[str], str]) -> Response:
    nonce = secrets.token_urlsafe(16)
    policy = f"{_POLICY}; style-src 'unsafe-inline'; script-src 'nonce-{nonce}'"
    return HTMLResponse(draw(nonce), headers={**_HEADERS, "Content-Security-Policy": policy})
