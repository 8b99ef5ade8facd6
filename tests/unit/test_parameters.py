"""Numbers as authors write them and as templates make them; what makes no sense is found while the DAG is parsed."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from kie_provider import parameters
from kie_provider.decorators.flux2 import Flux2DecoratedOperator
from kie_provider.operators.batch import Flux2BatchOperator
from kie_provider.operators.flux2 import Flux2CreateTaskOperator, Flux2GenerateImageOperator
from kie_provider.operators.kie import KieCreateTaskOperator
from kie_provider.sensors.kie import KieTaskSensor
from tests.support.messages import assert_tells


@pytest.fixture(autouse=True)
def _real_floor(monkeypatch):
    monkeypatch.setattr("kie_provider.parameters.SHORTEST_POLL_INTERVAL", 1.0)


def read(name, value):
    operator = SimpleNamespace(**{name: value})
    found = parameters.problems(operator)
    return found or getattr(operator, name)


@pytest.mark.parametrize(
    ("name", "value", "number"),
    [
        ("poll_interval", 1, 1),
        ("poll_interval", 2.5, 2.5),
        ("poll_interval", "2.5", 2.5),
        ("poll_interval", timedelta(seconds=1), 1),
        ("poll_interval", str(timedelta(minutes=1, seconds=0.5)), 60.5),
        ("timeout", "900", 900),
        ("timeout", timedelta(minutes=15), 900),
        ("timeout", str(timedelta(days=2, hours=1)), 176_400),
        ("timeout", 0, 0),
        ("max_credits", "30", 30),
        ("max_credits", None, None),
        ("max_credits", "None", None),
        ("min_credits_left", "", None),
        ("min_credits_left", 0, 0),
        ("min_success", "0.9", 0.9),
        ("min_success", 1, 1),
        ("on_unknown_submit", "resubmit", "resubmit"),
        ("allow_duplicates", True, True),
    ],
)
def test_what_is_understood(name, value, number):
    assert read(name, value) == number
    assert read(name, read(name, value)) == number


WRONG = [
    *(("poll_interval", value) for value in (0, 0.99, -1, None, True, "soon", "nan", float("inf"), 1e12, [3], 10**400)),
    *(("timeout", value) for value in (None, -1, "None", timedelta(seconds=-1), float("nan"), "1e12", {}, "15 min")),
    *(("max_credits", value) for value in (-1, True, "many", float("inf"), [5])),
    ("min_credits_left", "-1"),
    *(("min_success", value) for value in (0, 1.01, None, "90%", True)),
    *(("on_unknown_submit", value) for value in ("retry", None, ["fail"])),
    *(("allow_duplicates", value) for value in ("False", None, 1)),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_what_is_refused(name, value):
    [problem] = read(name, value)
    assert problem.startswith(f"{name}: must be ")
    assert "got " in problem


OPERATORS = {
    KieCreateTaskOperator: {"model": "a/b", "input": {}},
    Flux2CreateTaskOperator: {"prompt": "a fox"},
    Flux2GenerateImageOperator: {"prompt": "a fox"},
    Flux2DecoratedOperator: {"python_callable": lambda: "a fox"},
    Flux2BatchOperator: {"prompts": ["a fox"], "target": "/tmp"},
    KieTaskSensor: {"kie_task_id": "x"},
}


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timeout", None),
        ("timeout", "soon"),
        ("poll_interval", 0),
        ("poke_interval", 0),
        ("max_credits", -1),
        ("min_credits_left", "few"),
        ("min_success", 90),
        ("on_unknown_submit", "retry"),
        ("allow_duplicates", "False"),
        *(("timeout", value) for value in (float("inf"), 1e308, 10**400)),
        *(("poke_interval", value) for value in (float("inf"), 10**400)),
    ],
)
def test_a_wrong_constant_fails_when_the_dag_is_parsed(operator, name, value):
    takes = operator(task_id="it", **OPERATORS[operator])
    if not hasattr(takes, name) or (operator is KieTaskSensor and value is None):  # Airflow's default
        return
    with pytest.raises((AirflowFailException, ValueError), match=name):
        operator(task_id="it", **OPERATORS[operator], **{name: value})


def test_all_wrong_constants_are_named():
    with pytest.raises(AirflowFailException) as caught:
        Flux2GenerateImageOperator(task_id="it", prompt="a fox", timeout=None, poll_interval=0)
    first, *problems = str(caught.value).splitlines()
    assert_tells(first, "task 'it'")
    assert_tells(problems[0], "  - poll_interval: ", "a number of seconds or a timedelta, at least 1", "got 0")
    assert_tells(problems[1], "  - timeout: ", "a number of seconds or a timedelta", "from 0 to 31622400", "got None")
    assert len(problems) == 2


@pytest.mark.parametrize("value", ["{{ params.x }}", "{% if x %}1{% endif %}"])
def test_a_template_is_checked_when_it_is_rendered(value):
    Flux2BatchOperator(
        task_id="it", prompts=["a fox"], target="/tmp", timeout=value, poll_interval=value, min_success=value
    )
