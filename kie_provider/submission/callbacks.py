"""Callbacks for submissions: the URL that each is sent with, and what a call to it settles.

A receiver records which Kie task calls back (:mod:`kie_provider.client.webhook` says under which key). That proves
nothing: whoever knows the URL can call it. A submission whose answer was lost therefore takes over the Kie task only if
Kie's own record of it has the same URL or, if it has none, the same model and input.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kie_provider.client import webhook
from kie_provider.client.errors import KieError
from kie_provider.submission.inputs import TaskRequest
from kie_provider.submission.record import fingerprint_of

if TYPE_CHECKING:
    from kie_provider.client.endpoint import Endpoint
    from kie_provider.client.records import TaskRecord
    from kie_provider.hooks.kie import KieHook
    from kie_provider.submission.journal import Journal
    from kie_provider.submission.record import SubmissionRecord

log = logging.getLogger(__name__)


class CallbackUrls:
    """Makes a callback URL for each submission of a task instance.

    :param ti_id: Airflow's UUID of the task instance's try; empty: not known, so there are none.
    """

    def __init__(self, endpoint: Endpoint, conn_id: str, ti_id: str) -> None:
        self._base_url = endpoint.callback_base_url if ti_id else ""
        if self._base_url:
            for warning in webhook.warnings_about(endpoint):
                log.warning(warning)
        self._endpoint = endpoint
        self._conn_id = conn_id
        self._ti_id = ti_id

    def added_to(self, body: Mapping[str, object]) -> tuple[Mapping[str, object], str]:
        """Return the body of createTask with a URL of its own, and the nonce of that.

        The body stays as it is, and the nonce is empty, if its author has given a URL or callbacks are off.
        """
        if not self._base_url or "callBackUrl" in body:
            return body, ""
        nonce = webhook.new_nonce()
        key = webhook.derive_key(self._endpoint)
        reference = webhook.make_reference(key, self._conn_id, self._ti_id, nonce)
        return {**body, "callBackUrl": webhook.callback_url(self._base_url, reference)}, nonce


def adopt(journal: Journal, hook: KieHook) -> None:
    """Settle the unknown submissions for which Kie has called back.

    If Kie cannot be asked about one now, it stays unknown for the time being.
    """
    for record in journal.records:
        if record.state != "unknown" or not (kie_task_id := journal.called_back(record)):
            continue
        try:
            task = hook.get_task(kie_task_id)
        except KieError as error:
            log.warning("A callback names Kie task %s, and Kie cannot say whether it is ours: %s", kie_task_id, error)
            continue
        if _is_ours(task, record, journal):
            journal.settle(record, kie_task_id)
            log.info("Kie has called back for Kie task %s, whose id was not known: continuing with it", kie_task_id)
        else:
            log.warning("A callback names Kie task %s, which was not submitted here: ignored", kie_task_id)


def may_still_be_called(record: SubmissionRecord, patience: float) -> bool:
    """Whether an unknown submission is worth waiting for, because Kie may still call back.

    :param patience: seconds from its intent.
    """
    return bool(record.nonce) and record.state == "unknown" and time.time() < record.at + patience


def _is_ours(task: TaskRecord, record: SubmissionRecord, journal: Journal) -> bool:
    if task.callback_url:
        reference = webhook.parse_reference(task.callback_url.rpartition(webhook.CALLBACKS)[2])
        return reference is not None and reference.nonce == record.nonce
    body = journal.request_of(record)
    if not body:  # its intent was removed, so nobody knows what was asked for
        return False
    request = TaskRequest(body)
    # The journal knows files by their content, and Kie by their URLs.
    left_out = {"input_urls"} if request.files else set()
    asked, made = ({n: v for n, v in each.items() if n not in left_out} for each in (request.body["input"], task.input))
    return request.body["model"] == task.model and fingerprint_of(asked) == fingerprint_of(made)
