"""Metrics: what an evaluation reports besides the objective's terms, each in its own file."""

from collections.abc import Mapping

from jaxvae.metrics.codes import CodeUsage
from jaxvae.metrics.disentanglement import Disentanglement
from jaxvae.metrics.knn import NearestNeighbours
from jaxvae.metrics.latents import ActiveUnits
from jaxvae.metrics.layers import LayerKL
from jaxvae.metrics.likelihood import LogLikelihood
from jaxvae.metrics.probe import LinearProbe
from jaxvae.metrics.reconstruction import Reconstruction
from jaxvae.metrics.samples import SampleQuality
from jaxvae.metrics.subject import Subject, mean_of
from jaxvae.protocols import Metric

METRICS: Mapping[str, type[Metric]] = {
    "reconstruction": Reconstruction,
    "log-likelihood": LogLikelihood,
    "active-units": ActiveUnits,
    "codes": CodeUsage,
    "layers": LayerKL,
}
"""What every evaluation reports: it costs little, and reads the test images alone."""

ON_REQUEST: Mapping[str, type[Metric]] = {
    "probe": LinearProbe,
    "knn": NearestNeighbours,
    "fid": SampleQuality,
    "disentanglement": Disentanglement,
}
"""What is reported where it is asked for: it reads the training images as well, labels or factors."""

__all__ = [
    "METRICS",
    "ON_REQUEST",
    "ActiveUnits",
    "CodeUsage",
    "Disentanglement",
    "LayerKL",
    "LinearProbe",
    "LogLikelihood",
    "NearestNeighbours",
    "Reconstruction",
    "SampleQuality",
    "Subject",
    "mean_of",
]
