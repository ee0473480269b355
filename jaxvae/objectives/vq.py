"""VQ-VAE: discrete latents with a learned codebook."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float, Key

from jaxvae.errors import InputError
from jaxvae.keys import GENERATOR, fold_in_purpose
from jaxvae.models.quantized import Quantized
from jaxvae.models.quantizers import VectorQuantizer
from jaxvae.objectives.base import View
from jaxvae.objectives.discrete import Discrete
from jaxvae.options import AT_LEAST_1, NOT_NEGATIVE, Range, option
from jaxvae.typing import Array

CODES = Range("from 2 to 65536", lambda value: 2 <= value <= 2**16)


@dataclass(frozen=True)
class Vq(Discrete):
    """VQ-VAE: van den Oord, Vinyals and Kavukcuoglu, arXiv 1711.00937.

    All devices update one codebook from the vectors of the whole batch, so it is the same everywhere, bit for bit.
    """

    codes: int = option(512, CODES)
    """Codes of vq's codebook."""
    code_size: int = option(64, AT_LEAST_1)
    """Dimensions of each code's vector."""
    codebook: Literal["average", "gradient"] = option("average")
    """How vq learns its codebook. average: moving averages of the encoder's vectors, with a restart of codes that are
    hardly used; gradient: as a parameter."""
    commitment: float = option(0.25, NOT_NEGATIVE, traced=True)
    """Weight of vq's squared distance from the encoder's vectors to their codes."""

    def check(self, config: Any) -> None:
        """See `Component`."""
        super().check(config)
        if config.ema and self.codebook == "average":
            raise InputError("--ema needs --codebook gradient: it does not average the codes of --codebook average")

    def quantizer(self) -> VectorQuantizer:
        """See `Discrete`."""
        return VectorQuantizer(self.codes, self.code_size, self.codebook == "average")

    def cost(self, found: Quantized) -> Float[Array, " B"]:
        """The second and third term of equation 3, summed over an image's vectors. Averages have no second term."""
        still = jax.lax.stop_gradient
        cost = self.commitment * jnp.square(found.features - still(found.vectors)).sum((1, 2))
        if self.codebook == "gradient":
            cost = cost + jnp.square(still(found.features) - found.vectors).sum((1, 2))
        return cost

    def counted(self, view: View, features: Float[Array, "B N D"], keys: Key[Array, " B"]) -> tuple[Array, Array]:
        """Those of the whole batch, on every device: codes must restart at the same vectors."""
        first = jax.random.wrap_key_data(view.gather(jax.random.key_data(keys))[0], impl=GENERATOR)
        return view.gather(features), fold_in_purpose(first, "restart")
