"""A headless Chromium for tests that open pages; a test is skipped where there is none.

Import it from any test (`from browser import opened`): pytest puts tests/ on the path.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def opened(address: str, **options: Any) -> Iterator[Any]:
    """Open a page in a browser; a Playwright page.

    An error of its scripts, or a request for anything that does not lie where it does, fails the test.

    Args:
        address: `file:...`, or of a server on this machine.
        options: as for Playwright's `new_page`.
    """
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browser_path = next(filter(None, map(shutil.which, NAMES)), None)
    if browser_path is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    problems: list[str] = []
    own = "file:" if address.startswith("file:") else address[: address.index("/", 8) + 1]
    with api.sync_playwright() as playwright:
        # Chromium's own sandbox refuses to run as root, as it is in containers.
        browser = playwright.chromium.launch(
            executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            tab = browser.new_page(**options)
            tab.on("pageerror", lambda error: problems.extend([f"script: {error}"]))
            tab.on("console", lambda line: problems.extend([line.text] * (line.type == "error")))
            tab.on(
                "request",
                lambda request: problems.extend(
                    [f"request: {request.url}"]
                    * (not request.url.startswith((own, "data:", "blob:")))
                ),
            )
            tab.goto(address)
            yield tab
        finally:
            browser.close()
    assert problems == []
