"""Run directories, of single runs and of sweeps: finding, making and writing them."""

import contextlib
import itertools
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jaxvae.errors import InputError, SaveError
from jaxvae.run.lock import check_free


@contextmanager
def told(run_dir: Path, error: type[InputError] | type[SaveError]) -> Iterator[None]:
    """Turn errors of the file system into an `error` about `run_dir`: `InputError` before a run, or `SaveError`."""
    try:
        yield
    except OSError as reason:
        raise error(f"--run-dir {run_dir} cannot be written: {reason.strerror or reason}") from reason


def require(run_dir: Path) -> None:
    """Raise `InputError` if there is no run in a directory: if it has no ``config.json``."""
    if (run_dir / "config.json").is_file():
        return
    if not run_dir.exists():
        raise InputError(f"{run_dir} is not a run directory: it does not exist")
    runs = sorted(path.parent.name for path in run_dir.glob("*/config.json"))
    within = f"; it holds the runs {', '.join(runs[:5])}{', ...' if len(runs) > 5 else ''}" if runs else ""
    raise InputError(f"{run_dir} is not a run directory: it has no config.json{within}")


def check(run_dir: Path, resume: bool, files: Sequence[str]) -> None:
    """Refuse an unsuitable run directory before anything is read; it stays as it is.

    Args:
      run_dir: may or may not exist.
      resume: whether it must hold a run: then the first of `files` exists.
      files: names of the files of a run.

    Raises:
      InputError: it is not a directory or is in use; or it holds a run without `resume`, or none with it.
    """
    with told(run_dir, InputError):
        if run_dir.exists() and not run_dir.is_dir():
            raise InputError(f"--run-dir {run_dir} is not a directory")
        _check_name(run_dir)
        check_free(run_dir)
        if resume:
            check_kinds(run_dir)
        if resume and not (run_dir / files[0]).is_file():
            raise InputError(f"--resume: {run_dir} holds no run (no {files[0]})")
        if not resume:
            check_empty(run_dir, files)


def _check_name(path: Path) -> None:
    """Raise `InputError` for a name under which no run can be written: an address; or not UTF-8, for TensorStore."""
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(path)):  # pathlib makes one slash of two.
        scheme, _, rest = str(path).partition(":/")
        raise InputError(
            f"--run-dir {scheme}://{rest.lstrip('/')}: runs are written to directories, not to object storage: mount "
            "it as a directory, or copy the run there afterwards"
        )
    try:
        os.path.abspath(path).encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"--run-dir {path} cannot be written: its name is not UTF-8") from None


def check_epochs(step: int, epochs: int, steps_per_epoch: int) -> None:
    """Raise `InputError` if a run at `step` is resumed with fewer epochs than it has begun."""
    if step > epochs * steps_per_epoch:
        raise InputError(
            f"--epochs {epochs} is less than what is done already: step {step:,}, at {steps_per_epoch:,} steps an epoch"
        )


def check_kinds(run_dir: Path) -> None:
    """Raise `InputError` if `run_dir` holds anything but files and directories: to open a pipe would hang."""
    for folder, _, names in os.walk(run_dir):  # Which passes over a directory that another process has just deleted.
        for path in (Path(folder) / name for name in names):
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISREG(path.stat().st_mode):
                    raise InputError(f"{path} is neither a file nor a directory")


def check_empty(run_dir: Path, files: Sequence[str]) -> None:
    """Raise `InputError` if one of `files` exists."""
    found = [name for name in files if (run_dir / name).exists()]
    if found:
        raise InputError(
            f"--run-dir {run_dir} already holds a run ({found[0]}): add --resume to go on, or name another directory"
        )


def make(run_dir: Path | None, prefix: str) -> Path:
    """Make `run_dir`, which may exist, or for None a new directory, runs/PREFIX-DATE-TIME.

    Raises:
      InputError: it cannot be made.
    """
    if run_dir is not None:
        with told(run_dir, InputError):
            run_dir.mkdir(parents=True, exist_ok=True)
        return run_dir
    runs = Path("runs")
    _check_name(runs)
    with told(runs, InputError):
        runs.mkdir(exist_ok=True)
        name = time.strftime(f"{prefix}-%Y%m%d-%H%M%S")
        for suffix in itertools.chain([""], (f"-{n}" for n in itertools.count(2))):
            try:
                (runs / (name + suffix)).mkdir()
            except FileExistsError:
                continue
            return runs / (name + suffix)
    raise AssertionError("there is always another name")


def write_skipped(folder: Path, skipped: Sequence[str]) -> None:
    """Write `skipped.txt`, a line for each picture file that was left out; nothing if there is none."""
    if skipped:
        write_whole(folder / "skipped.txt", "\n".join([*skipped, ""]))


def write_whole(path: Path, text: str) -> None:
    """Write a file; the old one stays until the new one is complete. Raises `OSError`."""
    fresh = path.with_name(path.name + ".tmp")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)
