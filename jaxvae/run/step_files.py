"""The files of one checkpoint: written, sealed with digests, and verified when they are read.

Only this module imports Orbax, and only when it is needed: the import can take as long as a training epoch.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast

import jax
import numpy as np

from jaxvae.errors import InputError

FORMAT = 1  # Of record.json and the files beside it.


class DamagedError(Exception):
    """A checkpoint is not what was saved. The message names the file or the array."""


class PrunedError(Exception):
    """A whole checkpoint was deleted while it was read: its run has saved later ones."""


class State(Protocol):
    """A state that can be saved: a `NamedTuple` of trees of arrays with a `step`, such as a `TrainState`."""

    @property
    def step(self) -> Any:
        """Steps taken: an integer or an array of one."""


S = TypeVar("S", bound=State)


class Saved(NamedTuple, Generic[S]):
    """What a checkpoint holds: NumPy arrays, and the record saved with them."""

    step: int
    state: S
    record: dict[str, Any]


def parts_with_arrays(state: Any) -> dict[str, Any]:
    """The fields of a state that hold arrays. The others are not saved, so that a state may get new fields."""
    return {name: part for name, part in state._asdict().items() if jax.tree.leaves(part)}


def make_checkpointer() -> Any:
    """Orbax's checkpointer, for this process alone."""
    import orbax.checkpoint as ocp

    # Orbax logs every phase of every save, its own fallbacks, and, with several tracebacks, each error that it
    # raises anyway.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # Only this process of a job: Orbax would wait for the others.
    here = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"jaxvae{here}"
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def write_state(path: Path, state: State) -> None:
    """Let Orbax write the arrays of a state into a new directory. It raises many kinds of errors."""
    import orbax.checkpoint as ocp

    with make_checkpointer() as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(parts_with_arrays(state)))


def _restored(path: Path, like: State, partial: bool) -> Any:
    import orbax.checkpoint as ocp

    with make_checkpointer() as checkpointer:
        item = parts_with_arrays(like)
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        return checkpointer.restore(
            path, args=ocp.args.PyTreeRestore(item=item, restore_args=arguments, partial_restore=partial)
        )


@contextlib.contextmanager
def unless_pruned(path: Path) -> Iterator[None]:
    """Around the reading of a step: raises `DamagedError` if that fails, but `PrunedError` if the step is gone."""
    try:
        yield
    except (DamagedError, FileNotFoundError) as error:
        if not path.exists():
            raise PrunedError from None
        raise error if isinstance(error, DamagedError) else DamagedError(reason(error)) from None


def read_step(path: Path, like: S, partial: bool = False) -> Saved[S]:
    """One checkpoint, verified. Raises `DamagedError`, and `InputError` if it does not fit `like`."""
    content = read_record(path)
    # To open a pipe would hang, and a link leads elsewhere.
    for entry in path.rglob("*"):
        if not stat.S_ISREG(mode := entry.lstat().st_mode) and not stat.S_ISDIR(mode):
            raise DamagedError(f"{entry.relative_to(path)} is no regular file")
    present = set(files_below(path)) - {"record.json"}
    for name in sorted({*content["files"], *present}):
        if name not in present:  # Also refuses names that lead outside.
            raise DamagedError(f"{name} is missing")
        if name not in content["files"]:
            raise DamagedError(f"{name} does not belong there")
        try:
            digest = file_digest(path / name)
        except OSError as error:
            raise DamagedError(f"{name} cannot be read: {error.strerror or error}") from None
        if digest != content["files"][name]:
            raise DamagedError(f"{name} is not as it was saved")
    expected = {name: _form(leaf) for name, leaf in named_leaves(like)}
    found = {name: (tuple(a["shape"]), a["dtype"]) for name, a in content["arrays"].items()}
    compared = expected if partial else {*expected, *found}
    if differ := sorted(name for name in compared if expected.get(name) != found.get(name)):
        name = differ[0]
        raise InputError(
            f"checkpoint {path} does not fit the run's model: {name} is {_form_words(found.get(name))} there, "
            f"{_form_words(expected.get(name))} here"
        )
    try:
        restored = _restored(path / "state", like, partial)
    except Exception as error:  # Orbax and TensorStore raise many kinds.
        raise DamagedError(reason(error)) from None
    state: S = cast(Any, like)._replace(**jax.tree.map(np.asarray, restored))
    for name, digests in array_digests(state).items():
        if digests != content["arrays"][name]:
            raise DamagedError(f"{name} is not as it was saved")
    return Saved(int(state.step), state, content["record"])


def finite(cost: float | None) -> float | None:
    """`cost`, or None if it is not finite."""
    return float(cost) if cost is not None and math.isfinite(cost) else None


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write record.json, sealed, and flush the whole directory to disk."""
    sealed = {**content, "digest": digest_of(content)}
    (path / "record.json").write_text(json.dumps(sealed, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    _sync(path)


def read_record(path: Path) -> dict[str, Any]:
    """The content of record.json. Raises `DamagedError`, or `InputError` for an unknown version."""
    if (path / "_CHECKPOINT_METADATA").exists() and not (path / "record.json").exists():
        raise InputError(f"checkpoint {path} was saved by a version of jaxvae that this one cannot read")
    try:
        if not stat.S_ISREG((path / "record.json").lstat().st_mode):
            raise DamagedError("record.json is no regular file")
        content = json.loads((path / "record.json").read_text(encoding="utf-8"))
        digest = content.pop("digest")
        intact = digest == digest_of(content)
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


def digest_of(content: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_below(directory: Path) -> list[str]:
    """The files below a directory, by their paths relative to it."""
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir())


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree by their paths in it: "params/encoder/bias"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def array_digests(state: State) -> dict[str, dict[str, Any]]:
    """Shape, dtype and SHA-256 of every array of a state, by its path in the tree."""
    return {
        name: {
            "shape": list(leaf.shape),
            "dtype": str(leaf.dtype),
            "sha256": hashlib.sha256(np.ascontiguousarray(leaf).tobytes()).hexdigest(),
        }
        for name, leaf in named_leaves(state)
    }


def _form(leaf: Any) -> tuple[tuple[int, ...], str]:
    return tuple(leaf.shape), str(leaf.dtype)


def _form_words(form: tuple[tuple[Any, ...], str] | None) -> str:
    return "missing" if form is None else f"{form[1]} {list(form[0])}"


def reason(error: Exception) -> str:
    """What an error says, in one line."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(said.split())[:300] or type(error).__name__


def _sync(directory: Path) -> None:
    """Flush everything below `directory` to disk, in case the power fails."""
    for path in directory.rglob("*"):
        if path.is_dir():
            sync_directory(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_directory(directory)


def sync_directory(directory: Path) -> None:
    """Flush the entries of a directory to disk."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
