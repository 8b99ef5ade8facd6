"""The provider in a real Airflow: discovery, the connection form, and both example DAGs from prompt to file."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil
import pytest

from kie_provider.get_provider_info import CONN_FIELDS
from tests.support.airflow_stack import LOCAL, AirflowStack, AirflowStackError

if TYPE_CHECKING:
    from kie_provider.emulator import KieEmulator
    from tests.e2e.conftest import EmulatorClock

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
PRICE = 5.0  # credits for one Flux-2 Pro image in 1K


def test_every_component_is_healthy(airflow_stack: AirflowStack) -> None:
    def states() -> dict[str, str]:
        health = airflow_stack.api("GET", "/monitor/health")
        return {name: part["status"] for name, part in health.items() if part}

    expected = dict.fromkeys(("metadatabase", "scheduler", "triggerer", "dag_processor"), "healthy")
    # Now and then a heartbeat is late on a busy machine.
    airflow_stack.wait_until(lambda: states() == expected, 60, lambda: f"not all healthy: {states()}")


def test_airflow_lists_the_provider(airflow_stack: AirflowStack) -> None:
    providers = airflow_stack.api("GET", "/providers?limit=100")["providers"]

    assert "airflow-provider-kie" in [provider["package_name"] for provider in providers]


def test_the_example_dags_are_read_without_errors(airflow_stack: AirflowStack) -> None:
    for path in (ROOT / "dags").glob("*.py"):
        airflow_stack.wait_for_dag(path.stem)

    assert airflow_stack.api("GET", "/importErrors")["import_errors"] == []


def test_the_connection_form_knows_kie(airflow_stack: AirflowStack) -> None:
    forms = {form["connection_type"]: form for form in airflow_stack.ui("/connections/hook_meta")}

    form = forms["kie"]
    assert form["hook_name"] == "Kie.ai"
    if airflow_stack.api("GET", "/version")["version"].startswith("3.1."):
        return  # builds forms with a library that it does not install; all providers get the plain form there
    assert form["standard_fields"]["password"]["title"] == "API key"
    assert set(form["extra_fields"]) == set(CONN_FIELDS)
    assert form["extra_fields"]["webhook_secret"]["schema"]["format"] == "password"


def test_the_test_button_shows_the_balance(airflow_stack: AirflowStack, kie_emulator: KieEmulator) -> None:
    answer = airflow_stack.api("POST", "/connections/test", connection_form(kie_emulator.connection))

    assert answer["status"] is True, answer
    assert "1000 credits" in answer["message"]


def test_the_test_button_explains_a_wrong_key(airflow_stack: AirflowStack, kie_emulator: KieEmulator) -> None:
    form = connection_form({**kie_emulator.connection, "password": "not-the-key"})

    answer = airflow_stack.api("POST", "/connections/test", form)

    assert answer["status"] is False
    assert "key" in answer["message"].lower()
    assert "not-the-key" not in answer["message"]


def test_a_single_image_waits_without_a_worker_and_is_charged_once(
    airflow_stack: AirflowStack, kie_emulator: KieEmulator, kie_clock: EmulatorClock
) -> None:
    dag_id = "flux2_single_image"
    run_id = airflow_stack.trigger_dag(dag_id)
    wait_for_deferred(airflow_stack, dag_id, run_id, 1)

    pool = airflow_stack.api("GET", "/pools/default_pool")
    assert (pool["deferred_slots"], pool["occupied_slots"]) == (1, 0)

    kie_clock.finish_all_tasks()
    assert airflow_stack.wait_for_run(dag_id, run_id) == "success"

    result = airflow_stack.xcom(dag_id, run_id, "wait")
    assert result["kie_task_id"] == airflow_stack.xcom(dag_id, run_id, "create")
    assert result["state"] == "success"
    assert len(result["urls"]) == 1
    bill = kie_emulator.bill()
    assert [task["taskId"] for task in bill["tasks"]] == [result["kie_task_id"]]
    assert bill["charged_total"] == PRICE
    assert kie_emulator.api_key not in airflow_stack.task_log(dag_id, run_id, "wait")


def test_the_daily_content_ends_in_files_and_starts_what_comes_next(
    airflow_stack: AirflowStack, kie_emulator: KieEmulator, kie_clock: EmulatorClock
) -> None:
    from PIL import Image

    dag_id, downstream = "flux2_daily_content", "flux2_asset_downstream"

    def runs(dag_id: str) -> list[dict[str, Any]]:
        return airflow_stack.api("GET", f"/dags/{dag_id}/dagRuns")["dag_runs"]

    for each in (downstream, dag_id):
        airflow_stack.wait_for_dag(each)
        airflow_stack.api("PATCH", f"/dags/{each}", {"is_paused": False})
    airflow_stack.wait_until(lambda: runs(dag_id), 60, "the daily DAG was not scheduled")
    run_id = runs(dag_id)[0]["dag_run_id"]
    wait_for_deferred(airflow_stack, dag_id, run_id, 4)
    kie_clock.finish_all_tasks()

    assert airflow_stack.wait_for_run(dag_id, run_id) == "success"
    assert {task["state"] for task in airflow_stack.task_instances(dag_id, run_id)} == {"success"}

    sheet = airflow_stack.xcom(dag_id, run_id, "contact_sheet")
    manifest = json.loads(Path(sheet["manifest"]).read_text(encoding="utf-8"))
    images = [Path(file["path"]) for result in manifest["results"] for file in result["files"]]
    assert len(images) == 4
    for path in images:
        assert path.is_relative_to(airflow_stack.home / "kie_images")
        with Image.open(path) as image:
            image.load()
            assert image.width > image.height  # 4:3

    bill = kie_emulator.bill()
    assert len(bill["tasks"]) == 4
    assert bill["charged_total"] == 4 * PRICE

    previews = [path.with_name(f"{path.stem}.preview.webp") for path in images]
    airflow_stack.wait_until(lambda: all(path.exists() for path in previews), 90, lambda: f"{runs(downstream)}")
    airflow_stack.wait_for_run(downstream, runs(downstream)[0]["dag_run_id"])
    events = airflow_stack.api("GET", f"/assets/events?source_dag_id={dag_id}")["asset_events"]
    told = [[file["path"] for file in event["extra"]["files"]] for event in events]
    assert told == [[str(path) for path in images]]


def test_taskflow_and_image_to_image_end_in_files(
    airflow_stack: AirflowStack, kie_emulator: KieEmulator, kie_clock: EmulatorClock, tmp_path: Path
) -> None:
    runs = {
        dag_id: airflow_stack.trigger_dag(dag_id, {"output_dir": str(tmp_path / dag_id)})
        for dag_id in ("flux2_taskflow", "flux2_image_to_image")
    }
    for dag_id, run_id in runs.items():
        # Whenever something is asked for, Kie has made it.
        state = airflow_stack.wait_for_run(dag_id, run_id, on_poll=lambda _: kie_clock.finish_all_tasks())
        assert state == "success"

    assert len(list((tmp_path / "flux2_taskflow").rglob("*.png"))) == 3
    assert len(list((tmp_path / "flux2_taskflow").rglob("*.html"))) == 3
    assert len(list((tmp_path / "flux2_image_to_image").rglob("*.png"))) == 4
    assert kie_emulator.bill()["charged_total"] == 7 * PRICE
    assert len([request for request in kie_emulator.requests() if request["path"].endswith("upload")]) == 1


def test_waits_that_lose_their_trigger_go_on_and_end_well(
    airflow_stack: AirflowStack, kie_emulator: KieEmulator, kie_clock: EmulatorClock
) -> None:
    dag_id = "lost_triggers"
    run_id = airflow_stack.trigger_dag(dag_id)

    def states() -> dict[str, str]:
        return {task["task_id"]: task["state"] for task in airflow_stack.task_instances(dag_id, run_id)}

    def restarts() -> dict[str, Any]:
        entries = airflow_stack.api("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/~/xcomEntries")
        return {e["task_id"]: e["key"] for e in entries["xcom_entries"] if e["key"] == "kie_trigger_restarts"}

    lost = ("unloadable", "crashing", "timed_out")

    def waiting_anew() -> bool:
        now = states()
        failed = [task_id for task_id, state in now.items() if state == "failed"]
        assert not failed, airflow_stack.task_log(dag_id, run_id, failed[0])
        return set(restarts()) == set(lost) and {now[task_id] for task_id in lost} == {"deferred"}

    airflow_stack.wait_until(waiting_anew, 120, lambda: f"{states()} {restarts()}")
    kie_clock.finish_all_tasks()

    assert airflow_stack.wait_for_run(dag_id, run_id) == "success", states()
    ids = {airflow_stack.xcom(dag_id, run_id, task_id)["kie_task_id"] for task_id in (*lost, "rescheduled")}
    assert ids == {airflow_stack.xcom(dag_id, run_id, "create")}
    assert kie_emulator.bill()["charged_total"] == PRICE


def test_no_trigger_gets_the_id_of_one_that_is_gone(airflow_stack: AirflowStack) -> None:
    row = (
        "INSERT INTO trigger (classpath, kwargs, created_date) VALUES ('some.Trigger', '{}', '2026-01-01') RETURNING id"
    )
    ids = []
    with airflow_stack.database.transaction() as connection:
        for _ in range(2):
            ids.append(connection.exec_driver_sql(row).scalar())
            connection.exec_driver_sql("DELETE FROM trigger WHERE classpath = 'some.Trigger'")

    assert ids[0] != ids[1]


def test_the_key_is_in_no_log_and_in_no_table(airflow_stack: AirflowStack, kie_emulator: KieEmulator) -> None:
    """Of all that the tests before this one have left: task and process logs, XComs, trigger rows, rendered fields."""
    files = [path for path in airflow_stack.home.rglob("*") if path.is_file()]

    assert len(files) > 10
    assert [path for path in files if kie_emulator.api_key.encode() in path.read_bytes()] == []
    if not airflow_stack.database.is_sqlite:
        assert kie_emulator.api_key not in airflow_stack.database.all_text()


def test_a_killed_process_can_be_started_again_and_a_second_one_added(airflow_stack: AirflowStack) -> None:
    airflow_stack.kill_process("triggerer")
    assert airflow_stack.process("triggerer").exit_code == -signal.SIGKILL
    assert "triggerer" not in airflow_stack.living_processes()

    airflow_stack.start_process("triggerer")
    airflow_stack.start_process("triggerer", "second-triggerer")
    airflow_stack.wait_healthy()
    assert {"triggerer", "second-triggerer"} <= set(airflow_stack.living_processes())

    airflow_stack.stop_process("second-triggerer")
    assert "second-triggerer" not in airflow_stack.living_processes()
    airflow_stack.wait_healthy()


def test_stop_leaves_no_process_no_port_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "dags").mkdir()
    with AirflowStack(tmp_path / "dags") as stack:
        processes = stack.living_processes()
        members = [psutil.Process(pid) for pids in processes.values() for pid in pids]
        home = stack.home
        port = urlsplit(stack.url).port

    assert set(processes) == set(LOCAL)
    assert stack.living_processes() == {}
    assert not [process for process in members if is_alive(process)]
    assert port not in listening_ports()
    assert not home.exists()


def test_a_start_that_fails_leaves_nothing(tmp_path: Path) -> None:
    stack = AirflowStack(tmp_path, env={"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite:////no/such/folder/airflow.db"})

    with pytest.raises(AirflowStackError, match=r"(?s)db migrate.*unable to open database file"):
        stack.start()

    assert stack.living_processes() == {}
    assert not stack.home.exists()


def test_ctrl_c_ends_the_demo_and_all_it_has_started(tmp_path: Path) -> None:
    with (tmp_path / "output").open("wb") as output:
        demo = subprocess.Popen(
            [sys.executable, "-m", "tests.support.demo"],
            cwd=ROOT,
            env={key: value for key, value in os.environ.items() if key != "KIE_API_KEY"},
            stdout=output,
            stderr=subprocess.STDOUT,
            # What a shell starts in the background ignores Ctrl-C, and so would this.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
        )
    try:
        children: list[psutil.Process] = []
        deadline = time.monotonic() + 60
        while len(children) < 3:  # the emulator, the API server, and the migration or the scheduler
            assert time.monotonic() < deadline, (tmp_path / "output").read_text()
            children = psutil.Process(demo.pid).children(recursive=True)
            time.sleep(0.1)
        demo.send_signal(signal.SIGINT)
        exit_code = demo.wait(60)
    finally:
        left = psutil.Process(demo.pid).children(recursive=True) if demo.poll() is None else []
        demo.kill()
        demo.wait()
        for child in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()

    assert exit_code == 128 + signal.SIGINT, (tmp_path / "output").read_text()
    assert not [child for child in children if is_alive(child)]


def connection_form(connection: dict[str, Any]) -> dict[str, Any]:
    """What the page of a connection sends when its test button is pressed."""
    return {"connection_id": "kie_form", **connection, "extra": json.dumps(connection["extra"])}


def wait_for_deferred(stack: AirflowStack, dag_id: str, run_id: str, count: int) -> None:
    """Wait until `count` task instances are in the triggerer and no other one is on a worker."""

    def states() -> list[str]:
        return [task["state"] for task in stack.task_instances(dag_id, run_id) if task["state"]]

    def deferred() -> bool:
        now = states()
        assert "failed" not in now
        return now.count("deferred") == count and not {"running", "queued", "scheduled"} & set(now)

    stack.wait_until(deferred, 90, lambda: f"not {count} deferred tasks, but {states()}")


def is_alive(process: psutil.Process) -> bool:
    """Whether the process still runs: neither its id in other hands nor its remains, not yet collected, count."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def listening_ports() -> set[int]:
    return {each.laddr.port for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN}
