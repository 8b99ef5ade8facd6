"""File names of results: a pattern with a few fields, checked before a task is paid for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import Formatter
from types import MappingProxyType

from kie_provider.client.plain import shorten

FIELDS = ("kie_task_id", "index", "extension")
_ENDING = ".{extension}"
_THUMBNAIL = r"\.thumb\.\{extension\}$"
_LONGEST_NAME = 200  # bytes of one path component; file systems allow 255, and temporary names are longer


def pattern_problem(pattern: object, more_fields: Mapping[str, object] = MappingProxyType({})) -> str | None:
    """Say what is wrong with a file name pattern; None: nothing.

    :param pattern: a path below the target, with the fields :data:`FIELDS`; ``{index:03}`` pads the index.
    :param more_fields: further fields that it may have, each with its value.
    """
    if not isinstance(pattern, str) or not pattern.endswith(_ENDING):
        return f"must end with '{_ENDING}', so that the name shows the file's type, got {shorten(pattern)}"
    if pattern.rpartition("/")[2] == _ENDING:
        return f"{shorten(pattern)} gives files no name before the extension"
    try:
        parts = list(Formatter().parse(pattern))
    except ValueError as error:
        return f"{shorten(pattern)} is not a pattern ({error})"
    if re.search(_THUMBNAIL, pattern, re.IGNORECASE):
        return f"{shorten(pattern)} ends like the name of a thumbnail; choose an ending other than '.thumb'"
    fields = (*FIELDS, *more_fields)
    for _, name, spec, conversion in parts:
        if name is not None and name not in fields:
            return f"{shorten(pattern)} has a field {name!r} that is not one of {', '.join(fields)}"
        if conversion or (spec and (name not in ("index", "item") or not re.fullmatch(r"0?\d", spec))):
            given = f"{f'!{conversion}' if conversion else ''}{f':{spec}' if spec else ''}"
            return f"{shorten(pattern)}: {name} cannot have {given!r}; only numbers can have a width: {{index:03}}"
    return path_problem(pattern.format(kie_task_id="0" * 32, index=0, extension="png", **more_fields))


def path_problem(name: str) -> str | None:
    """Say why ``name`` cannot be a path below the target; None: it can."""
    if problem := text_problem(name):
        return f"{shorten(name)} {problem}"
    for part in name.split("/"):
        if not part.strip(". "):
            return f"{shorten(name)} leads out of the target, or has an empty part"
        if "\\" in part:
            return f"{shorten(name)} has a backslash"
        if len(part.encode()) > _LONGEST_NAME:
            return f"{shorten(name)} has a part of more than {_LONGEST_NAME} bytes"
    if re.match("[A-Za-z]:|[^/]*:/", name):
        return f"{shorten(name)} begins like a drive (c:) or a URL (s3:/)"
    if not re.search(r"[^/. ][^/]*\.[^./]*$", name):
        return f"{shorten(name)} has no name before the extension"
    return None


def text_problem(path: str) -> str | None:
    """Say which character or sequence makes a path invalid; None: none does."""
    if found := re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", path):
        return f"has a control character or line break ({found[0]!r})"
    if re.search("[\ud800-\udfff]", path):
        return "has half a character (a lone surrogate)"
    if found := re.search(r"::|\?#", path):
        return f"has {found[0]!r}, which storage libraries interpret"
    return None


def file_name(pattern: str, kie_task_id: str, index: int, extension: str) -> str:
    """Fill in a pattern. Kie's id is not trusted: any character that could change the path becomes an underscore."""
    safe_id = re.sub(r"[^A-Za-z0-9_-]", "_", kie_task_id)
    return pattern.format(kie_task_id=safe_id, index=index, extension=extension)


def sidecar_name(pattern: str, kie_task_id: str, index: int) -> str:
    """Return the name of the JSON file beside a result."""
    return file_name(pattern, kie_task_id, index, "json")


def thumbnail_name(pattern: str, kie_task_id: str, index: int) -> str:
    """Return the name of the thumbnail (JPEG) beside a result; no result can have such a name."""
    return file_name(pattern, kie_task_id, index, "thumb.jpg")
