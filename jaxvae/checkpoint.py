"""Save and restore the train state. The only module that imports Orbax.

A checkpoint is a directory ``<run>/checkpoints/<step>`` with the state and a small JSON record of
what it belongs to. Saving is asynchronous: `save` returns once the arrays are on the host.
"""

import logging
import sys
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxvae.config import Config
from jaxvae.config import load as load_config
from jaxvae.errors import InputError
from jaxvae.models import VAE, AutoEncoder, build_model
from jaxvae.train_step import TrainState, abstract_state, build_optimizer

# Orbax reports every phase of every save at INFO, and its own fallbacks at WARNING, through absl.
logging.getLogger("absl").setLevel(logging.ERROR)


def _silence_remains_of_failed_restores() -> None:
    """Keep them from complaining on stderr: the error itself is raised.

    Orbax closes its event loop over tasks half run and reads under way. The ones complain when they
    are collected, the others from threads of their own when they end.
    """
    report = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        remains = "Event loop is closed", "was never awaited"
        in_orbax = "_read_array_index_and_device_put" in repr(unraisable.object)
        if not in_orbax and not str(unraisable.exc_value).endswith(remains):
            report(unraisable)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


_silence_remains_of_failed_restores()


class Checkpoints:
    """The newest `keep` checkpoints of one run. A context manager: leaving it waits for saves.

    Raises `InputError` if `directory` cannot be used.
    """

    def __init__(self, directory: Path, keep: int = 3, read_only: bool = False):
        self.directory = directory.absolute()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.LatestN(keep),
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
        )
        try:
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        except OSError as error:
            raise InputError(f"{directory} cannot be used for checkpoints: {error.strerror or error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        """The newest step saved, or None."""
        step: int | None = self._manager.latest_step()
        return step

    def save(self, state: TrainState, record: dict[str, Any]) -> None:
        """Save `state` under its step, with a JSON `record`.

        Raises:
          Exception: whatever an earlier save met in the background, at the latest here or on leaving.
          RuntimeError: Orbax declined to save, as it does where there is a step as late as this one.
        """
        step = int(state.step)
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))
        if not self._manager.save(step, args=args):
            raise RuntimeError(f"{self.directory}: step {step} was not saved (newest is {self.latest_step()})")

    def read_record(self) -> dict[str, Any]:
        """The JSON record saved with the newest state. Raises as `restore` does."""
        record: dict[str, Any] = self._restore(record=ocp.args.JsonRestore())["record"]
        return record

    def restore(self, like: TrainState) -> TrainState:
        """The newest state.

        Args:
          like: a state with the structure, shapes, dtypes and shardings to restore to; its leaves
            may be `jax.ShapeDtypeStruct`.

        Raises:
          InputError: there is no checkpoint, or it cannot be read or does not fit `like`.
        """
        state: TrainState = self._restore(state=ocp.args.StandardRestore(like))["state"]
        if jax.tree.map(_shape_and_dtype, state) != jax.tree.map(_shape_and_dtype, like):
            raise InputError(f"checkpoint {self.directory / str(self.latest_step())} does not fit the run's model")
        return state

    def _restore(self, **items: Any) -> Any:
        step = self.latest_step()
        if step is None:
            raise InputError(f"{self.directory} holds no checkpoint")
        reason = ""
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged checkpoint.
            reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"checkpoint {self.directory / str(step)} cannot be read: {reason}")


def _shape_and_dtype(leaf: Any) -> tuple[tuple[int, ...], str]:
    return tuple(leaf.shape), str(leaf.dtype)


class TrainedRun(NamedTuple):
    """What `load_run` finds in a run directory."""

    config: Config
    model: AutoEncoder | VAE
    state: TrainState
    record: dict[str, Any]


def load_run(run_dir: Path) -> TrainedRun:
    """The newest model of a run directory, for use rather than for training on.

    Raises:
      InputError: it is no run directory, or its checkpoint cannot be read.
    """
    if not (run_dir / "config.json").is_file():
        raise InputError(f"{run_dir} is not a run directory: it has no config.json")
    config = load_config(run_dir / "config.json")
    if not (run_dir / "checkpoints").is_dir():
        raise InputError(f"{run_dir} holds no checkpoint yet")
    with Checkpoints(run_dir / "checkpoints", read_only=True) as checkpoints:
        record = checkpoints.read_record()
        height, width, channels = record["image_shape"]
        model = build_model(config, (height, width, channels))
        state = checkpoints.restore(abstract_state(model, build_optimizer(config)))
        return TrainedRun(config, model, state, record)
