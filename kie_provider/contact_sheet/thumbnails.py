"""Thumbnails for the tiles of a sheet, made from the saved images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from kie_provider.client.plain import clean_text
from kie_provider.contact_sheet.tiles import Tile
from kie_provider.files.thumbnails import TooLargeError, shrink

log = logging.getLogger(__name__)

#: Each thread uses a core, and the memory of one decoded image.
THREADS = 2

#: Shown instead of an image whose file does not exist.
NOT_FOUND = "file not found"

_READ_BLOCK = 4 * 2**20


def with_thumbnails(tiles: Sequence[Tile]) -> list[Tile]:
    """Read the images, in threads; one that cannot be read gets a tile that says so, and a warning in the log."""
    # Looked up here: only the main thread of a task asks Airflow for connections.
    file_systems = [_file_system(tile) for tile in tiles]
    with ThreadPoolExecutor(THREADS, thread_name_prefix="kie-sheet") as pool:
        done = list(pool.map(_with_thumbnail, tiles, file_systems))
    for tile in done:
        if tile.kind == "unreadable":
            log.warning("The contact sheet cannot show %s: %s", tile.where or "a file without path", tile.problem)
    return done


def _file_system(tile: Tile) -> Any:  # fsspec has no types
    """Return the fsspec file system of a tile's image, or the error of looking it up."""
    if tile.kind != "image" or tile.file is None:
        return None
    try:
        return tile.file.fs
    except Exception as error:  # noqa: BLE001  # missing connection, package, permission: the tile shows it
        return error


def _with_thumbnail(tile: Tile, file_system: Any) -> Tile:
    if tile.kind != "image":
        return tile
    try:
        if isinstance(file_system, Exception):
            raise file_system
        with _open(tile, file_system) as stream:
            thumbnail, size = shrink(stream)
    except Exception as error:  # noqa: BLE001  # decoders raise anything; only this tile is affected
        problem = f"{type(error).__name__}: {error}"
        return replace(tile, kind="unreadable", note=_why(error), problem=clean_text(problem))
    return replace(tile, thumbnail=thumbnail, size=size)


def _open(tile: Tile, file_system: Any) -> IO[bytes]:
    from kie_provider.files import storage

    if tile.file is None:
        raise ValueError("not a path of a known storage")
    if storage.is_local(tile.file):
        return storage.open_regular(Path(tile.file.path))
    stream: IO[bytes] = file_system.open(tile.file.path, "rb", block_size=_READ_BLOCK)
    return stream


def _why(error: Exception) -> str:
    """Say in a few words why an image cannot be shown."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, TooLargeError | Image.DecompressionBombError | Image.DecompressionBombWarning):
        return "too large"
    if isinstance(error, FileNotFoundError):
        return NOT_FOUND
    return "not an image" if isinstance(error, UnidentifiedImageError) else "cannot be read"
