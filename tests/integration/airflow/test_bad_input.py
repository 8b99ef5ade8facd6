"""What an author reads in the task log when something is wrong, whether Airflow retries, and what it cost."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest

from kie_provider.operators.flux2 import Flux2CreateTaskOperator, Flux2GenerateImageOperator
from kie_provider.operators.kie import KieCreateTaskOperator
from kie_provider.sensors.flux2 import Flux2TaskSensor
from tests.support.airflow_inprocess import run_task
from tests.support.kie import LOST, NO_URLS, requests_to
from tests.support.tries import HAS_STATE_STORE

RATIOS = "1:1, 4:3, 3:4, 16:9, 9:16, 3:2, 2:3"
MODELS = (
    "flux-2/pro, flux-2/flex, flux-2/pro-text-to-image, flux-2/flex-text-to-image, flux-2/pro-image-to-image, "
    "flux-2/flex-image-to-image"
)
INVALID = "Kie.ai request is not valid: nothing was sent.\n"
KEY_ADVICE = (
    " -> Set the connection's password to a key from https://kie.ai/api-key; if the key is right, look at the IP "
    "allow-list in https://kie.ai/settings."
)
UNKNOWN_ADVICE = (
    " -> Look at https://kie.ai/logs, which shows whether a task was created at this time; it was not sent again, so "
    "that you do not pay twice."
)
if HAS_STATE_STORE:
    UNKNOWN_ADVICE += (
        " If there is one, add its id, as a JSON string, under the key 'kie.1.1.settled' to this task instance's state "
        'store (in Airflow\'s Task State Store tab, or through its REST API); if there is none, add "nothing" there. '
        "Then clear this task."
    )


@dataclass
class Case:
    message: str
    fields: dict = field(default_factory=dict)
    connection: dict | None = field(default_factory=dict)
    faults: tuple = ()
    retried: bool = False
    charged: float = 0
    sent: int = 0


def flux2(**fields):
    return {"prompt": "a red fox", **fields}


CREATE = {
    "no connection": Case(
        "The Kie.ai connection is not usable: there is no Airflow connection 'kie_default'. Create it in "
        "Admin > Connections, or with: airflow connections add kie_default --conn-type kie --conn-password <API key>"
        " -> Put it right, then clear this task: nothing was sent.",
        connection=None,
    ),
    "empty key": Case(
        "The Kie.ai connection is not usable: connection 'kie_default': there is no API key; set the password to one "
        "from https://kie.ai/api-key -> Put it right, then clear this task: nothing was sent.",
        connection={"password": ""},
    ),
    "key with white space": Case(
        "The Kie.ai connection is not usable: connection 'kie_default': the API key has white space or other "
        "characters that no key has -> Put it right, then clear this task: nothing was sent.",
        connection={"password": "two words"},
    ),
    "wrong key": Case(
        "Kie.ai did not accept the API key: Unauthorized – Authentication failed. Please check that your "
        "Authorization and Content-Type headers are correctly set. [Kie code 401, HTTP 200]" + KEY_ADVICE,
        connection={"password": "wrong-key"},
        sent=1,
    ),
    "wrong host": Case(
        "The Kie.ai connection is not usable: connection 'kie_default': host: must be scheme, host and port, like "
        "https://api.kie.ai, got 'ftp://api.kie.ai' -> Put it right, then clear this task: nothing was sent.",
        connection={"host": "ftp://api.kie.ai"},
    ),
    "request_timeout not a number": Case(
        "The Kie.ai connection is not usable: connection 'kie_default': request_timeout: must be a number of seconds "
        "above 0, up to 86400 (a day), got 'soon' -> Put it right, then clear this task: nothing was sent.",
        connection={"extra": {"request_timeout": "soon"}},
    ),
    "Kie down": Case(
        "Cannot reach Kie.ai: POST http://127.0.0.1:1/api/v1/jobs/createTask: the request never left this machine "
        "(ConnectionRefusedError: [Errno 111] Connection refused) -> Check the connection's host and this machine's "
        "network and proxy.",
        connection={"host": "http://127.0.0.1:1"},
        retried=True,
    ),
    "no credits": Case(
        "Not enough Kie.ai credits: Credits insufficient : Your current balance isn't enough to run this request. "
        "Please top up to continue. [Kie code 402, HTTP 200] -> Top up at "
        "https://kie.ai/billing, then clear this task: nothing was charged.",
        faults=(
            {
                "on": "createTask",
                "do": "code",
                "code": 402,
                "msg": "Credits insufficient : Your current balance isn't enough to run this request. "
                "Please top up to continue.",
            },
        ),
        sent=1,
    ),
    "no credits, said with code 500": Case(
        "Not enough Kie.ai credits: Credits insufficient [Kie code 500, HTTP 200] -> Top up at "
        "https://kie.ai/billing, then clear this task: nothing was charged.",
        faults=({"on": "createTask", "do": "code", "code": 500, "msg": "Credits insufficient"},),
        sent=1,
    ),
    "prompt too short": Case(
        INVALID + "  - prompt: 'ab' has 2 characters; 3 to 5000 are allowed", flux2(prompt=" ab ")
    ),
    "prompt too long": Case(
        INVALID + f"  - prompt: '{'x' * 59}... has 5001 characters; 3 to 5000 are allowed",
        flux2(prompt="x" * 5001),
    ),
    "prompt not text": Case(INVALID + "  - prompt: must be text, got int 42", flux2(prompt=42)),
    "prompt that the upstream task did not return": Case(
        INVALID + "  - prompt: must be text, got 'None': the upstream task returned nothing", flux2(prompt="None")
    ),
    "rendered numbers": Case(
        INVALID + "  - max_credits: must be a number of credits, at least 0, or None, got 'many'\n"
        "  - aspect_ratio: '5:4' is not allowed; allowed: " + RATIOS,
        flux2(aspect_ratio="5:4", max_credits="{{ 'many' }}"),
    ),
    "bad ratio and resolution, together": Case(
        INVALID + f"  - aspect_ratio: '5:4' is not allowed; allowed: {RATIOS}\n"
        "  - resolution: '8K' is not allowed; allowed: 1K, 2K",
        flux2(aspect_ratio="5:4", resolution="8K"),
    ),
    "auto without an image": Case(
        INVALID + "  - aspect_ratio: 'auto' takes the ratio of the first input image, and flux-2/pro-text-to-image "
        f"takes none; allowed: {RATIOS}",
        flux2(aspect_ratio="auto"),
    ),
    "images on a text model": Case(
        INVALID + "  - input_urls: flux-2/flex-text-to-image takes no images; use flux-2/flex-image-to-image",
        flux2(model="flux-2/flex-text-to-image", input_urls=["https://example.com/a.png"]),
    ),
    "image model without images": Case(
        INVALID + "  - input_urls: flux-2/pro-image-to-image needs 1 to 8 http(s) URLs of images, got none",
        flux2(model="flux-2/pro-image-to-image"),
    ),
    "too many images, one not a URL": Case(
        INVALID + "  - input_urls[8]: must be an http(s) URL that Kie can fetch, got 'data:image/png;base64,x'\n"
        "  - input_urls: 9 given; at most 8 are allowed",
        flux2(
            model="flux-2/pro-image-to-image",
            input_urls=[*[f"https://example.com/{n}.png" for n in range(8)], "data:image/png;base64,x"],
        ),
    ),
    "unknown Flux-2 model": Case(
        INVALID + f"  - model: 'flux-3/ultra' is not a Flux-2 model; allowed: {MODELS}", flux2(model="flux-3/ultra")
    ),
    "callback that is no URL": Case(
        INVALID + "  - callback_url: must be an http(s) URL that Kie can reach, got 'call me'",
        flux2(callback_url="call me"),
    ),
    "HTML instead of JSON": Case(
        "It is not known whether Kie.ai created a task: createTask was answered with an error (Kie.ai server error: "
        "HTTP 502 with not JSON but '<html>Bad Gateway</html>') [HTTP 502]" + UNKNOWN_ADVICE,
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
        "It is not known whether Kie.ai created a task: POST {url}/api/v1/jobs/createTask: no usable answer "
        "(RemoteDisconnected: Remote end closed connection without response)" + UNKNOWN_ADVICE,
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
    connect(monkeypatch, kie_emulator, case.connection)
    for fault in case.faults:
        kie_emulator.fault(fault)

    outcome = run_task(lambda **kw: Flux2CreateTaskOperator(**(case.fields or flux2()), **kw))

    assert str(outcome.error) == case.message.replace("{url}", kie_emulator.url)
    assert (outcome.state, outcome.retried) == ("failed", case.retried)
    assert len(requests_to(kie_emulator)) == case.sent
    assert kie_emulator.bill()["charged_total"] == case.charged


def test_the_log_says_it_in_short_lines(kie_emulator, capsys, caplog):
    kie_emulator.fault({"on": "createTask", "do": "fail", "failCode": "400", "failMsg": "Your prompt was flagged"})

    outcome = run_task(lambda **kw: Flux2GenerateImageOperator(prompt="a bad fox", poll_interval=0.1, **kw))

    log = capsys.readouterr().out + caplog.text
    for line in (
        "Failed: The Kie.ai task failed",
        "Kie says: Your prompt was flagged (Kie code 400)",
        "With: connection 'kie_default', Kie task ",
        "Charged: nothing; Kie does not charge failed tasks",
        "Change the prompt or the input images, then clear",
    ):
        assert line in log
    assert outcome.error.__cause__ is None
    assert outcome.error.__suppress_context__


def test_create_with_an_unknown_market_model(kie_emulator):
    outcome = run_task(lambda **kw: KieCreateTaskOperator(model="acme/painter", input={"prompt": "a fox"}, **kw))

    assert str(outcome.error).startswith("Kie.ai request is not valid: The model name you specified is not supported.")
    assert (outcome.state, outcome.retried) == ("failed", False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model": "", "input": ["a list"]},
            "  - model: must be the id of a Kie model, got ''\n"
            "  - input: must be a JSON object, got ['a list'] (list is not an object)",
        ),
        (
            {"model": "acme/painter", "input": {"when": object}},
            "  - input: must be a JSON object, got {'when': <class 'object'>} (type is not JSON)",
        ),
    ],
)
def test_create_with_an_unusable_generic_input(fields, message, kie_emulator):
    operator = KieCreateTaskOperator(task_id="it", **fields)

    with pytest.raises(Exception, match="nothing was sent") as caught:
        operator.execute({})
    assert str(caught.value) == INVALID + message
    assert len(requests_to(kie_emulator)) == 0


UNKNOWN_TASK = (
    "Kie.ai does not know this: no record of this task (recordInfo is null) [Kie code 422, HTTP 200, Kie task {id}] -> "
    "Three causes: the record has expired (Kie keeps them two months), the task belongs to another account's key, or "
    "the connection points at another host. See https://kie.ai/logs."
)
WAIT = {
    "nothing from upstream": Case(
        "Kie.ai request is not valid: kie_task_id: must be the id that createTask returned, got 'None': the upstream "
        "task returned nothing",
        {"kie_task_id": "None"},
    ),
    "wrong key": Case(
        "Kie.ai did not accept the API key: Unauthorized – Authentication failed. Please check that your "
        "Authorization and Content-Type headers are correctly set. [Kie code 401, HTTP 200, Kie task {id}]"
        + KEY_ADVICE,
        connection={"password": "wrong-key"},
        charged=5,
    ),
    "task failed": Case(
        "The Kie.ai task failed: Your prompt was flagged [Kie code 400, Kie task {id}] -> Change the prompt or the "
        "input images, then clear the Airflow task that created the Kie task: Kie does not charge failed tasks.",
        faults=({"on": "createTask", "do": "fail", "failCode": "400", "failMsg": "Your prompt was flagged"},),
    ),
    "success without URLs": Case(
        "The Kie.ai task succeeded without a usable result: it has neither URLs nor a result object [Kie task {id}] -> "
        "It may have been charged; see https://kie.ai/logs.",
        faults=(NO_URLS,),
        charged=5,
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

    assert str(outcome.error) == case.message.replace("{id}", kie_task_id)
    assert (outcome.state, outcome.retried) == ("failed", False)
    assert kie_emulator.bill()["charged_total"] == case.charged


@pytest.mark.parametrize("deferrable", [True, False], ids=["deferrable", "poke"])
def test_wait_for_an_unknown_task(deferrable, kie_emulator, monkeypatch):
    monkeypatch.setattr("kie_provider.client.polling.VISIBILITY_GRACE", 0.2)
    kie_task_id = "0" * 32

    outcome = run_task(
        lambda **kw: Flux2TaskSensor(kie_task_id=kie_task_id, poke_interval=0.1, deferrable=deferrable, **kw)
    )

    assert str(outcome.error) == UNKNOWN_TASK.replace("{id}", kie_task_id)
    assert (outcome.state, outcome.retried) == ("failed", False)


def test_wait_while_kie_is_down_is_retried(create, kie_emulator, monkeypatch):
    monkeypatch.setattr("kie_provider.client.polling.FAILURE_PATIENCE", 0.05)
    monkeypatch.setattr("kie_provider.client.polling.LONGEST_FAILURE_DELAY", 0.1)
    kie_task_id = create()
    connect(monkeypatch, kie_emulator, {"host": "http://127.0.0.1:1"})

    outcome = run_task(lambda **kw: Flux2TaskSensor(kie_task_id=kie_task_id, poke_interval=0.1, deferrable=True, **kw))

    assert str(outcome.error).startswith("Cannot reach Kie.ai: GET http://127.0.0.1:1/api/v1/jobs/recordInfo: ")
    assert (outcome.state, outcome.retried) == ("failed", True)
