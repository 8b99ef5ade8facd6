"""Airflow's object storage, with what saving results needs: complete files only, and errors that say what to do."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from airflow.providers.common.compat.sdk import (
    AirflowNotFoundException,
    BaseHook,
    ObjectStoragePath,
    get_hook_lineage_collector,
)

from kie_provider.client.errors import KieError, KieStorageError, KieTargetError, storage_error
from kie_provider.client.plain import got, is_blank, shorten
from kie_provider.compat import path_conn_id
from kie_provider.execution_timeout import held
from kie_provider.files.naming import text_problem

#: The package that adds a URL scheme to Airflow.
PACKAGES = {
    "s3": "apache-airflow-providers-amazon[s3fs]",
    "s3a": "apache-airflow-providers-amazon[s3fs]",
    "gs": "apache-airflow-providers-google",
    "gcs": "apache-airflow-providers-google",
    "abfs": "apache-airflow-providers-microsoft-azure",
    "abfss": "apache-airflow-providers-microsoft-azure",
    "adl": "apache-airflow-providers-microsoft-azure",
}
_BLOCK = 4 * 2**20
#: Large files are uploaded in parts; with the storage libraries' defaults these take hundreds of megabytes of memory.
_UPLOAD_LIMITS = {"chunksize": 8 * 2**20, "max_concurrency": 2}
#: What only a programming error raises; storage libraries may derive their own errors from these.
_PROGRAMMING_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError, ValueError)
_PASSWORD = re.compile(r"(://[^/@:]*):.*@")
_FILE_URL = re.compile(r"(?:file|local):(?:///+|//localhost/+|/(?!/))", re.IGNORECASE)
#: Bytes: of a local path, of one component of it, and of a key. Temporary names are longer than final ones.
_LONGEST_PATH, _LONGEST_PART, _LONGEST_KEY = 4096 - 32, 255, 1024


def storage_path(field: str, value: object) -> ObjectStoragePath:
    """Parse a path: a local one, in which ``~`` is the home folder, or one of an object store.

    :param field: the operator's parameter, for messages.
    :param value: ``/data/x``, ``file:///data/x``, ``~/x``, ``s3://conn_id@bucket/prefix``.
    :return: a local path is plain and absolute, without a scheme.
    :raises KieTargetError: it is not a path, or Airflow cannot open it: the scheme, its provider package or the
        connection is missing.
    """
    if is_blank(value) or not isinstance(value, str | os.PathLike | ObjectStoragePath):
        raise KieTargetError(
            f"{field}: must be a path such as /data/images or s3://conn_id@bucket/prefix, {got(value)}"
        )
    text = str(value).strip()  # a template leaves line breaks around what it renders
    if is_file_url := _FILE_URL.match(text):
        text = f"/{text[is_file_url.end() :]}"
    shown = shorten(_PASSWORD.sub(r"\1:***@", text), 200)
    if problem := text_problem(text) or _url_problem(text):
        raise KieTargetError(f"{field}: {shown} {problem}")
    if text.startswith("~") and (text := os.path.expanduser(text)).startswith("~"):  # noqa: PTH111  # "./~" is no home
        raise KieTargetError(f"{field}: {shown} names the home folder of a user unknown on this machine")
    scheme = text.partition("://")[0] if "://" in text else ""
    try:
        with held():
            path = ObjectStoragePath(text if scheme else str(Path(text).absolute()))
            if conn_id := path_conn_id(path):
                BaseHook.get_connection(conn_id)
            if is_local(path):
                path = ObjectStoragePath(path.path)
            path.fs  # noqa: B018  # looked up now, in the main thread, rather than when the first file is to be stored
    except AirflowNotFoundException:
        raise KieStorageError(
            f"{field}: {shown} names a connection that Airflow does not find: there is none, or its database is away"
        ) from None
    except (ValueError, ImportError, AttributeError) as error:
        package = PACKAGES.get(scheme)
        advice = f"pip install '{package}'" if package else "check the scheme; known are file, s3, gs, abfs"
        if isinstance(error, AttributeError):  # Airflow 3.1.0 beside a newer universal-pathlib
            advice = "Airflow 3.1.0 needs universal-pathlib below 0.3 for any path"
        raise KieTargetError(f"{field}: Airflow cannot open {shown} ({error}); {advice}") from None
    if not is_local(path) and not path.path.partition("/")[0]:
        raise KieTargetError(f"{field}: {shown} names no bucket")
    return path


def _url_problem(text: str) -> str | None:
    """Say what is wrong with a text that is neither a local path nor a complete URL; None: nothing."""
    scheme, colon, rest = text.partition(":")
    scheme = scheme.lower()
    if colon and scheme in ("file", "local"):  # well-formed file URLs were turned into paths before
        return "is not a URL of a local file, such as file:///data/images"
    if colon and not rest.startswith("//") and scheme in PACKAGES:
        return f"begins like a URL; write {scheme}://conn_id@bucket/prefix"
    if re.match(r"[A-Za-z]:[\\/]|\\\\", text):
        return "is a Windows path; Airflow workers do not run on Windows"
    return "names no bucket" if text.endswith("://") else None


def is_local(path: ObjectStoragePath) -> bool:
    """Whether this is a path in the local file system."""
    return path.protocol in ("", "file", "local")


@contextlib.contextmanager
def storage_errors(path: object) -> Iterator[None]:
    """Turn the errors of storage libraries into Kie errors that name the path. Programming errors pass unchanged.

    :raises KieTargetError: a retry cannot help: no permission, no such bucket, a file where a folder should be.
    :raises KieStorageError: anything else, such as a full disk.
    """
    try:
        yield
    except KieError:
        raise
    except OSError as error:
        raise storage_error(path, error) from error
    except Exception as error:  # botocore's, Google's and Azure's errors have no common base
        if isinstance(error, (*_PROGRAMMING_ERRORS, RecursionError)) and type(error).__module__ == "builtins":
            raise
        raise KieStorageError(f"{path}: {error} ({type(error).__name__})") from error


def length_problem(path: ObjectStoragePath) -> str | None:
    """Say by how much a path is too long for a file; None: it is not."""
    if not is_local(path):
        key = path.path.lstrip("/").partition("/")[2]
        size = len(key.encode())
        return f"has {size} bytes below the bucket; {_LONGEST_KEY} are allowed" if size > _LONGEST_KEY else None
    if (size := len(path.path.encode())) > _LONGEST_PATH:
        return f"has {size} bytes; {_LONGEST_PATH} are allowed"
    if (size := max(len(part.encode()) for part in path.path.split("/"))) > _LONGEST_PART:
        return f"has a component of {size} bytes; {_LONGEST_PART} are allowed"
    return None


def check_writable(folder: ObjectStoragePath) -> None:
    """Check, without leaving a trace, that results can be saved in a folder, which need not exist yet.

    Of an object store only the bucket is checked: whether it accepts files shows when the first one is stored.

    :raises KieTargetError: they cannot be saved there.
    """
    with storage_errors(f"target {folder}"):
        if is_local(folder):
            existing = Path(folder.path)
            while not os.path.lexists(existing):  # true of a dangling link too, which would be in the way
                existing = existing.parent
            with tempfile.TemporaryFile(dir=existing):
                return
        bucket = folder.path.strip("/").partition("/")[0]
        if not folder.fs.exists(bucket):
            with contextlib.suppress(PermissionError):  # a key that may write need not be allowed to list
                folder.fs.ls(bucket)


def sha256_of(path: ObjectStoragePath) -> str | None:
    """Return the sha256 of a stored file, in hexadecimal; None: it does not exist."""
    digest = hashlib.sha256()
    with storage_errors(path):
        try:
            with _open(path) as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
        except FileNotFoundError:
            return None
    return digest.hexdigest()


def read_bytes(path: ObjectStoragePath, limit: int) -> bytes | None:
    """Return the content of a stored file, at most its first ``limit`` bytes; None: it does not exist."""
    with storage_errors(path):
        try:
            with _open(path) as file:
                return bytes(file.read(limit))
        except FileNotFoundError:
            return None


def _open(path: ObjectStoragePath) -> IO[bytes]:
    # Not path.open(), which would report the file as an input to Airflow's lineage.
    if is_local(path):
        return open_regular(Path(path.path))
    stream: IO[bytes] = path.fs.open(path.path, "rb", block_size=_BLOCK)
    return stream


def open_regular(path: Path) -> IO[bytes]:
    """Open a local file for reading.

    :raises KieTargetError: it is a folder, a FIFO, a socket or a device, which could block for ever.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise KieTargetError(f"{path} exists, but is not a regular file; remove it, or choose another name")
    return path.open("rb")


def put(local: Path, target: ObjectStoragePath) -> None:
    """Store a local file under its final name, where it appears only once complete, and report it to Airflow's lineage.

    :raises KieTargetError: it cannot be stored there.
    :raises KieStorageError: the storage failed.
    """
    with storage_errors(target):
        if is_local(target):
            _put_locally(local, Path(target.path))
        else:
            fs = target.fs
            accepted = inspect.signature(getattr(fs, "_put_file", fs.put_file)).parameters
            fs.put_file(str(local), target.path, **{name: n for name, n in _UPLOAD_LIMITS.items() if name in accepted})
    get_hook_lineage_collector().add_output_asset(context=target, uri=_asset_uri(target))


def _put_locally(local: Path, final: Path) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    part = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with local.open("rb") as source, part.open("xb") as file:
            shutil.copyfileobj(source, file, 2**20)
            file.flush()
            os.fsync(file.fileno())
        part.replace(final)
    finally:
        part.unlink(missing_ok=True)


def _asset_uri(path: ObjectStoragePath) -> str:
    """Return the URI that names a file in lineage: without the connection id."""
    if is_local(path):
        return Path(path.path).as_uri()
    scheme, _, rest = str(path).partition("://")
    bucket, slash, key = rest.partition("/")
    return f"{scheme}://{bucket.rpartition('@')[2]}{slash}{key}"
