"""Squared distances between latents and Gaussians, in units of the Gaussians' deviations.

Shapes: N latents; K Gaussians; L dimensions.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxvae.typing import Array

_Given = tuple[Array, Array, Array]


def squared_distances(
    latent: Float[Array, "N L"], mean: Float[Array, "K L"], std: Float[Array, "K L"]
) -> Float[Array, "N K"]:
    """The squared Mahalanobis distance of each latent [N, L] to each of K diagonal Gaussians: [N, K].

    Gradients are those of reverse mode only. It is not expanded to ``z^2 - 2 z m + m^2``, which would be three
    products: where deviations are small, these cancel (float32: 0.01 nats of a mixture's density and 10% of the
    gradient of a deviation, at deviations of 0.007).

    Args:
      latent: [N, L].
      mean, std: [K, L].
    """
    inverse = 1 / std
    found: Array = jax.lax.platform_dependent(latent, mean, inverse, cpu=_by_dimension, default=_at_once)
    return found


def _at_once(latent: Array, mean: Array, inverse: Array) -> Array:
    return jnp.square((latent[:, None] - mean[None]) * inverse[None]).sum(axis=-1)


# XLA's loops on a CPU run along the last axis; a sum over that axis takes one number at a time. So here the dimensions
# are a loop, and its body runs along the Gaussians: 1 ms instead of 37 with 100 latents, 500 Gaussians, 40 dimensions
# and all gradients.


@jax.custom_vjp
def _by_dimension(latent: Array, mean: Array, inverse: Array) -> Array:
    def add(total: Array, each: _Given) -> tuple[Array, None]:
        return total + jnp.square(_scaled(*each)), None

    first = jnp.square(_scaled(latent[:, 0], mean[:, 0], inverse[:, 0]))
    return jax.lax.scan(add, first, (latent[:, 1:].T, mean[:, 1:].T, inverse[:, 1:].T))[0]


def _scaled(latent: Array, mean: Array, inverse: Array) -> Array:
    """Differences [N, K] in one dimension, in deviations."""
    return (latent[:, None] - mean[None]) * inverse[None]


def _forward(latent: Array, mean: Array, inverse: Array) -> tuple[Array, _Given]:
    return _by_dimension(latent, mean, inverse), (latent, mean, inverse)


def _backward(given: _Given, gradient: Array) -> _Given:
    latent, mean, inverse = given
    ones = jnp.ones(latent.shape[0], latent.dtype)

    def of_dimension(_: None, each: _Given) -> tuple[None, _Given]:
        scaled = _scaled(*each)
        by_scaled = 2 * gradient * scaled
        # Sums as products, which are vectorised along either axis.
        by_latent = jnp.dot(by_scaled, each[2], precision="highest")
        by_mean = -each[2] * jnp.dot(ones, by_scaled, precision="highest")
        return None, (by_latent, by_mean, jnp.dot(ones, by_scaled * scaled, precision="highest") / each[2])

    _, (by_latent, by_mean, by_inverse) = jax.lax.scan(of_dimension, None, (latent.T, mean.T, inverse.T))
    return by_latent.T, by_mean.T, by_inverse.T


_by_dimension.defvjp(_forward, _backward)
