"""The folder a fleet stands in: for one run at a time, and empty when it begins."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

from tests.support.processes import ProcessError


class FleetError(ProcessError):
    """The fleet cannot be had."""


def folder_of_this_user() -> Path:
    return Path(tempfile.gettempdir()) / f"kie-fleet-{os.getuid()}"


@contextlib.contextmanager
def ground(folder: Path) -> Iterator[Path]:
    """Have the folder for the block; it is gone after it, and so is what a killed run has left there.

    :raises FleetError: another run has it.
    """
    lock_file = folder.with_name(f"{folder.name}.lock")
    with lock_file.open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise FleetError(f"A fleet is running already, in process {lock.read()}: wait for its end") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            if folder.exists():
                ended = clear(folder)
                print(f"Cleared away what a run that was killed has left in {folder}: {ended} processes", flush=True)
            folder.mkdir()
            folder.chmod(0o711)  # PostgreSQL runs as another user, who has to get through
            yield folder
        finally:
            clear(folder)
            lock_file.unlink()


def clear(folder: Path) -> int:
    """Kill -9 all processes that stand in the folder, remove it, and return how many there were."""
    ended = 0
    deadline = time.monotonic() + 10
    while standing := [process for process in psutil.process_iter() if _stands_in(process, folder)]:
        for process in standing:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                ended += 1
        psutil.wait_procs(standing, timeout=5)
        if time.monotonic() > deadline:
            raise FleetError(f"These processes cannot be ended: {[process.pid for process in standing]}")
    shutil.rmtree(folder, ignore_errors=True)
    return ended


def _stands_in(process: psutil.Process, folder: Path) -> bool:
    """Whether that is its working directory: everything the fleet starts has one there."""
    with contextlib.suppress(psutil.Error, OSError):
        return process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(folder)
    return False
