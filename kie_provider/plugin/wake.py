"""What a callback does to Airflow: a note for the submission, and a push for the tasks that wait.

Nothing else of the receiver touches Airflow's internal models. They exist alike in Airflow 3.1 to 3.3, but for the
store of task states, which 3.3 brought. Where one is missing or has changed, nobody is woken and the tasks poll.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple
from uuid import UUID

from airflow.models.taskinstance import TaskInstance
from airflow.models.taskinstancehistory import TaskInstanceHistory
from airflow.models.trigger import Trigger, handle_event_submit
from airflow.models.xcom import XComModel
from airflow.triggers.base import TriggerEvent
from airflow.utils.session import create_session
from airflow.utils.state import TaskInstanceState
from sqlalchemy import select, update

from kie_provider.client.webhook import Reference, callback_fact, waiting_key

get_state_backend: Any = None
with suppress(ImportError):  # before Airflow 3.3
    from airflow.state import TaskScope, get_state_backend

log = logging.getLogger(__name__)

#: A task that is woken right after its deferral is marked failed by the scheduler, which then learns of the end of the
#: worker's process too late. Seconds; a younger deferral is left to the first poll.
YOUNGEST_DEFERRAL = 10.0
#: As long as Kie keeps the record of a task.
KEPT = timedelta(days=60)
#: Triggers of one Kie task; those of batches wait for many, and are not worth a worker for each.
_OURS = "kie_provider.triggers.kie."
_MOST_SENSORS = 16


class _Scope(NamedTuple):
    """A task instance, whichever try it is at."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int


def deliver(reference: Reference, kie_task_id: str, now: float) -> bool:
    """Write down that Kie has called for a submission, and wake the tasks that wait for its Kie task.

    All that is believed is that the caller knows the reference, so nothing but a poll may follow from it.

    :param now: epoch seconds.
    :return: whether Airflow knows the task instance.
    """
    with create_session() as session:
        scope = _find(session, reference.ti_id)
        if scope is None:
            return False
        if get_state_backend is not None:
            _note(session, scope, callback_fact(reference.nonce, kie_task_id, now))
        waiting = {scope, *_sensors(session, kie_task_id)}
    for each in sorted(waiting):
        with create_session() as session:
            if _wake(session, each):
                log.info("Kie has called for task %s: woke %s", kie_task_id, "/".join(map(str, each)))
    return True


def _find(session: Any, ti_id: str) -> _Scope | None:
    """Find a task instance by the UUID of any of its tries."""
    for model, column in (
        (TaskInstance, TaskInstance.id),
        (TaskInstanceHistory, TaskInstanceHistory.task_instance_id),
    ):
        value = UUID(ti_id) if column.type.python_type is UUID else ti_id  # text in Airflow 3.1
        row = session.execute(select(*_columns(model)).where(column == value)).first()
        if row is not None:
            return _Scope(*row)
    return None


def _note(session: Any, scope: _Scope, fact: dict[str, Any]) -> None:
    """Write under a key of its own, which no worker writes. The first call stands: Kie's comes before it can leak."""
    task_scope = TaskScope(**scope._asdict())
    if get_state_backend().get(task_scope, fact["key"], session=session) is None:
        expires_at = datetime.now(timezone.utc) + KEPT
        get_state_backend().set(task_scope, fact["key"], json.dumps(fact), expires_at=expires_at, session=session)


def _sensors(session: Any, kie_task_id: str) -> Iterator[_Scope]:
    """Yield the task instances that wait for a Kie task of another task instance."""
    statement = select(*_columns(XComModel)).where(XComModel.key == waiting_key(kie_task_id)).limit(_MOST_SENSORS)
    for row in session.execute(statement):
        yield _Scope(*row)


def _wake(session: Any, scope: _Scope) -> bool:
    """Let a deferred task go on, if it is time and nobody else is at it."""
    is_it = [column == value for column, value in zip(_columns(TaskInstance), scope, strict=True)]
    is_it.append(TaskInstance.state == TaskInstanceState.DEFERRED)
    ti = session.scalar(select(TaskInstance).where(*is_it).with_for_update(of=TaskInstance, skip_locked=True))
    trigger = session.get(Trigger, ti.trigger_id) if ti is not None and ti.trigger_id is not None else None
    if trigger is None or not trigger.classpath.startswith(_OURS):
        return False
    if datetime.now(timezone.utc) - trigger.created_date < timedelta(seconds=YOUNGEST_DEFERRAL):
        return False
    # SQLite has no row locks, but lets one write at a time.
    claim = update(TaskInstance).where(*is_it).values(updated_at=datetime.now(timezone.utc))
    if session.execute(claim.execution_options(synchronize_session=False)).rowcount != 1:
        return False
    handle_event_submit(TriggerEvent({"status": "called"}), task_instance=ti, session=session)
    return True


def _columns(source: Any) -> tuple[Any, Any, Any, Any]:
    return source.dag_id, source.run_id, source.task_id, source.map_index
