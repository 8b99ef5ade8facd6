"""`make screenshots`: the pictures of README and docs, taken of a running demo with Debian's Chromium."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from kie_provider.addresses import IMAGES
from tests.support import browser
from tests.support.demo import DAG_ID, ROOT, Demo, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from selenium.webdriver import Chrome

PICTURES = ROOT / "docs" / "pictures"
SIZE = (1200, 760)
#: What a picture may weigh; README pages load all of them.
LARGEST = 150_000


class Screenshots(Demo):
    """The demo, which is looked at before it ends."""

    def wait_for_ctrl_c(self) -> None:
        """Take the pictures, in place of waiting."""
        with browser.chromium() as driver:
            browser.resize(driver, *SIZE)
            self.take(driver)

    def take(self, driver: Chrome) -> None:
        """Take all pictures."""
        assert self.sheet is not None, "there is no contact sheet"
        driver.get(Path(self.sheet).as_uri())
        save(driver, "sheet")
        for theme in ("light", "dark"):
            self.open(driver, "plugin/kie-images", theme, _has_pictures)
            save(driver, f"page-{theme}")
        self.open(
            driver, f"dags/{DAG_ID}/runs/{quote(self.run_id, safe='')}/plugin/kie-run-images", "light", _has_pictures
        )
        save(driver, "run-tab")
        connection = {"connection_id": "kie_default", "conn_type": "kie", "password": "not a key"}
        self.airflow.api("POST", "/connections", connection)
        self.open(driver, "connections", "light", lambda driver: _edit_button(driver) is not None)
        _edit_button(driver).click()
        until(driver, lambda driver: "API key" in driver.find_element("tag name", "body").text)
        save(driver, "connection-form")

    def open(self, driver: Chrome, address: str, theme: str, is_ready: Callable[[Chrome], Any]) -> None:
        """Open a page of Airflow and wait for what is to be seen on it."""
        driver.get(f"{self.airflow.url}/{IMAGES}")
        driver.execute_script("localStorage.setItem('theme', arguments[0])", theme)
        driver.get(f"{self.airflow.url}/{address}")
        until(driver, is_ready)


def until(driver: Chrome, is_ready: Callable[[Chrome], Any], timeout: float = 30) -> None:
    """Wait for a condition, and for what moves to come to rest."""
    deadline = time.monotonic() + timeout
    while not is_ready(driver):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{driver.current_url} does not show what was waited for")
        time.sleep(0.2)
    time.sleep(1)


def _has_pictures(driver: Chrome) -> bool:
    frames = driver.find_elements("css selector", "iframe")
    if not frames:
        return False
    driver.switch_to.frame(frames[0])
    try:
        pictures = driver.find_elements("css selector", "main img")[:3]
        return bool(pictures) and all(each.get_property("naturalWidth") for each in pictures)
    finally:
        driver.switch_to.default_content()


def _edit_button(driver: Chrome) -> Any:
    found = driver.find_elements("css selector", "button[aria-label*='Edit' i], button[title*='Edit' i]")
    return found[0] if found else None


def save(driver: Chrome, name: str) -> None:
    """Keep what the browser shows, as small as it stays readable."""
    from PIL import Image

    with Image.open(io.BytesIO(driver.get_screenshot_as_png())) as image:
        path = PICTURES / f"{name}.webp"
        image.convert("RGB").save(path, "WEBP", quality=82, method=6)
    size = path.stat().st_size
    say(f"  {path.relative_to(ROOT)}  {size:,} bytes")
    assert size <= LARGEST, f"{path} is too large"


def main() -> int:
    """Run the demo and take the pictures; 0 when all are there."""
    if packages := browser.missing():
        say(f"Not installed: {packages}")
        return 1
    PICTURES.mkdir(exist_ok=True)
    with contextlib.ExitStack() as cleanup:
        return Screenshots(cleanup, keep=True).run()


if __name__ == "__main__":
    sys.exit(main())
