"""Weights & Biases. Its own variables apply, such as WANDB_PROJECT, WANDB_ENTITY and WANDB_MODE=offline."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxvae.run.trackers.sink import Identity


class WandbSink:
    """A run of Weights & Biases; without a login it is written to the run directory only."""

    def __init__(self, run: Identity):
        import wandb

        mode: Any = None
        if "WANDB_MODE" not in os.environ and not wandb.api.api_key:
            mode = "offline"  # Else it would ask at the terminal.
            run.warn(f"--track wandb: no login, so the run is kept in {run.directory}/wandb; wandb sync sends it")
        project = os.environ.get("WANDB_PROJECT", run.project)
        self._run = wandb.init(
            project=project,
            name=run.name,
            id=run.id,
            resume="allow",
            dir=run.directory,
            config=dict(run.config),
            mode=mode,
            allow_val_change=True,
            reinit="create_new",  # A run of the caller's own stays as it is.
        )
        # Steps of our own: those of wandb may not go back, as they do when a killed run is resumed.
        self._run.define_metric("*", step_metric="step")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Sink`."""
        self._run.log({**values, "step": step})

    def picture(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """See `Sink`."""
        import wandb

        self._run.log({name: wandb.Image(picture if picture.shape[-1] > 1 else picture[..., 0]), "step": step})

    def close(self) -> None:
        """See `Sink`."""
        self._run.finish()
