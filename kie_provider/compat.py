"""Every difference between the Airflow versions that this provider supports, each with the version that ends it.

Airflow 3.1 is the oldest. Once the lower bound in ``pyproject.toml`` reaches the version named at a function, the
function goes and its newer branch stays.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection, Context, ObjectStoragePath


def connection_form() -> dict[str, object]:
    """Return what ``get_ui_field_behaviour`` of a hook returns. Until 3.2, which reads the provider info instead."""
    from kie_provider.get_provider_info import UI_FIELD_BEHAVIOUR

    return {name.replace("-", "_"): value for name, value in UI_FIELD_BEHAVIOUR.items()}


def connection_form_widgets() -> dict[str, object]:
    """Return what ``get_connection_form_widgets`` of a hook returns. Until 3.2, which reads the provider info instead.

    Airflow 3.1 brings wtforms only with the FAB provider; without it the form has the standard fields, and the extras
    go into its JSON field.
    """
    try:
        from wtforms import IntegerField, PasswordField, StringField
    except ImportError:
        return {}
    from kie_provider.get_provider_info import CONN_FIELDS

    fields = {"integer": IntegerField, "string": StringField, "password": PasswordField}
    return {
        name: fields[field["schema"].get("format", field["schema"]["type"][0])](
            field["label"], description=field["description"]
        )
        for name, field in CONN_FIELDS.items()
    }


def deferral_errors() -> tuple[type[Exception], type[Exception]]:
    """Return what a task is resumed with when its trigger crashed, could not be loaded, or took too long.

    Until 3.2, which has them in ``airflow.sdk.exceptions`` only.
    """
    from airflow.sdk import exceptions

    if hasattr(exceptions, "TaskDeferralError"):
        return exceptions.TaskDeferralError, exceptions.TaskDeferralTimeout
    from airflow.exceptions import TaskDeferralError, TaskDeferralTimeout

    return TaskDeferralError, TaskDeferralTimeout


def task_state_store(context: Context) -> object:
    """Return Airflow's store of the running task instance; None if there is none. Until 3.3, which brought it."""
    return context.get("task_state_store")


def has_login_cookie() -> bool:
    """Whether Airflow knows who looks at a page in a frame of its UI. Until 3.1.1, which reads the login cookie."""
    from airflow import __version__
    from packaging.version import Version

    return Version(__version__) >= Version("3.1.1")


def path_conn_id(path: ObjectStoragePath) -> str | None:
    """Return the connection id in a path. Until 3.2: before, it is among the path's storage options only."""
    conn_id: str | None = getattr(path, "conn_id", None) or path.storage_options.get("conn_id")
    return conn_id


def run_ids(run_id: str) -> tuple[str, ...]:
    """Return the run ids that a link may mean. Until 3.2, which encodes the plus sign of a run id in its links."""
    return (run_id, run_id.replace(" ", "+")) if " " in run_id else (run_id,)


async def aget_connection(conn_id: str) -> Connection:
    """Return a connection on the event loop.

    Until 3.3.2, which brought ``aextra_dejson``: before, the coroutine masks secrets with a synchronous call to the
    supervisor and can fail with DeadlockImminentError. A thread may block.

    :raises AirflowNotFoundException: there is no such connection.
    """
    from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook, Connection
    from asgiref.sync import sync_to_async

    if hasattr(Connection, "aextra_dejson"):
        # Under dag.test() it never finds a connection that is in the database; a thread does.
        with contextlib.suppress(AirflowNotFoundException):
            return await BaseHook.aget_connection(conn_id)

    return await sync_to_async(BaseHook.get_connection)(conn_id)
