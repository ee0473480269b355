"""What a VAE can be trained on, in nats per image: bounds on the log-likelihood, and their kin.

To add an objective: a function of `Drawn` (or a branch of `Variational.of`, if it needs more) and its
name in `Config.objective`.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae import objectives
from jaxvae.config import Config
from jaxvae.data import noise
from jaxvae.keys import fold_in_each
from jaxvae.models.models import Draws, Model, Params, Pixels, log_normal
from jaxvae.objectives.objectives import OBJECTIVES, Context, Objective

Array = jax.Array
Terms = dict[str, Array]
Measure = Literal["probability", "density", "unnormalised"]

_BOUND_PREFIXES: Mapping[Measure, str] = {"probability": "", "density": "density_", "unnormalised": "unnormalised_"}
LIKELIHOODS: Mapping[Measure, str] = {
    "probability": "log_likelihood",
    "density": "log_density",
    "unnormalised": "unnormalised_log_likelihood",
}


def measure(config: Config) -> Measure:
    """What p(x | z) is to the pixels as they are; numbers of different measures cannot be compared.

    - "probability": of discrete pixels, or a lower bound on it (`jaxvae.data.noise.dequantize`); at most 1.
    - "density": of a Gaussian at discrete values. It grows without bound as the standard deviation shrinks
      (Theis, van den Oord and Bethge, arXiv 1511.01844, section 3.1).
    - "unnormalised": of a Bernoulli at grey values, where nothing sums or integrates to 1
      (Loaiza-Ganem and Cunningham, "The continuous Bernoulli", arXiv 1907.06845).
    """
    if config.likelihood == "bernoulli":
        return "unnormalised" if config.inputs == "grey" else "probability"
    return "probability" if config.likelihood == "logistic" or config.dequantize else "density"


def bound_name(config: Config) -> str:
    """The name of an objective's lower bound on `likelihood_name`, of an objective in nats.

    "elbo"; "iwae_bound" of the objectives iwae and dreg; with the measure before it where that is no probability.
    """
    bound = "iwae_bound" if config.objective in ("iwae", "dreg") else "elbo"
    return _BOUND_PREFIXES[measure(config)] + bound


def likelihood_name(config: Config) -> str:
    """The name of log p(x): "log_likelihood", or "log_density" or "unnormalised_log_likelihood" (see `measure`)."""
    return LIKELIHOODS[measure(config)]


def measure_warning(config: Config) -> str | None:
    """A line that says what the numbers of a configuration must not be taken for, if there is such a thing."""
    if not config.in_nats or measure(config) != "density":
        return None
    return (
        f"warning: --likelihood {config.likelihood} gives densities of discrete pixels, which have no upper bound: "
        "they say nothing of the images' probability, on which --dequantize (with --inputs grey) makes them bounds"
    )


def selection_term(config: Config) -> tuple[str, bool]:
    """The term of an evaluation to choose models by, and whether higher is better.

    Objectives in nats are compared by their bound, which has no weights of its own; the notes' by their loss.
    """
    return (bound_name(config), True) if config.in_nats else ("loss", False)


def selection_cost(config: Config, metrics: Mapping[str, float]) -> float | None:
    """What `selection_term` names among the `metrics` of an evaluation, its sign such that lower is better; or None."""
    term, higher = selection_term(config)
    value = metrics.get(term)
    return -value if higher and value is not None else value


def pixel_nll(pixels: Pixels, x: Array, config: Config) -> Array:
    """Negative log-likelihood of images under `config.likelihood`, nats per image; see `measure` for what it is of.

    Args:
      pixels: of shape [B, S, H, W, C], or [B, H, W, C].
      x: intensities [B, H, W, C]; with `config.dequantize`, of `jaxvae.data.noise.dequantize`.
      config: its likelihood and, for "gaussian", the standard deviation.

    Returns:
      [B, S], or [B].
    """
    location, lead = pixels.location, pixels.location.shape[:-3]
    if len(lead) == 2:
        x = jnp.broadcast_to(x[:, None], location.shape)
    # One long axis of pixels: XLA's loops on the CPU run along the last one, which would be that of the colours.
    size = x[0].size if len(lead) == 1 else x[0, 0].size
    flat, target = location.reshape(-1, size), x.reshape(-1, size)
    scale: Any = pixels.log_scale
    if scale is not None and scale.ndim:
        scale = scale.reshape(flat.shape)
    if config.likelihood == "bernoulli":
        nll = objectives.bernoulli_nll(flat, target)
    elif config.likelihood == "logistic":
        nll = objectives.discretized_logistic_nll(jax.nn.sigmoid(flat), scale, target)
    else:
        scale = math.log(config.likelihood_std) if scale is None else scale
        nll = objectives.gaussian_nll(flat, scale, target)
    if config.dequantize:
        nll = nll + size * math.log(256)  # From a density of intensities to one of levels.
    return nll.reshape(lead)


def iwae_bound(log_weights: Array) -> Array:
    """``log (1/S) sum_s exp(log_weights[:, s])``, a lower bound on log p(x): [B, S] to [B], nats.

    Burda, Grosse and Salakhutdinov (arXiv 1509.00519), equation 8, where
    ``log_weights = log p(x | z) + log p(z) - log q(z | x)``.
    """
    bound: Array = jax.nn.logsumexp(log_weights, axis=1) - math.log(log_weights.shape[1])
    return bound


def free_bits_kl(kl: Array, free: Array | float) -> Array:
    """KL per dimension [B, L] to its cost [B]: what a dimension costs below `free` nats counts as `free`.

    Kingma et al. (arXiv 1606.04934), appendix C.8; per image rather than averaged over the minibatch first,
    so that it does not depend on who shares the batch.
    """
    return jnp.maximum(kl, free).sum(axis=-1)


def mmd(a: Array, b: Array) -> Array:
    """Squared maximum mean discrepancy of two samples [N, L], unbiased, with ``k(x, y) = exp(-|x - y|^2 / L)``.

    Gretton et al. (2012), equation 3; used as Zhao, Song and Ermon (arXiv 1706.02262) do, with a Gaussian
    kernel whose width grows with the dimension.
    """

    def kernel(x: Array, y: Array) -> Array:
        distance = jnp.square(x).sum(1)[:, None] + jnp.square(y).sum(1)[None, :] - 2 * x @ y.T
        return jnp.exp(-jnp.maximum(distance, 0) / x.shape[1])

    count = a.shape[0]
    off_diagonal = 1 - jnp.eye(count, dtype=a.dtype)
    within = ((kernel(a, a) + kernel(b, b)) * off_diagonal).sum() / (count * (count - 1))
    return within - 2 * kernel(a, b).mean()


def total_correlation(latent: Array, mean: Array, std: Array, num_images: int) -> Array:
    """KL(q(z) || prod_j q(z_j)) at each of a batch's latents, estimated from the batch: [B, L] to [B], nats.

    q(z) is the mixture of the posteriors of all `num_images` training images, N. Chen et al. (arXiv 1802.04942),
    minibatch stratified sampling (appendix C.2): at a latent of image i,

        q(z) ~ q(z | x_i) / N + (N - 1) / N * mean over the batch's other images j of q(z | x_j),

    so too in every dimension. It is exact where the batch is the training set. Otherwise both logarithms are too low in
    expectation, and their difference is biased: measured on Gaussian posteriors with N = 60,000 and 10 or 20
    dimensions, by -1.4 to +0.7 nats for 128 images a batch, by -1.8 to +4.9 for 32. The total correlation of so many
    narrow posteriors is itself above that of the distribution they are drawn from: by about I - log N where an image
    and its latent share I > log N nats.

    (Minibatch-weighted sampling, the paper's equation S5, gives each image the weight 1 / (B N): it is above this by
    (L - 1) log N and more, also for independent dimensions.)

    Args:
      latent, mean, std: [B, L], one latent an image and the posterior it was drawn from; B > 1.
      num_images: N, at least B.
    """
    batch = latent.shape[0]
    standard = (latent[:, None] - mean[None]) / std[None]
    log_q = -0.5 * (jnp.square(standard) + math.log(2 * math.pi)) - jnp.log(std)[None]  # [B, B, L]
    own, other = -math.log(num_images), math.log((num_images - 1) / (num_images * (batch - 1)))
    log_weights = jnp.where(jnp.eye(batch, dtype=bool), jnp.asarray(own, log_q.dtype), other)
    joint = jax.nn.logsumexp(log_q.sum(-1) + log_weights, axis=1)
    product = jax.nn.logsumexp(log_q + log_weights[..., None], axis=1).sum(-1)
    return joint - product


class Variational(NamedTuple):
    """An objective in nats per image, as `config` says, with numbers that may be traced.

    Attributes:
      config: which objective and likelihood, and all that is a shape or a branch.
      numbers: `Config.numbers`, in place of those in `config`.
      steps_per_epoch: in which the warm-up of the KL term is counted.
      num_images: of the training set.
    """

    config: Config
    numbers: Mapping[str, Array | float]
    steps_per_epoch: int
    num_images: int

    @property
    def unit(self) -> str:
        """The scale all terms are in."""
        return "nats/image"

    @property
    def samples(self) -> int:
        """Latents drawn for each image."""
        return self.config.samples

    def kl_weight(self, step: Array | None) -> Array | float:
        """The KL term's weight at a step: beta, or on the way to it.

        Linear warm-up (Sønderby et al., arXiv 1602.02282), repeated `kl_cycles` times (Fu et al., arXiv 1903.10145).
        """
        warmup, beta = self.config.kl_warmup_epochs, self.numbers["beta"]
        if step is None or not warmup:
            return beta
        cycle = self.config.epochs * self.steps_per_epoch / self.config.kl_cycles
        inside = jnp.mod(step.astype(jnp.float32), jnp.float32(cycle))
        return beta * jnp.minimum(inside / (warmup * self.steps_per_epoch), 1.0)

    def of(self, model: Model, params: Params, x: Array, keys: Array, context: Context) -> Terms:
        """The terms for images `x` [B, H, W, C] in [0, 1], [B] each; "loss" is what is minimised.

        In evaluation (``context.step is None``) the loss holds no term that is of a batch rather than
        of an image: total correlation and mean discrepancy are left out. There the terms also hold the bound on
        log p(x), higher is better, under the name of `bound_name`: with a KL weight of 1 and without free bits,
        so that it means the same whatever the weights in training were.
        """
        terms, bound = self._terms(model, params, noise.observe(self.config)(x, keys), keys, context)
        return terms if context.step is not None else {**terms, bound_name(self.config): bound}

    def _terms(self, model: Model, params: Params, x: Array, keys: Array, context: Context) -> tuple[Terms, Array]:
        """The terms of training, and the bound [B]."""
        config = self.config
        weight = self.kl_weight(context.step)
        if config.objective == "dreg":
            return self._dreg(model, params, x, keys, weight)
        drawn: Draws = model.apply(params, x, keys, config.samples, method="draw")  # type: ignore[assignment]
        log_px = -pixel_nll(drawn.pixels, x, config)
        log_ratio = drawn.log_prior - drawn.log_posterior
        recon, estimate = -log_px.mean(axis=1), -log_ratio.mean(axis=1)
        if config.objective == "iwae":
            loss = -iwae_bound(log_px + weight * log_ratio)
            return {"loss": loss, "recon": recon, "kl": estimate}, iwae_bound(log_px + log_ratio)
        if config.architecture == "two-layer":
            return {"loss": recon + weight * estimate, "recon": recon, "kl": estimate}, -(recon + estimate)
        per_dimension = objectives.gaussian_kl_per_dimension(drawn.mean, drawn.std)
        kl = per_dimension.sum(axis=-1)
        if config.objective == "beta-tc":
            # Beta weighs the total correlation alone, so the other parts of the KL term keep their weight of 1.
            terms = {"loss": recon + kl, "recon": recon, "kl": kl}
            if context.step is not None:
                latent, mean, std = (context.gather(a) for a in (drawn.latent[:, 0], drawn.mean, drawn.std))
                tc = total_correlation(latent, mean, std, self.num_images).mean()
                terms |= {"loss": recon + kl + (weight - 1) * tc, "tc": jnp.broadcast_to(tc, kl.shape)}
            return terms, -(recon + kl)
        cost = free_bits_kl(per_dimension, self.numbers["free_bits"])
        terms = {"loss": recon + weight * cost, "recon": recon, "kl": kl}
        if config.objective == "info" and context.step is not None:
            latent = context.gather(drawn.latent[:, 0])
            prior = jax.vmap(lambda key: jax.random.normal(key, drawn.mean.shape[1:]))(fold_in_each(keys, "prior"))
            discrepancy = mmd(latent, context.gather(prior))
            scaled = self.numbers["mmd_weight"] * x[0].size * discrepancy
            terms |= {"loss": terms["loss"] + scaled, "mmd": jnp.broadcast_to(discrepancy, kl.shape)}
        return terms, -(recon + kl)

    def _dreg(self, model: Model, params: Params, x: Array, keys: Array, weight: Array | float) -> tuple[Terms, Array]:
        """IWAE with the doubly reparameterised gradient for the encoder: Tucker et al. (arXiv 1810.04152), equation 8.

        The decoder's gradient is IWAE's. The encoder's flows through the latents alone. Each is the gradient of a
        surrogate of its own; the value is the bound.

        For a KL weight b the bound is ``log (1/S) sum_s w_s``, where
        ``log w_s = log p(x | z_s) + b (log p(z_s) - log q(z_s | x))``. With v the normalised weights, its gradient by
        the encoder's parameters f, through ``z_s(f)`` and q, is

            sum_s v_s (d log w_s / dz_s  dz_s / df  -  b d log q(z_s | x) / df).

        By reparameterisation, ``E_q[h(z) d log q(z | x) / df] = E[dh / dz  dz / df]`` for a function h that does not
        depend on f. For h = v_s, whose derivative is ``(v_s - v_s^2) d log w_s / dz_s``, the second term becomes
        ``-b (v_s - v_s^2)`` times the first's factors. Together the latents' weights are ``(1 - b) v + b v^2``, which
        for b = 1 are the paper's squares.
        """
        posterior: Any = model.apply(params, x, method="encode")
        mean, std = posterior
        eps = jax.vmap(lambda key: jax.random.normal(key, (self.config.samples, mean.shape[-1]), mean.dtype))(keys)
        latent = mean[:, None] + std[:, None] * eps
        fixed_mean, fixed_std = (jax.lax.stop_gradient(a)[:, None] for a in (mean, std))

        def log_weights(params: Params, z: Array) -> tuple[Array, Array, Array]:
            pixels: Pixels = model.apply(params, z, method="pixels")  # type: ignore[assignment]
            log_px = -pixel_nll(pixels, x, self.config)
            log_ratio = log_normal(z) - log_normal(z, fixed_mean, fixed_std)
            return log_px + weight * log_ratio, log_px, log_ratio

        for_decoder, log_px, log_ratio = log_weights(params, jax.lax.stop_gradient(latent))
        for_encoder, _, _ = log_weights(jax.lax.stop_gradient(params), latent)
        normalised = jax.lax.stop_gradient(jax.nn.softmax(for_decoder, axis=1))
        of_latents = (1 - weight) * normalised + weight * jnp.square(normalised)
        surrogate = (normalised * for_decoder + of_latents * for_encoder).sum(axis=1)
        bound = jax.lax.stop_gradient(iwae_bound(for_decoder) - surrogate) + surrogate
        recon, kl = (jax.lax.stop_gradient(-a.mean(axis=1)) for a in (log_px, log_ratio))
        return {"loss": -bound, "recon": recon, "kl": kl}, iwae_bound(log_px + log_ratio)


def build_objective(
    config: Config,
    steps_per_epoch: int | None = None,
    num_images: int | None = None,
    numbers: Mapping[str, Array | float] | None = None,
) -> "Objective | Variational":
    """The objective of a configuration.

    Args:
      config: what to minimise.
      steps_per_epoch: of training, needed where the KL term is warmed up, which is counted in epochs.
      num_images: of the training set, needed for beta-tc, whose estimate depends on it.
      numbers: values, which may be traced, in place of ``config.numbers()``.

    Raises:
      TypeError: an argument that `config` needs is missing.
    """
    if not config.in_nats:
        objective = OBJECTIVES[config.objective]._replace(observe=noise.observe(config))
        return objective if config.is_vae else objective._replace(corruption=config.corruption)
    if config.kl_warmup_epochs and steps_per_epoch is None:
        raise TypeError("build_objective needs steps_per_epoch: kl_warmup_epochs counts in epochs")
    if config.objective == "beta-tc" and num_images is None:
        raise TypeError("build_objective needs num_images: the total correlation depends on it")
    # What is not needed is not read.
    return Variational(config, config.numbers() if numbers is None else numbers, steps_per_epoch or 0, num_images or 0)
