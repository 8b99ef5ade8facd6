"""From Kie's ``code`` and text to the error.

Kie answers most failures with HTTP 200 and a ``code`` in the body, so the code, not the HTTP status, picks the class.
Body code 500 is the exception: Kie also uses it for a missing field, a value out of range and an empty account, and
only the text tells these apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from kie_provider.client.errors import (
    KieAuthError,
    KieError,
    KieFeatureDisabledError,
    KieInsufficientCreditsError,
    KieMaintenanceError,
    KieNotFoundError,
    KieQuotaError,
    KieRateLimitError,
    KieServerError,
    KieTaskFailedError,
    KieValidationError,
)
from kie_provider.client.plain import one_line

#: Kie's ``code`` -> error. Codes that are not here are judged by :func:`error_for_code`.
ERROR_BY_CODE: Mapping[int, type[KieError]] = {
    400: KieValidationError,
    401: KieAuthError,
    402: KieInsufficientCreditsError,
    404: KieNotFoundError,
    408: KieTaskFailedError,  # the upstream model gave nothing for ten minutes
    422: KieValidationError,
    429: KieRateLimitError,
    433: KieQuotaError,
    455: KieMaintenanceError,
    500: KieServerError,
    501: KieTaskFailedError,
    505: KieFeatureDisabledError,
}

# Whole texts seen under code 500 that say the request, or the account, is at fault. A part of a text proves nothing:
# "the connection must be reset" may come when a task has been created.
_FIELD = (
    r"(?:[a-z]+(?:_[a-z0-9]+)+|audio|duration|image|input|language|lyrics|mode|model|prompt|quality|resolution|size|style"
    r"|text|title|video|voice)"
)
_VALIDATION_TEXT = re.compile(
    rf"(?:This field|{_FIELD}) is required|This {_FIELD} is not within the range of allowed options"
    "|The text length cannot exceed the maximum limit"
)
_CREDITS_TEXT = re.compile(
    r"Credits insufficient(?: : Your current balance isn't enough to run this request\. Please top up to continue\.)?"
)
#: HTTP statuses by which a proxy or web server says that it has not passed a request on. Not 403: firewalls that look
#: at answers send it when Kie has done its work.
_NOT_PASSED_ON = (401, 404, 405, 407, 411, 413, 414, 415, 421, 431)


def error_for_code(
    code: int,
    message: str,
    *,
    http_status: int | None = None,
    kie_task_id: str | None = None,
    retry_after: float | None = None,
) -> KieError:
    """Return the error for Kie's ``code`` and text; this is the one table that decides.

    An unlisted code from 500 up counts as a server error (ask again), any other as final.
    """
    error = ERROR_BY_CODE.get(code, KieServerError if code >= 500 else KieError)
    message = one_line(message)
    if code == 500 and _CREDITS_TEXT.fullmatch(message):
        error = KieInsufficientCreditsError
    elif code == 500 and _VALIDATION_TEXT.fullmatch(message):
        error = KieValidationError
    return error(message, code=code, http_status=http_status, kie_task_id=kie_task_id, retry_after=retry_after)


def refuses_submission(error: KieError) -> bool:
    """Whether this error, read from an answer to createTask, says that nothing was created.

    Only refusals known as such count. After a server error, an upstream failure or an unknown code a task may exist.
    """
    if error.is_from_gateway:
        return error.http_status in _NOT_PASSED_ON
    return error.code in ERROR_BY_CODE and not isinstance(error, KieServerError | KieTaskFailedError)
