"""Per-example losses [B] from model outputs. No models, no means over the batch.

Two scales are in use, and every objective says which is its own (`Objective.unit`):

- *nats per image*, the literature's: summed over pixels and latent dimensions;
- *per pixel*, the notes': both terms divided by the number of pixels, H * W * C.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae.data import noise
from jaxvae.models.models import AutoEncoderOutput, VAEOutput

Array = jax.Array


def _sum_per_example(values: Array) -> Array:
    return values.reshape(values.shape[0], -1).sum(axis=-1)


def _check_same_shape(**arrays: Array) -> None:
    """Broadcasting a [B, 1] against a [B] would give a plausible wrong number, so it is refused."""
    if len({a.shape for a in arrays.values()}) > 1:
        raise ValueError("shapes must agree: " + ", ".join(f"{n} {a.shape}" for n, a in arrays.items()))


def mse(x_hat: Array, x: Array) -> Array:
    """Squared error averaged over pixels: ``mean_pixels (x_hat - x)^2``. The notes' reconstruction loss.

    Args:
      x_hat: reconstructed intensities [B, ...].
      x: intensities [B, ...] in [0, 1].

    Returns:
      [B], >= 0, per pixel; its mean over the batch is PyTorch's ``MSELoss()``.

    Raises:
      ValueError: if the shapes differ.
    """
    _check_same_shape(x_hat=x_hat, x=x)
    error = jnp.square(x_hat - x)
    return _sum_per_example(error) / (error.size // error.shape[0])


def notes_kld(mean: Array, std: Array, num_pixels: int) -> Array:
    """The notes' KL term: ``0.5 * sum_latent(mean^2 + std^2 - log(1e-8 + std^2) - 1) / num_pixels``.

    It is KL(N(mean, std^2) || N(0, 1)) but for the 1e-8, which keeps it finite at ``std == 0``
    (there a latent dimension costs about 8.7 nats), and for the division by the number of pixels.

    Args:
      mean, std: [B, L].
      num_pixels: H * W * C, 784 for MNIST.

    Returns:
      [B], per pixel; its mean over the batch is the notes' ``kld``.

    Raises:
      ValueError: if the shapes differ.
    """
    _check_same_shape(mean=mean, std=std)
    variance = jnp.square(std)
    return 0.5 * _sum_per_example(jnp.square(mean) + variance - jnp.log(1e-8 + variance) - 1) / num_pixels


def bernoulli_nll(logits: Array, x: Array) -> Array:
    """Negative log-likelihood of intensities under a Bernoulli per pixel, given its logits.

    ``sum_pixels max(l, 0) - x * l + log(1 + exp(-|l|))``, which is ``softplus(l) - x * l`` in the
    form that neither overflows nor loses the digits of a small value. For grey `x` it is the
    cross-entropy, as usual in the literature (Kingma and Welling, arXiv 1312.6114, appendix C.1).

    Args:
      logits: [B, ...].
      x: intensities [B, ...] in [0, 1].

    Returns:
      [B], >= 0, nats per image.

    Raises:
      ValueError: if the shapes differ.
    """
    _check_same_shape(logits=logits, x=x)
    return _sum_per_example(jax.nn.relu(logits) - x * logits + jnp.log1p(jnp.exp(-jnp.abs(logits))))


def gaussian_nll(mean: Array, log_std: Array | float, x: Array) -> Array:
    """Negative log-likelihood of intensities under N(mean, std^2) per pixel: a density, so it may be negative.

    ``sum_pixels 0.5 * ((x - mean) / std)^2 + log std + 0.5 log(2 pi)``.

    Args:
      mean: [B, ...].
      log_std: the logarithm of the standard deviation, a number, [] or as `mean`.
      x: intensities [B, ...].

    Returns:
      [B], nats per image.

    Raises:
      ValueError: if the shapes of `mean` and `x` differ.
    """
    _check_same_shape(mean=mean, x=x)
    log_std = jnp.broadcast_to(jnp.asarray(log_std, mean.dtype), mean.shape)
    return _sum_per_example(0.5 * jnp.square((x - mean) * jnp.exp(-log_std)) + log_std + 0.5 * math.log(2 * math.pi))


def discretized_logistic_nll(mean: Array, log_scale: Array, x: Array) -> Array:
    """Negative log-probability of 8-bit intensities under a logistic distribution cut into 256 bins.

    Kingma et al. (arXiv 1606.04934), section 5.3; the lowest bin reaches to minus infinity and the highest
    to infinity, so that all 256 sum to 1 (Salimans et al., arXiv 1701.05517, equation 2).

    Args:
      mean: [B, ...], in units of intensity.
      log_scale: the logarithm of the scale, as `mean`.
      x: intensities k / 255 [B, ...].

    Returns:
      [B], >= 0, nats per image.

    Raises:
      ValueError: if the shapes differ.
    """
    _check_same_shape(mean=mean, log_scale=log_scale, x=x)
    inverse = jnp.exp(-log_scale)
    upper, lower = (x + 0.5 / 255 - mean) * inverse, (x - 0.5 / 255 - mean) * inverse
    # log(sigmoid(upper) - sigmoid(lower)), of which nothing cancels.
    between = jax.nn.log_sigmoid(upper) + jax.nn.log_sigmoid(-lower) + jnp.log(-jnp.expm1(-inverse / 255))
    lowest, highest = x < 0.5 / 255, x > 254.5 / 255
    log_p = jnp.where(lowest, jax.nn.log_sigmoid(upper), jnp.where(highest, jax.nn.log_sigmoid(-lower), between))
    return -_sum_per_example(log_p)


def gaussian_kl_per_dimension(mean: Array, std: Array) -> Array:
    """KL(N(mean, std^2) || N(0, 1)) of each latent dimension, [B, L] as its arguments; see `gaussian_kl`."""
    _check_same_shape(mean=mean, std=std)
    return 0.5 * (jnp.square(mean) + jnp.square(std) - 1) - jnp.log(std)


def gaussian_kl(mean: Array, std: Array) -> Array:
    """KL(N(mean, std^2) || N(0, I)): ``sum_latent 0.5 * (mean^2 + std^2 - 1) - log(std)``.

    Kingma and Welling (arXiv 1312.6114), appendix B.

    Args:
      mean: [B, L].
      std: [B, L], > 0.

    Returns:
      [B], >= 0, nats per image.

    Raises:
      ValueError: if the shapes differ.
    """
    return _sum_per_example(gaussian_kl_per_dimension(mean, std))


class Context(NamedTuple):
    """What an objective may need besides the images.

    Attributes:
      step: the number of steps taken, int32 []; None in evaluation, where nothing is warmed up or corrupted.
      gather: from this device's share of a batch to the whole batch; the identity where there is
        but one device, or where the compiler sees all of the batch.
    """

    step: Array | None = None
    gather: Callable[[Array], Array] = lambda share: share


class Objective(NamedTuple):
    """What a model is trained on.

    Attributes:
      losses: from a model's output and the images `x` [B, H, W, C] in [0, 1] to named values [B],
        among them "loss", the one that is minimised.
      unit: the scale all of them are in.
      corruption: the fraction of the pixels that the model does not get to see in training.
      observe: what becomes of images each time one is seen; see `jaxvae.data.noise.observe`.
    """

    losses: Callable[[Any, Array], dict[str, Array]]
    unit: str
    corruption: float = 0.0
    observe: noise.Observe = noise.as_they_are

    @property
    def samples(self) -> int:
        """Latents drawn for each image."""
        return 1

    def of(self, model: Any, params: Any, x: Array, keys: Array, context: Context) -> dict[str, Array]:
        """The losses of `model` at `params` for images `x` [B, H, W, C] in [0, 1], with a key for each."""
        x = self.observe(x, keys)
        seen = noise.corrupt(x, keys, self.corruption) if self.corruption and context.step is not None else x
        return self.losses(model.apply(params, seen, keys), x)


def _mse_losses(output: AutoEncoderOutput, x: Array) -> dict[str, Array]:
    return {"loss": mse(output.x_hat, x)}


def _notes_elbo_losses(output: VAEOutput, x: Array) -> dict[str, Array]:
    recon = mse(output.x_hat, x)
    kl = notes_kld(output.mean, output.std, num_pixels=x[0].size)
    return {"loss": recon + 1.0 * kl, "recon": recon, "kl": kl}


# The notes' own, by their names in `Config.objective`; the others are in `variational.py`.
OBJECTIVES: Mapping[str, Objective] = {
    # The notes' autoencoder.
    "mse": Objective(_mse_losses, "per pixel"),
    # The notes' VAE, `mse + kld`: times num_pixels, a Gaussian likelihood of variance 1/2 and its
    # KL, up to a constant.
    "notes-elbo": Objective(_notes_elbo_losses, "per pixel"),
}
