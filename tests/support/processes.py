"""Child processes that can be ended completely, whatever they have started themselves."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import FrameType


class ProcessError(RuntimeError):
    """A child process did not do what it was started for; the message ends with its last log lines."""


def free_port() -> int:
    """A loopback port nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the block is done: a child is never started without being noted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        arrived.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for number in arrived:
            signal.raise_signal(number)


class ChildProcess:
    """One command in a session of its own, with its output in a file.

    A session and not only a process group: Airflow 3.3 moves every running task to a group of its own, but
    nothing leaves the session by accident. So "everything this command has started" stays an exact question.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str],
        cwd: Path,
        user: int | None = None,
        group: int | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self._log_began = log.stat().st_size if log.exists() else 0
        self.stopped_on_purpose = False
        self._session_ended = False
        with log.open("ab") as output, signals_held_back():
            self.started_at = time.time()
            self._popen = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(env),
                cwd=cwd,
                user=user,
                group=group,
                extra_groups=None if user is None else [],
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id of the command, which is also the id of its session."""
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """How the command itself ended (negative: by that signal); None while it runs."""
        return self._popen.poll()

    def members(self) -> list[int]:
        """Ids of the living processes of this session, the command included."""
        if self._session_ended:  # from here on the operating system may give the id to somebody else
            return []
        self._popen.poll()  # a zombie of ours is not a leftover
        found = []
        for pid in psutil.pids():
            with contextlib.suppress(OSError, psutil.NoSuchProcess):
                if os.getsid(pid) == self.pid and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                    found.append(pid)
        self._session_ended = not found and self._popen.returncode is not None
        return found

    def send_signal(self, number: int) -> None:
        """Signal the command alone; it passes on what it wants to pass on."""
        with contextlib.suppress(ProcessLookupError):
            self._popen.send_signal(number)

    def wait(self, timeout: float) -> int | None:
        """Wait for the command to end; None when it still runs after `timeout` seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._popen.wait(timeout)
        return None

    def kill(self) -> None:
        """Kill -9 everything in the session, and come back when nothing of it is alive."""
        self.stopped_on_purpose = True
        deadline = time.monotonic() + 10
        while members := self.members():
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise ProcessError(f"{self.name}: processes {members} survived SIGKILL")
            time.sleep(0.05)
        self._popen.wait(10)

    def has_said(self, text: str) -> bool:
        """Whether that is in the output since it was started."""
        with self.log.open("rb") as file:
            file.seek(self._log_began)
            return text.encode() in file.read()

    def tail(self, lines: int = 40) -> str:
        """The last lines of the output."""
        if not self.log.exists():
            return f"(no log of {self.name})"
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 20_000))
            text = file.read().decode(errors="replace")
        return f"--- last lines of {self.log.name} ---\n" + "\n".join(text.splitlines()[-lines:])


def stop_all(children: Sequence[ChildProcess], *, grace: float) -> None:
    """Ask all to end (SIGTERM), wait up to `grace` seconds in total, kill what is left.

    A second Ctrl-C while this waits ends the waiting, not the killing.
    """
    try:
        for child in children:
            child.stopped_on_purpose = True
            child.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + grace
        for child in children:
            child.wait(max(0.0, deadline - time.monotonic()))
    finally:
        with signals_held_back():
            for child in children:
                child.kill()
