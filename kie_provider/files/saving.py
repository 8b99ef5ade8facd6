"""From a result dict to trusted files: download, check, store, and record where they come from."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from kie_provider.client.errors import KieError, KieResultError, KieTargetError
from kie_provider.client.plain import shorten
from kie_provider.files import naming, storage
from kie_provider.files.decoding import DECODED_TYPES
from kie_provider.files.media import EXTENSIONS, Media, inspect, require_pillow, size_problem
from kie_provider.files.metadata.embedding import EmbeddingRefusedError, Provenance, embed
from kie_provider.files.provenance import Result, RunFacts, SavedFile, SavedResult, input_of, sidecar
from kie_provider.files.thumbnails import shrink

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    from kie_provider.client.download import DownloadedFile
    from kie_provider.client.prices import PriceTable
    from kie_provider.hooks.kie import KieHook

log = logging.getLogger(__name__)

#: Files of one result that are downloaded in parallel.
PARALLEL_DOWNLOADS = 4
WRONG_SIZE_CHOICES = ("warn", "fail")
_LARGEST_SIDECAR = 2**20


@dataclass(frozen=True)
class SaveOptions:
    """How results are saved; :class:`~kie_provider.operators.results.KieSaveResultOperator` describes the fields."""

    target: object
    file_name: str
    overwrite: bool
    on_wrong_size: str
    embed_provenance: bool
    redact_prompt: bool
    max_bytes: int
    max_pixels: int

    def check(self) -> None:
        """Check what can be checked without the target.

        :raises KieTargetError: names every wrong option, its value and what is allowed.
        """
        problems = []
        if problem := naming.pattern_problem(self.file_name):
            problems.append(f"file_name: {problem}")
        if self.on_wrong_size not in WRONG_SIZE_CHOICES:
            choices = " or ".join(map(repr, WRONG_SIZE_CHOICES))
            problems.append(f"on_wrong_size: must be {choices}, got {shorten(self.on_wrong_size)}")
        problems += [
            f"{name}: must be True or False, got {shorten(value)}"
            for name in ("overwrite", "embed_provenance", "redact_prompt")
            if not isinstance(value := getattr(self, name), bool)
        ]
        problems += [
            f"{name}: must be a whole number above 0, got {shorten(value)}"
            for name in ("max_bytes", "max_pixels")
            if isinstance(value := getattr(self, name), bool) or not isinstance(value, int) or value < 1
        ]
        if problems:
            raise KieTargetError("\n".join(["wrong parameters", *(f"  - {problem}" for problem in problems)]))


class ResultSaver:
    """Saves the results of one task instance.

    :param hook: downloads, and asks for fresh links.
    :param images_only: refuse anything but an image; of Flux-2 models anything else is always refused.
    :raises KieTargetError: an option is wrong, Airflow cannot open the target, or files there cannot have such names.
    """

    def __init__(self, options: SaveOptions, hook: KieHook, prices: PriceTable, *, images_only: bool = False) -> None:
        options.check()
        self._options = options
        self._hook = hook
        self._prices = prices
        self._images_only = images_only
        self._folder = storage.storage_path("target", options.target)
        self._check_name(naming.file_name(options.file_name, "0" * 32, 0, "jpeg"))

    def named(self, file_name: str) -> ResultSaver:
        """Return a saver with the same options and another file name, which was checked before."""
        other = copy(self)
        other._options = replace(self._options, file_name=file_name)  # noqa: SLF001  # a copy of this one
        return other

    def check_target(self) -> None:
        """Check, before a new task is paid for, that its results can be saved.

        :raises KieTargetError: they cannot, or a file of their name exists; that is only known in
            advance of names without ``{kie_task_id}``.
        """
        require_pillow()
        storage.check_writable(self._folder)
        pattern = self._options.file_name
        if self._options.overwrite or "{kie_task_id}" in pattern:
            return
        for extension in ("png", "jpg", "webp"):
            path = self._path(naming.file_name(pattern, "", 0, extension))
            with storage.storage_errors(path):
                is_taken = path.fs.exists(path.path)
            if is_taken:
                raise KieTargetError(
                    f"{path} exists, and file_name={pattern!r} gives every image that name. No Kie task was created. "
                    "Put {kie_task_id} or something unique to the run into the name, or set overwrite=True"
                )

    def _check_name(self, name: str) -> None:
        """Check that a file can have this name, and that its path can be parsed again: some names are taken for URLs.

        :raises KieTargetError: it cannot.
        """
        try:
            path = self._path(name)
            is_itself = path.path == type(path)(str(path)).path == f"{self._folder.path.rstrip('/')}/{name}"
        except ValueError:
            is_itself = False
        if not is_itself:
            raise KieTargetError(f"file_name: {shorten(name)} cannot be the name of a file in {self._folder}")
        if problem := storage.length_problem(path):
            raise KieTargetError(f"target and file_name: {shorten(str(path), 200)} {problem}")

    def save(self, result: Result, run: RunFacts) -> SavedResult:
        """Save every file of a result that is not saved yet, and return the result with ``files``.

        :param run: the task instance, for the JSON files.
        :raises KieError: the error of the first file that could not be saved; the others are saved all the same.
        """
        kie_task_id, urls = result["kie_task_id"], result["urls"]
        if not urls:
            raise KieResultError("it has no result URL, so there is nothing to save", kie_task_id=kie_task_id)
        names = self._sidecar_names(kie_task_id, len(urls))
        if len(set(names)) < len(names):
            pattern = self._options.file_name
            raise KieTargetError(
                f"file_name={pattern!r} gives {len(urls)} files the same name; put {{index}} into it",
                kie_task_id=kie_task_id,
            )
        files: dict[int, SavedFile | KieError | None] = {
            index: self._saved_before(result, index, name) for index, name in enumerate(names)
        }
        if None in files.values():
            self._hook.get_conn()  # reads the connection now: only the main thread talks to Airflow
        with storage.storage_errors(tempfile.gettempdir()), tempfile.TemporaryDirectory(prefix="kie-") as folder:
            pool = ThreadPoolExecutor(PARALLEL_DOWNLOADS)
            try:
                downloads = {
                    index: pool.submit(self._download, urls[index], Path(folder, str(index)))
                    for index, file in files.items()
                    if file is None
                }
                for index, download in downloads.items():
                    files[index] = self._save_one(result, index, download, run)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)  # a timeout must not wait for slow hosts
        _raise_first_error(kie_task_id, files.values())
        return {**result, "files": [file.to_json() for file in files.values() if isinstance(file, SavedFile)]}

    def could_have_saved(self, result: Mapping[str, object]) -> TypeGuard[SavedResult]:
        """Whether the ``files`` of a result, which anybody may have changed, are as :meth:`save` returns them.

        The files themselves are not read.
        """
        kie_task_id, urls, files = result.get("kie_task_id"), result.get("urls"), result.get("files")
        if not (
            isinstance(kie_task_id, str)
            and isinstance(urls, list)
            and isinstance(files, list)
            and 0 < len(urls) == len(files)
        ):
            return False
        named = zip(map(SavedFile.from_json, files), self._sidecar_names(kie_task_id, len(urls)), strict=True)
        return all(file is not None and file == self._as_named(file, name) for file, name in named)

    def saved(self, result: Result) -> SavedResult | None:
        """Return the result with ``files`` if each of them exists with its sidecar and has the right hash; else None.

        :raises KieError: the storage failed.
        """
        names = self._sidecar_names(result["kie_task_id"], len(result["urls"]))
        files = [self._saved_before(result, index, name) for index, name in enumerate(names)]
        return None if None in files else {**result, "files": [file.to_json() for file in files if file]}

    def _sidecar_names(self, kie_task_id: str, count: int) -> list[str]:
        return [naming.sidecar_name(self._options.file_name, kie_task_id, index) for index in range(count)]

    def _must_be_image(self, result: Result) -> bool:
        return self._images_only or str(result.get("model")).startswith("flux-2/")

    def _download(self, url: str, path: Path) -> DownloadedFile:
        with storage.storage_errors(path.parent):
            return self._hook.download_file(url, path, max_bytes=self._options.max_bytes)

    def _save_one(
        self, result: Result, index: int, download: Future[DownloadedFile], run: RunFacts
    ) -> SavedFile | KieError:
        try:
            delivered = download.result()
            must_be_image = self._must_be_image(result)
            media = inspect(delivered.path, max_pixels=self._options.max_pixels, must_be_image=must_be_image)
            self._check_size(result, media)
            file = self._store(result, index, delivered, media, run)
        except KieError as error:
            return error
        pixels = f", {media.width} x {media.height} pixels" if media.width else ""
        what = f"{media.media_type}, {file.bytes} bytes{pixels}"
        log.info("Saved %d of %d: %s (%s)", index + 1, len(result["urls"]), file.path, what)
        return file

    def _check_size(self, result: Result, media: Media) -> None:
        task_input = input_of(result)
        if media.width is None or media.height is None:
            return
        problem = size_problem(media.width, media.height, task_input.get("aspect_ratio"), task_input.get("resolution"))
        if problem and self._options.on_wrong_size == "fail":
            raise KieResultError(f"the image does not have the requested size: {problem}; it was not saved")
        if problem:
            log.warning("The image does not have the requested size: %s; it is saved all the same", problem)

    def _store(self, result: Result, index: int, delivered: DownloadedFile, media: Media, run: RunFacts) -> SavedFile:
        options, kie_task_id = self._options, result["kie_task_id"]
        local, digest = delivered.path.with_suffix(f".{media.extension}"), delivered.sha256
        try:
            if options.embed_provenance:
                self._embed(result, delivered.path, local, media)
                digest = _sha256(local)
            else:
                delivered.path.replace(local)
            path = self._path(naming.file_name(options.file_name, kie_task_id, index, media.extension))
            stored = storage.sha256_of(path)
            if stored != digest:
                if stored is not None and not options.overwrite:
                    raise KieTargetError(
                        f"{path} exists with other content (sha256 {stored}, not {digest}). It was not changed; "
                        "choose another file_name, or set overwrite=True"
                    )
                storage.put(local, path)
            thumbnail = self._store_thumbnail(path, kie_task_id, index, local, media)
            file = SavedFile(
                path=str(path),
                sha256=delivered.sha256,
                stored_sha256=digest,
                bytes=local.stat().st_size,
                media_type=media.media_type,
                width=media.width,
                height=media.height,
                sidecar=str(self._path(naming.sidecar_name(options.file_name, kie_task_id, index))),
                thumbnail=thumbnail,
            )
            facts = sidecar(
                result,
                index,
                file,
                run,
                self._prices,
                redact_prompt=options.redact_prompt,
                embedded=options.embed_provenance,
            )
            local.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            storage.put(local, self._path(naming.sidecar_name(options.file_name, kie_task_id, index)))
            return file
        finally:
            for temporary in (delivered.path, local):
                temporary.unlink(missing_ok=True)

    def _store_thumbnail(
        self, image: ObjectStoragePath, kie_task_id: str, index: int, local: Path, media: Media
    ) -> str | None:
        """Store a thumbnail beside an image and return its path; None: there is none. A failure is only logged."""
        if media.media_type not in DECODED_TYPES:
            return None
        path = self._path(naming.thumbnail_name(self._options.file_name, kie_task_id, index))
        small = local.with_suffix(".thumb.jpg")
        try:
            with local.open("rb") as file:
                content, _ = shrink(file)
            stored = storage.sha256_of(path)
            if stored != hashlib.sha256(content).hexdigest():
                if stored is not None and not self._options.overwrite:
                    raise KieTargetError(f"{path} exists with other content; it was not changed")
                small.write_bytes(content)
                storage.put(small, path)
        except Exception as error:  # noqa: BLE001  # decoders and storage libraries raise anything; only the image matters
            log.warning("No thumbnail of %s was stored: %s", image, error)
            return None
        finally:
            small.unlink(missing_ok=True)
        return str(path)

    def _embed(self, result: Result, source: Path, local: Path, media: Media) -> None:
        model, prompt = result.get("model"), input_of(result).get("prompt")
        facts = Provenance(
            service="Kie.ai",
            model=model if isinstance(model, str) and model else "unknown model",
            task_id=result["kie_task_id"],
            prompt=prompt if isinstance(prompt, str) and not self._options.redact_prompt else None,
        )
        try:
            embed(source, local, media.media_type, facts)
        except EmbeddingRefusedError as error:
            raise KieResultError(
                f"embed_provenance: {error}. The file was not saved; set embed_provenance=False and clear this task: "
                "nothing is paid again"
            ) from None

    def _saved_before(self, result: Result, index: int, name: str) -> SavedFile | None:
        """Return the file if an earlier try saved it with the same options; its sidecar was written last."""
        content = storage.read_bytes(self._path(name), _LARGEST_SIDECAR)
        try:
            facts = json.loads(content or b"{}")
        except (ValueError, RecursionError):
            return None
        file = SavedFile.from_json(facts.get("file")) if isinstance(facts, dict) else None
        if file is None or file.media_type not in EXTENSIONS:
            return None
        is_ours = (
            facts.get("kie_task_id") == result["kie_task_id"]
            and facts.get("index") == index
            and facts.get("embedded_provenance") == self._options.embed_provenance
            and ("prompt_sha256" in facts) == self._options.redact_prompt
            and (file.media_type in DECODED_TYPES or not self._must_be_image(result))
        )
        path = self._image_path(name, file.media_type)
        if not is_ours or storage.sha256_of(path) != file.stored_sha256:
            return None
        log.info("%s is there already", path)
        return self._as_named(file, name)

    def _as_named(self, file: SavedFile, sidecar_name: str) -> SavedFile:
        """Return a file with the paths that these options give it, whatever paths a sidecar or manifest claims."""
        path = self._image_path(sidecar_name, file.media_type)
        thumbnail = self._path(f"{sidecar_name.removesuffix('json')}thumb.jpg")
        return replace(
            file,
            path=str(path),
            sidecar=str(self._path(sidecar_name)),
            thumbnail=None if file.thumbnail is None else str(thumbnail),
        )

    def _image_path(self, sidecar_name: str, media_type: str) -> ObjectStoragePath:
        return self._path(f"{sidecar_name.removesuffix('json')}{EXTENSIONS.get(media_type, '')}")

    def _path(self, name: str) -> ObjectStoragePath:
        return self._folder / name


def _raise_first_error(kie_task_id: str, files: Collection[SavedFile | KieError | None]) -> None:
    errors = [file for file in files if isinstance(file, KieError)]
    for error in errors:
        error.kie_task_id = kie_task_id
    for error in errors[1:]:
        log.warning("%s", error)
    if errors:
        if len(files) > 1:
            log.warning("%d of %d files of Kie task %s were saved", len(files) - len(errors), len(files), kie_task_id)
        raise errors[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
