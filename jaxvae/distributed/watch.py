"""How the processes of a job watch each other, independently of JAX.

If a process dies, its kernel closes its connections; if a machine vanishes, they time out. Either way process 0, which
is connected to all, tells the rest, and all processes that are left end at once, with one line. Threads do this, since
the main thread may wait for ever for a result of the lost process.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from jaxvae.distributed.meeting import Link, NotAMessage, Peer, connect, keep_alive
from jaxvae.errors import one_line

EXIT_JOB = 5  # The exit code if another process of the job was lost, or failed.
TELL_SECONDS = 2.0  # For the others to hear why this process ends.
LEAVE_SECONDS = 300.0  # For all to leave, once one does: a last checkpoint may take long.
LOSS_SECONDS = 3.0  # Within which a loss is known, after a computation failed because of it.


class Watch:
    """One process's part in the watch.

    Args:
      own: this process.
      links: on process 0, to every other process; on the others, to process 0.
      advice: what the user can do about a lost process.
    """

    def __init__(self, own: Peer, links: Sequence[Link], advice: str):
        self.own = own
        self._links, self._advice = links, advice
        self._changed = threading.Condition()
        self._all_left = not links
        self._ends = False
        self._stop: int | None = None
        for link in links:
            link.keep_alive()
            threading.Thread(target=self._listen, args=(link,), name="watch", daemon=True).start()

    @property
    def stop(self) -> int | None:
        """The first signal passed to `request_stop` in any process, once it is known here."""
        return self._stop

    def request_stop(self, number: int) -> None:
        """Tell every process that this one received the signal `number`. Waits for nothing. Any thread may call it."""
        self._note_stop(number)
        for link in self._links:
            link.send("stop", number=number)

    def _note_stop(self, number: int) -> None:
        if self._stop is None:
            self._stop = number

    def _listen(self, link: Link) -> None:
        with contextlib.suppress(NotAMessage):
            while (message := link.receive()) is not None:
                self._take(link, message["kind"], message)
        with self._changed:
            known = self._ends or link.left or self._all_left
        if not known:
            self._end(f"{link.peer} was lost; {self._advice}", link)

    def _take(self, link: Link, kind: str, message: dict[str, Any]) -> None:
        if kind == "stop":
            self._note_stop(message["number"])
            for other in self._links:
                if other is not link:
                    other.send("stop", number=message["number"])
        elif kind == "end":
            self._end(one_line(str(message["reason"])), link)
        elif kind in ("leaving", "all left"):
            with self._changed:
                link.left = True
                self._all_left = kind == "all left" or (self.own.number == 0 and all(x.left for x in self._links))
                self._changed.notify_all()

    def leave(self) -> None:
        """Wait until every process leaves, too. End those that do not: they would wait for this one."""
        if self.own.number:
            self._links[0].send("leaving")
        with self._changed:
            together = self._changed.wait_for(lambda: self._all_left, LEAVE_SECONDS)
        if not together:
            self.fail(f"{self.own} left, but not every process did")
        elif not self.own.number:
            for link in self._links:
                link.send("all left")

    def fail(self, reason: str) -> None:
        """Tell every process that this one ends, and why, so that all end; return when they know."""
        with self._changed:
            if self._ends:
                self._changed.wait()  # For the thread that ends this process.
            self._ends = True
        self._tell(reason, self._links)

    def _tell(self, reason: str, links: Sequence[Link]) -> None:
        for link in links:
            link.send("end", reason=reason)
        end = time.monotonic() + TELL_SECONDS
        while time.monotonic() < end and any(link.open for link in links):
            time.sleep(0.01)

    def _end(self, reason: str, source: Link) -> None:
        """Print one line and end this process, whatever its other threads do."""
        with self._changed:
            if self._ends:
                return
            self._ends = True
        # Not through the console: another thread may hold its locks. On a terminal, show the cursor that it hides.
        start = "\n\x1b[?25h" if os.isatty(2) else ""
        with contextlib.suppress(OSError):
            os.write(2, f"{start}error: {reason}\n".encode())
        self._tell(reason, [link for link in self._links if link is not source])
        os._exit(EXIT_JOB)


def relay(host: str, port: int, timeout: float) -> str:
    """HOST:PORT on this machine that passes connections on to `host` and `port`.

    A connection stays open here when it ends there: JAX's client aborts the process, with a C++ trace, as soon as it
    loses its coordinator, and leaves no time to say what was lost.
    """
    server = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            near = server.accept()[0]
            try:
                far = connect(host, port, time.monotonic() + timeout)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            keep_alive(far)
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=_pass_on, args=(source, target), name="relay", daemon=True).start()

    threading.Thread(target=accept, name="relay", daemon=True).start()
    return f"127.0.0.1:{server.getsockname()[1]}"


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(2**16):
            target.sendall(data)
