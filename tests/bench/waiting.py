"""Many triggers that wait in one process, as in a triggerer: what a poll costs, and what becomes of the event loop."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.bench.report import Goal, Report
from tests.bench.waiting_contenders import CALLED, CONTENDERS, INTERVAL, PEERS, POOL_SIZE
from tests.bench.waiting_server import ANSWER_SECONDS, done_at
from tests.support.servers import self_signed_certificate

#: From one poll to the next, for a trigger that sleeps after each answer.
PERIOD = INTERVAL + ANSWER_SECONDS
#: The first seconds, in which all begin at once, are told apart.
STORM = 5.0
#: Seconds after the window for tasks to be done and their waits to end.
PATIENCE = 3 * PERIOD
#: With so many waits ours is compared with the floor, in so many pairs of runs: single runs differ by a fifth.
COMPARED, PAIRS = 1000, 3
#: A process that has not come so far after these seconds is ended.
START_LIMIT = 60.0
ROOT = Path(__file__).resolve().parents[2]

METHOD = f"""\
All waits of a row run in one process over TLS. The server is another process: it answers each poll after
{ANSWER_SECONDS * 1000:.0f} ms, in the shape that the contender expects. Each contender sleeps {INTERVAL:g} s after an
answer, so a poll of each wait is due every {PERIOD:g} s. Nothing is logged. The first {STORM:g} s are the start. Then
come {{windows}} s, in the order of the sizes: polls are counted in all of them, lag in the first half, CPU (user and
system) in the second. At last all tasks are done, each at a random moment within {PERIOD:g} s.

*Lag* is how much too late the event loop comes back to a coroutine that sleeps 10 ms; the worst case counts. *Memory*
is what the process has grown by, connections included, after everything was imported and one task was waited for.
*Noticed* is from done at the server to the trigger's event. *Server* is how busy the server's core was: a contender
that keeps it near 100 % is not alone to blame. *Others* is how much of the machine all other processes took meanwhile:
rows in which that differs much do not compare well.

*Bare aiohttp* is the floor: one pooled session, the bytes, `json.loads`, sleep. Like ours it begins at a random moment
and has {POOL_SIZE} sockets. Who makes less than half of its polls is not measured with more waits; with the most, only
the peer that needs the least CPU is. Waits that begin all at once poll in step, so their share goes in steps, too. With
{COMPARED:,} waits, ours and bare aiohttp run {PAIRS} times in turn: of each the run with the median CPU is shown, and
of the {PAIRS} ratios, each of two runs one right after the other, the median counts.
"""


@dataclass(frozen=True)
class Found:
    """What one contender did with so many waits.

    :param polls: made in the window.
    :param due: polls due in it.
    :param polls_each: polls of one wait, from the start to the end of the window.
    :param cpu_per_poll: seconds, in the second half of the window.
    :param cpu: how much of a core the process took, in the second half of the window.
    :param lag: worst lateness of the event loop in the first half of the window, in seconds.
    :param lag_at_start: the same, in the seconds before.
    :param memory: bytes that the process has grown by.
    :param noticed: seconds from done to event of each wait, sorted; infinite if it did not come.
    :param failed: waits that ended with something else than a success.
    :param server: how much of a core the server took.
    :param others: how much of the machine all other processes took.
    """

    contender: str
    waits: int
    polls: int
    due: float
    polls_each: float
    cpu_per_poll: float
    cpu: float
    lag: float
    lag_at_start: float
    memory: int
    noticed: list[float]
    failed: int
    server: float
    others: float

    @property
    def share(self) -> float:
        """Polls made of those due."""
        return self.polls / self.due

    def row(self) -> list[str]:
        """Return the cells of the table."""
        return [
            CONTENDERS[self.contender].title,
            f"{self.waits:,}",
            _time(self.cpu_per_poll) if math.isfinite(self.cpu_per_poll) else "no poll",
            f"{self.share:.1%}",
            _time(self.lag_at_start),
            _time(self.lag),
            f"{self.memory / 2**20:.0f} MB",
            _time(_percentile(self.noticed, 0.50)),
            _time(_percentile(self.noticed, 0.99)) + (f" ({self.failed:,} gave up)" if self.failed else ""),
            f"{self.server:.0%}",
            f"{self.others:.0%}",
        ]


def run(quick: bool) -> Report:
    """Measure one contender after the other."""
    windows = {20: 2 * PERIOD, 50: 2 * PERIOD} if quick else {200: 4 * PERIOD, 1000: 6 * PERIOD, 5000: 6 * PERIOD}
    found: dict[int, dict[str, Found]] = {}
    pairs: list[dict[str, Found]] = []
    _allow_many_sockets()
    with tempfile.TemporaryDirectory(prefix="kie-bench-") as directory:
        self_signed_certificate(Path(directory))
        contenders = [name for name in CONTENDERS if name != CALLED]
        for waits, window in windows.items():
            found[waits] = {name: measure(Path(directory), name, waits, window) for name in contenders}
            if waits == COMPARED:
                pairs = _in_turn(Path(directory), found[waits], window)
                found[waits] |= {name: _median_run([pair[name] for pair in pairs]) for name in pairs[0]}
            contenders = _who_goes_on(found[waits], is_last_round=len(found) == len(windows) - 1)
    rounds = [one for by_name in found.values() for one in by_name.values()]
    return Report(
        name="waiting",
        title="Waiting: many triggers in one process",
        method=METHOD.format(windows=", ".join(f"{seconds:.1f}" for seconds in windows.values())),
        columns=(
            "Contender",
            "Waits",
            "CPU per poll",
            "Polls of due",
            "Worst lag at start",
            "Worst lag",
            "Memory",
            "Noticed, median",
            "Noticed, 99 %",
            "Server",
            "Others",
        ),
        rows=[one.row() for one in rounds],
        goals=[] if quick else _goals(found, pairs),
        packages=("apache-airflow", "aiohttp", *(f"apache-airflow-providers-{peer}" for peer in PEERS)),
    )


def measure(directory: Path, name: str, waits: int, window: float) -> Found:
    """Measure one contender in a process of its own, with a server of its own.

    :param directory: has the certificate; becomes Airflow's home.
    :param window: seconds to measure, after the start.
    """
    contender = CONTENDERS[name]
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    with contextlib.ExitStack() as stack:
        limit = 2 * START_LIMIT + STORM + window + PATIENCE
        server = stack.enter_context(Python("waiting_server", contender.shape, certificate, key, limit=limit))
        connection = json.dumps(contender.connection(server.read()["port"]))
        # Whoever makes a TLS context for each client has but one certificate to load.
        trusted = dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"), certificate)
        environment = {"AIRFLOW_CONN_BENCH": connection, "AIRFLOW_HOME": directory, **trusted}
        arguments = (name, waits, STORM, window, PATIENCE)
        waiting = stack.enter_context(Python("waiting_process", *arguments, limit=limit, environment=environment))
        steady = waiting.read()["begin"] + STORM
        done = (steady + window, PERIOD)
        server.write(done)
        _sleep_until(steady)
        before = _cpu_seconds(server.pid, waiting.pid)
        _sleep_until(steady + window)
        by_server, by_waiting, by_all = (
            b - a for a, b in zip(before, _cpu_seconds(server.pid, waiting.pid), strict=True)
        )
        seen = waiting.read()
        server.close()
        polls = server.read()["polls"]
    since, until = seen["steady"]
    counted = _count(polls, seen["cpu_window"])
    noticed = [seen["ends"].get(str(number), math.inf) - done_at(number, *done) for number in range(1, waits + 1)]
    return Found(
        contender=name,
        waits=waits,
        polls=_count(polls, seen["steady"]),
        due=waits * (until - since) / PERIOD,
        polls_each=_count(polls, (since - STORM, until)) / waits,
        cpu_per_poll=seen["cpu"] / counted if counted else math.inf,
        cpu=seen["cpu"] / (seen["cpu_window"][1] - seen["cpu_window"][0]),
        lag=seen["lag"],
        lag_at_start=seen["lag_at_start"],
        memory=seen["memory"],
        noticed=sorted(noticed),
        failed=seen["failed"],
        server=by_server / window,
        others=max(by_all - by_server - by_waiting, 0.0) / window / psutil.cpu_count(),
    )


class Python:
    """A module of this package in a process of its own; gone at the end, and after ``limit`` seconds at the latest.

    It speaks in lines of JSON, and is spoken to the same way.
    """

    def __init__(self, module: str, *arguments: object, limit: float, environment: Mapping[str, Any] | None = None):
        # The server is on loopback, with a certificate of its own.
        foreign = re.compile(r"AIRFLOW.*|.*_proxy|.*_CA_BUNDLE", re.IGNORECASE)
        kept = {name: value for name, value in os.environ.items() if not foreign.fullmatch(name)}
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in __exit__
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"tests.bench.{module}", *map(str, arguments)],
            cwd=ROOT,
            env=kept | {name: str(value) for name, value in (environment or {}).items()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self._alarm = threading.Timer(limit, self._process.kill)
        self._alarm.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def read(self) -> Any:
        """Return what it says next.

        :raises RuntimeError: it has ended instead; with its last words.
        """
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"{self._process.args} ended: {self._log.read()[-3000:]}")
        return json.loads(line)

    def write(self, message: Any) -> None:
        """Say something."""
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """Say no more."""
        self._process.stdin.close()

    def __enter__(self) -> Python:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._alarm.cancel()
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._log):
            with contextlib.suppress(OSError):
                file.close()


def _in_turn(directory: Path, first: Mapping[str, Found], window: float) -> list[dict[str, Found]]:
    """Measure ours and the floor a few times more, and return all pairs of runs.

    :param first: has the first pair.
    """
    pairs = [{name: first[name] for name in ("ours", "bare")}]
    while len(pairs) < PAIRS:
        pairs.append({name: measure(directory, name, COMPARED, window) for name in pairs[0]})
    return pairs


def _median_run(runs: list[Found]) -> Found:
    return sorted(runs, key=lambda run: run.cpu_per_poll)[len(runs) // 2]


def _who_goes_on(found: dict[str, Found], *, is_last_round: bool) -> list[str]:
    best = _best_peer(found)
    return [
        name
        for name, one in found.items()
        if name not in PEERS or (one.share >= 0.5 and (one is best or not is_last_round))
    ]


def _best_peer(found: dict[str, Found]) -> Found:
    """Return the one that needs the least CPU per poll."""
    return min((one for name, one in found.items() if name in PEERS), key=lambda one: one.cpu_per_poll)


def _goals(found: dict[int, dict[str, Found]], pairs: list[dict[str, Found]]) -> list[Goal]:
    ours, peer = found[1000]["ours"], _best_peer(found[1000])
    ratios = [pair["ours"].cpu_per_poll / pair["bare"].cpu_per_poll for pair in pairs]
    more, less = statistics.median(ratios), peer.cpu_per_poll / ours.cpu_per_poll
    goals = [
        Goal(
            f"CPU per poll within 1.25x of bare aiohttp at 1,000, median of {PAIRS} pairs",
            f"{more:.2f}x ({', '.join(f'{ratio:.2f}x' for ratio in ratios)})",
            more <= 1.25,
        ),
        Goal("CPU per poll 4x less than the best peer's at 1,000", f"{less:.1f}x ({peer.contender})", less >= 4),
        Goal("No poll missed at 1,000: 99.5 % of those due", f"{ours.share:.1%}", ours.share >= 0.995),
        Goal("Memory below 100 MB at 1,000", f"{ours.memory / 2**20:.0f} MB", ours.memory < 100 * 2**20),
    ]
    for waits, limit in ((1000, 0.1), (5000, 0.25)):
        one = found[waits]["ours"]
        for when, lag in (("", one.lag), (", at the start", one.lag_at_start)):
            goals.append(Goal(f"Worst lag below {_time(limit)} at {waits:,}{when}", _time(lag), lag < limit))
    return goals


def _count(moments: list[float], window: tuple[float, float]) -> int:
    return sum(window[0] <= moment < window[1] for moment in moments)


def _sleep_until(moment: float) -> None:
    time.sleep(max(moment - time.monotonic(), 0.0))


def _percentile(values: list[float], share: float) -> float:
    return values[math.ceil(share * len(values)) - 1]


def _time(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "never"
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.2f} ms"


def _cpu_seconds(*pids: int) -> list[float]:
    """Return the CPU seconds taken so far by each of these processes, and by the whole machine."""
    own = [psutil.Process(pid).cpu_times() for pid in pids]
    machine = psutil.cpu_times()
    busy = machine.user + machine.nice + machine.system + getattr(machine, "irq", 0) + getattr(machine, "softirq", 0)
    return [*(times.user + times.system for times in own), busy]


def _allow_many_sockets() -> None:
    """Raise this process's limit on open files, which its children inherit, as far as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS does not take "unlimited"
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
