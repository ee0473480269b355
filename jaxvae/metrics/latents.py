"""Which latent dimensions are in use, and what each costs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from jaxvae.chunks import chunk_size, in_chunks
from jaxvae.metrics.subject import Subject, means_of
from jaxvae.models.ladder import LadderVAE
from jaxvae.models.two_layer import TwoLayerVAE
from jaxvae.models.vae import VAE, label_of
from jaxvae.protocols import Measured, Metric
from jaxvae.train.step import as_batch
from jaxvae.typing import Array, Batch, Params

ACTIVE = 0.01  # A latent dimension is active above this variance of its posterior mean: arXiv 1509.00519, section 5.
UPPER_SAMPLES = 50  # Draws of the lower layer, for the posterior mean of the upper one.


@dataclass(frozen=True)
class ActiveUnits(Metric):
    """How many latent dimensions of each layer are active; for a model of one layer, also the KL term of each.

    A dimension u is active where ``Var_x(E_q(u | x)[u]) > ACTIVE``: Burda, Grosse and Salakhutdinov (arXiv
    1509.00519), section 5. For the upper of two layers, E_q(h1 | x)[E_q(h2 | h1)[h2]] is estimated with
    `UPPER_SAMPLES` draws of h1, and the variance that the draws add over the images is subtracted. (The authors'
    code takes one draw, and subtracts nothing.)

    In a `LadderVAE`, a posterior that only follows its prior, which depends on the latents above, tells nothing of its
    own. So u counts about the prior's mean, in units of its deviation, with the layers above at their means.
    """

    def applies(self, config: Any) -> bool:
        """See `Metric`."""
        return bool(config.parts.objective.bound) and config.parts.model is None

    def measure(self, subject: Subject, images: Mapping[str, NDArray[Any]], key: jax.Array) -> Mapping[str, Measured]:
        """See `Metric`: "active_units" of each layer, and "kl_per_dimension".

        The layers are listed from the image up; those of a `LadderVAE` from the top down, as everywhere.
        """
        model = subject.model
        two_layers = isinstance(model, TwoLayerVAE)
        if not isinstance(model, TwoLayerVAE | VAE | LadderVAE):
            return {}

        def of_batch(variables: Params, batch: Batch, keys: Array) -> dict[str, Array]:
            view, seen = subject.view(variables), as_batch(batch)
            x = subject.loss.inputs.observe(seen["image"], keys)
            if isinstance(model, LadderVAE):
                return {"mean": view.apply(x, method="beyond_prior")}
            mean, std = view.apply(x, **label_of(model, seen), method="encode")
            if isinstance(model, VAE):
                kl = view.apply(mean, std, {**seen, "image": x}, method="kl")
                return {"mean": mean} if kl is None else {"mean": mean, "kl": kl}
            eps = jax.vmap(lambda k: jax.random.normal(k, (UPPER_SAMPLES, mean.shape[-1]), mean.dtype))(keys)
            upper_means, _ = view.apply(mean[:, None] + std[:, None] * eps, method="encode_upper")
            spread = upper_means.var(axis=1, ddof=1) / UPPER_SAMPLES
            return {"mean": mean, "upper_mean": upper_means.mean(axis=1), "upper_spread": spread}

        size = chunk_size(images, subject.config, UPPER_SAMPLES if two_layers else 1)
        found = in_chunks(of_batch, subject.variables, images, key, size)
        sizes = model.layer_sizes() if isinstance(model, LadderVAE) else [found["mean"].shape[1]]
        variances = np.split(found["mean"].var(axis=0), np.cumsum(sizes)[:-1])
        if two_layers:
            variances.append(found["upper_mean"].var(axis=0) - found["upper_spread"].mean(axis=0))
        active = [int((variance > ACTIVE).sum()) for variance in variances]
        sizes = [len(variance) for variance in variances]
        listed = ", then ".join(f"{units} of {size}" for units, size in zip(active, sizes, strict=True))
        measured = {"active_units": Measured(active, note=listed, extra={"latent_sizes": sizes})}
        if "kl" in found:
            measured["kl_per_dimension"] = _per_dimension(found["kl"])
        return measured


def _per_dimension(kl: NDArray[np.float64]) -> Measured:
    highest = sorted(kl.mean(axis=0).tolist(), reverse=True)
    shown = " ".join(f"{value:.2f}" for value in highest[:10]) + (" ..." if len(highest) > 10 else "")
    return means_of(kl, "kl_per_dimension", f"{shown} (nats, highest first)")
