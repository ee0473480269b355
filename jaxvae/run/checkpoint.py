"""Save and restore the train state.

A checkpoint is a directory ``<run>/checkpoints/<step>``: ``state/``, as Orbax writes it, and
``record.json``, which says what it belongs to and holds the digest of every array, of every file and
of itself. It appears by one rename, once all of it is on disk: a step is whole, or was damaged later,
which the digests detect.
"""

import contextlib
import errno
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import jax

from jaxvae import errors
from jaxvae.errors import InputError, SaveError
from jaxvae.run.step_files import (
    FORMAT,
    DamagedError,
    PrunedError,
    S,
    Saved,
    State,
    array_digests,
    file_digest,
    files_below,
    finite,
    read_record,
    read_step,
    reason,
    sync_directory,
    unless_pruned,
    write_record,
    write_state,
)

TEMPORARY = ".tmp"  # Ends the name of what is being written or deleted.
DAMAGED = "damaged-"  # Begins the name of a step that was set aside.
TRIES = 20  # Attempts to read a step before the run that writes deletes it.
T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one run. A context manager: leaving it waits for the save under way.

    A background thread writes. Its errors are raised by the next `check`, `save` or `wait`, or on
    leaving. One process of a job saves and restores; the others need not have the directory.

    Args:
      directory: of the checkpoints, created if needed.
      keep: newest checkpoints to keep.
      keep_best: checkpoints with the lowest validation cost to keep besides.
      read_only: change nothing: neither clean up nor set damaged steps aside.
      warn: called with a sentence about each damaged checkpoint.

    Raises:
      InputError: `directory` cannot be used.
    """

    def __init__(
        self,
        directory: Path,
        keep: int = 3,
        keep_best: int = 0,
        read_only: bool = False,
        warn: Callable[[str], None] = errors.warn,
    ):
        self.directory = directory.absolute()
        self._keep, self._keep_best, self._read_only, self._warn = keep, keep_best, read_only, warn
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[None] | None = None
        self._newest: int | None = None
        try:
            if not read_only:
                self.directory.mkdir(parents=True, exist_ok=True)
                for path in self.directory.glob(f"*{TEMPORARY}"):
                    shutil.rmtree(path)
            self._newest = max(self.steps(), default=None)
        except OSError as error:
            raise InputError(f"{directory} cannot be used for checkpoints: {error.strerror or error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        try:
            self.wait()
        except SaveError as failed:
            if error is None:
                raise
            error.add_note(str(failed))

    def steps(self) -> list[int]:
        """The saved steps, damaged or not, in order."""
        paths = self.directory.iterdir() if self.directory.is_dir() else ()
        return sorted(int(path.name) for path in paths if path.name.isascii() and path.name.isdigit())

    def latest_step(self) -> int | None:
        """The newest step saved or being saved, or None."""
        return self._newest

    def best_step(self) -> int | None:
        """The saved step with the lowest validation cost, or None."""
        return next(iter(self._ranked()), None)

    def check(self) -> None:
        """Raise `SaveError` if the save under way has failed by now. Waits for nothing."""
        if self._saving is not None and self._saving.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the save under way. Raises `SaveError` if it failed."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def save(self, state: State, record: Mapping[str, Any], validation_cost: float | None = None) -> None:
        """Save `state` under its step, in the background.

        Args:
          state: arrays that this process holds in full.
          record: JSON that says which run and data the state belongs to.
          validation_cost: the model's cost on the validation images, by which the best is chosen: lower is
            better; None or a number that is not finite is never best.

        Raises:
          SaveError: the save before this one failed, or this step or a later one was saved.
        """
        self.wait()
        host: State = jax.device_get(state)
        step = int(host.step)
        if self._newest is not None and step <= self._newest:
            raise SaveError(f"{self.directory}: step {step} was not saved (newest is {self._newest})")
        self._newest = step
        ranked = {**record, "validation_cost": finite(validation_cost)}
        self._saving = self._thread.submit(self._write, step, host, ranked)

    def rank(self, step: int, validation_cost: float | None) -> None:
        """Note the validation cost of a step that was saved before it was evaluated, in the background.

        Raises:
          SaveError: the save before this one failed.
        """
        self.wait()
        self._saving = self._thread.submit(self._write_cost, step, finite(validation_cost))

    def _write(self, step: int, state: State, record: dict[str, Any]) -> None:
        with self._writing(step) as temporary:
            # Before Orbax meets a full disk: each of its threads would complain on stderr.
            if shutil.disk_usage(temporary).free < sum(leaf.nbytes for leaf in jax.tree.leaves(state)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write_state(temporary / "state", state)
            files = {name: file_digest(temporary / name) for name in files_below(temporary)}
            content = {"format": FORMAT, "record": record, "arrays": array_digests(state), "files": files}
            write_record(temporary, content)
            temporary.rename(self.directory / str(step))
            sync_directory(self.directory)

    def _write_cost(self, step: int, validation_cost: float | None) -> None:
        with self._writing(step) as temporary:
            target = self.directory / str(step)
            content = read_record(target)
            content["record"]["validation_cost"] = validation_cost
            write_record(temporary, content)
            (temporary / "record.json").replace(target / "record.json")
            sync_directory(target)
            temporary.rmdir()

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[Path]:
        """A temporary directory to write to; afterwards, prune. Raises `SaveError`."""
        target = self.directory / str(step)
        temporary = self.directory / f"{step}{TEMPORARY}"
        try:
            temporary.mkdir()
            yield temporary
        except Exception as error:  # Orbax and TensorStore raise many kinds.
            shutil.rmtree(temporary, ignore_errors=True)
            raise SaveError(f"checkpoint {target} could not be saved: {reason(error)}") from error
        try:
            self._prune()
        except OSError as error:
            raise SaveError(f"{target} is saved, but an older one could not be deleted: {reason(error)}") from error

    def _prune(self) -> None:
        """Delete all steps but the newest and the best."""
        steps = self.steps()
        kept = set(steps[-self._keep :])
        if self._keep_best:
            kept.update(self._ranked()[: self._keep_best])
        for step in steps:
            if step not in kept:
                # Renamed first, so that a step is always whole.
                doomed = self.directory / f"{step}{TEMPORARY}"
                (self.directory / str(step)).rename(doomed)
                shutil.rmtree(doomed)

    def _ranked(self) -> list[int]:
        """The steps that have a validation cost, the best first."""
        costs = {step: cost for step in self.steps() if (cost := self._validation_cost(step)) is not None}
        return sorted(costs, key=lambda step: costs[step])

    def _validation_cost(self, step: int) -> float | None:
        try:
            cost = read_record(self.directory / str(step))["record"].get("validation_cost")
        except (DamagedError, InputError):
            return None
        return cost if isinstance(cost, float) and math.isfinite(cost) else None

    def read_record(self) -> dict[str, Any]:
        """The newest intact record of a step.

        Raises:
          InputError: there is no checkpoint, or the records of all of them are damaged.
        """

        def read() -> dict[str, Any]:
            for step in reversed(self.steps()):
                path = self.directory / str(step)
                try:
                    with unless_pruned(path):
                        record: dict[str, Any] = read_record(path)["record"]
                        return record
                except DamagedError:
                    continue
            raise InputError(self._nothing())

        return self._again_if_pruned(read)

    def _again_if_pruned(self, read: Callable[[], T]) -> T:
        """What `read` returns. After a `PrunedError` it is called again, on the steps that exist then."""
        for _ in range(TRIES):
            with contextlib.suppress(PrunedError):
                return read()
        raise InputError(
            f"{self.directory}: a run replaces its checkpoints faster than they can be read; try again, or train with "
            "a larger --keep-checkpoints"
        )

    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the training images, from `read_record`. Raises `InputError` as that does, or if it has none."""
        shape = self.read_record().get("image_shape")
        if not isinstance(shape, list) or len(shape) != 3 or not all(type(n) is int and n > 0 for n in shape):
            raise InputError(f"{self.directory}: the newest record.json names no image shape")
        height, width, channels = shape
        return height, width, channels

    def restore(self, like: S, best: bool = False, partial: bool = False) -> Saved[S] | None:
        """The newest undamaged checkpoint, or the best by the validation images; None if none was ever saved.

        Damaged steps are skipped: a warning names the step and what is damaged, and the step is set
        aside as ``damaged-STEP``.

        Args:
          like: a state with the structure, shapes and dtypes to restore to; its leaves may be
            `jax.ShapeDtypeStruct`.
          best: the one with the lowest validation cost, not the newest.
          partial: whether the checkpoint may hold more arrays than `like`; those are not restored.

        Raises:
          InputError: all checkpoints are damaged; or an undamaged one does not fit `like`, or has an
            unknown format; or `best` is set, and none has a validation cost.
        """
        return self._again_if_pruned(lambda: self._restore(like, best, partial))

    def _restore(self, like: S, best: bool, partial: bool) -> Saved[S] | None:
        steps = self._ranked() if best else list(reversed(self.steps()))
        if best and not steps:
            raise InputError(
                f"--best: {self.directory} holds no checkpoint with a validation metric to choose by; "
                "train with --validation to have one"
            )
        damaged: dict[int, str] = {}
        for step in steps:
            path = self.directory / str(step)
            try:
                with unless_pruned(path):
                    saved = read_step(path, like, partial)
            except DamagedError as error:
                damaged[step] = str(error)
                self._warn(f"checkpoint {path} is damaged: {error}")
                continue
            if not self._read_only:
                for bad in damaged:
                    self._set_aside(bad)
                self._newest = max(self.steps())
            return saved
        if damaged or any(self.directory.glob(f"{DAMAGED}*")):
            raise InputError(self._nothing())
        return None

    def _nothing(self) -> str:
        if self.steps() or any(self.directory.glob(f"{DAMAGED}*")):
            return f"{self.directory}: every checkpoint is damaged; none is left to go on from"
        return f"{self.directory} holds no checkpoint yet (--checkpoint-every 1 saves one after every epoch)"

    def _set_aside(self, step: int) -> None:
        number = 1
        while (aside := self.directory / f"{DAMAGED}{step}{f'-{number}' if number > 1 else ''}").exists():
            number += 1
        (self.directory / str(step)).rename(aside)
        self._warn(f"it was set aside as {aside}")
