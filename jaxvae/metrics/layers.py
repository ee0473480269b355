"""What each layer of a hierarchical model costs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from jaxvae.chunks import chunk_size, in_chunks
from jaxvae.metrics.subject import Subject, means_of
from jaxvae.models.ladder import LadderVAE
from jaxvae.protocols import Measured, Metric
from jaxvae.train.step import as_batch
from jaxvae.typing import Array, Batch, Params


@dataclass(frozen=True)
class LayerKL(Metric):
    """The KL term of each layer of a hierarchical model, from the top down, nats per image; 0 is an unused layer."""

    def measure(self, subject: Subject, images: Mapping[str, NDArray[Any]], key: jax.Array) -> Mapping[str, Measured]:
        """See `Metric`: "kl_per_layer"; empty for other models."""
        model = subject.model
        if not isinstance(model, LadderVAE):
            return {}

        def of_batch(variables: Params, batch: Batch, keys: Array) -> Array | None:
            seen = as_batch(batch)
            x = subject.loss.inputs.observe(seen["image"], keys)
            return subject.view(variables).draw({**seen, "image": x}, keys, 1).kl

        found = in_chunks(of_batch, subject.variables, images, key, chunk_size(images, subject.config))
        layers = np.split(found, np.cumsum(model.layer_sizes())[:-1], axis=1)
        costs = np.stack([layer.sum(axis=1) for layer in layers], axis=1)
        note = f"{' '.join(f'{cost:.2f}' for cost in costs.mean(axis=0))} (nats, from the top down)"
        return {"kl_per_layer": means_of(costs, "kl_per_layer", note)}
