"""Save and restore the train state. The only module that imports Orbax.

A checkpoint is a directory ``<run>/checkpoints/<step>``: ``state/``, as Orbax writes it, and
``record.json``, which says what it belongs to and holds the digest of every array, of every file and
of itself. It appears by one rename, when all of it is on the disk: a step that is there is whole, or
was damaged later, which the digests tell.
"""

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxvae.config import Config
from jaxvae.config import load as load_config
from jaxvae.errors import InputError, SaveError
from jaxvae.models import Model, build_model
from jaxvae.train_step import TrainState, abstract_state, build_optimizer

# Orbax reports every phase of every save, its own fallbacks, and with several tracebacks each error that it
# raises anyway.
logging.getLogger("absl").setLevel(logging.CRITICAL)

FORMAT = 1  # Of record.json and what lies beside it.
TEMPORARY = ".tmp"  # Ends the name of what is being written or deleted.
DAMAGED = "damaged-"  # Begins the name of a step that was set aside.
TRIES = 20  # To read a step before the run that is writing deletes it.


class DamagedError(Exception):
    """A checkpoint is not what was saved. The message names the file or the array."""


class PrunedError(Exception):
    """A checkpoint was deleted, as a whole, while it was read: its run has gone on and saved later ones."""


class State(Protocol):
    """What can be saved: a tree of arrays that knows its step, such as a `TrainState`."""

    @property
    def step(self) -> Any:
        """Steps taken: an integer or an array of one."""


S = TypeVar("S", bound=State)
T = TypeVar("T")


class Saved(NamedTuple, Generic[S]):
    """What a checkpoint holds: NumPy arrays, and the record saved with them."""

    step: int
    state: S
    record: dict[str, Any]


def say_on_stderr(warning: str) -> None:
    """Print a warning."""
    print(f"warning: {warning}", file=sys.stderr)


class Checkpoints:
    """The checkpoints of one run. A context manager: leaving it waits for the save under way.

    A background thread writes. What goes wrong there is raised by the next `check`, `save`, `wait`, or on
    leaving. One process of a job saves and restores; the others need not have the directory.

    Args:
      directory: theirs, made if need be.
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
        warn: Callable[[str], None] = say_on_stderr,
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
        """The steps saved, damaged or not, in their order."""
        paths = self.directory.iterdir() if self.directory.is_dir() else ()
        return sorted(int(path.name) for path in paths if path.name.isascii() and path.name.isdigit())

    def latest_step(self) -> int | None:
        """The newest step saved or being saved, or None."""
        return self._newest

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
          state: arrays all of which this process holds.
          record: JSON, what the state belongs to.
          validation_cost: `jaxvae.variational.selection_cost` of the validation images, by which the best is chosen:
            lower is better, and None or a number that is not finite is never best.

        Raises:
          SaveError: the save before this one failed, or there is a step as late as this one.
        """
        self.wait()
        host: State = jax.device_get(state)
        step = int(host.step)
        if self._newest is not None and step <= self._newest:
            raise SaveError(f"{self.directory}: step {step} was not saved (newest is {self._newest})")
        self._newest = step
        ranked = {**record, "validation_cost": _finite(validation_cost)}
        self._saving = self._thread.submit(self._write, step, host, ranked)

    def rank(self, step: int, validation_cost: float | None) -> None:
        """Note the validation cost of a step that was saved before it was evaluated, in the background.

        Raises:
          SaveError: the save before this one failed.
        """
        self.wait()
        self._saving = self._thread.submit(self._write_cost, step, _finite(validation_cost))

    def _write(self, step: int, state: State, record: dict[str, Any]) -> None:
        with self._writing(step) as temporary:
            # Before Orbax meets a full disk: its threads would complain on stderr, each for itself.
            if shutil.disk_usage(temporary).free < sum(leaf.nbytes for leaf in jax.tree.leaves(state)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with _checkpointer() as checkpointer:
                checkpointer.save(temporary / "state", args=ocp.args.PyTreeSave(state))
            files = {name: _file_digest(temporary / name) for name in _files(temporary)}
            content = {"format": FORMAT, "record": record, "arrays": _array_digests(state), "files": files}
            _write_record(temporary, content)
            temporary.rename(self.directory / str(step))
            _sync_directory(self.directory)

    def _write_cost(self, step: int, validation_cost: float | None) -> None:
        with self._writing(step) as temporary:
            target = self.directory / str(step)
            content = _read_record(target)
            content["record"]["validation_cost"] = validation_cost
            _write_record(temporary, content)
            (temporary / "record.json").replace(target / "record.json")
            _sync_directory(target)
            temporary.rmdir()

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[Path]:
        """A directory to write to, which is gone in the end; then prune. Raises `SaveError`."""
        target = self.directory / str(step)
        temporary = self.directory / f"{step}{TEMPORARY}"
        try:
            temporary.mkdir()
            yield temporary
        except Exception as error:  # Orbax and TensorStore raise many kinds.
            shutil.rmtree(temporary, ignore_errors=True)
            raise SaveError(f"checkpoint {target} could not be saved: {_one_line(error)}") from error
        try:
            self._prune()
        except OSError as error:
            raise SaveError(f"{target} is saved, but none before it could be deleted: {_one_line(error)}") from error

    def _prune(self) -> None:
        """Delete all steps but the newest and the best."""
        steps = self.steps()
        kept = set(steps[-self._keep :])
        if self._keep_best:
            kept.update(self._ranked()[: self._keep_best])
        for step in steps:
            if step not in kept:
                # Renamed first: a step that is there is there as a whole.
                doomed = self.directory / f"{step}{TEMPORARY}"
                (self.directory / str(step)).rename(doomed)
                shutil.rmtree(doomed)

    def _ranked(self) -> list[int]:
        """The steps that have a validation cost, the best first."""
        costs = {step: cost for step in self.steps() if (cost := self._validation_cost(step)) is not None}
        return sorted(costs, key=lambda step: costs[step])

    def _validation_cost(self, step: int) -> float | None:
        try:
            cost = _read_record(self.directory / str(step))["record"].get("validation_cost")
        except (DamagedError, InputError):
            return None
        return cost if isinstance(cost, float) and math.isfinite(cost) else None

    def read_record(self) -> dict[str, Any]:
        """The record of the newest step whose record is intact.

        Raises:
          InputError: there is no checkpoint, or the records of all of them are damaged.
        """

        def read() -> dict[str, Any]:
            for step in reversed(self.steps()):
                path = self.directory / str(step)
                try:
                    with _unless_pruned(path):
                        record: dict[str, Any] = _read_record(path)["record"]
                        return record
                except DamagedError:
                    continue
            raise InputError(self._nothing())

        return self._again_if_pruned(read)

    def _again_if_pruned(self, read: Callable[[], T]) -> T:
        """What `read` returns, from the start with the steps that are there then, wherever it meets `PrunedError`."""
        for _ in range(TRIES):
            with contextlib.suppress(PrunedError):
                return read()
        raise InputError(
            f"{self.directory}: a run replaces its checkpoints faster than they can be read; try again, or train with "
            "a larger --keep-checkpoints"
        )

    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of what was trained on, as `read_record` finds it. Raises `InputError` as it does, or for none."""
        shape = self.read_record().get("image_shape")
        if not isinstance(shape, list) or len(shape) != 3 or not all(type(n) is int and n > 0 for n in shape):
            raise InputError(f"{self.directory}: the newest record.json names no image shape")
        height, width, channels = shape
        return height, width, channels

    def restore(self, like: S, best: bool = False) -> Saved[S] | None:
        """The newest undamaged checkpoint, or the best by the validation images; None if none was ever saved.

        Where a damaged step is passed over, a warning names it and what is damaged, and it is set
        aside as ``damaged-STEP``.

        Args:
          like: a state with the structure, shapes and dtypes to restore to; its leaves may be
            `jax.ShapeDtypeStruct`.
          best: that with the lowest validation cost rather than the newest.

        Raises:
          InputError: all checkpoints are damaged; or an undamaged one does not fit `like`, or is of
            a version that this one does not know; or `best`, and none has a validation cost.
        """
        return self._again_if_pruned(lambda: self._restore(like, best))

    def _restore(self, like: S, best: bool) -> Saved[S] | None:
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
                with _unless_pruned(path):
                    saved = _restore(path, like)
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
        return f"{self.directory} holds no checkpoint"

    def _set_aside(self, step: int) -> None:
        number = 1
        while (aside := self.directory / f"{DAMAGED}{step}{f'-{number}' if number > 1 else ''}").exists():
            number += 1
        (self.directory / str(step)).rename(aside)
        self._warn(f"it was set aside as {aside}")


def _checkpointer() -> ocp.Checkpointer:
    # Of the processes of a job, this one alone: Orbax would wait for the others.
    here = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"jaxvae{here}"
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


@contextlib.contextmanager
def _unless_pruned(path: Path) -> Iterator[None]:
    """Reads a step. Raises `DamagedError` if that fails, but `PrunedError` if the step is not there any more."""
    try:
        yield
    except (DamagedError, FileNotFoundError) as error:
        if not path.exists():
            raise PrunedError from None
        raise error if isinstance(error, DamagedError) else DamagedError(_one_line(error)) from None


def _restore(path: Path, like: S) -> Saved[S]:
    """One checkpoint, verified. Raises `DamagedError`, and `InputError` if it does not fit `like`."""
    content = _read_record(path)
    # A pipe would hang whoever opens it, and a link leads elsewhere.
    for entry in path.rglob("*"):
        if not stat.S_ISREG(mode := entry.lstat().st_mode) and not stat.S_ISDIR(mode):
            raise DamagedError(f"{entry.relative_to(path)} is no regular file")
    present = set(_files(path)) - {"record.json"}
    for name in sorted({*content["files"], *present}):
        if name not in present:  # Nor is anything read outside.
            raise DamagedError(f"{name} is missing")
        if name not in content["files"]:
            raise DamagedError(f"{name} does not belong there")
        try:
            digest = _file_digest(path / name)
        except OSError as error:
            raise DamagedError(f"{name} cannot be read: {error.strerror or error}") from None
        if digest != content["files"][name]:
            raise DamagedError(f"{name} is not as it was saved")
    expected = {name: _form(leaf) for name, leaf in _named(like)}
    found = {name: (tuple(a["shape"]), a["dtype"]) for name, a in content["arrays"].items()}
    if differ := sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name)):
        name = differ[0]
        raise InputError(
            f"checkpoint {path} does not fit the run's model: {name} is {_form_words(found.get(name))} there, "
            f"{_form_words(expected.get(name))} here"
        )
    try:
        with _checkpointer() as checkpointer:
            arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
            state: S = checkpointer.restore(
                path / "state", args=ocp.args.PyTreeRestore(item=like, restore_args=arguments)
            )
    except Exception as error:  # Orbax and TensorStore raise many kinds.
        raise DamagedError(_one_line(error)) from None
    state = jax.tree.map(np.asarray, state)
    for name, digests in _array_digests(state).items():
        if digests != content["arrays"][name]:
            raise DamagedError(f"{name} is not as it was saved")
    return Saved(int(state.step), state, content["record"])


def _finite(cost: float | None) -> float | None:
    return float(cost) if cost is not None and math.isfinite(cost) else None


def _write_record(path: Path, content: dict[str, Any]) -> None:
    """Write record.json, sealed, and have all of the directory on the disk."""
    sealed = {**content, "digest": _digest(content)}
    (path / "record.json").write_text(json.dumps(sealed, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    _sync(path)


def _read_record(path: Path) -> dict[str, Any]:
    """What record.json holds. Raises `DamagedError`, or `InputError` for a version that is not known."""
    if (path / "_CHECKPOINT_METADATA").exists() and not (path / "record.json").exists():
        raise InputError(f"checkpoint {path} was saved by a version of jaxvae that this one cannot read")
    try:
        if not stat.S_ISREG((path / "record.json").lstat().st_mode):
            raise DamagedError("record.json is no regular file")
        content = json.loads((path / "record.json").read_text(encoding="utf-8"))
        digest = content.pop("digest")
        intact = digest == _digest(content)
    except OSError as error:
        raise DamagedError(f"record.json cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError, KeyError, AttributeError, TypeError):
        intact = False
    if not intact:
        raise DamagedError("record.json is not as it was saved")
    if not isinstance(content.get("format"), int):
        raise DamagedError("record.json names no format")
    if content["format"] != FORMAT:
        raise InputError(f"checkpoint {path} is of format {content['format']}; this version of jaxvae reads {FORMAT}")
    arrays, files, record = (content.get(name) for name in ("arrays", "files", "record"))
    if not (isinstance(arrays, dict) and isinstance(files, dict) and isinstance(record, dict)):
        raise DamagedError("record.json lacks a part")
    for array in arrays.values():
        if not (isinstance(array, dict) and {"shape", "dtype", "sha256"} <= array.keys()):
            raise DamagedError("record.json lacks a part")
        if not (isinstance(array["shape"], list) and isinstance(array["dtype"], str)):
            raise DamagedError("record.json lacks a part")
    result: dict[str, Any] = content
    return result


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(directory: Path) -> list[str]:
    """The files below a directory, by their paths relative to it."""
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir())


def _named(tree: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def _array_digests(state: State) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "shape": list(leaf.shape),
            "dtype": str(leaf.dtype),
            "sha256": hashlib.sha256(np.ascontiguousarray(leaf).tobytes()).hexdigest(),
        }
        for name, leaf in _named(state)
    }


def _form(leaf: Any) -> tuple[tuple[int, ...], str]:
    return tuple(leaf.shape), str(leaf.dtype)


def _form_words(form: tuple[tuple[Any, ...], str] | None) -> str:
    return "missing" if form is None else f"{form[1]} {list(form[0])}"


def _one_line(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split())[:300] or type(error).__name__


def _sync(directory: Path) -> None:
    """Have everything below `directory` on the disk, so that the power may fail."""
    for path in directory.rglob("*"):
        if path.is_dir():
            _sync_directory(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class TrainedRun(NamedTuple):
    """What `load_run` finds in a run directory."""

    config: Config
    model: Model
    state: TrainState
    record: dict[str, Any]


def load_run(run_dir: Path, best: bool = False) -> TrainedRun:
    """The newest model of a run directory, or the best by the validation images, to be used, not trained on.

    A damaged checkpoint is passed over with a warning on stderr.

    Raises:
      InputError: it is no run directory, none of its checkpoints can be read, or `best`, and it had no validation
        images.
    """
    if not (run_dir / "config.json").is_file():
        raise InputError(f"{run_dir} is not a run directory: it has no config.json")
    config = load_config(run_dir / "config.json")
    if not (run_dir / "checkpoints").is_dir():
        raise InputError(f"{run_dir} holds no checkpoint yet")
    with Checkpoints(run_dir / "checkpoints", read_only=True) as checkpoints:
        model = build_model(config, checkpoints.image_shape())
        saved = checkpoints.restore(abstract_state(model, build_optimizer(config, steps_per_epoch=1)), best)
        assert saved is not None  # Its record has just been read.
        return TrainedRun(config, model, saved.state, saved.record)
