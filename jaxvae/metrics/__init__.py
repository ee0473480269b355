"""Metrics: what an evaluation reports besides the objective's terms, each in its own file."""

from collections.abc import Mapping

from jaxvae.metrics.codes import CodeUsage
from jaxvae.metrics.latents import ActiveUnits
from jaxvae.metrics.layers import LayerKL
from jaxvae.metrics.likelihood import LogLikelihood
from jaxvae.metrics.reconstruction import MeanSquaredError
from jaxvae.metrics.subject import Subject
from jaxvae.protocols import Metric

METRICS: Mapping[str, type[Metric]] = {
    "mse": MeanSquaredError,
    "log-likelihood": LogLikelihood,
    "active-units": ActiveUnits,
    "codes": CodeUsage,
    "layers": LayerKL,
}

__all__ = ["METRICS", "ActiveUnits", "CodeUsage", "LayerKL", "LogLikelihood", "MeanSquaredError", "Subject"]
