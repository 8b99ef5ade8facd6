"""Write the contact sheet of results into a folder."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypedDict

from kie_provider.client.errors import KieTargetError
from kie_provider.client.plain import clean_text
from kie_provider.client.prices import PriceTable
from kie_provider.contact_sheet.page import draw_page
from kie_provider.contact_sheet.picture import draw_picture
from kie_provider.contact_sheet.results import flat, match_prompts, result_dicts
from kie_provider.contact_sheet.style import SEPARATOR, count, dollars
from kie_provider.contact_sheet.thumbnails import NOT_FOUND, with_thumbnails
from kie_provider.contact_sheet.tiles import Tile, tiles_of
from kie_provider.files.media import require_pillow

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath


class Totals(TypedDict):
    """Counts of a sheet, and what its results cost."""

    images: int
    missing: int
    not_found: int
    unreadable: int
    other: int
    credits: float
    usd: float


class Sheet(TypedDict):
    """The paths of a sheet's files as text, and some of its totals."""

    html: str
    png: str
    manifest: str
    images: int
    missing: int
    not_found: int
    credits: float


def write_contact_sheet(
    results: Iterable[object] | Mapping[str, object] | None,
    folder: ObjectStoragePath | str,
    *,
    prompts: Iterable[object] | None = (),
    title: str = "Contact sheet",
    name: str = "contact_sheet",
    prices: PriceTable | None = None,
) -> Sheet:
    """Show results and gaps as ``<name>.html``, ``<name>.png`` and ``<name>.json`` in ``folder``; needs Pillow.

    The thumbnails are embedded in the page, so it can be moved or mailed; only its links to the full images are
    relative. The JSON has ``title``, ``results``, ``prompts_without_result`` and ``totals`` (``images``, ``missing``,
    ``not_found``, ``unreadable``, ``other``, ``credits``, ``usd``). Each file appears only when it is complete.

    :param results: result dicts, possibly nested in lists, or a single one. Anything that is not a dict is left out:
        Airflow 3.1 has such values in place of failed mapped tasks. Saved images are those in ``files``.
    :param folder: where the three files go, as ObjectStoragePath or text: a local folder, which is created, or
        ``s3://conn@bucket/prefix``.
    :param prompts: all requested prompts, in the order to show them. Each is matched with one result by
        ``result["input"]["prompt"]``, without surrounding white space; a prompt without a result is shown as a gap.
        Results of other prompts come last. Default: no gaps.
    :param title: heading of the page and of the PNG.
    :param name: file name without suffix.
    :param prices: the cost of results where Kie does not say, and US dollars per credit; default: Kie's list.
    :return: ``html``, ``png``, ``manifest`` (paths as text), ``images`` (how many are shown), ``missing`` (how many
        prompts have no image), ``not_found`` (how many files of results do not exist) and ``credits`` (of all results;
        one of unknown cost counts as 0).
    :raises KieTargetError: ``name`` or ``folder`` cannot be used, or Pillow is not installed.
    :raises KieStorageError: the storage failed.
    """
    from kie_provider.files import storage

    prices = PriceTable.parse() if prices is None else prices
    require_pillow()
    if not name or name != PurePosixPath(name).name or name == ".." or "\\" in name:
        raise KieTargetError(f"name: must be a file name without folder and suffix, got {name!r}")
    folder = storage.storage_path("target", folder)
    title = clean_text(title)
    made = result_dicts(results)
    rows = match_prompts(made, [clean_text(str(p)).strip() for p in flat(prompts) if p is not None])
    without_result = [prompt for prompt, result in rows if result is None]
    tiles = with_thumbnails([tile for prompt, result in rows for tile in tiles_of(prompt, result, folder, prices)])
    totals = _totals(tiles, made, prices)
    headline = _headline(totals)
    manifest = {"title": title, "results": made, "prompts_without_result": without_result, "totals": totals}
    # The page is stored last: when it is visible, the others are too.
    contents = {
        folder / f"{name}.json": json.dumps(manifest, ensure_ascii=False, indent=2).encode(),
        folder / f"{name}.png": draw_picture(tiles, title, headline),
        folder / f"{name}.html": draw_page(tiles, title, headline, prices).encode(),
    }
    with storage.storage_errors(tempfile.gettempdir()), tempfile.TemporaryDirectory(prefix="kie-sheet-") as temporary:
        local = Path(temporary, "file")
        for target, content in contents.items():
            local.write_bytes(content)
            storage.put(local, target)
    manifest_path, png, page = map(str, contents)
    return {
        "html": page,
        "png": png,
        "manifest": manifest_path,
        "images": totals["images"],
        "missing": totals["missing"],
        "not_found": totals["not_found"],
        "credits": totals["credits"],
    }


def _totals(tiles: Sequence[Tile], results: Sequence[Mapping[str, object]], prices: PriceTable) -> Totals:
    credits_used = prices.total_of(results)
    not_found = sum(tile.note == NOT_FOUND for tile in tiles)
    kinds = [tile.kind for tile in tiles]
    return {
        "images": kinds.count("image"),
        "missing": kinds.count("missing"),
        "not_found": not_found,
        "unreadable": kinds.count("unreadable") - not_found,
        "other": kinds.count("other"),
        "credits": credits_used,
        "usd": prices.usd(credits_used) or 0.0,
    }


def _headline(totals: Totals) -> str:
    return SEPARATOR.join(
        [
            count(totals["images"], "image"),
            *([count(totals["missing"], "gap")] if totals["missing"] else []),
            *([f"{count(totals['not_found'], 'file')} not found"] if totals["not_found"] else []),
            *([f"{totals['unreadable']} unreadable"] if totals["unreadable"] else []),
            *([f"{totals['other']} without preview"] if totals["other"] else []),
            count(totals["credits"], "credit"),
            dollars(totals["usd"]),
        ]
    )
