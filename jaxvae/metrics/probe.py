"""How well labels can be read from latents by a linear classifier."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
from numpy.typing import NDArray

from jaxvae.metrics.labelled import check_classes, check_encodes, labelled_latents
from jaxvae.metrics.subject import Subject
from jaxvae.protocols import Measured, Metric


@dataclass(frozen=True)
class LinearProbe(Metric):
    """The accuracy of a multinomial logistic regression on latents, each of them scaled to unit variance.

    Alain and Bengio, "Understanding intermediate layers using linear classifier probes" (arXiv 1610.01644). It is
    scikit-learn's, with an L2 penalty of C = 1.
    """

    reads_labels: ClassVar[bool] = True

    def check(self, config: Any) -> None:
        """See `Component`."""
        check_encodes("probe", config)

    def check_images(self, images: Any) -> None:
        """See `Metric`."""
        super().check_images(images)
        check_classes("probe", images)

    def measure(self, subject: Subject, images: Mapping[str, NDArray[Any]], key: jax.Array) -> Mapping[str, Measured]:
        """See `Metric`: "probe_accuracy"."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        regression = LogisticRegression(max_iter=1000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # The note says so.
            latents = labelled_latents("probe", subject, images)
            found = latents.accuracy(make_pipeline(StandardScaler(), regression), "logistic regression")
        if regression.n_iter_.max() >= regression.max_iter:
            found = found._replace(note=f"{found.note}; stopped after {regression.max_iter:,} iterations")
        return {"probe_accuracy": found}
