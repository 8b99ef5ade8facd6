"""Which task instance was in which state from when on: the metadata database itself takes notes.

A trigger in SQLite writes down every change of a task instance's state, to the millisecond. So no look comes too late,
and nothing asks Airflow while it is being measured.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_NOW = "(julianday('now') - 2440587.5) * 86400.0"
_NOTES = f"""
CREATE TABLE bench_note (dag_id, run_id, task_id, map_index, state, at);
CREATE TRIGGER bench_change AFTER UPDATE OF state ON task_instance WHEN new.state IS NOT old.state BEGIN
    INSERT INTO bench_note VALUES (new.dag_id, new.run_id, new.task_id, new.map_index, new.state, {_NOW});
END;
"""


class SlotBook:
    """The notes in a database of Airflow's.

    :param database: SQLite, migrated.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        with self._connection() as connection:
            connection.executescript(_NOTES)

    def running(self, dag_id: str, run_id: str) -> tuple[float, int]:
        """Return how long the task instances of a run were running, summed up, and how often they began to."""
        query = "SELECT task_id, map_index, state, at FROM bench_note WHERE dag_id = ? AND run_id = ? ORDER BY rowid"
        histories = defaultdict(list)
        with self._connection() as connection:
            for task_id, map_index, state, at in connection.execute(query, (dag_id, run_id)):
                histories[task_id, map_index].append((state, at))
        phases = [
            ended - began
            for history in histories.values()
            for (state, began), (_, ended) in itertools.pairwise(history)
            if state == "running"
        ]
        return sum(phases), len(phases)

    def run_state(self, dag_id: str, run_id: str) -> str:
        """Return the state of a run."""
        with self._connection() as connection:
            query = "SELECT state FROM dag_run WHERE dag_id = ? AND run_id = ?"
            return str(connection.execute(query, (dag_id, run_id)).fetchone()[0])

    def is_busy(self) -> bool:
        """Whether any task instance has a worker, or is about to get one."""
        with self._connection() as connection:
            query = "SELECT count(*) FROM task_instance WHERE state IN ('queued', 'running')"
            return bool(connection.execute(query).fetchone()[0])

    @contextlib.contextmanager
    def _connection(self):
        with contextlib.closing(sqlite3.connect(self._database, timeout=30)) as connection, connection:
            yield connection
