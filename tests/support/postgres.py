"""A PostgreSQL of its own on loopback, for as long as tests need it."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.exc import OperationalError

from tests.support.database import Database
from tests.support.processes import ChildProcess, ProcessError, free_port, stop_all

if TYPE_CHECKING:
    from collections.abc import Iterator

OWNER = "airflow"
SYSTEM_USER = "postgres"  # whom Debian's package brings; the server refuses to run as root
# A power cut would cost this database its data, and no test cuts the power.
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "max_connections": "300",
    "shared_buffers": "64MB",
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum_naptime": "30s",
}


def programs() -> Path | None:
    """Where `initdb` and `postgres` are: Debian keeps them out of the search path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda each: _number(each.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path and shutil.which("postgres") else None


def _number(text: str) -> float:
    with contextlib.suppress(ValueError):
        return float(text)
    return 0.0


class Postgres:
    """One server with a fresh cluster in a folder, as a user of its own if we are root.

    :param folder: must not exist; of it only the parent must be open to that user.
    """

    def __init__(self, folder: Path) -> None:
        where = programs()
        if where is None:
            raise ProcessError("PostgreSQL is not installed (Debian's package postgresql)")
        self._programs = where
        self.folder = folder
        self.port = free_port()
        self._user = pwd.getpwnam(SYSTEM_USER) if os.geteuid() == 0 else None
        self._log = folder.with_name(f"{folder.name}.log")
        self._child: ChildProcess | None = None
        self._make()

    def database(self, port: int | None = None) -> Database:
        """Airflow's database there, straight or through a proxy at a port."""
        return Database(f"postgresql+psycopg2://{OWNER}@127.0.0.1:{port or self.port}/postgres")

    def _make(self) -> None:
        self.folder.mkdir(mode=0o700)
        if self._user:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
        command = [self._programs / "initdb", "-D", self.folder, "-U", OWNER, "-A", "trust", "-E", "UTF8"]
        done = subprocess.run(
            [*command, "--locale=C", "--no-sync"],
            cwd=self.folder,
            env=self._env(),
            capture_output=True,
            text=True,
            check=False,
            **self._identity(),
        )
        if done.returncode != 0:
            raise ProcessError(f"initdb ended with exit code {done.returncode}\n{done.stderr}")

    def start(self, timeout: float = 30) -> None:
        """Start it, and wait until it answers."""
        options = [text for name, value in SETTINGS.items() for text in ("-c", f"{name}={value}")]
        options += ["-p", str(self.port), "-k", str(self.folder)]
        self._child = ChildProcess(
            "postgres",
            [str(self._programs / "postgres"), "-D", str(self.folder), *options],
            log=self._log,
            env=self._env(),
            cwd=self.folder,
            **self._identity(),
        )
        deadline = time.monotonic() + timeout
        while True:
            if self._child.exit_code is not None:
                raise ProcessError(f"PostgreSQL ended with exit code {self._child.exit_code}\n{self._child.tail()}")
            with contextlib.suppress(OperationalError):
                self.database().query("SELECT 1")
                return
            if time.monotonic() > deadline:
                raise ProcessError(f"PostgreSQL did not start\n{self._child.tail()}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End it: every connection breaks, and nothing that was committed is lost."""
        if self._child is not None:
            self._child.stopped_on_purpose = True
            self._child.send_signal(signal.SIGINT)  # "fast shutdown"; SIGTERM would wait for every client
            stop_all([self._child], grace=10)

    def _identity(self) -> dict[str, int]:
        return {"user": self._user.pw_uid, "group": self._user.pw_gid} if self._user else {}

    @staticmethod
    def _env() -> dict[str, str]:
        # What is set for another PostgreSQL must not get in.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return kept | {"LC_ALL": "C", "TZ": "UTC"}


@contextlib.contextmanager
def postgres_if_installed() -> Iterator[Database | None]:
    """Run one for the block; None if there is none on this machine, or if ``TEST_DATABASE`` says ``sqlite``."""
    installed = "postgresql" if programs() else "sqlite"
    wanted = os.environ.get("TEST_DATABASE", installed)
    if wanted not in ("postgresql", "sqlite"):
        raise RuntimeError(f"TEST_DATABASE: must be postgresql or sqlite, got {wanted!r}")
    if wanted == "sqlite":
        yield None
        return
    if wanted != installed:
        raise RuntimeError("TEST_DATABASE=postgresql: PostgreSQL is not installed")
    folder = Path(tempfile.mkdtemp(prefix="airflow-postgres-"))
    folder.chmod(0o711)  # the server's user has to get through
    try:
        server = Postgres(folder / "cluster")
        try:
            server.start()
            yield server.database()
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
