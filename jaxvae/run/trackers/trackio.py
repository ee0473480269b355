"""Trackio, Hugging Face's tracker, which works locally. Its own variables apply: TRACKIO_DIR, TRACKIO_SPACE_ID."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxvae.run.trackers.sink import Identity


class TrackioSink:
    """A run of Trackio, in its local database."""

    def __init__(self, run: Identity):
        import matplotlib.figure  # Trackio looks for it, and must not find it half imported by another thread.
        import trackio

        del matplotlib
        self._run: Any = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", run.project),
            name=f"{run.name}-{run.id}",  # By which a resumed run is found again.
            config=dict(run.config),
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Sink`."""
        self._run.log(dict(values), step=step)

    def picture(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """See `Sink`."""
        import trackio

        colours = picture.repeat(3, -1) if picture.shape[-1] == 1 else picture[..., :3]
        self._run.log({name: trackio.Image(colours)}, step=step)

    def close(self) -> None:
        """See `Sink`."""
        self._run.finish()
