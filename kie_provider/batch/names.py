"""The file names of a batch: one per item, known before anything is paid for."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from string import Formatter
from typing import TYPE_CHECKING, Any

from kie_provider.client.errors import KieTargetError
from kie_provider.client.plain import counted, is_blank
from kie_provider.files import naming, storage

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

#: Fields of a pattern that only a batch has: the index of an item in the list, and its prompt as part of a name.
ITEM_FIELDS = ("item", "prompt_slug")
_SLUG_LENGTH = 40
_NAMED = 10
_IMAGE_EXTENSIONS = ("png", "jpg", "webp")


def slug(prompt: object) -> str:
    """Return a prompt as part of a file name: lower-case letters and digits, joined by hyphens."""
    return re.sub(r"[\W_]+", "-", str(prompt).lower()).strip("-")[:_SLUG_LENGTH].strip("-") or "image"


def read_names(
    items: Sequence[tuple[Any, Any]], default: Any, *, redact_prompt: bool = False
) -> tuple[list[str | None], list[str]]:
    """Return the pattern of every item for :mod:`kie_provider.files.naming`, and the problems found.

    :param items: file name and prompt of each item; a blank name means the default.
    :param default: pattern for the items that have none.
    :param redact_prompt: whether the prompt must not appear.
    :return: patterns with the fields of the item filled in, None for an invalid one. Without problems, all names are
        unique.
    """
    patterns: list[str | None] = []
    problems: dict[str, None] = {}  # in order, each once: the default may be invalid for every item
    first: dict[str, int] = {}
    for index, (own, prompt) in enumerate(items):
        pattern, label = (default, "file_name") if is_blank(own) else (own, f"prompts[{index}].file_name")
        values = {"item": index, "prompt_slug": slug(prompt)}
        problem = naming.pattern_problem(pattern, values)
        if problem is None and redact_prompt and "prompt_slug" in fields_of(pattern):
            problem = "must not have {prompt_slug} with redact_prompt=True"
        filled_in = None if problem else fill_in(pattern, values)
        patterns.append(filled_in)
        if filled_in is None:
            problems[f"{label}: {problem}"] = None
        elif "kie_task_id" not in fields_of(filled_in):
            name = naming.file_name(filled_in, "", 0, "png")
            if first.setdefault(name, index) != index:
                problems[
                    f"prompts[{index}].file_name: would be {name!r}, like that of prompts[{first[name]}]; put "
                    "{item}, {prompt_slug} or {kie_task_id} into the pattern, or give each item its own name"
                ] = None
    return patterns, list(problems)


def fields_of(pattern: str) -> set[str]:
    """Return the names of the fields of a pattern."""
    return {name for _, name, _, _ in Formatter().parse(pattern) if name is not None}


def fill_in(pattern: str, values: Mapping[str, object]) -> str:
    """Fill in some fields of a pattern, and keep the others."""
    parts = []
    for literal, name, spec, _ in Formatter().parse(pattern):
        parts.append(literal.replace("{", "{{").replace("}", "}}"))
        if name is not None and name in values:
            parts.append(format(values[name], spec or ""))
        elif name is not None:
            parts.append(f"{{{name}:{spec}}}" if spec else f"{{{name}}}")
    return "".join(parts)


def existing_names(folder: ObjectStoragePath, patterns: Iterable[str]) -> list[str]:
    """Return the names that already exist below the target; each folder is listed once.

    :raises KieTargetError: a folder cannot be read.
    :raises KieStorageError: the storage failed.
    """
    by_folder: dict[str, list[PurePosixPath]] = defaultdict(list)
    for pattern in patterns:
        if "kie_task_id" not in fields_of(pattern):
            for extension in _IMAGE_EXTENSIONS:
                name = PurePosixPath(naming.file_name(pattern, "", 0, extension))
                by_folder[str(name.parent)].append(name)
    found: list[str] = []
    for parent, names in by_folder.items():
        path = folder if parent == "." else folder / parent
        with storage.storage_errors(path):
            there = path.fs.ls(path.path, detail=False) if path.fs.exists(path.path) else []
        there_names = {str(each).rstrip("/").rpartition("/")[2] for each in there}
        found += [str(name) for name in names if name.name in there_names]
    return found


def refuse_existing(folder: ObjectStoragePath, patterns: Iterable[str]) -> None:
    """Refuse names that already exist, before their images are paid for.

    :raises KieTargetError: some exist.
    """
    if names := existing_names(folder, patterns):
        others = f" and {counted(len(names) - _NAMED, 'other')}" if len(names) > _NAMED else ""
        raise KieTargetError(
            f"{', '.join(map(repr, names[:_NAMED]))}{others} already exist in {folder}. Nothing was submitted. Put "
            "{kie_task_id} or something of the run into the names, or set overwrite=True"
        )
