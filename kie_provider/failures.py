"""From a KieError to what Airflow raises, and what the task log says about it.

Airflow logs an exception as one line that holds every frame. Short lines precede it in the log: what happened, in whose
words, which connection and Kie task, what was charged, and what to do.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
    get_current_context,
)

from kie_provider.client.errors import (
    LOGS_PAGE,
    KieError,
    KieFileError,
    KieJournalError,
    KieNotFoundError,
    KieResultError,
    KieStorageError,
    KieSubmitUnknownError,
    KieTargetError,
    KieTaskFailedError,
    KieTaskTimeoutError,
)
from kie_provider.client.plain import counted, sentences, storable
from kie_provider.execution_timeout import held

#: Longest log line in characters: what Airflow's log view shows beside time and level on a screen of 1,440 pixels. URLs
#: and paths are not broken.
WIDTH = 100
#: XCom key of the reason for a failure; the image page shows it in place of the missing image.
FAILURE_KEY = "kie_failure"


class FailureContext(NamedTuple):
    """What a task knows when it fails.

    :param conn_id: its connection; None: it has none.
    :param kie_task_id: the Kie task that it creates or waits for, once known.
    :param charged: credits, or words for what was charged; None: that follows from the error.
    :param is_in_doubt: createTask was sent, and no answer is known.
    """

    conn_id: str | None = None
    kie_task_id: str | None = None
    charged: float | str | None = None
    is_in_doubt: bool = False


def operator_failure(error: BaseException) -> BaseException:
    """Return the exception that an operator raises: only transient Kie errors are retried."""
    return AirflowFailException(str(error)) if isinstance(error, KieError) and not error.is_transient else error


def sensor_failure(error: BaseException) -> BaseException:
    """Return the exception that a sensor raises: as an operator, but its timeout is final, as in every sensor."""
    return AirflowSensorTimeout(str(error)) if isinstance(error, KieTaskTimeoutError) else operator_failure(error)


@contextmanager
def failures(
    log: Any,
    context: Callable[[], FailureContext],
    failure_of: Callable[[BaseException], BaseException] = operator_failure,
) -> Iterator[None]:
    """Log an exception that the block raises, and raise what Airflow acts on, without the Kie error chained to it.

    :param log: the task's logger.
    :param context: called when the block has raised.
    :param failure_of: returns what to raise for an exception: the exception itself, or another one.
    """
    try:
        yield
    except (Exception, AirflowTaskTimeout) as error:
        failure = failure_of(error)
        if not _is_no_failure(failure):
            known = context()
            for line in log_lines(error, known):
                log.error(line)  # noqa: TRY400  # Airflow logs the traceback
            _push_reason(error, known)
        if failure is error and not isinstance(error, KieError):
            raise
        raise failure from None


def _push_reason(error: BaseException, context: FailureContext) -> None:
    """Push the reason as an XCom, best-effort: only people read it."""
    is_ours = isinstance(error, KieError | AirflowFailException)
    reason = (
        (error.message if isinstance(error, KieError) else str(error)) if is_ours else f"{_name(error)}, see the log"
    )
    kie_task_id = (error.kie_task_id if isinstance(error, KieError) else None) or context.kie_task_id
    with suppress(Exception), held():
        get_current_context()["ti"].xcom_push(FAILURE_KEY, storable({"reason": reason, "kie_task_id": kie_task_id}))


def _is_no_failure(failure: BaseException) -> bool:
    """Whether the task is skipped or rescheduled."""
    return isinstance(failure, AirflowSkipException) or type(failure).__name__ == "AirflowRescheduleException"


def log_lines(error: BaseException, context: FailureContext) -> list[str]:
    """Return the log lines that explain a failure."""
    kie_task_id = (error.kie_task_id if isinstance(error, KieError) else None) or context.kie_task_id
    if isinstance(error, KieError):
        lines = _labelled("Failed", [error.summary])
        codes = {"Kie code": error.code, "HTTP": error.http_status}
        named = ", ".join(f"{label} {code}" for label, code in codes.items() if code is not None)
        message = f"{error.message} ({named})" if named else error.message
        lines += _labelled("Why" if error.code is None else "Kie says", message.splitlines())
    else:
        what = str(error) or "no message"
        lines = _labelled(
            "Failed", sentences(what if isinstance(error, AirflowFailException) else f"{_name(error)}: {what}")
        )
    ids = [
        *([f"connection {context.conn_id!r}"] if context.conn_id else []),
        *([f"Kie task {kie_task_id}"] if kie_task_id else []),
    ]
    lines += _labelled("With", [", ".join(ids)] if ids else [])
    lines += _labelled("Charged", [_charged(error, context, kie_task_id)])
    return lines + _labelled("What to do", sentences(_advice(error, kie_task_id)))


def _name(error: BaseException) -> str:
    return type(error).__name__


def _charged(error: BaseException, context: FailureContext, kie_task_id: str | None) -> str:
    if isinstance(context.charged, str):
        return context.charged
    if context.charged is not None:
        return f"{counted(context.charged, 'credit')}, once; saving or polling it again is free"
    if isinstance(error, KieJournalError):
        return "nothing in this try"
    if isinstance(error, KieSubmitUnknownError) or (context.is_in_doubt and not kie_task_id):
        return "not known; if Kie created a task, it is charged when it succeeds"
    if isinstance(error, KieTaskFailedError):
        charged = error.credits_consumed
        return counted(charged, "credit") if charged else "nothing; Kie does not charge failed tasks"
    if not kie_task_id:
        return "nothing; no Kie task was created"
    if isinstance(error, KieNotFoundError):
        return "not known; Kie has no record of the Kie task"
    if isinstance(error, KieResultError | KieFileError | KieStorageError | KieTargetError):
        return "the Kie task, once; saving or polling it again is free"
    return "nothing yet; Kie charges for the Kie task when it succeeds"


def _advice(error: BaseException, kie_task_id: str | None) -> str:
    if isinstance(error, KieError):
        if error.advice:
            return error.advice
        return (
            "Airflow retries this task if it has retries left."
            if error.is_transient
            else "Correct it and clear this task."
        )
    if isinstance(error, AirflowFailException):
        return ""  # its text says what to do
    return "Clear this task: it continues with the Kie task." if kie_task_id else ""


def _labelled(label: str, texts: list[str]) -> list[str]:
    lines: list[str] = []
    for text in texts:
        before = f"{label}: " if not lines else "    "
        indent = " " * (len(text) - len(text.lstrip()))
        lines += textwrap.wrap(
            text.strip(),
            WIDTH,
            initial_indent=before + indent,
            subsequent_indent="    " + indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines


def still_billed_message(kie_task_id: str) -> str:
    """Say what it means to stop waiting for a Kie task."""
    return (
        f"Kie cannot cancel tasks: Kie task {kie_task_id} keeps running and is billed when it succeeds; see {LOGS_PAGE}"
    )


def tasks_still_billed_message(number: int) -> str:
    """Say what it means to stop waiting for a batch."""
    tasks = "1 Kie task keeps running and is" if number == 1 else f"{number} Kie tasks keep running and are"
    succeed = "it succeeds" if number == 1 else "they succeed"
    return f"Kie cannot cancel tasks: {tasks} billed when {succeed}; see {LOGS_PAGE}"


def log_on_kill(log: Any, text: str) -> None:
    """Log one line when a task is killed. Never raises: the signal may have interrupted another line."""
    with suppress(Exception):
        log.warning(text)
