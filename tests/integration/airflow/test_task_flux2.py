"""The @task.flux2 decorator: the function gives the prompt, once."""

from __future__ import annotations

import asyncio

import jinja2
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import get_current_context, task
from PIL import Image

from kie_provider.decorators.flux2 import Flux2DecoratedOperator
from tests.support.airflow_inprocess import new_dag, run_dag
from tests.support.kie import INTERNAL, created_bodies
from tests.support.task_instances import FakeStore, FakeTaskInstance, context_of
from tests.support.versions import HAS_STATE_STORE, durable

OPTIONS = {"poll_interval": 0.1, "retry_delay": 0}


def run(function, *, retries=1, dag_arguments=None, **options):
    with new_dag(**dag_arguments or {}) as dag:
        task.flux2(task_id="it", retries=retries, **OPTIONS, **options)(function)()
    return run_dag(dag)["it", -1]


@pytest.mark.parametrize("deferrable", [True, False], ids=["deferrable", "in the worker"])
def test_a_prompt_becomes_a_file(kie_emulator, tmp_path, deferrable):
    outcome = run(lambda: "a red fox", target=str(tmp_path), deferrable=deferrable)

    assert outcome.state == "success", outcome.error
    assert len(outcome.result["files"]) == 1
    assert created_bodies(kie_emulator)[0]["input"]["prompt"] == "a red fox"


def test_a_dict_counts_before_the_decorators_arguments(kie_emulator):
    outcome = run(
        lambda: {"prompt": "a red fox", "aspect_ratio": "16:9", "model": "flux-2/flex"},
        aspect_ratio="1:1",
        resolution="2K",
    )

    assert outcome.state == "success", outcome.error
    [body] = created_bodies(kie_emulator)
    assert body["model"] == "flux-2/flex-text-to-image"
    assert body["input"] == {"prompt": "a red fox", "aspect_ratio": "16:9", "resolution": "2K"}


def test_a_template_in_a_prompt_is_not_rendered(kie_emulator):
    """A prompt may come from anybody."""
    run(lambda: "a red {{ conn.kie_default.password }}")

    assert created_bodies(kie_emulator)[0]["input"]["prompt"] == "a red {{ conn.kie_default.password }}"


def test_arguments_context_and_mapping(kie_emulator):
    with new_dag(render_template_as_native_obj=True) as dag:

        @task
        def topics():
            return ["fox", "owl"]

        @task.flux2(**OPTIONS)
        def illustrate(topic: str, colour: str, run_id=None) -> dict:
            return {"prompt": f"a {colour} {topic} in {run_id}"}

        @task
        def count(images):
            return [image["input"]["prompt"] for image in images]

        count(illustrate.partial(colour="red").expand(topic=topics()))
    outcomes = run_dag(dag)

    prompts = outcomes["count", -1].result
    assert [prompt.partition(" in ")[0] for prompt in prompts] == ["a red fox", "a red owl"]
    assert all("manual__" in prompt for prompt in prompts)


@durable
def test_a_retry_does_not_call_the_function_again(kie_emulator, tmp_path):
    calls = []

    def prompt():
        calls.append(1)
        return f"a red fox, version {len(calls)}"

    kie_emulator.fault({"on": "file", "do": "swap", "content_type": "image/png", "body": "<html>"})
    outcome = run(prompt, target=str(tmp_path))

    assert (outcome.state, outcome.tries) == ("success", 2)
    assert len(calls) == 1
    assert outcome.result["input"]["prompt"] == "a red fox, version 1"
    assert kie_emulator.bill()["charged_total"] == 5


@durable
def test_after_a_clear_a_refused_prompt_can_be_another_one(kie_emulator):
    kie_emulator.fault({"on": "createTask", "do": "fail", "failCode": "400", "failMsg": "flagged"})
    prompts = iter(["a bad fox", "a red fox"])
    operator = Flux2DecoratedOperator(task_id="it", python_callable=lambda: next(prompts), poll_interval=0.1)
    ti = FakeTaskInstance()
    context = context_of(ti, FakeStore())

    with pytest.raises(AirflowFailException, match="flagged"):
        operator.execute(dict(context))
    ti.max_tries += 1  # what a clear does
    result = operator.execute(dict(context))

    assert result["input"]["prompt"] == "a red fox"
    assert kie_emulator.bill()["charged_total"] == 5


@pytest.mark.parametrize("with_image", [False, True])
def test_after_trouble_at_kie_the_same_is_ordered_again(kie_emulator, tmp_path, with_image):
    image = tmp_path / "in.png"
    Image.new("RGB", (64, 64)).save(image)
    images = {"input_images": [str(image)]} if with_image else {}
    kie_emulator.fault(INTERNAL)

    outcome = run(lambda: {"prompt": "a red fox", **images})

    assert (outcome.state, outcome.tries) == ("success", 2)
    first, second = created_bodies(kie_emulator)
    assert first == second
    assert all(url.startswith("http") for url in second["input"].get("input_urls", []))
    assert kie_emulator.bill()["charged_total"] == 5


@pytest.mark.parametrize("deferrable", [True, False], ids=["deferrable", "in the worker"])
def test_an_async_function_is_awaited(kie_emulator, deferrable):
    async def prompt(topic="fox"):
        await asyncio.sleep(0)
        return {"prompt": f"a red {topic}"}

    outcome = run(prompt, deferrable=deferrable)

    assert outcome.state == "success", outcome.error
    assert created_bodies(kie_emulator)[0]["input"]["prompt"] == "a red fox"


@pytest.mark.parametrize(
    ("deferrable", "retried", "template"),
    [
        (True, False, "{{ label }}"),
        (True, True, "{{ label }} of {{ ti.task_id }}"),
        (False, True, "{{ label }}"),
        (True, False, "{{ topic }}"),
        (True, False, "{{ (label | default(none)) + '!' }}"),
    ],
)
def test_map_index_template_as_with_task(kie_emulator, tmp_path, deferrable, retried, template):
    if retried:
        if not HAS_STATE_STORE:
            pytest.skip("nothing outlives a try before Airflow 3.3")
        kie_emulator.fault({"on": "file", "do": "swap", "content_type": "image/png", "body": "<html>", "times": 2})
    labels = {}

    with new_dag() as dag:

        @task.flux2(
            map_index_template=template, target=str(tmp_path), deferrable=deferrable, retries=3, task_id="it", **OPTIONS
        )
        def illustrate(topic):
            get_current_context()["label"] = f"the {topic}"
            return f"a red {topic}"

        illustrate.expand(topic=["fox", "owl"])
    outcomes = run_dag(dag, labels=labels)

    assert {outcome.state for outcome in outcomes.values()} == {"success"}, outcomes
    expected = [
        jinja2.Template(template).render(label=f"the {topic}", topic=topic, ti=FakeTaskInstance())
        for topic in ("fox", "owl")
    ]
    assert [labels["it", index] for index in (0, 1)] == expected
    assert kie_emulator.bill()["charged_total"] == 10


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "must return a prompt or a dict with one, got None"),
        (7, "must return a prompt or a dict with one, got 7"),
        ({"aspect_ratio": "1:1"}, "must return a prompt or a dict with one"),
        ({"prompt": "a red fox", "size": 3}, "size: @task.flux2 takes no such field; allowed: prompt, model"),
        ({"prompt": "a red fox", "target": "/"}, "target: @task.flux2 takes no such field"),
        ("ab", "prompt: 'ab' has 2 characters"),
    ],
)
def test_what_it_must_not_return(kie_emulator, returned, message):
    outcome = run(lambda: returned)

    assert (outcome.state, outcome.retried) == ("failed", False)
    assert message in str(outcome.error)
    assert created_bodies(kie_emulator) == []


def test_the_prompt_is_no_parameter_of_the_decorator():
    with pytest.raises(TypeError, match="the function returns the prompt"), new_dag():
        task.flux2(prompt="x")(lambda: "y")()
