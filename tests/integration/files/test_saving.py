"""From a result dict to files, over real sockets: what is saved, what is refused, and what a second time does."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pendulum
import pytest
from PIL import Image

from kie_provider.client.errors import (
    KieFileError,
    KieResultError,
    KieStorageError,
    KieTargetError,
)
from kie_provider.files import storage
from kie_provider.hooks.kie import KieHook
from tests.support.results import KIE_TASK_ID, picture, result_of
from tests.support.servers import ScriptedServer, hang, reply, reset, truncated

PNG = picture()
IMAGE = {"Content_Type": "image/png"}
VIDEO = b"\0\0\0\x18ftypmp42" + b"\xff" * 1000
PAGE = "<html><body>抱歉，文件已过期</body></html>"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def make_socket(path):
    os.mknod(path, stat.S_IFSOCK | 0o600)  # socket.bind() allows no long paths


def sha256(content):
    return hashlib.sha256(content).hexdigest()


class TestSuccess:
    def test_the_file_its_sidecar_and_the_result(self, save, out):
        with ScriptedServer(reply(PNG, **IMAGE)) as host:
            result = save(result_of(f"{host.url}/1"))

        image, sidecar, thumbnail = (out / f"{KIE_TASK_ID}-0.{each}" for each in ("png", "json", "thumb.jpg"))
        assert image.read_bytes() == PNG
        assert names(out) == [sidecar.name, image.name, thumbnail.name]
        [file] = result["files"]
        assert file == {
            "path": str(image),
            "sha256": sha256(PNG),
            "stored_sha256": sha256(PNG),
            "bytes": len(PNG),
            "media_type": "image/png",
            "width": 1024,
            "height": 1024,
            "sidecar": str(sidecar),
            "thumbnail": str(thumbnail),
        }
        with Image.open(thumbnail) as small:
            assert (small.format, small.size) == ("JPEG", (320, 320))
        facts = json.loads(sidecar.read_text())
        assert abs(time.time() - pendulum.parse(facts.pop("saved_at")).timestamp()) < 60
        assert re.fullmatch(r"airflow-provider-kie \d+\.\d+\.\d+.*", facts.pop("provider"))
        assert facts == {
            "v": 1,
            "kie_task_id": KIE_TASK_ID,
            "index": 0,
            "model": "flux-2/pro-text-to-image",
            "prompt": "a red fox",
            "input": {"prompt": "a red fox", "aspect_ratio": "1:1", "resolution": "1K"},
            "url": f"{host.url}/1",
            "credits": 5.0,
            "usd": 0.025,
            "created_at": "2026-11-22T10:00:00Z",
            "completed_at": "2026-11-22T10:00:12Z",
            "cost_seconds": 12,
            "file": file,
            "embedded_provenance": False,
            "digital_source_type": "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
            "airflow": {"dag_id": "a_dag", "run_id": "a_run", "task_id": "a_task", "map_index": 3, "try_number": 2},
        }

    @pytest.mark.parametrize(
        ("body", "media_type", "extension"),
        [
            (picture("JPEG"), "image/jpeg", "jpg"),
            (picture("WEBP"), "image/webp", "webp"),
            (b"\0\0\0\x18ftypmp42" + b"\xff" * 1000, "video/mp4", "mp4"),
            (b"ID3\x04" + b"\xff" * 1000, "audio/mpeg", "mp3"),
            (b"\x80\x02\xff\xfe" * 1000, "application/octet-stream", "bin"),
        ],
    )
    def test_the_content_names_the_type(self, save, out, body, media_type, extension):
        with ScriptedServer(reply(body, Content_Type="image/png")) as host:
            [file] = save(result_of(host.url, model="veo3"))["files"]

        assert (file["media_type"], file["path"]) == (media_type, str(out / f"{KIE_TASK_ID}-0.{extension}"))
        assert (file["width"] is None) == (not media_type.startswith("image"))
        assert (file["thumbnail"] is None) == (not media_type.startswith("image"))
        assert Path(file["path"]).read_bytes() == body

    def test_several_files_and_a_pattern_with_folders(self, save, out):
        bodies = [picture(colour=(n, n, n)) for n in range(6)]
        with ScriptedServer(*(reply(body, **IMAGE) for body in bodies)) as host:
            result = save(
                result_of(*(f"{host.url}/{n}" for n in range(6))), file_name="{kie_task_id}/no {index:03}.{extension}"
            )

        assert [Path(file["path"]).relative_to(out).as_posix() for file in result["files"]] == [
            f"{KIE_TASK_ID}/no {n:03}.png" for n in range(6)
        ]
        assert {file["sha256"] for file in result["files"]} == {sha256(body) for body in bodies}

    def test_credits_that_kie_does_not_name_come_from_the_table(self, save, out):
        task_input = {"prompt": "a red fox", "aspect_ratio": "1:1", "resolution": "2K"}
        with ScriptedServer(reply(picture(size=(2048, 2048)), **IMAGE)) as host:
            save(result_of(host.url, credits_consumed=None, input=task_input, model="flux-2/flex-text-to-image"))

        facts = json.loads((out / f"{KIE_TASK_ID}-0.json").read_text())
        assert (facts["credits"], facts["usd"]) == (24.0, 0.12)

    def test_a_redacted_prompt_is_nowhere(self, save, out):
        with ScriptedServer(reply(PNG, **IMAGE)) as host:
            save(result_of(host.url), redact_prompt=True, embed_provenance=True)

        facts = json.loads((out / f"{KIE_TASK_ID}-0.json").read_text())
        assert (facts["prompt"], facts["prompt_sha256"]) == (None, sha256(b"a red fox"))
        assert all(b"red fox" not in path.read_bytes() for path in out.iterdir())

    def test_embedded_provenance_leaves_the_pixels(self, save, out):
        with ScriptedServer(*[reply(PNG, **IMAGE)] * 2) as host:
            [file] = save(result_of(host.url), embed_provenance=True)["files"]
            first = Path(file["path"]).read_bytes()
            save(result_of(host.url), embed_provenance=True, target=str(out / "again"))

        assert first == (out / "again" / f"{KIE_TASK_ID}-0.png").read_bytes()
        assert file["sha256"] == sha256(PNG)
        assert file["stored_sha256"] == sha256(first) != sha256(PNG)
        assert file["bytes"] == len(first)
        with Image.open(file["path"]) as image:
            assert image.getcolors() == [(1024 * 1024, (10, 200, 90))]
            assert "a red fox" in image.text.values()
        assert b"trainedAlgorithmicMedia" in first

    @pytest.mark.parametrize("model", [None, "", 7])
    def test_a_result_that_names_no_model(self, save, model):
        with ScriptedServer(reply(PNG, **IMAGE)) as host:
            [file] = save(result_of(host.url, model=model), embed_provenance=True)["files"]

        content = Path(file["path"]).read_bytes()
        assert b"unknown model (Kie.ai)" in content
        assert b"None" not in content
        assert json.loads(Path(file["sidecar"]).read_text())["model"] == model


class TestSecondTime:
    def test_what_is_there_is_not_downloaded_again(self, save, out):
        with ScriptedServer(reply(PNG, **IMAGE)) as host:
            first = save(result_of(host.url))
            stats = {path: path.stat().st_mtime_ns for path in out.iterdir()}
            assert save(result_of(host.url)) == first
        assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == stats

    def test_only_what_is_missing_is_downloaded(self, save, out):
        bodies = [picture(colour=(n, n, n)) for n in range(3)]
        with ScriptedServer(*(reply(body, **IMAGE) for body in bodies), reply(bodies[1], **IMAGE)) as host:
            urls = [f"{host.url}/{n}" for n in range(3)]
            # One after the other, so that each link delivers its own file.
            first = [save(result_of(*urls[: n + 1]))["files"] for n in range(3)][-1]
            Path(first[1]["path"]).unlink()
            again = save(result_of(*urls))["files"]
        assert again == first
        assert [request.target for request in host.requests] == ["/0", "/1", "/2", "/1"]

    def test_a_file_without_its_sidecar_is_kept(self, save, out):
        """As a kill between the two leaves it."""
        with ScriptedServer(*[reply(PNG, **IMAGE)] * 2) as host:
            [file] = save(result_of(host.url))["files"]
            Path(file["sidecar"]).unlink()
            written = Path(file["path"]).stat().st_mtime_ns
            assert save(result_of(host.url))["files"] == [file]
        assert Path(file["path"]).stat().st_mtime_ns == written
        assert names(out) == [f"{KIE_TASK_ID}-0.json", f"{KIE_TASK_ID}-0.png", f"{KIE_TASK_ID}-0.thumb.jpg"]

    @pytest.mark.parametrize(
        "damage",
        [
            *(b"", b"{", b"[]", b"{}", b'{"file": {"path": 1}}', b"null", b"\xff\xfe", b"NaN", b'"text"', b"[[]]"),
            b"[" * 10_000 + b"]" * 10_000,
            b'{"file":' * 10_000,
            b"9" * 5000,
        ],
    )
    def test_a_damaged_sidecar_is_written_anew(self, save, damage):
        with ScriptedServer(*[reply(PNG, **IMAGE)] * 2) as host:
            [file] = save(result_of(host.url))["files"]
            Path(file["sidecar"]).write_bytes(damage)
            assert save(result_of(host.url))["files"] == [file]
        assert json.loads(Path(file["sidecar"]).read_text())["file"] == file

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("width", float("nan")),
            ("height", [1024]),
            ("bytes", "many"),
            ("sha256", None),
            ("media_type", ["image/png"]),
            ("media_type", "../../etc/passwd"),
            ("path", 5),
            ("stored_sha256", {}),
            ("thumbnail", 5),
        ],
    )
    def test_so_is_one_with_other_types(self, save, field, value):
        with ScriptedServer(*[reply(PNG, **IMAGE)] * 2) as host:
            [file] = save(result_of(host.url))["files"]
            sidecar = Path(file["sidecar"])
            sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "file": {**file, field: value}}))
            assert save(result_of(host.url))["files"] == [file]
        assert json.loads(sidecar.read_text())["file"] == file

    def test_a_path_in_a_sidecar_is_not_believed(self, save):
        with ScriptedServer(reply(PNG, **IMAGE)) as host:
            [file] = save(result_of(host.url))["files"]
            sidecar = Path(file["sidecar"])
            told = {**file, "path": "/etc/passwd", "sidecar": "/etc/shadow", "thumbnail": "/etc/group"}
            sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "file": told}))
            assert save(result_of(host.url))["files"] == [file]

    @pytest.mark.parametrize("ending", ["png", "json"])
    @pytest.mark.parametrize(
        "make",
        [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir, make_socket],
        ids=["a FIFO", "a device", "a folder", "a socket"],
    )
    def test_what_is_no_regular_file_is_not_read(self, save, out, ending, make):
        out.mkdir()
        make(out / f"{KIE_TASK_ID}-0.{ending}")
        with (
            ScriptedServer(reply(PNG, **IMAGE)) as host,
            pytest.raises(KieTargetError, match=rf"-0.{ending} exists, but is not a regular file; remove it"),
        ):
            save(result_of(host.url))

    def test_a_file_of_another_kind_that_an_earlier_release_saved_is_no_image(self, save, out):
        with ScriptedServer(reply(VIDEO), reply(PNG, **IMAGE)) as host:
            save(result_of(host.url, model="veo3"))
            [file] = save(result_of(host.url))["files"]
        assert file["path"] == str(out / f"{KIE_TASK_ID}-0.png")

    def test_a_file_that_has_changed_is_not_overwritten(self, save):
        with ScriptedServer(*[reply(PNG, **IMAGE)] * 3) as host:
            [file] = save(result_of(host.url))["files"]
            Path(file["path"]).write_bytes(b"edited by hand")
            with pytest.raises(KieTargetError, match="exists with other content") as caught:
                save(result_of(host.url))
            assert Path(file["path"]).read_bytes() == b"edited by hand"
            assert caught.value.kie_task_id == KIE_TASK_ID
            assert save(result_of(host.url), overwrite=True)["files"] == [file]
        assert Path(file["path"]).read_bytes() == PNG

    def test_other_options_are_another_file(self, save):
        with ScriptedServer(*[reply(PNG, **IMAGE)] * 2) as host:
            save(result_of(host.url))
            with pytest.raises(KieTargetError, match="exists with other content"):
                save(result_of(host.url), embed_provenance=True)


class TestThumbnail:
    def test_what_an_earlier_release_saved_is_kept_without_one(self, save, out):
        with ScriptedServer(reply(PNG, **IMAGE)) as host:
            [file] = save(result_of(host.url))["files"]
            (out / f"{KIE_TASK_ID}-0.thumb.jpg").unlink()
            sidecar = Path(file["sidecar"])
            told = {name: value for name, value in file.items() if name != "thumbnail"}
            sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "file": told}))
            assert save(result_of(host.url))["files"] == [{**file, "thumbnail": None}]

    def test_a_file_that_has_its_name_is_left_alone(self, save, out, caplog):
        out.mkdir()
        (out / f"{KIE_TASK_ID}-0.thumb.jpg").write_bytes(b"mine")
        with ScriptedServer(*[reply(PNG, **IMAGE)] * 2) as host:
            [file] = save(result_of(host.url))["files"]
            assert (file["thumbnail"], (out / f"{KIE_TASK_ID}-0.thumb.jpg").read_bytes()) == (None, b"mine")
            assert f"No thumbnail of {file['path']} was stored: " in caplog.text
            Path(file["sidecar"]).unlink()
            [file] = save(result_of(host.url), overwrite=True)["files"]
        assert Path(file["thumbnail"]).read_bytes().startswith(b"\xff\xd8\xff")

    @pytest.mark.parametrize("fails", ["kie_provider.files.saving.shrink", "kie_provider.files.saving.storage.put"])
    def test_without_one_the_image_is_saved_all_the_same(self, save, monkeypatch, caplog, fails):
        put = storage.put

        def fail(local, target=None):
            if target is None or target.name.endswith(".thumb.jpg"):
                raise RuntimeError("no thumbnail today")
            put(local, target)

        monkeypatch.setattr(fails, fail)
        with ScriptedServer(reply(PNG, **IMAGE)) as host:
            [file] = save(result_of(host.url))["files"]
            assert file["thumbnail"] is None
            assert "no thumbnail today" in caplog.text
            assert save(result_of(host.url))["files"] == [file]
        assert Path(file["path"]).read_bytes() == PNG

    @pytest.mark.parametrize("name", ["cover.thumb.{extension}", "{kie_task_id}-{index}.THUMB.{extension}"])
    def test_no_result_has_the_name_of_one(self, save, name):
        with pytest.raises(KieTargetError, match=r"file_name: .* ends like the name of a thumbnail"):
            save(result_of("http://127.0.0.1:1/never-asked"), file_name=name)


BROKEN = {
    "HTML": (reply("<!doctype html><p>expired", **IMAGE), "it begins with '<!doctype html><p>expired'"),
    "JSON": (reply('{"code": 404}', **IMAGE), """it begins with '{"code": 404}'"""),
    "text": (reply("Not found", **IMAGE), "it is not an image, video or audio file"),
    "UTF-16": (reply("Not found".encode("utf-16"), **IMAGE), "it is not an image, video or audio file"),
    "XML": (reply('<?xml version="1.0"?><Error>', **IMAGE), "it is not an image, video or audio file"),
    "cut UTF-8": (reply("ä".encode() * 5000, **IMAGE), "it is not an image, video or audio file"),
    "half a PNG": (reply(PNG[: len(PNG) // 2], **IMAGE), "it is a truncated PNG file"),
    "PNG without its end": (reply(PNG[:-12], **IMAGE), "it is a truncated PNG file"),
    "PNG signature": (reply(PNG[:8], **IMAGE), "it is a truncated PNG file"),
    "a flipped bit": (
        reply(PNG[:1000] + bytes([PNG[1000] ^ 1]) + PNG[1001:], **IMAGE),
        "it is a damaged PNG file (wrong checksum of chunk b'IDAT')",
    ),
    "half a JPEG": (reply(picture("JPEG")[:2000], **IMAGE), "it is a truncated JPEG file"),
    "JPEG signature": (reply(b"\xff\xd8\xff\xe0", **IMAGE), "it is a truncated JPEG file"),
    "half a WebP": (reply(picture("WEBP")[:-20], **IMAGE), "it is a broken WEBP file"),
    "half a GIF": (reply(picture("GIF")[:500], **IMAGE), "it is a broken GIF file"),
    "PNG then HTML": (reply(PNG[:500] + b"<html>" * 100, **IMAGE), "it is a truncated PNG file"),
}


class TestBadBodies:
    @pytest.mark.parametrize(
        "body", [VIDEO, PAGE.encode("gbk"), b"\x80\x02\xff\xfe" * 1000], ids=["MP4", "GBK", "binary"]
    )
    def test_where_an_image_was_ordered_it_must_be_one(self, save, out, body):
        with ScriptedServer(reply(body, **IMAGE), reply(PNG, **IMAGE)) as host:
            with pytest.raises(KieFileError, match="a retry downloads it again") as caught:
                save(result_of(host.url))
            assert caught.value.is_transient
            assert names(out) == []
            save(result_of(host.url))
        assert names(out) == [f"{KIE_TASK_ID}-0.json", f"{KIE_TASK_ID}-0.png", f"{KIE_TASK_ID}-0.thumb.jpg"]

    @pytest.mark.parametrize("encoding", ["gbk", "utf-16-le", "big5"])
    def test_no_model_makes_text_files(self, save, out, encoding):
        with ScriptedServer(reply(PAGE.encode(encoding, "replace"))) as host, pytest.raises(KieFileError):
            save(result_of(host.url, model="veo3"))
        assert names(out) == []

    @pytest.mark.parametrize("name", BROKEN)
    def test_nothing_of_it_is_saved(self, save, out, name):
        step, message = BROKEN[name]
        with ScriptedServer(step) as host, pytest.raises(KieFileError) as caught:
            save(result_of(host.url))
        assert message in str(caught.value)
        assert "a retry downloads it again, which costs nothing" in str(caught.value)
        assert caught.value.kie_task_id == KIE_TASK_ID
        assert names(out) == []

    @pytest.mark.parametrize(
        ("step", "kind", "message"),
        [
            (truncated(PNG, content_type="image/png"), KieFileError, "broke off"),
            (reply(b"", **IMAGE), KieFileError, "empty file"),
            (reply("<html>", Content_Type="text/html"), KieFileError, "web page"),
            (reset, KieFileError, "broke off"),
            (reply("busy", 503), KieFileError, "HTTP 503"),
        ],
        ids=["truncated", "empty", "html", "reset", "503"],
    )
    def test_what_persists_is_given_up(self, save, out, step, kind, message):
        with ScriptedServer(*[step] * 4) as host, pytest.raises(kind, match=message):
            save(result_of(host.url))
        assert len(host.requests) == 4
        assert names(out) == []

    def test_the_others_are_saved_all_the_same(self, save, out):
        good, bad = reply(PNG, **IMAGE), reply("no", **IMAGE)
        with (
            ScriptedServer(good) as one,
            ScriptedServer(bad) as two,
            ScriptedServer(good) as three,
            pytest.raises(KieFileError),
        ):
            save(result_of(one.url, two.url, three.url))
        assert [name for name in names(out) if name.endswith("png")] == [f"{KIE_TASK_ID}-0.png", f"{KIE_TASK_ID}-2.png"]

    def test_a_bomb_is_not_decoded(self, save, out):
        bomb = picture(size=(5000, 5000))
        with ScriptedServer(*[reply(bomb, **IMAGE)] * 2) as host:
            with pytest.raises(KieResultError, match=r"5000 x 5000 = 25000000 pixels.*more than max_pixels=12000000"):
                save(result_of(host.url))
            assert names(out) == []
            save(result_of(host.url), max_pixels=25_000_000)
        assert f"{KIE_TASK_ID}-0.png" in names(out)

    def test_a_bomb_beyond_pillows_own_limit(self, save, out):
        header = b"IHDR" + struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
        body = PNG[:12] + header + struct.pack(">I", zlib.crc32(header)) + PNG[33:]
        with (
            ScriptedServer(reply(body, **IMAGE)) as host,
            pytest.raises(KieResultError, match=r"30000 x 30000 = 900000000 pixels, more than max_pixels=12000000"),
        ):
            save(result_of(host.url))
        assert names(out) == []

    def test_too_many_bytes(self, save, out):
        with ScriptedServer(reply(PNG, **IMAGE)) as host, pytest.raises(KieResultError, match="max_bytes=100 bytes"):
            save(result_of(host.url), max_bytes=100)
        assert names(out) == []

    @pytest.mark.parametrize(
        ("size", "ratio", "resolution", "problem"),
        [
            ((1024, 1024), "16:9", "1K", "1024 x 1024 pixels are not 16:9"),
            ((1024, 1024), "1:1", "2K", "1024 x 1024 pixels are not 2K"),
            ((512, 512), "1:1", "1K", "512 x 512 pixels are not 1K"),
            ((2048, 2048), "1:1", "1K", "2048 x 2048 pixels are not 1K"),
            ((1360, 768), "16:9", "1K", None),
            ((2304, 1728), "4:3", "2K", None),
            ((1024, 600), "auto", "1K", None),
            ((10, 20), None, None, None),
        ],
    )
    def test_a_wrong_size_warns_or_fails(self, save, out, caplog, size, ratio, resolution, problem):
        task_input = {"prompt": "a red fox", "aspect_ratio": ratio, "resolution": resolution}
        with ScriptedServer(*[reply(picture(size=size), **IMAGE)] * 2) as host:
            if problem:
                with pytest.raises(KieResultError, match=f"does not have the requested size: {problem}"):
                    save(result_of(host.url, input=task_input), on_wrong_size="fail")
                assert names(out) == []
            save(result_of(host.url, input=task_input), on_wrong_size="warn")
        assert (problem in caplog.text) if problem else "requested size" not in caplog.text
        assert len(names(out)) == 3

    def test_embedding_into_what_is_no_image(self, save, out):
        body = b"\0\0\0\x18ftypmp42" + b"\xff" * 1000
        with ScriptedServer(reply(body)) as host, pytest.raises(KieResultError, match=r"embed_provenance: .*video/mp4"):
            save(result_of(host.url, model="veo3"), embed_provenance=True)
        assert names(out) == []


class TestOddEchoes:
    """What Kie says of a task is foreign: whatever it is, the image is paid for, and saved."""

    @pytest.mark.parametrize("odd", [1.78, ["16:9"], {"x": 1}, None, True, float("nan"), "\ud800", "x\0", [[]], 10**30])
    @pytest.mark.parametrize("field", ["aspect_ratio", "resolution", "prompt"])
    def test_in_the_input(self, save, out, field, odd):
        task_input = {"prompt": "a red fox", "aspect_ratio": "1:1", "resolution": "1K", field: odd}
        with ScriptedServer(*[reply(PNG, **IMAGE)] * 2) as host:
            save(result_of(host.url, input=task_input))
            save(result_of(host.url, input=task_input, credits_consumed=None), target=str(out), **EMBEDDED)
        json.loads((out / "b" / f"{KIE_TASK_ID}-0.json").read_text(), parse_constant=pytest.fail)

    @pytest.mark.parametrize(
        "odd",
        [
            {"input": ["a red fox"]},
            {"input": "a red fox"},
            {"input": None},
            {"input": {"prompt": "a red fox", "more": json.loads("[" * 900 + "]" * 900)}},
            {"input": {"prompt": "a red fox", 5: object}},
            {"model": ["flux-2"]},
            {"model": None, "credits_consumed": "5"},
            {"credits_consumed": [5]},
            {"credits_consumed": float("nan")},
            {"created_at": pendulum.now(), "completed_at": float("inf"), "cost_seconds": {}},
        ],
    )
    def test_anywhere(self, save, out, odd):
        with ScriptedServer(*[reply(PNG, **IMAGE)] * 2) as host:
            [file] = save(result_of(host.url, **odd))["files"]
            save(result_of(host.url, **odd), **EMBEDDED, target=str(out), redact_prompt=True)
        assert json.loads(Path(file["sidecar"]).read_text(), parse_constant=pytest.fail)["file"] == file

    def test_a_mistake_of_ours_is_not_called_a_storage_error(self, tmp_path):
        for error in (AttributeError("x"), TypeError("x"), KeyError("x"), ValueError("x"), RecursionError("x")):
            with pytest.raises(type(error)), storage.storage_errors(tmp_path):
                raise error
        for error in (RuntimeError("x"), Exception("x"), json.JSONDecodeError("x", "", 0), EOFError("x")):
            with pytest.raises(KieStorageError), storage.storage_errors(tmp_path):
                raise error


EMBEDDED = {"embed_provenance": True, "file_name": "b/{kie_task_id}-{index}.{extension}"}


class TestLinks:
    def test_a_dead_link_gets_a_fresh_one(self, save, kie_emulator):
        with KieHook() as hook:
            kie_task_id = hook.create_task(
                "flux-2/pro-text-to-image", {"prompt": "a red fox", "aspect_ratio": "1:1", "resolution": "1K"}
            )
            result = hook.wait(kie_task_id, poll_interval=0.05).to_result()
        kie_emulator.fault({"on": "file", "do": "answer", "http_status": 404})

        [file] = save(result)["files"]

        assert Path(file["path"]).stat().st_size == file["bytes"]
        asked = [request["path"].rpartition("/")[2] for request in kie_emulator.requests()][-3:]
        assert asked[1] == "download-url"
        assert asked[0] == asked[2]  # the same file, behind another link

    @pytest.mark.parametrize("status", [403, 404, 410])
    def test_what_is_lost_is_said(self, save, out, status):
        with ScriptedServer(reply("gone", status)) as host, pytest.raises(KieResultError) as caught:
            save(result_of(host.url))  # the emulator gives fresh links to its own files only
        assert f"HTTP {status}" in str(caught.value)
        assert "no fresh link either" in str(caught.value)
        assert "so this file is lost" in str(caught.value)
        assert names(out) == []

    @pytest.mark.parametrize(
        "url", ["ftp://example.org/1.png", "file:///etc/passwd", "/etc/passwd", "data:image/png;base64,"]
    )
    def test_other_schemes_are_refused(self, save, out, url):
        with pytest.raises(KieResultError, match="is not an http"):
            save(result_of(url))
        assert names(out) == []

    def test_private_addresses_are_refused_unless_kie_is_at_one(self, save, out, monkeypatch):
        with ScriptedServer(reply(PNG, **IMAGE)) as host:
            monkeypatch.setenv("AIRFLOW_CONN_KIE_DEFAULT", json.dumps({"conn_type": "kie", "password": "a-real-key"}))
            with pytest.raises(KieResultError, match="leads to the private address"):
                save(result_of(host.url))
            assert host.requests == []

    def test_a_slow_host_is_given_up(self, save, out, kie_emulator, monkeypatch):
        connection = {**kie_emulator.connection, "extra": {"request_timeout": 0.2}}
        monkeypatch.setenv("AIRFLOW_CONN_KIE_DEFAULT", json.dumps(connection))
        with ScriptedServer(*[hang] * 4) as host, pytest.raises(KieFileError, match="broke off"):
            save(result_of(host.url))
        assert names(out) == []

    def test_the_key_is_not_sent(self, save, kie_emulator):
        with ScriptedServer(reply(PNG, **IMAGE)) as host:
            save(result_of(host.url))
        assert all("authorization" not in request.headers for request in host.requests)
        assert all(kie_emulator.api_key.encode() not in request.raw for request in host.requests)


class TestTarget:
    """What can be wrong with it, and what an author reads."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"target": ""}, "target: must be a path such as /data/images or s3://conn_id@bucket/prefix, got ''"),
            ({"target": None}, "target: must be a path"),
            ({"target": 5}, "target: must be a path"),
            ({"target": "nosuch://b/x"}, "target: Airflow cannot open 'nosuch://b/x'"),
            ({"target": "gs://b/x"}, "pip install 'apache-airflow-providers-google'"),
            ({"target": "abfs://b/x"}, "pip install 'apache-airflow-providers-microsoft-azure'"),
            ({"target": "s3:///x"}, "target: 's3:///x' names no bucket"),
            ({"file_name": "{index}"}, "file_name: must end with '.{extension}'"),
            ({"file_name": "../{index}.{extension}"}, "file_name: '../0.png' leads out of the target"),
            ({"file_name": "/tmp/{index}.{extension}"}, "leads out of the target"),
            ({"file_name": "a//{index}.{extension}"}, "leads out of the target"),
            ({"file_name": "a\\..\\{index}.{extension}"}, "backslash"),
            ({"file_name": "a\n{index}.{extension}"}, "control character"),
            ({"file_name": "{prompt}.{extension}"}, "has a field 'prompt' that is not one of kie_task_id, index"),
            ({"file_name": "{index.__class__}.{extension}"}, "is not one of"),
            ({"file_name": "{0}.{extension}"}, "is not one of"),
            ({"file_name": "{index:9999999999}.{extension}"}, "only numbers can have a width"),
            ({"file_name": "{index!r}.{extension}"}, "only numbers can have a width"),
            ({"file_name": "{.{extension}"}, "is not"),
            ({"file_name": "x" * 300 + ".{extension}"}, "more than 200 bytes"),
            ({"file_name": ("x" * 190 + "/") * 30 + "{index}.{extension}"}, "bytes; 4064 are allowed"),
            ({"file_name": "std::vector-{index}.{extension}"}, "file_name: 'std::vector-0.png' has '::', which"),
            ({"file_name": "what?#{index}.{extension}"}, "has '?#', which"),
            ({"file_name": "a/std::vector-{index}.{extension}"}, "has '::'"),
            ({"file_name": "c:/{index}.{extension}"}, "file_name: 'c:/0.png' begins like a drive (c:) or a URL (s3:/)"),
            ({"file_name": "c:{index}.{extension}"}, "begins like a drive"),
            ({"file_name": "s3:/b/{index}.{extension}"}, "begins like a drive (c:) or a URL (s3:/)"),
            ({"file_name": "a\x85{index}.{extension}"}, "control character or line break ('\\x85')"),
            ({"file_name": "a\u2028{index}.{extension}"}, "control character or line break"),
            ({"file_name": "\ud800{index}.{extension}"}, "half a character"),
            ({"file_name": " .{extension}"}, "has no name before the extension"),
            ({"file_name": "a/...{extension}"}, "has no name before the extension"),
            ({"file_name": "a/ /{index}.{extension}"}, "has an empty part"),
            ({"file_name": ".../{index}.{extension}"}, "leads out of the target"),
            ({"target": "/data/a\0b"}, "target: '/data/a\\x00b' has a control character or line break ('\\x00')"),
            ({"target": "s3://b/a\0b"}, "has a control character"),
            ({"target": "/data/\ud800"}, "half a character"),
            ({"target": "/data/std::vector"}, "has '::'"),
            ({"target": "s3://b/std::vector"}, "has '::'"),
            ({"target": "~nobody-of-this-name/x"}, "the home folder of a user unknown on this machine"),
            ({"target": "/data/" + "x" * 256}, "has a component of 256 bytes; 255 are allowed"),
            ({"on_wrong_size": "ignore"}, "on_wrong_size: must be 'warn' or 'fail', got 'ignore'"),
            ({"overwrite": "yes"}, "overwrite: must be True or False, got 'yes'"),
            ({"max_bytes": 0}, "max_bytes: must be a whole number above 0, got 0"),
            ({"max_pixels": True}, "max_pixels: must be a whole number above 0, got True"),
        ],
    )
    def test_bad_options_are_named(self, save, out, options, message):
        with pytest.raises(KieTargetError) as caught:
            save(result_of("http://127.0.0.1:1/never-asked"), **options)
        assert message in str(caught.value)
        assert names(out) == []

    def test_all_of_them_at_once(self, save):
        with pytest.raises(KieTargetError) as caught:
            save(result_of("http://127.0.0.1:1/"), file_name="x", on_wrong_size=1, max_bytes=-1)
        assert str(caught.value).count("\n  - ") == 3

    def test_a_pattern_that_collides(self, save, out):
        with pytest.raises(KieTargetError, match=r"gives 2 files the same name; put \{index\} into it"):
            save(result_of("http://127.0.0.1:1/a", "http://127.0.0.1:1/b"), file_name="{kie_task_id}.{extension}")
        assert names(out) == []

    def test_an_id_that_climbs_stays_below_the_target(self, save, out):
        with ScriptedServer(reply(PNG, **IMAGE)) as host:
            [file] = save(result_of(host.url, kie_task_id="../../etc/x"))["files"]
        assert Path(file["path"]) == out / "______etc_x-0.png"

    @pytest.mark.parametrize(
        "name",
        ["12:30 {index}.{extension}", "2026-11-25T10:00:00+00:00/{index}.{extension}", "a?b#c%20[d]*.{extension}"],
    )
    def test_odd_names_that_are_fine(self, save, out, name):
        with ScriptedServer(reply(PNG, **IMAGE)) as host:
            [file] = save(result_of(host.url), file_name=name)["files"]
        assert file["path"] == str(out / name.format(index=0, extension="png"))
        assert Path(file["path"]).read_bytes() == PNG

    @pytest.mark.parametrize(
        "target",
        [
            *("~/x", "file://{}/x", "file:{}/x", "file://localhost{}/x", "file:////{}/x", "FILE://{}/x/"),
            *("local://{}/x", "\n  {}/x\n"),
        ],
    )
    def test_a_local_target_is_a_plain_path(self, save, tmp_path, monkeypatch, target):
        monkeypatch.setenv("HOME", str(tmp_path))
        with ScriptedServer(reply(PNG, **IMAGE)) as host:
            [file] = save(result_of(host.url), target=target.format(tmp_path))["files"]
        assert file["path"] == str(tmp_path / "x" / f"{KIE_TASK_ID}-0.png")
        assert file["sidecar"] == str(tmp_path / "x" / f"{KIE_TASK_ID}-0.json")
        with open(file["path"], "rb") as stored:  # noqa: PTH123  # as an author would
            assert stored.read() == PNG

    @pytest.mark.parametrize(
        ("target", "problem"),
        [
            ("file:images", "is not a URL of a local file, such as file:///data/images"),
            ("file://other/images", "is not a URL of a local file, such as file:///data/images"),
            ("s3:/bucket/x", "begins like a URL; write s3://conn_id@bucket/prefix"),
            ("GS:bucket/x", "begins like a URL; write gs://conn_id@bucket/prefix"),
            ("s3://", "names no bucket"),
            ("C:\\images", "is a Windows path; Airflow workers do not run on Windows"),
            ("\\\\server\\images", "is a Windows path; Airflow workers do not run on Windows"),
        ],
    )
    def test_what_is_nearly_a_url_is_no_folder(self, target, problem):
        with pytest.raises(KieTargetError) as caught:
            storage.storage_path("target", target)
        assert caught.value.message == f"target: {target!r} {problem}"

    @pytest.mark.parametrize("target", ["ftp://me:{}@host/x", "nosuch://me:{}@host/x"])
    def test_a_password_in_a_target_is_not_shown(self, target):
        with pytest.raises(KieTargetError) as caught:
            storage.storage_path("target", target.format("top/secret"))
        assert "secret" not in str(caught.value)
        assert "me:***@" in str(caught.value)

    @pytest.mark.parametrize("points_to", ["nowhere", "link", "file"])
    def test_a_link_in_the_way_is_found_before(self, tmp_path, points_to):
        (tmp_path / "file").write_text("in the way")
        (tmp_path / "link").symlink_to(tmp_path / points_to)
        with pytest.raises(KieTargetError, match="link"):
            storage.check_writable(storage.storage_path("target", tmp_path / "link" / "below"))

    def test_a_file_in_the_way(self, save, out):
        out.write_text("in the way")
        with ScriptedServer(reply(PNG, **IMAGE)) as host, pytest.raises(KieTargetError, match=str(out)):
            save(result_of(host.url))
        assert out.read_text() == "in the way"

    def test_a_read_only_file_system(self, save):
        with ScriptedServer(reply(PNG, **IMAGE)) as host, pytest.raises(KieTargetError, match="/proc/kie"):
            save(result_of(host.url), target="/proc/kie")

    def test_a_full_disk_leaves_no_part(self, save, out, monkeypatch):
        def full(source, destination, length):
            raise OSError(errno.ENOSPC, "No space left on device")

        with ScriptedServer(*[reply(PNG, **IMAGE)] * 2) as host:
            with monkeypatch.context() as patch:
                patch.setattr(storage.shutil, "copyfileobj", full)
                with pytest.raises(KieStorageError, match="No space left on device") as caught:
                    save(result_of(host.url))
            assert names(out) == []
            assert caught.value.is_transient
            assert "it continues with the same Kie task" in str(caught.value)
            save(result_of(host.url))
        assert len(names(out)) == 3

    def test_no_result_url(self, save):
        with pytest.raises(KieResultError, match="no result URL, so there is nothing to save"):
            save(result_of(result={"text": "x"}))


def test_a_reader_never_sees_a_part(save, out):
    body = picture("PNG", size=(3000, 3000)) + b"\0" * 20_000_000
    seen, done = set(), threading.Event()

    def watch():
        while not done.is_set():
            for path in out.glob("*.png"):
                seen.add(path.stat().st_size)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ScriptedServer(reply(body, **IMAGE)) as host:
            save(result_of(host.url))
    finally:
        done.set()
        watcher.join()
    assert seen <= {len(body)}


def test_a_full_disk_before_that(tmp_path, kie_emulator):
    """The download does not fit: the file size limit of a process of its own stands for the disk."""
    with ScriptedServer(*[reply(PNG * 1000, **IMAGE)] * 4) as host:
        answer = in_a_process(host.url, tmp_path / "out", kie_emulator, check=False, limit=2**20)
    assert answer.returncode == 1
    assert answer.stderr.splitlines()[-1].startswith(
        "kie_provider.client.errors.KieStorageError: The storage failed: /"
    )
    assert "File too large" in answer.stderr
    assert names(tmp_path / "out") == []


def test_memory_is_bounded_whatever_the_size(tmp_path, kie_emulator):
    """150 MB through a process of its own; 64 MB is what it may need on top of what it needs for a small file."""
    piece = b"\0" * 2**20

    def video(exchange):
        size = 150 * 2**20
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: %d\r\n\r\n" % (size + 16))
        exchange.send(b"\0\0\0\x18ftypmp42\0\0\0\0")
        for _ in range(size // len(piece)):
            exchange.send(piece)

    peaks = {}
    for name, step in (("small", reply(PNG, **IMAGE)), ("large", video)):
        with ScriptedServer(step) as host:
            answer = in_a_process(host.url, tmp_path / name, kie_emulator)
            peaks[name] = int(answer.stdout.split()[-1])
    assert next((tmp_path / "large").glob("*.mp4")).stat().st_size > 150 * 2**20
    assert peaks["large"] - peaks["small"] < 64 * 1024, peaks


def in_a_process(url, target, kie_emulator, *, check=True, limit=-1):
    """Save a result there; it prints its peak of memory in KiB."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, url, str(target), str(limit)],
        env={**os.environ, "AIRFLOW_CONN_KIE_DEFAULT": json.dumps(kie_emulator.connection)},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=check,
    )


PROGRAM = """
import resource, signal, sys
from tests.support.results import RUN, result_of
from kie_provider.client.prices import PriceTable
from kie_provider.files.saving import ResultSaver, SaveOptions
from kie_provider.hooks.kie import KieHook

url, target, limit = sys.argv[1:]
with KieHook() as hook:
    options = SaveOptions(target, "{kie_task_id}-{index}.{extension}", False, "warn", False, False, 2**30, 12_000_000)
    saver = ResultSaver(options, hook, PriceTable.parse())
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    saver.save(result_of(url, model="veo3"), RUN)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
