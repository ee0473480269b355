"""A VAE with a discriminator of its latents, for FactorVAE."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float, Key

from jaxvae.keys import fold_in_each
from jaxvae.models.layers import at_least_float32
from jaxvae.models.vae import VAE
from jaxvae.protocols import PosteriorSamples
from jaxvae.typing import Array, Batch

SLOPE = 0.2  # Of the leaky ReLU below 0.


class Discriminator(nn.Module):
    """Dense layers with leaky ReLUs: latents [B, L] to a logit [B]. Kim and Mnih, arXiv 1802.05983, appendix A."""

    widths: tuple[int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, latent: Float[Array, "B L"]) -> Float[Array, " B"]:
        x: Array = latent
        for width in self.widths:
            x = nn.leaky_relu(nn.Dense(width, dtype=self.dtype)(x), SLOPE)
        logit: Array = nn.Dense(1, dtype=self.dtype)(x)
        return at_least_float32(logit[:, 0])


class FactorVAE(VAE):
    """A `VAE` that has a `Discriminator` beside it. It encodes, decodes and samples as a VAE does.

    Attributes: those of `VAE`, and
      widths: of the discriminator's layers.
    """

    training_only: ClassVar[tuple[str, ...]] = ("discriminator",)

    widths: tuple[int, ...] = ()

    def setup(self) -> None:
        super().setup()
        self.discriminator = Discriminator(self.widths, self.dtype)

    def judge(self, latent: Float[Array, "B L"]) -> Float[Array, " B"]:
        """The logit of the discriminator: how sure it is that latents [B, L] come from q(z), not from its marginals."""
        logit: Array = self.discriminator(latent)
        return logit

    def draw(self, batch: Batch, keys: Key[Array, " B"], samples: int) -> PosteriorSamples:
        """See `VAE`."""
        drawn = super().draw(batch, keys, samples)
        if self.is_initializing():
            self.judge(drawn.latent[:, 0])
        return drawn


def permuted(latent: Float[Array, "B L"], noise: Float[Array, "B L"]) -> Float[Array, "B L"]:
    """Each dimension of a batch's latents in an order of its own, that of `noise`: samples of prod_j q(z_j)."""
    return jnp.take_along_axis(latent, jnp.argsort(noise, axis=0), axis=0)


def uniform_noise(keys: Key[Array, " B"], size: int) -> Float[Array, "B {size}"]:
    """Uniform noise [B, size], from one key per example."""
    return jax.vmap(lambda key: jax.random.uniform(key, (size,)))(fold_in_each(keys, "permute"))
