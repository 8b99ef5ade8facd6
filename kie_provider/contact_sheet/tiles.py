"""The tiles of a sheet: what is known of each image, and the links to it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import quote

from kie_provider.client.plain import is_http_url
from kie_provider.client.prices import PriceTable
from kie_provider.compat import path_conn_id
from kie_provider.contact_sheet.results import list_of, number_of, text_of
from kie_provider.contact_sheet.style import count, dollars

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath


@dataclass(frozen=True)
class Tile:
    """One image, or gap, of the sheet.

    :param kind: ``image``; ``missing`` (no image), ``unreadable`` (a file that cannot be shown) or ``other`` (not
        saved, or not an image).
    :param note: shown instead of the thumbnail.
    :param problem: why the file cannot be shown, in full; only for the log, as a sheet may be mailed to anybody.
    :param credits: cost of the result; only of its first file. None: not known.
    :param seconds: that the Kie task took.
    :param number: which file of several it is, such as ``1 of 3``.
    :param size: width and height of the image, in pixels.
    :param file: the saved file.
    :param where: path or URL of the full image, as text.
    :param link: URL of the full image that a browser can follow; None: there is none.
    :param sidecar: likewise, of the JSON file.
    :param thumbnail: JPEG.
    """

    prompt: str
    kind: str = "missing"
    note: str = "no image"
    problem: str = ""
    model: str = ""
    state: str = ""
    credits: float | None = None
    seconds: float | None = None
    number: str = ""
    size: tuple[int, int] | None = None
    file: ObjectStoragePath | None = None
    where: str = ""
    link: str | None = None
    sidecar: str | None = None
    thumbnail: bytes | None = None

    def facts(self, prices: PriceTable | None = None) -> list[str]:
        """Return what is known of the result; with ``prices``, also what it cost in dollars."""
        facts = [self.number] if self.number else []
        if self.credits is not None:
            facts.append(count(self.credits, "credit"))
            if prices is not None:
                facts.append(dollars(self.credits * prices.usd_per_credit))
        if self.seconds is not None:
            facts.append(f"{self.seconds:g} s")
        if self.size:
            facts.append(f"{self.size[0]} \u00d7 {self.size[1]}")
        return facts


def tiles_of(
    prompt: str, result: Mapping[str, object] | None, folder: ObjectStoragePath, prices: PriceTable
) -> list[Tile]:
    """Return a tile for every file of a result, or for every URL if no file was saved; one tile if it has neither."""
    if result is None:
        return [Tile(prompt)]
    base = Tile(
        prompt,
        model=text_of(result.get("model")),
        state=text_of(result.get("state")),
        credits=prices.cost_of(result),
        seconds=number_of(result.get("cost_seconds")),
    )
    tiles = [_file_tile(base, file, folder) for file in list_of(result.get("files")) if isinstance(file, dict)]
    if not tiles:
        urls = [url for url in list_of(result.get("urls")) if is_http_url(url)]
        tiles = [replace(base, kind="other", note="not saved", where=url, link=url) for url in urls]
    if len(tiles) > 1:
        tiles = [
            replace(tile, number=f"{n + 1} of {len(tiles)}", credits=None if n else tile.credits)
            for n, tile in enumerate(tiles)
        ]
    return tiles or [base]


def _file_tile(base: Tile, file: Mapping[str, object], folder: ObjectStoragePath) -> Tile:
    path, media_type = text_of(file.get("path")), text_of(file.get("media_type"))
    width, height = number_of(file.get("width")), number_of(file.get("height"))
    where = _stored_file(path)
    tile = replace(
        base,
        kind="image",
        note="",
        size=(int(width), int(height)) if width and height else None,
        file=where,
        where=path,
        link=_link(path, where, folder),
        sidecar=_link(sidecar := text_of(file.get("sidecar")), _stored_file(sidecar), folder),
    )
    if media_type and not media_type.startswith("image/"):
        return replace(tile, kind="other", note=media_type)
    return tile


def _link(path: str, file: ObjectStoragePath | None, folder: ObjectStoragePath) -> str | None:
    """Return a link from a page in ``folder``: relative if the file is below it, else a URL, a local path or None."""
    if is_http_url(path):
        return path
    if file is None or _store(file) != _store(folder):
        return None
    below = PurePosixPath(file.path)
    if below.is_relative_to(folder.path):
        # With the dot, and with colons quoted, no file name can be taken for a scheme.
        return f"./{quote(below.relative_to(folder.path).as_posix())}"
    # Two slashes would begin a host name.
    return f"/{quote(file.path.lstrip('/'))}" if _store(file) == _LOCAL else None


def _stored_file(path: str) -> ObjectStoragePath | None:
    """Return the path of a file that a result names; None: it names none. The connection is not looked up."""
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    try:
        return ObjectStoragePath(path if "://" in path else str(Path(path).absolute())) if path else None
    except Exception:  # noqa: BLE001  # an unknown scheme, or text that is not a path
        return None


_LOCAL = ("file", None)


def _store(path: ObjectStoragePath) -> tuple[str, str | None]:
    """Return what identifies the storage of a path: protocol and connection."""
    from kie_provider.files import storage

    return _LOCAL if storage.is_local(path) else (path.protocol, path_conn_id(path))


def height_ratio(tiles: Sequence[Tile]) -> float:
    """Return a height / width that suits most images, between 0.5 and 1.25."""
    ratios = [tile.size[1] / tile.size[0] for tile in tiles if tile.kind == "image" and tile.size]
    return min(max(statistics.median(ratios or [0.75]), 0.5), 1.25)
