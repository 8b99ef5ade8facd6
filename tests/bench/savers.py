"""What `saving` measures, in processes of their own: ``python -m tests.bench.savers WAY FOLDER WARM_UP_URL URL ...``.

Prints the seconds from the first byte asked for to the last file in its place, and the peak of memory in MiB. Starting
Python and importing are not in the seconds.
"""

from __future__ import annotations

import hashlib
import resource
import sys
import tempfile
import time
from pathlib import Path


def provider(folder: Path, urls: list[str]) -> None:
    """Save as KieSaveResultOperator does: one result after the other, a hook for each."""
    from kie_provider.client.prices import PriceTable
    from kie_provider.files.provenance import RunFacts
    from kie_provider.files.saving import ResultSaver, SaveOptions
    from kie_provider.hooks.kie import KieHook

    pattern = "{kie_task_id}-{index}.{extension}"
    options = SaveOptions(str(folder), pattern, False, "warn", False, False, 2**30, 12_000_000)
    for index, url in enumerate(urls):
        task_input = {"prompt": "a red fox", "aspect_ratio": "auto"}
        result = {"kie_task_id": f"{index:032x}", "model": "flux-2/pro-image-to-image", "state": "success"}
        with KieHook() as hook:
            saver = ResultSaver(options, hook, PriceTable.parse())
            saver.save({**result, "urls": [url], "input": task_input}, RunFacts("a_dag", "a_run", "a_task", index, 1))


def bare(folder: Path, urls: list[str]) -> None:
    """Stream with requests, hash, and let Pillow decode what it knows: the least that finds a broken image."""
    import requests
    from PIL import Image, UnidentifiedImageError

    with requests.Session() as session:
        for index, url in enumerate(urls):
            path, digest = folder / str(index), hashlib.sha256()
            with session.get(url, stream=True, timeout=60) as answer, path.open("wb") as file:
                for chunk in answer.iter_content(256 * 1024):
                    digest.update(chunk)
                    file.write(chunk)
            try:
                with Image.open(path) as image:
                    image.load()
            except UnidentifiedImageError:
                pass


def _peak_mib() -> float:
    """Return the peak of this program's memory. On Linux, ru_maxrss can be that of the process it was started from."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
        return int(lines["VmHWM"].split()[0]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 / (1024 if sys.platform == "darwin" else 1)


def main(way: str, folder: str, warm_up: str, *urls: str) -> None:
    """Save a small file first, which imports all that is needed; then measure."""
    save = {"provider": provider, "bare": bare}[way]
    with tempfile.TemporaryDirectory(prefix="kie-bench-") as elsewhere:
        save(Path(elsewhere), [warm_up])
    began = time.perf_counter()
    save(Path(folder), list(urls))
    print(time.perf_counter() - began, _peak_mib())


if __name__ == "__main__":
    main(*sys.argv[1:])
