"""Callbacks that come at the worst moment: when Airflow has just deferred the task."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import requests

from kie_provider.client.webhook import CALLBACKS, parse_reference
from tests.support.airflow_rest import epoch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kie_provider.emulator import KieEmulator
    from tests.support.airflow_stack import AirflowStack

LOOK_SECONDS = 0.05
DEFERRED = """
SELECT task_instance.id, trigger.created_date FROM task_instance JOIN trigger ON trigger.id = task_instance.trigger_id
WHERE task_instance.dag_id = ? AND task_instance.state = 'deferred'
"""


def add_connection(stack: AirflowStack, kie: KieEmulator, conn_id: str, **extra: Any) -> None:
    """Create a connection to an emulator in Airflow.

    :param extra: further fields, such as ``callback_base_url``.
    """
    connection = {**kie.connection, "extra": json.dumps({**kie.connection["extra"], **extra})}
    stack.api("POST", "/connections", {"connection_id": conn_id, **connection})


class EarlyCaller:
    """Calls back for each task of a DAG as soon as that is deferred; what Kie itself sends comes besides.

    :ivar called: seconds from each deferral to its callback.
    :ivar answers: the status codes of these answers.
    """

    def __init__(self, stack: AirflowStack, kie: KieEmulator, dag_id: str) -> None:
        self.called: list[float] = []
        self.answers: list[int] = []
        self._stack, self._kie, self._dag_id = stack, kie, dag_id
        self._done: set[str] = set()
        self._over = threading.Event()

    @contextlib.contextmanager
    def calling(self) -> Iterator[None]:
        """Call for the duration of the block."""
        with ThreadPoolExecutor(1) as pool:
            calling = pool.submit(self._call_all)
            try:
                yield
            finally:
                self._over.set()
            calling.result()

    def _call_all(self) -> None:
        with requests.Session() as session:
            session.trust_env = False
            while not self._over.wait(LOOK_SECONDS):
                for ti_id, since in self._stack.database.query(DEFERRED, self._dag_id):
                    if (key := str(ti_id).replace("-", "")) not in self._done:
                        self._done.add(key)
                        self._call(session, key, epoch(str(since)))

    def _call(self, session: requests.Session, ti_key: str, since: float) -> None:
        tasks = list(self._kie._server.world.account.tasks.values())
        for task in tasks:
            reference = parse_reference((task.request.callback_url or "").partition(CALLBACKS)[2])
            if reference is not None and reference.ti_id.replace("-", "") == ti_key:
                body = {"code": 200, "data": {"taskId": task.id}}
                self.called.append(time.time() - since)
                self.answers.append(session.post(task.request.callback_url, json=body, timeout=30).status_code)
