"""A headless browser for tests: the distribution's, which asks no network for anything."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,1400",
)


@contextmanager
def browser(profile: Path) -> Iterator[Chrome]:
    """With an empty directory of its own at ``profile``."""
    options = ChromeOptions()
    options.binary_location = _program("chromium", "chromium-browser")
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # With a path given, selenium looks for no driver elsewhere.
    driver = Chrome(options, ChromeService(_program("chromedriver")))
    try:
        driver.get("about:blank")  # away from the browser's own page, which asks for much
        requested(driver)
        yield driver
    finally:
        driver.quit()


def _program(*names: str) -> str:
    """Its path. Where scripts/setup would have installed it, it is there."""
    for name in names:
        if path := shutil.which(name):
            return path
    absent = f"{names[0]} is not installed: it opens reports"
    if os.geteuid() == 0 and platform.freedesktop_os_release()["ID"] == "debian":
        raise FileNotFoundError(absent)
    pytest.skip(absent)


def wait(driver: Chrome, condition: Callable[[Chrome], object]) -> None:
    WebDriverWait(driver, 20).until(condition)


def find(driver: Chrome, selector: str) -> list[Any]:
    return list(driver.find_elements(By.CSS_SELECTOR, selector))


def complaints(driver: Chrome) -> list[str]:
    """What is in the console since the last call, errors and warnings."""
    log: list[dict[str, str]] = driver.get_log("browser")
    return [entry["message"] for entry in log]


def requested(driver: Chrome) -> list[str]:
    """The addresses that pages have asked for since the last call, the browser's own left out."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
        and not message["params"]["request"]["url"].startswith(("chrome:", "data:"))
    ]
