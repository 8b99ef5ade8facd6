#!/usr/bin/env python3
"""Run a command that ends in pytest, show its output, and say pytest's closing lines again at the very end.

The exit status is that of the command; it is 1 when the command succeeded but left processes behind (they are named
and killed; on Linux only) or when pytest did not come to an end.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import IO

PR_SET_CHILD_SUBREAPER = 36
GRACE_SECONDS = 5.0
CLOSING_LINE = re.compile(rb"^(=+ )?(no tests ran|\d+ [a-z]+(, \d+ [a-z]+)*) in [\d.]+s.*$")


def main(command: list[str]) -> int:
    """Run ``command`` and return the exit status."""
    if sys.platform == "linux":  # from here on, orphans of the command become children of this process
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:  # noqa: S603

        def pass_on(number: int, _frame: FrameType | None) -> None:
            if number != signal.SIGINT:  # Ctrl-C reaches the command without us
                child.send_signal(number)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, pass_on)
        closing_lines: list[bytes] = []
        # A thread: a process that is left behind would keep the pipe open for ever.
        reader = threading.Thread(target=show, args=(child.stdout, closing_lines))
        reader.start()
        status = child.wait()
        status = status if status >= 0 else 128 - status
        left = end_what_is_left()
        reader.join()

    say(*(f"Left behind: process {pid}, {name}" for pid, name in left.items()))
    say("", *([line.decode().strip() for line in closing_lines] or ["pytest did not come to an end."]))
    return status or int(bool(left) or not closing_lines)


def show(output: IO[bytes], closing_lines: list[bytes]) -> None:
    """Pass the output on as it comes, and pick out the lines with which pytest closes."""
    for line in output:
        if CLOSING_LINE.match(line):
            closing_lines.append(line)
        with contextlib.suppress(OSError):  # nobody listens any more, but the command is to end in peace
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()


def say(*lines: str) -> None:
    """Print lines."""
    with contextlib.suppress(OSError):
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()


def end_what_is_left() -> dict[int, str]:
    """Kill the descendants that do not end within the grace period; id and command line of each."""
    deadline = time.monotonic() + GRACE_SECONDS
    while descendants() and time.monotonic() < deadline:
        time.sleep(0.1)
    killed: dict[int, str] = {}
    while left := descendants():  # children of those that were killed come to us, too
        killed |= left
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    return killed


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
