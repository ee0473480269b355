"""One process at a time on a run directory."""

import contextlib
import fcntl
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

from jaxvae.errors import InputError

NAME = "lock"


class InUse(InputError):
    """Another process works in the directory."""


class RunLock:
    """The lock of a run directory: taken on creation, held until the context exits or the process ends in any way.

    The operating system holds it on the file ``lock``, which names the holder. A holder that was killed
    leaves the file, but not the lock.

    Args:
      run_dir: an existing directory.
      shared: other processes may hold it as well, if they share it, too.
      name: of the file.

    Raises:
      InUse: another process holds it, named in the message.
      InputError: it cannot be taken.
    """

    def __init__(self, run_dir: Path, shared: bool = False, name: str = NAME):
        try:
            self._file = os.open(run_dir / name, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                os.truncate(self._file, 0)
                os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            except OSError:
                os.close(self._file)
                raise
        except BlockingIOError:
            raise _in_use(run_dir, name) from None
        except OSError as error:
            raise InputError(f"--run-dir {run_dir} cannot be written: {name}: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)


def check_free(run_dir: Path) -> None:
    """Raise `InUse` if a process has the lock of `run_dir` for itself; the directory stays as it is."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        # Without waiting, in case the file is a pipe.
        file = os.open(run_dir / NAME, os.O_RDONLY | os.O_NONBLOCK)
        try:
            # Shared: several processes of a job may look at once.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _in_use(run_dir, NAME) from None
        finally:
            os.close(file)


def _in_use(run_dir: Path, name: str) -> InUse:
    try:
        holder = " ".join((run_dir / name).read_text(encoding="utf-8", errors="replace").split())[:100]
    except OSError:
        holder = ""
    return InUse(f"--run-dir {run_dir} is in use by {holder or 'another process'}")
