"""A headless Chromium, and a page in it with what went wrong there. Tests that need it are skipped without it."""

import base64
import contextlib
import io
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium")


@contextlib.contextmanager
def started() -> Iterator[Any]:
    """A browser of Playwright; skips the test if there is no command `chromium` or no package `playwright`."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    player = pytest.importorskip("playwright.sync_api")
    with player.sync_playwright() as playing:
        browser = playing.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A page in a browser.

    Attributes:
      page: of Playwright, which looks into the shadows of elements.
      wrong: errors of the console and of the page.
      asked: the addresses of all requests.
      url: of the page.
    """

    def __init__(self, browser: Any, url: str, width: int = 1500, height: int = 1100):
        self.wrong, self.asked = list[str](), list[str]()
        self.page = browser.new_page(viewport={"width": width, "height": height})
        self.page.on(
            "console", lambda said: self.wrong.append(said.text) if said.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("websocket", lambda socket: self.asked.append(socket.url))
        self.url = url
        self.page.goto(url)

    def changes(self, look: Callable[[], Any], act: Callable[[], Any]) -> None:
        """Assert that `act` changes what `look` sees, and wait for it."""
        before = look()
        act()
        for _ in range(3000):
            if look() != before:
                return
            self.page.wait_for_timeout(10)
        raise AssertionError(f"nothing changed after {act}")

    def press(self, control: Any, key: str) -> Callable[[], None]:
        """Focus a control and press a key."""
        return lambda: (control.focus(), self.page.keyboard.press(key))[1]


def decoded(source: str) -> Image.Image:
    """The picture in a data URL."""
    return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
