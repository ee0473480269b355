"""The VampPrior: a mixture of the posteriors of pseudo-inputs, images that are learned.

Tomczak and Welling, "VAE with a VampPrior" (arXiv 1705.07120).
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float

from jaxvae.errors import InputError
from jaxvae.models.mixture import COMPONENTS, OfGaussians
from jaxvae.options import option
from jaxvae.protocols import Encode, Prior, PriorModule
from jaxvae.typing import Array, ImageShape, Params

NOISE = 0.01  # Deviation of the noise of the first pseudo-inputs, in units of intensity: that of their code.


class VampModule(OfGaussians):
    """See `Vamp` and `PriorModule`.

    Attributes:
      pseudo_inputs: K.
      image_shape: (H, W, C).
      encode: images [K, H, W, C] to the mean and the standard deviation of their posteriors, [K, L] each.
    """

    pseudo_inputs: int
    image_shape: ImageShape
    encode: Encode

    def setup(self) -> None:
        first = nn.initializers.normal(NOISE)
        self.inputs = self.param("pseudo_inputs", first, (self.pseudo_inputs, *self.image_shape))

    def gaussians(self) -> tuple[Array, Array, Array]:
        """See `OfGaussians`: the posteriors of the pseudo-inputs."""
        mean, std = self.encode(jnp.clip(self.inputs, 0.0, 1.0))
        return jnp.full(len(mean), -math.log(self.pseudo_inputs), mean.dtype), mean, std


@dataclass(frozen=True)
class Vamp(Prior):
    """The VampPrior: ``p(z) = 1/K sum_k q(z | u_k)`` for K learned pseudo-inputs u (arXiv 1705.07120, section 3)."""

    closed_form: ClassVar[bool] = False
    separate: ClassVar[bool] = False

    pseudo_inputs: int = option(500, COMPONENTS)
    """Learned images of --prior vamp. The prior is the mean of their posteriors."""

    def check(self, config: Any) -> None:
        """See `Component`."""
        if "prior" not in config.parts.objective.uses:
            return
        if config.parts.network.hierarchical:
            raise InputError("--prior vamp needs a network with one layer of latents, which the encoder gives")
        if config.condition == "label":
            raise InputError("--prior vamp: not with --condition label, because its pseudo-inputs have no labels")

    def module_with(self, latent_size: int, encode: Encode, image_shape: ImageShape) -> PriorModule:
        """See `Prior`."""
        del latent_size
        return VampModule(self.pseudo_inputs, image_shape, encode)

    @property
    def first_images(self) -> int:
        """See `Prior`."""
        return self.pseudo_inputs

    def from_images(self, params: Params, images: Float[Array, "K H W C"]) -> Params:
        """See `Prior`: pseudo-inputs start half way from the mean of `images` to each of them, with noise, in [0, 1].

        The paper's code starts all near one grey value, where they may never part, or, as an option, at the images. But
        a pixel at 0 or 1 that leaves the range has no gradient any more.
        """
        halfway = 0.5 * (images.mean(axis=0, keepdims=True) + images)
        return {"pseudo_inputs": jnp.clip(params["pseudo_inputs"] + halfway, 0.0, 1.0)}
