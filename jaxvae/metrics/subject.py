"""What a metric measures."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxvae.config import Config
from jaxvae.models.build import Model
from jaxvae.objectives.base import Context, Loss, View
from jaxvae.typing import Params


class Subject(NamedTuple):
    """A trained model.

    Attributes:
      config: of its run.
      model: the Flax module.
      variables: all of its variables, by collection.
      loss: the objective it was trained on.
      terms: the means of the objective's terms over the measured images, by name.
    """

    config: Config
    model: Model
    variables: Params
    loss: Loss
    terms: Mapping[str, float]

    def view(self, variables: Params) -> View:
        """The model, with variables that may be traced, as objectives see it in evaluation."""
        return View(self.model, variables, self.loss, Context())


def mean_and_error(values: NDArray[np.float64]) -> tuple[float, float | None]:
    """The mean of N values, and its standard error: None for a single value."""
    error = float(np.std(values, ddof=1, dtype=np.float64) / len(values) ** 0.5) if len(values) > 1 else None
    return float(values.mean()), error
