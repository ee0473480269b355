"""FactorVAE: the evidence lower bound with a weight on the total correlation, which a discriminator estimates."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Key

from jaxvae.errors import InputError
from jaxvae.models.build import latent_model
from jaxvae.models.factor import FactorVAE, permuted, uniform_noise
from jaxvae.models.vae import VAE
from jaxvae.objectives.base import View
from jaxvae.objectives.elbo import InNats, kl_and_cost
from jaxvae.options import AT_LEAST_1, option
from jaxvae.typing import Array, Batch, ImageShape, Terms


@dataclass(frozen=True)
class Factor(InNats):
    """FactorVAE: Kim and Mnih, arXiv 1802.05983, algorithm 2.

    A discriminator learns to tell latents of a batch from latents whose dimensions were permuted within the batch. Its
    logit estimates the total correlation KL(q(z) || prod_j q(z_j)), to which the VAE adds a weight of beta - 1 (their
    gamma). Both are trained in the same step: no gradient of the one's loss reaches the other. Differences, with theirs
    in parentheses: one optimiser with one rate (two, with rates and first moments of their own); one batch (a second
    one for the permuted latents); one logit (two).
    """

    discriminator_width: int = option(1000, AT_LEAST_1)
    """Width of the layers of factor's discriminator."""
    discriminator_layers: int = option(6, AT_LEAST_1)
    """Hidden layers of factor's discriminator."""

    def check(self, config: Any) -> None:
        """See `Component`."""
        super().check(config)
        if config.parts.model is not None:
            raise InputError(f"--objective {config.objective} trains a model of its own: it takes no --model")
        network = config.parts.network
        if not network.hierarchical and network.model() is not VAE:
            raise InputError(f"--objective {config.objective} needs a network whose model is a VAE")
        if config.batch_size < 2:
            raise InputError(f"--objective {config.objective} needs --batch-size 2 or more: it compares samples")

    def model(self, config: Any, image_shape: ImageShape) -> nn.Module:
        """See `Objective`."""
        return latent_model(config, image_shape, FactorVAE).clone(
            widths=(self.discriminator_width,) * self.discriminator_layers
        )

    def terms(self, view: View, batch: Batch, keys: Key[Array, " B"]) -> Terms:
        """See `Objective`. In training also "tc", the total correlation, and "discriminator", the discriminator's loss.

        That loss is log 2 for a discriminator that knows nothing.
        """
        drawn = view.draw(batch, keys, 1)
        recon = view.nll(drawn.pixels, batch["image"]).mean(axis=1)
        kl, _ = kl_and_cost(drawn, 0.0)
        terms = {"loss": recon + kl, "recon": recon, "kl": kl, "bound": -(recon + kl)}
        if not view.train:
            return terms
        latent: Array = view.gather(drawn.latent[:, 0])
        noise: Array = view.gather(uniform_noise(keys, latent.shape[-1]))
        frozen = jax.lax.stop_gradient(view.params)
        tc = view.apply(latent, params=frozen, method="judge").mean()
        seen = jax.lax.stop_gradient(latent)
        joint, apart = (view.apply(z, method="judge") for z in (seen, permuted(seen, noise)))
        own = 0.5 * (jax.nn.softplus(-joint) + jax.nn.softplus(apart)).mean()
        loss = recon + kl + (self.kl_weight(view) - 1) * tc + own
        return terms | {
            "loss": loss,
            "tc": jnp.broadcast_to(tc, kl.shape),
            "discriminator": jnp.broadcast_to(own, kl.shape),
        }
