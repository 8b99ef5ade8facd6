"""From an Airflow connection to an :class:`~kie_provider.client.endpoint.Endpoint`."""

from __future__ import annotations

import asyncio
import json
import re
import time
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

from kie_provider.client.endpoint import Endpoint
from kie_provider.client.errors import KieConnectionError, KieConnectionNotFoundError
from kie_provider.client.plain import got, is_blank, shorten
from kie_provider.compat import aget_connection
from kie_provider.config import callback_base_url
from kie_provider.execution_timeout import held

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

CONN_TYPE = "kie"
#: Triggers that start within this many seconds of each other read a connection once.
SHARED_SECONDS = 60.0


def read_endpoint(conn_id: str) -> Endpoint:
    """Read an Airflow connection; ``execution_timeout`` is held back meanwhile.

    :raises KieConnectionNotFoundError: Airflow does not find it: there is none, or its database is away.
    :raises KieConnectionError: a field of it is not valid.
    """
    if is_blank(conn_id) or not isinstance(conn_id, str):
        raise KieConnectionError(f"kie_conn_id: must be the id of an Airflow connection, {got(conn_id)}")
    try:
        with held():
            connection = BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        raise no_connection(conn_id) from None
    return endpoint_from_connection(connection)


def read_endpoint_outside_tasks(conn_id: str) -> Endpoint | None:
    """Read an Airflow connection in the API server, or in a command of ``airflow``; None: there is no such connection.

    ``BaseHook.get_connection`` is for tasks: in a command, and in the API server of Airflow 3.1, it does not find what
    is in the database.

    :raises KieConnectionError: a field of it is not valid.
    """
    from airflow.models.connection import Connection
    from airflow.utils.session import create_session
    from sqlalchemy import text

    try:
        connection = Connection.get_connection_from_secrets(conn_id)
    except AirflowNotFoundException:
        with create_session() as session:  # Airflow says the same while its database is away
            session.execute(text("SELECT 1"))
        return None
    return endpoint_from_connection(connection)


def endpoint_from_connection(connection: Connection) -> Endpoint:
    """Read and check the fields of an Airflow connection.

    :raises KieConnectionError: it is of another type, or a field is not valid; the message names it.
    """
    if connection.conn_type != CONN_TYPE:  # its password is no key of Kie's, and its host is not Kie
        raise KieConnectionError(
            f"connection {connection.conn_id!r}: conn_type: must be {CONN_TYPE!r}, got {connection.conn_type!r}"
        )
    extra = _extra(connection)
    fields: dict[str, Any] = {
        "host": _base_url(connection.host, connection.schema, connection.port),
        "upload_host": _base_url(extra.get("upload_host")),
        "request_timeout": extra.get("request_timeout"),
        "submit_limit": extra.get("submit_limit"),
        "callback_base_url": _stripped(extra.get("callback_base_url")),
        "webhook_secret": _stripped(extra.get("webhook_secret")),
    }
    if is_blank(fields["callback_base_url"]):
        fields["callback_base_url"] = callback_base_url()
    try:
        return Endpoint(
            api_key=(connection.password or "").strip(),
            **{name: value for name, value in fields.items() if not is_blank(value)},
        )
    except KieConnectionError as error:
        raise KieConnectionError(f"connection {connection.conn_id!r}: {error.message}") from None


def _extra(connection: Connection) -> Mapping[str, object]:
    # Not extra_dejson: it masks secrets with a blocking call, which must not happen on the triggerer's event loop.
    try:
        extra = json.loads(connection.extra or "{}")
    except (ValueError, RecursionError):
        extra = None
    if not isinstance(extra, Mapping):
        raise KieConnectionError(f"connection {connection.conn_id!r}: extra: must be a JSON object")
    return extra


def _stripped(value: object) -> object:
    return value.strip() if isinstance(value, str) else value


def _base_url(value: object, schema: str | None = None, port: int | None = None) -> str:
    host = str(value or "").strip()
    if host in ("", "None"):
        return ""
    if "://" not in host:
        host = f"{schema or 'https'}://{host}"
    host = host.rstrip("/")
    if port:  # a form sends 0 for none
        try:
            parts = urlsplit(host)
        except ValueError:  # the endpoint refuses it
            return host
        if parts.netloc.rpartition("]")[2].count(":") == 0:  # no port of its own (brackets: IPv6)
            return parts._replace(netloc=f"{parts.netloc}:{port}").geturl()
    return host


def no_connection(conn_id: str) -> KieConnectionNotFoundError:
    """Return the error that there is no such Airflow connection; it says how to make one."""
    missing = f"there is no Airflow connection {shorten(conn_id)}"
    if not re.fullmatch(r"[\w.@:+-]{1,60}", conn_id):
        return KieConnectionNotFoundError(missing)
    return KieConnectionNotFoundError(
        f"{missing}. Create it in Admin > Connections, or with: "
        f"airflow connections add {conn_id} --conn-type kie --conn-password <API key>"
    )


class _SharedEndpoint:
    """One connection, as all triggers of an event loop see it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.endpoint: Endpoint | None = None
        self.read_at = 0.0


_shared_endpoints: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _SharedEndpoint]] = (
    weakref.WeakKeyDictionary()
)


async def aread_endpoint(conn_id: str, refused: Endpoint | None = None) -> Endpoint:
    """Read a connection on the event loop, or return what another trigger has read within the last minute.

    A thousand triggers that start together, as after a restart of the triggerer, ask Airflow once.

    :param refused: an endpoint whose key Kie has refused: it is not returned again, but read anew.
    :raises KieConnectionNotFoundError: Airflow does not find it: there is none, or its database is away.
    :raises KieConnectionError: a field of it is not valid.
    """
    connections = _shared_endpoints.setdefault(asyncio.get_running_loop(), {})
    shared = connections.setdefault(conn_id, _SharedEndpoint())
    async with shared.lock:
        is_stale = time.monotonic() - shared.read_at > SHARED_SECONDS
        if shared.endpoint is None or shared.endpoint is refused or is_stale:
            try:
                connection = await aget_connection(conn_id)
            except AirflowNotFoundException:
                raise no_connection(conn_id) from None
            shared.endpoint, shared.read_at = endpoint_from_connection(connection), time.monotonic()
        return shared.endpoint
