"""The key is found however a server spells it, and nothing else is touched."""

import html
import json
import logging
import string
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_provider.client import protocol, redaction
from kie_provider.client.errors import KieError
from kie_provider.client.protocol import Answer
from kie_provider.client.redaction import redact

KEY = 'sk/0123+abc=DEF\\"&456'
TASK = "ee9c2715375b7837f8bb51d641ff5863"
SPELLINGS = {
    "plain": KEY,
    "JSON": json.dumps(KEY)[1:-1],
    "JSON as PHP writes it": json.dumps(KEY)[1:-1].replace("/", "\\/"),
    "JSON, escaped all through": "".join(f"\\u{ord(character):04X}" for character in KEY),
    "JSON, encoded twice": json.dumps(json.dumps(KEY))[3:-3],
    "JSON, encoded three times": json.dumps(json.dumps(json.dumps(KEY.replace("/", "\\/"))))[7:-7],
    "URL": quote(KEY, safe=""),
    "URL, escaped all through": "".join(f"%{ord(character):02x}" for character in KEY),
    "HTML": html.escape(KEY),
    "HTML, escaped all through": "".join(f"&#{ord(character)};" for character in KEY),
    "HTML, in hexadecimal": "".join(f"&#x{ord(character):04X};" for character in KEY),
    "UTF-16": KEY.encode("utf-16-le").decode("latin-1"),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_the_key_is_blotted_out_however_it_is_spelt(name):
    told = redact({"msg": f"Bearer {SPELLINGS[name]}.", SPELLINGS[name]: [SPELLINGS[name], 7, None]}, KEY)
    assert told["msg"].replace("\0", "") == "Bearer ***."
    assert str(told).count("***") == 3


@given(st.text(), st.text(), st.text(string.ascii_letters + string.digits + string.punctuation, min_size=6))
def test_no_key_of_usual_length_survives(before, after, key):
    for text in (key, json.dumps(key)[1:-1], quote(key, safe="")):
        assert text not in redact(before + text + after, key).replace("***", "")


@pytest.mark.parametrize(
    ("key", "text", "told"),
    [
        ("abc123", "the key abc123, xabc123y", "the key ***, x***y"),
        ("k1", "the key k1, or 'k1': ok100 k12", "the key ***, or '***': ok100 k12"),
        ("", "no key", "no key"),
    ],
)
def test_short_keys_are_blotted_where_they_stand_alone(key, text, told):
    assert redact(text, key) == told


def test_the_shape_of_what_is_told_stays():
    value = {"a": [1, True, None, 1.5, "x"], "b": ("u", "v")}
    assert redact(value, KEY) == value
    deep = []
    for _ in range(5000):
        deep = [deep]
    assert json.dumps(redact(deep, KEY)) == "[" * 100 + '"..."' + "]" * 100


def test_it_is_fast_on_hostile_text():
    for text in ("\\" * 300_000, "%" * 300_000, "&#0" * 100_000, "\0" * 300_000, "s" * 300_000):
        assert redact(text, KEY) == text


def shown(error):
    return f"{error} {error.args} {error.to_dict()}"


@pytest.mark.parametrize("spelling", [name for name in SPELLINGS if name.startswith("JSON,") or name == "plain"])
@pytest.mark.parametrize("read", [protocol.read_created, lambda answer: protocol.read_task(answer, TASK)])
def test_no_error_holds_a_key_that_a_server_escapes(read, spelling):
    echo = SPELLINGS[spelling] if spelling != "plain" else SPELLINGS["JSON"]
    for body in (
        f'{{"code": 422, "msg": "bad header: Bearer {echo}", "data": null}}',
        f'{{"code": 200, "msg": "success", "data": {{"taskId": "{echo}"}}}}',
        f'{{"code": 200, "msg": "success", "data": {{"taskId": "{echo}" }}, "{echo}": 1}}',
        f'{{"code": 200, "data": ["{echo}"]}}',
        f'{{"msg": "{" " * 90} {echo}"}}',
        f"<html>{echo}",
    ):
        with pytest.raises(KieError) as caught:
            read(Answer(500 if "html" in body else 200, body.encode(), None, KEY))
        assert_no_key(shown(caught.value))
        assert_no_key(shown(caught.value.__cause__) if caught.value.__cause__ else "")


def assert_no_key(text):
    assert "abc" not in text.replace("\\", "")
    assert "\\u0061" not in text


def test_no_record_holds_a_key_that_was_encoded_twice():
    data = {
        "taskId": TASK,
        "state": "success",
        "model": KEY,
        "param": json.dumps({"input": json.dumps({"prompt": f"Bearer {KEY}", KEY: [KEY]})}),
        "resultJson": json.dumps({"resultUrls": [f"https://x/{quote(KEY, safe='')}.png"], "seen": json.dumps(KEY)}),
        "failMsg": KEY,
    }
    body = json.dumps({"code": 200, "data": data}).replace("/", "\\/").encode()
    record = protocol.read_task(Answer(200, body, None, KEY), TASK)
    assert record.input == {"prompt": "Bearer ***", "***": ["***"]}
    assert record.urls == ("https://x/***.png",)
    assert (record.model, record.fail_message, record.kie_task_id) == ("***", "***", TASK)
    assert_no_key(f"{record} {record.to_result()}")


def test_a_short_key_breaks_no_answer():
    body = b'{"code":"200","msg":"success","data":{"taskId":"200-success"}}'
    for key in ("200", "success", "code"):
        assert protocol.read_created(Answer(200, body.replace(b"-success", b"x"), None, key)) == "200x"
    task = {
        "code": 200,
        "data": {"taskId": TASK, "state": "success", "resultJson": '{"resultUrls":["https://x/1.png"]}'},
    }
    record = protocol.read_task(Answer(200, json.dumps(task).encode(), None, "success"), TASK)
    assert record.state.value == "success"


def test_an_answer_shows_neither_its_key_nor_its_body():
    assert repr(Answer(200, KEY.encode(), None, KEY)) == "Answer(http_status=200, retry_after=None)"


@pytest.mark.parametrize("name", ["urllib3.connection", "urllib3.connectionpool", "aiohttp.internal"])
def test_http_libraries_log_no_key(name, caplog):
    redaction.keep_out_of_logs(KEY)
    logger = logging.getLogger(name)
    with caplog.at_level(logging.DEBUG, logger=name):
        logger.warning("Failed to parse headers: %s", KEY)
        try:
            raise ValueError(KEY)
        except ValueError:
            logger.warning("Failed to parse headers", exc_info=True)
        logger.warning("%s is left alone, %d %%", "this", 5)
        logger.debug(KEY)
    assert [record.getMessage() for record in caplog.records] == [
        "Failed to parse headers: ***",
        "Failed to parse headers",
        "this is left alone, 5 %",
        "***",
    ]
    assert_no_key(caplog.text)
