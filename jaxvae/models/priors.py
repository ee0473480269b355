"""Priors of the latents."""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float, Key

from jaxvae.errors import InputError
from jaxvae.models.layers import ByLabel
from jaxvae.options import CLASSES, option
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


class LabelGaussianModule(nn.Module):
    """p(z | y): see `LabelGaussian` and `PriorModule`. It starts as N(0, I) for every label."""

    latent_size: int
    classes: int

    def setup(self) -> None:
        self.mean, self.log_std = (ByLabel(self.classes, self.latent_size) for _ in range(2))

    def _moments(self, batch: Batch | None) -> tuple[Array, Array]:
        """The mean and the standard deviation for the labels of a batch, [B, L] each."""
        if batch is None or "label" not in batch:
            raise InputError("--prior label: the model needs the label of each image")
        return self.mean(batch["label"]), jnp.exp(self.log_std(batch["label"]))

    def log_density(self, latent: Float[Array, "B S L"], batch: Batch) -> Float[Array, "B S"]:
        """See `PriorModule`."""
        mean, std = self._moments(batch)
        return log_normal(latent, mean[:, None], std[:, None])

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...], batch: Batch | None = None) -> Float[Array, "... L"]:
        """See `PriorModule`."""
        mean, std = self._moments(batch)
        return mean + std * jax.random.normal(key, (*shape, self.latent_size))

    def kl(self, mean: Float[Array, "B L"], std: Float[Array, "B L"], batch: Batch) -> Float[Array, "B L"] | None:
        """See `PriorModule`."""
        centre, scale = self._moments(batch)
        return gaussian_kl_per_dimension((mean - centre) / scale, std / scale)


@dataclass(frozen=True)
class LabelGaussian(Prior):
    """A diagonal Gaussian for each label, learned: p(z | y). Sohn, Lee and Yan (NeurIPS 2015), section 4.1."""

    reads_labels: ClassVar[bool] = True

    classes: int = option(0, CLASSES)
    """How many labels a conditional model knows; 0: as many as the images have."""

    def module(self, latent_size: int) -> PriorModule:
        """See `Prior`."""
        return LabelGaussianModule(latent_size, self.classes)
