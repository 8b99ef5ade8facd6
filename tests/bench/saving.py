"""Saving: how fast results become files, and with how much memory, beside curl and cp."""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.bench.report import Goal, Report
from tests.support.servers import Exchange, ScriptedServer

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
MOST_EXTRA_MIB = 64
RUN_SECONDS = 300.0
PROVIDER = "this provider"

METHOD = """\
All files come from one server on loopback and go to one disk; each row is the median of {rounds} processes of its own,
without the start of Python and its imports. *{provider}* does what `KieSaveResultOperator` does: download into a
temporary folder, hash, decode an image to the last pixel and verify its checksums, copy to the target, fsync, write the
JSON file. *curl* only downloads; *curl, cp, sync* does so into a temporary folder, copies, and has the copy flushed.
*requests, sha256, Pillow* streams into the target, hashes, and decodes. Many images are saved one after the other by
all, by this provider with a new hook and connection for each, as one task instance per image does. The video is
recognised by its first bytes and not decoded. Memory is the peak of the process (`VmHWM`)."""


@dataclass(frozen=True)
class Load:
    """So many times the same file."""

    name: str
    head: bytes
    piece: bytes = b""
    pieces: int = 0
    files: int = 1

    @property
    def file_bytes(self) -> int:
        return len(self.head) + self.pieces * len(self.piece)

    @property
    def mebibytes(self) -> float:
        return self.files * self.file_bytes / MIB

    def serve(self, exchange: Exchange) -> None:
        """Send one file."""
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % self.file_bytes + self.head)
        for _ in range(self.pieces):
            exchange.send(self.piece)


@dataclass(frozen=True)
class Measured:
    """One process.

    :param peak_mib: None: not known.
    """

    seconds: float
    peak_mib: float | None


def run(quick: bool) -> Report:
    """Save a video, a large image and many small ones."""
    rounds = 1 if quick else 3
    small = Load("one image of 1 megapixel", picture(1024, 1024, bits=2))
    many = 20 if quick else 200
    loads = [
        Load("video", b"\0\0\0\x18ftypmp42", os.urandom(MIB), pieces=30 if quick else 300),
        Load("image of 12 megapixels", picture(3000, 4000, bits=8)),
        Load(f"{many} images of 1 megapixel", small.head, files=many),
    ]
    ways: dict[str, Callable[[Load, str, Path], Measured]] = {
        "curl": partial(shell, 'curl -sSf "$1" -o "$2/#1"'),
        "curl, cp, sync": partial(
            shell, 'mkdir "$2/s" && curl -sSf "$1" -o "$2/s/#1" && cp "$2"/s/* "$2" && sync "$2"/*'
        ),
        "requests, sha256, Pillow": partial(python, "bare", small),
        PROVIDER: partial(python, "provider", small),
    }
    report = Report(
        "saving",
        "Saving: from link to file",
        METHOD.format(rounds=rounds, provider=PROVIDER),
        ("", "MiB", "seconds", "MiB/s", "times curl", "peak MiB"),
        packages=("requests", "pillow"),
    )
    for load in loads:
        found = {name: measure(way, load, rounds) for name, way in ways.items()}
        for name, each in found.items():
            speed, times = load.mebibytes / each.seconds, each.seconds / found["curl"].seconds
            numbers = (f"{load.mebibytes:.0f}", f"{each.seconds:.2f}", f"{speed:.0f}", f"{times:.1f}")
            report.rows.append([f"{load.name}: {name}", *numbers, f"{each.peak_mib:.0f}" if each.peak_mib else ""])
        if load.pieces:
            extra = found[PROVIDER].peak_mib - measure(ways[PROVIDER], small, rounds).peak_mib
    report.goals = [
        Goal(
            f"a video takes less than {MOST_EXTRA_MIB} MiB of memory more than {small.name}",
            f"{extra:.0f} MiB",
            is_met=extra < MOST_EXTRA_MIB,
        )
    ]
    return report


def picture(width: int, height: int, bits: int) -> bytes:
    """Return a PNG of noise.

    :param bits: of noise in every channel; the fewer, the better it compresses.
    """
    from PIL import Image

    fewer_bits = bytes(value >> (8 - bits) for value in range(256))
    out = io.BytesIO()
    pixels = os.urandom(3 * width * height).translate(fewer_bits)
    Image.frombytes("RGB", (width, height), pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


def measure(way: Callable[[Load, str, Path], Measured], load: Load, rounds: int) -> Measured:
    """Run a way several times, each time into an empty folder; return the median of each number."""
    found = []
    with ScriptedServer(load.serve) as server:
        for _ in range(rounds):
            with tempfile.TemporaryDirectory(prefix="kie-bench-") as folder:
                found.append(way(load, server.url, Path(folder)))
                check(load, Path(folder))
    peaks = [each.peak_mib for each in found if each.peak_mib is not None]
    return Measured(statistics.median(each.seconds for each in found), statistics.median(peaks) if peaks else None)


def check(load: Load, folder: Path) -> None:
    """Make sure that all files are there: a way that fails fast would win."""
    sizes = [path.stat().st_size for path in folder.iterdir() if path.is_file()]
    if sizes.count(load.file_bytes) != load.files:
        raise RuntimeError(f"{load.name}: {load.files} files of {load.file_bytes} bytes should be there, not {sizes}")


def shell(script: str, load: Load, url: str, folder: Path) -> Measured:
    """Run a shell script: $1 is the URLs in curl's notation, $2 the folder."""
    began = time.perf_counter()
    arguments = [f"{url}/[1-{load.files}]", str(folder)]
    subprocess.run(["sh", "-c", script, "sh", *arguments], check=True, timeout=RUN_SECONDS)
    return Measured(time.perf_counter() - began, None)


def python(way: str, warm_up: Load, load: Load, url: str, folder: Path) -> Measured:
    """Run a way of `savers` in a Python of its own, which first saves one small image to import all it needs."""
    # The endpoint is never asked; its address says that results may come from this machine.
    connection = {"conn_type": "kie", "host": url, "password": "key", "extra": {"upload_host": url}}
    with ScriptedServer(warm_up.serve) as server:
        answer = subprocess.run(
            [sys.executable, "-m", "tests.bench.savers", way, str(folder), server.url, *[url] * load.files],
            env={**os.environ, "AIRFLOW_CONN_KIE_DEFAULT": json.dumps(connection)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=RUN_SECONDS,
        )
    seconds, peak_mib = map(float, answer.stdout.split()[-2:])
    return Measured(seconds, peak_mib)
