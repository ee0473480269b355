"""Signals that stop a run: noted and acknowledged at once, and heeded between two compiled calls."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


class StopSignals:
    """Notes SIGINT, SIGTERM and SIGHUP, so that the run can save and stop. A context manager.

    A second signal of the same kind ends the process at once, with nothing more saved. A thread reads what the C
    handlers write to a pipe (`signal.set_wakeup_fd`): a Python handler would wait until the main thread leaves
    compiled code, and equal signals that are pending become one.

    Outside the main thread, where Python allows no handlers, nothing is noted: the caller owns the signals.

    Args:
      tell: called by the thread with the first signal, to pass it on to the other processes of a job.

    Attributes:
      received: the first signal, or None.
    """

    def __init__(self, tell: Callable[[int], None] = lambda number: None) -> None:
        self._tell = tell
        self.received: int | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # As nohup sets it.
            numbers.append(signal.SIGHUP)
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._old_descriptor = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, args=(frozenset(numbers),), daemon=True, name="signals")
        self._thread.start()
        self._old = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._old:
            return
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_descriptor)
        os.close(self._write)
        self._thread.join()
        os.close(self._read)

    def _listen(self, numbers: frozenset[int]) -> None:
        seen: set[int] = set()
        while received := os.read(self._read, 64):
            for number in received:
                if number not in numbers:
                    continue
                name = signal.Signals(number).name
                if number in seen:
                    _say(f"{name} again: ended, with nothing saved since the last checkpoint")
                    # Not by an exception: Python would wait for the threads of a save under way, perhaps for ever.
                    os._exit(128 + number)
                self.received = self.received or number
                if not seen:
                    _say(f"{name}: saving, then stopping; once more to end at once")
                    self._tell(number)
                seen.add(number)


def _say(text: str) -> None:
    """Write to stderr, not through the console, which another thread may be using."""
    with contextlib.suppress(OSError):  # The terminal may be gone.
        os.write(2, f"{text}\n".encode())


def unless_stopped(function: Callable[[], T], stop: StopSignals) -> T | None:
    """The result of `function`, run in its own thread; None, without waiting for it, if a signal comes first.

    For work that cannot be interrupted, such as a compilation. The thread goes on, but does not keep the process alive.
    """
    result: Future[T] = Future()

    def work() -> None:
        try:
            result.set_result(function())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=work, daemon=True, name="unless-stopped").start()
    while stop.received is None:
        if wait([result], timeout=0.05).done:
            return result.result()
    return None
