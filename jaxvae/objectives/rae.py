"""The regularised autoencoder: a deterministic autoencoder with small codes and a smooth decoder."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Key

from jaxvae.errors import InputError
from jaxvae.models.likelihoods import sum_per_example
from jaxvae.objectives.base import View
from jaxvae.options import NOT_NEGATIVE, option
from jaxvae.protocols import Objective
from jaxvae.typing import Array, Batch, Terms


@dataclass(frozen=True)
class Rae(Objective):
    """RAE-L2: Ghosh, Sajjadi, Vergari, Black and Schölkopf (arXiv 1903.12436), section 3.

    ``sum_pixels (x_hat - x)^2 + code_l2 * |z|^2 / 2 + decoder_l2 * |decoder's parameters|^2``. The last term is their
    Tikhonov regularisation of the decoder. It is part of the loss, not a decoupled weight decay. In evaluation it is
    left out, because it is no property of an image.
    """

    code_l2: float = option(0.01, NOT_NEGATIVE, traced=True)
    """Weight of half the squared norm of the code in rae."""
    decoder_l2: float = option(1e-4, NOT_NEGATIVE, traced=True)
    """Weight of the squared norm of the decoder's parameters in rae."""

    unit: ClassVar[str] = "per image"
    uses: ClassVar[tuple[str, ...]] = ()
    latent_model: ClassVar[bool] = False
    bound: ClassVar[str] = ""
    separate: ClassVar[bool] = True

    def check(self, config: Any) -> None:
        """See `Component`."""
        if config.parts.model is not None:
            raise InputError(f"--objective {config.objective} trains an autoencoder of its own: it takes no --model")
        if config.head not in ("relu", "linear"):
            raise InputError(
                f"--objective {config.objective} needs --head relu or linear: a code has no standard deviation"
            )

    def terms(self, view: View, batch: Batch, keys: Key[Array, " B"]) -> Terms:
        """See `Objective`."""
        output, x = view.output(batch, keys), batch["image"]
        recon = sum_per_example(jnp.square(output.x_hat - x))
        code = 0.5 * jnp.square(output.latent).sum(axis=-1)
        loss = recon + self.code_l2 * code
        if view.train:
            loss = loss + self.decoder_l2 * squared_norm(view.params["params"]["decoder"])
        return {"loss": loss, "recon": recon, "code": code}


def squared_norm(tree: Mapping[str, Any]) -> Array:
    """The sum of the squares of all values of a tree, []."""
    squares: Array = jnp.stack([jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree)]).sum()
    return squares
