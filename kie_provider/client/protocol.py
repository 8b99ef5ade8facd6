"""Kie.ai's wire format: what to send, and what an answer means. Pure; nothing here does I/O."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlencode

from kie_provider.client.codes import error_for_code, refuses_submission
from kie_provider.client.errors import (
    KieAuthError,
    KieError,
    KieNotFoundError,
    KieRateLimitError,
    KieServerError,
    KieSubmitUnknownError,
    KieValidationError,
    raise_for_problems,
)
from kie_provider.client.plain import from_text, got, is_blank, is_http_url, is_kie_task_id, shorten
from kie_provider.client.records import RUNNING_WORDS, TaskRecord, TaskState
from kie_provider.client.redaction import redact
from kie_provider.client.results import decoded

#: Credits. A larger number is not a balance.
_MORE_THAN_ANYBODY_HAS = 1e15
#: Kie's codes have three digits. A longer number is not a code, and a message would show all of it.
_LARGEST_CODE = 10**6
#: Number of bytes read for an error message.
_LONGEST_EXCERPT = 20_000


@dataclass(frozen=True)
class Request:
    """One request to Kie.

    :param path: absolute path on the API host, or on the upload host when ``to_upload_host``.
    :param json_body: sent as JSON.
    :param form: sent as multipart fields beside ``file``.
    """

    method: str
    path: str
    query: Mapping[str, str] | None = None
    json_body: Mapping[str, object] | None = None
    form: Mapping[str, str] | None = None
    file: tuple[str, bytes] | None = None
    to_upload_host: bool = False

    @functools.cached_property  # computed once for all polls of a wait
    def target(self) -> str:
        """Path and query."""
        return f"{self.path}?{urlencode(self.query)}" if self.query else self.path


@dataclass(frozen=True)
class Answer:
    """What came back.

    :param retry_after: seconds asked for by the ``Retry-After`` header, if any.
    :param api_key: removed from everything that is read from the body, should a server or proxy echo it.
    """

    http_status: int
    body: bytes = field(repr=False)
    retry_after: float | None = None
    api_key: str = field(default="", repr=False)


def create_task_body(
    model: str, task_input: Mapping[str, object], callback_url: str | None = None
) -> dict[str, object]:
    """Return the body of createTask.

    :raises KieValidationError: an argument cannot be sent; the message names all that cannot.
    """
    problems = []
    if is_blank(model) or not isinstance(model, str):
        problems.append(f"model: must be the id of a Kie model, {got(model)}")
    try:
        task_input = _plain_object(task_input)
    except (TypeError, ValueError, RecursionError) as error:
        why = "" if is_blank(task_input) else f" ({error})"
        problems.append(f"input: must be a JSON object, {got(task_input)}{why}")
    raise_for_problems([*problems, *callback_url_problems(callback_url)])
    body: dict[str, object] = {"model": model.strip(), "input": task_input}
    if not is_blank(callback_url):
        body["callBackUrl"] = callback_url
    return body


def callback_url_problems(callback_url: object) -> list[str]:
    """Say what is wrong with the URL that Kie is to call; a blank one means none."""
    if is_blank(callback_url) or is_http_url(callback_url):
        return []
    return [f"callback_url: must be an http(s) URL that Kie can reach, got {shorten(callback_url)}"]


def create_task(body: Mapping[str, object]) -> Request:
    """Request a new, billed task.

    :param body: of :func:`create_task_body`.
    """
    return Request("POST", "/api/v1/jobs/createTask", json_body=body)


@functools.lru_cache(maxsize=4096)  # one for all polls of a wait
def get_task(kie_task_id: str) -> Request:
    """Request the record of a task."""
    return Request("GET", "/api/v1/jobs/recordInfo", query={"taskId": kie_task_id})


def get_credits() -> Request:
    """Request the credit balance."""
    return Request("GET", "/api/v1/chat/credit")


def get_download_url(url: str) -> Request:
    """Request a fresh link to one of Kie's own files; it is valid for 20 minutes."""
    return Request("POST", "/api/v1/common/download-url", json_body={"url": url})


def upload_file(name: str, content: bytes, upload_path: str) -> Request:
    """Request the (free) upload of an input file."""
    return Request(
        "POST",
        "/api/file-stream-upload",
        form={"uploadPath": upload_path, "fileName": name},
        file=(name, content),
        to_upload_host=True,
    )


def read_created(answer: Answer) -> str:
    """Return the id of the task that createTask created.

    :raises KieSubmitUnknownError: the answer leaves open whether a task was created.
    :raises KieError: Kie refused; nothing was created.
    """
    try:
        data = _read_envelope(answer)
    except KieError as error:
        named = _named_task(answer)
        if named is None and refuses_submission(error):
            raise
        doubt = f"createTask was answered with an error ({error.summary}: {error.message})"
        raise _doubt(doubt, answer, named, error.code) from error
    kie_task_id = data.get("taskId") if isinstance(data, Mapping) else None
    kie_task_id = kie_task_id.strip() if isinstance(kie_task_id, str) else kie_task_id
    if is_kie_task_id(kie_task_id) and redact(kie_task_id, answer.api_key) == kie_task_id:
        return str(kie_task_id)
    raise _doubt(
        f"Kie says success but sent no taskId that can be one: data is {_shown(data, answer)}",
        answer,
        _named_task(answer),
    )


def _doubt(what: str, answer: Answer, named: Any, code: int | str | None = None) -> KieSubmitUnknownError:
    """Return the error for an answer that leaves open whether a task was created.

    :param named: what the answer calls the task's id; None: nothing.
    """
    is_usable = is_kie_task_id(named)
    if named is not None:
        what += f"; it names Kie task {named if is_usable else _shown(named, answer)}"
    return KieSubmitUnknownError(
        what, code=code, http_status=answer.http_status, kie_task_id=named if is_usable else None
    )


#: Where an answer to createTask has the id of the new task; Kie sends it as ``recordId``, too.
_ID_FIELDS = ("taskId", "task_id", "recordId")
_ID_IN_A_FRAGMENT = re.compile(rb"(?:task_?id|recordid)\W{1,20}([\w-]{1,200})", re.IGNORECASE)


def _named_task(answer: Answer) -> Any:
    """Return what an answer to createTask calls the task's id, be it one or not; None: nothing.

    Every place counts where Kie or a proxy may have left it: whoever knows the id can find out what has become of it.
    """
    try:
        body = decoded(json.loads(answer.body))
    except (ValueError, RecursionError):
        fragment = _ID_IN_A_FRAGMENT.search(answer.body)
        return redact(fragment[1].decode(), answer.api_key) if fragment else None
    data = decoded(body.get("data")) if isinstance(body, Mapping) else None
    for part in (data, *(data if isinstance(data, list) else ()), body):
        for name in _ID_FIELDS if isinstance(part, Mapping) else ():
            value = part.get(name)
            if value not in (None, "", [], {}):
                return redact(value.strip() if isinstance(value, str) else value, answer.api_key)
    return None


def read_task(answer: Answer, kie_task_id: str) -> TaskRecord:
    """Return the task's record.

    :raises KieNotFoundError: Kie does not know the task, or not yet.
    :raises KieError: any other failure.
    """
    return _redacted_record(_read_record(answer, kie_task_id), kie_task_id, answer)


def read_poll(answer: Answer, kie_task_id: str) -> TaskRecord:
    """Return the task's record as a wait needs it; otherwise as :func:`read_task`.

    Nearly all polls find a running task, for which the state alone is parsed, at a third of the cost.
    """
    data = _read_record(answer, kie_task_id)
    kie_state = data.get("state")
    if kie_state in RUNNING_WORDS:
        return _running(kie_task_id, kie_state)
    return _redacted_record(data, kie_task_id, answer)


@functools.lru_cache(maxsize=4096)  # one for all polls of a wait
def _running(kie_task_id: str, kie_state: str) -> TaskRecord:
    return TaskRecord(kie_task_id, TaskState.RUNNING, kie_state)


def _redacted_record(data: Mapping[str, object], kie_task_id: str, answer: Answer) -> TaskRecord:
    """Return a record without the key in it, also where texts were encoded twice."""
    record = TaskRecord.from_data(data, kie_task_id)
    texts = ("kie_state", "model", "input", "urls", "result", "fail_code", "fail_message")
    return replace(record, **{name: redact(getattr(record, name), answer.api_key) for name in texts})


def _read_record(answer: Answer, kie_task_id: str) -> Mapping[str, object]:
    """Return the ``data`` of a recordInfo answer, with the key where the server has put it.

    :raises KieServerError: it is about another task: a cache may have ignored the query.
    """
    try:
        data = _read_envelope(answer)
    except KieError as error:
        error.kie_task_id = kie_task_id
        # Kie answers an unknown id with 422 and this text, not with 404.
        if isinstance(error, KieValidationError) and "recordinfo is null" in error.message.lower():
            raise KieNotFoundError(
                f"no record of this task ({error.message})",
                code=error.code,
                http_status=error.http_status,
                kie_task_id=kie_task_id,
            ) from error
        raise
    if data is None:  # what sibling endpoints send for an unknown id
        raise KieNotFoundError("no record of this task (code 200 without data)", code=200, kie_task_id=kie_task_id)
    if not isinstance(data, Mapping):
        raise KieServerError(
            f"the task's record is not an object but {_shown(data, answer)}",
            http_status=answer.http_status,
            kie_task_id=kie_task_id,
        )
    told = data.get("taskId") or data.get("task_id")
    if told not in (None, "", kie_task_id) and str(told).strip() != kie_task_id.strip():
        raise KieServerError(
            f"recordInfo was asked for task {kie_task_id} and answered about {_shown(told, answer)}",
            http_status=answer.http_status,
            kie_task_id=kie_task_id,
        )
    return data


def read_credits(answer: Answer) -> float:
    """Return the credit balance; documented as an integer, sent as a decimal."""
    data = _read_envelope(answer)
    # Neither NaN nor infinity, which JSON texts of Python have, nor an integer that no float can hold.
    if isinstance(data, bool) or not isinstance(data, int | float) or not abs(data) < _MORE_THAN_ANYBODY_HAS:
        raise KieServerError(f"the credit balance is not a number but {_shown(data, answer)}")
    return float(data)


def read_download_url(answer: Answer) -> str:
    """Return the fresh link."""
    data = _read_envelope(answer)
    if not is_http_url(data):
        raise KieServerError(f"the download link is not a URL but {_shown(data, answer)}")
    return str(redact(data, answer.api_key))


def read_upload(answer: Answer) -> str:
    """Return the URL of the uploaded file."""
    data = _read_envelope(answer)
    url = data.get("downloadUrl") if isinstance(data, Mapping) else None
    if not is_http_url(url):
        raise KieServerError(f"the upload was answered without a downloadUrl: {_shown(data, answer)}")
    return str(redact(url, answer.api_key))


def _plain_object(value: object) -> dict[str, object]:
    """Return ``value`` as plain JSON: Airflow renders mapped XComs as sequences of its own, and text stays text."""
    plain = json.loads(json.dumps(from_text(value), allow_nan=False, default=_plain_item))
    if not isinstance(plain, dict):
        raise TypeError(f"{type(plain).__name__} is not an object")
    return plain


def _plain_item(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return list(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def _read_envelope(answer: Answer) -> object:
    """Return ``data`` of a successful answer.

    Kie sends most errors with HTTP 200, so ``code`` decides wherever the body has one; the HTTP status decides for
    gateways and wrong hosts, which do not speak Kie's JSON.

    :raises KieError: anything but success.
    """
    status = answer.http_status
    try:
        body = json.loads(answer.body)
    except (ValueError, RecursionError):
        raise _foreign_error(answer, f"not JSON but {_excerpt(answer)}") from None
    code = body.get("code") if isinstance(body, dict) else None
    if isinstance(code, str) and code.strip().isdecimal() and len(code) < 20:
        code = int(code)
    if isinstance(code, bool) or not isinstance(code, int) or abs(code) >= _LARGEST_CODE:
        raise _foreign_error(answer, f"JSON without Kie's code: {_excerpt(answer)}")
    if code != 200:
        message = body.get("msg") or body.get("message")
        raise error_for_code(
            code,
            redact(message, answer.api_key) if isinstance(message, str) else "(no message)",
            http_status=status,
            retry_after=answer.retry_after,
        )
    if not 200 <= status < 300:
        raise _foreign_error(answer, f"code 200 in the body: {_excerpt(answer)}", code)
    return body.get("data")


def _foreign_error(answer: Answer, what: str, code: int | None = None) -> KieError:
    """Return the error for an answer that is not Kie's JSON, so that the HTTP status decides."""
    status = answer.http_status
    message = f"HTTP {status} with {what}"
    error: type[KieError]
    if status in (401, 403):
        error = KieAuthError
    elif status == 429:
        error = KieRateLimitError
    elif 300 <= status < 500 and status != 408:
        error = KieValidationError
        message += "; is the connection's host Kie's API?"
    else:
        error = KieServerError
    return error(message, code=code, http_status=status, retry_after=answer.retry_after)


def _excerpt(answer: Answer) -> str:
    # The key is removed before the text is cut; otherwise half of it could remain.
    text = redact(answer.body[:_LONGEST_EXCERPT].decode("utf-8", "replace"), answer.api_key)
    text = " ".join(text.split())
    return repr(f"{text[:120]}..." if len(text) > 120 else text)


def _shown(value: object, answer: Answer) -> str:
    """Return a value from an answer for an error message."""
    return shorten(redact(value, answer.api_key))
