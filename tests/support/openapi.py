"""The vendor's published schema of createTask, as a check for both sides of the wire."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema

_SCHEMAS = json.loads((Path(__file__).parents[1] / "data" / "createtask_openapi.json").read_text())
_FORMATS = jsonschema.FormatChecker(formats=())


@_FORMATS.checks("uri")
def _is_uri(value: object) -> bool:
    parts = urlsplit(value) if isinstance(value, str) else None
    return parts is None or bool(parts.scheme and parts.netloc)


def validate_request(body: Any) -> None:
    """Raise jsonschema.ValidationError unless ``body`` is a createTask request as published."""
    jsonschema.validate(body, _SCHEMAS["request"], format_checker=_FORMATS)


def validate_response(body: Any) -> None:
    """Raise jsonschema.ValidationError unless ``body`` is a createTask answer as published.

    The page has no word on ``data`` of an error, where the real API sends null; that null counts as absent here.
    """
    if isinstance(body, dict) and body.get("code") != 200 and body.get("data", ...) is None:
        body = {name: value for name, value in body.items() if name != "data"}
    jsonschema.validate(body, _SCHEMAS["response"])
