"""Which task instance was in which state from when on: the metadata database itself takes notes.

A trigger in the database writes down every change of a task instance's state, to the millisecond. So no look comes too
late, and nothing asks Airflow while it is being measured.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.database import Database

_NOTE = "INSERT INTO bench_note (dag_id, run_id, task_id, map_index, state, at)"
_VALUES = "new.dag_id, new.run_id, new.task_id, new.map_index, new.state"
_COLUMNS = "dag_id TEXT, run_id TEXT, task_id TEXT, map_index INTEGER, state TEXT, at DOUBLE PRECISION"
_SQLITE = (
    f"CREATE TABLE bench_note (id INTEGER PRIMARY KEY, {_COLUMNS})",
    f"""
    CREATE TRIGGER bench_change AFTER UPDATE OF state ON task_instance WHEN new.state IS NOT old.state BEGIN
        {_NOTE} VALUES ({_VALUES}, (julianday('now') - 2440587.5) * 86400.0);
    END
    """,
)
_POSTGRESQL = (
    f"CREATE TABLE bench_note (id SERIAL PRIMARY KEY, {_COLUMNS})",
    f"""
    CREATE FUNCTION bench_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        {_NOTE} VALUES ({_VALUES}, extract(epoch FROM clock_timestamp()));
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER bench_change AFTER UPDATE OF state ON task_instance FOR EACH ROW
        WHEN (new.state IS DISTINCT FROM old.state) EXECUTE FUNCTION bench_change()
    """,
)
#: Every state that a task instance has taken, and when, in epoch seconds.
History = list[tuple[str, float]]


class SlotBook:
    """The notes in a database of Airflow's.

    :param database: migrated.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        with database.transaction() as connection:
            for statement in _SQLITE if database.is_sqlite else _POSTGRESQL:
                connection.exec_driver_sql(statement)

    def histories(self, dag_id: str, run_id: str) -> dict[tuple[str, int], History]:
        """Return the states of a run's task instances, by task id and map index."""
        query = "SELECT task_id, map_index, state, at FROM bench_note WHERE dag_id = ? AND run_id = ? ORDER BY id"
        histories = defaultdict(list)
        for task_id, map_index, state, at in self._database.query(query, dag_id, run_id):
            histories[task_id, map_index].append((state, at))
        return histories

    def running(self, dag_id: str, run_id: str) -> tuple[float, int]:
        """Return how long the task instances of a run were running, summed up, and how often they began to."""
        phases = [
            ended - began
            for history in self.histories(dag_id, run_id).values()
            for (state, began), (_, ended) in itertools.pairwise(history)
            if state == "running"
        ]
        return sum(phases), len(phases)

    def run_state(self, dag_id: str, run_id: str) -> str:
        """Return the state of a run."""
        query = "SELECT state FROM dag_run WHERE dag_id = ? AND run_id = ?"
        return str(self._database.query(query, dag_id, run_id)[0][0])

    def is_busy(self) -> bool:
        """Whether any task instance has a worker, or is about to get one."""
        query = "SELECT count(*) FROM task_instance WHERE state IN ('queued', 'running')"
        return bool(self._database.query(query)[0][0])
