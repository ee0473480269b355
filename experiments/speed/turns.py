"""Contenders as processes that take turns."""

import contextlib
import json
import select
import subprocess
import time
from collections.abc import Sequence
from statistics import median

TRIALS = 3  # Epochs by which the number of cores is chosen.
PATIENCE = 90  # Seconds for a trial's first epoch, compilation included: more threads than help can take far longer.


class Process:
    """A contender in a process of its own.

    Args:
      command: starts it. It reads commands from stdin, and answers each with a line of JSON.
      cores: how many it may run on, given to it as ``--cores``; None: all.
    """

    def __init__(self, command: Sequence[str], cores: int | None):
        self.cores, self.started = cores, time.perf_counter()
        given = [*command, *(["--cores", str(cores)] if cores else [])]
        self._process = subprocess.Popen(given, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, command: str, patience: float | None = None) -> dict[str, float]:
        """Send a command and wait for its answer. Raises `TimeoutError` after `patience` seconds."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(command, file=self._process.stdin, flush=True)
        if not select.select([self._process.stdout], [], [], patience)[0]:
            raise TimeoutError
        answer: dict[str, float] = json.loads(self._process.stdout.readline())
        return answer

    def epoch(self) -> float:
        """Train for an epoch; the seconds it took."""
        return self.ask("epoch")["seconds"]

    def end(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError), self._process:  # A command that it did not read is left.
            self._process.kill()


def best_cores(command: Sequence[str]) -> Process:
    """The contender on one core or on all (None), whichever is faster in the median of `TRIALS` epochs, in turn."""
    one, every = (Process(command, cores) for cores in (1, None))
    one.ask("epoch")
    try:
        every.ask("epoch", PATIENCE)
    except TimeoutError:  # More threads than help.
        every.end()
        return one
    seconds: dict[Process, list[float]] = {one: [], every: []}
    for _ in range(TRIALS):
        for process, found in seconds.items():
            found.append(process.epoch())
    best = min(seconds, key=lambda process: median(seconds[process]))
    (every if best is one else one).end()
    return best
