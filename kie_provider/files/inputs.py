"""Input images of image-to-image: from URLs, paths and results to URLs that Kie can fetch."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from airflow.providers.common.compat.sdk import ObjectStoragePath

from kie_provider.client.download import is_there
from kie_provider.client.errors import KieStorageError, KieTargetError
from kie_provider.client.flux2 import upload_reference
from kie_provider.client.plain import from_text, got, is_http_url, shorten
from kie_provider.files import storage
from kie_provider.files.media import EXTENSIONS, media_type_of

if TYPE_CHECKING:
    from kie_provider.hooks.kie import KieHook

log = logging.getLogger(__name__)

#: Kie's limit on an input image.
MAX_BYTES = 10_000_000
MEDIA_TYPES = ("image/jpeg", "image/png", "image/webp")
#: An upload is used again for this long. Kie keeps it for at least 24 hours, but a task may wait in Kie's queue.
REUSE_SECONDS = 20 * 3600.0
_UNREADABLE = upload_reference("0" * 64)


@dataclass(frozen=True)
class InputImage:
    """One input image.

    :param reference: its URL or, for a file to upload, a reference made of the sha256 of its content, by which a retry
        recognises it.
    :param path: of the file; None: it is a URL.
    :param name: the file name that Kie gets.
    """

    reference: str
    path: ObjectStoragePath | None = None
    name: str = ""


def read_input_images(value: object) -> tuple[list[InputImage], list[str]]:
    """Read the input images, and check those that are files.

    :param value: a URL, a path, a result dict, or a list of these; any of them may be text that a template rendered.
    :return: the images, and what is wrong with them, one message each.
    :raises KieStorageError: the storage failed; a retry may help.
    """
    images: list[InputImage] = []
    problems: list[str] = []
    for where, item in _items(value):
        if is_http_url(item):
            images.append(InputImage(item))
            continue
        try:
            images.append(_read_file(where, item))
        except (ValueError, KieTargetError) as error:
            problem = error.message if isinstance(error, KieTargetError) else str(error)
            problems.append(problem if problem.startswith(f"{where}: ") else f"{where}: {problem}")
            images.append(InputImage(_UNREADABLE))
    if not images:
        problems.append("input_images: is empty; give 1 to 8 images, or None for text-to-image")
        images.append(InputImage(_UNREADABLE))
    return images, problems


def _items(value: object) -> Iterator[tuple[str, object]]:
    """Yield each URL or path with its name for messages; of a result dict the files or, if it has none, the URLs."""
    value = from_text(value)
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    for index, item in enumerate(value if isinstance(value, Sequence) and is_list else [value]):
        where = f"input_images[{index}]" if is_list else "input_images"
        item = from_text(item)  # noqa: PLW2901
        if not isinstance(item, Mapping):
            yield where, item
            continue
        files, urls = ([] if not isinstance(each, list) else each for each in (item.get("files"), item.get("urls")))
        paths = [file.get("path") for file in files if isinstance(file, Mapping)]
        yield from ((where, each) for each in paths or urls or [item])


def _read_file(where: str, item: object) -> InputImage:
    """Read an image file.

    :raises ValueError: it does not exist, or Kie does not accept it.
    :raises KieTargetError: Airflow cannot open such a path.
    """
    if not isinstance(item, str | os.PathLike | ObjectStoragePath):
        raise ValueError(f"must be a URL, a path or a result with files or urls, {got(item)}")  # noqa: TRY004
    if isinstance(item, str) and re.match("https?:", item.strip(), re.IGNORECASE):
        raise ValueError(f"must be an http(s) URL that Kie can fetch, got {shorten(item, 200)}")
    path = storage.storage_path(where, item)
    if problem := storage.length_problem(path):
        raise ValueError(f"{shorten(str(path), 200)} {problem}")
    content = storage.read_bytes(path, MAX_BYTES + 1)
    if content is None:
        raise ValueError(f"{shorten(str(path), 200)} does not exist")
    media_type = media_type_of(content)
    if media_type not in MEDIA_TYPES:
        raise ValueError(
            f"{shorten(str(path), 200)} is {media_type or 'text, or empty'}; Kie accepts {', '.join(MEDIA_TYPES)}"
        )
    if len(content) > MAX_BYTES:
        raise ValueError(f"{shorten(str(path), 200)} has more than the {MAX_BYTES} bytes that Kie accepts")
    digest = hashlib.sha256(content).hexdigest()
    return InputImage(upload_reference(digest), path, f"{digest[:32]}.{EXTENSIONS[media_type]}")


def upload(image: InputImage, hook: KieHook) -> str:
    """Return a URL of the image that Kie can fetch; a file is uploaded, unless this machine did so recently.

    :raises KieError: the upload failed, or the file has changed since it was read.
    """
    if image.path is None:
        return image.reference
    with _cache_entry(f"{hook.get_conn().endpoint.upload_host} {image.reference}") as entry:
        url = _cached_url(entry)
        if url is not None and is_there(url):
            log.info("%s was uploaded recently: %s", image.path, url)
            return url
        content = storage.read_bytes(image.path, MAX_BYTES) or b""
        if upload_reference(hashlib.sha256(content).hexdigest()) != image.reference:
            raise KieStorageError(f"{image.path} changed while it was read")
        with tempfile.TemporaryDirectory(prefix="kie-") as folder:
            local = Path(folder, image.name)
            local.write_bytes(content)
            url = hook.upload_file(local)
        log.info("Uploaded %s: %s", image.path, url)
        entry.seek(0)
        entry.truncate()
        json.dump({"url": url, "at": time.time()}, entry)
    return url


@contextlib.contextmanager
def _cache_entry(key: str) -> Iterator[TextIO]:
    """Open and lock the file that caches the URL of an upload: other tasks that need the same image wait.

    The files are in a folder of this user's own, below the folder for temporary files, and hold public URLs only.

    :raises KieStorageError: the folder belongs to another user.
    """
    folder = Path(tempfile.gettempdir(), f"airflow-provider-kie-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.is_symlink():
        raise KieStorageError(f"{folder} belongs to another user")
    with Path(folder, hashlib.sha256(key.encode()).hexdigest()).open("a+", encoding="utf-8") as entry:
        fcntl.flock(entry, fcntl.LOCK_EX)  # until it is closed
        yield entry


def _cached_url(entry: TextIO) -> str | None:
    """Return the URL of an upload that is recent enough to be used again."""
    entry.seek(0)
    try:
        upload = json.load(entry)
        url, age = upload["url"], time.time() - upload["at"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return url if is_http_url(url) and 0 <= age < REUSE_SECONDS else None
