"""Tries, clears and crashes of an operator that pays: what the next try does, and what Kie charges."""

from __future__ import annotations

from datetime import timedelta

import pendulum
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from kie_provider.client.errors import KieSubmitUnknownError, KieTaskTimeoutError
from kie_provider.hooks.kie import KieHook
from kie_provider.ledger import KEY
from kie_provider.operators.flux2 import Flux2CreateTaskOperator, Flux2GenerateImageOperator
from kie_provider.operators.kie import KieCreateTaskOperator
from tests.support.airflow_inprocess import new_dag, run_dag, run_task

try:
    from airflow.models.task_state_store import TaskStateStoreModel
except ImportError:
    TaskStateStoreModel = None

durable = pytest.mark.skipif(TaskStateStoreModel is None, reason="Airflow keeps nothing between tries before 3.3")

PROMPT = "a red fox"
INPUT = {"prompt": PROMPT, "aspect_ratio": "1:1", "resolution": "1K"}
MODEL = "flux-2/pro-text-to-image"
REQUEST = {"model": MODEL, "input": INPUT}
LOST = {"on": "createTask", "do": "lost_answer"}
STUCK = {"on": "createTask", "do": "stuck"}
#: The first look finds nothing yet.
LATE = {"on": "recordInfo", "do": "not_visible"}
INTERNAL = {"on": "createTask", "do": "fail", "failCode": "500", "failMsg": "Internal Error, Please try again later."}
REFUSED = {"on": "createTask", "do": "fail", "failCode": "500", "failMsg": "The content was flagged as NSFW"}


def flux2(**kwargs):
    return Flux2CreateTaskOperator(**{"prompt": PROMPT} | kwargs)


def generic(**kwargs):
    return KieCreateTaskOperator(model=MODEL, input=INPUT, **kwargs)


def generate(**kwargs):
    return Flux2GenerateImageOperator(**{"prompt": PROMPT, "poll_interval": 0.1} | kwargs)


def generate_deferred(**kwargs):
    return generate(deferrable=True, **kwargs)


OPERATORS = pytest.mark.parametrize("operator", [flux2, generic, generate, generate_deferred])
GENERATE = pytest.mark.parametrize("operator", [generate, generate_deferred])


def kie_task_id(result):
    return result["kie_task_id"] if isinstance(result, dict) else result


def at_first_try(do):
    """Return a callable for pre_execute or post_execute that calls ``do(context)`` in the first try only."""

    def hook(context, result=None):
        if context["ti"].try_number == 1:
            do(context)

    return hook


def crash(context):
    raise RuntimeError("the worker died")


def left_behind(value):
    """Return a pre_execute that leaves ``value`` in the ledger, as an earlier try or a person would have."""

    def leave(context):
        if context["task_state_store"].get(KEY) is None:  # not again when the task is resumed
            context["task_state_store"].set(KEY, value)

    return at_first_try(leave)


def entry(phase="submitted", kie_task_id=None, *, max_tries=1, age=0, request=REQUEST, **fields):
    at = pendulum.now("UTC").subtract(seconds=age).to_iso8601_string()
    return {"v": 1, "phase": phase, "request": request, "kie_task_id": kie_task_id, "at": at} | {
        "ref": "d r it -1",
        "try_number": 1,
        "max_tries": max_tries,
        "conn_id": "kie_default",
        "host": "https://example.com",
        "superseded": [],
        **fields,
    }


@pytest.fixture
def ledger():
    """Return a function that reads the newest entry of any task instance; None if there is none."""
    from airflow.utils.session import create_session

    with create_session() as session:
        session.query(TaskStateStoreModel).delete()

    def read():
        import json

        with create_session() as session:
            rows = session.query(TaskStateStoreModel).filter_by(key=KEY).all()
            assert len(rows) <= 1
            return json.loads(rows[0].value) if rows else None

    return read


@pytest.fixture
def log(capsys, caplog):
    """Return a function that reads what was logged."""
    return lambda: capsys.readouterr().out + caplog.text


@pytest.fixture
def at_kie(kie_emulator):
    """Return a function that lists the ids of all tasks at Kie."""
    return lambda: [task["taskId"] for task in kie_emulator.bill()["tasks"]]


@pytest.fixture
def earlier(kie_emulator):
    """Return a function that creates a Kie task, as an earlier try has."""

    def create(*faults):
        for fault in faults:
            kie_emulator.fault(fault)
        with KieHook() as hook:
            kie_task_id = hook.create_task(MODEL, INPUT)
            if not {"stuck"} & {fault["do"] for fault in faults}:
                while hook.get_task(kie_task_id).state == "running":
                    pass
        return kie_task_id

    return create


@durable
class TestRetry:
    @OPERATORS
    def test_after_the_result_was_delivered_returns_it_again(self, operator, at_kie, ledger):
        outcome = run_task(lambda **kw: operator(post_execute=at_first_try(crash), **kw))

        assert (outcome.state, outcome.tries) == ("success", 2)
        assert at_kie() == [kie_task_id(outcome.result)]
        assert (ledger()["phase"], ledger()["kie_task_id"]) == ("delivered", kie_task_id(outcome.result))

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
    def test_goes_on_with_a_running_task(self, operator, earlier, at_kie):
        running = earlier()

        outcome = run_task(lambda **kw: operator(pre_execute=left_behind(entry(kie_task_id=running)), **kw))

        assert (outcome.state, kie_task_id(outcome.result)) == ("success", running)
        assert at_kie() == [running]

    @OPERATORS
    def test_with_other_inputs_goes_on_and_says_which(self, operator, earlier, at_kie, log):
        running = earlier()
        recorded = entry(kie_task_id=running, request={"model": MODEL, "input": {**INPUT, "prompt": "an owl"}})

        outcome = run_task(lambda **kw: operator(pre_execute=left_behind(recorded), **kw))

        assert kie_task_id(outcome.result) == running
        assert at_kie() == [running]
        assert "Different now: prompt." in log()

    def test_with_inputs_that_are_not_valid_any_more_goes_on(self, earlier, at_kie, log):
        running = earlier()

        outcome = run_task(lambda **kw: flux2(pre_execute=left_behind(entry(kie_task_id=running)), prompt="", **kw))

        assert outcome.result == running
        assert at_kie() == [running]
        assert "The inputs are not valid any more" in log()

    @OPERATORS
    def test_of_a_failed_task_that_cost_nothing_creates_another(self, operator, earlier, at_kie, ledger):
        failed = earlier(INTERNAL)

        outcome = run_task(lambda **kw: operator(pre_execute=left_behind(entry(kie_task_id=failed)), **kw))

        assert outcome.state == "success"
        assert at_kie() == [failed, kie_task_id(outcome.result)]
        assert ledger()["superseded"] == [failed]

    @OPERATORS
    def test_of_a_failed_task_that_was_charged_is_final(self, operator, kie_emulator, at_kie):
        record = {"taskId": "f" * 32, "state": "fail", "failMsg": "Internal Error", "creditsConsumed": 5}
        answer = {"code": 200, "msg": "success", "data": record}
        kie_emulator.fault({"on": "recordInfo", "do": "answer", "json": answer, "times": None})

        outcome = run_task(lambda **kw: operator(pre_execute=left_behind(entry(kie_task_id="f" * 32)), **kw))

        assert (outcome.state, outcome.retried) == ("failed", False)
        assert "Internal Error), but 5 credits were charged" in str(outcome.error)
        assert at_kie() == []

    @OPERATORS
    def test_of_a_task_unknown_to_kie_is_final(self, operator, at_kie, ledger):
        recorded = entry(kie_task_id="f" * 32, age=91)

        outcome = run_task(lambda **kw: operator(pre_execute=left_behind(recorded), **kw))

        assert (outcome.state, outcome.retried) == ("failed", False)
        for text in ("Three causes", f"Kie task {'f' * 32}", recorded["at"], "'kie_default' at https://example.com"):
            assert text in str(outcome.error)
        assert at_kie() == []
        assert ledger() == recorded

    def test_of_a_task_that_kie_does_not_show_yet_goes_on(self, at_kie):
        recorded = entry(kie_task_id="f" * 32, age=5)

        outcome = run_task(lambda **kw: flux2(pre_execute=left_behind(recorded), **kw))

        assert (outcome.result, at_kie()) == ("f" * 32, [])

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

    def test_after_a_refusal_finds_nothing(self, kie_emulator, at_kie, ledger):
        kie_emulator.fault({"on": "createTask", "do": "code", "code": 402})

        outcome = run_task(flux2)

        assert (outcome.state, outcome.retried, at_kie(), ledger()) == ("failed", False, [], None)

    def test_a_refusal_leaves_what_was_there_before(self, kie_emulator, earlier, ledger):
        failed = earlier(INTERNAL)
        kie_emulator.fault({"on": "createTask", "do": "code", "code": 402})
        recorded = entry(kie_task_id=failed)

        run_task(lambda **kw: flux2(pre_execute=left_behind(recorded), **kw))

        assert ledger() == recorded


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

    def test_not_before_kie_allows_it(self, kie_emulator, log):
        kie_emulator.fault({"on": "createTask", "do": "code", "code": 429, "retry_after": 2})

        run_task(flux2, retries=0)

        assert "coming back in 2 seconds, without using up a try" in log()


@durable
class TestClear:
    """A clear raises max_tries; the entries here were written when it was another."""

    @OPERATORS
    def test_of_a_finished_task_creates_another(self, operator, earlier, at_kie, ledger):
        old = earlier()
        recorded = entry("delivered", old, max_tries=0, superseded=["older"])

        outcome = run_task(lambda **kw: operator(pre_execute=left_behind(recorded), **kw))

        new = kie_task_id(outcome.result)
        assert at_kie() == [old, new]
        assert (ledger()["kie_task_id"], ledger()["superseded"]) == (new, ["older", old])

    @OPERATORS
    def test_of_an_unfinished_task_goes_on(self, operator, earlier, at_kie):
        running = earlier()

        outcome = run_task(
            lambda **kw: operator(pre_execute=left_behind(entry(kie_task_id=running, max_tries=0)), **kw)
        )

        assert (kie_task_id(outcome.result), at_kie()) == (running, [running])

    @OPERATORS
    def test_with_other_inputs_creates_another(self, operator, earlier, at_kie, ledger):
        old = earlier()
        recorded = entry(kie_task_id=old, max_tries=0, request={"model": MODEL, "input": {**INPUT, "prompt": "an owl"}})

        outcome = run_task(lambda **kw: operator(pre_execute=left_behind(recorded), **kw))

        assert at_kie() == [old, kie_task_id(outcome.result)]
        assert ledger()["superseded"] == [old]

    def test_with_inputs_that_are_not_valid_keeps_the_old_id(self, earlier, at_kie, ledger):
        running = earlier()
        recorded = entry(kie_task_id=running, max_tries=0)

        outcome = run_task(lambda **kw: flux2(pre_execute=left_behind(recorded), prompt="", **kw))

        assert "prompt: '' has 0 characters; 3 to 5000 are allowed" in str(outcome.error)
        assert (at_kie(), ledger()) == ([running], recorded)

    def test_of_a_task_without_a_result_creates_another(self, earlier, at_kie):
        useless = earlier({"on": "createTask", "do": "no_urls"})

        outcome = run_task(
            lambda **kw: generate(pre_execute=left_behind(entry(kie_task_id=useless, max_tries=0)), **kw)
        )

        assert at_kie() == [useless, kie_task_id(outcome.result)]


class TestUnknownSubmission:
    @OPERATORS
    def test_is_final_and_says_how_to_settle_it(self, operator, kie_emulator, at_kie):
        kie_emulator.fault(LOST)

        outcome = run_task(operator)

        assert (outcome.state, outcome.retried) == ("failed", False)
        assert "It is not known whether Kie.ai created a task" in str(outcome.error)
        assert ("'kie_submission'" in str(outcome.error)) == (TaskStateStoreModel is not None)
        assert len(at_kie()) == 1

    @durable
    @OPERATORS
    def test_of_an_earlier_try_is_final(self, operator, at_kie, ledger):
        recorded = entry("intent")

        outcome = run_task(lambda **kw: operator(pre_execute=left_behind(recorded), **kw))

        assert (outcome.state, outcome.retried) == ("failed", False)
        assert f"an earlier try sent createTask at {recorded['at']}" in str(outcome.error)
        assert "If there is one, put its id" in str(outcome.error)
        assert (at_kie(), ledger()) == ([], recorded)

    @durable
    def test_can_be_sent_again_by_choice(self, at_kie, log):
        outcome = run_task(
            lambda **kw: flux2(pre_execute=left_behind(entry("intent")), on_unknown_submit="resubmit", **kw)
        )

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
    @pytest.mark.parametrize(
        "settle", [lambda kie_task_id: kie_task_id, lambda kie_task_id: entry("intent", kie_task_id)]
    )
    @OPERATORS
    def test_is_settled_by_the_id(self, operator, settle, earlier, at_kie, ledger):
        found = earlier()

        outcome = run_task(lambda **kw: operator(pre_execute=left_behind(settle(found)), **kw))

        assert (kie_task_id(outcome.result), at_kie()) == (found, [found])
        assert ledger()["phase"] == "delivered"

    @durable
    def test_nonsense_in_the_ledger_is_not_taken_for_nothing(self, at_kie):
        outcome = run_task(lambda **kw: flux2(pre_execute=left_behind(["kie"]), **kw))

        assert "'kie_submission' of the state store holds ['kie']" in str(outcome.error)
        assert (outcome.retried, at_kie()) == (False, [])

    def test_the_choice_is_checked_before_anything_is_sent(self, kie_emulator):
        outcome = run_task(lambda **kw: flux2(on_unknown_submit="retry", **kw))

        assert "on_unknown_submit: must be 'fail' or 'resubmit', got 'retry'" in str(outcome.error)
        assert (outcome.retried, kie_emulator.requests()) == (False, [])


class Store:
    """Airflow's store, which fails at a phase."""

    def __init__(self, store, phase, error):
        self._store, self._phase, self._error = store, phase, error

    def get(self, key):
        return self._store.get(key)

    def set(self, key, value, **kwargs):
        if value["phase"] == self._phase:
            raise self._error
        self._store.set(key, value, **kwargs)

    def delete(self, key):
        if self._phase == "withdrawn":
            raise self._error
        self._store.delete(key)


def store_error(status):
    from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
    from airflow.sdk.execution_time.comms import ErrorResponse

    return AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"status_code": status}))


def failing_at(phase, status):
    def pre_execute(context):
        context["task_state_store"] = Store(context["task_state_store"], phase, store_error(status))

    return at_first_try(pre_execute)


@durable
class TestStoreFails:
    @pytest.mark.parametrize("status", [404, 500])
    def test_at_the_intent_nothing_is_sent(self, status, kie_emulator, at_kie):
        outcome = run_task(lambda **kw: flux2(pre_execute=failing_at("intent", status), **kw))

        # the second try had a store
        assert (outcome.tries, at_kie()) == (2, [outcome.result])
        assert sum(r["path"].endswith("createTask") for r in kie_emulator.requests()) == 1

    def test_after_a_refusal_the_refusal_is_what_one_reads(self, kie_emulator, log):
        kie_emulator.fault({"on": "createTask", "do": "code", "code": 402})

        outcome = run_task(lambda **kw: flux2(pre_execute=failing_at("withdrawn", 500), **kw))

        assert (outcome.state, outcome.retried) == ("failed", False)
        assert "Not enough Kie.ai credits" in str(outcome.error)
        assert "Kie created nothing, but Airflow could not note that" in log()

    def test_after_the_answer_because_the_try_was_replaced_it_stops_with_the_id(self, at_kie, log):
        outcome = run_task(lambda **kw: flux2(pre_execute=failing_at("submitted", 404), **kw))

        [created] = at_kie()
        assert (outcome.state, outcome.retried) == ("failed", False)
        assert isinstance(outcome.error, AirflowFailException)
        assert f"while it created Kie task {created}, which goes on" in str(outcome.error)
        assert f"Kie task {created} was created" in log()

    def test_after_the_answer_it_goes_on_with_the_id(self, at_kie, ledger, log):
        outcome = run_task(lambda **kw: flux2(pre_execute=failing_at("submitted", 500), **kw))

        assert (outcome.state, outcome.tries, [outcome.result]) == ("success", 1, at_kie())
        assert f"Kie task {outcome.result} was created, but Airflow could not note it" in log()
        assert (ledger()["phase"], ledger()["kie_task_id"]) == ("delivered", outcome.result)

    @GENERATE
    def test_after_the_answer_there_is_no_retry_that_would_not_know_the_id(self, operator, kie_emulator, at_kie):
        kie_emulator.fault(STUCK)

        outcome = run_task(lambda **kw: operator(pre_execute=failing_at("submitted", 500), timeout=0.2, **kw))

        assert (outcome.state, outcome.retried) == ("failed", False)
        assert f"No retry, it would not know the Kie task: Kie cannot cancel tasks: Kie task {at_kie()[0]}" in str(
            outcome.error
        )

    def test_at_the_end_the_result_is_not_lost(self, at_kie, log):
        outcome = run_task(lambda **kw: flux2(pre_execute=failing_at("delivered", 500), **kw))

        assert (outcome.state, outcome.tries, [outcome.result]) == ("success", 1, at_kie())
        assert "Could not note that Kie task" in log()


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
        for text in ("Gave up waiting", "No retry, it would not know the Kie task", f"Kie task {created} goes on"):
            assert text in str(outcome.error)

    def test_the_execution_timeout_is_final_once_there_is_a_task(self, kie_emulator, at_kie):
        kie_emulator.fault({"on": "createTask", "do": "slow", "delay_seconds": 1.5})

        outcome = run_task(lambda **kw: flux2(pre_execute=without_store, execution_timeout=timedelta(seconds=1), **kw))

        assert (outcome.state, outcome.retried) == ("failed", False)
        assert at_kie()[0] in str(outcome.error)

    @GENERATE
    def test_trouble_at_kie_costs_nothing_and_is_retried(self, operator, kie_emulator, at_kie):
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

        assert log().count("There is no task state store") == 1
