"""How a Kie error ends an Airflow task: finally, or with a retry; and what its log says before that.

Airflow logs an exception as one line with all its frames. So the log has the same in short lines before: what happened,
in whose words, which connection and Kie task, what was charged, and what to do.
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

#: Characters of a line: what Airflow's log view shows of one on a screen of 1,440 pixels, beside time and level.
#: Addresses and paths are not broken.
WIDTH = 100
#: XCom key of the reason why a task instance has failed, for the page that shows a gap in place of its image.
FAILURE_KEY = "kie_failure"


class Facts(NamedTuple):
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
    """Return the exception an operator raises: hopeless Kie errors use up no retries, transient ones do."""
    return AirflowFailException(str(error)) if isinstance(error, KieError) and not error.is_transient else error


def sensor_failure(error: BaseException) -> BaseException:
    """Return the exception a sensor raises: as an operator, but its deadline is final, as with every sensor."""
    return AirflowSensorTimeout(str(error)) if isinstance(error, KieTaskTimeoutError) else operator_failure(error)


@contextmanager
def failures(
    log: Any, facts: Callable[[], Facts], failure_of: Callable[[BaseException], BaseException] = operator_failure
) -> Iterator[None]:
    """Log what went wrong in the block, and raise what Airflow understands, without a copy of the Kie error behind it.

    :param log: the task's logger.
    :param facts: called when something went wrong.
    :param failure_of: what to raise for an exception: that itself, or another one.
    """
    try:
        yield
    except (Exception, AirflowTaskTimeout) as error:
        failure = failure_of(error)
        if not _is_no_failure(failure):
            known = facts()
            for line in told(error, known):
                log.error(line)  # noqa: TRY400  # Airflow logs the traceback
            _leave_reason(error, known)
        if failure is error and not isinstance(error, KieError):
            raise
        raise failure from None


def _leave_reason(error: BaseException, facts: Facts) -> None:
    """Push the reason as an XCom, if that is possible: it is no more than a help for people."""
    is_ours = isinstance(error, KieError | AirflowFailException)
    reason = (
        (error.message if isinstance(error, KieError) else str(error)) if is_ours else f"{_name(error)}, see the log"
    )
    kie_task_id = (error.kie_task_id if isinstance(error, KieError) else None) or facts.kie_task_id
    with suppress(Exception), held():
        get_current_context()["ti"].xcom_push(FAILURE_KEY, storable({"reason": reason, "kie_task_id": kie_task_id}))


def _is_no_failure(failure: BaseException) -> bool:
    """Whether Airflow goes on: the task is skipped, or comes back later."""
    return isinstance(failure, AirflowSkipException) or type(failure).__name__ == "AirflowRescheduleException"


def told(error: BaseException, facts: Facts) -> list[str]:
    """Return the lines that say how a task has failed."""
    kie_task_id = (error.kie_task_id if isinstance(error, KieError) else None) or facts.kie_task_id
    if isinstance(error, KieError):
        lines = _labelled("Failed", [error.summary])
        codes = {"Kie code": error.code, "HTTP": error.http_status}
        named = ", ".join(f"{label} {code}" for label, code in codes.items() if code is not None)
        message = f"{error.message} ({named})" if named else error.message
        lines += _labelled("Why" if error.code is None else "Kie says", message.splitlines())
    else:
        what = str(error) or "no more is known"
        lines = _labelled(
            "Failed", sentences(what if isinstance(error, AirflowFailException) else f"{_name(error)}: {what}")
        )
    ids = [
        *([f"connection {facts.conn_id!r}"] if facts.conn_id else []),
        *([f"Kie task {kie_task_id}"] if kie_task_id else []),
    ]
    lines += _labelled("With", [", ".join(ids)] if ids else [])
    lines += _labelled("Charged", [_charged(error, facts, kie_task_id)])
    return lines + _labelled("What to do", sentences(_advice(error, kie_task_id)))


def _name(error: BaseException) -> str:
    return type(error).__name__


def _charged(error: BaseException, facts: Facts, kie_task_id: str | None) -> str:
    if isinstance(facts.charged, str):
        return facts.charged
    if facts.charged is not None:
        return f"{counted(facts.charged, 'credit')}, once; to save or look again costs nothing"
    if isinstance(error, KieJournalError):
        return "nothing in this try"
    if isinstance(error, KieSubmitUnknownError) or (facts.is_in_doubt and not kie_task_id):
        return "not known; if Kie has created a task, it is charged when it succeeds"
    if isinstance(error, KieTaskFailedError):
        charged = error.credits_consumed
        return counted(charged, "credit") if charged else "nothing; Kie does not charge failed tasks"
    if not kie_task_id:
        return "nothing; no Kie task was created"
    if isinstance(error, KieNotFoundError):
        return "not known; Kie has no record of the Kie task"
    if isinstance(error, KieResultError | KieFileError | KieStorageError | KieTargetError):
        return "the Kie task, once; to save or look again costs nothing"
    return "nothing yet; Kie charges the Kie task when it succeeds"


def _advice(error: BaseException, kie_task_id: str | None) -> str:
    if isinstance(error, KieError):
        if error.advice:
            return error.advice
        return (
            "Airflow tries again, if it has retries left."
            if error.is_transient
            else "Put it right and clear this task."
        )
    if isinstance(error, AirflowFailException):
        return ""  # its text says it
    return "Clear this task: it goes on with the Kie task." if kie_task_id else ""


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
