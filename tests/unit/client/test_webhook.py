import re
import uuid

import pytest

from kie_provider.client import webhook
from kie_provider.client.endpoint import Endpoint
from kie_provider.client.errors import KieConnectionError
from kie_provider.client.webhook import SIGNATURE_HEADER, TIMESTAMP_HEADER

ENDPOINT = Endpoint("an-api-key")
KEY = webhook.derive_key(ENDPOINT)
TI_ID = "0199f4c2-8f0e-7d61-a1c4-0e4f3c6f9b2d"
NONCE = "00ff00ff00ff00ff"
TEXT = webhook.make_reference(KEY, "kie_default", TI_ID, NONCE)
TASK = "ee9c2715375b7837f8bb51d641ff5863"


# ---- references


@pytest.mark.parametrize("conn_id", ["kie_default", "team/kie", "a:b#c!(d)-e.f\\g", "Schlüssel", "k" * 250, "字" * 250])
def test_a_reference_comes_back_from_its_url(conn_id):
    nonce, ti_id = webhook.new_nonce(), str(uuid.uuid4())
    url = webhook.callback_url("https://airflow.example/", webhook.make_reference(KEY, conn_id, ti_id, nonce))

    assert re.fullmatch(r"https://airflow\.example/kie/callbacks/[\w.~%-]+/[0-9a-f-]{36}\.[0-9a-f]{16}\.[\w-]{22}", url)
    reference = webhook.parse_reference(url.partition(f"/{webhook.CALLBACKS}")[2])
    assert (reference.conn_id, reference.ti_id, reference.nonce) == (conn_id, ti_id, nonce)
    assert webhook.is_genuine(KEY, reference)


def test_a_server_may_have_decoded_the_path():
    text = webhook.make_reference(KEY, "team/kie", TI_ID, NONCE).replace("%2F", "/")
    assert webhook.is_genuine(KEY, webhook.parse_reference(text))


def test_the_form_of_a_reference_stays():
    """Kie holds references for as long as its tasks take, over an upgrade of this package too."""
    assert f"kie_default/{TI_ID}.{NONCE}.njt3ElyOnj5CzURoekBy9w" == TEXT


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        f"{TI_ID}.{NONCE}.{'m' * 22}",
        TEXT.replace("kie_default", ""),
        TEXT.replace("kie_default", "kie default"),
        TEXT.replace("kie_default", "kie%00"),
        TEXT.replace("kie_default", "%ff"),
        TEXT.replace("kie_default", "k" * 251),
        TEXT.replace("kie_default", "%6b" * 2000),
        TEXT.replace(TI_ID, TI_ID.upper()),
        TEXT.replace(TI_ID, TI_ID.replace("-", "")),
        TEXT.replace(NONCE, NONCE[1:]),
        TEXT.replace(NONCE, f"{NONCE}0"),
        TEXT[:-1],
        f"{TEXT}A",
        f"{TEXT}=",
        f"{TEXT}\n",
        f"{TEXT}/",
        f"{TEXT}.x",
        TEXT.replace(".", "/"),
        TEXT.replace("a", "а"),  # Cyrillic
        "x" * 1_000_000,
    ],
)
def test_what_is_no_reference(text):
    assert webhook.parse_reference(text) is None


@pytest.mark.parametrize(
    "changed",
    [
        TEXT.replace("kie_default", "kie_other"),
        TEXT.replace(TI_ID, TI_ID[:-1] + "e"),
        TEXT.replace(NONCE, f"{NONCE[:-1]}e"),
        TEXT.replace("njt3", "njt4"),
    ],
)
def test_a_changed_reference_is_not_genuine(changed):
    assert changed != TEXT
    assert not webhook.is_genuine(KEY, webhook.parse_reference(changed))


def test_the_mac_is_not_in_the_repr():
    reference = webhook.parse_reference(TEXT)
    assert reference.mac not in repr(reference)


def test_the_key_is_that_of_the_webhook_secret_or_else_of_the_api_key():
    with_secret = webhook.derive_key(Endpoint("an-api-key", webhook_secret="a-secret"))
    assert with_secret == webhook.derive_key(Endpoint("another-key", webhook_secret="a-secret"))
    assert KEY not in (with_secret, webhook.derive_key(Endpoint("another-key")))
    assert b"an-api-key" not in KEY


@pytest.mark.parametrize("conn_id", ["", "a b", "a?b", "k" * 251])
def test_no_reference_to_a_connection_that_cannot_be(conn_id):
    with pytest.raises(KieConnectionError, match=r"kie_conn_id: .* cannot stand in a callback URL"):
        webhook.make_reference(KEY, conn_id, TI_ID, NONCE)


def test_nonces_differ():
    assert len({webhook.new_nonce() for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    ("base_url", "host", "words"),
    [
        ("", "https://api.kie.ai", []),
        ("https://airflow.example", "https://api.kie.ai", []),
        ("http://airflow.example", "https://api.kie.ai", ["is http, not https"]),
        ("https://10.0.0.7", "https://api.kie.ai", ["Kie cannot call it"]),
        ("HTTP://localhost:8080", "https://api.kie.ai", ["is http, not https", "Kie cannot call it"]),
        ("https://localhost:8080", "http://127.0.0.1:8787", []),  # an emulator can
    ],
)
def test_what_is_hardly_meant(base_url, host, words):
    found = webhook.warnings_about(Endpoint("an-api-key", host=host, callback_base_url=base_url))
    assert len(found) == len(words)
    for word, warning in zip(words, found, strict=True):
        assert word in warning
        assert base_url in warning


# ---- signatures


def test_a_known_signature():
    headers = webhook.sign("unit-test-hmac-key", TASK, 1769670760.9)
    assert headers == {TIMESTAMP_HEADER: "1769670760", SIGNATURE_HEADER: "5e9PtlPfwLoDwKiiuEwI5hQxeVZDHMyu1jL62AZ8kxY="}


def check(secret="secret", task=TASK, now=1000.0, **changes):
    headers = webhook.sign("secret", TASK, 1000.0) | changes
    return webhook.verify(secret, task, headers.get(TIMESTAMP_HEADER), headers.get(SIGNATURE_HEADER), now)


def test_what_kie_has_signed():
    assert check()
    assert check(now=1000.0 + webhook.SIGNATURE_SECONDS)
    assert check(now=1000.0 - webhook.SIGNATURE_SECONDS)


@pytest.mark.parametrize(
    "changes",
    [
        {"secret": "another"},
        {"task": "f" * 32},
        {"now": 1001.0 + webhook.SIGNATURE_SECONDS},
        {"now": 999.0 - webhook.SIGNATURE_SECONDS},
        {TIMESTAMP_HEADER: "1001"},
        {TIMESTAMP_HEADER: "01000"},
        {TIMESTAMP_HEADER: "1000.0"},
        {TIMESTAMP_HEADER: "-1000"},
        {TIMESTAMP_HEADER: "١٠٠٠"},
        {TIMESTAMP_HEADER: "9" * 5000},
        {TIMESTAMP_HEADER: "nan"},
        {TIMESTAMP_HEADER: ""},
        {TIMESTAMP_HEADER: None},
        {SIGNATURE_HEADER: ""},
        {SIGNATURE_HEADER: None},
        {SIGNATURE_HEADER: "AAAA"},
        {SIGNATURE_HEADER: "é\ud800"},
    ],
)
def test_what_kie_has_not_signed(changes):
    assert not check(**changes)


# ---- the inbox


def test_what_the_receiver_writes():
    assert webhook.callback_fact(NONCE, TASK, 1769670760.25) == {
        "key": f"kie.callback.{NONCE}",
        "v": 1,
        "kie_task_id": TASK,
        "at": "2026-01-29T07:12:40.250+00:00",
    }
