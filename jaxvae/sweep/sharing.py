"""Several processes on one sweep, on any machines that share its directory.

They do not talk to each other. A process locks the directory of a program while it trains it, and takes the next one
that nobody has locked. The lock of a process that was lost is free, so another goes on from its newest checkpoint.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from jaxvae.errors import say
from jaxvae.run.lock import InUse, RunLock, check_free
from jaxvae.sweep.grid import PROGRAMS
from jaxvae.train.signals import StopSignals

TURN = "turn"  # The file on which processes take turns.
POLL = 0.5  # Seconds between two looks at what other processes have locked.


@contextlib.contextmanager
def turn(run_dir: Path) -> Iterator[None]:
    """Have the files of a sweep, but for those of its programs, to oneself. Waits for other processes.

    Raises:
      InputError: the directory cannot be written.
    """
    told = False
    while True:
        try:
            lock = RunLock(run_dir, name=TURN)
        except InUse as error:
            if not told:
                say(f"waiting: {error}")
                told = True
            time.sleep(POLL)
            continue
        with lock:
            yield
        return


def programs_left(run_dir: Path, count: int, stop: StopSignals) -> Iterator[int | None]:
    """The programs of a sweep that this process should train; each is locked until the next is asked for.

    Those that other processes have locked come once they are free: trained to the end, or left by a process that was
    lost. None: a signal came while it waited for them.

    Raises:
      InputError: the directory cannot be written.
    """
    left, told = list(range(count)), False
    for index in left:
        (run_dir / PROGRAMS / str(index)).mkdir(parents=True, exist_ok=True)
    while left:
        busy = []
        for index in left:
            try:
                lock = RunLock(run_dir / PROGRAMS / str(index))
            except InUse:
                busy.append(index)
                continue
            with lock:
                yield index
        if busy and not told:
            named = ", ".join(str(index + 1) for index in busy)
            say(f"waiting for other processes, which train: program {named}")
            told = True
        if busy:
            if stop.received is not None:
                yield None
                return
            time.sleep(POLL)
        left = busy


def nobody_trains(run_dir: Path, programs: int) -> bool:
    """Whether no process has a program: only then may `--resume` change how long all of them are trained."""
    try:
        for index in range(programs):
            check_free(run_dir / PROGRAMS / str(index))
    except InUse:
        return False
    return True
