"""Per-example losses [B] from model outputs. No models, no means over the batch.

Two scales are in use, and every objective says which is its own (`Objective.unit`):

- *nats per image*, the literature's: summed over pixels and latent dimensions;
- *per pixel*, the notes': both terms divided by the number of pixels, H * W * C.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae.models import AutoEncoderOutput, VAEOutput

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
    _check_same_shape(mean=mean, std=std)
    return _sum_per_example(0.5 * (jnp.square(mean) + jnp.square(std) - 1) - jnp.log(std))


class Objective(NamedTuple):
    """What a model is trained on.

    Attributes:
      losses: from a model's output and the images `x` [B, H, W, C] in [0, 1] to named values [B],
        among them "loss", the one that is minimised.
      unit: the scale all of them are in.
    """

    losses: Callable[[Any, Array], dict[str, Array]]
    unit: str


def _mse_losses(output: AutoEncoderOutput, x: Array) -> dict[str, Array]:
    return {"loss": mse(output.x_hat, x)}


def _notes_elbo_losses(output: VAEOutput, x: Array) -> dict[str, Array]:
    recon = mse(output.x_hat, x)
    kl = notes_kld(output.mean, output.std, num_pixels=x[0].size)
    return {"loss": recon + 1.0 * kl, "recon": recon, "kl": kl}


def _elbo_losses(output: VAEOutput, x: Array) -> dict[str, Array]:
    recon = bernoulli_nll(output.logits, x)
    kl = gaussian_kl(output.mean, output.std)
    return {"loss": recon + kl, "recon": recon, "kl": kl}


# By the names that `Config.objective` takes.
OBJECTIVES: Mapping[str, Objective] = {
    # The notes' autoencoder.
    "mse": Objective(_mse_losses, "per pixel"),
    # The notes' VAE, `mse + kld`: times num_pixels, a Gaussian likelihood of variance 1/2 and its
    # KL, up to a constant.
    "notes-elbo": Objective(_notes_elbo_losses, "per pixel"),
    # The negative evidence lower bound with one posterior sample, arXiv 1312.6114, equation 10.
    "elbo": Objective(_elbo_losses, "nats/image"),
}
