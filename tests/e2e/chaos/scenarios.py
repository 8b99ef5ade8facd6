"""What can happen to a task instance that pays for an image, and what is promised then.

This list is data: the tests prove every line of it, and the documentation shows it. It imports nothing of Airflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

STORE, XCOM, LOG = "state store", "XCom", "log"
EVERYWHERE = (STORE, XCOM, LOG)


@dataclass(frozen=True)
class Scenario:
    """One accident and its promised outcome.

    :param name: key of its procedure.
    :param what: what happens, one sentence.
    :param outcome: what the author of the DAG sees, one sentence.
    :param state: how the task instance ends.
    :param charged: how many tasks Kie charges for, over all task instances of the run.
    :param tries: how many tries Airflow has counted at the end, those after a clear included.
    :param found_in: where in Airflow the id of every charged task is found.
    :param unknown: how many of the charged tasks only Kie's own logs page knows.
    :param says: regular expression for what the task's log must say.
    :param alone: whether a part of Airflow is killed, which other runs would notice.
    :param is_long: whether it takes minutes, so that only `make chaos` brings it about.
    """

    name: str
    what: str
    outcome: str
    state: Literal["success", "failed"] = "success"
    charged: int = 1
    tries: int = 2
    found_in: tuple[str, ...] = EVERYWHERE
    unknown: int = 0
    says: str = ""
    alone: bool = False
    is_long: bool = False


GOES_ON = "Kie cannot cancel tasks: Kie task [0-9a-f]{32} keeps running and is billed"
UNKNOWN = "(?s)try 1 sent createTask .* died before it recorded the answer.*add its id"

SCENARIOS = (
    # one way through a try, from its first to its last request
    Scenario(
        "killed_before_the_intent",
        "The worker is killed before it has recorded its intent to create a Kie task.",
        "The retry creates the task.",
    ),
    Scenario(
        "killed_between_intent_and_post",
        "The worker is killed after it has recorded its intent to create a Kie task, and before it sends createTask.",
        "The retry cannot distinguish this from a created task, so it stops and says how to find out.",
        state="failed",
        charged=0,
        found_in=(),
        says=UNKNOWN,
    ),
    Scenario(
        "killed_before_the_answer",
        "The worker is killed after Kie has accepted createTask, and before the answer arrives.",
        "The retry stops and says how to find out: only Kie's logs page has the id.",
        state="failed",
        found_in=(),
        unknown=1,
        says=UNKNOWN,
    ),
    Scenario(
        "killed_before_the_answer_resubmit",
        'The same with on_unknown_submit="resubmit".',
        "The retry creates a second Kie task, and says that you may pay twice.",
        charged=2,
        unknown=1,
        says="you may pay twice",
    ),
    Scenario(
        "killed_before_the_id_is_noted",
        "The worker is killed after the answer, and before the Kie task id is in the state store.",
        "The retry stops and says how to find out: the id is in the log of the previous try.",
        state="failed",
        found_in=(LOG,),
        says=UNKNOWN,
    ),
    Scenario(
        "killed_before_deferral",
        "The worker is killed when the id is in the state store, and the task is about to defer.",
        "The retry continues with the same Kie task.",
        says="Continuing with Kie task",
    ),
    Scenario(
        "killed_after_deferral",
        "The worker is killed when Airflow has deferred the task, and before the worker has been told.",
        "The wait continues in the triggerer, and the same try succeeds.",
        tries=1,
    ),
    Scenario(
        "killed_on_resume",
        "The worker is killed when the task has resumed from the triggerer with the result.",
        "The retry finds the same Kie task finished.",
    ),
    Scenario(
        "killed_before_delivery",
        "The worker is killed when it has the result, and before the result is in XCom.",
        "The retry finds the same Kie task finished.",
    ),
    Scenario(
        "killed_before_success",
        "The worker is killed when the result is in XCom, and before success is recorded.",
        "The retry returns the result of the same Kie task.",
    ),
    Scenario(
        "killed_while_saving",
        "The worker is killed while it downloads the image.",
        "The retry saves the image of the same Kie task; no partial file is left.",
    ),
    Scenario(
        "killed_after_saving",
        "The worker is killed when the image is saved, and before the result is in XCom.",
        "The retry finds the file, keeps it unchanged, and returns it.",
        says="is there already",
    ),
    # variations of it
    Scenario(
        "killed_waiting_on_the_worker",
        "The worker is killed while it waits (deferrable=False).",
        "The retry continues with the same Kie task.",
    ),
    Scenario(
        "only_the_task_process_dies",
        "Only the task's own process is killed while it waits, as when memory runs out; its supervisor reports that.",
        "The retry continues with the same Kie task.",
    ),
    Scenario(
        "two_tasks",
        "One task creates and a sensor waits. Both are killed: the first before its success is recorded, "
        "the second when it has resumed from the triggerer.",
        "The first returns the same Kie task id, and the sensor waits for it again.",
    ),
    Scenario(
        "mapped",
        "Ten mapped task instances are killed at different moments.",
        "Each of them succeeds with a Kie task of its own.",
        charged=10,
    ),
    Scenario(
        "inputs_change",
        "The worker is killed, and the prompt renders differently in the retry.",
        "The retry continues with the Kie task of the first prompt, and a warning names the field.",
        says="(?s)warning .*inputs have changed .*prompt",
    ),
    Scenario(
        "batch_killed_while_ordering",
        "The worker is killed when it has submitted a part of a batch of eight, while it waits for a slot.",
        "The retry continues with the Kie tasks that were created, and submits the rest.",
        charged=8,
        found_in=(STORE, LOG),
    ),
    Scenario(
        "batch_killed_with_four_in_flight",
        "The worker is killed when Kie has accepted four createTasks of a batch of eight, before their answers arrive.",
        "The retry submits and saves the rest, and stops with four that only Kie's logs page knows.",
        state="failed",
        charged=8,
        found_in=(STORE, LOG),
        unknown=4,
        says="4 of 8 are saved(?s:.*)unknown(?s:.*)Add its id",
    ),
    Scenario(
        "batch_cleared_with_four_in_flight",
        "A batch of eight is cleared when Kie has accepted four createTasks, before their answers arrive.",
        "The old try logs the four ids; the new one submits and saves the rest, and stops with four unknown.",
        state="failed",
        charged=8,
        found_in=(LOG,),
        says="4 of 8 are saved(?s:.*)unknown(?s:.*)Add its id",
    ),
    Scenario(
        "batch_killed_while_saving",
        "The worker is killed while it downloads the eight images of a batch.",
        "The retry saves the images of the same Kie tasks; no partial file is left.",
        charged=8,
        found_in=(STORE, LOG),
    ),
    Scenario(
        "batch_killed_after_delivery",
        "The worker is killed when all images of a batch are saved, and before its result is in XCom.",
        "The retry returns the same result.",
        charged=8,
        found_in=(STORE, LOG),
    ),
    # Kie and the network
    Scenario(
        "answer_lost",
        "Kie accepts createTask, and the connection breaks before the answer arrives.",
        "The task fails at once, without a retry, and says how to find out: only Kie's logs page has the id.",
        state="failed",
        tries=1,
        found_in=(),
        unknown=1,
        says="add its id",
    ),
    Scenario(
        "refused",
        "Kie refuses createTask twice because there are too many requests (429).",
        "The task is rescheduled without using up a try, and creates one Kie task.",
        tries=1,
    ),
    Scenario(
        "killed_while_refused",
        "Kie refuses createTask because there are too many requests (429), and the worker is killed while it waits.",
        "The retry creates the Kie task: the refusal was recorded before the wait.",
    ),
    # Kie calls back (callback_base_url)
    Scenario(
        "called_back_after_the_answer_was_lost",
        "Kie accepts createTask, the connection breaks before the answer, and Kie calls back.",
        "The task comes back after a minute, without using up a try, and takes over the Kie task that is named.",
        tries=1,
        says="(?s)its answer was lost.*Kie has called back for Kie task",
    ),
    Scenario(
        "called_back_after_the_worker_was_killed",
        "The worker is killed after Kie has accepted createTask and before the answer arrives, and Kie calls back.",
        "The retry takes over the Kie task that the callback names.",
        says="Kie has called back for Kie task",
    ),
    Scenario(
        "called_back_while_deferred",
        "Kie calls back for a task that is deferred, and the next poll is ten minutes away.",
        "The callback wakes it, and the same try ends well.",
        tries=1,
        says="Kie has called back for Kie task",
    ),
    Scenario(
        "called_back_after_the_patience",
        "The answer to createTask is lost, and Kie calls back only when the task has stopped; then that is cleared.",
        "The task stops when its patience is over; after the clear it takes over the Kie task that the callback names.",
        says="(?s)add its id.*Kie has called back for Kie task",
    ),
    Scenario(
        "batch_called_back",
        "The answers to four of the eight createTasks of a batch are lost, and Kie calls back.",
        "The batch takes over the Kie tasks that the callbacks name, and saves all eight images in the same try.",
        charged=8,
        tries=1,
        found_in=(STORE, LOG),
        says="Kie has called back for Kie task",
    ),
    Scenario(
        "batch_called_back_after_the_worker_was_killed",
        "The worker is killed when Kie has accepted four createTasks of a batch of eight, before their answers arrive, "
        "and Kie calls back.",
        "The retry submits the rest, takes over the four that the callbacks name, and saves all eight images.",
        charged=8,
        found_in=(STORE, LOG),
        says="Kie has called back for Kie task",
    ),
    # Airflow's API and database
    Scenario(
        "late_write",
        "The write of the Kie task id stalls; Airflow's client repeats it after five seconds, and the first one is "
        "carried out when the task is deferred.",
        "Nothing changes: both write the same value.",
        tries=1,
    ),
    Scenario(
        "batch_late_write",
        "The same with what a batch of eight writes before it defers.",
        "Nothing changes: both write the same value.",
        charged=8,
        tries=1,
        found_in=(STORE, LOG),
    ),
    Scenario(
        "late_write_after_clear",
        "The write of an intent stalls, and arrives after the task was cleared, when the next try is deferred.",
        "The next try continues with the same Kie task.",
    ),
    Scenario(
        "api_server_away",
        "The worker cannot reach the API server for 30 seconds, just when Kie answers createTask.",
        "It records the id when the API server is back, in the same try.",
        tries=1,
    ),
    Scenario(
        "api_server_away_long",
        "The same for 90 seconds, so Airflow ends the try; a person adds the id from its log, and clears the task.",
        "The next try stops and says which log has the id; after the clear, the task continues with that Kie task.",
        tries=3,
        says=UNKNOWN,
        is_long=True,
    ),
    # people
    Scenario(
        "cleared_while_creating",
        "The task is cleared after Kie has accepted createTask and before the answer arrives.",
        "The old try receives the answer and logs the id; the new one stops and says how to find out.",
        state="failed",
        found_in=(LOG,),
        says=UNKNOWN,
    ),
    Scenario(
        "cleared_while_deferred",
        "The task is cleared while it is deferred.",
        "The log says that the Kie task keeps running; the new try continues with it.",
        says=GOES_ON,
    ),
    Scenario(
        "cleared_after_success",
        "The task is cleared after it has succeeded.",
        "This asks for a new image, so there is a new Kie task; the state store keeps the id of the old one.",
        charged=2,
        found_in=(STORE,),
    ),
    Scenario(
        "batch_cleared_after_success",
        "A batch of eight images is cleared after it has succeeded.",
        "This asks for new images, so there are eight new Kie tasks.",
        charged=16,
        found_in=(STORE,),
    ),
    Scenario(
        "cleared_after_success_was_not_noted",
        "The worker is killed when Airflow has accepted its success, before it could record that; the task is cleared.",
        "To be on the safe side, the new try continues with the Kie task that was paid.",
    ),
    Scenario(
        "cleared_after_post_execute_failed",
        "The image is there, and post_execute fails, so the task fails; then it is cleared.",
        "The new try continues with the Kie task that was paid.",
    ),
    Scenario(
        "cleared_after_the_result_was_lost",
        "The image is there, and the API server refuses the XCom, so the task fails; then it is cleared.",
        "The new try continues with the Kie task that was paid.",
    ),
    Scenario(
        "cleared_with_other_inputs",
        "The task is cleared while it is deferred, and the prompt renders differently now.",
        "This asks for another image, so there is a new Kie task; the state store keeps the id of the old one.",
        charged=2,
        found_in=(STORE,),
    ),
    Scenario(
        "settled_with_the_id",
        "A try has stopped because it did not know the id; a person adds the id, and clears the task.",
        "The new try continues with that Kie task.",
        tries=3,
        says="Continuing with Kie task",
    ),
    Scenario(
        "settled_as_not_created",
        "A try has stopped because it could not know that nothing was created; a person adds that, and clears it.",
        "The new try creates the Kie task.",
        tries=3,
    ),
    Scenario(
        "marked_failed_while_deferred",
        "The task is marked as failed while it is deferred.",
        "The log says that the Kie task keeps running and is billed; clearing the task would fetch its result.",
        state="failed",
        tries=1,
        says=GOES_ON,
    ),
    Scenario(
        "key_rotated",
        "The API key is changed at Kie and in the connection while the task is deferred.",
        "The wait continues with the new key, in the same try.",
        tries=1,
    ),
    Scenario(
        "key_revoked",
        "The API key is revoked while the task is deferred; the connection gets a new one, and the task is cleared.",
        "The task fails without a retry; after the clear it continues with the same Kie task.",
        says="(?i)key",
    ),
    Scenario(
        "mapped_marked_failed",
        "Ten mapped task instances are marked as failed at once while they are deferred.",
        "The log of each says that its Kie task keeps running and is billed.",
        state="failed",
        tries=1,
        charged=10,
        says=GOES_ON,
    ),
    # parts of Airflow
    Scenario(
        "triggerer_killed",
        "The triggerer is killed while the task is deferred, Kie finishes, and the triggerer is restarted.",
        "The wait continues in the same try.",
        tries=1,
        alone=True,
    ),
    Scenario(
        "trigger_cannot_be_loaded",
        "The triggerer is replaced by one with another release of the provider, which cannot load the trigger.",
        "The task polls once itself, and keeps waiting with a new trigger, in the same try.",
        tries=1,
        says="(?s)warning .*trigger ended without an event",
        alone=True,
    ),
    Scenario(
        "triggerer_replaced",
        "The triggerer is killed while the task is deferred, and another one takes over.",
        "The wait continues in the same try.",
        tries=1,
        alone=True,
    ),
    Scenario(
        "scheduler_killed_while_running",
        "The scheduler is killed with its workers while the task waits on one, and is restarted.",
        "The next try continues with the same Kie task.",
        alone=True,
    ),
    Scenario(
        "scheduler_killed_while_deferred",
        "The scheduler is killed while the task is deferred, Kie finishes, and the scheduler is restarted.",
        "The same try succeeds.",
        tries=1,
        alone=True,
    ),
    Scenario(
        "api_server_killed",
        "The API server is killed while Kie answers createTask, and is restarted.",
        "The worker keeps the id, and records it as soon as it can.",
        tries=1,
        alone=True,
    ),
)
