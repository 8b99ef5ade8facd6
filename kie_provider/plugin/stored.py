"""Saved files, as the API server may show them: only what a task instance has saved itself, and only images.

A path comes from an XCom, which whoever may edit XComs can change. So it counts for nothing alone: the file must be
below the target that Airflow has recorded, no link may lead to it, and the JSON file beside it, which was written
with it, must say that this DAG has saved it for this Kie task.
"""

from __future__ import annotations

import json
import os
import posixpath
import stat
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from kie_provider.client.errors import KieError
from kie_provider.files import storage
from kie_provider.files.media import media_type_of
from kie_provider.plugin.outputs import Key, TaskOutput
from kie_provider.plugin.pictures import File

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

#: What browsers show, and what cannot carry a script.
SHOWN_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif", "image/avif")
_BLOCK = 2**18
_LARGEST_SIDECAR = 2**20
_LARGEST_MANIFEST = 2**26
#: Seconds that a manifest is kept in memory: a page of pictures asks for the same one many times.
_KEPT_FOR = 10.0
_KEPT = 4


class NotShownError(Exception):
    """A file cannot be shown; the text says why, to people."""


def open_file(file: File, path: str, output: TaskOutput) -> tuple[IO[bytes], str]:
    """Open an image or its thumbnail, and return it with its media type.

    :param path: that of the image, or of the thumbnail.
    :raises NotShownError: it is not there, out of reach from here, no image, or nothing that this task has saved.
    """
    try:
        located = _locate(path, output)
        _check_origin(located, file, output)
        stream = _open(located)
        media_type = media_type_of(stream.read(2**12))
        stream.seek(0)
    except NotShownError:
        raise
    except FileNotFoundError:
        raise NotShownError(f"There is no such file, or none that Airflow's API server can reach: {path}") from None
    except KieError as error:
        raise NotShownError(f"Airflow's API server cannot read {path}: {error.message}") from None
    except Exception as error:  # noqa: BLE001  # storage libraries' errors have no common base
        raise NotShownError(f"Airflow's API server cannot read {path}: {type(error).__name__}: {error}") from None
    if media_type is None:
        stream.close()
        raise NotShownError(f"This is no image, video or audio file: {path}")
    return stream, media_type


def blocks(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield a file in pieces, and close it."""
    with stream:
        while block := stream.read(_BLOCK):
            yield block


class Manifests:
    """Reads the manifests of batches, and keeps the last few for some seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[tuple[Key, str], tuple[float, Sequence[Mapping[str, Any]] | str]] = {}

    def read(self, output: TaskOutput, path: str) -> Sequence[Mapping[str, Any]] | str:
        """Return the items of a batch, or a text that says why there are none."""
        with self._lock:
            now, name = time.monotonic(), (output.key, path)
            if name in self._kept and self._kept[name][0] > now - _KEPT_FOR:
                return self._kept[name][1]
            try:
                items: Sequence[Mapping[str, Any]] | str = _read_manifest(output, path)
            except NotShownError as error:
                items = str(error)
            self._kept[name] = (now, items)
            while len(self._kept) > _KEPT:
                self._kept.pop(min(self._kept, key=lambda each: self._kept[each][0]))
            return items


def _read_manifest(output: TaskOutput, path: str) -> list[Mapping[str, Any]]:
    try:
        content = storage.read_bytes(_locate(path, output), _LARGEST_MANIFEST)
        told = json.loads(content or b"null")
    except NotShownError:
        raise
    except (FileNotFoundError, KieError) as error:
        why = error.message if isinstance(error, KieError) else "no such file"
        raise NotShownError(f"Airflow's API server cannot read {path}: {why}") from None
    except Exception as error:  # noqa: BLE001  # broken JSON, or any error of a storage library
        raise NotShownError(f"Airflow's API server cannot read {path}: {type(error).__name__}") from None
    if told is None:
        raise NotShownError(f"There is no such file, or none that Airflow's API server can reach: {path}")
    run = told.get("airflow") if isinstance(told, dict) else None
    is_ours = isinstance(run, dict) and output.key == tuple(
        run.get(name) for name in ("dag_id", "run_id", "task_id", "map_index")
    )
    items = told.get("items") if is_ours else None
    if not isinstance(items, list):
        raise NotShownError(f"This is no list that this task has written: {path}")
    return [item for item in items if isinstance(item, dict)]


def _locate(text: str, output: TaskOutput) -> ObjectStoragePath:
    """Return a path below the recorded target, with no link in it below that.

    Airflow keeps the rendered target of the last 30 runs or so; without one, only the folder itself counts. A target
    that means something else on another machine counts as none.

    :raises NotShownError: it is elsewhere.
    """
    path, target = storage.storage_path("path", text), output.rendered.get("target")
    folder = storage.storage_path("target", target) if _is_absolute(target) else None
    refused = NotShownError(f"This file is not below the target of the task that names it, so it is not shown: {text}")
    if storage.is_local(path):
        if folder is not None and not storage.is_local(folder):
            raise refused
        named = Path(path.path)
        real, parent = named.resolve(), named.parent.resolve()  # whether it exists is told below the target only
        top = Path(folder.path).resolve() if folder is not None else parent
        if real != parent / named.name or not real.is_relative_to(top):
            raise refused
        return path
    is_plain = posixpath.normpath(path.path) == path.path
    if folder is not None:
        same_store = (path.protocol, storage.conn_id_of(path)) == (folder.protocol, storage.conn_id_of(folder))
        is_plain = is_plain and same_store and path.path.startswith(f"{folder.path.rstrip('/')}/")
    if not is_plain:
        raise refused
    return path


def _is_absolute(target: Any) -> bool:
    return isinstance(target, str) and ("://" in target or target.startswith(("/", "file:"))) and "***" not in target


def _check_origin(path: ObjectStoragePath, file: File, output: TaskOutput) -> None:
    """Make sure that the JSON file beside an image tells of this DAG and Kie task.

    :raises NotShownError: it does not.
    """
    stem = path.name.removesuffix(".thumb.jpg") if path.name.endswith(".thumb.jpg") else path.name.rpartition(".")[0]
    sidecar = path.parent / f"{stem}.json"
    content = storage.read_bytes(_locate(str(sidecar), output), _LARGEST_SIDECAR)
    try:
        told = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        told = None
    run = told.get("airflow") if isinstance(told, dict) else None
    is_ours = isinstance(run, dict) and run.get("dag_id") == output.dag_id and told["kie_task_id"] == file.kie_task_id
    if not is_ours:
        raise NotShownError(f"No JSON file beside it says that this DAG has saved it, so it is not shown: {path}")


def _open(path: ObjectStoragePath) -> IO[bytes]:
    if storage.is_local(path):
        file = os.fdopen(os.open(path.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise NotShownError(f"This is no regular file: {path}")
        return file
    stream: IO[bytes] = path.fs.open(path.path, "rb", block_size=_BLOCK)
    return stream
