"""The image page over HTTP, served by a real Airflow: what it shows, to whom, and which files it sends."""

from __future__ import annotations

import html
import io
import json
import re
import shutil
from pathlib import Path
from urllib.parse import quote, urlencode, urljoin

import pytest
from PIL import Image

from kie_provider.links import IMAGES_XCOM_KEY
from tests.support.gallery import EVIL, LARGE, MANY, REFUSED
from tests.support.versions import with_image_page

pytestmark = with_image_page

ALL = "kie/images/"


def run_page(gallery, name, **query):
    dag_id, run_id = gallery.runs[name]
    more = "".join(f"&{key}={quote(str(value))}" for key, value in query.items())
    return f"{ALL}dags/{dag_id}/run?run_id={quote(run_id)}{more}"


def figures(answer):
    """The tiles of a page, as HTML."""
    assert answer.status_code == 200, answer.text
    return re.findall(r"<figure>.*?</figure>", answer.text, re.DOTALL)


def sources(answer):
    """The addresses of thumbnails, absolute."""
    found = [re.search(r'<img src="([^"]*)"', figure) for figure in figures(answer)]
    return [urljoin(answer.url, html.unescape(each[1])) for each in found if each]


def words(answer):
    """The text in a placeholder."""
    return html.unescape(" ".join(re.findall(">([^<]+)<", answer.text)))


def load(gallery, address, user="admin"):
    """Get an absolute address."""
    return gallery.site.get(address.removeprefix(f"{gallery.site.url}/"), user)


@pytest.fixture
def xcom(gallery):
    """Change an XCom of a run, as whoever may edit XComs can; everything is put back afterwards."""
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session

    before = []

    def change(name, task_id, map_index, edit, key="return_value"):
        dag_id, run_id = gallery.runs[name]
        with create_session() as session:
            [row] = session.query(XComModel).filter_by(
                dag_id=dag_id, run_id=run_id, task_id=task_id, map_index=map_index, key=key
            )
            if not before:
                before.append(((row.dag_run_id, task_id, map_index, key), row.value))
            row.value = edit(json.loads(json.dumps(row.value)))

    yield change
    with create_session() as session:
        for where, value in before:
            session.get(XComModel, where).value = value


class TestPages:
    def test_a_run_shows_pictures_and_gaps(self, gallery):
        answer = gallery.site.get(run_page(gallery, "mapped"))
        shown = figures(answer)

        assert len(shown) == 4
        assert [
            html.escape(prompt) in tile
            for tile, prompt in zip(shown, ["a red fox", EVIL, REFUSED, "ein Fü"], strict=True)
        ] == [True] * 4
        assert re.search(r"<p>3 images · 1 failure · 15 credits</p>", answer.text)
        assert "not &lt;b&gt;nice&lt;/b&gt; enough" in shown[2]
        for index in (0, 1, 3):
            assert "5 credits" in shown[index]
            assert f"image [{index}]" in shown[index]
            assert "flux-2/pro-text-to-image" in shown[index]
            assert re.search(r"\d+ × \d+", shown[index])
            labels = re.findall("<dt>(.*?)</dt>", shown[index])
            assert labels == ["Prompt", "Model", "Facts", "Kie task", "DAG", "Run", "Task", "File"]
        dag_id, run_id = gallery.runs["mapped"]
        log = urljoin(answer.url, html.unescape(re.search(r'<a href="([^"]*)" data-outer', shown[3])[1]))
        assert log == f"{gallery.site.url}/dags/{dag_id}/runs/{quote(run_id, safe='')}/tasks/image/mapped/3"

    def test_thumbnails_and_full_images_are_what_was_saved(self, gallery):
        answer = gallery.site.get(run_page(gallery, "mapped"))
        for address, index in zip(sources(answer), (0, 1, 3), strict=True):
            [file] = gallery.results["mapped"]["image", index]["files"]
            small, full = load(gallery, address), load(gallery, address.replace("&thumb=1", ""))
            assert (small.status_code, small.content) == (200, Path(file["thumbnail"]).read_bytes())
            assert (full.headers["Content-Type"], full.content) == ("image/png", Path(file["path"]).read_bytes())
            again = gallery.site.session.get(
                address,
                cookies={"_token": gallery.site.tokens["admin"]},
                headers={"If-None-Match": small.headers["ETag"]},
            )
            assert (again.status_code, again.content) == (304, b"")
        download = load(gallery, address.replace("thumb=1", "download=1"))
        assert re.fullmatch(r'attachment; filename="\w+-0\.png"', download.headers["Content-Disposition"])
        assert Image.open(io.BytesIO(download.content)).format == "PNG"

    def test_create_wait_and_save_are_one_image(self, gallery):
        saved, unsaved = figures(gallery.site.get(run_page(gallery, "pipeline")))

        assert ("a night market" in saved, "<img" in saved, ">save<" in saved) == (True, True, True)
        assert ("a lamp at dawn" in unsaved, "<img" in unsaved, "not saved" in unsaved) == (True, False, True)

    def test_a_batch_shows_every_item(self, gallery):
        answer = gallery.site.get(run_page(gallery, "batch"))
        one, two, refused = figures(answer)

        assert ("one teapot" in one, "two teapots" in two) == (True, True)
        assert (REFUSED in refused, "not &lt;b&gt;nice" in refused) == (True, True)
        assert "2 images · 1 failure · 10 credits" in answer.text
        for address in sources(answer):
            assert load(gallery, address).headers["Content-Type"] == "image/jpeg"

    def test_a_task_instance_alone_and_a_state(self, gallery):
        [alone] = figures(gallery.site.get(run_page(gallery, "mapped", task_id="image", map_index=0)))
        [failed] = figures(gallery.site.get(run_page(gallery, "mapped", state="failed")))
        assert ("a red fox" in alone, REFUSED in failed) == (True, True)

    def test_the_page_of_all_dags_has_the_latest_first(self, gallery):
        answer = gallery.site.get(ALL)
        prompts = [re.search(r'title="([^"]*)"', tile)[1] for tile in figures(answer)]

        assert prompts[:3] == ["one teapot", "two teapots", REFUSED]
        assert sorted(prompts[3:5]) == ["a lamp at dawn", "a night market"]
        assert html.escape(EVIL) in prompts
        assert len(prompts) == 9
        assert all(gallery.runs[name][0] in answer.text for name in ("mapped", "pipeline", "batch"))
        assert gallery.runs["many"][0] not in answer.text

    @pytest.mark.parametrize(
        ("query", "prompts"),
        [
            ("q=FÜCHSCHEN", ["ein Füchschen im Schnee"]),
            ("state=failed", [REFUSED, REFUSED]),
            ("state=running", []),
            ("q=nothing+has+this", []),
            ("q=teapot&page=7", ["one teapot", "two teapots"]),
            ("q=teapot&days=100000&state=odd", ["one teapot", "two teapots"]),
            ("q=%3Cscript%3E&days=1", [EVIL]),
        ],
    )
    def test_filters(self, gallery, query, prompts):
        shown = figures(gallery.site.get(f"{ALL}?{query}"))
        assert [html.unescape(re.search(r'title="([^"]*)"', tile)[1]) for tile in shown] == prompts

    def test_only_one_dag(self, gallery):
        dag_id, _ = gallery.runs["pipeline"]
        assert len(figures(gallery.site.get(f"{ALL}?dag={dag_id}"))) == 2
        assert figures(gallery.site.get(f"{ALL}?dag=no_such_dag")) == []

    def test_a_run_id_whose_plus_sign_was_not_encoded(self, gallery):
        """As Airflow 3.1 asks."""
        dag_id, run_id = gallery.runs["mapped"]
        assert "+" in run_id
        assert len(figures(gallery.site.get(f"{ALL}dags/{dag_id}/run?run_id={run_id}"))) == 4

    def test_a_run_without_images(self, gallery):
        answer = gallery.site.get(f"{ALL}dags/{gallery.runs['mapped'][0]}/run?run_id=none")
        assert (figures(answer), "No images here" in answer.text) == ([], True)

    def test_the_button_of_every_operator_leads_here(self, gallery):
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session

        dag_id, run_id = gallery.runs["mapped"]
        with create_session() as session:
            links = session.query(XComModel.task_id, XComModel.map_index, XComModel.value).filter(
                XComModel.dag_id == dag_id, XComModel.key.in_([IMAGES_XCOM_KEY, "_link_KieRunImagesLink"])
            )
            told = {(task_id, map_index): address for task_id, map_index, address in links}
        assert set(told) == {("sheet", -1), *(("image", index) for index in range(4))}
        assert len(figures(gallery.site.get(told["sheet", -1]))) == 4
        assert [REFUSED in tile for tile in figures(gallery.site.get(told["image", 2]))] == [True]
        shown = gallery.site.get(f"api/v2/dags/{dag_id}/dagRuns/{quote(run_id)}/taskInstances/sheet/links").json()
        assert shown["extra_links"] == {"Kie images": told["sheet", -1]}


class TestThousands:
    @pytest.mark.parametrize(
        ("name", "query", "shown", "of"),
        [
            ("many", {}, "image number 0", MANY),
            ("many", {"page": 84}, "image number 4980", MANY),
            ("large batch", {}, "item number 0", LARGE),
            ("large batch", {"page": 17}, "item number 960", LARGE),
            (None, {"days": 90, "q": "number 77"}, "number 77", 0),
            (None, {"days": 90}, "one teapot", 0),
        ],
    )
    def test_a_page_takes_no_time(self, gallery, name, query, shown, of):
        """The server's processor takes 0.15 s for it; three times that is what a busy machine may make of it."""
        address = f"{ALL}?{urlencode(query)}" if name is None else run_page(gallery, name, **query)
        answer, taken = gallery.site.get(address), []
        for _ in range(3):
            before = gallery.site.cpu_seconds()
            for _ in range(4):
                answer = gallery.site.get(address)
            taken.append((gallery.site.cpu_seconds() - before) / 4)
        tiles = figures(answer)
        assert shown in tiles[0]
        assert len(tiles) <= 60
        assert not of or f"{of:,} images" in answer.text
        assert min(taken) < 0.45, taken

    def test_pages_follow_each_other(self, gallery):
        address, seen = run_page(gallery, "large batch", page=16), []
        for _ in range(3):
            answer = gallery.site.get(address)
            seen += re.findall(r'title="item number (\d+)"', answer.text)
            following = re.search(r'<a href="([^"]*)">Next</a>', answer.text)
            if following is None:
                break
            address = urljoin(answer.url, html.unescape(following[1])).removeprefix(f"{gallery.site.url}/")
        assert seen == [str(n) for n in range(900, LARGE)]

    def test_a_picture_of_a_batch(self, gallery):
        answer = gallery.site.get(run_page(gallery, "large batch"))
        assert load(gallery, sources(answer)[0]).status_code == 404  # the items are copies: nobody vouches for them
        assert len(sources(answer)) == 60


class TestAccess:
    @pytest.fixture
    def addresses(self, gallery):
        page = run_page(gallery, "mapped")
        picture = sources(gallery.site.get(page))[0].removeprefix(f"{gallery.site.url}/")
        return page, picture

    def test_without_a_login_there_is_nothing(self, gallery, addresses):
        assert [gallery.site.get(each, user=None).status_code for each in (ALL, *addresses)] == [401, 401, 401]

    def test_who_may_not_read_a_dag_sees_nothing_of_it(self, gallery, addresses):
        answer = gallery.site.get(ALL, "nobody")
        assert figures(answer) == []
        assert not any(dag_id in answer.text for dag_id, _ in gallery.runs.values())
        for each in addresses:
            refused = gallery.site.get(each, "nobody")
            assert (refused.status_code, "a red fox" in refused.text) == (403, False)

    def test_who_may_read_it_sees_it(self, gallery, addresses):
        assert len(figures(gallery.site.get(ALL, "viewer"))) == 9
        assert [gallery.site.get(each, "viewer").status_code for each in addresses] == [200, 200]

    def test_headers(self, gallery, addresses):
        page, picture = (gallery.site.get(each) for each in addresses)
        policy = page.headers["Content-Security-Policy"]
        [nonce] = re.findall("script-src 'nonce-([^']+)'", policy)
        assert re.findall("<script.*?>", page.text) == [f'<script nonce="{nonce}">']
        for part in ("default-src 'none'", "img-src 'self'", "frame-ancestors 'self'", "base-uri 'none'"):
            assert part in policy
        assert "unsafe-inline" not in policy.partition("script-src")[2]
        assert picture.headers["Content-Security-Policy"].endswith("; sandbox")
        assert picture.headers["X-Content-Type-Options"] == "nosniff"
        assert picture.headers["Cache-Control"] == "private, no-cache"


class TestFiles:
    """Whatever an XCom names: only what this DAG has saved below its target is sent."""

    def ask(self, gallery, name="mapped", task_id="image", map_index=0):
        dag_id, run_id = gallery.runs[name]
        where = f"run_id={quote(run_id)}&task_id={task_id}&map_index={map_index}"
        return gallery.site.get(f"{ALL}dags/{dag_id}/file?{where}")

    @pytest.fixture
    def named(self, gallery, xcom):
        """Ask for the first image of a run after its XCom names another path."""

        def named(path):
            def edit(result):
                result["files"][0] |= {"path": str(path), "thumbnail": str(path)}
                return result

            xcom("mapped", "image", 0, edit)
            return self.ask(gallery)

        return named

    def test_what_is_asked_for_is_sent(self, gallery):
        [file] = gallery.results["mapped"]["image", 0]["files"]
        assert self.ask(gallery).content == Path(file["path"]).read_bytes()

    def test_another_file_of_the_machine(self, gallery, named):
        for path in ("/etc/passwd", gallery.site.log, gallery.folder / "mapped" / ".." / ".." / "etc", "", "/"):
            answer = named(path)
            assert (answer.status_code, answer.headers["Content-Type"]) in (
                (404, "image/svg+xml"),
                (404, "application/json"),
            )

    def test_an_image_of_another_dag(self, gallery, named):
        [file] = gallery.results["pipeline"]["save", -1]["files"]
        answer = named(file["path"])
        assert answer.status_code == 404
        assert "not below the target" in words(answer)

    def test_dots_that_lead_out(self, gallery, named):
        [file] = gallery.results["pipeline"]["save", -1]["files"]
        answer = named(gallery.folder / "mapped" / ".." / "pipeline" / Path(file["path"]).name)
        assert answer.status_code == 404

    @pytest.mark.parametrize("what", ["file", "folder"])
    def test_a_link_that_leads_out(self, gallery, named, what):
        [file] = gallery.results["pipeline"]["save", -1]["files"]
        link = gallery.folder / "mapped" / f"link-{what}.png"
        link.symlink_to(file["path"] if what == "file" else Path(file["path"]).parent)
        try:
            assert named(link if what == "file" else link / Path(file["path"]).name).status_code == 404
        finally:
            link.unlink()

    def test_another_image_below_the_target_that_nobody_vouches_for(self, gallery, named):
        [file] = gallery.results["mapped"]["image", 1]["files"]
        stray = gallery.folder / "mapped" / "stray.png"
        shutil.copy(file["path"], stray)
        assert named(stray).status_code == 404
        answer = named(file["path"])  # saved by the same DAG, but for another Kie task
        assert "No JSON file beside it says" in words(answer)

    def test_a_link_inside_the_target(self, gallery, named):
        [file] = gallery.results["mapped"]["image", 0]["files"]
        link = gallery.folder / "mapped" / "again.png"
        link.symlink_to(file["path"])
        try:
            assert named(link).status_code == 404
        finally:
            link.unlink()

    def test_what_is_no_image_is_not_sent_as_one(self, gallery, named):
        [file] = gallery.results["mapped"]["image", 0]["files"]
        path = Path(file["path"])
        content = path.read_bytes()
        try:
            path.write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>")
            assert named(path).status_code == 404
            path.write_bytes(b"\0\0\0\x18ftypmp42" + b"\xff" * 1000)
            answer = named(path)
            assert answer.headers["Content-Type"] == "application/octet-stream"
            assert answer.headers["Content-Disposition"].startswith("attachment")
        finally:
            path.write_bytes(content)

    def test_a_file_out_of_reach_is_a_picture_that_says_why(self, gallery):
        [file] = gallery.results["mapped"]["image", 0]["files"]
        path = Path(file["path"])
        hidden = path.rename(path.with_suffix(".hidden"))
        try:
            answer = self.ask(gallery)
            assert answer.status_code == 404
            assert "The file does not exist" in words(answer)
            assert len(figures(gallery.site.get(run_page(gallery, "mapped")))) == 4
        finally:
            hidden.rename(path)

    def test_a_store_without_its_connection(self, gallery, named):
        answer = named("s3://no_such_connection@bucket/x.png")
        assert answer.status_code == 404
        assert "names a connection that Airflow does not find" in words(answer)

    def test_a_custom_xcom_backend(self, gallery, xcom):
        xcom("mapped", "image", 0, lambda result: "s3://bucket/xcom/0123.json")
        first, *others = figures(gallery.site.get(run_page(gallery, "mapped")))
        assert "custom XCom backend" in first
        assert len(others) == 3
        assert self.ask(gallery).status_code == 404

    @pytest.mark.parametrize(
        "edit",
        [
            lambda result: {**result, "files": [5, None, {"path": 7}, {}], "input": [], "model": {}},
            lambda result: {**result, "urls": [None, "javascript:alert(1)", "file:///etc/passwd"], "files": None},
            lambda result: {"manifest": "/etc/passwd"},
            lambda result: {"manifest": ["x"], "urls": "x"},
            lambda result: [result],
            lambda result: 5,
        ],
    )
    def test_a_result_that_anybody_has_changed(self, gallery, xcom, edit):
        xcom("mapped", "image", 0, edit)
        answer = gallery.site.get(run_page(gallery, "mapped"))
        assert len(figures(answer)) >= 3
        assert "javascript:" not in answer.text
        assert "root:" not in answer.text
        assert self.ask(gallery).status_code == 404
