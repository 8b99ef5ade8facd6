"""What a task has made, in every form in which Kie is known to send it. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

from kie_provider.client.plain import is_http_url

#: Texts that are JSON were met encoded twice; this is how often they are decoded at most.
_ENCODINGS = 4
_DEEPEST = 20
#: Names of fields that hold what was made: ``resultUrls``, ``audio_url``, ``videos``, ``{"data": [{"url": ...}]}``.
_RESULT = re.compile(r"(url|uri|link|image|video|audio|file|output|result|data)s?$", re.IGNORECASE)
#: Where a record itself holds a result, as those of Kie's older endpoints do.
_LOOSE = (
    *("resultUrls", "resultUrl", "resultObject", "resultInfoJson", "videoInfo", "info", "result", "results"),
    *("output", "outputs", "videoUrl", "audioUrl", "imageUrl", "resultImageUrl"),
)
#: What was sent to the model, and a stream or source beside the file that was made.
_NO_RESULT = re.compile(r"(input|param|request|reference|call_?back|source|origin|stream)", re.IGNORECASE)


def decoded(value: object) -> object:  # whatever JSON the text holds
    """Return the JSON in a text, however often it was encoded; any other value, or text, as it is."""
    for _ in range(_ENCODINGS):
        if not isinstance(value, str) or not value.lstrip().startswith(("{", "[", '"', "null")):
            break
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            break
    return value


def result_forms(data: Mapping[str, object]) -> list[object]:
    """Return what the fields of a record hold as its result, the preferred ``response`` before ``resultJson``."""
    loose = {name: decoded(data[name]) for name in _LOOSE if name in data}
    return [decoded(data.get("response")), decoded(data.get("resultJson")), loose]


def result_urls(forms: Sequence[object]) -> list[str]:
    """Return the http(s) URLs of the results: those under ``resultUrls``, else those wherever a model keeps them."""
    for form in forms:
        if isinstance(form, Mapping) and (urls := list(_urls(form.get("resultUrls")))):
            return urls
    return next((urls for form in forms if (urls := list(dict.fromkeys(_urls(form))))), [])


def result_object(forms: Sequence[object]) -> object:
    """Return what there is beside mere URLs: the ``resultObject``, else the model's own structure; None: nothing."""
    for form in forms:
        if isinstance(form, Mapping) and form.get("resultObject") is not None:
            return form["resultObject"]
    form = next((form for form in forms if not _is_empty(form)), None)
    return None if _is_media(form) else form


def _urls(value: object, name: str = "urls", depth: int = _DEEPEST) -> Iterator[str]:
    if not depth or _NO_RESULT.match(name):
        return
    value = decoded(value)
    if isinstance(value, str):
        url = value.strip().replace(" ", "%20")
        if _RESULT.search(name) and is_http_url(url):
            yield url
    elif isinstance(value, Mapping):
        for inner_name, inner in value.items():
            yield from _urls(inner, name if inner_name.isdigit() else inner_name, depth - 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _urls(inner, name, depth - 1)


def _is_media(form: object) -> bool:
    """Whether it has nothing but ``resultUrls`` that can be used."""
    if not isinstance(form, Mapping):
        return False
    return {name for name, value in form.items() if not _is_empty(value)} == {"resultUrls"} and bool(
        result_urls([form])
    )


def _is_empty(value: object, depth: int = _DEEPEST) -> bool:
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, Mapping | list) and depth:
        items = value.values() if isinstance(value, Mapping) else value
        return all(_is_empty(item, depth - 1) for item in items)
    return value is None or value != value  # NaN
