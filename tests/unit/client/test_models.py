import json
from collections.abc import Sequence

import pendulum
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_provider.client.errors import KieValidationError
from kie_provider.client.models import Flux2Input, TaskRecord, TaskState, is_http_url, shorten

PRO, FLEX = "flux-2/pro-text-to-image", "flux-2/flex-text-to-image"
PRO_I2I, FLEX_I2I = "flux-2/pro-image-to-image", "flux-2/flex-image-to-image"
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


@pytest.mark.parametrize("url", ["http://x", "https://x.example/a?b#c", "HTTPS://X", "http://[::1]:80/"])
def test_urls(url):
    assert is_http_url(url)


@pytest.mark.parametrize(
    "url",
    [
        *("", "x", "//x", "/x", "ftp://x", "http://", "http:///x", "http://[x", None, 1, b"http://x"),
        *("https://x/a b", " https://x", "https://x/\n", "https://x\t.example", "https://x/\x00", "https://x/\ud800"),
        *("https://x:port/", "https://x:99999/", "https://x:0/", "https://x:-1/"),
    ],
)
def test_no_urls(url):
    assert not is_http_url(url)


def test_shorten_cuts_and_survives_bottomless_values():
    bottomless = []
    for _ in range(100_000):
        bottomless = [bottomless]
    assert shorten("a" * 100) == "'" + "a" * 59 + "..."
    assert shorten(bottomless) == "<list nested too deep>"


# ---------------------------------------------------------------- Flux2Input


def problems(model=PRO, **fields):
    with pytest.raises(KieValidationError) as caught:
        Flux2Input.parse(model, {"prompt": "a cat", **fields})
    first, *lines = caught.value.message.split("\n")
    assert first == "nothing was sent."
    assert all(line.startswith("  - ") for line in lines)
    return [line[4:] for line in lines]


class Lazy(Sequence):
    """What Airflow hands over for the output of a mapped task: a sequence, not a list."""

    def __init__(self, *items):
        self.items = items

    def __getitem__(self, index):
        return self.items[index]

    def __len__(self):
        return len(self.items)


def test_the_least_that_is_needed():
    assert Flux2Input.parse(PRO, {"prompt": "a cat"}).to_payload() == {
        "prompt": "a cat",
        "aspect_ratio": "1:1",
        "resolution": "1K",
    }


@pytest.mark.parametrize("model", [PRO_I2I, FLEX_I2I])
def test_all_there_is(model):
    fields = {
        "prompt": "a cat",
        "aspect_ratio": "auto",
        "resolution": "2K",
        "input_urls": [URL, f"{URL}?2"],
        "nsfw_checker": False,
    }
    parsed = Flux2Input.parse(model, fields)
    assert parsed == Flux2Input(model, "a cat", "auto", "2K", (URL, f"{URL}?2"), False)
    assert parsed.to_payload() == fields


@pytest.mark.parametrize("model", [PRO, FLEX])
@pytest.mark.parametrize("ratio", ["1:1", "4:3", "3:4", "16:9", "9:16", "3:2", "2:3"])
def test_ratios(model, ratio):
    assert Flux2Input.parse(model, {"prompt": "a cat", "aspect_ratio": ratio}).aspect_ratio == ratio


def test_prompt_lengths():
    for good in ("cat", "x" * 5000, f"  {'x' * 5000}\n"):
        assert Flux2Input.parse(PRO, {"prompt": good}).prompt == good.strip()
    assert problems(prompt="ab") == ["prompt: 'ab' has 2 characters; 3 to 5000 are allowed"]
    assert problems(prompt="  ab  ") == ["prompt: 'ab' has 2 characters; 3 to 5000 are allowed"]
    assert problems(prompt="x" * 5001) == [
        f"prompt: '{'x' * 59}... has 5001 characters; 3 to 5000 are allowed",
    ]


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        (None, "prompt: must be text, got None: the upstream task returned nothing"),
        (7, "prompt: must be text, got int 7"),
        (["a cat"], "prompt: must be text, got list ['a cat']"),
        (b"a cat", "prompt: must be text, got bytes b'a cat'"),
        ("", "prompt: '' has 0 characters; 3 to 5000 are allowed"),
    ],
)
def test_prompts_that_are_none(prompt, problem):
    assert problems(prompt=prompt) == [problem]


def test_a_prompt_that_is_a_mapped_xcom():
    (problem,) = problems(prompt=Lazy("a cat"))
    assert problem.startswith("prompt: must be text, got Lazy <")


def test_the_prompt_is_not_optional():
    with pytest.raises(KieValidationError, match="prompt: must be text, got None: the upstream task returned nothing"):
        Flux2Input.parse(PRO, {})


@pytest.mark.parametrize("model", ["flux-2", "flux-2/max", f" {PRO}", 7, [PRO]])
def test_unknown_models(model):
    assert problems(model) == [
        f"model: {model!r} is not a Flux-2 model; allowed: flux-2/pro, flux-2/flex, flux-2/pro-text-to-image, "
        "flux-2/flex-text-to-image, flux-2/pro-image-to-image, flux-2/flex-image-to-image"
    ]


@pytest.mark.parametrize("tier", ["flux-2/pro", "flux-2/flex"])
def test_a_tier_is_completed(tier):
    assert Flux2Input.parse(tier, {"prompt": "a red fox"}).model == f"{tier}-text-to-image"
    assert Flux2Input.parse(tier, {"prompt": "a red fox", "input_urls": [URL]}).model == f"{tier}-image-to-image"


@pytest.mark.parametrize("ratio", ["5:4", 1, "1:1 ", ["1:1"], {}])
def test_bad_ratios(ratio):
    assert problems(aspect_ratio=ratio) == [
        f"aspect_ratio: {ratio!r} is not allowed; allowed: 1:1, 4:3, 3:4, 16:9, 9:16, 3:2, 2:3"
    ]


@pytest.mark.parametrize("blank", ["", " ", "None", None, float("nan")])
def test_blank_means_the_default(blank):
    order = Flux2Input.parse(blank, {"prompt": "a red fox", "aspect_ratio": blank, "resolution": blank})
    assert order == Flux2Input(PRO, "a red fox", "1:1", "1K")


def test_a_bad_ratio_with_images_may_be_auto():
    (problem,) = problems(PRO_I2I, aspect_ratio="5:4", input_urls=[URL])
    assert problem.endswith("allowed: 1:1, 4:3, 3:4, 16:9, 9:16, 3:2, 2:3, auto")


@pytest.mark.parametrize("model", [PRO, FLEX])
def test_auto_needs_images(model):
    assert problems(model, aspect_ratio="auto") == [
        f"aspect_ratio: 'auto' takes the ratio of the first input image, and {model} takes none; "
        "allowed: 1:1, 4:3, 3:4, 16:9, 9:16, 3:2, 2:3"
    ]


@pytest.mark.parametrize("resolution", ["4K", "1k", 1, ["1K"]])
def test_bad_resolutions(resolution):
    assert problems(resolution=resolution) == [f"resolution: {resolution!r} is not allowed; allowed: 1K, 2K"]


@pytest.mark.parametrize(
    ("given_urls", "urls"),
    [
        (URL, (URL,)),
        ([URL], (URL,)),
        ((URL, URL), (URL, URL)),
        (Lazy(URL, URL), (URL, URL)),
        (f"['{URL}']", (URL,)),
        (f'["{URL}", "{URL}"]', (URL, URL)),
        (f"  ['{URL}']\n", (URL,)),
        ([URL] * 8, (URL,) * 8),
    ],
)
def test_input_urls(given_urls, urls):
    assert Flux2Input.parse(PRO_I2I, {"prompt": "a cat", "input_urls": given_urls}).input_urls == urls


@pytest.mark.parametrize("nothing", [None, "", " ", "None", [], (), "[]", Lazy()])
def test_input_urls_are_needed_or_not(nothing):
    assert Flux2Input.parse(PRO, {"prompt": "a cat", "input_urls": nothing}).input_urls == ()
    assert problems(PRO_I2I, input_urls=nothing) == [
        "input_urls: flux-2/pro-image-to-image needs 1 to 8 http(s) URLs of images, got none"
    ]


@pytest.mark.parametrize(("model", "twin"), [(PRO, PRO_I2I), (FLEX, FLEX_I2I)])
def test_text_to_image_takes_no_images(model, twin):
    assert problems(model, input_urls=[URL]) == [f"input_urls: {model} takes no images; use {twin}"]


def test_bad_input_urls_are_named_one_by_one():
    assert problems(PRO_I2I, input_urls=[URL, "data:image/png;base64,AAAA", None, "/tmp/cat.png"]) == [
        "input_urls[1]: must be an http(s) URL that Kie can fetch, got 'data:image/png;base64,AAAA'",
        "input_urls[2]: must be an http(s) URL that Kie can fetch, got None: the upstream task returned nothing",
        "input_urls[3]: must be an http(s) URL that Kie can fetch, got '/tmp/cat.png'",
    ]


def test_too_many_input_urls():
    assert problems(FLEX_I2I, input_urls=[URL] * 9) == ["input_urls: 9 given; at most 8 are allowed"]


@pytest.mark.parametrize(
    "text", ["[", "['", "[{[]: 1}]", "[{[]}]", f"[{'-' * 100_000}1]", "[" * 1000, "[\x00]", "[x]", "[__import__('os')]"]
)
def test_text_that_only_looks_like_a_list(text):
    assert problems(PRO_I2I, input_urls=text) == [
        f"input_urls[0]: must be an http(s) URL that Kie can fetch, got {shorten(text)}"
    ]


@pytest.mark.parametrize(
    ("value", "parsed"),
    [
        (True, True),
        (False, False),
        ("True", True),
        ("true", True),
        (" FALSE ", False),
        (None, None),
        ("", None),
        ("None", None),
    ],
)
def test_nsfw_checker(value, parsed):
    task_input = Flux2Input.parse(PRO, {"prompt": "a cat", "nsfw_checker": value})
    assert task_input.nsfw_checker is parsed
    assert task_input.to_payload().get("nsfw_checker", "not sent") == ("not sent" if parsed is None else parsed)


@pytest.mark.parametrize("value", [0, 1, "yes", "1", [], {}])
def test_bad_nsfw_checker(value):
    assert problems(nsfw_checker=value) == [f"nsfw_checker: must be true or false, got {value!r}"]


@pytest.mark.parametrize("name", ["seed", "steps", "negative_prompt", "Prompt", "callBackUrl", ""])
def test_unknown_fields_are_named(name):
    assert problems(**{name: 1}) == [
        f"{name}: there is no such field; allowed: prompt, aspect_ratio, resolution, input_urls, nsfw_checker"
    ]


def test_everything_that_is_wrong_is_said_at_once():
    wrong = {"prompt": "x", "aspect_ratio": "7:7", "resolution": "8K", "input_urls": [URL], "nsfw_checker": 2, "n": 4}
    assert [problem.split(":")[0] for problem in problems(PRO, **wrong)] == [
        "n",
        "prompt",
        "aspect_ratio",
        "resolution",
        "input_urls",
        "nsfw_checker",
    ]


def test_nothing_is_said_of_images_when_the_model_is_unknown():
    assert [problem.split(":")[0] for problem in problems("flux-3", input_urls=["x"], aspect_ratio="auto")] == [
        "model",
        "input_urls[0]",
    ]


@given(
    st.sampled_from([PRO, FLEX, PRO_I2I, FLEX_I2I]) | JSON,
    st.dictionaries(st.text(), JSON)
    | st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("prompt", "aspect_ratio", "resolution", "input_urls", "nsfw_checker"), JSON)
    ),
)
def test_no_fields_break_the_check(model, fields):
    try:
        payload = Flux2Input.parse(model, fields).to_payload()
    except KieValidationError:
        return
    json.dumps(payload)
