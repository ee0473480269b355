"""A mixture of Gaussians, and the prior that is one with learned components.

Shapes: K components; B images; S latents per image; L latent dimensions.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float, Key

from jaxvae.models.mahalanobis import squared_distances
from jaxvae.options import Range, option
from jaxvae.protocols import Prior, PriorModule
from jaxvae.typing import Array, Batch

COMPONENTS = Range("from 1 to 65536", lambda count: 1 <= count <= 2**16)


def log_mixture(
    latent: Float[Array, "B S L"],
    log_weights: Float[Array, " K"],
    mean: Float[Array, "K L"],
    std: Float[Array, "K L"],
) -> Float[Array, "B S"]:
    """The log-density of a mixture of diagonal Gaussians at latents [B, S, L]: [B, S], nats.

    Args:
      latent: [B, S, L].
      log_weights: [K], the logarithms of weights that sum to 1.
      mean, std: [K, L].
    """
    squares = squared_distances(latent.reshape(-1, latent.shape[2]), mean, std).reshape(
        *latent.shape[:2], mean.shape[0]
    )
    constant = log_weights - jnp.log(std).sum(axis=-1) - 0.5 * mean.shape[1] * math.log(2 * math.pi)
    density: Array = jax.nn.logsumexp(constant[None, None] - 0.5 * squares, axis=-1)
    return density


def sample_mixture(
    key: Key[Array, ""],
    shape: tuple[int, ...],
    log_weights: Float[Array, " K"],
    mean: Float[Array, "K L"],
    std: Float[Array, "K L"],
) -> Float[Array, "... L"]:
    """Draws [*shape, L] from the mixture that `log_mixture` describes, with one key."""
    component, noise = jax.random.split(key)
    chosen = jax.random.categorical(component, log_weights, shape=shape)
    # As sums over all components: the gradient of a gather has no fixed order of sums on a GPU.
    one = nn.one_hot(chosen, len(log_weights), dtype=mean.dtype)[..., None]
    lead = (1,) * len(shape)
    centre, spread = ((one * values.reshape(*lead, *values.shape)).sum(axis=-2) for values in (mean, std))
    return centre + spread * jax.random.normal(noise, centre.shape, centre.dtype)


class OfGaussians(nn.Module):
    """A `PriorModule` whose density is a mixture of diagonal Gaussians: see `gaussians`."""

    def gaussians(self) -> tuple[Float[Array, " K"], Float[Array, "K L"], Float[Array, "K L"]]:
        """The logarithms of the weights [K], the means and the standard deviations [K, L]."""
        raise NotImplementedError

    def log_density(self, latent: Float[Array, "B S L"], batch: Batch) -> Float[Array, "B S"]:
        """See `PriorModule`. The Gaussians are made once, for all latents of the batch."""
        del batch
        return log_mixture(latent, *self.gaussians())

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...], batch: Batch | None = None) -> Float[Array, "... L"]:
        """See `PriorModule`."""
        del batch
        return sample_mixture(key, shape, *self.gaussians())

    def kl(self, mean: Float[Array, "B L"], std: Float[Array, "B L"], batch: Batch) -> None:
        """See `PriorModule`."""
        del mean, std, batch


class MixtureModule(OfGaussians):
    """See `Mixture`. Weights start equal, means as draws from N(0, I), deviations at 1."""

    latent_size: int
    components: int

    def setup(self) -> None:
        shape = self.components, self.latent_size
        self.logits = self.param("logits", nn.initializers.zeros_init(), (self.components,))
        self.mean = self.param("mean", nn.initializers.normal(1.0), shape)
        self.log_std = self.param("log_std", nn.initializers.zeros_init(), shape)

    def gaussians(self) -> tuple[Array, Array, Array]:
        """See `OfGaussians`."""
        return nn.log_softmax(self.logits), self.mean, jnp.exp(self.log_std)


@dataclass(frozen=True)
class Mixture(Prior):
    """A mixture of diagonal Gaussians. Their weights, means and deviations are learned."""

    closed_form: ClassVar[bool] = False

    mixture_components: int = option(50, COMPONENTS)
    """Gaussians of --prior mixture."""

    def module(self, latent_size: int) -> PriorModule:
        """See `Prior`."""
        return MixtureModule(latent_size, self.mixture_components)
