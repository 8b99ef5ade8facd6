"""Every code of Kie's, said by Kie or by a gateway, to every kind of request: what the client makes of it.

The emulator answers over HTTP, and its bill says what was really created.
"""

from __future__ import annotations

import pytest

from kie_provider.client import errors
from kie_provider.client.codes import ERROR_BY_CODE
from kie_provider.emulator import KieEmulator
from tests.support.api_key import error_of
from tests.support.servers import HTML

MODEL, INPUT = "flux-2/pro-text-to-image", {"prompt": "a cat", "aspect_ratio": "1:1", "resolution": "1K"}
#: What a look-up costs when the error may pass; what createTask costs when Kie asks to come again.
LOOK_UPS, SUBMISSIONS = 4, 6

# Code | the error, when the code is in Kie's JSON | createTask then | the error, when it is only the HTTP status.
# createTask is "refused" (for good: nothing was created), "refused for now" (sent again for twelve seconds), or "in
# doubt" (KieSubmitUnknownError, never sent again). A mere HTTP status leaves it in doubt, but for NOT_PASSED_ON.
TABLE = """
400 | KieValidationError          | refused         | KieValidationError
401 | KieAuthError                | refused         | KieAuthError
402 | KieInsufficientCreditsError | refused         | KieValidationError
404 | KieNotFoundError            | refused         | KieValidationError
408 | KieTaskFailedError          | in doubt        | KieServerError
422 | KieValidationError          | refused         | KieValidationError
429 | KieRateLimitError           | refused for now | KieRateLimitError
430 | KieError                    | in doubt        | KieValidationError
433 | KieQuotaError               | refused         | KieValidationError
455 | KieMaintenanceError         | refused for now | KieValidationError
500 | KieServerError              | in doubt        | KieServerError
501 | KieTaskFailedError          | in doubt        | KieServerError
502 | KieServerError              | in doubt        | KieServerError
505 | KieFeatureDisabledError     | refused         | KieServerError
599 | KieServerError              | in doubt        | KieServerError
"""
ROWS = {int(row[0]): row[1:] for line in TABLE.split("\n") if (row := [cell.strip() for cell in line.split("|")])[0]}
NOT_PASSED_ON = (401, 404)
TRANSIENT = {"KieRateLimitError", "KieMaintenanceError", "KieServerError"}

#: How a code comes: the fault that sends it.
WAYS = {
    "HTTP 200, Kie's JSON": lambda code: {"do": "code", "code": code},
    "HTTP status, Kie's JSON": lambda code: {"do": "code", "code": code, "http_status": code},
    "HTTP status, a web page": lambda code: {"do": "answer", "http_status": code, "body": HTML},
}
LOOK_UP_CALLS = {
    "recordInfo": lambda client: client.get_task("ee9c2715375b7837f8bb51d641ff5863"),
    "credit": lambda client: client.get_credits(),
}


@pytest.fixture(scope="module")
def server():
    with KieEmulator() as kie:
        yield kie


@pytest.fixture
def kie(server):
    server.reset()
    return server


@pytest.fixture
def client(kie, connect):
    return connect(kie.url, api_key=kie.api_key)


def test_the_table_has_every_code_that_the_client_knows():
    assert set(ERROR_BY_CODE) < set(ROWS)
    assert {code for code in ROWS if code not in ERROR_BY_CODE} == {430, 502, 599}


@pytest.mark.parametrize("code", ROWS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("on", LOOK_UP_CALLS)
def test_a_look_up(on, way, code, kie, client, pauses):
    said_by_kie, _, said_by_gateway = ROWS[code]
    expected = said_by_gateway if "web page" in way else said_by_kie
    kie.fault({"on": on, "times": None, **WAYS[way](code)})

    error = error_of(LOOK_UP_CALLS[on], client)

    assert (type(error).__name__, error.is_transient) == (expected, expected in TRANSIENT)
    assert error.code == (None if "web page" in way else code)
    assert error.http_status == (200 if "200" in way else code)
    assert len(kie.requests()) == len(pauses) + 1 == (LOOK_UPS if expected in TRANSIENT else 1)


@pytest.mark.parametrize("code", ROWS)
@pytest.mark.parametrize("way", WAYS)
def test_createtask(way, code, kie, client, pauses):
    said_by_kie, submission, said_by_gateway = ROWS[code]
    if "web page" in way:
        said_by_kie, submission = said_by_gateway, "refused" if code in NOT_PASSED_ON else "in doubt"
    expected = "KieSubmitUnknownError" if submission == "in doubt" else said_by_kie
    kie.fault({"on": "createTask", "times": None, **WAYS[way](code)})

    error = error_of(client.create_task, MODEL, INPUT)

    assert (type(error).__name__, error.is_transient) == (expected, submission == "refused for now")
    assert error.code == (None if "web page" in way else code)
    assert len(kie.requests()) == len(pauses) + 1 == (SUBMISSIONS if submission == "refused for now" else 1)
    assert kie.bill()["tasks"] == []


@pytest.mark.parametrize("code", [code for code, row in ROWS.items() if row[1] == "refused for now"])
def test_createtask_that_is_refused_for_now_is_paid_once(code, kie, client):
    kie.fault({"on": "createTask", "do": "code", "code": code, "times": 2})
    kie_task_id = client.create_task(MODEL, INPUT)
    assert [(task["taskId"], task["credits"]) for task in kie.bill()["tasks"]] == [(kie_task_id, 5.0)]
    assert len(kie.requests()) == 3


#: What can become of the answer after the task was created, and paid.
MISHAPS = {
    "no answer": {"do": "lost_answer"},
    "half an answer": {"do": "truncate"},
    "no answer in time": {"do": "hold"},
    "an answer that comes too late": {"do": "slow", "delay_seconds": 1},
    "Kie's JSON without an id": {"do": "swap", "json": {"code": 200, "msg": "success", "data": None}},
    **{
        f"{way}, {code}": {"do": "swap", **fault}
        for code, row in ROWS.items()
        for way, fault in {
            "Kie's JSON": {"json": {"code": code, "msg": "Kie's words", "data": None}},
            "a web page": {"http_status": code, "body": HTML},
        }.items()
        if row[1] == "in doubt" or (way == "a web page" and code not in NOT_PASSED_ON)
    },
    **{
        f"Kie's JSON with an id, {code}": {"do": "swap", "json": {"code": code, "msg": "no", "data": {"taskId": "e7"}}}
        for code in ROWS
    },
}


@pytest.mark.parametrize("name", MISHAPS)
def test_a_task_that_was_created_is_never_ordered_again(name, kie, connect, pauses):
    kie.fault({"on": "createTask", "times": None, **MISHAPS[name]})
    client = connect(kie.url, api_key=kie.api_key, request_timeout=0.2 if " time" in name or " late" in name else 5.0)

    error = error_of(client.create_task, MODEL, INPUT)

    assert type(error) is errors.KieSubmitUnknownError
    assert not error.is_transient
    assert [task["credits"] for task in kie.bill()["tasks"]] == [5.0]
    assert (len(kie.requests()), pauses) == (1, [])
