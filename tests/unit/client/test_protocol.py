import itertools
import json
import re
from collections import UserDict, UserList

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_provider.client import protocol
from kie_provider.client.codes import refuses_submission
from kie_provider.client.errors import (
    KieAuthError,
    KieError,
    KieNotFoundError,
    KieServerError,
    KieSubmitUnknownError,
    KieValidationError,
)
from kie_provider.client.plain import shorten
from kie_provider.client.protocol import Answer
from kie_provider.client.records import TaskRecord, TaskState
from tests.support.messages import assert_tells

KEY = "0123456789abcdef0123456789abcdef"
TASK = "ee9c2715375b7837f8bb51d641ff5863"
READERS = {
    "create": protocol.read_created,
    "record": lambda answer: protocol.read_task(answer, TASK),
    "look": lambda answer: protocol.read_poll(answer, TASK),
    "credits": protocol.read_credits,
    "download": protocol.read_download_url,
    "upload": protocol.read_upload,
}


def answer(body, status=200, retry_after=None):
    return Answer(status, body if isinstance(body, bytes) else json.dumps(body).encode(), retry_after)


def error_of(name, given_answer):
    with pytest.raises(KieError) as caught:
        READERS[name](given_answer)
    return caught.value


# ---------------------------------------------------------------- what is sent


def test_create_task():
    body = protocol.create_task_body(" flux-2/pro-text-to-image\n", {"prompt": "a cat"}, "https://me.example/hook")
    request = protocol.create_task(body)
    assert (request.method, request.path, request.query, request.to_upload_host) == (
        "POST",
        "/api/v1/jobs/createTask",
        None,
        False,
    )
    assert request.json_body == {
        "model": "flux-2/pro-text-to-image",
        "input": {"prompt": "a cat"},
        "callBackUrl": "https://me.example/hook",
    }


@pytest.mark.parametrize("nothing", [None, "", " ", "None"])
def test_no_callback_url(nothing):
    assert protocol.create_task_body("m", {}, nothing) == {"model": "m", "input": {}}


@pytest.mark.parametrize(
    "task_input",
    [
        {"urls": ["a", "b"], "n": {"x": 1}},
        {"urls": ("a", "b"), "n": {"x": 1}},
        {"urls": UserList(["a", "b"]), "n": UserDict(x=1)},
        UserDict(urls=["a", "b"], n={"x": 1}),
        '{"urls": ["a", "b"], "n": {"x": 1}}',
    ],
)
def test_the_input_is_sent_as_plain_json(task_input):
    assert protocol.create_task_body("m", task_input)["input"] == {"urls": ["a", "b"], "n": {"x": 1}}


@pytest.mark.parametrize("model", [None, "", "  ", "None", 7, ["m"]])
def test_bad_models(model):
    with pytest.raises(KieValidationError, match="model: must be the id of a Kie model, got"):
        protocol.create_task_body(model, {})


@pytest.mark.parametrize(
    "task_input",
    [
        None,
        [],
        "",
        "{",
        "[1]",
        '"x"',
        7,
        {"x": float("nan")},
        {"x": float("inf")},
        {"x": object()},
        {"x": {1, 2}},
        {"x": b"bytes"},
        {"x": bytearray(b"bytes")},
        {"x": memoryview(b"bytes")},
        {(1, 2): 3},
        "[" * 100_000,
    ],
)
def test_bad_inputs(task_input):
    with pytest.raises(KieValidationError, match="input: must be a JSON object, got"):
        protocol.create_task_body("m", task_input)


def test_a_bottomless_input():
    bottomless = {}
    for _ in range(100_000):
        bottomless = {"x": bottomless}
    endless = {}
    endless["x"] = endless
    for task_input in (bottomless, endless):
        with pytest.raises(KieValidationError, match="input: must be a JSON object, got"):
            protocol.create_task_body("m", task_input)


@pytest.mark.parametrize("url", ["me.example/hook", "ftp://me.example", 7, ["https://me.example"]])
def test_bad_callback_urls(url):
    with pytest.raises(KieValidationError, match="callback_url: must be an http"):
        protocol.create_task_body("m", {}, url)


def test_everything_that_is_wrong_is_said_at_once():
    with pytest.raises(KieValidationError) as caught:
        protocol.create_task_body("", None, "x")
    first, model, task_input, callback_url = caught.value.message.split("\n")
    assert_tells(first, "nothing was sent")
    assert_tells(model, "  - model: ", "got ''")
    assert_tells(task_input, "  - input: ", "JSON object", "got None")
    assert_tells(callback_url, "  - callback_url: ", "http(s) URL", "got 'x'")


def test_the_other_requests():
    assert protocol.get_task(TASK) == protocol.Request("GET", "/api/v1/jobs/recordInfo", query={"taskId": TASK})
    assert protocol.get_credits() == protocol.Request("GET", "/api/v1/chat/credit")
    assert protocol.get_download_url("https://x/1") == protocol.Request(
        "POST", "/api/v1/common/download-url", json_body={"url": "https://x/1"}
    )
    assert protocol.upload_file("cat.png", b"png", "a/b") == protocol.Request(
        "POST",
        "/api/file-stream-upload",
        form={"uploadPath": "a/b", "fileName": "cat.png"},
        file=("cat.png", b"png"),
        to_upload_host=True,
    )


# ---------------------------------------------------------------- what an answer means

# Kie's code -> (error of a look-up, may the look-up be repeated, is createTask known to have been refused).
BY_CODE = {
    400: ("KieValidationError", False, True),
    401: ("KieAuthError", False, True),
    402: ("KieInsufficientCreditsError", False, True),
    404: ("KieNotFoundError", False, True),
    408: ("KieTaskFailedError", False, False),
    422: ("KieValidationError", False, True),
    429: ("KieRateLimitError", True, True),
    433: ("KieQuotaError", False, True),
    455: ("KieMaintenanceError", True, True),
    500: ("KieServerError", True, False),
    501: ("KieTaskFailedError", False, False),
    505: ("KieFeatureDisabledError", False, True),
    430: ("KieError", False, False),
    503: ("KieServerError", True, False),
    "429": ("KieRateLimitError", True, True),
}
# HTTP status of an answer without Kie's code -> (error of a look-up, may it be repeated). createTask: a doubt but for
# those by which a gateway says that it has not passed the request on.
NOT_PASSED_ON = (401, 404, 405, 407, 411, 413, 414, 415, 421, 431)
BY_STATUS = {
    200: ("KieServerError", True),
    204: ("KieServerError", True),
    301: ("KieValidationError", False),
    307: ("KieValidationError", False),
    400: ("KieValidationError", False),
    401: ("KieAuthError", False),
    403: ("KieAuthError", False),
    404: ("KieValidationError", False),
    407: ("KieValidationError", False),
    408: ("KieServerError", True),
    409: ("KieValidationError", False),
    425: ("KieValidationError", False),
    429: ("KieRateLimitError", True),
    **dict.fromkeys((405, 411, 413, 414, 415, 421, 431), ("KieValidationError", False)),
    500: ("KieServerError", True),
    502: ("KieServerError", True),
    504: ("KieServerError", True),
}
STATUSES = (200, 400, 401, 422, 429, 500, 502)
HTML = b"<html><body>502 Bad Gateway</body></html>"


@pytest.mark.parametrize("code", BY_CODE)
@pytest.mark.parametrize("name", ["record", "credits", "download", "upload"])
def test_the_code_decides_whatever_the_http_status(name, code):
    error_class, again, _ = BY_CODE[code]
    for status in STATUSES:
        error = error_of(name, answer({"code": code, "msg": "Kie's words", "data": None}, status, retry_after=3.0))
        assert (type(error).__name__, error.is_transient) == (error_class, again)
        assert (error.code, error.message, error.http_status) == (int(code), "Kie's words", status)
        assert error.retry_after == 3.0
        assert error.kie_task_id == (TASK if name == "record" else None)


@pytest.mark.parametrize("code", BY_CODE)
def test_createtask_is_refused_or_in_doubt(code):
    error_class, again, refused = BY_CODE[code]
    if not refused:
        error_class, again = "KieSubmitUnknownError", False
    for status in STATUSES:
        error = error_of("create", answer({"code": code, "msg": "Kie's words", "data": None}, status))
        assert (type(error).__name__, error.is_transient) == (error_class, again)
        assert (error.code, error.http_status) == (int(code), status)
        assert "Kie's words" in error.message


@pytest.mark.parametrize("status", BY_STATUS)
@pytest.mark.parametrize("name", READERS)
def test_without_a_code_the_http_status_decides(name, status):
    error_class, again = BY_STATUS[status]
    if name == "create" and status not in NOT_PASSED_ON:
        error_class, again = "KieSubmitUnknownError", False
    for body in (HTML, b"", b"{", b"[]", b"{}", b'{"code": null}', b'{"message": "no"}', b"\xff\xfe"):
        error = error_of(name, answer(body, status))
        assert (type(error).__name__, error.is_transient) == (error_class, again)
        assert (error.code, error.http_status) == (None, status)


@pytest.mark.parametrize("code", [True, 200.0, "200.0", "ok", "", [], {}, "9" * 5000, "-1", "²"])
def test_codes_that_are_none(code):
    assert type(error_of("credits", answer({"code": code, "data": 1}))) is KieServerError
    assert type(error_of("create", answer({"code": code, "data": {"taskId": TASK}}))) is KieSubmitUnknownError


@pytest.mark.parametrize(
    ("msg", "created"),
    [
        ("aspect_ratio is required", "KieValidationError"),
        ("This aspect_ratio is not within the range of allowed options", "KieValidationError"),
        (
            "Credits insufficient : Your current balance isn't enough to run this request. Please top up to continue.",
            "KieInsufficientCreditsError",
        ),
        ("Credits insufficient : Your current balance isn't enough", "KieSubmitUnknownError"),
        ("the connection must be reset by peer", "KieSubmitUnknownError"),
        ("Server exception, please try again later", "KieSubmitUnknownError"),
        ("", "KieSubmitUnknownError"),
        (None, "KieSubmitUnknownError"),
    ],
)
def test_the_text_of_code_500_decides_about_createtask(msg, created):
    assert type(error_of("create", answer({"code": 500, "msg": msg}))).__name__ == created


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"code": 400, "msg": "one", "message": "two"}, "one"),
        ({"code": 400, "message": "two"}, "two"),
        ({"code": 400, "msg": None, "message": "two"}, "two"),
        ({"code": 400}, "(no message)"),
        ({"code": 400, "msg": {"a": 1}}, "(no message)"),
        ({"code": 400, "msg": ""}, "(no message)"),
    ],
)
def test_messages(body, message):
    assert error_of("credits", answer(body)).message == message


def test_an_answer_that_is_not_json_is_quoted_shortly():
    error = error_of("credits", answer(b"<html>\n  <h1>Bad\tGateway</h1>" + b"x" * 10_000, 502))
    assert error.message.startswith("HTTP 502 with not JSON but '<html> <h1>Bad Gateway</h1>xxx")
    assert len(error.message) < 200


@pytest.mark.parametrize("status", [201, 200])
def test_created(status):
    data = {"taskId": f" {TASK} ", "recordId": TASK}
    assert protocol.read_created(answer({"code": 200, "msg": "success", "data": data}, status)) == TASK
    assert protocol.read_created(answer({"code": "200", "data": data}, status)) == TASK


@pytest.mark.parametrize(
    "data", [None, {}, {"taskId": None}, {"taskId": ""}, {"taskId": " "}, {"taskId": 7}, [], "x", 7]
)
def test_success_without_an_id_is_a_doubt(data):
    error = error_of("create", answer({"code": 200, "msg": "success", "data": data}))
    assert type(error) is KieSubmitUnknownError
    assert "Kie says success but sent no taskId" in error.message


@pytest.mark.parametrize(
    "kie_task_id",
    ["ab\ud800c", "a\nINFO forged", "a b", "é", "a\0", "\x7f", "x" * 201, "x" * 100_000, 7, True, [TASK], {"id": TASK}],
)
def test_an_id_that_can_be_none_is_a_doubt(kie_task_id):
    error = error_of("create", answer({"code": 200, "msg": "success", "data": {"taskId": kie_task_id}}))
    assert type(error) is KieSubmitUnknownError
    assert error.kie_task_id is None
    assert repr(kie_task_id)[:50] in error.message
    assert len(str(error)) < 600
    assert str(error).isprintable()


def test_an_id_of_an_unusual_form_is_one():
    for kie_task_id in ("task_flux-2_1765175072483", "x" * 200, "a/b+c=", "!~"):
        assert protocol.read_created(answer({"code": 200, "data": {"taskId": kie_task_id}})) == kie_task_id


@pytest.mark.parametrize("code", [*BY_CODE, 500.5, None, "ok"])
@pytest.mark.parametrize(
    "body",
    [
        {"data": {"taskId": TASK}},
        {"data": {"recordId": TASK}},
        {"data": {"taskId": None, "task_id": TASK}},
        {"data": [{"taskId": TASK}]},
        {"data": json.dumps({"taskId": TASK})},
        {"data": None, "taskId": f" {TASK} "},
    ],
)
def test_an_id_beside_any_code_but_200_is_a_doubt_that_names_it(code, body):
    for status in (200, 401, 404, 422, 429, 500):
        error = error_of("create", answer({"code": code, "msg": "aspect_ratio is required", **body}, status))
        assert type(error) is KieSubmitUnknownError
        assert error.kie_task_id == TASK
        assert f"it names Kie task {TASK}" in error.message
        assert "aspect_ratio is required" in error.message


@pytest.mark.parametrize("status", [200, 401, 404, 502])
def test_an_id_in_a_fragment_is_a_doubt_that_names_it(status):
    whole = json.dumps({"code": 200, "msg": "x" * 300, "data": {"taskId": TASK, "recordId": TASK}})
    for body in (whole[:-3], json.dumps(whole)[:-1], f"<html>taskId: {TASK}</html>"):
        error = error_of("create", answer(body.encode(), status))
        assert type(error) is KieSubmitUnknownError
        assert f"it names Kie task {TASK}" in error.message


@pytest.mark.parametrize(
    "data", [None, {}, [], "", {"taskId": None}, {"taskId": ""}, {"input": {"taskId": TASK}}, {"field": "x"}]
)
def test_a_refusal_that_names_no_new_task_is_one(data):
    assert type(error_of("create", answer({"code": 422, "msg": "x", "data": data}))) is KieValidationError


@pytest.mark.parametrize("status", [302, 400, 404, 500, 502])
def test_code_200_with_another_http_status_is_a_doubt(status):
    body = {"code": 200, "msg": "success", "data": {"taskId": TASK}}
    error = error_of("create", answer(body, status))
    assert type(error) is KieSubmitUnknownError
    assert TASK in error.message  # whoever reads this can settle it


@pytest.mark.parametrize(
    "body",
    [
        {"code": 422, "msg": "recordInfo is null", "data": None},
        {"code": 422, "msg": "RecordInfo is null."},
        {"code": 400, "msg": "recordInfo is null"},
        {"code": 404, "msg": "no such task"},
        {"code": 200, "msg": "success", "data": None},
        {"code": 200},
    ],
)
def test_unknown_tasks(body):
    error = error_of("record", answer(body))
    assert type(error) is KieNotFoundError
    assert error.kie_task_id == TASK
    assert error.code == body["code"]


@pytest.mark.parametrize("data", [[], "x", 7, True])
def test_a_record_that_is_no_object(data):
    error = error_of("record", answer({"code": 200, "data": data}))
    assert type(error) is KieServerError
    assert error.kie_task_id == TASK


@pytest.mark.parametrize(
    "told", ["94c0e77d21b84f0f8a35d6e1b07c9f23", TASK[:-1], TASK.upper(), f"{TASK}\n{TASK}", 7, [TASK]]
)
@pytest.mark.parametrize("state", ["waiting", "success", "fail"])
@pytest.mark.parametrize("name", ["record", "look"])
@pytest.mark.parametrize("field", ["taskId", "task_id"])
def test_a_record_of_another_task_is_none(field, name, state, told):
    data = {field: told, "state": state, "resultJson": json.dumps({"resultUrls": ["https://x/1.png"]})}
    error = error_of(name, answer({"code": 200, "msg": "success", "data": data}))
    assert (type(error), error.is_transient, error.kie_task_id) == (KieServerError, True, TASK)
    assert error.message == f"recordInfo was asked for task {TASK} and answered about {shorten(told)}"


@pytest.mark.parametrize("told", [TASK, f" {TASK} ", None, ""])
def test_a_record_of_the_task_that_was_asked_for(told):
    for name, field in itertools.product(("record", "look"), ("taskId", "task_id")):
        record = READERS[name](answer({"code": 200, "data": {field: told, "state": "success"}}))
        assert record.kie_task_id == TASK


def test_a_record():
    record = protocol.read_task(answer({"code": 200, "data": {"taskId": TASK, "state": "generating"}}), TASK)
    assert (record.kie_task_id, record.state) == (TASK, TaskState.RUNNING)


@pytest.mark.parametrize("number", [0, 5, 5916.25])
def test_credits(number):
    assert protocol.read_credits(answer({"code": 200, "data": number})) == float(number)


@pytest.mark.parametrize("data", [None, "5", True, [], {}, float("nan"), float("inf"), 10**400, -(10**400)])
def test_credits_that_are_no_number(data):
    assert "the credit balance is not a number" in error_of("credits", answer({"code": 200, "data": data})).message


@pytest.mark.parametrize("url", ["https://x/a b", "https://x/\n", "https://x/\ud800", "https://x:port/"])
def test_links_that_cannot_be_used(url):
    assert "is not a URL but" in error_of("download", answer({"code": 200, "data": url})).message
    assert "without a downloadUrl" in error_of("upload", answer({"code": 200, "data": {"downloadUrl": url}})).message


@pytest.mark.parametrize("code", [10**6, -(10**6), 10**400, str(10**18)])
def test_a_number_that_is_no_code(code):
    error = error_of("credits", answer({"code": code, "msg": "x"}))
    assert (type(error), error.code) == (KieServerError, None)
    assert "JSON without Kie's code" in error.message
    assert len(str(error)) < 300


@pytest.mark.parametrize("text", ['{"prompt": "a fox"}', "{'prompt': 'a fox'}", " {'prompt': 'a fox'}\n"])
def test_an_input_that_a_template_has_turned_into_text(text):
    assert protocol.create_task_body("a/b", text) == {"model": "a/b", "input": {"prompt": "a fox"}}


@pytest.mark.parametrize("value", [None, "None"])
def test_an_input_that_the_upstream_task_did_not_return(value):
    with pytest.raises(KieValidationError, match="the upstream task returned nothing"):
        protocol.create_task_body("a/b", value)


def test_download_url():
    assert protocol.read_download_url(answer({"code": 200, "data": "https://x/1?t=2"})) == "https://x/1?t=2"
    error = error_of("download", answer({"code": 422, "msg": "url is wrong", "data": None}))
    assert type(error) is KieValidationError
    for data in (None, "", "x", {}):
        assert "is not a URL" in error_of("download", answer({"code": 200, "data": data})).message


def test_upload():
    data = {"success": True, "fileName": "cat.png", "downloadUrl": "https://x/cat.png"}
    assert protocol.read_upload(answer({"success": True, "code": 200, "data": data})) == "https://x/cat.png"
    for data in (None, {}, {"downloadUrl": "cat.png"}, []):
        assert "without a downloadUrl" in error_of("upload", answer({"code": 200, "data": data})).message


def test_an_auth_failure_without_data():
    text = "Unauthorized – Authentication failed. Please check that your Authorization header is correctly set."
    error = error_of("credits", answer({"code": 401, "msg": text}))
    assert type(error) is KieAuthError
    assert error.message == text


# ---------------------------------------------------------------- nothing but Kie errors

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["\ud83e", 10**30]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
CODES = st.sampled_from([*BY_CODE, 200, "200", -1]) | st.integers() | VALUES
BODIES = (
    st.binary()
    | VALUES.map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries({"code": CODES}, optional={"msg": VALUES, "data": VALUES}).map(
        lambda value: json.dumps(value).encode()
    )
)


@pytest.mark.parametrize("name", READERS)
@given(body=BODIES, status=st.integers(100, 599))
def test_no_answer_raises_anything_but_kie_errors(name, body, status):
    try:
        READERS[name](Answer(status, body))
    except KieSubmitUnknownError:
        assert name == "create"
    except KieError as error:
        str(error).encode(), repr(error).encode(), msgspec.msgpack.encode(error.to_dict())


#: Fields of a record as Kie sends them, or as it might: right, late, encoded once or twice too often, or junk.
URLS = st.sampled_from(["https://x/1.png", "http://[x", "x", ""])
RESULTS = st.fixed_dictionaries({}, optional={"resultUrls": st.lists(URLS) | URLS | VALUES, "resultObject": VALUES})
INPUTS = VALUES | st.dictionaries(st.text(max_size=8), VALUES, max_size=2)
PARAMS = st.fixed_dictionaries({}, optional={"input": INPUTS | INPUTS.map(json.dumps), "model": VALUES})
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 1, 2, 3, 1e300, "3", "inf", "-1", 1_790_000_000_000])
RECORD_FIELDS = {
    "taskId": st.just(TASK) | VALUES,
    "model": st.just("flux-2/pro-text-to-image") | VALUES,
    "state": st.sampled_from(["waiting", "queuing", "generating", "success", "fail", "SUCCESS", "new", ""]) | VALUES,
    "successFlag": NUMBERS | VALUES,
    "param": PARAMS | PARAMS.map(json.dumps) | VALUES,
    "paramJson": PARAMS.map(json.dumps) | VALUES,
    "response": RESULTS | RESULTS.map(json.dumps) | VALUES,
    "resultJson": RESULTS.map(json.dumps) | VALUES,
    "failCode": st.sampled_from(["", "422", 422, "SENSITIVE_WORD_ERROR"]) | VALUES,
    "failMsg": VALUES,
    "creditsConsumed": NUMBERS | VALUES,
    "costTime": NUMBERS | VALUES,
    "createTime": NUMBERS | VALUES,
    "completeTime": NUMBERS | VALUES,
}
RECORDS = st.fixed_dictionaries({}, optional=RECORD_FIELDS)


def outcome_of(name, given_answer):
    """Return what a reader returned or, of Kie's errors, raised."""
    try:
        return READERS[name](given_answer)
    except KieError as error:
        return error


@given(data=RECORDS, status=st.sampled_from([200, 201, 404, 500]))
def test_a_record_of_any_shape_is_read_or_refused(data, status):
    outcome = outcome_of("record", answer({"code": 200, "msg": "success", "data": data}, status))
    assert outcome.kie_task_id == TASK
    if isinstance(outcome, KieError):
        assert status >= 300 or data["taskId"] not in (None, "", TASK)
        return
    assert isinstance(outcome, TaskRecord)
    if data.get("state") in ("success", "fail"):
        assert outcome.state.value == data["state"]
    result = outcome.to_result()
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    msgspec.msgpack.encode(result)


CREATED_IDS = st.just(TASK) | st.text(max_size=8) | VALUES
CREATE_BODIES = st.fixed_dictionaries(
    {"code": st.just(200) | CODES},
    optional={
        "msg": VALUES | st.just("aspect_ratio is required"),
        "data": VALUES | st.builds(dict, taskId=CREATED_IDS),
    },
)


@given(body=CREATE_BODIES, status=st.sampled_from([200, 200, 200, 201, 302, 429, 500]))
def test_createtask_gives_an_id_a_refusal_or_a_doubt(body, status):
    outcome = outcome_of("create", answer(body, status))
    said_success = str(body["code"]).strip() == "200" and status < 300
    sent = body["data"].get("taskId") if isinstance(body.get("data"), dict) else None
    if said_success and isinstance(sent, str) and re.fullmatch("[!-~]{1,200}", sent.strip()):
        assert outcome == sent.strip()
    elif said_success:
        assert type(outcome) is KieSubmitUnknownError
    else:
        assert type(outcome) is KieSubmitUnknownError or refuses_submission(outcome)


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"code":' + b"1" * 10_000 + b"}", b'{"code":200,"data":' + b"[" * 990]
)
@pytest.mark.parametrize("name", READERS)
def test_hostile_json(name, body):
    assert isinstance(error_of(name, answer(body)), KieError)


@pytest.mark.parametrize("name", ["credits", "download", "upload", "create"])
def test_deep_data(name):
    for depth in range(100, 1100, 50):
        assert isinstance(error_of(name, answer(b'{"code":200,"data":' + b"[" * depth + b"]" * depth + b"}")), KieError)


@pytest.mark.parametrize(
    "state", ["waiting", "queuing", "generating", "success", "fail", "paused", "GENERATING", None, 7, []]
)
@pytest.mark.parametrize("rest", [{}, {"successFlag": 1, "response": {"resultUrls": ["https://x/1.png"]}}])
def test_a_look_tells_what_a_record_tells_of_the_state(state, rest):
    given_answer = answer({"code": 200, "data": {"taskId": TASK, "state": state, **rest}})
    look, record = protocol.read_poll(given_answer, TASK), protocol.read_task(given_answer, TASK)

    assert (look.kie_task_id, look.state, look.kie_state) == (record.kie_task_id, record.state, record.kie_state)
    if record.state is not TaskState.RUNNING:
        assert look == record


def test_the_target_of_a_request_is_quoted():
    assert protocol.get_task("a b&c").target == "/api/v1/jobs/recordInfo?taskId=a+b%26c"
    assert protocol.get_credits().target == "/api/v1/chat/credit"
