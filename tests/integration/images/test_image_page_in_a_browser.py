"""The image page in Airflow's own frame, as a person uses it: Debian's Chromium and a real API server."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from selenium.webdriver import ActionChains, Keys

from tests.support import browser
from tests.support.gallery import EVIL
from tests.support.versions import with_image_page
from tests.support.waits import wait_until

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = [
    with_image_page,
    pytest.mark.skipif(bool(browser.missing()), reason=f"not installed: {browser.missing()}"),
]

BACKGROUNDS = {"light": "rgb(248, 247, 244)", "dark": "rgb(17, 18, 22)"}


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def driver(gallery, downloads):
    with browser.chromium(downloads) as driver:
        driver.get(f"{gallery.site.url}/api/v2/version")
        driver.add_cookie({"name": "_token", "value": gallery.site.tokens["admin"], "path": "/"})
        yield driver


@pytest.fixture
def open_frame(gallery, driver):
    """Open a page of Airflow, and go into the frame in which ours is."""

    def open_frame(address: str, *, theme: str = "light", width: int = 1440) -> Chrome:
        driver.switch_to.default_content()
        browser.resize(driver, width)
        driver.get(f"{gallery.site.url}/api/v2/version")
        driver.execute_script("localStorage.setItem('theme', arguments[0])", theme)
        driver.get_log("browser")
        driver.get(f"{gallery.site.url}/{address}")
        driver.switch_to.frame(soon(lambda: driver.find_elements("css selector", "iframe"))[0])
        soon(lambda: driver.find_elements("css selector", "main"))
        return driver

    return open_frame


@pytest.fixture
def run_tab(gallery):
    dag_id, run_id = gallery.runs["mapped"]
    return f"dags/{dag_id}/runs/{quote(run_id, safe='')}/plugin/kie-run-images"


soon = functools.partial(wait_until, timeout=20, pause=0.1)


def loaded(driver):
    """Scroll over the page, and return the widths of its pictures once all are there; 0: broken."""
    pictures = driver.find_elements("css selector", "main img")
    for picture in pictures:
        driver.execute_script("arguments[0].scrollIntoView()", picture)
        soon(lambda picture=picture: picture.get_property("complete"))
    return [picture.get_property("naturalWidth") for picture in pictures]


def press(driver, *keys):
    ActionChains(driver).send_keys(*keys).perform()


def background(driver):
    return driver.execute_script("return getComputedStyle(document.body).backgroundColor")


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_both_pages_in_their_frames(open_frame, run_tab, theme, width):
    for address, pictures in (("plugin/kie-images", 6), (run_tab, 3)):
        driver = open_frame(address, theme=theme, width=width)

        assert soon(lambda driver=driver: background(driver) == BACKGROUNDS[theme])
        assert loaded(driver) == [320] * pictures
        assert all(each.get_attribute("alt") for each in driver.find_elements("css selector", "main img"))
        assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        problems = [each["message"] for each in driver.get_log("browser") if "Content Security" in each["message"]]
        assert problems == []


def test_the_theme_follows_airflows_switch(open_frame):
    driver = open_frame("plugin/kie-images", theme="light")
    driver.execute_script("parent.document.documentElement.classList.replace('light', 'dark')")
    assert soon(lambda: background(driver) == BACKGROUNDS["dark"])


def test_a_hostile_prompt_stays_text(open_frame, run_tab):
    driver = open_frame(run_tab)
    assert EVIL in [each.text for each in driver.find_elements("css selector", ".prompt")]
    assert driver.find_elements("css selector", "img[src=x]") == []
    assert driver.execute_script("return [document.title, parent.document.title].includes('evil')") is False


def test_full_size_by_keyboard(open_frame, run_tab):
    driver = open_frame(run_tab)
    first, second = driver.find_elements("css selector", "a[data-full]")[:2]
    driver.find_element("css selector", "header p").click()  # the keyboard is in the frame now
    press(driver, *[Keys.TAB] * 5)  # past the four states
    assert driver.switch_to.active_element == first
    press(driver, Keys.ENTER)

    dialog = driver.find_element("css selector", "dialog")
    picture = dialog.find_element("css selector", "img")
    assert soon(lambda: dialog.get_property("open"))
    assert soon(lambda: picture.get_property("naturalWidth") == 1152)
    assert picture.get_attribute("alt") == "a red fox"
    facts = dialog.find_element("id", "facts").text
    assert all(each in facts for each in ("a red fox", "flux-2/pro-text-to-image", "5 credits", "image [0]"))

    press(driver, Keys.ARROW_RIGHT)
    assert soon(lambda: picture.get_attribute("alt") == EVIL)
    assert soon(lambda: EVIL in dialog.find_element("id", "facts").text)
    press(driver, Keys.ESCAPE)
    assert soon(lambda: not dialog.get_property("open"))
    assert soon(lambda: driver.switch_to.active_element == second)  # "close" comes behind the closing


def test_download_out_of_the_frame(gallery, open_frame, run_tab, downloads):
    driver = open_frame(run_tab)
    driver.find_element("css selector", "main a[download]").click()

    [file] = gallery.results["mapped"]["image", 0]["files"]
    saved = soon(lambda: list(downloads.glob("*.png")))[0]
    assert saved.read_bytes() == Path(file["path"]).read_bytes()


def test_the_log_is_one_click_away(gallery, open_frame, run_tab):
    driver = open_frame(run_tab)
    driver.find_element("css selector", "main a[data-outer]").click()

    driver.switch_to.default_content()
    assert soon(lambda: driver.current_url.endswith("/tasks/image/mapped/0"))
    assert driver.current_url.startswith(f"{gallery.site.url}/dags/")


def test_a_file_out_of_reach_has_a_picture_that_says_so(gallery, open_frame, run_tab):
    [file] = gallery.results["mapped"]["image", 0]["files"]
    thumbnail = Path(file["thumbnail"])
    hidden = thumbnail.rename(thumbnail.with_suffix(".hidden"))
    try:
        assert loaded(open_frame(run_tab)) == [320] * 3
    finally:
        hidden.rename(thumbnail)


def test_the_button_of_a_task_opens_its_images(gallery, driver):
    dag_id, run_id = gallery.runs["mapped"]
    run = f"{gallery.site.url}/dags/{dag_id}/runs/{quote(run_id, safe='')}"
    driver.switch_to.default_content()
    browser.resize(driver, 1440)
    for task, pictures in (("sheet", 3), ("image/mapped/0", 1)):
        driver.get(f"{run}/tasks/{task}/details")
        button = soon(lambda: driver.find_elements("link text", "Kie images"))[0]
        driver.get(button.get_attribute("href"))
        assert loaded(driver) == [320] * pictures
    driver.find_element("css selector", ".back").click()
    assert soon(lambda: driver.current_url == run)


def test_it_is_in_the_navigation(gallery, driver):
    driver.get(f"{gallery.site.url}/")
    browse = soon(
        lambda: (
            driver.find_elements("xpath", "//nav//button[contains(., 'Browse')]")
            or driver.find_elements("xpath", "//button[contains(., 'Browse')]")
        )
    )[0]
    browse.click()
    entry = soon(lambda: driver.find_elements("xpath", "//a[contains(., 'Kie.ai images')]"))[0]
    entry.click()
    assert soon(lambda: driver.current_url == f"{gallery.site.url}/plugin/kie-images")
