"""How every scenario is brought about: one function each, keyed by the scenario's name."""

from __future__ import annotations

import dataclasses
import json
import random
from typing import TYPE_CHECKING, Any

from tests.e2e.chaos.arena import PATIENCE, TASK

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.chaos.arena import Trial
    from tests.support.gate import Hold

    Procedure = Callable[[Trial], None]

PROCEDURES: dict[str, Procedure] = {}
MAPPED = 10

# What a worker asks of Airflow: method, path and body.
INTENT = ("PUT", "/store/ti/", '"phase": ?"intent"')
SUBMITTED = ("PUT", "/store/ti/", '"phase": ?"submitted"')
DELIVERED = ("PUT", "/store/ti/", '"phase": ?"delivered"')
RUN = ("PATCH", "/run$", "")
DEFER = ("PATCH", "/state$", '"state": ?"deferred"')
SUCCEED = ("PATCH", "/state$", '"state": ?"success"')


def procedure(function: Procedure) -> Procedure:
    PROCEDURES[function.__name__] = function
    return function


def kill_at(trial: Trial, hold: Hold) -> None:
    """Kill the task when its request has come; the request never arrives."""
    trial.kill(hold.wait(PATIENCE))
    hold.drop()


def finish(trial: Trial, try_number: int | None = None) -> None:
    """Let Kie finish when the task is deferred, and wait for the end."""
    trial.wait_for("deferred", try_number=try_number)
    trial.finish_at_kie()
    trial.wait_for_end()


def wait_for_kie_task(trial: Trial) -> str:
    """Wait until Kie has accepted createTask, and return the id."""
    charged: list[str] = trial.arena.wait(trial.charged, f"{trial.name}: nothing was created")
    return charged[0]


def kill_running(trial: Trial, *, supervisor: bool = True) -> None:
    """Kill the task in whatever it does now."""
    trial.kill_running(supervisor=supervisor)


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
    kill_running(trial)
    trial.wait_for_end()


@procedure
def killed_before_the_answer_resubmit(trial: Trial) -> None:
    trial.kie.fault({"on": "createTask", "do": "hold"})
    trial.start("chaos_resubmit")
    wait_for_kie_task(trial)
    kill_running(trial)
    finish(trial)


@procedure
def killed_before_the_id_is_noted(trial: Trial) -> None:
    hold = trial.hold(*SUBMITTED)
    trial.start()
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
    _killed_at_the_end(trial, trial.hold(*DELIVERED))


@procedure
def killed_after_delivery(trial: Trial) -> None:
    _killed_at_the_end(trial, trial.hold(*DELIVERED, at="answer"))


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
def killed_waiting_on_the_worker(trial: Trial) -> None:
    _killed_while_waiting(trial, supervisor=True)


@procedure
def only_the_task_process_dies(trial: Trial) -> None:
    _killed_while_waiting(trial, supervisor=False)


def _killed_while_waiting(trial: Trial, *, supervisor: bool) -> None:
    trial.start("chaos_on_worker")
    trial.wait_until_asked(1)
    kill_running(trial, supervisor=supervisor)
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
    trial.tasks = MAPPED
    moments: list[tuple[tuple[str, str, str], dict[str, Any]]] = [
        (INTENT, {}),
        (SUBMITTED, {"at": "answer"}),
        (DEFER, {}),
        (RUN, {"skip": 1, "at": "answer"}),
        (DELIVERED, {}),
        (SUCCEED, {}),
    ]
    chosen = random.Random(trial.name).choices(moments, k=MAPPED)
    holds = [trial.hold(*what, map_index=index, **how) for index, (what, how) in enumerate(chosen)]
    trial.start("chaos_mapped")
    waiting = list(holds)

    def all_done() -> bool:
        for hold in [each for each in waiting if each.caught]:
            kill_at(trial, hold)
            waiting.remove(hold)
        trial.finish_at_kie()
        return not waiting

    trial.arena.wait(all_done, lambda: f"{trial.name}: nothing came for {[each.rule for each in waiting]}")
    trial.wait_for_end(on_poll=trial.finish_at_kie)


@procedure
def inputs_change(trial: Trial) -> None:
    hold = trial.hold(*DEFER)
    trial.start("chaos_changing")
    kill_at(trial, hold)
    finish(trial)


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
def cleared_while_creating(trial: Trial) -> None:
    trial.kie.fault({"on": "createTask", "do": "hold"})
    trial.start()
    wait_for_kie_task(trial)
    trial.clear()
    trial.wait_for_end()


@procedure
def cleared_while_deferred(trial: Trial) -> None:
    trial.start()
    trial.wait_for("deferred")
    trial.clear()
    finish(trial, try_number=2)


@procedure
def cleared_after_success(trial: Trial) -> None:
    trial.start()
    finish(trial)
    trial.clear()
    finish(trial, try_number=2)


@procedure
def marked_failed_while_deferred(trial: Trial) -> None:
    trial.start()
    trial.wait_for("deferred")
    trial.arena.api("PATCH", f"{trial.path}/taskInstances/{TASK}", {"new_state": "failed"})
    trial.wait_for_end()


@procedure
def trigger_cannot_be_loaded(trial: Trial) -> None:
    hold = trial.hold(*DEFER)
    trial.start()
    hold.wait(PATIENCE)
    hold.release(lambda body: body.replace("KieTaskTrigger", "TriggerOfAnotherRelease"))
    trial.arena.wait(
        lambda: "kie_trigger_restarts" in trial.xcom(), lambda: f"{trial.name}: no new trigger\n{trial.log()}"
    )
    finish(trial)


@procedure
def key_rotated(trial: Trial) -> None:
    trial.start()
    trial.wait_until_asked(2)
    change_key(trial)
    renew_connection(trial)
    finish(trial)


@procedure
def key_revoked(trial: Trial) -> None:
    trial.start()
    trial.wait_until_asked(2)
    change_key(trial)
    trial.wait_for("failed")
    renew_connection(trial)
    trial.clear()
    finish(trial)


def change_key(trial: Trial) -> None:
    """Kie knows another key from now on."""
    account = trial.kie._server.world.account
    account.settings = dataclasses.replace(account.settings, api_key="the-next-key")


def renew_connection(trial: Trial) -> None:
    connection = {**trial.kie.connection, "password": "the-next-key"}
    body = {"connection_id": trial.name, **connection, "extra": json.dumps(connection["extra"])}
    trial.arena.api("PATCH", f"/connections/{trial.name}", body)


@procedure
def triggerer_killed(trial: Trial) -> None:
    trial.start()
    trial.wait_until_asked(2)
    with trial.arena.without("triggerer"):
        trial.finish_at_kie()
    trial.wait_for_end()


@procedure
def triggerer_replaced(trial: Trial) -> None:
    trial.start()
    trial.wait_until_asked(2)
    airflow = trial.arena.airflow
    with trial.arena.components:
        airflow.start_process("triggerer", "second-triggerer")
        airflow.wait_healthy(PATIENCE)
        with trial.arena.without("triggerer"):
            trial.finish_at_kie()
            trial.wait_for_end()
        airflow.stop_process("second-triggerer")


@procedure
def scheduler_killed_while_running(trial: Trial) -> None:
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
    with trial.arena.without("scheduler"):
        trial.finish_at_kie()
    trial.wait_for_end()


@procedure
def api_server_killed(trial: Trial) -> None:
    trial.kie.fault({"on": "createTask", "do": "hold"})
    trial.start()
    wait_for_kie_task(trial)
    with trial.arena.without("api-server"):
        trial.kie.release()
    finish(trial)
