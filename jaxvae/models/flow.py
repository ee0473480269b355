"""A prior that is a normalising flow of affine coupling layers, with an exact density.

Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (arXiv 1605.08803).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float, Key

from jaxvae.errors import InputError
from jaxvae.models.layers import GLOROT
from jaxvae.models.priors import log_normal
from jaxvae.options import Range, option
from jaxvae.protocols import Prior, PriorModule
from jaxvae.typing import Array, Batch

BOUND = 2.0  # On the logarithm of the factor by which a layer scales a dimension.
_LAYERS = Range("from 1 to 256", lambda count: 1 <= count <= 256)
_WIDTH = Range("from 1 to 65536", lambda width: 1 <= width <= 2**16)


class Coupling(nn.Module):
    """What a coupling layer does to its second half, from the first: log-scale and shift, [..., size] each.

    Both start at 0, so a flow starts as the identity.
    """

    size: int
    width: int

    @nn.compact
    def __call__(self, given: Float[Array, "... F"]) -> tuple[Float[Array, "... O"], Float[Array, "... O"]]:
        h = given
        for i in range(2):
            h = nn.silu(nn.Dense(self.width, **GLOROT, name=f"dense_{i}")(h))
        zeros = nn.initializers.zeros_init()
        raw, shift = jnp.split(nn.Dense(2 * self.size, kernel_init=zeros, name="out")(h), 2, axis=-1)
        return BOUND * jnp.tanh(raw / BOUND), shift


class FlowModule(nn.Module):
    """See `RealNvp` and `PriorModule`.

    The dimensions are split into halves. Each layer scales and shifts one half by functions of the other, in turn. It
    computes in float32 whatever the model's dtype.
    """

    latent_size: int
    layers: int
    width: int

    def setup(self) -> None:
        sizes = self.latent_size - self.latent_size // 2, self.latent_size // 2
        self.couplings = [Coupling(sizes[i % 2], self.width) for i in range(self.layers)]

    def to_base(self, latent: Float[Array, "... L"]) -> tuple[Float[Array, "... L"], Float[Array, "..."]]:
        """The flow from latents [..., L] to the base distribution, and the log-determinant of its Jacobian, [...]."""
        given, changed = jnp.split(latent, [self.latent_size // 2], axis=-1)
        log_det = jnp.zeros(latent.shape[:-1], latent.dtype)
        for coupling in self.couplings:
            log_scale, shift = coupling(given)
            # The half that was changed is given to the next layer.
            given, changed = changed * jnp.exp(log_scale) + shift, given
            log_det = log_det + log_scale.sum(axis=-1)
        return self._joined(given, changed), log_det

    def from_base(self, base: Float[Array, "... L"]) -> Float[Array, "... L"]:
        """The inverse of `to_base`: [..., L] to [..., L]."""
        first, second = jnp.split(base, [self.latent_size // 2], axis=-1)
        given, changed = (second, first) if self.layers % 2 else (first, second)
        for coupling in self.couplings[::-1]:
            log_scale, shift = coupling(changed)
            given, changed = changed, (given - shift) * jnp.exp(-log_scale)
        return jnp.concatenate([given, changed], axis=-1)

    def _joined(self, given: Array, changed: Array) -> Array:
        """The halves in their first order."""
        return jnp.concatenate([changed, given] if self.layers % 2 else [given, changed], axis=-1)

    def log_density(self, latent: Float[Array, "B S L"], batch: Batch) -> Float[Array, "B S"]:
        """See `PriorModule`."""
        del batch
        base, log_det = self.to_base(latent)
        return log_normal(base) + log_det

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...], batch: Batch | None = None) -> Float[Array, "... L"]:
        """See `PriorModule`."""
        del batch
        return self.from_base(jax.random.normal(key, (*shape, self.latent_size)))

    def kl(self, mean: Float[Array, "B L"], std: Float[Array, "B L"], batch: Batch) -> None:
        """See `PriorModule`."""
        del mean, std, batch


@dataclass(frozen=True)
class RealNvp(Prior):
    """A flow of affine coupling layers from N(0, I): arXiv 1605.08803, equations 4 to 8."""

    closed_form: ClassVar[bool] = False

    flow_layers: int = option(6, _LAYERS)
    """Coupling layers of --prior realnvp."""
    flow_width: int = option(64, _WIDTH)
    """Width of the two hidden layers in each coupling layer of --prior realnvp."""

    def check(self, config: Any) -> None:
        """See `Component`."""
        if config.latent_size < 2:
            raise InputError("--prior realnvp needs --latent-size 2 or more: each half of the latents moves the other")

    def module(self, latent_size: int) -> PriorModule:
        """See `Prior`."""
        return FlowModule(latent_size, self.flow_layers, self.flow_width)
