"""What the log of a failed task says, in lines that people read."""

from __future__ import annotations

import logging

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException

from kie_provider.client import errors
from kie_provider.failures import WIDTH, FailureContext, failures, log_lines

ID = "e760cba36a6e699b85b31ad4cd521d1d"


def test_a_refusal_by_moderation():
    error = errors.KieTaskFailedError("Your prompt was flagged as NSFW", code="400", kie_task_id=ID)

    assert log_lines(error, FailureContext("kie_default", ID)) == [
        f"Failed: {error.summary}",
        "Kie says: Your prompt was flagged as NSFW (Kie code 400)",
        f"With: connection 'kie_default', Kie task {ID}",
        "Charged: nothing; Kie does not charge failed tasks",
        "What to do: Change the prompt or the input images, then clear the Airflow task that created the Kie",
        "    task: Kie does not charge failed tasks.",
    ]


def test_a_time_out():
    error = errors.KieTaskTimeoutError("still generating after 900 seconds of this wait", kie_task_id=ID)

    lines = log_lines(error, FailureContext("kie_default", ID))

    assert any(line.startswith("Charged: nothing yet") for line in lines)
    assert any(line.startswith("What to do: Clear this task") for line in lines)


@pytest.mark.parametrize("name", [name for name in dir(errors) if name.startswith("Kie")])
def test_what_to_do_comes_first(name):
    """Not what has happened, which the lines before have said."""
    past = ("Nothing ", "Kie does not", "The task goes on", "An account", "It was not")
    assert not getattr(errors, name).advice.startswith(past)


def test_every_field_that_is_wrong_has_a_line():
    error = errors.KieValidationError("nothing was sent.\n  - prompt: is bad\n  - model: is bad, too")

    lines = log_lines(error, FailureContext("kie_default"))

    assert lines[1:5] == [
        "Why: nothing was sent.",
        "      - prompt: is bad",
        "      - model: is bad, too",
        "With: connection 'kie_default'",
    ]
    assert "Charged: nothing; no Kie task was created" in lines


@pytest.mark.parametrize("name", [name for name in dir(errors) if name.startswith("Kie")])
@pytest.mark.parametrize("kie_task_id", [None, ID])
def test_every_error_says_all_there_is_to_know_in_short_lines(name, kie_task_id):
    error = getattr(errors, name)("word " * 200 + "the end", code=422, http_status=200)

    lines = log_lines(error, FailureContext("my_conn", kie_task_id))

    assert max(map(len, lines)) <= WIDTH
    text = " ".join(map(str.strip, lines))
    for part in (error.summary, "the end (Kie code 422, HTTP 200)", "my_conn", kie_task_id or "", "Charged: "):
        assert part in text
    assert "What to do: " in text


def test_what_is_charged_is_said():
    error = errors.KieFileError("it is a web page", kie_task_id=ID)

    for charged, credits_ in ((5.0, "5 credits"), (1, "1 credit")):
        lines = log_lines(error, FailureContext("c", ID, charged=charged))
        assert f"Charged: {credits_}, once; saving or polling it again is free" in lines


def fail(error):
    try:
        raise KeyError("inner")
    except KeyError:
        raise error  # noqa: B904


@pytest.mark.parametrize("error", [errors.KieServerError("no"), errors.KieError("no")])
def test_there_is_no_chained_copy(error, caplog):
    with pytest.raises(Exception, match="no") as caught, failures(logging.getLogger("test"), FailureContext):
        fail(error)

    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert [each.message for each in caplog.records] == log_lines(error, FailureContext())


def test_errors_of_others_keep_their_traces(caplog):
    with pytest.raises(ZeroDivisionError) as caught, failures(logging.getLogger("test"), FailureContext):
        fail(ZeroDivisionError("by nothing"))

    assert isinstance(caught.value.__context__, KeyError)
    assert caplog.records[0].message == "Failed: ZeroDivisionError: by nothing"


def test_a_skip_is_no_failure(caplog):
    with pytest.raises(AirflowSkipException), failures(logging.getLogger("test"), FailureContext):
        raise AirflowSkipException("skipped")

    assert not caplog.records


def test_our_own_final_words_come_sentence_by_sentence():
    error = AirflowFailException("This failed. Nothing was sent; see https://kie.ai/logs. Clear this task.")

    assert log_lines(error, FailureContext())[:3] == [
        "Failed: This failed.",
        "    Nothing was sent; see https://kie.ai/logs.",
        "    Clear this task.",
    ]
