"""Creating tasks from a real Airflow task: rendering, mapping, and what reaches Kie."""

from __future__ import annotations

import pytest
from airflow.sdk import task

from kie_provider.operators.flux2 import Flux2CreateTaskOperator
from kie_provider.operators.kie import KieCreateTaskOperator
from tests.support.airflow_inprocess import new_dag, run_dag, run_task
from tests.support.kie import created_bodies
from tests.support.openapi import validate_request


def created(kie_emulator) -> list[dict]:
    """Return the bodies of all createTask requests, each valid by the vendor's schema where that covers the model."""
    bodies = created_bodies(kie_emulator)
    for body in bodies:
        if body["model"] == "flux-2/pro-text-to-image":
            validate_request(body)
    return bodies


def test_flux2_sends_all_required_fields_once_and_returns_the_id(kie_emulator):
    outcome = run_task(lambda **kw: Flux2CreateTaskOperator(prompt="  a red fox  ", **kw))

    assert created(kie_emulator) == [
        {
            "model": "flux-2/pro-text-to-image",
            "input": {"prompt": "a red fox", "aspect_ratio": "1:1", "resolution": "1K"},
        }
    ]
    [charged] = kie_emulator.bill()["tasks"]
    assert (outcome.state, outcome.result) == ("success", charged["taskId"])


def test_every_field_is_templated(kie_emulator):
    run_task(
        lambda **kw: Flux2CreateTaskOperator(
            prompt="a fox in {{ params.place }}",
            model="flux-2/{{ params.kind }}-image-to-image",
            aspect_ratio="{{ params.ratio }}",
            resolution="{{ params.size }}",
            input_urls=["https://example.com/{{ params.place }}.png"],
            nsfw_checker="{{ params.check }}",
            callback_url="https://example.com/{{ params.place }}",
            kie_conn_id="kie_{{ params.conn }}",
            **kw,
        ),
        params={
            "place": "snow",
            "kind": "flex",
            "ratio": "auto",
            "size": "2K",
            "check": True,
            "conn": "default",
        },
    )

    assert created(kie_emulator) == [
        {
            "model": "flux-2/flex-image-to-image",
            "callBackUrl": "https://example.com/snow",
            "input": {
                "prompt": "a fox in snow",
                "aspect_ratio": "auto",
                "resolution": "2K",
                "input_urls": ["https://example.com/snow.png"],
                "nsfw_checker": True,
            },
        }
    ]


@pytest.mark.parametrize("native", [False, True])
def test_values_from_upstream_may_be_text_or_native(kie_emulator, native):
    with new_dag(render_template_as_native_obj=native) as dag:

        @task(multiple_outputs=True)
        def plan():
            return {"prompt": "two foxes", "urls": ["https://example.com/1.png", "https://example.com/2.png"]}

        upstream = plan()
        Flux2CreateTaskOperator(
            task_id="create",
            prompt=upstream["prompt"],
            model="flux-2/pro-image-to-image",
            input_urls="{{ ti.xcom_pull('plan')['urls'] }}",
            nsfw_checker="{{ none }}",
        )
    outcomes = run_dag(dag)

    assert outcomes["create", -1].state == "success", outcomes["create", -1].error
    assert created(kie_emulator)[0]["input"] == {
        "prompt": "two foxes",
        "aspect_ratio": "1:1",
        "resolution": "1K",
        "input_urls": ["https://example.com/1.png", "https://example.com/2.png"],
    }


def test_expand_creates_one_task_per_prompt(kie_emulator):
    with new_dag() as dag:

        @task
        def prompts():
            return ["one fox", "two foxes", "three foxes"]

        Flux2CreateTaskOperator.partial(task_id="create", resolution="2K").expand(prompt=prompts())
    outcomes = run_dag(dag)

    assert sorted(body["input"]["prompt"] for body in created(kie_emulator)) == ["one fox", "three foxes", "two foxes"]
    ids = {outcomes["create", index].result for index in range(3)}
    assert ids == {charged["taskId"] for charged in kie_emulator.bill()["tasks"]}


def test_generic_operator_passes_the_input_on(kie_emulator):
    with new_dag() as dag:

        @task
        def url(n):
            return f"https://example.com/{n}.png"

        KieCreateTaskOperator(
            task_id="create",
            model="flux-2/pro-image-to-image",
            input={
                "prompt": "made of {{ params.what }}",
                "aspect_ratio": "1:1",
                "resolution": "1K",
                "input_urls": url.expand(n=[1, 2]),
            },
            params={"what": "glass"},
        )
    outcomes = run_dag(dag)

    assert outcomes["create", -1].state == "success", outcomes["create", -1].error
    assert created(kie_emulator)[0]["input"] == {
        "prompt": "made of glass",
        "aspect_ratio": "1:1",
        "resolution": "1K",
        "input_urls": ["https://example.com/1.png", "https://example.com/2.png"],
    }


def test_generic_operator_takes_an_input_rendered_as_json_text(kie_emulator):
    body = {"prompt": "a fox", "aspect_ratio": "3:2", "resolution": "1K"}
    run_task(
        lambda **kw: KieCreateTaskOperator(model="flux-2/flex-text-to-image", input="{{ params.body | tojson }}", **kw),
        params={"body": body},
    )

    assert [b["input"] for b in created(kie_emulator)] == [body]


def test_init_accepts_what_only_rendering_can_judge():
    Flux2CreateTaskOperator(
        task_id="x", prompt="{{ p }}", model="{{ m }}", aspect_ratio="{{ a }}", input_urls="{{ u }}"
    )
    KieCreateTaskOperator(task_id="y", model="{{ m }}", input="{{ i }}")
