"""How every scenario is brought about: one function each, keyed by the scenario's name."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.e2e.chaos.arena import PATIENCE, TASK

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.chaos.arena import Trial
    from tests.support.gate import Hold

    Procedure = Callable[[Trial], None]
    Moment = tuple[tuple[str, str, str], dict[str, Any]]

PROCEDURES: dict[str, Procedure] = {}
MAPPED = 10
NEXT_KEY = "the-next-key"

# What a worker asks of Airflow: method, path and body.
INTENT = ("PUT", r"/store/ti/.*/kie\.\d+\.\d+$", "")
ANSWER = ("PUT", r"/store/ti/.*/kie\.\d+\.\d+\.answer$", "")
SUMMARY = ("PUT", r"/store/ti/.*/kie\.\d+\.sum\.\d+$", "")
NOTE_SUCCESS = ("PUT", r"/store/ti/.*/kie\.\d+\.ok$", "")
RESULT = ("POST", "/xcoms/.*/return_value$", "")
RUN = ("PATCH", "/run$", "")
DEFER = ("PATCH", "/state$", '"state": ?"deferred"')
SUCCEED = ("PATCH", "/state$", '"state": ?"success"')


def procedure(function: Procedure) -> Procedure:
    PROCEDURES[function.__name__] = function
    return function


def kill_at(trial: Trial, hold: Hold) -> None:
    """Kill the task when its request has come; the request never arrives."""
    trial.kill(trial.caught(hold))
    hold.drop()


def finish(trial: Trial) -> None:
    """Let Kie finish when the task is deferred, and wait for the end."""
    trial.wait_for("deferred")
    trial.finish_at_kie()
    trial.wait_for_end()


def wait_for_kie_task(trial: Trial) -> str:
    """Wait until Kie has accepted createTask, and return the id."""
    charged: list[str] = trial.arena.wait(trial.charged, f"{trial.name}: nothing was created")
    return charged[0]


@procedure
def killed_before_the_intent(trial: Trial) -> None:
    hold = trial.hold(*INTENT)
    trial.start()
    kill_at(trial, hold)
    finish(trial)


@procedure
def killed_between_intent_and_post(trial: Trial) -> None:
    hold = trial.hold(*INTENT, at="answer")
    trial.start()
    kill_at(trial, hold)
    trial.wait_for_end()


@procedure
def killed_before_the_answer(trial: Trial) -> None:
    trial.kie.fault({"on": "createTask", "do": "hold"})
    trial.start()
    wait_for_kie_task(trial)
    trial.kill(trial.last_try())
    trial.wait_for_end()


@procedure
def killed_before_the_answer_resubmit(trial: Trial) -> None:
    trial.kie.fault({"on": "createTask", "do": "hold"})
    trial.start("chaos_resubmit")
    wait_for_kie_task(trial)
    trial.kill(trial.last_try())
    finish(trial)


@procedure
def killed_before_the_id_is_noted(trial: Trial) -> None:
    hold = trial.hold(*ANSWER)
    trial.start()
    trial.caught(hold)
    # The line goes another way than the note, and a supervisor that dies in the same instant has not written it.
    trial.arena.wait(lambda: "was created" in trial.log(), lambda: f"{trial.name}: {trial.describe()}")
    kill_at(trial, hold)
    trial.wait_for_end()


@procedure
def killed_before_deferral(trial: Trial) -> None:
    hold = trial.hold(*DEFER)
    trial.start()
    kill_at(trial, hold)
    finish(trial)


@procedure
def killed_after_deferral(trial: Trial) -> None:
    hold = trial.hold(*DEFER, at="answer")
    trial.start()
    kill_at(trial, hold)
    finish(trial)


@procedure
def killed_on_resume(trial: Trial) -> None:
    hold = trial.hold(*RUN, skip=1, at="answer")
    trial.start()
    trial.wait_for("deferred")
    trial.finish_at_kie()
    kill_at(trial, hold)
    trial.wait_for_end()


@procedure
def killed_before_delivery(trial: Trial) -> None:
    _killed_at_the_end(trial, trial.hold(*RESULT))


@procedure
def killed_before_success(trial: Trial) -> None:
    _killed_at_the_end(trial, trial.hold(*SUCCEED))


def _killed_at_the_end(trial: Trial, hold: Hold) -> None:
    trial.start()
    trial.wait_for("deferred")
    trial.finish_at_kie()
    kill_at(trial, hold)
    trial.wait_for_end()


@procedure
def killed_while_saving(trial: Trial) -> None:
    trial.kie.fault({"on": "file", "do": "hold"})
    trial.start("chaos_save")
    trial.wait_for("deferred")
    trial.finish_at_kie()
    trial.arena.wait(lambda: any(each["fault"] for each in trial.kie.requests()), f"{trial.name}: no download")
    trial.kill(trial.last_try())
    assert saved_files(trial) == {}
    trial.kie.release()
    trial.wait_for_end()
    assert sorted(path.suffix for path in saved_files(trial)) == [".jpg", ".json", ".png"]


@procedure
def killed_after_saving(trial: Trial) -> None:
    hold = trial.hold(*RESULT)
    trial.start("chaos_save")
    trial.wait_for("deferred")
    trial.finish_at_kie()
    trial.caught(hold)
    saved = saved_files(trial)
    kill_at(trial, hold)
    trial.wait_for_end()
    assert sorted(path.suffix for path in saved) == [".jpg", ".json", ".png"]
    assert saved_files(trial) == saved


def saved_files(trial: Trial) -> dict[Path, int]:
    """What the run has saved, and when it was written."""
    folder = trial.arena.airflow.home / "saved" / trial.name
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@procedure
def killed_waiting_on_the_worker(trial: Trial) -> None:
    _killed_while_waiting(trial, supervisor=True)


@procedure
def only_the_task_process_dies(trial: Trial) -> None:
    _killed_while_waiting(trial, supervisor=False)


def _killed_while_waiting(trial: Trial, *, supervisor: bool) -> None:
    trial.start("chaos_on_worker")
    trial.wait_until_asked(1)
    trial.kill(trial.last_try(), supervisor=supervisor)
    trial.wait_for("running", try_number=2)
    trial.finish_at_kie()
    trial.wait_for_end()


@procedure
def two_tasks(trial: Trial) -> None:
    create = trial.hold(*SUCCEED, task_id=TASK)
    resume = trial.hold(*RUN, task_id="wait", skip=1, at="answer")
    trial.start("chaos_two_tasks")
    kill_at(trial, create)
    trial.wait_for("deferred", task_id="wait")
    trial.finish_at_kie()
    kill_at(trial, resume)
    trial.wait_for_end()


@procedure
def mapped(trial: Trial) -> None:
    draw = random.Random(trial.name)
    before_waiting: list[Moment] = [(INTENT, {}), (ANSWER, {"at": "answer"}), (DEFER, {})]
    after_waiting: list[Moment] = [(RUN, {"skip": 1, "at": "answer"}), (RESULT, {}), (SUCCEED, {})]
    early = [draw.random() < 0.5 for _ in range(MAPPED)]
    chosen = [draw.choice(before_waiting if is_early else after_waiting) for is_early in early]
    holds = [trial.hold(*what, map_index=index, **how) for index, (what, how) in enumerate(chosen)]
    trial.start("chaos_mapped")
    kill_as_they_come(trial, [hold for hold, is_early in zip(holds, early, strict=True) if is_early])
    trial.wait_for("deferred")
    trial.finish_at_kie()
    kill_as_they_come(trial, [hold for hold, is_early in zip(holds, early, strict=True) if not is_early])
    trial.wait_for_end()


def kill_as_they_come(trial: Trial, holds: list[Hold]) -> None:
    def none_left() -> bool:
        for hold in [each for each in holds if each.caught]:
            kill_at(trial, hold)
            holds.remove(hold)
        return not holds

    trial.arena.wait(none_left, lambda: f"{trial.name}: nothing came for {[each.rule for each in holds]}")


@procedure
def inputs_change(trial: Trial) -> None:
    hold = trial.hold(*DEFER)
    trial.start("chaos_changing")
    kill_at(trial, hold)
    finish(trial)


@procedure
def batch_killed_while_ordering(trial: Trial) -> None:
    change_connection(trial, submit_limit=4)  # the fifth waits for its slot until the first four are written down
    hold = trial.hold(*INTENT, skip=4)
    trial.start("chaos_batch")
    kill_at(trial, hold)
    finish(trial)


def change_connection(trial: Trial, **extra: Any) -> None:
    """Give the run's connection other extra fields besides."""
    connection = trial.connection(trial.kie.api_key)
    connection["extra"] = json.dumps({**json.loads(connection["extra"]), **extra})
    trial.arena.api("PATCH", f"/connections/{trial.name}", connection)


@procedure
def batch_killed_with_four_in_flight(trial: Trial) -> None:
    trial.kie.fault({"on": "createTask", "do": "hold", "times": 4})
    trial.start("chaos_batch")
    trial.arena.wait(lambda: len(trial.charged()) == 4, f"{trial.name}: not four in flight")
    trial.kill(trial.last_try())
    finish(trial)


@procedure
def batch_cleared_with_four_in_flight(trial: Trial) -> None:
    trial.kie.fault({"on": "createTask", "do": "hold", "times": 4})
    trial.start("chaos_batch")
    trial.arena.wait(lambda: len(trial.charged()) == 4, f"{trial.name}: not four in flight")
    trial.clear()
    trial.kie.release()
    finish(trial)


@procedure
def batch_killed_while_saving(trial: Trial) -> None:
    trial.kie.fault({"on": "file", "do": "hold", "skip": 3})
    trial.start("chaos_batch")
    trial.wait_for("deferred")
    trial.finish_at_kie()
    trial.arena.wait(lambda: any(each["fault"] for each in trial.kie.requests()), f"{trial.name}: no download")
    trial.kill(trial.last_try())
    trial.kie.release()
    trial.wait_for_end()
    assert sorted(path.suffix for path in saved_files(trial)) == [".jpg"] * 8 + [".json"] * 9 + [".png"] * 8


@procedure
def batch_killed_after_delivery(trial: Trial) -> None:
    hold = trial.hold(*RESULT)
    trial.start("chaos_batch")
    trial.wait_for("deferred")
    trial.finish_at_kie()
    trial.caught(hold)
    saved = saved_files(trial)
    kill_at(trial, hold)
    trial.wait_for_end()
    images = {path for path in saved if path.suffix == ".png"}
    assert len(images) == 8
    assert {path: at for path, at in saved_files(trial).items() if path in images} == {
        path: saved[path] for path in images
    }


@procedure
def answer_lost(trial: Trial) -> None:
    trial.kie.fault({"on": "createTask", "do": "lost_answer"})
    trial.start()
    trial.wait_for_end()


@procedure
def refused(trial: Trial) -> None:
    trial.kie.fault({"on": "createTask", "do": "code", "code": 429, "times": 2, "retry_after": 1})
    trial.start()
    finish(trial)


@procedure
def killed_while_refused(trial: Trial) -> None:
    trial.kie.fault({"on": "createTask", "do": "code", "code": 429, "retry_after": 8})
    trial.start()
    trial.arena.wait(lambda: "kie.1.1.answer" in trial.store(), lambda: f"{trial.name}: {trial.describe()}")
    trial.kill(trial.last_try())
    finish(trial)


@procedure
def called_back_after_the_answer_was_lost(trial: Trial) -> None:
    trial.kie.fault({"on": "createTask", "do": "lost_answer"})
    start_with_callbacks(trial)
    trial.wait_for("up_for_reschedule")
    trial.finish_at_kie()
    trial.wait_for_end()


@procedure
def called_back_after_the_worker_was_killed(trial: Trial) -> None:
    trial.kie.fault({"on": "createTask", "do": "hold"})
    start_with_callbacks(trial)
    wait_for_kie_task(trial)
    trial.kill(trial.last_try())
    trial.finish_at_kie()
    trial.wait_for_end()


@procedure
def called_back_while_deferred(trial: Trial) -> None:
    start_with_callbacks(trial, "chaos_rarely_polled")
    trial.wait_until_asked(2)  # by the worker, and ten seconds later by the trigger
    trial.finish_at_kie()
    trial.wait_for_end()
    asked = [each for each in trial.kie.requests() if each["path"].endswith("recordInfo")]
    assert len(asked) == 3, asked


@procedure
def called_back_after_the_patience(trial: Trial) -> None:
    trial.kie.fault({"on": "createTask", "do": "lost_answer"})
    start_with_callbacks(trial)
    trial.wait_for_end()
    trial.finish_at_kie()
    wait_until_called(trial, 1)
    trial.clear()
    trial.wait_for_end()


@procedure
def batch_called_back(trial: Trial) -> None:
    trial.kie.fault({"on": "createTask", "do": "lost_answer", "times": 4})
    start_with_callbacks(trial, "chaos_batch")
    trial.wait_for("deferred")
    trial.finish_at_kie()  # the lost answers have left two to order
    trial.arena.wait(lambda: len(trial.charged()) == 8, lambda: f"{trial.name}: {trial.describe()}")
    finish(trial)


@procedure
def batch_called_back_after_the_worker_was_killed(trial: Trial) -> None:
    trial.kie.fault({"on": "createTask", "do": "hold", "times": 4})
    start_with_callbacks(trial, "chaos_batch")
    trial.arena.wait(lambda: len(trial.charged()) == 4, f"{trial.name}: not four in flight")
    trial.kill(trial.last_try())
    finish(trial)


def start_with_callbacks(trial: Trial, dag_id: str = "chaos_generate") -> None:
    """Start the run, and have Kie call back, through the gate: a callback writes as well."""
    change_connection(trial, callback_base_url=trial.arena.gate.url)
    trial.start(dag_id)


def wait_until_called(trial: Trial, times: int) -> None:
    """Wait until Airflow has taken so many callbacks."""

    def called() -> bool:
        return [each["http_status"] for each in trial.kie.callbacks()] == [200] * times

    trial.arena.wait(called, lambda: f"{trial.name}: {trial.kie.callbacks()}")


@procedure
def late_write(trial: Trial) -> None:
    _written_late(trial, "chaos_generate", trial.hold(*ANSWER, once=True))


@procedure
def batch_late_write(trial: Trial) -> None:
    _written_late(trial, "chaos_batch", trial.hold(*SUMMARY, skip=1, once=True))


def _written_late(trial: Trial, dag_id: str, hold: Hold) -> None:
    """Airflow's client gives a request up after five seconds and sends it again; the first one arrives at the end."""
    trial.start(dag_id)
    trial.caught(hold)
    trial.wait_for("deferred")
    hold.release()
    trial.finish_at_kie()
    trial.wait_for_end()


@procedure
def late_write_after_clear(trial: Trial) -> None:
    hold = trial.hold(*INTENT, once=True)
    trial.start()
    trial.caught(hold)
    trial.wait_for("deferred")
    trial.clear()
    trial.wait_for("deferred", try_number=2)
    hold.release()
    finish(trial)


@procedure
def api_server_away(trial: Trial) -> None:
    _away(trial, "chaos_generate", 30)
    finish(trial)


@procedure
def api_server_away_long(trial: Trial) -> None:
    _away(trial, "chaos_slow_retries", 90)
    trial.wait_for_end()
    (kie_task_id,) = trial.charged()
    trial.settle("kie.1.1.settled", kie_task_id)
    trial.clear()
    finish(trial)


def _away(trial: Trial, dag_id: str, seconds: float) -> None:
    """Kie answers createTask when the worker does not reach Airflow any more."""
    trial.kie.fault({"on": "createTask", "do": "hold"})
    trial.start(dag_id)
    wait_for_kie_task(trial)
    trial.proves_that_it_lives()
    with trial.cut_off():
        trial.kie.release()
        trial.arena.stopping.wait(seconds)


@procedure
def cleared_while_creating(trial: Trial) -> None:
    trial.kie.fault({"on": "createTask", "do": "hold"})
    trial.start()
    wait_for_kie_task(trial)
    trial.clear()
    trial.kie.release()
    trial.wait_for_end()


@procedure
def cleared_while_deferred(trial: Trial) -> None:
    trial.start()
    trial.wait_until_asked(2)  # the trigger runs
    trial.clear()
    wait_for_last_words(trial)
    finish(trial)


@procedure
def cleared_after_success(trial: Trial) -> None:
    trial.start()
    finish(trial)
    wait_for_noted_success(trial)
    trial.clear()
    finish(trial)


@procedure
def batch_cleared_after_success(trial: Trial) -> None:
    trial.start("chaos_batch")
    finish(trial)
    wait_for_noted_success(trial)
    trial.clear()
    finish(trial)


def wait_for_noted_success(trial: Trial) -> None:
    """The worker notes a success a moment after Airflow shows it."""
    trial.arena.wait(lambda: "kie.1.ok" in trial.store(), lambda: f"{trial.name}: {trial.describe()}")


@procedure
def cleared_after_success_was_not_noted(trial: Trial) -> None:
    hold = trial.hold(*NOTE_SUCCESS)
    trial.start()
    trial.wait_for("deferred")
    trial.finish_at_kie()
    kill_at(trial, hold)
    trial.wait_for_end()
    trial.clear()
    trial.wait_for_end()


@procedure
def cleared_after_post_execute_failed(trial: Trial) -> None:
    trial.start("chaos_post_execute")
    trial.wait_for("deferred")
    trial.finish_at_kie()
    trial.wait_for_end()
    trial.clear()
    trial.wait_for_end()


@procedure
def cleared_after_the_result_was_lost(trial: Trial) -> None:
    hold = trial.hold(*RESULT)
    trial.start("chaos_no_retries")
    trial.wait_for("deferred")
    trial.finish_at_kie()
    trial.caught(hold)
    trial.wait_for_end()  # Airflow's client has sent it five times
    hold.drop()
    trial.clear()
    trial.wait_for_end()


@procedure
def cleared_with_other_inputs(trial: Trial) -> None:
    trial.start("chaos_changing")
    trial.wait_for("deferred")
    trial.clear()
    finish(trial)


@procedure
def settled_with_the_id(trial: Trial) -> None:
    killed_before_the_answer(trial)
    (kie_task_id,) = trial.charged()
    trial.settle("kie.1.1.settled", kie_task_id)
    trial.clear()
    finish(trial)


@procedure
def settled_as_not_created(trial: Trial) -> None:
    killed_between_intent_and_post(trial)
    trial.settle("kie.1.1.settled", "nothing")
    trial.clear()
    finish(trial)


@procedure
def marked_failed_while_deferred(trial: Trial) -> None:
    trial.start()
    trial.wait_until_asked(2)
    trial.arena.api("PATCH", f"{trial.path}/taskInstances/{TASK}", {"new_state": "failed"})
    wait_for_last_words(trial)
    trial.wait_for_end()


@procedure
def mapped_marked_failed(trial: Trial) -> None:
    trial.start("chaos_mapped")
    trial.wait_for("deferred")
    trial.wait_until_asked(2 * MAPPED)
    for index in range(MAPPED):
        trial.arena.api("PATCH", f"{trial.path}/taskInstances/{TASK}/{index}", {"new_state": "failed"})
    for index in range(MAPPED):
        wait_for_last_words(trial, index)
    trial.wait_for_end()


def wait_for_last_words(trial: Trial, map_index: int = -1) -> None:
    """Airflow calls a trigger's on_kill a moment after the task was taken away from it."""
    trial.arena.wait(
        lambda: "keeps running and is billed" in trial.log(map_index=map_index),
        lambda: f"{trial.name}: {trial.describe()}",
    )


@procedure
def key_rotated(trial: Trial) -> None:
    trial.start()
    trial.wait_until_asked(2)
    renew_connection(trial)
    change_key(trial)
    finish(trial)


@procedure
def key_revoked(trial: Trial) -> None:
    trial.start()
    trial.wait_until_asked(2)
    change_key(trial)
    trial.wait_for_end()
    renew_connection(trial)
    trial.clear()
    finish(trial)


def change_key(trial: Trial) -> None:
    """Kie knows another key from now on."""
    account = trial.kie._server.world.account
    account.settings = dataclasses.replace(account.settings, api_key=NEXT_KEY)


def renew_connection(trial: Trial) -> None:
    trial.arena.api("PATCH", f"/connections/{trial.name}", trial.connection(NEXT_KEY))


@procedure
def triggerer_killed(trial: Trial) -> None:
    trial.start()
    trial.wait_until_asked(2)
    with trial.alone():
        with trial.arena.without("triggerer"):
            trial.finish_at_kie()
        trial.wait_for_end()


@procedure
def trigger_cannot_be_loaded(trial: Trial) -> None:
    trial.start()
    trial.wait_for("deferred")
    with trial.alone():
        with trial.arena.without("triggerer"):
            change = (
                "UPDATE trigger SET classpath = ? WHERE id = (SELECT trigger_id FROM task_instance WHERE run_id = ?)"
            )
            trial.arena.change(change, "kie_provider.triggers.kie.TriggerOfAnotherRelease", trial.name)
        trial.arena.wait(
            lambda: "kie_trigger_restarts" in trial.xcom_keys(),
            lambda: f"{trial.name}: no new trigger: {trial.describe()}",
        )
        finish(trial)


@procedure
def triggerer_replaced(trial: Trial) -> None:
    trial.start()
    trial.wait_until_asked(2)
    airflow = trial.arena.airflow
    with trial.alone():
        airflow.start_process("triggerer", "second-triggerer")
        airflow.wait_healthy(PATIENCE)
        with trial.arena.without("triggerer"):
            trial.finish_at_kie()
            trial.wait_for_end()
        airflow.stop_process("second-triggerer")


@procedure
def scheduler_killed_while_running(trial: Trial) -> None:
    with trial.alone():
        trial.start("chaos_on_worker")
        trial.wait_until_asked(1)
        with trial.arena.without("scheduler"):
            pass
        trial.wait_for("running", try_number=2)
        trial.finish_at_kie()
        trial.wait_for_end()


@procedure
def scheduler_killed_while_deferred(trial: Trial) -> None:
    trial.start()
    trial.wait_for("deferred")
    with trial.alone():
        with trial.arena.without("scheduler"):
            trial.finish_at_kie()
        trial.wait_for_end()


@procedure
def api_server_killed(trial: Trial) -> None:
    trial.kie.fault({"on": "createTask", "do": "hold"})
    with trial.alone():
        trial.start()
        wait_for_kie_task(trial)
        trial.proves_that_it_lives()
        with trial.arena.without("api-server"):
            trial.kie.release()
        finish(trial)
