"""Saved files that the API server may send: only those that the task instance itself saved.

A path comes from an XCom, which anybody who may edit XComs can change, so the path alone proves nothing: the file must
be below the target that Airflow recorded, must not be reached through a symbolic link, and the JSON file beside it,
written with it, must say that this DAG saved it for this Kie task.
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
from typing import IO, TYPE_CHECKING

from kie_provider.client.errors import KieError
from kie_provider.compat import path_conn_id
from kie_provider.files import storage
from kie_provider.files.media import media_type_of
from kie_provider.plugin.outputs import Key, TaskOutput
from kie_provider.plugin.pictures import File

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

#: Media types that browsers display, and that cannot contain scripts.
SHOWN_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif", "image/avif")
_BLOCK = 2**18
_LARGEST_SIDECAR = 2**20
_LARGEST_MANIFEST = 2**26
#: Seconds that a manifest is cached: the images of a page ask for the same one many times.
_CACHE_SECONDS = 10.0
_CACHE_SIZE = 4


class NotShownError(Exception):
    """A file cannot be shown; the message is meant for the user."""


def open_file(file: File, path: str, output: TaskOutput) -> tuple[IO[bytes], str]:
    """Open an image or its thumbnail, and return it with its media type.

    :param path: of the image or of the thumbnail.
    :raises NotShownError: the file does not exist, cannot be read from here, or was not saved by this task.
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
        raise NotShownError(f"The file does not exist, or Airflow's API server cannot reach it: {path}") from None
    except KieError as error:
        raise NotShownError(f"Airflow's API server cannot read {path}: {error.message}") from None
    except Exception as error:  # noqa: BLE001  # storage libraries' errors have no common base
        raise NotShownError(f"Airflow's API server cannot read {path}: {type(error).__name__}: {error}") from None
    if media_type is None:
        stream.close()
        raise NotShownError(f"This is not an image, video or audio file: {path}")
    return stream, media_type


def blocks(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield the content of a file in blocks, then close it."""
    with stream:
        while block := stream.read(_BLOCK):
            yield block


class Manifests:
    """Reads the manifests of batches, and caches the last few for some seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cached: dict[tuple[Key, str], tuple[float, Sequence[Mapping[str, object]] | str]] = {}

    def read(self, output: TaskOutput, path: str) -> Sequence[Mapping[str, object]] | str:
        """Return the items of a batch, or a text that says why they cannot be shown."""
        with self._lock:
            now, name = time.monotonic(), (output.key, path)
            if name in self._cached and self._cached[name][0] > now - _CACHE_SECONDS:
                return self._cached[name][1]
            try:
                items: Sequence[Mapping[str, object]] | str = _read_manifest(output, path)
            except NotShownError as error:
                items = str(error)
            self._cached[name] = (now, items)
            while len(self._cached) > _CACHE_SIZE:
                self._cached.pop(min(self._cached, key=lambda each: self._cached[each][0]))
            return items


def _read_manifest(output: TaskOutput, path: str) -> list[Mapping[str, object]]:
    try:
        content = storage.read_bytes(_locate(path, output), _LARGEST_MANIFEST)
        manifest = json.loads(content or b"null")
    except NotShownError:
        raise
    except (FileNotFoundError, KieError) as error:
        why = error.message if isinstance(error, KieError) else "no such file"
        raise NotShownError(f"Airflow's API server cannot read {path}: {why}") from None
    except Exception as error:  # noqa: BLE001  # broken JSON, or any error of a storage library
        raise NotShownError(f"Airflow's API server cannot read {path}: {type(error).__name__}") from None
    if manifest is None:
        raise NotShownError(f"The file does not exist, or Airflow's API server cannot reach it: {path}")
    run = manifest.get("airflow") if isinstance(manifest, dict) else None
    is_ours = isinstance(run, dict) and output.key == tuple(
        run.get(name) for name in ("dag_id", "run_id", "task_id", "map_index")
    )
    items = manifest.get("items") if is_ours else None
    if not isinstance(items, list):
        raise NotShownError(f"This is not a manifest that this task has written: {path}")
    return [item for item in items if isinstance(item, dict)]


def _locate(text: str, output: TaskOutput) -> ObjectStoragePath:
    """Parse a path, and check that it is below the recorded target, with links resolved, and not itself a link.

    Airflow keeps the rendered target of about the last 30 runs. Without one, or with one that depends on the machine
    (a relative path, ``~``), it is only checked that the path is not a link.

    :raises NotShownError: it is elsewhere.
    """
    path, target = storage.storage_path("path", text), output.rendered.get("target")
    folder = storage.storage_path("target", target) if _is_absolute(target) else None
    refused = NotShownError(f"This file is not below the target of the task that names it, so it is not shown: {text}")
    if storage.is_local(path):
        if folder is not None and not storage.is_local(folder):
            raise refused
        named = Path(path.path)
        real, parent = (
            named.resolve(),
            named.parent.resolve(),
        )  # so that a path elsewhere does not reveal whether it exists
        top = Path(folder.path).resolve() if folder is not None else parent
        if real != parent / named.name or not real.is_relative_to(top):
            raise refused
        return path
    is_plain = posixpath.normpath(path.path) == path.path
    if folder is not None:
        same_store = (path.protocol, path_conn_id(path)) == (folder.protocol, path_conn_id(folder))
        is_plain = is_plain and same_store and path.path.startswith(f"{folder.path.rstrip('/')}/")
    if not is_plain:
        raise refused
    return path


def _is_absolute(target: object) -> bool:
    return isinstance(target, str) and ("://" in target or target.startswith(("/", "file:"))) and "***" not in target


def _check_origin(path: ObjectStoragePath, file: File, output: TaskOutput) -> None:
    """Check that the JSON file beside an image names this DAG and this Kie task.

    :raises NotShownError: it does not.
    """
    stem = path.name.removesuffix(".thumb.jpg") if path.name.endswith(".thumb.jpg") else path.name.rpartition(".")[0]
    sidecar = path.parent / f"{stem}.json"
    content = storage.read_bytes(_locate(str(sidecar), output), _LARGEST_SIDECAR)
    try:
        facts = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        facts = None
    run = facts.get("airflow") if isinstance(facts, dict) else None
    is_ours = (
        isinstance(run, dict) and run.get("dag_id") == output.dag_id and facts.get("kie_task_id") == file.kie_task_id
    )
    if not is_ours:
        raise NotShownError(f"No JSON file beside it says that this DAG saved it, so it is not shown: {path}")


def _open(path: ObjectStoragePath) -> IO[bytes]:
    if storage.is_local(path):
        file = os.fdopen(os.open(path.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise NotShownError(f"This is not a regular file: {path}")
        return file
    stream: IO[bytes] = path.fs.open(path.path, "rb", block_size=_BLOCK)
    return stream
