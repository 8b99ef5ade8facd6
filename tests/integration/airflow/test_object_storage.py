"""Object storage for real: an S3 server on loopback, Airflow's amazon provider, and an Airflow connection."""

from __future__ import annotations

import hashlib
import json
import logging

import boto3
import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath
from airflow.sdk.io import store
from moto.server import ThreadedMotoServer

from kie_provider.operators.contact_sheet import KieContactSheetOperator
from kie_provider.operators.flux2 import Flux2GenerateImageOperator
from kie_provider.plugin.outputs import TaskOutput
from kie_provider.plugin.pictures import file_of
from kie_provider.plugin.stored import NotShownError, blocks, open_file
from tests.support.airflow_inprocess import new_dag, run_dag, run_task
from tests.support.versions import with_image_page

BUCKET = "pictures"


@pytest.fixture(scope="module")
def s3_server():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """A client of the S3 server, on which an empty bucket awaits ``s3://aws_test@pictures``."""
    keys = {"login": "somebody", "password": "a-secret"}
    extra = {"endpoint_url": s3_server, "region_name": "us-east-1"}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_TEST", json.dumps({"conn_type": "aws", **keys, "extra": extra}))
    monkeypatch.setattr(store, "_STORE_CACHE", {})
    client = boto3.client(
        "s3",
        endpoint_url=s3_server,
        region_name="us-east-1",
        aws_access_key_id=keys["login"],
        aws_secret_access_key=keys["password"],
    )
    client.create_bucket(Bucket=BUCKET)
    yield client
    for key in keys_of(client):
        client.delete_object(Bucket=BUCKET, Key=key)
    client.delete_bucket(Bucket=BUCKET)
    client.close()


def keys_of(client):
    return [each["Key"] for each in client.list_objects_v2(Bucket=BUCKET).get("Contents", [])]


def content(client, key):
    return client.get_object(Bucket=BUCKET, Key=key)["Body"].read()


def generate(**fields):
    defaults = {
        "prompt": "a red fox",
        "poll_interval": 0.1,
        "target": f"s3://aws_test@{BUCKET}/a/{{{{ ti.task_id }}}}/",
    }
    return lambda **kw: Flux2GenerateImageOperator(**{**defaults, **fields}, **kw)


def test_the_listing_is_what_the_results_say(kie_emulator, s3):
    with new_dag() as dag:
        images = Flux2GenerateImageOperator.partial(
            task_id="image", target=f"s3://aws_test@{BUCKET}/day", poll_interval=0.1, deferrable=True
        ).expand(prompt=["a red fox", "a blue fox", "a green fox"])
        KieContactSheetOperator(task_id="sheet", results=images.output, target=f"s3://aws_test@{BUCKET}/day")
    outcomes = run_dag(dag)

    sheet = outcomes["sheet", -1].result
    manifest = json.loads(content(s3, sheet["manifest"].partition(f"{BUCKET}/")[2]))
    files = [file for result in manifest["results"] for file in result["files"]]
    assert len(files) == 3
    assert all(file["path"].startswith(f"s3://aws_test@{BUCKET}/day/") for file in files)
    listed = [file[name] for file in files for name in ("path", "sidecar", "thumbnail")] + [
        sheet[n] for n in ("html", "png", "manifest")
    ]
    assert keys_of(s3) == sorted(path.partition(f"{BUCKET}/")[2] for path in listed)
    for file in files:
        stored = content(s3, file["path"].partition(f"{BUCKET}/")[2])
        assert hashlib.sha256(stored).hexdigest() == file["sha256"]
        assert json.loads(content(s3, file["sidecar"].partition(f"{BUCKET}/")[2]))["file"] == file
        assert ObjectStoragePath(file["path"]).read_bytes() == stored  # for whoever comes next
    head = s3.head_object(Bucket=BUCKET, Key=files[0]["path"].partition(f"{BUCKET}/")[2])
    assert head["ContentType"] == "image/png"


@with_image_page
def test_the_image_page_reads_it(kie_emulator, s3):
    result = run_task(generate()).result
    target = f"s3://aws_test@{BUCKET}/a/it/"
    key = ("a_dag", "a_run", "it", -1)

    def read(path, dag_id, **rendered):
        output = TaskOutput(dag_id, *key[1:], values={"return_value": result}, rendered=rendered)
        file = file_of(output, -1, 0, lambda *_: "no list")
        stream, media_type = open_file(file, getattr(file, path) if hasattr(file, path) else path, output)
        return b"".join(blocks(stream)), media_type

    [file] = result["files"]
    dag_id = json.loads(content(s3, file["sidecar"].partition(f"{BUCKET}/")[2]))["airflow"]["dag_id"]
    for rendered in ({"target": target}, {}):  # Airflow forgets the targets of old runs
        small, media_type = read("thumbnail", dag_id, **rendered)
        assert (small, media_type) == (content(s3, file["thumbnail"].partition(f"{BUCKET}/")[2]), "image/jpeg")
        assert hashlib.sha256(read("path", dag_id, **rendered)[0]).hexdigest() == file["sha256"]
        with pytest.raises(NotShownError, match="No JSON file beside it says that this DAG saved it"):
            read("path", "another_dag", **rendered)
    for elsewhere in (f"s3://aws_test@{BUCKET}/a/it2", f"s3://other@{BUCKET}/a/it", "/data"):
        with pytest.raises(NotShownError, match=r"not below the target|does not find"):
            read("path", dag_id, target=elsewhere)
    s3.delete_object(Bucket=BUCKET, Key=file["thumbnail"].partition(f"{BUCKET}/")[2])
    with pytest.raises(NotShownError, match="The file does not exist"):
        read("thumbnail", dag_id, target=target)


def test_a_second_time_writes_nothing(kie_emulator, s3):
    first = run_task(generate())
    before = {key: s3.head_object(Bucket=BUCKET, Key=key)["LastModified"] for key in keys_of(s3)}
    from kie_provider.operators.results import KieSaveResultOperator

    target = f"s3://aws_test@{BUCKET}/a/it"
    second = run_task(lambda **kw: KieSaveResultOperator(result=first.result["kie_task_id"], target=target, **kw))

    assert second.result["files"] == first.result["files"]
    assert {key: s3.head_object(Bucket=BUCKET, Key=key)["LastModified"] for key in keys_of(s3)} == before
    [name] = [key for key in before if key.endswith("png")]
    s3.put_object(Bucket=BUCKET, Key=name, Body=b"edited by hand")
    third = run_task(lambda **kw: KieSaveResultOperator(result=first.result["kie_task_id"], target=target, **kw))

    assert (third.state, third.retried) == ("failed", False)
    assert f"{target}/{name.rpartition('/')[2]} exists with other content" in str(third.error)
    assert content(s3, name) == b"edited by hand"


def test_images_in_the_store_are_input(kie_emulator, s3):
    saved = run_task(generate())
    path = saved.result["files"][0]["path"]
    outcome = run_task(generate(prompt="as a woodcut", input_images=path, target=None))

    assert outcome.state == "success", outcome.error
    [url] = outcome.result["input"]["input_urls"]
    assert saved.result["files"][0]["sha256"][:32] in url


def test_no_such_bucket_costs_nothing(kie_emulator, s3):
    outcome = run_task(generate(target="s3://aws_test@nosuchbucket/a"))

    assert (outcome.state, outcome.retried) == ("failed", False)
    assert "The results cannot be saved there: target s3://aws_test@nosuchbucket/a" in str(outcome.error)
    assert kie_emulator.bill()["tasks"] == []


@pytest.mark.parametrize(
    "fields",
    [
        {"file_name": "{{ 'std::vector' }}-{kie_task_id}.{extension}"},
        {"file_name": "s3:/b/{kie_task_id}.{extension}"},
        {"file_name": "{{ '' }}/{kie_task_id}.{extension}"},
        {"file_name": ("x" * 190 + "/") * 6 + "{kie_task_id}.{extension}"},
        {"target": f"s3://aws_test@{BUCKET}/std::vector"},
        {"target": f"s3://aws_test@{BUCKET}/a\0"},
    ],
)
def test_a_name_that_would_lead_elsewhere_costs_nothing(kie_emulator, s3, fields):
    outcome = run_task(generate(**fields))

    assert (outcome.state, outcome.retried) == ("failed", False)
    assert "The results cannot be saved there" in str(outcome.error)
    assert kie_emulator.bill()["tasks"] == []
    assert keys_of(s3) == []


def test_a_store_that_is_away_costs_nothing_and_is_tried_again(kie_emulator, s3, monkeypatch):
    extra = {"endpoint_url": "http://127.0.0.1:1", "config_kwargs": {"retries": {"max_attempts": 0}}}
    away = {"conn_type": "aws", "login": "x", "password": "a-secret", "extra": {**extra, "region_name": "us-east-1"}}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_TEST", json.dumps(away))
    outcome = run_task(generate())

    assert (outcome.state, outcome.retried) == ("failed", True)
    assert "The storage failed: target s3://aws_test@pictures/a/it" in str(outcome.error)
    assert "a-secret" not in str(outcome.error)
    assert kie_emulator.bill()["tasks"] == []
