"""Image-to-image: what an author may give, what goes to Kie, and what is refused before anything does."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath

from kie_provider.client.errors import KieStorageError
from kie_provider.files import inputs
from kie_provider.operators.flux2 import Flux2CreateTaskOperator, Flux2GenerateImageOperator
from tests.support.airflow_inprocess import new_dag, run_dag, run_task
from tests.support.kie import created_bodies, requests_to
from tests.support.results import picture
from tests.support.versions import durable


@pytest.fixture(autouse=True)
def no_notes_of_other_tests(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(inputs.tempfile, "tempdir", str(tmp_path_factory.mktemp("tmp")))


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "in.png"
    path.write_bytes(picture())
    return path


def create(**fields):
    return run_task(lambda **kw: Flux2CreateTaskOperator(**{"prompt": "as a woodcut", **fields}, **kw))


def uploads(kie_emulator):
    return requests_to(kie_emulator, "upload")


def test_paths_of_all_kinds_are_uploaded_and_urls_are_not(kie_emulator, image, tmp_path):
    (tmp_path / "in.jpg").write_bytes(picture("JPEG"))
    (tmp_path / "in.webp").write_bytes(picture("WEBP"))
    url = "https://example.org/public.png"
    outcome = create(
        input_images=[str(image), url, f"file://{tmp_path}/in.jpg", ObjectStoragePath(str(tmp_path / "in.webp"))]
    )

    assert outcome.state == "success", outcome.error
    [order] = created_bodies(kie_emulator)
    assert order["model"] == "flux-2/pro-image-to-image"
    urls = order["input"]["input_urls"]
    assert urls[1] == url
    assert [each.rpartition(".")[2] for each in urls] == ["png", "png", "jpg", "webp"]
    assert [kie_emulator_file(each) for each in (urls[0], urls[2], urls[3])] == [
        (tmp_path / name).read_bytes() for name in ("in.png", "in.jpg", "in.webp")
    ]
    assert len(uploads(kie_emulator)) == 3


def kie_emulator_file(url):
    import requests

    return requests.get(url, timeout=10).content


@pytest.mark.parametrize("as_text", [False, True])
def test_results_of_earlier_tasks(kie_emulator, tmp_path, as_text):
    """A saved file is uploaded; of what was not saved, Kie's own link is used."""
    with new_dag() as dag:
        saved = Flux2GenerateImageOperator(task_id="saved", prompt="a red fox", target=str(tmp_path), poll_interval=0.1)
        unsaved = Flux2GenerateImageOperator(task_id="unsaved", prompt="a blue fox", poll_interval=0.1)
        images = "{{ [ti.xcom_pull('saved'), ti.xcom_pull('unsaved')] }}" if as_text else [saved.output, unsaved.output]
        restyle = Flux2CreateTaskOperator(task_id="restyle", prompt="as a woodcut", input_images=images)
        [saved, unsaved] >> restyle
    outcomes = run_dag(dag)

    assert outcomes["restyle", -1].state == "success", outcomes["restyle", -1].error
    first, second = created_bodies(kie_emulator)[-1]["input"]["input_urls"]
    assert second == outcomes["unsaved", -1].result["urls"][0]
    assert kie_emulator_file(first) == Path(outcomes["saved", -1].result["files"][0]["path"]).read_bytes()
    assert len(uploads(kie_emulator)) == 1


@pytest.mark.parametrize(
    ("model", "images", "sent"),
    [
        ("flux-2/pro", True, "flux-2/pro-image-to-image"),
        ("flux-2/flex", True, "flux-2/flex-image-to-image"),
        ("flux-2/pro", False, "flux-2/pro-text-to-image"),
        ("flux-2/flex", False, "flux-2/flex-text-to-image"),
        ("flux-2/flex-image-to-image", True, "flux-2/flex-image-to-image"),
    ],
)
def test_the_model_follows_the_images(kie_emulator, image, model, images, sent):
    create(model=model, input_images=[image] if images else None)

    assert [order["model"] for order in created_bodies(kie_emulator)] == [sent]


@pytest.mark.parametrize(
    "note",
    [
        "[" * 10_000,
        "NaN",
        "[]",
        '{"url": 5, "at": 5}',
        '{"url": "file:///etc/passwd", "at": 1e99}',
        '{"url": "http://x/"}',
    ],
)
def test_a_note_about_an_upload_that_makes_no_sense_is_written_anew(kie_emulator, image, note):
    create(input_images=image)
    [path] = [each for each in Path(inputs.tempfile.tempdir).rglob("*") if each.is_file()]
    path.write_text(note)
    outcome = create(input_images=image)

    assert outcome.state == "success", outcome.error
    assert len(uploads(kie_emulator)) == 2


@pytest.mark.parametrize("images", [{"files": 5, "urls": 7}, {"files": "x"}, [{"urls": {"x": 1}}]])
def test_a_result_of_other_types_is_named(kie_emulator, images):
    outcome = create(input_images=images)

    assert (outcome.state, outcome.retried) == ("failed", False)
    assert "must be a URL, a path or a result with files or urls" in str(outcome.error)
    assert created_bodies(kie_emulator) == []


def test_a_fifo_is_not_read(kie_emulator, tmp_path):
    os.mkfifo(tmp_path / "in.png")
    outcome = create(input_images=str(tmp_path / "in.png"))

    assert (outcome.state, outcome.retried) == ("failed", False)
    assert "in.png exists, but is not a regular file" in str(outcome.error)


def test_the_same_content_is_uploaded_once(kie_emulator, image, tmp_path):
    copy = tmp_path / "copy.png"
    copy.write_bytes(image.read_bytes())
    with new_dag() as dag:
        Flux2CreateTaskOperator.partial(task_id="it", input_images=[str(image), str(copy)]).expand(
            prompt=["as a woodcut", "as a watercolour", "as a comic"]
        )
    run_dag(dag)
    create(input_images=str(copy))

    assert len(uploads(kie_emulator)) == 1
    assert len({url for order in created_bodies(kie_emulator) for url in order["input"]["input_urls"]}) == 1


def test_but_again_when_it_is_gone_or_old(kie_emulator, image, monkeypatch):
    create(input_images=image)
    monkeypatch.setattr(inputs, "is_there", lambda url: False)
    create(input_images=image)
    monkeypatch.undo()
    monkeypatch.setattr(inputs, "REUSE_SECONDS", 0)
    create(input_images=image)

    assert len(uploads(kie_emulator)) >= 2


@durable
def test_a_retry_reads_the_journal_before_it_uploads(kie_emulator, image, tmp_path):
    """The content counts: an image that was rendered anew with the same bytes is the same order."""
    kie_emulator.fault({"on": "file", "do": "swap", "content_type": "image/png", "body": "<html>"})
    outcome = run_task(
        lambda **kw: Flux2GenerateImageOperator(
            prompt="as a woodcut", input_images=str(image), target=str(tmp_path / "out"), poll_interval=0.1, **kw
        )
    )

    assert (outcome.state, outcome.tries) == ("success", 2)
    assert len(uploads(kie_emulator)) == len(created_bodies(kie_emulator)) == 1


MEDIA = "Kie accepts image/jpeg, image/png, image/webp"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input_images": ["{tmp}/nothing.png"]}, "input_images[0]: '{tmp}/nothing.png' does not exist"),
        ({"input_images": "{tmp}/text.png"}, f"input_images: '{{tmp}}/text.png' is text, or empty; {MEDIA}"),
        ({"input_images": "{tmp}/empty.png"}, f"input_images: '{{tmp}}/empty.png' is text, or empty; {MEDIA}"),
        ({"input_images": "{tmp}/in.gif"}, f"input_images: '{{tmp}}/in.gif' is image/gif; {MEDIA}"),
        ({"input_images": "{tmp}/large.png"}, "'{tmp}/large.png' has more than the 10000000 bytes that Kie accepts"),
        ({"input_images": []}, "input_images: is empty; give 1 to 8 images, or None for text-to-image"),
        ({"input_images": ["{tmp}/in.png"] * 9}, "input_images: 9 given; at most 8 are allowed"),
        (
            {"input_images": [None]},
            "input_images[0]: must be a URL, a path or a result with files or urls, got None: the upstream task "
            "returned nothing",
        ),
        (
            {"input_images": ["https://example.org/my cat.png"]},
            "input_images[0]: must be an http(s) URL that Kie can fetch, got 'https://example.org/my cat.png'",
        ),
        ({"input_images": ["{tmp}/" + "x" * 300]}, "has a component of 300 bytes; 255 are allowed"),
        ({"input_images": ["{tmp}"]}, "input_images[0]: {tmp} exists, but is not a regular file"),
        ({"input_images": [7]}, "input_images[0]: must be a URL, a path or a result with files or urls, got 7"),
        ({"input_images": [{}]}, "input_images[0]: must be a URL, a path or a result with files or urls, got {}"),
        ({"input_images": "gs://bucket/x.png"}, "pip install 'apache-airflow-providers-google'"),
        ({"input_images": "data:image/png;base64,AAAA"}, "does not exist"),
        (
            {"input_images": "{tmp}/in.png", "input_urls": ["https://example.org/1.png"]},
            "input_urls: cannot be used together with input_images",
        ),
        (
            {"input_images": "{tmp}/in.png", "model": "flux-2/pro-text-to-image"},
            "input_images: flux-2/pro-text-to-image takes no images; use flux-2/pro-image-to-image",
        ),
        (
            {"model": "flux-2/flex-image-to-image"},
            "input_urls: flux-2/flex-image-to-image needs 1 to 8 http(s) URLs of images, got none",
        ),
    ],
)
def test_what_is_refused_before_anything_is_sent(kie_emulator, tmp_path, image, fields, message):
    (tmp_path / "text.png").write_text("<html>")
    (tmp_path / "empty.png").write_text("")
    (tmp_path / "in.gif").write_bytes(picture("GIF"))
    (tmp_path / "large.png").write_bytes(picture() + b"\0" * 10_000_000)
    fields = json.loads(json.dumps(fields).replace("{tmp}", str(tmp_path)))

    outcome = create(**fields)

    assert (outcome.state, outcome.retried) == ("failed", False)
    assert message.replace("{tmp}", str(tmp_path)) in str(outcome.error)
    assert kie_emulator.requests() == []


def test_all_problems_at_once(kie_emulator, tmp_path):
    outcome = create(prompt="ab", input_images=[str(tmp_path / "a.png"), str(tmp_path / "b.png")], resolution="8K")

    assert str(outcome.error).count("\n  - ") == 4


def test_a_refused_upload_submits_nothing(kie_emulator, image):
    kie_emulator.fault({"on": "upload", "do": "code", "code": 401, "times": None})
    outcome = create(input_images=image)

    assert (outcome.state, outcome.retried) == ("failed", False)
    assert "did not accept the API key" in str(outcome.error)
    assert created_bodies(kie_emulator) == []


def test_an_upload_that_fails_for_the_moment_is_retried(kie_emulator, image, monkeypatch):
    monkeypatch.setattr("kie_provider.client.retry.backoff", lambda attempt, **_: 0.0)
    kie_emulator.fault({"on": "upload", "do": "answer", "http_status": 503, "times": 4})
    outcome = create(input_images=image)

    assert (outcome.state, outcome.tries) == ("success", 2)
    assert len(created_bodies(kie_emulator)) == 1


def test_a_connection_that_airflow_does_not_find_is_looked_for_again(kie_emulator):
    outcome = create(input_images="s3://nobody@bucket/x.png")

    assert (outcome.state, outcome.tries) == ("failed", 2)
    assert isinstance(outcome.error, KieStorageError)
    assert "names a connection that Airflow does not find" in str(outcome.error)
    assert kie_emulator.requests() == []


def test_a_file_that_changes_meanwhile(kie_emulator, image, monkeypatch):
    from kie_provider.hooks.kie import KieHook

    [read], problems = inputs.read_input_images(str(image))
    assert problems == []
    image.write_bytes(picture(colour=(0, 0, 0)))
    with KieHook() as hook, pytest.raises(KieStorageError, match="changed while it was read"):
        inputs.upload(read, hook)
