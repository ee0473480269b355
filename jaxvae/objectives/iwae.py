"""The importance-weighted bound, with its own or with the doubly reparameterised gradient."""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Float, Key

from jaxvae.models.priors import log_normal
from jaxvae.models.vae import label_of
from jaxvae.objectives.base import View
from jaxvae.objectives.elbo import InNats, Samples
from jaxvae.typing import Array, Batch, Params, Terms


def iwae_bound(log_weights: Float[Array, "B S"]) -> Float[Array, " B"]:
    """``log (1/S) sum_s exp(log_weights[:, s])``, a lower bound on log p(x): [B, S] to [B], nats.

    Burda, Grosse and Salakhutdinov (arXiv 1509.00519), equation 8, where
    ``log_weights = log p(x | z) + log p(z) - log q(z | x)``.
    """
    bound: Array = jax.nn.logsumexp(log_weights, axis=1) - math.log(log_weights.shape[1])
    return bound


@dataclass(frozen=True)
class Iwae(InNats, Samples):
    """The importance-weighted bound: Burda, Grosse and Salakhutdinov, arXiv 1509.00519."""

    hierarchical: ClassVar[bool] = True
    bound: ClassVar[str] = "iwae_bound"
    tightens: ClassVar[bool] = True
    separate: ClassVar[bool] = True

    def terms(self, view: View, batch: Batch, keys: Key[Array, " B"]) -> Terms:
        """See `Objective`."""
        weight = self.kl_weight(view)
        drawn = view.draw(batch, keys, self.samples)
        log_px = -view.nll(drawn.pixels, batch["image"])
        log_ratio = drawn.log_prior - drawn.log_posterior
        recon, estimate = -log_px.mean(axis=1), -log_ratio.mean(axis=1)
        loss = -iwae_bound(log_px + weight * log_ratio)
        return {"loss": loss, "recon": recon, "kl": estimate, "bound": iwae_bound(log_px + log_ratio)}


@dataclass(frozen=True)
class Dreg(InNats, Samples):
    """IWAE with the doubly reparameterised gradient for the encoder: Tucker et al. (arXiv 1810.04152), equation 8.

    The decoder's gradient is IWAE's. The encoder's gradient flows through the latents only. Each is the gradient of
    its own surrogate; the value is the bound.

    For a KL weight b the bound is ``log (1/S) sum_s w_s``, where
    ``log w_s = log p(x | z_s) + b (log p(z_s) - log q(z_s | x))``. With v the normalised weights, its gradient by
    the encoder's parameters f, through ``z_s(f)`` and q, is

        sum_s v_s (d log w_s / dz_s  dz_s / df  -  b d log q(z_s | x) / df).

    By reparameterisation, ``E_q[h(z) d log q(z | x) / df] = E[dh / dz  dz / df]`` for a function h that does not
    depend on f. For h = v_s, with derivative ``(v_s - v_s^2) d log w_s / dz_s``, the second term becomes
    ``-b (v_s - v_s^2)`` times the factors of the first. Together the latents' weights are ``(1 - b) v + b v^2``.
    For b = 1 these are the paper's squares.
    """

    bound: ClassVar[str] = "iwae_bound"
    tightens: ClassVar[bool] = True
    separate: ClassVar[bool] = True

    def terms(self, view: View, batch: Batch, keys: Key[Array, " B"]) -> Terms:
        """See `Objective`."""
        weight, x = self.kl_weight(view), batch["image"]
        told = label_of(view.model, batch)
        mean, std = view.apply(x, **told, method="encode")
        eps = jax.vmap(lambda key: jax.random.normal(key, (self.samples, mean.shape[-1]), mean.dtype))(keys)
        latent = mean[:, None] + std[:, None] * eps
        fixed_mean, fixed_std = (jax.lax.stop_gradient(a)[:, None] for a in (mean, std))

        def log_weights(params: Params, z: Array) -> tuple[Array, Array, Array]:
            log_px = -view.nll(view.apply(z, **told, method="pixels", params=params), x)
            log_ratio = view.apply(z, batch, method="log_prior", params=params) - log_normal(z, fixed_mean, fixed_std)
            return log_px + weight * log_ratio, log_px, log_ratio

        for_decoder, log_px, log_ratio = log_weights(view.params, jax.lax.stop_gradient(latent))
        for_encoder, _, _ = log_weights(jax.lax.stop_gradient(view.params), latent)
        normalised = jax.lax.stop_gradient(jax.nn.softmax(for_decoder, axis=1))
        of_latents = (1 - weight) * normalised + weight * jnp.square(normalised)
        surrogate = (normalised * for_decoder + of_latents * for_encoder).sum(axis=1)
        bound = jax.lax.stop_gradient(iwae_bound(for_decoder) - surrogate) + surrogate
        recon, kl = (jax.lax.stop_gradient(-a.mean(axis=1)) for a in (log_px, log_ratio))
        return {"loss": -bound, "recon": recon, "kl": kl, "bound": iwae_bound(log_px + log_ratio)}
