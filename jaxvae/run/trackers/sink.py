"""What takes a run's metrics and pictures, besides its files."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Sink(Protocol):
    """A place where metrics and pictures go. Made by a function of `Identity`, which any of these may follow."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Take the metrics of one record, by names such as "loss_nats_per_image/test"."""

    def picture(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """Take a picture [rows, cols, C], with C 1 or 3."""

    def close(self) -> None:
        """Send what is left, and end."""


class Identity(NamedTuple):
    """A run, as a tracker is told of it.

    Attributes:
      id: the same each time that the run is resumed, and different for every run.
      name: of the run directory.
      directory: the run directory.
      config: all fields of the configuration.
      warn: tells the user of something, in one line.
    """

    id: str
    name: str
    directory: Path
    config: Mapping[str, Any]
    warn: Callable[[str], None]

    @property
    def project(self) -> str:
        """The project or experiment, unless a variable of the tracker's own names another."""
        return "jaxvae"
