"""``airflow kie callbacks test``: whether Kie's callbacks can arrive, as far as that can be seen from here."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from kie_provider.client import webhook
from kie_provider.client.endpoint import without_userinfo
from kie_provider.client.errors import KieConnectionError
from kie_provider.hooks.connection import no_connection, read_endpoint_outside_tasks

if TYPE_CHECKING:
    import requests

    from kie_provider.client.endpoint import Endpoint

#: As long as Kie waits for an answer.
PATIENCE = 15.0
_MORE = "The page on callbacks of the provider's documentation says what to look at."
_LACKS_PATH = "or the base URL lacks the path below which Airflow is served."
_NO_SERVER = "A proxy answers, but does not reach the API server."
#: What an answer of the receiver itself means.
_FROM_RECEIVER = {
    200: "The receiver took it. Kie must reach the same address from the internet.",
    401: "The receiver does not accept the signature: its clock and the one here differ by more than an hour.",
    404: "The receiver does not know the connection {conn_id!r}, or knows it with another API key or webhook_secret. "
    "The API server must be able to read it, and reads it at most once a minute.",
    500: "The receiver could not ask Airflow's database; the API server's log says why.",
    503: "The receiver has too much to do. It would be called again.",
}
#: What an answer of anybody else means.
_FROM_OTHERS = {
    404: f"Somebody answers, but not the receiver: a proxy does not pass /kie/callbacks/ on, {_LACKS_PATH}",
    405: "Airflow's API server seems to answer, but without the receiver: this provider is not installed there, "
    f"{_LACKS_PATH}",
    **dict.fromkeys((502, 503, 504), _NO_SERVER),
}
_REFUSED = "Something before the receiver wants a login, or refuses: let POST /kie/callbacks/ through without one."
_REDIRECT = "A redirect, which nobody says that Kie follows: set the address that it leads to."
_UNKNOWN = "That is no answer of the receiver: something between here and it answers in its place."


def test(args: argparse.Namespace) -> None:
    """Call the receiver of a connection, and say what happened; exit code 1 if it is not reached."""
    try:
        endpoint = _endpoint(args.conn_id)
    except KieConnectionError as error:
        raise SystemExit(error.message) from None
    reference, headers, body = _call(endpoint, args.conn_id)
    url = webhook.callback_url(endpoint.callback_base_url, reference)
    print(f"POST {url.removesuffix(reference)}...{' (signed)' if headers else ''}")
    for warning in webhook.warnings_about(endpoint):
        print(f"Warning: {warning}")
    import requests

    try:
        answer = requests.post(url, json=body, headers=headers, timeout=PATIENCE, allow_redirects=False)
    except (requests.RequestException, ValueError) as error:
        # Errors quote the address, and whoever knows the reference can call.
        reason = without_userinfo(str(error).replace(reference, "..."))
        raise SystemExit(f"Not reached: {type(error).__name__}: {reason}\n{_MORE}") from None
    with answer:
        meaning = _meaning(answer).format(conn_id=args.conn_id)
    print(f"HTTP {answer.status_code}: {meaning}")
    if not _is_from_receiver(answer, 200):
        raise SystemExit(_MORE)


def _endpoint(conn_id: str) -> Endpoint:
    """Return what the connection says.

    :raises KieConnectionError: there is no such connection, a field of it is not valid, or it has no callbacks.
    """
    endpoint = read_endpoint_outside_tasks(conn_id)
    if endpoint is None:
        raise no_connection(conn_id)
    if not endpoint.callback_base_url:
        raise KieConnectionError(
            f"connection {conn_id!r}: callback_base_url: neither it nor [kie] callback_base_url is set, so no task "
            "asks Kie to call back"
        )
    return endpoint


def _call(endpoint: Endpoint, conn_id: str) -> tuple[str, dict[str, str], dict[str, object]]:
    """Return reference, headers and body of a call for a task instance that no Airflow has."""
    nonce = webhook.new_nonce()
    reference = webhook.make_reference(webhook.derive_key(endpoint), conn_id, webhook.TEST_TI_ID, nonce)
    kie_task_id = nonce * 2
    headers = webhook.sign(endpoint.webhook_secret, kie_task_id, time.time()) if endpoint.webhook_secret else {}
    return reference, headers, {"code": 200, "msg": "success", "data": {"taskId": kie_task_id, "state": "success"}}


def _is_from_receiver(answer: requests.Response, status: int) -> bool:
    try:
        content = answer.json()
    except ValueError:
        return False
    return answer.status_code == status and isinstance(content, dict) and content.get("code") == status


def _meaning(answer: requests.Response) -> str:
    status = answer.status_code
    if status in _FROM_RECEIVER and _is_from_receiver(answer, status):
        return _FROM_RECEIVER[status]
    if status in (401, 403, 407):
        return _REFUSED
    return _REDIRECT if 300 <= status < 400 else _FROM_OTHERS.get(status, _UNKNOWN)
