"""Debian's Chromium, driven by selenium."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Programs, by the Debian package that brings them.
PROGRAMS = {"chromium": "chromium", "chromedriver": "chromium-driver"}


def missing() -> str:
    """Say which Debian packages are not installed; empty: none."""
    packages = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    return " and ".join(packages)


@contextlib.contextmanager
def chromium(downloads: Path | None = None) -> Iterator[webdriver.Chrome]:
    """Start a browser without a window; it ends with the block.

    :param downloads: folder for what pages let it download.
    """
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--no-proxy-server",
    ):
        options.add_argument(argument)
    if downloads is not None:
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        driver.set_page_load_timeout(60)
        yield driver
    finally:
        driver.quit()


def resize(driver: webdriver.Chrome, width: int, height: int = 900, scale: float = 1) -> None:
    """Give pages a size in CSS pixels, also one that is smaller than any window."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def prefer(driver: webdriver.Chrome, theme: str) -> None:
    """Let pages believe that the reader's system is ``light`` or ``dark``."""
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    )
