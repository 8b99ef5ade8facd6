"""`make demo`: a real Airflow makes a day's illustrations, and everything is gone afterwards except the images.

The Kie.ai emulator plays the other side and nothing costs anything. Only `make demo REAL=1` uses the real API, with the
key in `KIE_API_KEY`, and says first what it will spend. With `CALLBACKS=1` the emulator calls back and wakes the tasks.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kie_provider.addresses import IMAGES
from kie_provider.client.client import KieClient
from kie_provider.client.endpoint import Endpoint
from kie_provider.client.errors import KieError
from kie_provider.client.prices import LIST_PRICES, LIST_USD_PER_CREDIT
from tests.support.airflow_stack import AirflowStack, AirflowStackError, epoch
from tests.support.processes import ChildProcess, free_port, stop_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from tests.support.airflow_stack import TaskInstances

ROOT = Path(__file__).resolve().parents[2]
DAG_ID = "flux2_daily_content"
SHEET_TASK_ID = "contact_sheet"
EMULATOR_KEY = "emulator-key"
CALLED_SECONDS = 20.0  # for an image; Kie takes as long, and a callback within ten seconds of the deferral wakes nobody
POLL_SECONDS = 3.0  # from poll to poll by default
LATER = "to come"  # task instances that have no state yet


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; 0 when every image was made."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave Airflow and the emulator running until Ctrl-C")
    parser.add_argument("--real", action="store_true", help="use the real Kie.ai with KIE_API_KEY; spends credits")
    parser.add_argument("--callbacks", action="store_true", help="have the emulator call back when an image is done")
    options = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        with contextlib.ExitStack() as cleanup:
            return Demo(cleanup, keep=options.keep, is_real=options.real, is_called=options.callbacks).run()
    except KeyboardInterrupt:
        say("\nStopped by Ctrl-C; nothing is left running.")
        return 128 + signal.SIGINT
    except (DemoError, AirflowStackError, KieError) as error:
        say(f"\nThe demo has failed: {error}")
        return 1


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


class DemoError(RuntimeError):
    """The demo cannot begin."""


class Demo:
    """One run of the example DAG, shown in the terminal."""

    def __init__(
        self, cleanup: contextlib.ExitStack, *, keep: bool = False, is_real: bool = False, is_called: bool = False
    ) -> None:
        self.cleanup = cleanup
        self.keep = keep
        self.is_real = is_real
        self.is_called = is_called
        self.began = time.monotonic()
        self.phases: list[tuple[str, float]] = []
        self.sheet: str | None = None

    def run(self) -> int:
        """Start everything, run the DAG, report; with `keep`, stay until Ctrl-C."""
        connection = self.connect()
        self.credits_start = self.client.get_credits()
        say(f"Credits: {self.credits_start:g}")

        say("Starting Airflow: database, API server, scheduler, DAG processor, triggerer ...")
        url = f"http://127.0.0.1:{free_port()}"
        if self.is_called:
            connection["extra"]["callback_base_url"] = url
        self.airflow = AirflowStack(ROOT / "dags", env={"AIRFLOW_CONN_KIE_DEFAULT": json.dumps(connection)})
        self.airflow.url = url
        with self.phase("start Airflow"):
            self.cleanup.enter_context(self.airflow)
        version = self.airflow.api("GET", "/version")["version"]
        say(f"Airflow {version} is ready after {self.phases[-1][1]:.1f} s: {self.airflow.url}\n")

        status = self.make_images()
        page = f"{self.airflow.url}/{IMAGES}"
        if self.keep:
            say("Everything keeps running until you press Ctrl-C:")
            say(f"  Airflow   {self.airflow.url}/dags/{DAG_ID}  (no password)")
            if not self.is_real:
                say("  Emulator  {host}  (bill: {host}/_emulator/bill)".format(**connection))
            self.say_where(f"{page}  (in Airflow: Browse > Kie.ai images, and the tab Images of each run)")
            self.wait_for_ctrl_c()
        else:
            self.say_where(f"{page}  (gone with this Airflow; make airflow leaves it running)")
        return status

    def say_where(self, page: str) -> None:
        """Say where the images can be looked at."""
        say(f"  Images    {page}")
        if self.sheet:
            say(f"  Sheet     {Path(self.sheet).as_uri()}")

    def connect(self) -> dict[str, Any]:
        """Make the client and return Airflow's connection: to the emulator, or to Kie and then say what it will cost.

        :raises DemoError: Kie is wanted, and there is no key.
        """
        key = os.environ.pop("KIE_API_KEY", "").strip()  # no process that is started from here needs it
        _SECRETS.update(filter(None, [key]))
        if self.is_real and self.is_called:
            raise DemoError("CALLBACKS=1 needs the emulator: Kie.ai cannot reach this Airflow, so leave REAL=1 out")
        if self.is_real:
            if not key:
                raise DemoError("REAL=1 needs a key in KIE_API_KEY; without REAL=1 the emulator is used, which is free")
            images, cost = expected_cost()
            usd = cost * LIST_USD_PER_CREDIT
            say(f"This uses the REAL Kie.ai API and will spend {cost:g} REAL credits ({usd:g} USD at list price):")
            say(f"one charge for each of {images} images. Nothing is ordered before Airflow runs; Ctrl-C stops it.\n")
            self.client = self.cleanup.enter_context(KieClient(Endpoint(key)))
            return {"conn_type": "kie", "password": key}
        host = self.host = self.cleanup.enter_context(emulator(CALLED_SECONDS if self.is_called else 7))
        say(f"Kie.ai emulator on {host}: same API, no real credits.")
        if key:
            say("KIE_API_KEY is not used; make demo REAL=1 would use it, and spend real credits.")
        self.client = self.cleanup.enter_context(KieClient(Endpoint(EMULATOR_KEY, host=host, upload_host=host)))
        return {"conn_type": "kie", "host": host, "password": EMULATOR_KEY, "extra": {"upload_host": host}}

    def make_images(self) -> int:
        """Run the DAG once and report what came of it."""
        output = ROOT / "build" / "demo" / datetime.now(timezone.utc).strftime("%Y-%m-%dT%H-%M-%S")
        with self.phase("run the DAG"):
            self.run_id = self.airflow.trigger_dag(DAG_ID, {"output_dir": str(output)})
            display = Display()
            started = asked = time.monotonic()
            balance = self.credits_left()
            last: TaskInstances = []

            def look(tasks: TaskInstances) -> None:
                nonlocal asked, balance
                now = time.monotonic()
                if now - asked > (10 if self.is_real else 1):
                    asked, balance = now, self.credits_left()
                last[:] = tasks
                display.show(tasks, now - started, balance, self.callbacks() if self.is_called else None)

            timeout = 1200 if self.is_real else 240  # seconds
            state = self.airflow.wait_for_run(DAG_ID, self.run_id, timeout, on_poll=look)
        failed = [task for task in last if task["state"] == "failed"]
        self.report(last)
        for task in failed:
            self.show_log(task)
        if state != "success" or failed:
            say(f"\nThe run ended as {state}, with {len(failed)} failed tasks.\n")
            return 1
        return 0

    def report(self, tasks: TaskInstances) -> None:
        """Say where everything is, what it cost and how long it took."""
        say("")
        if any(task["task_id"] == SHEET_TASK_ID and task["state"] == "success" for task in tasks):
            self.report_sheet(self.airflow.xcom(DAG_ID, self.run_id, SHEET_TASK_ID))
        else:
            say("There is no contact sheet")

        left = self.credits_left()
        charged = "unknown" if left is None else f"{self.credits_start - left:g} credits"
        say(f"{'Charged':14} {charged}" + ("" if self.is_real else " (by the emulator)"))
        if self.is_called:
            self.report_callbacks([task for task in tasks if task["task_id"] == "image"])

        say("\nTime")
        for name, seconds in self.phases:
            say(f"  {name:28} {seconds:6.1f} s")
        for task_id, first, last, count in _spans(tasks):
            say(f"    {task_id:26} {last - first:6.1f} s" + (f"  ({count} in parallel)" if count > 1 else ""))
        say(f"  {'total':28} {time.monotonic() - self.began:6.1f} s\n")

    def report_sheet(self, sheet: dict[str, Any]) -> None:
        """Say which images a contact sheet shows, and where it is."""
        from PIL import Image

        self.sheet = sheet["html"]
        manifest = json.loads(Path(sheet["manifest"]).read_text(encoding="utf-8"))
        files = [file for result in manifest["results"] for file in result["files"]]
        gaps = f", {sheet['missing']} missing" if sheet["missing"] else ""
        say(f"{sheet['images']} images{gaps}, each with a JSON file beside it")
        for file in files:
            path = Path(file["path"])
            with Image.open(path) as image:
                width, height = image.size
            about = "" if Path(file["sidecar"]).is_file() else ", NO JSON FILE"
            say(f"  {_short(path)}  {width} x {height} px, {path.stat().st_size:,} bytes{about}")
        for label, name in (("Contact sheet", "html"), ("Picture", "png"), ("Manifest", "manifest")):
            say(f"{label:14} {_short(Path(sheet[name]))}")

    def callbacks(self) -> int:
        """How many callbacks Airflow has taken."""
        return sum(each["http_status"] == 200 for each in self.seen_by_emulator("callbacks"))

    def report_callbacks(self, tasks: TaskInstances) -> None:
        """Say what it has saved that Kie called back, compared with polls at the default interval."""
        logs = [self.airflow.task_log(DAG_ID, self.run_id, "image", each["map_index"]) for each in tasks]
        woken = sum("Kie has called back" in log for log in logs)
        polls = sum(each["path"].endswith("recordInfo") for each in self.seen_by_emulator("requests"))
        # One by the worker; the trigger's begin after three seconds.
        usual = len(tasks) * (1 + round((CALLED_SECONDS - 3) / POLL_SECONDS))
        say(f"{'Callbacks':14} {self.callbacks()} came, {woken} woke a task")
        say(f"{'Polls':14} {polls}; {usual - polls} saved, for every {POLL_SECONDS:g} s there would be some {usual}")
        say(f"{'Gained':14} some {woken * POLL_SECONDS / 2:g} s: such a poll is {POLL_SECONDS / 2:g} s late on average")

    def seen_by_emulator(self, what: str) -> list[dict[str, Any]]:
        """The requests to the emulator, or its callbacks."""
        import requests

        seen: list[dict[str, Any]] = requests.get(f"{self.host}/_emulator/{what}", timeout=10).json()
        return seen

    def show_log(self, task: dict[str, Any]) -> None:
        """Print the log of a failed task instance's last try."""
        where = (task["task_id"], task["map_index"], max(1, task["try_number"]))
        say(f"\n--- log of {where[0]}, map index {where[1]}, try {where[2]} ---")
        try:
            say("\n".join(self.airflow.task_log(DAG_ID, self.run_id, *where).splitlines()[-60:]))
        except AirflowStackError as error:
            say(f"(cannot be read: {error})")

    def credits_left(self) -> float | None:
        """What is left on the account; None when it cannot be asked now."""
        with contextlib.suppress(KieError):
            return self.client.get_credits()
        return None

    def wait_for_ctrl_c(self) -> None:
        """Stay until Ctrl-C, or until a process ends by itself."""
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                self.airflow.check_processes()
                time.sleep(1)
        say("\nStopping ...")

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Note how long a block takes."""
        began = time.monotonic()
        yield
        self.phases.append((name, time.monotonic() - began))


class Display:
    """Task states as they change: redrawn in place on a terminal, else one line per change."""

    def __init__(self) -> None:
        self.lines_drawn = 0
        self.last = ""
        self.is_terminal = sys.stdout.isatty()

    def show(
        self, tasks: TaskInstances, seconds: float, credits_left: float | None, callbacks: int | None = None
    ) -> None:
        """Draw the states of all task instances."""
        begun = {task["task_id"] for task in tasks if task["state"]}
        states = {
            each: Counter(task["state"] or LATER for task in tasks if task["task_id"] == each)
            for each in sorted(begun, key=lambda each: _first_start(tasks, each))
        }
        balance = "" if credits_left is None else f"credits left {credits_left:g}"
        if callbacks is not None:
            balance += f"  callbacks {callbacks}"
        if self.is_terminal:
            width = shutil.get_terminal_size().columns - 1
            lines = [f"  {each:24} {_counts(counts)}" for each, counts in states.items()]
            lines.append(f"{seconds:6.1f} s  {balance}")
            up = f"\x1b[{self.lines_drawn}F" if self.lines_drawn else ""
            print(up + "\n".join(f"{line[:width]}\x1b[K" for line in lines) + "\x1b[J", flush=True)
            self.lines_drawn = len(lines)
            return
        line = " | ".join([*(f"{each}: {_counts(counts)}" for each, counts in states.items()), balance])
        if line != self.last:
            say(f"{seconds:6.1f} s  {line}")
        self.last = line


def expected_cost() -> tuple[int, float]:
    """How many images the DAG makes, and the credits they cost together at list price."""
    images = len(runpy.run_path(str(ROOT / "dags" / f"{DAG_ID}.py"))["PLAN"])
    return images, images * LIST_PRICES["flux-2/pro-text-to-image"]["1K"]


@contextlib.contextmanager
def emulator(seconds: float) -> Iterator[str]:
    """Run the emulator as a process of its own; gives its URL.

    :param seconds: that an image takes.
    """
    with tempfile.TemporaryDirectory(prefix="kie-emulator-") as folder:
        child = None
        try:
            child = ChildProcess(
                "emulator",
                [
                    *(sys.executable, "-m", "kie_provider.emulator", "--port", "0", "--api-key", EMULATOR_KEY),
                    *("--waiting-seconds", "2", "--generating-seconds", str(seconds - 2)),
                ],
                log=Path(folder, "emulator.log"),
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                cwd=ROOT,
            )
            yield _listening_url(child)
        finally:
            if child:
                stop_all([child], grace=5)


def _listening_url(child: ChildProcess, timeout: float = 30) -> str:
    deadline = time.monotonic() + timeout
    while True:
        for line in child.log.read_text(encoding="utf-8").splitlines():
            if "listening on http" in line:
                return line.split()[-1]
        if child.exit_code is not None or time.monotonic() > deadline:
            raise AirflowStackError(f"The emulator did not start\n{child.tail()}")
        time.sleep(0.05)


_SECRETS: set[str] = set()


def say(text: str) -> None:
    """Print, but never a key, whoever has let it into a message."""
    for secret in _SECRETS:
        text = text.replace(secret, "***")
    print(text, flush=True)


def _counts(states: Counter[str]) -> str:
    return ", ".join(f"{count} {state}" for state, count in sorted(states.items()))


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _first_start(tasks: TaskInstances, task_id: str) -> tuple[str, str]:
    starts = [task["start_date"] for task in tasks if task["task_id"] == task_id and task["start_date"]]
    return (min(starts, default="9"), task_id)


def _spans(tasks: TaskInstances) -> list[tuple[str, float, float, int]]:
    """Task id, first start, last end and number of instances, in the order they began."""
    times: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for task in tasks:
        if task["start_date"] and task["end_date"]:
            times[task["task_id"]].append((epoch(task["start_date"]), epoch(task["end_date"])))
    spans = [(each, min(t[0] for t in span), max(t[1] for t in span), len(span)) for each, span in times.items()]
    return sorted(spans, key=lambda span: span[1])


if __name__ == "__main__":
    sys.exit(main())
