import json

import pendulum
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_provider.client.plain import is_http_url
from kie_provider.client.records import TaskRecord, TaskState

PRO = "flux-2/pro-text-to-image"
URL = "https://tempfile.example/h/1.png"

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)
FIELDS = [
    "taskId",
    "model",
    "state",
    "successFlag",
    "param",
    "paramJson",
    "response",
    "resultJson",
    "failCode",
    "failMsg",
    "costTime",
    "createTime",
    "completeTime",
    "updateTime",
    "progress",
    "creditsConsumed",
]


def record(**data):
    return TaskRecord.from_data(data, "abc")


# ---------------------------------------------------------------- TaskRecord


def test_a_record_of_2026_04():
    parsed = record(
        taskId="abc",
        model=PRO,
        state="success",
        param=json.dumps({"model": PRO, "input": json.dumps({"prompt": "a cat", "resolution": "1K"})}),
        resultJson=json.dumps({"resultUrls": [URL]}),
        failCode=None,
        failMsg=None,
        costTime=12,
        createTime=1775900000123,
        completeTime=1775900012456,
    )
    assert parsed == TaskRecord(
        kie_task_id="abc",
        state=TaskState.SUCCESS,
        kie_state="success",
        model=PRO,
        input={"prompt": "a cat", "resolution": "1K"},
        urls=(URL,),
        cost_seconds=12,
        created_at=pendulum.datetime(2026, 4, 11, 9, 33, 20, 123000),
        completed_at=pendulum.datetime(2026, 4, 11, 9, 33, 32, 456000),
    )


def test_a_record_of_2026_09_and_its_result():
    parsed = record(
        taskId="abc",
        model=PRO,
        state="success",
        successFlag=1,
        paramJson=json.dumps({"input": {"prompt": "a cat"}}),
        response={"resultUrls": [URL]},
        resultJson="",
        creditsConsumed=5.0,
        costTime=9,
        createTime=1790000000000,
        completeTime=1790000009000,
    )
    assert parsed.to_result() == {
        "kie_task_id": "abc",
        "model": PRO,
        "state": "success",
        "urls": [URL],
        "result": None,
        "credits_consumed": 5.0,
        "cost_seconds": 9,
        "created_at": "2026-09-21T14:13:20Z",
        "completed_at": "2026-09-21T14:13:29Z",
        "input": {"prompt": "a cat"},
    }


def test_an_empty_record_is_a_running_task_of_the_id_asked_for():
    parsed = record()
    assert parsed == TaskRecord(kie_task_id="abc", state=TaskState.RUNNING, kie_state="unknown")


@pytest.mark.parametrize(
    ("data", "state", "kie_state"),
    [
        ({"state": "waiting"}, TaskState.RUNNING, "waiting"),
        ({"state": "queuing"}, TaskState.RUNNING, "queuing"),
        ({"state": "generating"}, TaskState.RUNNING, "generating"),
        ({"state": "success"}, TaskState.SUCCESS, "success"),
        ({"state": "SUCCESS"}, TaskState.SUCCESS, "SUCCESS"),
        ({"state": "fail"}, TaskState.FAIL, "fail"),
        ({"state": "failed"}, TaskState.FAIL, "failed"),
        ({"state": " Failed\n"}, TaskState.FAIL, "Failed"),
        ({"state": "GENERATE_AUDIO_FAILED"}, TaskState.FAIL, "GENERATE_AUDIO_FAILED"),
        ({"state": "error"}, TaskState.FAIL, "error"),
        ({"state": "completed"}, TaskState.SUCCESS, "completed"),
        ({"state": "SUCCEEDED"}, TaskState.SUCCESS, "SUCCEEDED"),
        ({"state": "FIRST_SUCCESS"}, TaskState.RUNNING, "FIRST_SUCCESS"),
        ({"state": "TEXT_SUCCESS"}, TaskState.RUNNING, "TEXT_SUCCESS"),
        *[({"state": word}, TaskState.RUNNING, word) for word in ("wait", "queueing", "pending", "processing")],
        ({"state": "reviewing"}, TaskState.RUNNING, "reviewing"),
        ({"state": ""}, TaskState.RUNNING, "unknown"),
        ({"state": None}, TaskState.RUNNING, "unknown"),
        ({"state": ["success"]}, TaskState.RUNNING, "unknown"),
        ({"successFlag": 0}, TaskState.RUNNING, "generating"),
        ({"successFlag": 1}, TaskState.SUCCESS, "success"),
        ({"successFlag": "1"}, TaskState.SUCCESS, "success"),
        ({"successFlag": 1.0}, TaskState.SUCCESS, "success"),
        ({"successFlag": 3}, TaskState.FAIL, "fail"),
        ({"successFlag": 2}, TaskState.FAIL, "fail"),
        ({"successFlag": 4}, TaskState.RUNNING, "unknown"),
        ({"status": "SUCCESS"}, TaskState.SUCCESS, "SUCCESS"),
        ({"status": "success", "state": "generating"}, TaskState.RUNNING, "generating"),
        *[({"state": word}, TaskState.FAIL, word) for word in ("Canceled", "cancelled", "rejected")],
        ({"successFlag": True}, TaskState.RUNNING, "unknown"),
        ({"successFlag": None}, TaskState.RUNNING, "unknown"),
        ({"successFlag": []}, TaskState.RUNNING, "unknown"),
        ({"successFlag": {}}, TaskState.RUNNING, "unknown"),
        ({"state": "generating", "successFlag": 1}, TaskState.RUNNING, "generating"),
        ({"state": "success", "successFlag": 0}, TaskState.SUCCESS, "success"),
    ],
)
def test_states(data, state, kie_state):
    parsed = record(**data)
    assert (parsed.state, parsed.kie_state) == (state, kie_state)


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        ({"failCode": None, "failMsg": None}, None, None),
        ({"failCode": "", "failMsg": ""}, None, None),
        ({"failCode": "  ", "failMsg": "  "}, None, None),
        ({"failCode": "400", "failMsg": "policy"}, "400", "policy"),
        ({"failCode": 500, "failMsg": " Internal Error "}, "500", "Internal Error"),
        ({"failCode": "SENSITIVE_WORD_ERROR"}, "SENSITIVE_WORD_ERROR", None),
        ({"failCode": ["400"], "failMsg": {"a": 1}}, None, None),
        ({"failCode": False, "failMsg": True}, None, None),
    ],
)
def test_fail_fields(data, code, message):
    parsed = record(state="fail", **data)
    assert (parsed.fail_code, parsed.fail_message) == (code, message)


@pytest.mark.parametrize(
    "data",
    [
        {"resultJson": {"resultUrls": [URL]}},
        {"resultJson": json.dumps({"resultUrls": [URL]})},
        {"resultJson": json.dumps({"resultUrls": URL})},
        {"response": {"resultUrls": [URL]}},
        {"response": json.dumps({"resultUrls": [URL]})},
        {"response": {"resultUrls": [URL]}, "resultJson": json.dumps({"resultUrls": ["https://old.example/"]})},
        {"response": {}, "resultJson": {"resultUrls": [URL]}},
        {"response": None, "resultJson": {"resultUrls": [URL]}},
        {"response": {"resultUrls": None}, "resultJson": {"resultUrls": [URL]}},
        {"response": {"resultUrls": [None, "", "ftp://x/1", 7, {}, URL, "//x"]}},
        # encoded once too often
        {"resultJson": json.dumps(json.dumps({"resultUrls": [URL]}))},
        {"resultJson": json.dumps(json.dumps(json.dumps({"resultUrls": [URL]})))},
        {"resultJson": {"resultUrls": json.dumps([URL])}},
        {"response": "null", "resultJson": json.dumps(json.dumps({"resultUrls": [URL]}))},
        # objects with a URL each
        {"resultJson": json.dumps({"resultUrls": [{"url": URL}]})},
        {"resultJson": json.dumps([{"url": URL}])},
        {"response": [{"url": URL}]},
        {"response": [URL]},
        {"response": URL},
        {"resultUrls": [URL]},
        # what other models call it
        {"response": {"data": [{"audio_url": URL}]}},
        {
            "response": {
                "data": [{"audio_url": URL, "stream_audio_url": "https://x/s", "source_audio_url": "https://x/o"}]
            }
        },
        {"response": json.dumps({"data": json.dumps([{"audio_url": URL}])})},
        {"response": {"resultImageUrl": URL, "originImageUrl": "https://x/old"}},
        {"response": {"videoInfo": {"videoUrl": URL}}},
        {"response": {"images": [{"url": URL, "width": 1024}]}},
        {"response": {"output": URL}},
        {"resultInfoJson": json.dumps({"resultUrls": [{"resultUrl": URL}]})},
        {"info": {"result_urls": [URL]}},
        {"result": {"video": {"uri": URL}}},
        {"output": [URL]},
        {"videoUrl": URL},
        {"resultUrls": {"0": URL}},
        {"resultUrls": [f" {URL}\n"]},
        {"response": {"resultObject": {"image_url": URL, "input": {"image_url": "https://x/mine"}}}},
    ],
)
def test_result_urls(data):
    assert record(state="success", **data).urls == (URL,)


def test_a_space_in_a_result_url():
    assert record(state="success", resultUrls=["https://x/a b.png"]).urls == ("https://x/a%20b.png",)


def test_the_songs_of_a_music_model():
    songs = [
        {"id": "1", "audio_url": "https://x/1.mp3", "stream_audio_url": "https://x/1", "image_url": "https://x/1.jpeg"},
        {"id": "2", "audio_url": "https://x/2.mp3", "stream_audio_url": "https://x/2", "image_url": "https://x/2.jpeg"},
    ]
    parsed = record(state="success", response={"data": songs}, resultJson=json.dumps({"data": songs}))
    assert parsed.urls == ("https://x/1.mp3", "https://x/1.jpeg", "https://x/2.mp3", "https://x/2.jpeg")
    assert parsed.result == {"data": songs}
    assert parsed.has_result


@pytest.mark.parametrize(
    ("response", "result"),
    [
        ({"resultUrls": [URL]}, None),
        ({"resultUrls": [URL], "seed": 7}, {"resultUrls": [URL], "seed": 7}),
        ({"resultUrls": [URL], "note": ""}, None),
        ({"resultUrls": ["/relative.png"]}, {"resultUrls": ["/relative.png"]}),
        ({"lyrics": "la la"}, {"lyrics": "la la"}),
        ({"text": "see https://x.example/1.png"}, {"text": "see https://x.example/1.png"}),
        ({"resultObject": {"text": "hi"}, "tokens": 3}, {"text": "hi"}),
        ("a poem", "a poem"),
        ('"quoted" it said', '"quoted" it said'),
        ("{", "{"),
        ([1, 2], [1, 2]),
        (7, 7),
        (False, False),
    ],
)
def test_whatever_a_model_made_is_a_result(response, result):
    for parsed in (record(response=response), record(resultJson=response), record(response={}, resultJson=response)):
        assert parsed.result == result
        assert parsed.has_result


@pytest.mark.parametrize(
    "result", ["", " ", None, "null", "[]", "{}", [], {"resultUrls": {}}, {"data": [None, ""]}, float("nan")]
)
def test_no_result_urls(result):
    parsed = record(state="success", resultJson=result, response=result)
    assert parsed.urls == ()
    assert parsed.result is None


def test_several_urls_keep_their_order():
    urls = [f"https://x.example/{n}.png" for n in (3, 1, 2)]
    assert record(response={"resultUrls": urls}).urls == tuple(urls)


@pytest.mark.parametrize("result", [{"text": "a poem"}, ["a"], "text", 0, False])
def test_the_result_object_of_text_models(result):
    assert record(state="success", resultJson=json.dumps({"resultObject": result})).result == result
    assert record(state="success", response={"resultObject": result}).result == result


@pytest.mark.parametrize(
    ("param", "task_input"),
    [
        (json.dumps({"input": json.dumps({"prompt": "x"})}), {"prompt": "x"}),
        (json.dumps({"input": {"prompt": "x"}}), {"prompt": "x"}),
        ({"input": {"prompt": "x"}}, {"prompt": "x"}),
        (json.dumps({"input": "not json"}), {}),
        (json.dumps({"input": "[1]"}), {}),
        (json.dumps({"input": None}), {}),
        (json.dumps([]), {}),
        ("", {}),
        (None, {}),
        ("{", {}),
        ("[" * 100_000, {}),
        (5, {}),
    ],
)
def test_the_doubly_encoded_input(param, task_input):
    assert record(param=param).input == task_input
    assert record(param="", paramJson=param).input == task_input


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        (1790000000000, pendulum.datetime(2026, 9, 21, 14, 13, 20)),
        ("1790000000000", pendulum.datetime(2026, 9, 21, 14, 13, 20)),
        (1790000000000.0, pendulum.datetime(2026, 9, 21, 14, 13, 20)),
        (None, None),
        ("", None),
        (0, None),
        (-1, None),
        (True, None),
        (10**30, None),
        (10**400, None),
        (4e12, None),
        ("soon", None),
        (float("nan"), None),
        (float("inf"), None),
        ("nan", None),
        ([], None),
    ],
)
def test_times(value, moment):
    assert record(createTime=value).created_at == moment
    assert record(completeTime=value).completed_at == moment


@pytest.mark.parametrize(
    ("value", "credits_consumed", "cost_seconds"),
    [
        (5, 5.0, 5),
        (6.5, 6.5, 6),
        ("6.5", 6.5, 6),
        (0, 0.0, 0),
        (None, None, None),
        ("", None, None),
        (True, None, None),
        (10**400, None, None),
        (float("nan"), None, None),
        ("Infinity", None, None),
        ({}, None, None),
    ],
)
def test_numbers(value, credits_consumed, cost_seconds):
    parsed = record(creditsConsumed=value, costTime=value)
    assert (parsed.credits_consumed, parsed.cost_seconds) == (credits_consumed, cost_seconds)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, JSON)))
def test_no_data_object_breaks_the_parser(data):
    parsed = TaskRecord.from_data(data, "abc")
    assert parsed.kie_task_id == "abc"
    assert isinstance(parsed.state, TaskState)
    assert all(is_http_url(url) for url in parsed.urls)
    json.dumps(parsed.to_result())


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, JSON.map(json.dumps))))
def test_no_data_object_of_json_texts_breaks_the_parser(data):
    json.dumps(TaskRecord.from_data(data, "abc").to_result())
