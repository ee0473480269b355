"""Inputs: what a model sees of images [B, H, W, C] in [0, 1], with noise on pixels. Each example has its own key."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Float, Key

from jaxvae.errors import InputError
from jaxvae.keys import fold_in_each
from jaxvae.options import COUNT, option
from jaxvae.protocols import Inputs, Pixels
from jaxvae.typing import Array


def corrupt(x: Float[Array, "B *shape"], keys: Key[Array, " B"], fraction: float) -> Float[Array, "B *shape"]:
    """Set each pixel of `x` to 0 with probability `fraction`: masking noise.

    Vincent et al. (2010), "Stacked Denoising Autoencoders", section 3.3; the loss compares with the whole image.
    """
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - fraction, x.shape[1:]))(fold_in_each(keys, "corrupt"))
    return jnp.where(kept, x, jnp.zeros_like(x))


def binarize(x: Float[Array, "B *shape"], keys: Key[Array, " B"]) -> Float[Array, "B *shape"]:
    """Draw each pixel as 0 or 1. The intensity is the probability of 1.

    Salakhutdinov and Murray (2008), section 5; drawn anew with every key: dynamic binarisation.
    """
    return (_uniform(x, keys, "binarize") < x).astype(x.dtype)


def dequantize(x: Float[Array, "B *shape"], keys: Key[Array, " B"]) -> Float[Array, "B *shape"]:
    """Move each pixel k / 255 to a random point of its bin: ``(k + u) / 256`` with u uniform in [0, 1).

    Theis, van den Oord and Bethge (arXiv 1511.01844), section 3.1. The integral of a density over the bins of an
    image's levels is the probability of the levels, so by Jensen's inequality

        log P(k) >= E_u[log p((k + u) / 256)] - D log 256

    for D pixels and a density p of intensities.
    """
    return (255 * x + _uniform(x, keys, "dequantize")) / 256


def flipped(x: Float[Array, "B H W C"], keys: Key[Array, " B"]) -> Float[Array, "B H W C"]:
    """Turn each image left to right with probability 1/2."""
    turned = jax.vmap(jax.random.bernoulli)(fold_in_each(keys, "flip"))
    return jnp.where(turned[:, None, None, None], x[:, :, ::-1], x)


def _uniform(x: Array, keys: Array, purpose: str) -> Array:
    return jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:], x.dtype))(fold_in_each(keys, purpose))


@dataclass(frozen=True)
class Grey(Inputs):
    """Pixels as they are: one of 256 levels each."""

    dequantize: bool = option(False)
    """Add uniform noise of one grey level to the pixels, so that a Gaussian's density bounds a probability."""

    @property
    def pixels(self) -> Pixels:
        """See `Inputs`."""
        return "continuous" if self.dequantize else "levels"

    def check(self, config: Any) -> None:
        """See `Component`."""
        parts = config.parts
        if self.dequantize and not ("likelihood" in parts.objective.uses and parts.likelihood.continuous):
            raise InputError("--dequantize needs a gaussian --likelihood: it makes a density a bound on a probability")

    def observe(self, x: Float[Array, "B H W C"], keys: Key[Array, " B"]) -> Float[Array, "B H W C"]:
        """See `Inputs`."""
        return dequantize(x, keys) if self.dequantize else x


@dataclass(frozen=True)
class Dynamic(Inputs):
    """Pixels 0 or 1, drawn anew each time an image is seen."""

    pixels: ClassVar[Pixels] = "binary"

    def observe(self, x: Float[Array, "B H W C"], keys: Key[Array, " B"]) -> Float[Array, "B H W C"]:
        """See `Inputs`."""
        return binarize(x, keys)


@dataclass(frozen=True)
class Static(Inputs):
    """Pixels 0 or 1, drawn once, when the images are loaded."""

    static_seed: int = option(0, COUNT)
    """Seed that draws the pixels of --inputs static."""

    pixels: ClassVar[Pixels] = "binary"

    def observe(self, x: Float[Array, "B H W C"], keys: Key[Array, " B"]) -> Float[Array, "B H W C"]:
        """See `Inputs`."""
        del keys
        return x


INPUTS: Mapping[str, type[Inputs]] = {"grey": Grey, "dynamic": Dynamic, "static": Static}
