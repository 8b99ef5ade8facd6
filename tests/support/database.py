"""Airflow's database, as tests look at it and change it behind Airflow's back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from sqlalchemy import Connection, Engine


@dataclass(frozen=True)
class Database:
    """A database of SQLite or PostgreSQL.

    :param url: as Airflow's setting wants it.
    """

    url: str

    @property
    def is_sqlite(self) -> bool:
        return self.url.startswith("sqlite")

    @cached_property
    def _engine(self) -> Engine:
        return create_engine(self.url, poolclass=NullPool)

    def query(self, text: str, *values: Any) -> list[tuple[Any, ...]]:
        """Read; every value has its question mark."""
        with self._engine.connect() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(self._marked(text), values)]

    def change(self, text: str, *values: Any) -> None:
        """Change what is there."""
        with self.transaction() as connection:
            connection.exec_driver_sql(self._marked(text), values)

    def transaction(self) -> AbstractContextManager[Connection]:
        """Several statements, of which all take effect or none does."""
        return self._engine.begin()

    def all_text(self) -> str:
        """All rows of all tables of PostgreSQL; SQLite's are in its file."""
        tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
        rows = [self.query(f'SELECT t::text FROM "{table}" t') for (table,) in self.query(tables)]
        return "\n".join(text for each in rows for (text,) in each)

    def _marked(self, text: str) -> str:
        return text if self.is_sqlite else text.replace("?", "%s")

    def after_migration(self) -> None:
        """Let SQLite number triggers as other databases do.

        It gives the id of the newest row again once that row is gone. A triggerer that could not load that trigger
        never forgets the id, so it would never run the next one.
        """
        if not self.is_sqlite:
            return
        query = "SELECT sql FROM sqlite_master WHERE tbl_name = 'trigger' AND sql IS NOT NULL ORDER BY type DESC"
        table, *indexes = [sql for (sql,) in self.query(query)]
        table = table.replace("\tid INTEGER NOT NULL", "\tid INTEGER PRIMARY KEY AUTOINCREMENT", 1)
        table = re.sub(r",\s*CONSTRAINT \w+ PRIMARY KEY \(id\)", "", table)
        with self.transaction() as connection:
            for statement in ('DROP TABLE "trigger"', table, *indexes):
                connection.exec_driver_sql(statement)
