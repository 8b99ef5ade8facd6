"""One process full of waits, measured from within.

Run as ``python -m tests.bench.waiting_process <contender> <waits> <storm> <window> <patience>``. Prints ``{"begin":
...}``, and at the end what it found. A thread keeps the time: an event loop that is blocked could not.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
import time
from dataclasses import dataclass, field

# Airflow, unasked, logs to stdout; that is for our findings alone.
FINDINGS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

# What every triggerer has imported, so that the garbage collector has the same to look through in every contender.
import airflow.triggers.base  # noqa: E402, F401
import psutil  # noqa: E402
from airflow.sdk.log import configure_logging  # noqa: E402

from tests.bench.waiting_contenders import CONTENDERS, Wait  # noqa: E402
from tests.bench.waiting_server import WARM_UP  # noqa: E402

#: The ticker's sleep in seconds.
TICK = 0.01


@dataclass
class Ticker:
    """Notes when the event loop came back late to a coroutine that sleeps.

    :param late: when it was due, and when it ran, where that was more than 5 ms later.
    :param due: when it runs next.
    """

    late: list[tuple[float, float]] = field(default_factory=list)
    due: float = field(default_factory=time.monotonic)

    async def run(self) -> None:
        """Tick for ever."""
        while True:
            self.due = time.monotonic() + TICK
            await asyncio.sleep(TICK)
            now = time.monotonic()
            if now - self.due > 0.005:
                self.late.append((self.due, now))

    def worst(self, since: float, until: float) -> float:
        """Return the longest lateness that touches this time; one that has not ended counts as far as it got."""
        late = [*self.late, (self.due, time.monotonic())]
        return max((ran - due for due, ran in late if due < until and ran > since), default=0.0)


@dataclass
class Ends:
    """When each wait ended, by its number; ``failed``: those that ended otherwise than with a success."""

    at: dict[int, float] = field(default_factory=dict)
    failed: list[int] = field(default_factory=list)

    async def note(self, wait: Wait, number: int) -> None:
        """Wait for one task."""
        if await wait(number):
            self.at[number] = time.monotonic()
        else:
            self.failed.append(number)


async def measure(contender: str, waits: int, storm: float, window: float, patience: float) -> None:
    """Run all waits; the thread prints, and ends the process if they do not end in time."""
    loop = asyncio.get_running_loop()
    async with CONTENDERS[contender].opens() as wait:
        if not await wait(WARM_UP):  # imports whatever is imported late, and shows that the contender works at all
            raise RuntimeError(f"{contender} does not get to the end of a task that is done")
        gc.collect()
        ticker, ends, over = Ticker(), Ends(), threading.Event()
        ticking = asyncio.create_task(ticker.run())
        before = memory()
        begin = time.monotonic()

        def keep_time() -> None:
            print(json.dumps({"begin": begin}), file=FINDINGS, flush=True)
            sleep_until(begin + storm)
            steady = time.monotonic()
            sleep_until(begin + storm + window / 2)
            lag_at_start, lag = ticker.worst(begin, steady), ticker.worst(steady, time.monotonic())
            loop.call_soon_threadsafe(ticking.cancel)  # it would be a part of the CPU time
            cpu, middle = time.process_time(), time.monotonic()
            sleep_until(begin + storm + window)
            cpu, end, after = time.process_time() - cpu, time.monotonic(), memory()
            over.wait(patience)
            found = {
                "steady": [steady, end],
                "cpu_window": [middle, end],
                "cpu": cpu,
                "memory": after - before,
                "lag_at_start": lag_at_start,
                "lag": lag,
                "ends": ends.at,
                "failed": len(ends.failed),
            }
            print(json.dumps(found), file=FINDINGS, flush=True)
            os._exit(0)  # what still waits would only be cancelled

        threading.Thread(target=keep_time, daemon=True).start()
        await asyncio.gather(*(ends.note(wait, number) for number in range(1, waits + 1)))
        over.set()
        await asyncio.Event().wait()


def memory() -> int:
    """Return the resident memory of this process in bytes."""
    return psutil.Process().memory_info().rss


def sleep_until(moment: float) -> None:
    """Sleep until a moment of the monotonic clock."""
    time.sleep(max(moment - time.monotonic(), 0.0))


if __name__ == "__main__":
    configure_logging(log_level="CRITICAL")
    name, waits, *seconds = sys.argv[1:]
    asyncio.run(measure(name, int(waits), *map(float, seconds)))
