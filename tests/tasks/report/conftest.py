"""A real browser for the pages."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests.servers.supervisor import skip_without


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium without a window. Not for the whole session: while Playwright runs, this thread has an event
    loop, and Prefect's calls would wait to be awaited."""
    chromium = shutil.which("chromium")
    skip_without([] if chromium else ["chromium"], "apt-get install --no-install-recommends chromium")
    with sync_playwright() as playwright:
        expect.set_options(timeout=30_000)  # a busy machine
        found = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()
