"""How much of the codes of a model with discrete latents is in use."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from jaxvae.chunks import chunk_size, in_chunks
from jaxvae.metrics.subject import Subject
from jaxvae.models.quantized import QuantizedVAE
from jaxvae.models.vae import label_of
from jaxvae.protocols import Measured, Metric
from jaxvae.train.step import as_batch
from jaxvae.typing import Array, Batch, Params


@dataclass(frozen=True)
class CodeUsage(Metric):
    """The part of the codes that the images use, and the perplexity of their frequencies: `exp(-sum p log p)`."""

    def measure(self, subject: Subject, images: Mapping[str, NDArray[Any]], key: jax.Array) -> Mapping[str, Measured]:
        """See `Metric`: "codes_used" and "code_perplexity"; empty for a model without codes."""
        model = subject.model
        if not isinstance(model, QuantizedVAE):
            return {}

        def of_batch(variables: Params, batch: Batch, keys: Array) -> Array:
            seen = as_batch(batch)
            x = subject.loss.inputs.observe(seen["image"], keys)
            codes: Array = subject.view(variables).apply(x, **label_of(model, seen), method="codes")
            return codes

        found = in_chunks(of_batch, subject.variables, images, key, chunk_size(images, subject.config), np.int32)
        count = np.bincount(found.ravel(), minlength=model.quantizer.codes)
        p = count[count > 0] / count.sum()
        note = f" of {len(count):,}"
        return {
            "codes_used": Measured(int((count > 0).sum()), "", None, note, {"codes": len(count)}),
            "code_perplexity": Measured(float(np.exp(-(p * np.log(p)).sum())), "", None, note),
        }
