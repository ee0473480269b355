"""A page of jaxvae.explore in a headless Chromium, for measuring it and for its pictures in the documentation."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from playwright.sync_api import Page, sync_playwright

READY = "window.Bokeh && Bokeh.documents.length > 0 && Bokeh.documents[0].is_idle"


@contextlib.contextmanager
def served(words: Sequence[str]) -> Iterator[tuple[str, float]]:
    """The address of a page of ``jaxvae.explore`` with these arguments, and the seconds until it was printed."""
    command = [sys.executable, "-m", "jaxvae.explore", *words]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        if found is None:
            raise SystemExit(f"jaxvae.explore ended with code {process.wait()}")
        yield found[0], time.perf_counter() - start
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def opened(address: str, width: int = 1440, height: int = 1000, **options: Any) -> Iterator[Page]:
    """The page in a browser, drawn completely."""
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height}, **options)
        page.goto(address)
        page.wait_for_function(READY)
        yield page
        browser.close()
