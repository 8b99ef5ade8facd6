"""What an author reads in the task log when something is wrong, whether Airflow retries, and what it cost."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from kie_provider.client.errors import (
    KieAuthError,
    KieConnectionError,
    KieConnectionNotFoundError,
    KieError,
    KieInsufficientCreditsError,
    KieNotFoundError,
    KieResultError,
    KieSubmitUnknownError,
    KieTaskFailedError,
    KieTransportError,
    KieValidationError,
)
from kie_provider.operators.flux2 import Flux2CreateTaskOperator, Flux2GenerateImageOperator
from kie_provider.operators.kie import KieCreateTaskOperator
from kie_provider.sensors.flux2 import Flux2TaskSensor
from tests.support.airflow_inprocess import run_task
from tests.support.kie import LOST, NO_URLS, requests_to
from tests.support.messages import assert_tells
from tests.support.versions import HAS_STATE_STORE

RATIOS = ("1:1", "4:3", "3:4", "16:9", "9:16", "3:2", "2:3")
NO_CREDITS = "Credits insufficient : Your current balance isn't enough to run this request. Please top up to continue."
NOTHING_SENT = "nothing was sent"
FLAGGED = {"on": "createTask", "do": "fail", "failCode": "400", "failMsg": "Your prompt was flagged"}


@dataclass
class Case:
    """A mistake or mishap.

    :param facts: what the message must name beside the kind of error and its advice; ``{id}`` is the Kie task's.
    """

    kind: type[KieError]
    facts: tuple[str, ...]
    fields: dict = field(default_factory=dict)
    connection: dict | None = field(default_factory=dict)
    faults: tuple = ()
    retried: bool = False
    charged: float = 0
    sent: int = 0


def invalid(*facts, **fields):
    """Return the case of a request that is refused before it is sent."""
    return Case(KieValidationError, (NOTHING_SENT, *facts), {"prompt": "a red fox", **fields})


def code(code, http_status=200):
    return f"[Kie code {code}, HTTP {http_status}"


#: What a person is told who has to look whether there is a task, and where to write it down.
UNKNOWN = ("https://kie.ai/logs", *(["'kie.1.1.settled'", "state store", '"nothing"'] if HAS_STATE_STORE else []))
CREATE = {
    "no connection": Case(
        KieConnectionNotFoundError,
        ("no Airflow connection 'kie_default'", "airflow connections add kie_default", "--conn-type kie"),
        connection=None,
        retried=True,
    ),
    "empty key": Case(
        KieConnectionError,
        ("connection 'kie_default'", "no API key", "https://kie.ai/api-key"),
        connection={"password": ""},
    ),
    "key with white space": Case(
        KieConnectionError, ("connection 'kie_default'", "API key", "white space"), connection={"password": "two words"}
    ),
    "wrong key": Case(KieAuthError, ("Unauthorized", code(401)), connection={"password": "wrong-key"}, sent=1),
    "wrong host": Case(
        KieConnectionError,
        ("connection 'kie_default'", "host: ", "https://api.kie.ai", "'ftp://api.kie.ai'"),
        connection={"host": "ftp://api.kie.ai"},
    ),
    "request_timeout not a number": Case(
        KieConnectionError,
        ("connection 'kie_default'", "request_timeout: ", "above 0", "86400", "'soon'"),
        connection={"extra": {"request_timeout": "soon"}},
    ),
    "Kie down": Case(
        KieTransportError,
        ("POST http://127.0.0.1:1/api/v1/jobs/createTask", "ConnectionRefusedError", "never left this machine"),
        connection={"host": "http://127.0.0.1:1"},
        retried=True,
    ),
    "no credits": Case(
        KieInsufficientCreditsError,
        (NO_CREDITS, code(402)),
        faults=({"on": "createTask", "do": "code", "code": 402, "msg": NO_CREDITS},),
        sent=1,
    ),
    "no credits, said with code 500": Case(
        KieInsufficientCreditsError,
        ("Credits insufficient", code(500)),
        faults=({"on": "createTask", "do": "code", "code": 500, "msg": "Credits insufficient"},),
        sent=1,
    ),
    "prompt too short": invalid("prompt: 'ab' has 2", "3 to 5000", prompt=" ab "),
    "prompt too long": invalid(f"prompt: '{'x' * 59}... has 5001", "3 to 5000", prompt="x" * 5001),
    "prompt not text": invalid("prompt: ", "text", "int 42", prompt=42),
    "prompt that the upstream task did not return": invalid(
        "prompt: ", "text", "'None'", "upstream task returned nothing", prompt="None"
    ),
    "rendered numbers": invalid(
        *("max_credits: ", "at least 0, or None", "'many'", "aspect_ratio: '5:4'", *RATIOS),
        aspect_ratio="5:4",
        max_credits="{{ 'many' }}",
    ),
    "bad ratio and resolution, together": invalid(
        *("aspect_ratio: '5:4'", *RATIOS, "resolution: '8K'", "1K, 2K"), aspect_ratio="5:4", resolution="8K"
    ),
    "auto without an image": invalid("aspect_ratio: 'auto'", "flux-2/pro-text-to-image", *RATIOS, aspect_ratio="auto"),
    "images on a text model": invalid(
        *("input_urls: ", "flux-2/flex-text-to-image", "flux-2/flex-image-to-image"),
        model="flux-2/flex-text-to-image",
        input_urls=["https://example.com/a.png"],
    ),
    "image model without images": invalid(
        "input_urls: ", "flux-2/pro-image-to-image", "1 to 8", "none", model="flux-2/pro-image-to-image"
    ),
    "too many images, one not a URL": invalid(
        *("input_urls[8]: ", "http(s) URL", "'data:image/png;base64,x'", "input_urls: 9 given", "at most 8"),
        model="flux-2/pro-image-to-image",
        input_urls=[*[f"https://example.com/{n}.png" for n in range(8)], "data:image/png;base64,x"],
    ),
    "unknown Flux-2 model": invalid(
        *("model: 'flux-3/ultra'", "flux-2/pro,", "flux-2/flex,"),
        *(f"flux-2/{kind}-{what}-to-image" for kind in ("pro", "flex") for what in ("text", "image")),
        model="flux-3/ultra",
    ),
    "callback that is no URL": invalid("callback_url: ", "http(s) URL", "'call me'", callback_url="call me"),
    "HTML instead of JSON": Case(
        KieSubmitUnknownError,
        ("HTTP 502", "not JSON", "'<html>Bad Gateway</html>'", *UNKNOWN),
        faults=(
            {
                "on": "createTask",
                "do": "answer",
                "http_status": 502,
                "content_type": "text/html",
                "body": "<html>Bad Gateway</html>",
            },
        ),
        sent=1,
    ),
    "answer lost after Kie accepted": Case(
        KieSubmitUnknownError,
        ("POST {url}/api/v1/jobs/createTask", "RemoteDisconnected", *UNKNOWN),
        faults=(LOST,),
        charged=5,
        sent=1,
    ),
}


def connect(monkeypatch, kie_emulator, changes):
    if changes is None:
        monkeypatch.delenv("AIRFLOW_CONN_KIE_DEFAULT")
    else:
        monkeypatch.setenv("AIRFLOW_CONN_KIE_DEFAULT", json.dumps(kie_emulator.connection | changes))


@pytest.mark.parametrize("case", CREATE.values(), ids=CREATE.keys())
def test_create(case, kie_emulator, monkeypatch):
    monkeypatch.setattr("kie_provider.client.retry.SUBMIT_PATIENCE", 0.0)
    connect(monkeypatch, kie_emulator, case.connection)
    for fault in case.faults:
        kie_emulator.fault(fault)

    outcome = run_task(lambda **kw: Flux2CreateTaskOperator(**({"prompt": "a red fox"} | case.fields), **kw))

    assert_tells(outcome.error, case.kind, *(fact.replace("{url}", kie_emulator.url) for fact in case.facts))
    assert (outcome.state, outcome.retried) == ("failed", case.retried)
    assert len(requests_to(kie_emulator)) == case.sent
    assert kie_emulator.bill()["charged_total"] == case.charged


def test_the_log_says_it_in_short_lines(kie_emulator, capsys, caplog):
    kie_emulator.fault(FLAGGED)

    outcome = run_task(lambda **kw: Flux2GenerateImageOperator(prompt="a bad fox", poll_interval=0.1, **kw))

    log = capsys.readouterr().out + caplog.text
    for line in (
        f"Failed: {KieTaskFailedError.summary}",
        "Kie says: Your prompt was flagged (Kie code 400)",
        "With: connection 'kie_default', Kie task ",
        "Charged: nothing",
        "What to do: Change the prompt",
    ):
        assert line in log
    assert outcome.error.__cause__ is None
    assert outcome.error.__suppress_context__


def test_create_with_an_unknown_market_model(kie_emulator):
    outcome = run_task(lambda **kw: KieCreateTaskOperator(model="acme/painter", input={"prompt": "a fox"}, **kw))

    assert_tells(outcome.error, KieValidationError, "The model name you specified is not supported.", code(422))
    assert (outcome.state, outcome.retried) == ("failed", False)


@pytest.mark.parametrize(
    ("fields", "facts"),
    [
        ({"model": "", "input": ["a list"]}, ("model: ", "got ''", "input: ", "JSON object", "['a list']")),
        (
            {"model": "acme/painter", "input": {"when": object}},
            ("input: ", "JSON object", "'when'", "not JSON"),
        ),
    ],
)
def test_create_with_an_unusable_generic_input(fields, facts, kie_emulator):
    operator = KieCreateTaskOperator(task_id="it", **fields)

    with pytest.raises(AirflowFailException) as caught:
        operator.execute({})
    assert_tells(caught.value, KieValidationError, NOTHING_SENT, *facts)
    assert len(requests_to(kie_emulator)) == 0


WAIT = {
    "nothing from upstream": Case(
        KieValidationError, ("kie_task_id: ", "'None'", "upstream task returned nothing"), {"kie_task_id": "None"}
    ),
    "wrong key": Case(
        KieAuthError,
        ("Unauthorized", f"{code(401)}, Kie task {{id}}]"),
        connection={"password": "wrong-key"},
        charged=5,
    ),
    "task failed": Case(
        KieTaskFailedError,
        ("Your prompt was flagged", "[Kie code 400, Kie task {id}]", "Change the prompt", "Kie does not charge"),
        faults=(FLAGGED,),
    ),
    "success without URLs": Case(
        KieResultError, ("neither URLs nor a result", "[Kie task {id}]"), faults=(NO_URLS,), charged=5
    ),
}


@pytest.mark.parametrize("deferrable", [True, False], ids=["deferrable", "poke"])
@pytest.mark.parametrize("case", WAIT.values(), ids=WAIT.keys())
def test_wait(case, deferrable, create, kie_emulator, monkeypatch):
    for fault in case.faults:
        kie_emulator.fault(fault)
    kie_task_id = case.fields.get("kie_task_id") or create()
    connect(monkeypatch, kie_emulator, case.connection)

    outcome = run_task(
        lambda **kw: Flux2TaskSensor(kie_task_id=kie_task_id, poke_interval=0.05, deferrable=deferrable, **kw)
    )

    assert_tells(outcome.error, case.kind, *(fact.replace("{id}", kie_task_id) for fact in case.facts))
    assert (outcome.state, outcome.retried) == ("failed", False)
    assert kie_emulator.bill()["charged_total"] == case.charged


@pytest.mark.parametrize("deferrable", [True, False], ids=["deferrable", "poke"])
def test_wait_for_an_unknown_task(deferrable, kie_emulator, monkeypatch):
    monkeypatch.setattr("kie_provider.client.polling.VISIBILITY_GRACE", 0.2)
    kie_task_id = "0" * 32

    outcome = run_task(
        lambda **kw: Flux2TaskSensor(kie_task_id=kie_task_id, poke_interval=0.1, deferrable=deferrable, **kw)
    )

    assert_tells(outcome.error, KieNotFoundError, "recordInfo is null", f"{code(422)}, Kie task {kie_task_id}]")
    assert (outcome.state, outcome.retried) == ("failed", False)


def test_wait_while_kie_is_down_is_retried(create, kie_emulator, monkeypatch):
    monkeypatch.setattr("kie_provider.client.polling.FAILURE_PATIENCE", 0.05)
    monkeypatch.setattr("kie_provider.client.polling.LONGEST_FAILURE_DELAY", 0.1)
    kie_task_id = create()
    connect(monkeypatch, kie_emulator, {"host": "http://127.0.0.1:1"})

    outcome = run_task(lambda **kw: Flux2TaskSensor(kie_task_id=kie_task_id, poke_interval=0.1, deferrable=True, **kw))

    assert_tells(outcome.error, KieTransportError, "GET http://127.0.0.1:1/api/v1/jobs/recordInfo")
    assert (outcome.state, outcome.retried) == ("failed", True)
