"""Noise on pixels: what a model gets to see of images [B, H, W, C] in [0, 1]. All of it is keyed by example."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxvae.config import Config
from jaxvae.keys import fold_in_each

Array = jax.Array
Observe = Callable[[Array, Array], Array]


def corrupt(x: Array, keys: Array, fraction: float) -> Array:
    """`x` with each pixel 0 with probability `fraction`: masking noise.

    Vincent et al. (2010), "Stacked Denoising Autoencoders", section 3.3; the loss is taken against the whole image.
    """
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - fraction, x.shape[1:]))(fold_in_each(keys, "corrupt"))
    return jnp.where(kept, x, jnp.zeros_like(x))


def binarize(x: Array, keys: Array) -> Array:
    """Pixels 0 or 1, each 1 with the probability that is its intensity.

    Salakhutdinov and Murray (2008), section 5; drawn anew with every key: dynamic binarisation.
    """
    return (_uniform(x, keys, "binarize") < x).astype(x.dtype)


def dequantize(x: Array, keys: Array) -> Array:
    """Pixels k / 255 of 256 levels, as points of their bins: ``(k + u) / 256`` with u uniform in [0, 1).

    Theis, van den Oord and Bethge (arXiv 1511.01844), section 3.1. The integral of a density over the bins of an
    image's levels is their probability, so by Jensen's inequality

        log P(k) >= E_u[log p((k + u) / 256)] - D log 256

    for D pixels and a density p of intensities.
    """
    return (255 * x + _uniform(x, keys, "dequantize")) / 256


def _uniform(x: Array, keys: Array, purpose: str) -> Array:
    return jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:], x.dtype))(fold_in_each(keys, purpose))


def observe(config: Config) -> Observe:
    """What becomes of images in [0, 1] each time one is seen, in training and evaluation alike: ``observe(x, keys)``.

    "static" pixels were drawn when the images were loaded, and stay.
    """
    if config.inputs == "dynamic":
        return binarize
    return dequantize if config.dequantize else as_they_are


def as_they_are(x: Array, keys: Array) -> Array:
    """`x`."""
    del keys
    return x
