"""The page in the machine's own Chromium, driven by playwright."""

import contextlib
import os
import shutil

import pytest
from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_browser():
    """Return the path of a Chromium; in CI there has to be one."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        reason = "expected Chromium, got none; apt-get install chromium"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return found


@contextlib.contextmanager
def browsing():
    """Run a browser; yield it."""
    path = find_browser()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def opened(browser, **options):
    """Open a page of a browser.

    Args:
      browser: of `browsing`.
      **options: of its context, such as `color_scheme`.
    """
    context = browser.new_context(**options)
    context.set_default_timeout(30_000)
    try:
        yield context.new_page()
    finally:
        context.close()
