"""The reconstruction error."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from numpy.typing import NDArray

from jaxvae.chunks import chunk_size, in_chunks
from jaxvae.metrics.subject import Subject
from jaxvae.models.build import reconstruction
from jaxvae.objectives.notes import mse
from jaxvae.protocols import Measured, Metric
from jaxvae.train.step import as_batch
from jaxvae.typing import Array, Batch, Params


@dataclass(frozen=True)
class MeanSquaredError(Metric):
    """The notes' reconstruction error, the mean squared error per pixel, for a model trained on any objective."""

    def measure(self, subject: Subject, images: Mapping[str, NDArray[Any]], key: jax.Array) -> Mapping[str, Measured]:
        """See `Metric`. Empty for a model that gives no reconstruction."""

        def of_batch(variables: Params, batch: Batch, keys: Array) -> Array | None:
            seen = as_batch(batch)
            x = subject.loss.inputs.observe(seen["image"], keys)
            x_hat = reconstruction(subject.view(variables).output({**seen, "image": x}, keys), x)
            return None if x_hat is None else mse(x_hat, x)

        found = in_chunks(of_batch, subject.variables, images, key, chunk_size(images))
        return {} if found is None else {"mse": Measured(float(found.mean()), "per pixel")}
