"""The paid call: the one place from which operators send createTask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kie_provider.client.errors import KieError, KieSubmitUnknownError
from kie_provider.execution_timeout import held

if TYPE_CHECKING:
    from kie_provider.hooks.kie import KieHook
    from kie_provider.submission.journal import Journal
    from kie_provider.submission.record import SubmissionRecord

#: Before Airflow 3.3 nothing can come back later for free, so a submission waits for its slot on the worker.
LONGEST_SLOT_WAIT = 600.0


def submit(
    journal: Journal,
    hook: KieHook,
    request: Mapping[str, Any],
    task_input: Mapping[str, Any],
    fingerprint: str,
    *,
    item: int = 0,
) -> SubmissionRecord:
    """Create a Kie task: wait for a slot, write the intent, send createTask, write down the answer.

    A refusal for the moment (429, 455) is written down before the next attempt waits, about twelve seconds in all, so
    that no intent stands without an answer while nothing is on its way.

    :param request: createTask's body, as the journal keeps it.
    :param task_input: the input to send, in which every file has become a URL.
    :param fingerprint: stands for what is submitted.
    :param item: index in the list of a batch.
    :return: what is known of the submission: its Kie task id.
    :raises KieSubmitUnknownError: sent, but it is not known whether a task was created; the intent says so.
    :raises KieError: nothing was created.
    """
    from kie_provider.client.client import persist_in_submitting

    hook.take_submit_place(None if journal.is_durable else LONGEST_SLOT_WAIT)
    client = hook.get_conn()

    def attempt_once() -> SubmissionRecord:
        with held() as alarm:  # if it rings, it goes off behind this block, when all is written down
            record = journal.intend(
                request, fingerprint, item=item, conn_id=hook.kie_conn_id, host=client.endpoint.host
            )
            refusal: Exception
            try:
                if alarm.has_rung or journal.is_stopping:
                    raise InterruptedError("the try ended before createTask was sent")
                kie_task_id = client.create_task_once(request["model"], task_input, request.get("callBackUrl"))
            except KieSubmitUnknownError:
                raise  # the intent stays: it says what nobody knows
            except (KieError, InterruptedError) as error:
                record, refusal = journal.refused(record, error, alarm), error
            else:
                record = journal.created(record, kie_task_id, alarm)
        if record.state != "submitted":
            raise refusal
        return record

    return persist_in_submitting(attempt_once)
