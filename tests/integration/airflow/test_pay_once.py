"""Tries, clears and crashes of an operator that pays: what the next try does, and what Kie charges."""

from __future__ import annotations

import dataclasses
import json
import time
from datetime import timedelta

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from kie_provider.client.errors import KieJournalError, KieRateLimitError, KieSubmitUnknownError, KieTaskTimeoutError
from kie_provider.operators.flux2 import Flux2CreateTaskOperator, Flux2GenerateImageOperator
from kie_provider.operators.kie import KieCreateTaskOperator
from kie_provider.submission.facts import created_fact, intent_fact, refused_fact, success_fact, success_key
from kie_provider.submission.record import Intent, SubmissionRecord, fingerprint_of_request, iso
from tests.support.airflow_inprocess import new_dag, run_dag, run_task
from tests.support.kie import (
    INPUT,
    INTERNAL,
    LATE,
    LOST,
    MODEL,
    NO_URLS,
    PROMPT,
    REFUSED,
    STUCK,
    requests_to,
)
from tests.support.messages import assert_tells
from tests.support.tries import at_first_try, cleared, crash
from tests.support.versions import HAS_STATE_STORE, durable

try:
    from airflow.models.task_state_store import TaskStateStoreModel
except ImportError:
    TaskStateStoreModel = None

REQUEST = {"model": MODEL, "input": INPUT}


def flux2(**kwargs):
    return Flux2CreateTaskOperator(**{"prompt": PROMPT} | kwargs)


def generic(**kwargs):
    return KieCreateTaskOperator(model=MODEL, input=INPUT, **kwargs)


def generate(**kwargs):
    return Flux2GenerateImageOperator(**{"prompt": PROMPT, "poll_interval": 0.1} | kwargs)


def generate_deferred(**kwargs):
    return generate(deferrable=True, **kwargs)


OPERATORS = pytest.mark.parametrize("operator", [flux2, generic, generate, generate_deferred])
NO_IMAGE = {"on": "file", "do": "swap", "content_type": "image/png", "body": "<html>expired</html>"}
GENERATE = pytest.mark.parametrize("operator", [generate, generate_deferred])


def kie_task_id(result):
    return result["kie_task_id"] if isinstance(result, dict) else result


def submission(kie_task_id=None, *, number=1, max_tries=2, age=0, request=REQUEST, settled=None, refused=None):
    """Return the facts of a submission of the first try, in the state that its worker has left it in."""
    fingerprint = fingerprint_of_request(request)
    record = SubmissionRecord(1, number, fingerprint, max_tries=max_tries, at=time.time() - age)
    facts = {record.key: intent_fact(Intent(record, request, "kie_default", "https://example.com", 0))}
    if kie_task_id:
        answered_at = iso(record.at)
        facts[record.answer_key] = created_fact(record, kie_task_id) | {"at": answered_at}
    if refused:
        facts[record.answer_key] = refused_fact(record, refused)
    if settled is not None:
        facts[record.settled_key] = settled
    return facts


def success():
    return {success_key(1): success_fact(1)}


def run_after(facts, make_task, *, retries=1):
    """Run a task whose first try has left these facts and has died; tries and errors are counted from the next."""

    def leave_and_die(context):
        for key, value in facts.items():
            context["task_state_store"].set(key, value)
        raise RuntimeError("the worker died")

    outcome = run_task(lambda **kw: make_task(pre_execute=at_first_try(leave_and_die), **kw), retries=retries + 1)
    return dataclasses.replace(outcome, tries=outcome.tries - 1, errors=outcome.errors[1:], retries=outcome.retries - 1)


@pytest.fixture
def journal():
    """Return a function that reads all facts of the task instance."""
    from airflow.utils.session import create_session

    with create_session() as session:
        session.query(TaskStateStoreModel).delete()

    def read():
        with create_session() as session:
            return {row.key: json.loads(row.value) for row in session.query(TaskStateStoreModel).all()}

    return read


@pytest.fixture
def at_kie(kie_emulator):
    """Return a function that lists the ids of all tasks at Kie."""
    return lambda: [task["taskId"] for task in kie_emulator.bill()["tasks"]]


@durable
class TestRetry:
    @OPERATORS
    def test_after_a_failure_behind_the_delivery_returns_the_same(self, operator, at_kie, journal):
        outcome = run_task(lambda **kw: operator(post_execute=at_first_try(crash), **kw))

        assert (outcome.state, outcome.tries) == ("success", 2)
        assert at_kie() == [kie_task_id(outcome.result)]
        assert sorted(journal()) == ["kie.1.1", "kie.1.1.answer", "kie.2.ok", "kie.2.sum.1"]

    def test_of_mapped_tasks_creates_nothing_new(self, at_kie):
        with new_dag() as dag:
            Flux2GenerateImageOperator.partial(
                task_id="it", retries=1, retry_delay=timedelta(0), poll_interval=0.1, post_execute=at_first_try(crash)
            ).expand(prompt=["one fox", "two foxes", "three foxes"])
        outcomes = run_dag(dag)

        results = [outcomes["it", index].result for index in range(3)]
        assert [result["input"]["prompt"] for result in results] == ["one fox", "two foxes", "three foxes"]
        assert sorted(at_kie()) == sorted(result["kie_task_id"] for result in results)

    @OPERATORS
    def test_goes_on_with_a_running_task(self, operator, create_ended, at_kie):
        running = create_ended()

        outcome = run_after(submission(running), operator)

        assert (outcome.state, kie_task_id(outcome.result)) == ("success", running)
        assert at_kie() == [running]

    @OPERATORS
    def test_with_other_inputs_goes_on_and_says_which(self, operator, create_ended, at_kie, log):
        running = create_ended()
        recorded = submission(running, request={"model": MODEL, "input": {**INPUT, "prompt": "an owl"}})

        outcome = run_after(recorded, operator)

        assert kie_task_id(outcome.result) == running
        assert at_kie() == [running]
        assert f"The inputs have changed since Kie task {running} was created (prompt)" in log()

    def test_with_inputs_that_are_not_valid_any_more_goes_on(self, create_ended, at_kie, log):
        running = create_ended()

        outcome = run_after(submission(running), lambda **kw: flux2(prompt="", **kw))

        assert outcome.result == running
        assert at_kie() == [running]
        assert "The inputs are no longer valid" in log()

    @OPERATORS
    def test_of_a_failed_task_that_cost_nothing_creates_another(self, operator, create_ended, at_kie, journal):
        failed = create_ended(INTERNAL)

        outcome = run_after(submission(failed), operator)

        assert outcome.state == "success"
        assert at_kie() == [failed, kie_task_id(outcome.result)]
        assert journal()["kie.1.1.answer"]["kie_task_id"] == failed

    @OPERATORS
    def test_of_a_failed_task_that_was_charged_is_final(self, operator, kie_emulator, at_kie):
        record = {"taskId": "f" * 32, "state": "fail", "failMsg": "Internal Error", "creditsConsumed": 5}
        answer = {"code": 200, "msg": "success", "data": record}
        kie_emulator.fault({"on": "recordInfo", "do": "answer", "json": answer, "times": None})

        outcome = run_after(submission("f" * 32), operator)

        assert (outcome.state, outcome.retried) == ("failed", False)
        assert_tells(outcome.error, "Internal Error", "5 credits")
        assert at_kie() == []

    @OPERATORS
    def test_of_a_task_unknown_to_kie_is_final(self, operator, at_kie, journal):
        recorded = submission("f" * 32, age=91)

        outcome = run_after(recorded, operator)

        assert (outcome.state, outcome.retried) == ("failed", False)
        created_at = recorded["kie.1.1.answer"]["at"]
        for text in ("Three causes", f"Kie task {'f' * 32}", created_at, "'kie_default' at https://example.com"):
            assert text in str(outcome.error)
        assert at_kie() == []
        assert journal() == recorded

    def test_of_a_task_that_kie_does_not_show_yet_goes_on(self, at_kie):
        outcome = run_after(submission("f" * 32, age=5), flux2)

        assert (outcome.result, at_kie()) == ("f" * 32, [])

    @OPERATORS
    def test_after_a_refusal_submits_again(self, operator, at_kie, journal):
        recorded = submission(refused=KieRateLimitError("too many", code=429))

        outcome = run_after(recorded, operator)

        assert at_kie() == [kie_task_id(outcome.result)]
        assert journal()["kie.2.1.answer"]["kie_task_id"] == at_kie()[0]

    @GENERATE
    def test_after_a_timeout_waits_on_with_a_fresh_budget(self, operator, kie_emulator, at_kie):
        kie_emulator.fault(LATE | {"times": 4})

        outcome = run_task(lambda **kw: operator(timeout=0.3, poll_interval=0.2, **kw), retries=3)

        assert isinstance(outcome.error, KieTaskTimeoutError)
        assert (outcome.state, outcome.retried) == ("success", True)
        assert at_kie() == [outcome.result["kie_task_id"]]

    @GENERATE
    def test_after_trouble_at_kie_creates_another(self, operator, kie_emulator, at_kie):
        kie_emulator.fault(INTERNAL)

        outcome = run_task(operator)

        assert (outcome.state, outcome.tries) == ("success", 2)
        assert len(at_kie()) == 2
        assert kie_emulator.bill()["charged_total"] == 5

    @GENERATE
    def test_is_not_tried_after_a_refusal_of_the_input(self, operator, kie_emulator, at_kie):
        kie_emulator.fault(REFUSED)

        outcome = run_task(operator)

        assert (outcome.state, outcome.retried) == ("failed", False)
        assert "flagged as NSFW" in str(outcome.error)
        assert len(at_kie()) == 1

    def test_after_the_execution_timeout_finds_the_id(self, kie_emulator, at_kie):
        kie_emulator.fault({"on": "createTask", "do": "slow", "delay_seconds": 1.5})

        outcome = run_task(lambda **kw: flux2(execution_timeout=timedelta(seconds=1), **kw))

        assert type(outcome.error).__name__ == "AirflowTaskTimeout"
        assert (outcome.state, outcome.tries) == ("success", 2)
        assert at_kie() == [outcome.result]

    def test_a_refusal_is_written_down(self, kie_emulator, at_kie, journal):
        kie_emulator.fault({"on": "createTask", "do": "code", "code": 402})

        outcome = run_task(flux2)

        assert (outcome.state, outcome.retried, at_kie()) == ("failed", False, [])
        assert sorted(journal()) == ["kie.1.1", "kie.1.1.answer"]
        assert journal()["kie.1.1.answer"]["refused"]["code"] == 402

    def test_a_refusal_leaves_what_was_there_before(self, kie_emulator, create_ended, journal):
        failed = create_ended(INTERNAL)
        kie_emulator.fault({"on": "createTask", "do": "code", "code": 402})
        recorded = submission(failed)

        run_after(recorded, flux2)

        assert recorded.items() < journal().items()


@durable
class TestRateLimit:
    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch):
        monkeypatch.setattr("kie_provider.client.retry.SUBMIT_PATIENCE", 0.0)
        monkeypatch.setattr("kie_provider.waiting.RATE_LIMIT_SECONDS", 0.5)

    @OPERATORS
    def test_comes_back_later_without_using_up_a_try(self, operator, kie_emulator, at_kie):
        kie_emulator.fault({"on": "createTask", "do": "code", "code": 429, "times": 3})

        outcome = run_task(operator, retries=0)

        assert (outcome.state, outcome.tries) == ("success", 1)
        assert at_kie() == [kie_task_id(outcome.result)]

    def test_no_intent_stands_while_it_waits(self, kie_emulator, journal):
        kie_emulator.fault({"on": "createTask", "do": "code", "code": 429, "times": 3})

        run_task(flux2, retries=0)

        facts = journal()
        assert [facts[f"kie.1.{n}.answer"].get("refused", {}).get("code") for n in range(1, 5)] == [429, 429, 429, None]
        assert facts["kie.1.4.answer"]["kie_task_id"]

    def test_not_before_kie_allows_it(self, kie_emulator, log):
        kie_emulator.fault({"on": "createTask", "do": "code", "code": 429, "retry_after": 2})

        run_task(flux2, retries=0)

        assert_tells(log(), "2 seconds", "without using up a try")


@durable
class TestClear:
    """A clear raises max_tries; the facts here were written when it was another."""

    @OPERATORS
    def test_of_a_finished_task_creates_another(self, operator, create_ended, at_kie, journal):
        old = create_ended()
        recorded = submission(old, max_tries=0) | success()

        outcome = run_after(recorded, operator)

        assert at_kie() == [old, kie_task_id(outcome.result)]
        assert recorded.items() < journal().items()

    @OPERATORS
    def test_of_a_task_that_failed_behind_its_delivery_goes_on(self, operator, at_kie):
        """Its post_execute fails in every try before the clear."""
        outcome = run_task(lambda **kw: operator(post_execute=at_first_try(crash), pre_execute=cleared, **kw))

        assert (outcome.state, at_kie()) == ("success", [kie_task_id(outcome.result)])

    @OPERATORS
    def test_of_an_unfinished_task_goes_on(self, operator, create_ended, at_kie, journal):
        running = create_ended()

        outcome = run_after(submission(running, max_tries=0), operator)

        assert (kie_task_id(outcome.result), at_kie()) == (running, [running])
        # from now on, other inputs count as those of a retry
        assert journal()["kie.2.sum.1"]["submissions"][0]["max_tries"] == 2

    @OPERATORS
    def test_with_other_inputs_creates_another(self, operator, create_ended, at_kie, journal):
        old = create_ended()
        recorded = submission(old, max_tries=0, request={"model": MODEL, "input": {**INPUT, "prompt": "an owl"}})

        outcome = run_after(recorded, operator)

        assert at_kie() == [old, kie_task_id(outcome.result)]
        assert recorded.items() < journal().items()

    def test_with_the_first_inputs_after_kie_has_refused_others(self, kie_emulator, create_ended, at_kie, monkeypatch):
        """A refused order does not make forget what was paid before it."""
        monkeypatch.setattr("kie_provider.client.retry.SUBMIT_PATIENCE", 0.0)
        old = create_ended()
        kie_emulator.fault({"on": "createTask", "do": "code", "code": 455})

        def cleared_with_an_owl_then_with_the_fox(*, pre_execute, **kw):
            def leave_and_clear(context):
                pre_execute(context)
                cleared(context)

            prompt = "{{ 'an owl' if ti.try_number == 2 else 'a red fox' }}"
            return flux2(prompt=prompt, pre_execute=leave_and_clear, **kw)

        outcome = run_after(submission(old, max_tries=0), cleared_with_an_owl_then_with_the_fox, retries=2)

        assert "maintenance" in str(outcome.error)
        assert (outcome.result, outcome.tries, at_kie()) == (old, 2, [old])

    def test_with_inputs_that_are_not_valid_keeps_the_old_id(self, create_ended, at_kie, journal):
        running = create_ended()
        recorded = submission(running, max_tries=0)

        outcome = run_after(recorded, lambda **kw: flux2(prompt="", **kw))

        assert_tells(outcome.error, "prompt: ''", "3 to 5000")
        assert (at_kie(), journal()) == ([running], recorded)

    def test_with_another_callback_url_goes_on(self, create_ended, at_kie):
        running = create_ended()
        recorded = submission(running, max_tries=0, request={**REQUEST, "callBackUrl": "https://example.com/1"})

        outcome = run_after(recorded, lambda **kw: flux2(callback_url="https://example.com/2", **kw))

        assert (outcome.result, at_kie()) == (running, [running])

    def test_of_a_task_without_a_result_creates_another(self, create_ended, at_kie):
        useless = create_ended(NO_URLS)

        outcome = run_after(submission(useless, max_tries=0), generate)

        assert at_kie() == [useless, kie_task_id(outcome.result)]


@durable
class TestSuccess:
    """A fact of its own, written when Airflow has accepted it."""

    @OPERATORS
    def test_is_written_behind_the_callbacks_of_the_author(self, operator, journal):
        called = []
        outcome = run_task(
            lambda **kw: operator(on_success_callback=lambda context: called.append(list(journal())), **kw)
        )

        assert outcome.state == "success"
        assert [len(keys) for keys in called] == [2]
        assert list(journal()["kie.1.ok"]) == ["key", "v", "at"]

    @OPERATORS
    def test_is_not_written_for_a_failure(self, operator, journal):
        outcome = run_task(lambda **kw: operator(post_execute=crash, **kw), retries=1)

        assert outcome.state == "failed"
        assert not [key for key in journal() if key.endswith(".ok")]

    def test_is_not_written_if_airflow_has_not_accepted_it(self, journal, log, monkeypatch):
        """Somebody has marked the task as failed in the same moment."""
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

        states = {"a run": {"it": "failed"}}
        monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", staticmethod(lambda **kwargs: states))
        run_task(flux2)

        assert "kie.1.ok" not in journal()
        assert "The success could not be recorded" in log()


class TestUnknownSubmission:
    @OPERATORS
    def test_is_final_and_says_how_to_settle_it(self, operator, kie_emulator, at_kie):
        kie_emulator.fault(LOST)

        outcome = run_task(operator)

        assert (outcome.state, outcome.retried) == ("failed", False)
        assert_tells(outcome.error, KieSubmitUnknownError)
        assert ("'kie.1.1.settled'" in str(outcome.error)) == HAS_STATE_STORE
        assert len(at_kie()) == 1

    @durable
    @OPERATORS
    def test_of_an_earlier_try_is_final(self, operator, at_kie, journal):
        recorded = submission()

        outcome = run_after(recorded, operator)

        assert (outcome.state, outcome.retried) == ("failed", False)
        assert_tells(
            outcome.error, "try 1", recorded["kie.1.1"]["at"], "the log of that try", "JSON string", "'kie.1.1.settled'"
        )
        assert (at_kie(), journal()) == ([], recorded)

    @durable
    def test_can_be_sent_again_by_choice(self, at_kie, log):
        outcome = run_after(submission(), lambda **kw: flux2(on_unknown_submit="resubmit", **kw))

        assert at_kie() == [outcome.result]
        assert "may pay twice" in log()

    @OPERATORS
    def test_is_sent_again_by_the_retry_by_choice(self, operator, kie_emulator, at_kie):
        kie_emulator.fault(LOST)

        outcome = run_task(lambda **kw: operator(on_unknown_submit="resubmit", **kw))

        assert isinstance(outcome.error, KieSubmitUnknownError)
        assert (outcome.state, outcome.tries) == ("success", 2)
        assert len(at_kie()) == 2

    @durable
    @OPERATORS
    def test_is_settled_by_the_id(self, operator, create_ended, at_kie, journal):
        found = create_ended()

        outcome = run_after(submission(settled=f" {found} "), operator)

        assert (kie_task_id(outcome.result), at_kie()) == (found, [found])
        assert journal()["kie.2.sum.1"]["submissions"][0]["kie_task_id"] == found

    @durable
    @OPERATORS
    @pytest.mark.parametrize("nothing", ["nothing", "Nothing "])
    def test_is_settled_by_nothing(self, operator, nothing, at_kie):
        outcome = run_after(submission(settled=nothing), operator)

        assert at_kie() == [kie_task_id(outcome.result)]

    @durable
    def test_an_answer_that_came_late_counts_before_what_a_person_says(self, create_ended, at_kie):
        found = create_ended()

        outcome = run_after(submission(found, settled="nothing"), flux2)

        assert (outcome.result, at_kie()) == (found, [found])

    @durable
    @pytest.mark.parametrize(
        "settled", [7, True, [], {}, {"kie_task_id": "x"}, "", "two words", "é", "x" * 201], ids=repr
    )
    def test_is_not_settled_by_nonsense(self, settled, at_kie):
        outcome = run_after(submission(settled=settled), flux2)

        assert (outcome.state, outcome.retried, at_kie()) == ("failed", False, [])
        assert_tells(outcome.error, "the key 'kie.1.1.settled'", "state store")

    @durable
    @pytest.mark.parametrize("value", ["kie", 7, True, [], {}, {"key": "kie.1.1"}, {"key": "kie.1.2"}], ids=repr)
    @OPERATORS
    def test_nonsense_in_the_journal_is_not_taken_for_nothing(self, operator, value, at_kie):
        outcome = run_after({"kie.1.1": value}, operator)

        assert (outcome.state, outcome.retried, at_kie()) == ("failed", False, [])
        assert_tells(outcome.error, KieJournalError, "the key 'kie.1.1'")


@durable
def test_facts_never_expire(at_kie, journal):
    from airflow.utils.session import create_session

    run_task(flux2)

    with create_session() as session:
        assert {row.expires_at for row in session.query(TaskStateStoreModel).all()} == {None}


class Store:
    """Airflow's store, which fails at a key, a few times or always."""

    def __init__(self, store, key, error, times):
        self._store, self._key, self._error, self._times = store, key, error, times

    def get(self, key):
        return self._store.get(key)

    def set(self, key, value, **kwargs):
        if key == self._key and self._times:
            self._times -= 1
            raise self._error
        self._store.set(key, value, **kwargs)


def store_error(status):
    from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
    from airflow.sdk.execution_time.comms import ErrorResponse

    return AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"status_code": status}))


def failing_at(key, status, times=99):
    def pre_execute(context):
        context["task_state_store"] = Store(context["task_state_store"], key, store_error(status), times)

    return at_first_try(pre_execute)


AWAY = pytest.mark.parametrize("status", [None, 401, 403, 500, 503])
LOST_ID = {"execution_timeout": timedelta(seconds=1)}


@durable
class TestStoreFails:
    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch):
        monkeypatch.setattr("kie_provider.submission.store.FIRST_PAUSE", 0.05)
        monkeypatch.setattr("kie_provider.submission.store.LONGEST_PAUSE", 0.2)

    @pytest.mark.parametrize("status", [404, 500])
    def test_at_the_intent_nothing_is_sent(self, status, kie_emulator, at_kie):
        outcome = run_task(lambda **kw: flux2(pre_execute=failing_at("kie.1.1", status), **kw))

        # the second try had a store
        assert (outcome.tries, at_kie()) == (2, [outcome.result])
        assert len(requests_to(kie_emulator)) == 1

    def test_at_the_intent_for_a_while_needs_nobody(self, at_kie):
        outcome = run_task(lambda **kw: flux2(pre_execute=failing_at("kie.1.1", 500, times=2), **kw), retries=0)

        assert (outcome.tries, at_kie()) == (1, [outcome.result])

    @AWAY
    @OPERATORS
    def test_after_the_answer_it_is_written_until_it_is_there(self, operator, status, at_kie, journal, log):
        make = lambda **kw: operator(pre_execute=failing_at("kie.1.1.answer", status, times=4), **kw)  # noqa: E731
        outcome = run_task(make, retries=0)

        assert (outcome.state, [kie_task_id(outcome.result)]) == ("success", at_kie())
        assert journal()["kie.1.1.answer"]["kie_task_id"] == at_kie()[0]
        assert log().count(f"Airflow could not store Kie task {at_kie()[0]}") == 4

    def test_a_refusal_is_written_before_the_next_attempt(self, kie_emulator, at_kie, journal):
        kie_emulator.fault({"on": "createTask", "do": "code", "code": 429})

        run_task(lambda **kw: flux2(pre_execute=failing_at("kie.1.1.answer", 500, times=2), **kw), retries=0)

        assert (journal()["kie.1.1.answer"]["refused"]["code"], len(at_kie())) == (429, 1)

    def test_until_the_execution_timeout_has_rung(self, at_kie, journal, log):
        outcome = run_task(lambda **kw: flux2(pre_execute=failing_at("kie.1.1.answer", 500), **LOST_ID, **kw))

        [created] = at_kie()
        assert (outcome.state, outcome.retried) == ("failed", False)
        assert_tells(outcome.error, "No retry", f"Kie task {created}", "'kie.1.1.settled'")
        assert sorted(journal()) == ["kie.1.1"]
        assert f"'kie_task_id': '{created}'" in log()

    def test_once_more_before_the_failure(self, at_kie, journal, monkeypatch):
        """What fails until the alarm has rung can be written behind it."""

        def pre_execute(context):
            store = Store(context["task_state_store"], "kie.1.1.answer", store_error(500), 10**6)
            context["task_state_store"] = store
            from kie_provider.submission.journal import Journal

            write_again = Journal.write_again

            def back(journal):
                store._times = 0
                return write_again(journal)

            monkeypatch.setattr(Journal, "write_again", back)

        outcome = run_task(lambda **kw: flux2(pre_execute=at_first_try(pre_execute), **LOST_ID, **kw))

        assert type(outcome.error).__name__ == "AirflowTaskTimeout"
        assert (outcome.state, outcome.tries, at_kie()) == ("success", 2, [outcome.result])

    def test_after_the_answer_because_the_try_was_replaced_it_stops_with_the_id(self, at_kie, log):
        outcome = run_task(lambda **kw: flux2(pre_execute=failing_at("kie.1.1.answer", 404), **kw))

        [created] = at_kie()
        assert (outcome.state, outcome.retried) == ("failed", False)
        assert isinstance(outcome.error, AirflowFailException)
        assert_tells(outcome.error, f"Kie task {created}")
        assert_tells(log(), f"Kie task {created}")

    def test_at_the_end_the_result_is_not_lost(self, at_kie, log):
        outcome = run_task(lambda **kw: flux2(pre_execute=failing_at("kie.1.ok", 500), **kw))

        assert (outcome.state, outcome.tries, [outcome.result]) == ("success", 1, at_kie())
        assert "The success could not be recorded" in log()

    @pytest.mark.parametrize("status", [401, 500])
    def test_that_cannot_be_read_pays_for_nothing(self, status, at_kie):
        def pre_execute(context):
            def get(key):
                raise store_error(status)

            context["task_state_store"].get = get

        outcome = run_task(lambda **kw: flux2(pre_execute=pre_execute, **kw))

        assert (outcome.state, at_kie()) == ("failed", [])

    def test_whose_intent_is_not_there_when_it_is_read_back(self, at_kie):
        """As if the try had been cleared while the write stood still in the database."""

        def pre_execute(context):
            context["task_state_store"].get = lambda key: None

        outcome = run_task(lambda **kw: flux2(pre_execute=at_first_try(pre_execute), **kw))

        assert "'kie.1.1'" in str(outcome.error)
        assert "Nothing was sent" in str(outcome.error)
        assert (outcome.state, outcome.tries, at_kie()) == ("success", 2, [outcome.result])

    @OPERATORS
    def test_that_answers_one_question_late(self, operator, at_kie):
        """As the channel does after an alarm within a call to Airflow: every answer is that to the question before."""

        def pre_execute(context):
            store = context["task_state_store"]
            get, answers = store.get, [None]

            def late(key):
                answers.append(get(key))
                return answers.pop(0)

            store.get = late

        outcome = run_task(lambda **kw: operator(pre_execute=at_first_try(pre_execute), **kw))

        assert "out of step" in str(outcome.error)
        assert (outcome.state, outcome.tries, at_kie()) == ("success", 2, [kie_task_id(outcome.result)])


def without_store(context):
    """Make any Airflow one without a store."""
    context.pop("task_state_store", None)


class TestBeforeAirflow33:
    @GENERATE
    def test_a_timeout_is_final_because_a_retry_would_pay_again(self, operator, kie_emulator, at_kie):
        kie_emulator.fault(STUCK)

        outcome = run_task(lambda **kw: operator(pre_execute=without_store, timeout=0.2, **kw))

        assert (outcome.state, outcome.retried) == ("failed", False)
        [created] = at_kie()
        kept = f"Kie task {created} keeps running"
        for text in ("Gave up waiting", "No retry: it would not know the Kie task", kept):
            assert text in str(outcome.error)

    @GENERATE
    def test_a_task_that_has_failed_is_not_said_to_run(self, operator, kie_emulator):
        kie_emulator.fault(REFUSED)

        outcome = run_task(lambda **kw: operator(pre_execute=without_store, **kw))

        assert (outcome.state, outcome.retried) == ("failed", False)
        assert_tells(outcome.error, "flagged as NSFW", "Change the prompt")
        assert "billed" not in str(outcome.error)

    @GENERATE
    @pytest.mark.parametrize("fault", [NO_URLS, NO_IMAGE])
    def test_a_task_that_has_succeeded_is_not_said_to_run(self, operator, kie_emulator, at_kie, tmp_path, fault):
        kie_emulator.fault(fault)

        outcome = run_task(lambda **kw: operator(pre_execute=without_store, target=str(tmp_path), **kw))

        assert (outcome.state, outcome.retried) == ("failed", False)
        assert_tells(outcome.error, "No retry", f"Kie task {at_kie()[0]} has succeeded and is billed")

    def test_the_execution_timeout_is_final_once_there_is_a_task(self, kie_emulator, at_kie):
        kie_emulator.fault({"on": "createTask", "do": "slow", "delay_seconds": 1.5})

        outcome = run_task(lambda **kw: flux2(pre_execute=without_store, execution_timeout=timedelta(seconds=1), **kw))

        assert (outcome.state, outcome.retried) == ("failed", False)
        assert at_kie()[0] in str(outcome.error)

    @GENERATE
    def test_trouble_at_kie_costs_nothing_and_is_retried(self, operator, kie_emulator, at_kie):
        if not HAS_STATE_STORE and operator is generate_deferred:
            pytest.skip("dag.test() of Airflow 3.1 resumes the next try where the last one was deferred")
        kie_emulator.fault(INTERNAL)

        outcome = run_task(lambda **kw: operator(pre_execute=without_store, **kw))

        assert (outcome.state, outcome.tries, len(at_kie())) == ("success", 2, 2)

    def test_the_rate_limit_is_retried(self, kie_emulator, at_kie, monkeypatch):
        monkeypatch.setattr("kie_provider.client.retry.SUBMIT_PATIENCE", 0.0)
        kie_emulator.fault({"on": "createTask", "do": "code", "code": 429})

        outcome = run_task(lambda **kw: flux2(pre_execute=without_store, **kw))

        assert (outcome.state, outcome.tries, at_kie()) == ("success", 2, [outcome.result])

    def test_the_log_says_what_that_means(self, log):
        run_task(lambda **kw: flux2(pre_execute=without_store, **kw))

        assert log().count("This Airflow has no task state store") == 1
