"""A finished run, loaded."""

from pathlib import Path
from typing import Any, NamedTuple

from jaxvae.config import Config
from jaxvae.config import load as load_config
from jaxvae.errors import InputError
from jaxvae.models.models import Model, build_model
from jaxvae.run.checkpoint import Checkpoints
from jaxvae.train.optimizer import build_optimizer
from jaxvae.train.step import TrainState, abstract_state


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
