"""Uploaded files and direct links."""

from __future__ import annotations

import base64

import pytest

from kie_provider.emulator.files import Files, decode
from kie_provider.emulator.models import Refusal

NOW = 1_789_126_694.5
PNG = b"\x89PNG\r\n\x1a\n..."


def test_upload_is_described_as_recorded_and_kept_for_a_day():
    files = Files()
    upload = files.add(PNG, "images/foxes", "my fox.png", None, NOW)
    assert upload.as_data("http://kie.test") == {
        "success": True,
        "fileName": "my fox.png",
        "filePath": "kieai/100001/images/foxes/my fox.png",
        "downloadUrl": "http://kie.test/kieai/100001/images/foxes/my%20fox.png",
        "fileSize": len(PNG),
        "mimeType": "image/png",
        "uploadedAt": "2026-09-11T11:38:14.500Z",
    }
    assert files.upload(upload.path, NOW + 86_399) is upload
    assert files.upload(upload.path, NOW + 86_400) is None


def test_same_name_replaces():
    files = Files()
    files.add(b"old", "a", "x.bin", None, NOW)
    path = files.add(b"new", "a", "x.bin", None, NOW).path
    assert files.upload(path, NOW).content == b"new"


def test_a_name_is_made_up_with_the_right_extension():
    names = {Files().add(PNG, "a", None, None, NOW).path.rpartition("/")[2] for _ in range(5)}
    assert len(names) == 5
    assert all(name.endswith(".png") for name in names)


@pytest.mark.parametrize("folder", [None, "", "/a", "a/", "a/../b", 7])
def test_bad_folder_is_refused(folder):
    with pytest.raises(Refusal) as caught:
        Files().add(PNG, folder, "x.png", None, NOW)
    assert caught.value.code == 400
    assert "uploadPath" in caught.value.msg


def test_direct_link_works_for_20_minutes():
    files = Files()
    link = files.link("/h/x_1.png", NOW)
    assert link.endswith("/x_1.png")
    assert files.behind(link, NOW + 1199) == "/h/x_1.png"
    assert files.behind(link, NOW + 1200) is None
    assert files.behind("/direct/0/x_1.png", NOW) is None
    assert files.link("/h/x_1.png", NOW) != link


def test_base64_plain_and_as_data_url():
    text = base64.b64encode(PNG).decode()
    assert decode(text) == (PNG, None)
    assert decode(f"data:image/webp;base64,{text}") == (PNG, "image/webp")


@pytest.mark.parametrize("data", [None, "", 7, "not base64!", "data:image/png;base64,???"])
def test_bad_base64_is_refused(data):
    with pytest.raises(Refusal) as caught:
        decode(data)
    assert caught.value.code == 400


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"RIFF....WEBP", "image/webp"),
        (b"?", "application/octet-stream"),
    ],
)
def test_media_type_by_content_when_nothing_else_says(content, kind):
    assert Files().add(content, "a", None, None, NOW).media_type == kind
