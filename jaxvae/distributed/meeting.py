"""How the processes of a job meet, and the connections that stay open between process 0 and each of the others.

Process 0 listens at the coordinator's address and the others connect. All print whom they wait for. When all are
there, process 0 stops listening, so that JAX's own coordinator can take the port.
"""

import contextlib
import errno
import json
import os
import socket
import threading
import time
from contextlib import ExitStack
from typing import Any, NamedTuple

from jaxvae.errors import InputError, one_line, say

LONGEST = 10_000  # Characters of a message.
KEEPALIVE_SECONDS = 2  # Between two keepalive probes of the kernel.
VANISHED_SECONDS = 10  # Without an answer, after which a machine counts as gone.


class NotAMessage(Exception):
    """The other end is not a process of the job."""


class Peer(NamedTuple):
    """A process of the job, as the others name it."""

    number: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.number} (pid {self.pid} on {self.host})"


def this_process(number: int) -> Peer:
    """This process, as `number` of its job."""
    return Peer(number, socket.gethostname(), os.getpid())


class Link:
    """A connection to another process of the job: JSON objects, one per line. Any thread may send.

    Attributes:
      peer: who is at the other end; None until it has said so.
      left: whether it said that it leaves.
      open: False once the other side was found to be gone.
    """

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self._lines = connection.makefile(encoding="utf-8", errors="replace")
        self._lock = threading.Lock()
        self.peer: Peer | None = None
        self.left = False
        self.open = True

    def send(self, kind: str, **content: Any) -> None:
        """Send a message. Failures are ignored: `receive` finds out that the other side is gone."""
        with self._lock, contextlib.suppress(OSError):
            self._connection.sendall(json.dumps({"kind": kind, **content}).encode() + b"\n")

    def receive(self, timeout: float | None = None) -> dict[str, Any] | None:
        """The next message, or None if the other side is gone.

        Raises:
          TimeoutError: there was none within `timeout` seconds.
          NotAMessage: it is not one of ours.
        """
        self._connection.settimeout(timeout)
        try:
            line = self._lines.readline(LONGEST)
        except TimeoutError:
            raise
        except OSError:
            line = ""
        if not line.endswith("\n"):
            self.open = False
            return None
        try:
            message = json.loads(line)
        except ValueError:
            raise NotAMessage from None
        if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
            raise NotAMessage
        return message

    def keep_alive(self) -> None:
        """Have the kernel find out within `VANISHED_SECONDS` that the other machine is gone.

        The other side's kernel answers, so a process that is busy or suspended is not lost.
        """
        keep_alive(self._connection)

    def close(self) -> None:
        """Close the connection."""
        self._lines.close()
        self._connection.close()


def keep_alive(connection: socket.socket) -> None:
    """As `Link.keep_alive`."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    idle = "TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE"  # macOS has another name for it.
    options = {
        idle: KEEPALIVE_SECONDS,
        "TCP_KEEPINTVL": KEEPALIVE_SECONDS,
        "TCP_KEEPCNT": VANISHED_SECONDS // KEEPALIVE_SECONDS,
        "TCP_USER_TIMEOUT": 1000 * VANISHED_SECONDS,  # For data sent and not acknowledged.
    }
    for name, value in options.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def meet(name: str, address: str, own: Peer, num_processes: int, timeout: float) -> list[Link]:
    """Wait for all processes of the job, at the address that JAX will use next.

    JAX itself aborts, with a C++ trace, if a process does not connect.

    Args:
      name: of the address, for errors.
      address: HOST:PORT.
      own: this process.
      num_processes: of the job.
      timeout: seconds to wait for all of them.

    Returns:
      On process 0, a link to every other process, in order; on the others, one to process 0.

    Raises:
      InputError: a process does not connect in time, or belongs to another job.
    """
    host, _, port = address.rpartition(":")
    end = time.monotonic() + timeout
    if own.number == 0:
        return _await_all(name, address, int(port), own, num_processes, end)
    say(f"waiting for process 0 at {address}")
    with ExitStack() as undo:
        try:
            link = Link(connect(host.strip("[]"), int(port), end))
            undo.callback(link.close)
            link.send("here", of=num_processes, peer=own)
            while (answer := link.receive(max(end - time.monotonic(), 0.1))) and answer["kind"] == "waiting":
                say(str(answer.get("text")))
            if answer is None:
                raise InputError(f"{name}: process 0 gave up waiting for the others")
            if answer["kind"] == "refused":
                raise InputError(f"{name}: {answer.get('reason')}")
            link.peer = _peer(answer)
        except OSError as error:
            raise InputError(f"{name} did not answer in {timeout:g} s: {error.strerror or error}") from None
        except NotAMessage:
            raise InputError(f"{name}: what answers there is not a process of jaxvae") from None
        undo.pop_all()
    return [link]


def _peer(message: dict[str, Any]) -> Peer:
    try:
        number, host, pid = message["peer"]
        return Peer(int(number), one_line(str(host))[:100], int(pid))
    except (KeyError, TypeError, ValueError):
        raise NotAMessage from None


def connect(host: str, port: int, end: float) -> socket.socket:
    """A connection to HOST:PORT, tried until `time.monotonic()` is `end`. Raises `OSError`."""
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=max(end - time.monotonic(), 0.1))
            if connection.getsockname() != connection.getpeername():
                return connection
            connection.close()  # On an ephemeral port where nobody listens yet, TCP can connect to itself.
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        except OSError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.2)


def _await_all(name: str, address: str, port: int, own: Peer, num_processes: int, end: float) -> list[Link]:
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        server = socket.create_server(("", port), family=family, dualstack_ipv6=dual)
    except OSError as error:
        raise InputError(f"{name}: cannot listen there: {error.strerror}") from None
    missing = set(range(1, num_processes))
    links: dict[int, Link] = {}

    def awaited() -> str:
        numbers = ", ".join(map(str, sorted(missing)))
        return f"waiting for process{'es' if len(missing) > 1 else ''} {numbers} of {num_processes} at {address}"

    with server, ExitStack() as undo:
        if missing:
            say(awaited())
        while missing:
            try:
                server.settimeout(max(end - time.monotonic(), 0.01))
                link = Link(server.accept()[0])
            except TimeoutError:
                numbers = ", ".join(map(str, sorted(missing)))
                raise InputError(f"{name}: of {num_processes} processes, number {numbers} did not connect") from None
            undo.callback(link.close)
            try:
                said = link.receive(timeout=5)
                if said is None or said["kind"] != "here":
                    raise NotAMessage
                peer, count = _peer(said), said.get("of")
            except (OSError, NotAMessage):
                link.close()  # Not a process of the job, such as a port scanner.
                continue
            if count != num_processes or peer.number not in missing:
                reason = f"process {peer.number} of {count} does not fit a job of {num_processes}, or connected twice"
                link.send("refused", reason=reason)
                raise InputError(f"{name}: {reason}")
            missing.remove(peer.number)
            link.peer, links[peer.number] = peer, link
            said_now = f"{peer} is here" + (f"; {awaited()}" if missing else "")
            say(said_now)
            if missing:
                for other in links.values():
                    other.send("waiting", text=awaited())
        for link in links.values():
            link.send("go", peer=own)
        undo.pop_all()
    return [links[number] for number in sorted(links)]
