"""A tracker in a thread of its own, so that it can neither stall a run nor end it."""

import queue
import threading
import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from jaxvae.errors import one_line
from jaxvae.run.trackers.sink import Sink

MOST_WAITING = 1000  # Records and pictures; a few hundred MB of pictures at most.
CLOSE_SECONDS = 60.0  # How long the end of a run waits for a tracker.


class Background:
    """A `Sink` that hands everything to another one, in order, in a daemon thread.

    The other sink is made there when the first record comes: a run that fails before leaves nothing behind. If it
    fails, one warning says so, and the rest is dropped.

    Args:
      name: of the tracker, for warnings.
      start: makes the sink.
      warn: tells the user of something, in one line.
    """

    def __init__(self, name: str, start: Callable[[], Sink], warn: Callable[[str], None]):
        self._name, self._start, self._warn = name, start, warn
        self._waiting: queue.Queue[Callable[[Sink], None] | None] = queue.Queue(MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._failed = False

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Sink`."""
        self._put(lambda sink: sink.scalars(values, step))

    def picture(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """See `Sink`."""
        self._put(lambda sink: sink.picture(name, picture, step))

    def close(self) -> None:
        """See `Sink`. Waits `CLOSE_SECONDS` at most."""
        if self._thread is None or self._failed:
            return
        until = time.monotonic() + CLOSE_SECONDS
        try:
            self._waiting.put(None, timeout=CLOSE_SECONDS)
            self._thread.join(max(0.0, until - time.monotonic()))
        except queue.Full:
            pass
        if self._thread.is_alive():
            self._fail(f"did not finish within {CLOSE_SECONDS:g} s; what it did not get yet is lost to it")

    def _put(self, call: Callable[[Sink], None]) -> None:
        if self._failed:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"tracker-{self._name}", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait(call)
        except queue.Full:
            self._fail("does not keep up")

    def _work(self) -> None:
        try:
            sink = self._start()
            while (call := self._waiting.get()) is not None and not self._failed:
                call(sink)
            sink.close()
        except BaseException as error:  # Some trackers raise SystemExit.
            self._fail(f"{type(error).__name__}: {one_line(str(error))[:200]}")

    def _fail(self, why: str) -> None:
        if not self._failed:
            self._failed = True
            self._warn(f"warning: --track {self._name}: {why}; the run goes on without it")
