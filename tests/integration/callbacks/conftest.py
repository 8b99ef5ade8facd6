"""The receiver behind a real HTTP server, over a real database with task instances that wait."""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from importlib.util import find_spec
from typing import Any

import pytest
import requests
import uvicorn
from airflow.sdk import BaseOperator
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from kie_provider.client import webhook
from kie_provider.client.endpoint import Endpoint
from tests.support.airflow_inprocess import initialise_database, new_dag, run_dag

API_KEY, SECRET = "the-api-key-of-account-17", "the-webhook-secret-of-account-17"
CONN_ID = "kie_receiver"
ENDPOINT = Endpoint(API_KEY, webhook_secret=SECRET)
#: Airflow keeps task states since 3.3.
HAS_STORE = find_spec("airflow.state") is not None
OTHER_TASK = "f" * 32
SINGLE, BATCH = "kie_provider.triggers.kie.KieTaskTrigger", "kie_provider.triggers.batch.KieBatchTrigger"


class Nothing(BaseOperator):
    """A task whose state is what a test makes of it."""

    def execute(self, context: Any) -> None:
        """Do nothing."""


@dataclass
class Waiting:
    """A task instance and the submission that it waits for."""

    ti_id: str
    scope: tuple[str, str, str, int]
    nonce: str
    kie_task_id: str

    def reference(self, conn_id: str = CONN_ID, endpoint: Endpoint = ENDPOINT, **changes: str) -> str:
        """What its callback URL ends in."""
        fields = {"ti_id": self.ti_id, "nonce": self.nonce} | changes
        return webhook.make_reference(webhook.derive_key(endpoint), conn_id, **fields)

    @property
    def state(self) -> str:
        """How Airflow has it now."""
        return str(self._row().state)

    @property
    def resumed_with(self) -> Any:
        """The event that it goes on with; None: it was not woken."""
        kwargs = self._row().next_kwargs
        return None if not kwargs else json.loads(json.dumps(kwargs)).get("event")

    @property
    def inbox(self) -> Any:
        """What its next try reads of the callback."""
        if not HAS_STORE:
            return None
        from airflow.state import TaskScope, get_state_backend

        value = get_state_backend().get(TaskScope(*self.scope), webhook.callback_key(self.nonce))
        return None if value is None else json.loads(value)

    @property
    def is_noted(self) -> bool:
        """Whether the callback was written down, where Airflow has a place for it."""
        return not HAS_STORE or (self.inbox or {}).get("kie_task_id") == self.kie_task_id

    def _row(self) -> Any:
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session

        dag_id, run_id, task_id, map_index = self.scope
        with create_session() as session:
            found = session.query(TaskInstance.state, TaskInstance.next_kwargs).filter_by(
                dag_id=dag_id, run_id=run_id, task_id=task_id, map_index=map_index
            )
            return found.one()


@pytest.fixture(scope="session", autouse=True)
def _airflow_database():
    initialise_database()


@pytest.fixture
def wait():
    """Return what makes a task instance wait, deferred for so many seconds."""
    return _wait


def _wait(deferred_for: float = 60.0, classpath: str = SINGLE, **columns: Any) -> Waiting:
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.trigger import Trigger
    from airflow.utils.session import create_session

    with new_dag() as dag:
        Nothing(task_id="it")
    run_dag(dag)
    with create_session() as session:
        ti = session.query(TaskInstance).filter_by(dag_id=dag.dag_id).one()
        then = datetime.now(timezone.utc) - timedelta(seconds=deferred_for)
        trigger = Trigger(classpath, {}, created_date=then)
        session.add(trigger)
        session.flush()
        for name, value in {"state": "deferred", "trigger_id": trigger.id, "next_method": "go_on", **columns}.items():
            setattr(ti, name, value)
        scope = (ti.dag_id, ti.run_id, ti.task_id, ti.map_index)
        return Waiting(str(ti.id), scope, webhook.new_nonce(), uuid.uuid4().hex)


@dataclass
class Receiver:
    """The receiver, as the internet reaches it."""

    url: str
    session: requests.Session

    def call(
        self, reference: str, kie_task_id: str, *, secret: str | None = SECRET, now: float | None = None, **options: Any
    ) -> requests.Response:
        """Call as Kie does; without a secret, unsigned."""
        body = {"code": 200, "msg": "Playground task completed successfully.", "data": {"taskId": kie_task_id}}
        headers = {} if secret is None else webhook.sign(secret, kie_task_id, time.time() if now is None else now)
        return self.post(reference, **{"json": body, "headers": headers, **options})

    def post(self, reference: str, **options: Any) -> requests.Response:
        """Send anything."""
        return self.session.post(f"{self.url}/kie/callbacks/{reference}", timeout=30, **options)


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch):
    from kie_provider.plugin import callbacks

    extra = {"webhook_secret": SECRET}
    monkeypatch.setenv(
        f"AIRFLOW_CONN_{CONN_ID.upper()}", json.dumps({"conn_type": "kie", "password": API_KEY, "extra": extra})
    )
    monkeypatch.setattr(callbacks, "_connections", callbacks._Connections())
    routes = [
        Mount("/air/kie/callbacks", callbacks.app),
        Mount("/kie/callbacks", callbacks.app),
        Route("/{path:path}", lambda request: PlainTextResponse("here"), methods=["GET", "POST", "PUT"]),
    ]
    config = uvicorn.Config(Starlette(routes=routes), host="127.0.0.1", port=0, log_config=None, lifespan="off")
    logging.getLogger("uvicorn.access").setLevel(logging.INFO)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with requests.Session() as session:
            session.trust_env = False
            yield Receiver(f"http://127.0.0.1:{port}/air", session)
    finally:
        server.should_exit = True
        thread.join()
