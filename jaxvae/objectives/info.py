"""InfoVAE: the evidence lower bound and the maximum mean discrepancy between latents and prior."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Key

from jaxvae.errors import InputError
from jaxvae.keys import fold_in_each
from jaxvae.objectives.base import View
from jaxvae.objectives.elbo import FreeBits, InNats, kl_and_cost
from jaxvae.options import NOT_NEGATIVE, option
from jaxvae.typing import Array, Batch, Terms


def mmd(a: Float[Array, "M L"], b: Float[Array, "N L"]) -> Float[Array, ""]:
    """Squared maximum mean discrepancy of two samples [N, L], unbiased, with ``k(x, y) = exp(-|x - y|^2 / L)``.

    Gretton et al. (2012), equation 3; used as in Zhao, Song and Ermon (arXiv 1706.02262), with a Gaussian
    kernel that widens with the dimension.
    """

    def kernel(x: Array, y: Array) -> Array:
        distance = jnp.square(x).sum(1)[:, None] + jnp.square(y).sum(1)[None, :] - 2 * x @ y.T
        return jnp.exp(-jnp.maximum(distance, 0) / x.shape[1])

    count = a.shape[0]
    off_diagonal = 1 - jnp.eye(count, dtype=a.dtype)
    within = ((kernel(a, a) + kernel(b, b)) * off_diagonal).sum() / (count * (count - 1))
    return within - 2 * kernel(a, b).mean()


@dataclass(frozen=True)
class Info(InNats, FreeBits):
    """InfoVAE: Zhao, Song and Ermon, arXiv 1706.02262."""

    mmd_weight: float = option(0.0, NOT_NEGATIVE, traced=True)
    """Weight of the squared maximum mean discrepancy in info. It is multiplied by the number of values of an image."""

    def check(self, config: Any) -> None:
        """See `Component`."""
        super().check(config)
        if config.batch_size < 2:
            raise InputError(f"--objective {config.objective} needs --batch-size 2 or more: it compares samples")
        if not self.mmd_weight > 0:
            raise InputError(f"--objective {config.objective} needs --mmd-weight above 0: at 0 it is elbo")

    def idle(self, config: Any) -> Mapping[str, str]:
        """See `Component`."""
        return {**InNats.idle(self, config), **FreeBits.idle(self, config)}

    def terms(self, view: View, batch: Batch, keys: Key[Array, " B"]) -> Terms:
        """See `Objective`."""
        weight, x = self.kl_weight(view), batch["image"]
        drawn = view.draw(batch, keys, 1)
        recon = view.nll(drawn.pixels, x).mean(axis=1)
        kl, cost = kl_and_cost(drawn, self.free_bits)
        terms = {"loss": recon + weight * cost, "recon": recon, "kl": kl, "bound": -(recon + kl)}
        if view.train:
            latent = view.gather(drawn.latent[:, 0])
            prior = jax.vmap(lambda key, example: view.apply(key, (), example, method="sample_prior"))(
                fold_in_each(keys, "prior"), dict(batch)
            )
            discrepancy = mmd(latent, view.gather(prior))
            scaled = self.mmd_weight * x[0].size * discrepancy
            terms |= {"loss": terms["loss"] + scaled, "mmd": jnp.broadcast_to(discrepancy, kl.shape)}
        return terms
