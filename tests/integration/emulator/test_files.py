"""Result files, uploads and download links."""

from __future__ import annotations

import base64
import io

import pytest
import requests
from PIL import Image

from kie_provider.emulator import KieEmulator
from kie_provider.emulator.images import SIZES, PillowMissingError, render
from tests.support.emulator_client import Client

DAY = 86_400


def png(size=(60, 40)) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize(size).save(out, "PNG")
    return out.getvalue()


def size_of(answer: requests.Response) -> tuple[int, int]:
    with Image.open(io.BytesIO(answer.content)) as image:
        return image.size


def upload(client: Client, content: bytes | None = None, **fields) -> dict:
    data = base64.b64encode(png() if content is None else content).decode()
    body = {"base64Data": data, "uploadPath": "images", "fileName": "in.png", **fields}
    return client.send("POST", "/api/file-base64-upload", json=body).json()


@pytest.fixture
def ready(timed, clock) -> str:
    """URL of a result."""
    task_id = timed.new_task("a red fox", aspect_ratio="3:2")
    clock.now += 15
    return timed.url_of(task_id)


def test_a_result_is_public_and_has_the_size_asked_for(timed, ready):
    answer = timed.get(ready)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/png")
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    assert size_of(answer) == SIZES["3:2"]
    assert timed.get(ready).content == answer.content
    assert [r["headers"]["authorization"] for r in timed.kie.requests() if r["path"].startswith("/h/")] == [None] * 2


def test_the_same_prompt_again_gives_another_picture(timed, clock):
    tasks = [timed.new_task("a red fox", aspect_ratio="3:2") for _ in range(2)]
    clock.now += 15
    one, other = (timed.get(timed.url_of(task)).content for task in tasks)
    assert one != other


def test_jpeg_results(clock):
    with KieEmulator(clock=clock, image_format="jpeg", generating_seconds=0) as kie:
        client = Client(kie)
        url = client.url_of(client.new_task())
        assert url.endswith(".jpg")
        answer = client.get(url)
    assert answer.headers["Content-Type"] == "image/jpeg"
    assert answer.content.startswith(b"\xff\xd8\xff")


def test_there_is_no_file_before_the_end_nor_under_another_name(timed, clock):
    task_id = timed.new_task()
    url = f"{timed.kie.url}/h/{task_id}_{int(clock.now) + 15}.png"
    assert timed.get(url).status_code == 404
    clock.now += 15
    assert timed.url_of(task_id) == url
    assert timed.get(url).status_code == 200
    assert timed.get(url.replace(".png", ".jpg")).status_code == 404
    assert timed.get(f"{timed.kie.url}/h/{'0' * 32}_1.png").status_code == 404


def test_result_urls_expire_and_a_fresh_link_can_be_had_for_14_days(timed, ready, clock):
    original = timed.get(ready).content
    clock.now += DAY - 1
    assert timed.get(ready).status_code == 200
    clock.now += 1
    assert timed.get(ready).status_code == 404
    link = timed.direct(ready)
    assert (link["code"], link["msg"]) == (200, "success")
    assert timed.get(link["data"]).content == original
    clock.now += 20 * 60
    assert timed.get(link["data"]).status_code == 404
    clock.now += 13 * DAY
    assert timed.direct(ready) == {"code": 422, "msg": "url is wrong", "data": None}


def test_result_lifetime_can_be_set(clock):
    with KieEmulator(clock=clock, result_seconds=5, generating_seconds=0) as kie:
        client = Client(kie)
        url = client.url_of(client.new_task())
        clock.now += 4
        assert client.get(url).status_code == 200
        clock.now += 1
        assert client.get(url).status_code == 404


@pytest.mark.parametrize(
    "url", ["https://cdn.example.com/a.png", "{kie}/h/none_1.png", "{kie}", "nonsense", "", None, 7]
)
def test_download_url_refuses_what_is_not_its_own(client, url):
    body = {"url": url.format(kie=client.kie.url) if isinstance(url, str) else url}
    answer = client.send("POST", "/api/v1/common/download-url", json=body).json()
    assert answer == {"code": 422, "msg": "url is wrong", "data": None}


def test_base64_upload_comes_back_byte_by_byte(client):
    answer = upload(client, png(), fileName="my fox.png")
    assert (answer["success"], answer["code"], answer["msg"]) == (True, 200, "File uploaded successfully")
    data = answer["data"]
    assert (data["fileName"], data["fileSize"], data["mimeType"]) == ("my fox.png", len(png()), "image/png")
    got = client.get(data["downloadUrl"])
    assert (got.content, got.headers["Content-Type"]) == (png(), "image/png")
    assert client.direct(data["downloadUrl"])["code"] == 200


def test_uploads_are_gone_after_a_day(timed, clock):
    url = upload(timed)["data"]["downloadUrl"]
    clock.now += DAY - 1
    assert timed.get(url).status_code == 200
    clock.now += 1
    assert timed.get(url).status_code == 404
    assert timed.direct(url)["code"] == 422


@pytest.mark.parametrize(
    ("fields", "msg"),
    [
        ({"base64Data": None}, "base64Data is required"),
        ({"base64Data": "?"}, "base64Data is not valid base64"),
        ({"uploadPath": None}, "uploadPath is required"),
        ({"uploadPath": "/images/"}, "uploadPath must have no slash at its ends and no '..'"),
    ],
)
def test_a_wrong_base64_upload_is_refused(client, fields, msg):
    assert upload(client, **fields) == {"success": False, "code": 400, "msg": msg, "data": None}


def test_stream_upload(client):
    files = {"file": ("local.png", png(), "image/png")}
    sent = {"uploadPath": "images", "fileName": "in.png"}
    data = client.send("POST", "/api/file-stream-upload", files=files, data=sent).json()["data"]
    assert (data["filePath"], data["mimeType"]) == ("kieai/100001/images/in.png", "image/png")
    assert client.get(data["downloadUrl"]).content == png()
    assert client.kie.requests()[0]["json"] is None


def test_stream_upload_above_the_default_limit_of_the_http_server(client):
    files = {"file": ("big.bin", b"x" * (3 * 2**20), "application/octet-stream")}
    data = client.send("POST", "/api/file-stream-upload", files=files, data={"uploadPath": "a"}).json()["data"]
    assert data["fileSize"] == 3 * 2**20


def test_stream_upload_needs_a_file(client):
    answer = client.send("POST", "/api/file-stream-upload", files={"uploadPath": (None, "images")}).json()
    assert answer == {"success": False, "code": 400, "msg": "file is required", "data": None}


def test_url_upload_of_a_result_and_of_an_upload(timed, ready):
    for url in (ready, upload(timed)["data"]["downloadUrl"]):
        body = {"fileUrl": url, "uploadPath": "copies"}
        data = timed.send("POST", "/api/file-url-upload", json=body).json()["data"]
        assert data["fileName"] == url.rpartition("/")[2]
        assert timed.get(data["downloadUrl"]).content == timed.get(url).content


@pytest.mark.parametrize("url", ["https://example.com/a.png", "{kie}/h/none.png", None, ""])
def test_url_upload_of_anything_else_is_refused(client, url):
    url = url.format(kie=client.kie.url) if url else url
    answer = client.send("POST", "/api/file-url-upload", json={"fileUrl": url, "uploadPath": "copies"}).json()
    assert (answer["success"], answer["code"], answer["data"]) == (False, 400, None)


def edit(client: Client, url: str, clock, **fields) -> requests.Response:
    task_id = client.new_task("an edit", "flux-2/pro-image-to-image", input_urls=[url], **fields)
    clock.now += 15
    return client.get(client.url_of(task_id))


def test_image_to_image_shows_its_input(timed, clock):
    one = edit(timed, upload(timed)["data"]["downloadUrl"], clock)
    other = edit(timed, "https://example.com/elsewhere.png", clock)
    assert one.status_code == other.status_code == 200
    assert one.content != other.content


@pytest.mark.parametrize(("size", "ratio"), [((160, 90), "16:9"), ((90, 160), "9:16"), ((100, 100), "1:1")])
def test_auto_takes_the_ratio_of_the_input(timed, clock, size, ratio):
    url = upload(timed, png(size))["data"]["downloadUrl"]
    assert size_of(edit(timed, url, clock, aspect_ratio="auto")) == SIZES[ratio]


def test_a_result_can_be_edited_in_turn(timed, clock, ready):
    assert size_of(edit(timed, ready, clock, aspect_ratio="auto")) == SIZES["3:2"]


def test_own_files_are_known_by_any_name_of_the_machine(timed, clock, ready):
    by_name = ready.replace("127.0.0.1", "localhost")
    assert timed.direct(by_name)["code"] == 200
    assert size_of(edit(timed, by_name, clock, aspect_ratio="auto")) == SIZES["3:2"]


def test_without_pillow_the_file_host_says_what_to_install(timed, ready, monkeypatch):
    def missing(*_args):
        raise PillowMissingError

    assert render is not missing
    monkeypatch.setattr("kie_provider.emulator.images.render", missing)
    answer = timed.get(ready)
    assert (answer.status_code, answer.text) == (501, str(PillowMissingError()))
