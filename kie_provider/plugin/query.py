"""Read from Airflow's database; the only module here that uses Airflow's internal models and auth manager.

All that is used exists alike in Airflow 3.1 to 3.3. Task instances of this provider are found by the XCom of their
button, which Airflow pushes whenever a task stops running, however that ends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.models.renderedtifields import RenderedTaskInstanceFields
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from sqlalchemy import and_, or_, select, tuple_
from sqlalchemy.orm import Session, aliased

from kie_provider.links import IMAGES_XCOM_KEY
from kie_provider.plugin.outputs import CREATORS, FOLLOWERS, MORE_KEYS, RESULT_KEY, Key, TaskOutput

_KEYS_AT_ONCE = 200  # SQLite takes a limited number of parameters


def readable_dags(user: BaseUser, since: datetime, may_read: Callable[[str], bool]) -> list[str]:
    """Return the DAGs with images since a time whose XComs the user may read.

    :param may_read: whether the user may read the XComs of a DAG.
    """
    marked = select(XComModel.dag_id).where(XComModel.key == IMAGES_XCOM_KEY, XComModel.timestamp >= since).distinct()
    with create_session() as session:
        dag_ids = set(session.scalars(marked))
    allowed = get_auth_manager().get_authorized_dag_ids(user=user, method="GET")
    return sorted(dag_id for dag_id in dag_ids & set(allowed) if may_read(dag_id))


def latest(dag_ids: Collection[str], since: datetime, limit: int) -> list[TaskOutput]:
    """Return the output of the task instances of these DAGs since a time, latest first."""
    marked = (
        select(XComModel.dag_run_id, *_columns(XComModel), XComModel.timestamp.label("at"))
        .where(XComModel.key == IMAGES_XCOM_KEY, XComModel.timestamp >= since, XComModel.dag_id.in_(dag_ids))
        .order_by(XComModel.timestamp.desc())
        .limit(limit)
        .subquery()
    )
    instance, value = aliased(TaskInstance), aliased(XComModel)
    statement = (
        select(*_columns(marked.c), instance.operator, instance.state, marked.c.at, value.value)
        .join(instance, and_(*(a == b for a, b in zip(_columns(instance), _columns(marked.c), strict=True))))
        .outerjoin(
            value,
            and_(
                value.dag_run_id == marked.c.dag_run_id,
                value.task_id == marked.c.task_id,
                value.map_index == marked.c.map_index,
                value.key == RESULT_KEY,
            ),
        )
        .order_by(marked.c.at.desc(), *_columns(marked.c))
    )
    with create_session() as session:
        return _complete(session, [_output(row) for row in session.execute(statement)])


def of_run(
    dag_id: str, run_id: str, task_id: str | None = None, map_index: int | None = None, *, limit: int
) -> list[TaskOutput]:
    """Return the output of the task instances of a run, unfinished ones included, by task id and map index."""
    wanted = [TaskInstance.dag_id == dag_id, TaskInstance.run_id == run_id]
    wanted += [] if task_id is None else [TaskInstance.task_id == task_id]
    wanted += [] if map_index is None else [TaskInstance.map_index == map_index]
    is_marked = (
        select(XComModel.task_id)
        .where(
            and_(*(a == b for a, b in zip(_columns(XComModel), _columns(TaskInstance), strict=True))),
            XComModel.key == IMAGES_XCOM_KEY,
        )
        .exists()
    )
    ours = (
        select(*_columns(TaskInstance), TaskInstance.operator, TaskInstance.state, TaskInstance.updated_at.label("at"))
        .where(*wanted, or_(TaskInstance.operator.in_(CREATORS | FOLLOWERS), is_marked))
        .order_by(TaskInstance.task_id, TaskInstance.map_index)
        .limit(limit)
        .subquery()
    )
    value = aliased(XComModel)
    statement = (
        select(*_columns(ours.c), ours.c.operator, ours.c.state, ours.c.at, value.value)
        .outerjoin(
            value,
            and_(*(a == b for a, b in zip(_columns(value), _columns(ours.c), strict=True)), value.key == RESULT_KEY),
        )
        .order_by(ours.c.task_id, ours.c.map_index)
    )
    with create_session() as session:
        return _complete(session, [_output(row) for row in session.execute(statement)])


def one(key: Key) -> TaskOutput | None:
    """Return the output of one task instance, with its rendered template fields; None: there is no such one."""
    dag_id, run_id, task_id, map_index = key
    found = of_run(dag_id, run_id, task_id, map_index, limit=1)
    if not found or found[0].rendered:
        return found[0] if found else None
    with create_session() as session:
        return replace(found[0], rendered=_rendered(session, [key]).get(key, {}))


def _columns(source: Any) -> Sequence[Any]:  # a model, an alias of one, or the columns of a subquery
    return source.dag_id, source.run_id, source.task_id, source.map_index


def _output(row: Any) -> TaskOutput:  # a row of the statements above
    dag_id, run_id, task_id, map_index, operator, state, at, result = row
    values = {} if result is None else {RESULT_KEY: result}
    return TaskOutput(dag_id, run_id, task_id, map_index, operator or "", state and str(state), at, values)


def _complete(session: Session, outputs: list[TaskOutput]) -> list[TaskOutput]:
    """Add other XComs and the rendered template fields, which hold the prompt, to outputs without a result."""
    keys = [output.key for output in outputs if not _is_result(output.values.get(RESULT_KEY))]
    rendered, more = _rendered(session, keys), _more_values(session, keys)
    return [
        replace(output, values={**output.values, **more.get(output.key, {})}, rendered=rendered.get(output.key, {}))
        if output.key in rendered or output.key in more
        else output
        for output in outputs
    ]


def _is_result(value: object) -> bool:
    return isinstance(value, Mapping) and "urls" in value


def _rendered(session: Session, keys: Sequence[Key]) -> dict[Key, Mapping[str, object]]:
    rows = _rows(session, keys, RenderedTaskInstanceFields, RenderedTaskInstanceFields.rendered_fields)
    return {key: fields for key, fields in rows if isinstance(fields, Mapping)}


def _more_values(session: Session, keys: Sequence[Key]) -> dict[Key, dict[str, object]]:
    found: dict[Key, dict[str, object]] = {}
    for key, name, value in _rows(session, keys, XComModel, XComModel.key, XComModel.value):
        if name in MORE_KEYS:
            found.setdefault(key, {})[name] = value
    return found


def _rows(session: Session, keys: Sequence[Key], model: Any, *columns: Any) -> Iterator[tuple[Any, ...]]:
    """Yield key and columns of a table's rows for these task instances."""
    key_columns = _columns(model)
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        wanted = tuple_(*key_columns).in_(keys[start : start + _KEYS_AT_ONCE])
        for dag_id, run_id, task_id, map_index, *values in session.execute(
            select(*key_columns, *columns).where(wanted)
        ):
            yield ((dag_id, run_id, task_id, map_index), *values)
