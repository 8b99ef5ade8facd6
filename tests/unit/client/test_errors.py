import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_provider.client import errors
from kie_provider.client.codes import error_for_code, refuses_submission
from kie_provider.client.errors import KieError, error_from_dict
from kie_provider.client.plain import one_line

CREDITS = "Credits insufficient : Your current balance isn't enough to run this request. Please top up to continue."
# code -> (class, is transient, refuses a submission): the vendor's list, and what was seen on the wire.
TRUTH = {
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
    # codes that Kie does not document
    0: ("KieError", False, False),
    -1: ("KieError", False, False),
    201: ("KieError", False, False),
    403: ("KieError", False, False),
    430: ("KieError", False, False),
    502: ("KieServerError", True, False),
    503: ("KieServerError", True, False),
    999: ("KieServerError", True, False),
}


@pytest.mark.parametrize("code", TRUTH)
def test_every_code_has_one_meaning(code):
    error = error_for_code(code, "whatever Kie says")
    assert (type(error).__name__, error.is_transient, refuses_submission(error)) == TRUTH[code]
    assert error.code == code


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("aspect_ratio is required", "KieValidationError"),
        ("prompt is required", "KieValidationError"),
        ("This field is required", "KieValidationError"),
        ("This aspect_ratio is not within the range of allowed options", "KieValidationError"),
        (" The text length cannot exceed the maximum limit\n", "KieValidationError"),
        (CREDITS, "KieInsufficientCreditsError"),
        ("Credits insufficient", "KieInsufficientCreditsError"),
        # Nobody has seen these refuse a request, and some are no refusals at all.
        ("the connection must be reset by peer", "KieServerError"),
        ("The worker is not supported any more, aspect_ratio is required", "KieServerError"),
        ("aspect_ratio is required by the model, which has timed out", "KieServerError"),
        ("a restart is required", "KieServerError"),
        ("Restart is required", "KieServerError"),
        ("restart is required", "KieServerError"),
        ("The model name you specified is not supported.", "KieServerError"),
        ("n_frames must be 10 or 15", "KieServerError"),
        ("prompt cannot be empty", "KieServerError"),
        ("CREDITS INSUFFICIENT", "KieServerError"),
        ("Task created. " + CREDITS, "KieServerError"),
        ("Server exception, please try again later", "KieServerError"),
        ("Internal Error, Please try again later.", "KieServerError"),
        ("the requirements could not be loaded", "KieServerError"),
        ("", "KieServerError"),
    ],
)
def test_the_text_of_code_500_decides(text, name):
    error = error_for_code(500, text)
    assert type(error).__name__ == name
    assert refuses_submission(error) is (name != "KieServerError")


@pytest.mark.parametrize("code", [429, 401, 501, 503])
def test_the_text_of_other_codes_decides_nothing(code):
    assert type(error_for_code(code, "credits insufficient, prompt is required")) is type(error_for_code(code, ""))


@pytest.mark.parametrize("status", [401, 404, 405, 407, 411, 413, 414, 415, 421, 431])
def test_a_gateway_that_has_not_passed_it_on_refuses(status):
    assert refuses_submission(KieError("HTTP status with a web page", http_status=status))


@pytest.mark.parametrize("status", [200, 204, 301, 307, 400, 402, 403, 408, 409, 410, 422, 425, 429, 500, 502, 504])
def test_any_other_error_without_kies_code_refuses_nothing(status):
    assert not refuses_submission(KieError("HTTP status with a web page", http_status=status))
    assert not refuses_submission(KieError("code 200 with an HTTP status", code=200, http_status=404))
    assert not refuses_submission(errors.KieTransportError("reset"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\r\nINFO forged\x1b[31m\x85\u2028b", "a INFO forged [31m b"),
        (" Grüße, 猫 \ud83e ", "Grüße, 猫 ?"),
        ("it is \u202edeliaf\u202c \u2066not\u2069 so", "it is  deliaf   not  so"),
        ("x" * 3000, "x" * 2000 + "..."),
    ],
)
def test_what_kie_says_is_one_line_of_sane_length(text, line):
    assert error_for_code(422, text).message == one_line(text) == line


def test_text_names_cause_code_status_task_and_what_to_do():
    error = errors.KieInsufficientCreditsError("Please top up", code=402, http_status=200, kie_task_id="abc")
    facts = "Please top up [Kie code 402, HTTP 200, Kie task abc]"
    assert str(error) == f"{error.summary}: {facts} -> {error.advice}"
    assert "https://kie.ai/billing" in error.advice


def test_text_without_facts_and_advice():
    assert str(KieError("it broke")) == "Kie.ai call failed: it broke"


def every_error_class():
    found, todo = [], [KieError]
    while todo:
        error = todo.pop()
        found.append(error)
        todo += error.__subclasses__()
    return [error for error in found if error.__module__ == errors.__name__]


@pytest.mark.parametrize("error_class", every_error_class())
def test_every_error_survives_the_way_through_json(error_class):
    error = error_class("it broke", code="422", http_status=200, kie_task_id="abc", retry_after=1.5)
    back = error_from_dict(json.loads(json.dumps(error.to_dict())))
    assert type(back) is error_class
    assert str(back) == str(error)
    assert back.to_dict() == error.to_dict()


@pytest.mark.parametrize(
    ("code", "message", "may_succeed"),
    [
        ("500", "Internal Error, Please try again later.", True),
        (500, "Kie gave no reason", True),
        ("408", "Kie gave no reason", True),
        ("501", "Internal Error", True),
        (None, "The model is overloaded", True),
        ("501", "Kie gave no reason", False),
        ("500", "The content was flagged as NSFW", False),
        ("SENSITIVE_WORD_ERROR", "Sensitive words; try again", False),
        ("400", "Internal Error", False),
        ("402", "Credits insufficient, try again", False),
        ("422", "The image cannot be read", False),
        (None, "Kie gave no reason", False),
    ],
)
def test_only_trouble_of_kies_own_is_worth_a_new_task(code, message, may_succeed):
    assert errors.KieTaskFailedError(message, code=code).may_succeed_anew is may_succeed


def test_what_kie_cuts_in_two_ends_no_triggerer():
    error = errors.KieTaskFailedError("flagged: \ud83e", code=10**30, kie_task_id="\ud800")
    assert "flagged: ?" in str(error)
    encoder = msgspec.msgpack.Encoder()  # what Airflow's triggerer writes its events with
    assert encoder.encode(error.to_dict())


STORABLE_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


@given(
    error_class=st.sampled_from(every_error_class()),
    message=STORABLE_TEXT,
    code=st.none() | st.integers(-(2**63) + 1, 2**63 - 1) | STORABLE_TEXT,
    http_status=st.none() | st.integers(100, 999),
    kie_task_id=st.none() | STORABLE_TEXT,
    retry_after=st.none() | st.floats(0, allow_nan=False, allow_infinity=False),
)
def test_any_error_is_read_back_as_it_was(error_class, message, **facts):
    error = error_class(message, **facts)
    stored = json.dumps(error.to_dict(), allow_nan=False)
    back = error_from_dict(json.loads(stored))
    assert (type(back), back.args, str(back)) == (error_class, error.args, str(error))
    assert back.is_transient == error.is_transient
    assert {name: getattr(back, name) for name in facts} == facts


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.sampled_from(["KieError", "KieAuthError"]) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=4,
    ),
    st.none() | st.text() | st.integers(),
)
def test_any_dict_is_an_error_of_ours_or_a_value_error(kind, message):
    try:
        error = error_from_dict({"type": kind, "message": message, "code": kind})
    except ValueError:
        return
    assert isinstance(error, KieError)
    assert (type(error).__name__, error.message) == (kind, message)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"type": "KieError"},
        {"type": "KieError", "message": None},
        {"type": "ValueError", "message": "x"},
        {"type": ["KieError"], "message": "x"},
        {"type": None, "message": "x"},
    ],
)
def test_what_is_not_one_of_our_errors_is_not_read_as_one(data):
    with pytest.raises(ValueError, match="not a Kie error"):
        error_from_dict(data)


def test_transport_errors_may_have_arrived_unless_told_otherwise():
    assert errors.KieTransportError("x").may_have_arrived
    assert not errors.KieTransportError("x", may_have_arrived=False).may_have_arrived


def test_a_doubtful_submission_is_never_transient():
    assert not errors.KieSubmitUnknownError("x").is_transient


def test_a_timeout_is_transient_for_the_task_is_not_lost():
    assert errors.KieTaskTimeoutError("x").is_transient
