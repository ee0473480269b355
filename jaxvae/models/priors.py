"""Priors of the latents."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float, Key

from jaxvae.protocols import Prior, PriorModule
from jaxvae.typing import Array, Batch


def log_normal(
    z: Float[Array, "*shape L"], mean: Float[Array, "..."] | float = 0.0, std: Float[Array, "..."] | float = 1.0
) -> Float[Array, "*shape"]:
    """The log-density of N(mean, std^2) at `z` [..., L], summed over L: [...], nats."""
    standard = (z - mean) / std
    return (-0.5 * (jnp.square(standard) + math.log(2 * math.pi)) - jnp.log(std)).sum(axis=-1)


def gaussian_kl_per_dimension(mean: Float[Array, "*B L"], std: Float[Array, "*B L"]) -> Float[Array, "*B L"]:
    """KL(N(mean, std^2) || N(0, 1)) of each latent dimension: ``0.5 * (mean^2 + std^2 - 1) - log(std)``.

    Kingma and Welling (arXiv 1312.6114), appendix B.

    Args:
      mean: [B, L].
      std: [B, L], > 0.

    Returns:
      [B, L], >= 0, nats.

    Raises:
      ValueError: if the shapes differ.
    """
    if mean.shape != std.shape:
        raise ValueError(f"shapes must agree: mean {mean.shape}, std {std.shape}")
    return 0.5 * (jnp.square(mean) + jnp.square(std) - 1) - jnp.log(std)


class StandardNormalModule(nn.Module):
    """N(0, I); see `PriorModule`. It has no parameters."""

    latent_size: int

    def log_density(self, latent: Float[Array, "B S L"], batch: Batch) -> Float[Array, "B S"]:
        """See `PriorModule`."""
        del batch
        return log_normal(latent)

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...], batch: Batch | None = None) -> Float[Array, "... L"]:
        """See `PriorModule`."""
        del batch
        return jax.random.normal(key, (*shape, self.latent_size))

    def kl(self, mean: Float[Array, "B L"], std: Float[Array, "B L"], batch: Batch) -> Float[Array, "B L"] | None:
        """See `PriorModule`."""
        del batch
        return gaussian_kl_per_dimension(mean, std)


@dataclass(frozen=True)
class StandardNormal(Prior):
    """N(0, I)."""

    def module(self, latent_size: int) -> PriorModule:
        """See `Prior`."""
        return StandardNormalModule(latent_size)


PRIORS: Mapping[str, type[Prior]] = {"normal": StandardNormal}
