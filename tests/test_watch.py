"""How processes watch each other, with threads as processes and socket pairs as connections."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from runs import PATIENCE

from jaxvae.distributed import watch
from jaxvae.distributed.meeting import Link, Peer
from jaxvae.distributed.watch import Watch

ADVICE = "go on"


class Job:
    """Three watches, of the three processes of a job."""

    def __init__(self) -> None:
        pairs = [socket.socketpair(), socket.socketpair()]
        self.links = [[Link(end) for end, _ in pairs], [Link(pairs[0][1])], [Link(pairs[1][1])]]
        peers = [Peer(number, f"host{number}", 100 + number) for number in range(3)]
        self.links[0][0].peer, self.links[0][1].peer = peers[1:]
        self.links[1][0].peer = self.links[2][0].peer = peers[0]
        self.watches = [Watch(peer, links, ADVICE) for peer, links in zip(peers, self.links, strict=True)]

    def lose(self, number: int) -> None:
        """Close its connections, as the kernel does if a process dies."""
        for link in self.links[number]:
            link._connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    # A socket pair has no keepalive, and here no process ends.
    monkeypatch.setattr(Link, "keep_alive", lambda link: None)
    monkeypatch.setattr(watch, "TELL_SECONDS", 0.1)
    made = Job()
    yield made
    for links in made.links:
        for link in links:
            link._connection.close()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("sender", [0, 1, 2])
def test_a_signal_to_one_is_known_to_all(sender: int, job: Job) -> None:
    assert [each.stop for each in job.watches] == [None] * 3
    job.watches[sender].request_stop(signal.SIGTERM)
    wait_for(lambda: all(each.stop == signal.SIGTERM for each in job.watches))


def test_none_leaves_before_all_do(job: Job) -> None:
    left = []
    threads = [threading.Thread(target=lambda w=each: left.append(w.own.number) or w.leave()) for each in job.watches]
    for number in (2, 0):
        threads[number].start()
    wait_for(lambda: job.links[0][1].left)
    assert threads[0].is_alive() and threads[2].is_alive()
    threads[1].start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


@pytest.mark.parametrize(("lost", "told"), [(1, [0, 2]), (0, [1, 2])])
def test_a_process_that_is_lost_ends_all_others(
    lost: int, told: list[int], job: Job, exits: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    with job.watches[lost]._changed:
        job.watches[lost]._ends = True  # It is not there to see itself go.
    job.lose(lost)
    wait_for(lambda: len(exits) == len(told))
    assert exits == [watch.EXIT_JOB] * len(told)
    lines = capfd.readouterr().err.splitlines()
    assert lines == [f"error: process {lost} (pid {100 + lost} on host{lost}) was lost; {ADVICE}"] * len(told)


def test_a_process_that_leaves_alone_ends_the_others(
    job: Job, exits: list[int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch, "LEAVE_SECONDS", 0.05)
    job.watches[1].leave()
    wait_for(lambda: len(exits) == 2)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2 and all("process 1 (pid 101 on host1)" in line for line in lines)


def test_a_process_that_fails_says_why(job: Job, exits: list[int], capfd: pytest.CaptureFixture[str]) -> None:
    job.watches[2].fail("process 2 failed: it\x1b[31m\nsaid so")
    wait_for(lambda: len(exits) == 2)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[0] == lines[1] and lines[0].startswith("error: process 2 failed: it")
    assert "\x1b" not in lines[0]


def test_a_relay_stays_open_when_its_target_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, _, port = watch.relay("127.0.0.1", server.getsockname()[1], 10).rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as near:
            far, _ = server.accept()
            near.sendall(b"ping")
            assert far.recv(4) == b"ping"
            far.sendall(b"pong")
            assert near.recv(4) == b"pong"
            far.close()
            near.settimeout(0.2)
            with pytest.raises(TimeoutError):
                near.recv(1)
