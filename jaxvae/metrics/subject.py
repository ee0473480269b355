"""What a metric measures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxvae.config import Config
from jaxvae.models.build import Model
from jaxvae.objectives.base import Context, Loss, View
from jaxvae.protocols import Measured
from jaxvae.run.records import rounded
from jaxvae.trained import TrainedRun
from jaxvae.typing import Params


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained model.

    Attributes:
      run: the model and its variables, to encode, decode and sample with.
      loss: the objective it was trained on.
      terms: the means of the objective's terms over the measured images, by name.
      errors: the standard errors of these means; None for a single image.
      train: the training split of its dataset, arrays [N, ...] by name, with what the run held out for validation.
    """

    run: TrainedRun
    loss: Loss
    terms: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, float | None] = field(default_factory=dict)
    train: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def config(self) -> Config:
        """The configuration of the run."""
        return self.run.config

    @property
    def model(self) -> Model:
        """The Flax module."""
        return self.run.model

    @property
    def variables(self) -> Params:
        """All variables of the model, by collection."""
        return self.run.variables

    def view(self, variables: Params) -> View:
        """The model, with variables that may be traced, as objectives see it in evaluation."""
        return View(self.model, variables, self.loss, Context())


def mean_and_error(values: NDArray[np.float64]) -> tuple[float, float | None]:
    """The mean of N values, and its standard error: None for a single value."""
    error = float(np.std(values, ddof=1, dtype=np.float64) / len(values) ** 0.5) if len(values) > 1 else None
    return float(values.mean()), error


def mean_of(each: NDArray[np.float64], unit: str = "", note: str = "") -> Measured:
    """The mean of the values [N] of N images, as the result of a metric, with its standard error."""
    mean, error = mean_and_error(each)
    return Measured(mean, unit, error, note, each=each)


def means_of(each: NDArray[np.float64], name: str, note: str) -> Measured:
    """The means of values [N, K] of N images, as the result of the metric `name`; `extra` has their standard errors."""
    found = [mean_and_error(column) for column in each.T]
    errors = [None if error is None else rounded(error, 3) for _, error in found]
    return Measured([rounded(mean, 6) for mean, _ in found], note=note, extra={f"{name}_standard_error": errors})
