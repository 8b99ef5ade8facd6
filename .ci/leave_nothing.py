#!/usr/bin/env python3
"""Run a command and make sure that nothing it has started outlives it.

The exit status is that of the command, or 1 when it has left processes behind (they are named and killed).
On systems other than Linux the command is only run.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

PR_SET_CHILD_SUBREAPER = 36
GRACE_SECONDS = 5.0


def main(command: list[str]) -> int:
    """Run ``command`` and return the exit status."""
    if sys.platform == "linux":  # from here on, orphans of the command become children of this process
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    child = subprocess.Popen(command)  # noqa: S603

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGINT:  # Ctrl-C reaches the command without us
            child.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    status = child.wait()
    status = status if status >= 0 else 128 - status

    deadline = time.monotonic() + GRACE_SECONDS
    while (left := descendants()) and time.monotonic() < deadline:
        time.sleep(0.1)
    if not left:
        return status
    sys.stderr.write(f"{len(left)} processes were left behind:\n")
    while left:
        for pid, name in left.items():
            sys.stderr.write(f"  {pid}  {name}\n")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
        left = descendants()  # children of the killed ones have come to us now
    return status or 1


def descendants() -> dict[int, str]:
    """Return the living processes below this one: id and command line."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*") if sys.platform == "linux" else ():
        with contextlib.suppress(OSError):
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(entry.name)] = int(parent)
    below = {os.getpid()}
    while found := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= found
    return {pid: _command_line(pid) for pid in below - {os.getpid()}}


def _command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    return "?"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
