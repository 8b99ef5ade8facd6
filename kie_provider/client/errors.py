"""Everything that can go wrong with Kie.ai, by what the caller does next."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypedDict

from kie_provider.client.plain import clean_text, storable

LOGS_PAGE = "https://kie.ai/logs"


class ErrorDict(TypedDict):
    """The JSON of a :class:`KieError`."""

    type: str
    message: str
    code: int | str | None
    http_status: int | None
    kie_task_id: str | None
    retry_after: float | None


class TaskFailedDict(ErrorDict):
    """The JSON of a :class:`KieTaskFailedError`."""

    credits_consumed: float | None


class KieError(Exception):
    """Base of all Kie.ai errors.

    :param message: what happened, in Kie's words where Kie said something.
    :param code: Kie's ``code`` (or the ``failCode`` of a failed task), if it sent one.
    :param http_status: HTTP status of the answer, if there was one.
    :param kie_task_id: the Kie task concerned, if known.
    :param retry_after: seconds that the server asked the client to wait, if it did.
    """

    #: What went wrong; precedes the message.
    summary: ClassVar[str] = "Kie.ai call failed"
    #: What to do about it; follows the message. An error that knows more replaces it.
    advice: str = ""
    #: Whether the same request may succeed later without a change.
    is_transient: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        code: int | str | None = None,
        http_status: int | None = None,
        kie_task_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        message = clean_text(message)
        super().__init__(message)
        self.message = message
        self.code = code
        self.http_status = http_status
        self.kie_task_id = kie_task_id
        self.retry_after = retry_after

    @property
    def is_from_gateway(self) -> bool:
        """Whether the answer was not Kie's own: an HTTP status without a ``code``."""
        return self.code is None and self.http_status is not None

    def __str__(self) -> str:
        facts = [
            f"{label} {value}"
            for label, value in (
                ("Kie code", self.code),
                ("HTTP", self.http_status),
                ("Kie task", self.kie_task_id),
            )
            if value is not None
        ]
        text = f"{self.summary}: {self.message}"
        if facts:
            text += f" [{', '.join(facts)}]"
        if self.advice:
            text += f" -> {self.advice}"
        return text

    def to_dict(self) -> ErrorDict:
        """Return the error as JSON, for a trigger event; :func:`error_from_dict` reads it back."""
        facts: ErrorDict = {
            "type": type(self).__name__,
            "message": self.message,
            "code": self.code,
            "http_status": self.http_status,
            "kie_task_id": self.kie_task_id,
            "retry_after": self.retry_after,
        }
        return storable(facts)


class KieAuthError(KieError):
    """The API key is missing, wrong, or not allowed from this address (code 401)."""

    summary = "Kie.ai did not accept the API key"
    advice = (
        "Set the connection's password to a key from https://kie.ai/api-key; if the key is right, look at the "
        "IP allow-list in https://kie.ai/settings."
    )


class KieConnectionError(KieAuthError):
    """The connection itself is not usable: no key, or an invalid field. Nothing was sent."""

    summary = "The Kie.ai connection is not usable"
    advice = "Correct it, then clear this task: nothing was sent."


class KieConnectionNotFoundError(KieConnectionError):
    """Airflow does not find the connection. It says so while its database is away, too, so a retry may help."""

    summary = "Airflow does not find the Kie.ai connection"
    advice = (
        "If there is one, Airflow's database was away, and a retry continues. Else create it, then clear this task: "
        "nothing was sent."
    )
    is_transient = True


class KieInsufficientCreditsError(KieError):
    """The account cannot pay for the task (code 402, or the same text under code 500)."""

    summary = "Not enough Kie.ai credits"
    advice = "Top up at https://kie.ai/billing, then clear this task: nothing was charged."


class KieBudgetError(KieError):
    """The request would cost more than the DAG's author allows; see ``max_credits`` and ``min_credits_left``."""

    summary = "This exceeds the budget"
    advice = "Raise the limit, top up, or request less, then clear this task: nothing was sent."


class KieValidationError(KieError):
    """The request itself is wrong and would be refused again (codes 400 and 422, or a text under 500 that says so)."""

    summary = "Kie.ai request is not valid"
    #: What is wrong, one problem each, if it was found before anything was sent.
    problems: tuple[str, ...] = ()

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message, **facts)
        if self.code is not None and re.search(_REFUSED_CONTENT, self.message):
            self.advice = "Change the prompt, then clear this task: nothing was charged."


class KieNotFoundError(KieError):
    """Kie does not know the task, or the endpoint."""

    summary = "Kie.ai does not know this"
    advice = (
        "Three causes: the record has expired (Kie keeps records for two months), the task belongs to another "
        f"account's key, or the connection points at another host. See {LOGS_PAGE}."
    )


class KieRateLimitError(KieError):
    """Too many requests (code 429). Kie does not queue the excess: nothing was created."""

    summary = "Kie.ai rate limit reached"
    advice = "Create fewer tasks at a time: an account may create 20 in 10 seconds. A refused request costs nothing."
    is_transient = True


class KieQuotaError(KieError):
    """The spending cap of this API key is reached (code 433)."""

    summary = "The usage cap of this Kie.ai key is reached"
    advice = "Raise the key's hourly, daily or total cap at https://kie.ai/api-key, or wait until it resets."


class KieMaintenanceError(KieError):
    """Kie is down for maintenance (code 455)."""

    summary = "Kie.ai is under maintenance"
    advice = "Try again later; a refused request creates and costs nothing."
    is_transient = True


class KieServerError(KieError):
    """Kie, or a gateway in front of it, failed (code 500, HTTP 5xx, or an answer that is not Kie's JSON)."""

    summary = "Kie.ai server error"
    is_transient = True


class KieFeatureDisabledError(KieError):
    """The model or feature is switched off (code 505)."""

    summary = "Kie.ai has disabled this feature"
    advice = "Choose another model."


class KieTransportError(KieError):
    """No usable answer: DNS, connection, TLS, proxy, time-out, or the connection broke.

    :param may_have_arrived: False only if the request certainly never left this machine.
    """

    summary = "Cannot reach Kie.ai"
    advice = "Check the connection's host and this machine's network and proxy."
    is_transient = True

    def __init__(self, message: str, *, may_have_arrived: bool = True, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.may_have_arrived = may_have_arrived


class KieSubmitUnknownError(KieError):
    """createTask was sent, but its outcome is not known: a task may be running and be billed."""

    summary = "It is not known whether Kie.ai created a task"
    advice = (
        f"Look at {LOGS_PAGE}, which shows whether a task was created at this time; it was not sent again, so that you "
        "do not pay twice."
    )


class KieJournalError(KieSubmitUnknownError):
    """What Airflow holds about the submissions of a task is inconsistent: keys are missing, or were changed."""

    summary = "What this task has submitted cannot be read"
    advice = f"Look at {LOGS_PAGE}, which shows the tasks that were created; nothing was sent in this try."


class KieTaskFailedError(KieError):
    """The task ended in ``state=fail``, for which Kie normally does not charge.

    :param credits_consumed: what Kie says it has charged nevertheless.
    """

    summary = "The Kie.ai task failed"
    advice = (
        "To create another one, clear the Airflow task that created it: Kie does not charge failed tasks. Details are "
        f"at {LOGS_PAGE}."
    )

    def __init__(self, message: str, *, credits_consumed: float | None = None, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.credits_consumed = credits_consumed
        if credits_consumed:
            self.advice = (
                f"Kie has charged {credits_consumed:g} credits for it nevertheless; see {LOGS_PAGE}. To create another "
                "one, clear the Airflow task that created it."
            )
        elif self._is_refused_content:
            self.advice = (
                "Change the prompt or the input images, then clear the Airflow task that created the Kie task: Kie "
                "does not charge failed tasks."
            )

    def to_dict(self) -> TaskFailedDict:
        """Return the error as JSON, with what was charged."""
        return {**super().to_dict(), "credits_consumed": self.credits_consumed}

    @property
    def _is_refused_content(self) -> bool:
        return bool(re.search(_REFUSED_CONTENT, self.message))

    @property
    def may_succeed_anew(self) -> bool:
        """Whether the same input, submitted as a new task, may well succeed: Kie was at fault, not the input.

        Kie charges nothing for such a task; if it has charged nevertheless, this is False. Seen in the wild:
        ``failCode`` 500 with "Internal Error, Please try again later." for whole models at a time.
        """
        if (
            self.credits_consumed
            or self._is_refused_content
            or str(self.code) in ("400", "401", "402", "422", "433", "505")
        ):
            return False
        return str(self.code) in ("408", "429", "455", "500") or bool(re.search(_TROUBLE_AT_KIE, self.message))


class KieTaskTimeoutError(KieError):
    """The task had not finished by the deadline. It keeps running at Kie and is charged when it succeeds."""

    summary = "Gave up waiting for the Kie.ai task"
    advice = (
        "Clear this task to wait for the same Kie task again, which is free: it keeps running at Kie and is not lost. "
        f"See also {LOGS_PAGE}."
    )
    is_transient = True


class KieResultError(KieError):
    """The task succeeded, but there is no usable result."""

    summary = "The Kie.ai task succeeded without a usable result"
    advice = f"It may have been charged; see {LOGS_PAGE}."


class KieBatchError(KieError):
    """Fewer images of a batch were saved than ``min_success`` requires."""

    summary = "Too few images of the batch were made"
    advice = "Retry or clear this task: it continues with what is there, and submits only what is missing."


class KieFileError(KieError):
    """What a result link delivered is not the complete, intact file that was requested: a web page, half an image."""

    summary = "What the Kie.ai link delivered is not the result"
    advice = "The result is paid for, and a retry downloads it again, which costs nothing."
    is_transient = True


class KieStorageError(KieError):
    """A result could not be written, or an input read: the disk is full, or the object store did not answer."""

    summary = "The storage failed"
    advice = (
        "Free some space or repair the storage, then retry or clear this task: it continues with the same Kie task and "
        "writes only what is missing."
    )
    is_transient = True


class KieTargetError(KieError):
    """The target cannot be used as it is: an unknown scheme, no permission, another file of that name."""

    summary = "The results cannot be saved there"
    advice = "Correct it and clear this task: what was already paid for is not submitted again."


# Texts of failed tasks: refused by moderation, or a fault at Kie that has nothing to do with the input. Not compiled
# here: DAG files import this module.
_REFUSED_CONTENT = r"(?i)nsfw|moderat|flagged|sensitive|safety|policy|prohibited|violat"
_TROUBLE_AT_KIE = r"(?i)internal error|try again|timed? ?out|overload|unavailable"

# Errors that no retry can cure.
_HOPELESS = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOENT),
    *(errno.ELOOP, errno.EEXIST),
)
_HOPELESS_TYPES = (PermissionError, FileNotFoundError, NotADirectoryError, IsADirectoryError)


def storage_error(path: object, error: OSError) -> KieStorageError | KieTargetError:
    """Return the error for a file that could not be read or written; a ``KieTargetError`` where no retry can help."""
    is_hopeless = error.errno in _HOPELESS or isinstance(error, _HOPELESS_TYPES)
    kind = KieTargetError if is_hopeless else KieStorageError
    return kind(f"{path}: {error.strerror or error} ({type(error).__name__})")


def error_classes(error: type[KieError] = KieError) -> list[type[KieError]]:
    """Return an error class and all its descendants, each before its own."""
    return [error, *(each for child in error.__subclasses__() for each in error_classes(child))]


_ERRORS_BY_NAME: Mapping[str, type[KieError]] = {error.__name__: error for error in error_classes()}


def error_from_dict(data: Mapping[str, object]) -> KieError:
    """Read back what :meth:`KieError.to_dict` wrote.

    :raises ValueError: ``data`` does not describe a Kie error.
    """
    error = _ERRORS_BY_NAME.get(str(data.get("type")))
    message = data.get("message")
    if error is None or not isinstance(message, str):
        raise ValueError(f"not a Kie error: {data!r}")
    facts: dict[str, Any] = {name: data.get(name) for name in ("code", "http_status", "kie_task_id", "retry_after")}
    if error is KieTaskFailedError:
        facts["credits_consumed"] = data.get("credits_consumed")
    return error(message, **facts)


def raise_for_problems(problems: Sequence[str], headline: str = "nothing was sent.") -> None:
    """Report all problems of a request in one error.

    :param headline: the first line of the message.
    :raises KieValidationError: there are problems; it has them in ``problems`` too.
    """
    if problems:
        error = KieValidationError("\n".join([headline, *(f"  - {problem}" for problem in problems)]))
        error.problems = tuple(problems)
        raise error
