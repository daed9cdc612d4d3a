"""Starts Debian's chromium without a screen, for the tests, the pictures and the benchmark."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--window-size=1280,800",
)


def program(variable: str, *names: str) -> str:
    """The path of a program, from the environment or the search path."""
    found = os.environ.get(variable) or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise FileNotFoundError(f"no {names[0]}: apt-get install chromium chromium-driver")
    return found


def start_chromium(profile: Path) -> Any:
    """A driver for a fresh browser with a window of 1280 x 800.

    Args:
      profile: An empty folder.

    Raises:
      FileNotFoundError: if there is no chromium or no chromedriver.
    """
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = program("CHROMIUM", "chromium", "chromium-browser", "google-chrome")
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = Service(program("CHROMEDRIVER", "chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    set_width(driver, 1280)
    return driver


def set_width(driver: Any, width: int) -> None:
    """Make the window so many pixels wide."""
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False},
    )
