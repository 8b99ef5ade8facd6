"""Keeps the API key out of every text, if a server or proxy sends it back, in whatever spelling."""

from __future__ import annotations

import contextlib
import functools
import html
import logging
import re
from collections.abc import Mapping
from typing import Any

#: Characters. A shorter key is only redacted where it stands alone: it would match other words.
_SHORTEST_UNMISTAKABLE = 6
_DEEPEST = 100
#: What the HTTP libraries log about an answer that they do not understand quotes it.
_LOGGERS = (
    "urllib3.connection",
    "urllib3.connectionpool",
    "urllib3.poolmanager",
    "urllib3.response",
    "urllib3.util.retry",
    "aiohttp.client",
    "aiohttp.internal",
)


def redact(value: object, api_key: str) -> Any:
    """Return text, or JSON with all texts in it, with ``***`` in place of the key; JSON nested 100 deep is cut.

    The key is found as it is and as JSON, URLs and HTML escape it, also where texts are encoded several times.
    """
    return _redact(value, _spellings(api_key) if api_key else None, _DEEPEST)


def _redact(value: object, pattern: re.Pattern[str] | None, depth: int) -> object:
    if isinstance(value, str):
        return pattern.sub("***", value) if pattern else value
    if not isinstance(value, Mapping | list | tuple):
        return value
    if not depth:
        return "..."
    if isinstance(value, Mapping):
        return {_redact(name, pattern, depth): _redact(inner, pattern, depth - 1) for name, inner in value.items()}
    return type(value)(_redact(inner, pattern, depth - 1) for inner in value)


@functools.lru_cache(maxsize=64)
def _spellings(api_key: str) -> re.Pattern[str]:
    key = "".join(map(_spellings_of_character, api_key))
    return re.compile(key if len(api_key) >= _SHORTEST_UNMISTAKABLE else f"(?<![0-9A-Za-z]){key}(?![0-9A-Za-z])")


def _spellings_of_character(character: str) -> str:
    code, entity = ord(character), html.escape(character)
    # The bounds keep the search linear. NUL: UTF-16 that was read as something else.
    escaped = [rf"\\{{1,16}}(?:u00|x){code:02x}", f"%{code:02x}", rf"&#(?:0{{0,5}}{code}|x0{{0,5}}{code:x});"]
    escaped += [entity] if entity != character else []
    return rf"\0{{0,3}}(?:\\{{0,16}}{re.escape(character)}|(?i:{'|'.join(escaped)}))"


class _KeyFilter(logging.Filter):
    """Redacts all keys of this process in log records."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, without a key in it."""
        with contextlib.suppress(Exception):  # a record that cannot be formatted; no request ends for it
            message, error = record.getMessage(), str(record.exc_info[1] if record.exc_info else "")
            for api_key in tuple(self.keys):
                if redact(message + error, api_key) != message + error:
                    # The traceback ends with the error's text.
                    message, error = redact(message, api_key), ""
                    record.msg, record.args, record.exc_info, record.exc_text = message, None, None, None
        return True


_filter = _KeyFilter()


def keep_out_of_logs(api_key: str) -> None:
    """Redact a key in what the HTTP libraries log from now on, at any level."""
    _filter.keys.add(api_key)
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_filter)
