"""How well labels can be read from the nearest latents."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
from numpy.typing import NDArray

from jaxvae.metrics.labelled import check_classes, check_encodes, labelled_latents
from jaxvae.metrics.subject import Subject
from jaxvae.options import AT_LEAST_1, option
from jaxvae.protocols import Measured, Metric


@dataclass(frozen=True)
class NearestNeighbours(Metric):
    """The accuracy of the most frequent label of the `k` nearest training latents, by Euclidean distance.

    The latents are taken as they are: a latent that is not in use hardly varies, so it hardly counts.
    """

    k: int = option(10, AT_LEAST_1)
    """Training latents that vote; fewer if there are fewer."""

    reads_labels: ClassVar[bool] = True

    def check(self, config: Any) -> None:
        """See `Component`."""
        check_encodes("knn", config)

    def check_images(self, images: Any) -> None:
        """See `Metric`."""
        super().check_images(images)
        check_classes("knn", images)

    def measure(self, subject: Subject, images: Mapping[str, NDArray[Any]], key: jax.Array) -> Mapping[str, Measured]:
        """See `Metric`: "knn_accuracy"."""
        from sklearn.neighbors import KNeighborsClassifier

        latents = labelled_latents("knn", subject, images)
        k = min(self.k, len(latents.train))
        return {"knn_accuracy": latents.accuracy(KNeighborsClassifier(k), f"k = {k}")}
