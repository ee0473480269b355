"""What the objectives of models with discrete latents share."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Float, Key

from jaxvae.errors import InputError
from jaxvae.models.code_prior import CodePrior
from jaxvae.models.quantized import Quantized, QuantizedVAE
from jaxvae.objectives.base import View
from jaxvae.options import COUNT, Range, option
from jaxvae.protocols import Objective
from jaxvae.typing import Array, Batch, ImageShape, Terms

_WIDTH = Range("from 1 to 65536", lambda value: 1 <= value <= 2**16)


@dataclass(frozen=True)
class Discrete(Objective):
    """The bound ``log p(x | codes) + log p(codes)`` of a `QuantizedVAE`, in nats per image.

    It is a lower bound on log p(x), because the codes of an image are a point (van den Oord et al., arXiv 1711.00937,
    section 3.1). The prior of the codes is trained with the model, and changes neither encoder nor decoder.
    """

    code_prior_layers: int = option(2, COUNT)
    """Blocks of the transformer that is the prior of vq's and fsq's codes; 0: all codes are equally likely."""
    code_prior_width: int = option(64, _WIDTH)
    """Width of that transformer."""

    uses: ClassVar[tuple[str, ...]] = ("likelihood",)
    ignores: ClassVar[tuple[str, ...]] = ("latent_size", "head")
    point_posterior: ClassVar[bool] = True

    def check(self, config: Any) -> None:
        """See `Component`."""
        if config.parts.model is not None:
            raise InputError(f"--objective {config.objective} trains a model of its own: it takes no --model")
        if not config.parts.network.spatial:
            raise InputError(f"--objective {config.objective} needs --latents spatial (--architecture conv or resnet)")

    def idle(self, config: Any) -> Mapping[str, str]:
        """See `Component`."""
        return {} if self.code_prior_layers else {"code_prior_width": "--code-prior-layers"}

    def quantizer(self) -> Any:
        """The quantiser: a Flax module such as those of `jaxvae.models.quantizers`."""
        raise NotImplementedError

    def model(self, config: Any, image_shape: ImageShape) -> QuantizedVAE:
        """See `Objective`."""
        quantizer, network, dtype = self.quantizer(), config.parts.network, jnp.dtype(config.compute_dtype)
        places, classes = math.prod(network.grid(image_shape)), config.classes if config.condition == "label" else 0
        network.check_sizes(image_shape, places * quantizer.size)
        prior = CodePrior(quantizer.codes, places, self.code_prior_layers, self.code_prior_width, classes, dtype)
        return QuantizedVAE(
            image_shape,
            network,
            places * quantizer.size,
            likelihood=config.parts.likelihood,
            dtype=dtype,
            classes=classes,
            quantizer=quantizer,
            code_prior=prior,
        )

    def cost(self, found: Quantized) -> Float[Array, " B"]:
        """What the quantiser adds to the loss of each image."""
        return jnp.zeros_like(found.log_prior)

    def counted(self, view: View, features: Float[Array, "B N D"], keys: Key[Array, " B"]) -> tuple[Array, Array]:
        """The vectors that the quantiser counts, and the key of its update: those of the device's own images."""
        return features, keys[0]

    def terms(self, view: View, batch: Batch, keys: Key[Array, " B"]) -> Terms:
        """See `Objective`."""
        found: Quantized = view.apply(batch, method="quantize")
        recon, rate = view.nll(found.pixels, batch["image"]), -found.log_prior
        terms = {"loss": recon + rate + self.cost(found), "recon": recon, "kl": rate, "bound": -(recon + rate)}
        if view.train:
            features, key = self.counted(view, jax.lax.stop_gradient(found.features), keys)
            perplexity = view.apply(features.reshape(-1, features.shape[-1]), key, method="update")
            terms["perplexity"] = jnp.broadcast_to(perplexity, recon.shape)
        return terms
