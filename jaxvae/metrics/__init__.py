"""Metrics: what an evaluation reports besides the objective's terms, each in its own file."""

from collections.abc import Mapping

from jaxvae.metrics.latents import ActiveUnits
from jaxvae.metrics.likelihood import LogLikelihood
from jaxvae.metrics.reconstruction import Reconstruction
from jaxvae.metrics.subject import Subject, mean_of
from jaxvae.protocols import Metric

METRICS: Mapping[str, type[Metric]] = {
    "reconstruction": Reconstruction,
    "log-likelihood": LogLikelihood,
    "active-units": ActiveUnits,
}

__all__ = ["METRICS", "ActiveUnits", "LogLikelihood", "Reconstruction", "Subject", "mean_of"]
