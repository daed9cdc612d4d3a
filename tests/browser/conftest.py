"""A headless chromium over the real server. Without one, these tests fail: they are only run
when they are asked for (``make test-browser``)."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bench.chromium import set_width, start_chromium
from spanwise.viewer import Viewer, serve


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    try:
        found = start_chromium(tmp_path_factory.mktemp("profile"))
    except FileNotFoundError as error:
        pytest.fail(str(error), pytrace=False)
    with found:
        yield found


@pytest.fixture
def page(driver: Any) -> Iterator[Page]:
    """The page; when the test ends it must have said nothing and asked nobody else."""
    with ExitStack() as stack:
        yield (opened := Page(driver, stack))
        opened.check()


class Page:
    """What a person does with the page."""

    def __init__(self, driver: Any, stack: ExitStack) -> None:
        self.driver = driver
        self._stack = stack
        self.address = ""
        for kind in ("browser", "performance"):
            driver.get_log(kind)

    def serve(self, *folders: Path) -> None:
        server = self._stack.enter_context(serve(Viewer(folders), 0))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self._stack.callback(server.shutdown)
        self.address = server.address

    def narrow(self, width: int) -> None:
        """Make the window narrower until the test ends."""
        self._stack.callback(set_width, self.driver, 1280)
        set_width(self.driver, width)

    def open(self, hash: str = "", address: str | None = None) -> None:
        """Load the page anew at a place and wait until it is drawn."""
        self.driver.get("about:blank")
        self.driver.get((address or self.address) + hash)
        self.ready()

    def go(self, hash: str) -> None:
        """Change the address, as a link does."""
        self.js("location.hash = arguments[0]", hash)
        self.until(f"location.hash.startsWith('{hash.split('?')[0]}')")
        self.ready()

    def ready(self) -> None:
        """Wait until what is drawn is what the address asks for."""
        main = "document.getElementById('main').dataset"
        self.until(f"{main}.ready !== undefined && {main}.address === location.hash")

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def value(self, expression: str) -> Any:
        return self.js(f"return {expression}")

    def until(self, expression: str, seconds: float = 10) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, seconds, 0.05).until(
            lambda _: self.value(expression), f"never true: {expression}"
        )

    def find(self, selector: str) -> Any:
        from selenium.webdriver.common.by import By

        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.js("return document.querySelector(arguments[0]).textContent", selector)

    def count(self, selector: str) -> int:
        return self.js("return document.querySelectorAll(arguments[0]).length", selector)

    def click(self, selector: str) -> None:
        self.find(selector).click()

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def choose(self, selector: str, value: str) -> None:
        """Choose from a list, or move a slider, as its events do."""
        self.js(
            "const box = document.querySelector(arguments[0]); box.value = arguments[1];"
            "for (const name of ['input', 'change']) {"
            "  box.dispatchEvent(new Event(name, {bubbles: true})); }",
            selector,
            value,
        )

    def check(self) -> None:
        """No message on the console, and no request that left the machine."""
        messages = [entry["message"] for entry in self.driver.get_log("browser")]
        assert not messages, messages
        asked = [
            address
            for entry in self.driver.get_log("performance")
            if (address := requested(entry["message"]))
        ]
        own = tuple(filter(None, (self.address, "data:", "blob:", "file:", "about:", "chrome:")))
        assert not [address for address in asked if not address.startswith(own)], asked


def requested(message: str) -> str | None:
    event = json.loads(message)["message"]
    if event["method"] != "Network.requestWillBeSent":
        return None
    return event["params"]["request"]["url"]
