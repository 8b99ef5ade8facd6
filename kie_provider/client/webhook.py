"""Kie's callbacks: the URL that a submission carries, and how a receiver knows that a call to it is right. Pure.

The URL ends in a reference: which connection and which task instance it is about, which submission of that, and a code
that only those with the connection's secret can make. Kie sends its callback there, with a signature of its own if the
account has a key for it; neither covers what the body says.
"""

from __future__ import annotations

import base64
import hmac
import re
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timezone
from urllib.parse import quote, unquote

from kie_provider.client.endpoint import Endpoint, is_private_host
from kie_provider.client.errors import KieConnectionError
from kie_provider.client.plain import shorten

#: Where the receiver is, below the base URL of the API server.
CALLBACKS = "kie/callbacks/"
#: Kie's two headers.
TIMESTAMP_HEADER = "X-Webhook-Timestamp"
SIGNATURE_HEADER = "X-Webhook-Signature"
#: Seconds that a signature may be old, or ahead of this clock. Kie says nothing of it, nor when it repeats a callback;
#: one that is replayed does no harm.
SIGNATURE_SECONDS = 3600.0
#: A task instance that no Airflow has: a call to try out whether the receiver can be reached.
TEST_TI_ID = "00000000-0000-0000-0000-000000000000"

_PURPOSE = b"airflow-provider-kie callback reference 1"
_MAC_BYTES = 16
_LONGEST_REFERENCE = 3500
_CONN_ID = re.compile(r"[\w#!()\-.:/\\]{1,250}")  # as Airflow allows it
_TI_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NONCE = re.compile(r"[0-9a-f]{16}")
_MAC = re.compile(r"[A-Za-z0-9_-]{22}")
_TIMESTAMP = re.compile(r"[0-9]{1,12}")


@dataclass(frozen=True)
class Reference:
    """Whom a callback is for.

    :param conn_id: the connection that the task was created with.
    :param ti_id: Airflow's UUID of the task instance's try.
    :param nonce: which submission it was.
    :param mac: vouches for the other three; nobody can make it without the key.
    """

    conn_id: str
    ti_id: str
    nonce: str
    mac: str = field(repr=False)


def new_nonce() -> str:
    """Return a name for a submission that no other has."""
    return secrets.token_hex(8)


def derive_key(endpoint: Endpoint) -> bytes:
    """Return the key of a connection's references: of its webhook secret, or of its API key if it has none."""
    return hmac.digest((endpoint.webhook_secret or endpoint.api_key).encode(), _PURPOSE, "sha256")


def make_reference(key: bytes, conn_id: str, ti_id: str, nonce: str) -> str:
    """Return the reference to a submission, as it stands in a URL.

    :raises KieConnectionError: the id of the connection is none that Airflow allows.
    """
    if not _CONN_ID.fullmatch(conn_id):
        raise KieConnectionError(f"kie_conn_id: {shorten(conn_id)} cannot stand in a callback URL")
    return f"{quote(conn_id, safe='')}/{ti_id}.{nonce}.{_mac(key, conn_id, ti_id, nonce)}"


def parse_reference(text: str) -> Reference | None:
    """Read a reference; None: it is not well-formed. Whether it is genuine is another question."""
    if len(text) > _LONGEST_REFERENCE:
        return None
    quoted, _, rest = text.rpartition("/")
    conn_id, parts = unquote(quoted), rest.split(".")
    if not _CONN_ID.fullmatch(conn_id) or len(parts) != 3:
        return None
    ti_id, nonce, mac = parts
    if not (_TI_ID.fullmatch(ti_id) and _NONCE.fullmatch(nonce) and _MAC.fullmatch(mac)):
        return None
    return Reference(conn_id, ti_id, nonce, mac)


def is_genuine(key: bytes, reference: Reference) -> bool:
    """Whether a reference was made with this key."""
    expected = _mac(key, reference.conn_id, reference.ti_id, reference.nonce)
    return hmac.compare_digest(expected.encode(), reference.mac.encode())


def callback_url(base_url: str, reference: str) -> str:
    """Return the URL for Kie to call.

    :param base_url: where Kie reaches Airflow's API server, as in ``Endpoint.callback_base_url``.
    :param reference: from :func:`make_reference`.
    """
    return f"{base_url.rstrip('/')}/{CALLBACKS}{reference}"


def warnings_about(endpoint: Endpoint) -> list[str]:
    """Return what is allowed, but hardly meant, about where Kie is to call."""
    found, url = [], endpoint.callback_base_url
    if url.lower().startswith("http:"):
        found.append(f"callback_base_url {url} is http, not https: others can read callback URLs on the way")
    if is_private_host(url) and not is_private_host(endpoint.host):
        found.append(f"callback_base_url {url} is an address of this machine or network: Kie cannot call it")
    return found


def sign(secret: str, kie_task_id: str, now: float) -> dict[str, str]:
    """Return the two headers by which Kie signs a callback; they vouch for the task id, not for the body.

    :param secret: ``webhookHmacKey`` of the account.
    :param now: epoch seconds.
    """
    timestamp = str(int(now))
    return {TIMESTAMP_HEADER: timestamp, SIGNATURE_HEADER: _signature(secret, kie_task_id, timestamp)}


def verify(secret: str, kie_task_id: str, timestamp: str | None, signature: str | None, now: float) -> bool:
    """Whether Kie has signed a callback.

    :param kie_task_id: the one in the body.
    :param timestamp: ``X-Webhook-Timestamp`` as it was received.
    :param signature: ``X-Webhook-Signature`` as it was received.
    :param now: epoch seconds; the signature is of at most an hour before or after.
    """
    if not timestamp or not signature or not _TIMESTAMP.fullmatch(timestamp):
        return False
    expected = _signature(secret, kie_task_id, timestamp)
    is_signed = hmac.compare_digest(expected.encode(), signature.encode(errors="replace"))
    return is_signed and abs(now - int(timestamp)) <= SIGNATURE_SECONDS


def callback_key(nonce: str) -> str:
    """Return the key of the task instance's state store under which the receiver writes which task Kie has called for.

    No key of the journal is like it: those go on with the number of a try.
    """
    return f"kie.callback.{nonce}"


def callback_fact(nonce: str, kie_task_id: str, now: float) -> dict[str, object]:
    """Return what the receiver writes there, in the form of the journal's facts. It is said, not proven.

    :param now: epoch seconds.
    """
    at = datetime.fromtimestamp(now, timezone.utc).isoformat(timespec="milliseconds")
    return {"key": callback_key(nonce), "v": 1, "kie_task_id": kie_task_id, "at": at}


def waiting_key(kie_task_id: str) -> str:
    """Return the key of the XCom that a task pushes before it waits for a Kie task that is not its own."""
    return f"kie_wait_{kie_task_id}"


def _mac(key: bytes, *parts: str) -> str:
    digest = hmac.digest(key, "\n".join(parts).encode(), "sha256")
    return base64.urlsafe_b64encode(digest[:_MAC_BYTES]).rstrip(b"=").decode()


def _signature(secret: str, kie_task_id: str, timestamp: str) -> str:
    digest = hmac.digest(secret.encode(), f"{kie_task_id}.{timestamp}".encode(), "sha256")
    return base64.b64encode(digest).decode()
