"""A Chromium for the tests of the page, where there is one: Debian's, or what CHROMIUM names. Else they are skipped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")  # not longer: while it is there, an event loop runs in this thread
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    sync = pytest.importorskip("playwright.sync_api")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium: apt-get install chromium, or name one in the variable CHROMIUM")
    with sync.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


class Page:
    """A page opened from disk. faults: what it wrote to the console, raised, or asked the network for."""

    def __init__(self, browser: Any, path: Path, hash: str = "#/", **options: Any) -> None:
        self.faults: list[str] = []
        self.path = path
        self.page = browser.new_page(**({"viewport": {"width": 1200, "height": 900}} | options))
        self.page.on("console", lambda message: self.faults.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        own = path.as_uri()
        self.page.on("request", lambda request: self._asked(request.url, own))
        self.go(hash)

    def _asked(self, url: str, own: str) -> None:
        if url.split("#")[0] != own and not url.startswith(("data:", "blob:")):
            self.faults.append(f"request: {url}")

    def go(self, hash: str) -> None:
        """Open the file at this place, as a link that was pasted does."""
        self.page.goto("about:blank")
        self.page.goto(self.path.as_uri() + hash)
        self.page.wait_for_selector("h2")

    def at(self) -> str:
        """The place in the address."""
        return str(self.page.evaluate("location.hash"))

    def heading(self, text: str) -> None:
        """Wait for a heading."""
        self.page.wait_for_selector(f"h2:has-text({text!r})")

    def text(self, selector: str = "main") -> str:
        """The text in it."""
        return str(self.page.inner_text(selector))


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    """Opens pages; at the end none of them may have had a fault."""
    pages: list[Page] = []

    def open_page(path: Path, hash: str = "#/", **options: Any) -> Page:
        pages.append(Page(browser, path, hash, **options))
        return pages[-1]

    yield open_page
    faults = [fault for page in pages for fault in page.faults]
    for page in pages:
        page.page.close()
    assert faults == []
