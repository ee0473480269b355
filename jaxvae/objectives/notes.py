"""The notes' own objectives, per pixel: both terms are divided by the number of pixels, H * W * C."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Float, Key

from jaxvae.errors import InputError
from jaxvae.models.likelihoods import check_same_shape, sum_per_example
from jaxvae.noise import corrupt
from jaxvae.objectives.base import View
from jaxvae.options import FRACTION, option
from jaxvae.protocols import Objective
from jaxvae.typing import Array, Batch, Terms


def mse(x_hat: Float[Array, "B *shape"], x: Float[Array, "B *shape"]) -> Float[Array, " B"]:
    """Squared error averaged over pixels: ``mean_pixels (x_hat - x)^2``. The notes' reconstruction loss.

    Args:
      x_hat: reconstructed intensities [B, ...].
      x: intensities [B, ...] in [0, 1].

    Returns:
      [B], >= 0, per pixel; its mean over the batch is PyTorch's ``MSELoss()``.

    Raises:
      ValueError: if the shapes differ.
    """
    check_same_shape(x_hat=x_hat, x=x)
    error = jnp.square(x_hat - x)
    return sum_per_example(error) / (error.size // error.shape[0])


def notes_kld(mean: Float[Array, "B L"], std: Float[Array, "B L"], num_pixels: int) -> Float[Array, " B"]:
    """The notes' KL term: ``0.5 * sum_latent(mean^2 + std^2 - log(1e-8 + std^2) - 1) / num_pixels``.

    It is KL(N(mean, std^2) || N(0, 1)) except for the 1e-8, which keeps it finite at ``std == 0``
    (there a latent dimension costs about 8.7 nats), and for the division by the number of pixels.

    Args:
      mean, std: [B, L].
      num_pixels: H * W * C, 784 for MNIST.

    Returns:
      [B], per pixel; its mean over the batch is the notes' ``kld``.

    Raises:
      ValueError: if the shapes differ.
    """
    check_same_shape(mean=mean, std=std)
    return 0.5 * sum_per_example(twice_notes_kld(mean, std)) / num_pixels


def twice_notes_kld(mean: Float[Array, "*shape"], std: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Twice what each latent adds to `notes_kld`, before the division by the number of pixels."""
    variance = jnp.square(std)
    return jnp.square(mean) + variance - jnp.log(1e-8 + variance) - 1


@dataclass(frozen=True)
class Mse(Objective):
    """The notes' autoencoder: the squared error."""

    corruption: float = option(0.0, FRACTION)
    """Probability of hiding each value of a training image from an autoencoder: denoising."""

    unit: ClassVar[str] = "per pixel"
    uses: ClassVar[tuple[str, ...]] = ()
    latent_model: ClassVar[bool] = False
    bound: ClassVar[str] = ""
    separate: ClassVar[bool] = True

    def check(self, config: Any) -> None:
        """See `Component`."""
        if config.head not in ("relu", "linear"):
            raise InputError("--objective mse needs --head relu or linear: a code has no standard deviation")

    def terms(self, view: View, batch: Batch, keys: Key[Array, " B"]) -> Terms:
        """See `Objective`."""
        x = batch["image"]
        seen = corrupt(x, keys, self.corruption) if self.corruption and view.train else x
        return {"loss": mse(view.output({**batch, "image": seen}, keys).x_hat, x)}


@dataclass(frozen=True)
class NotesElbo(Objective):
    """The notes' VAE, `mse + kld`.

    Times the number of pixels, it is the negative ELBO with a Gaussian likelihood of variance 1/2, up to a constant.
    """

    unit: ClassVar[str] = "per pixel"
    uses: ClassVar[tuple[str, ...]] = ()
    bound: ClassVar[str] = ""
    separate: ClassVar[bool] = True

    def terms(self, view: View, batch: Batch, keys: Key[Array, " B"]) -> Terms:
        """See `Objective`."""
        output, x = view.output(batch, keys), batch["image"]
        recon = mse(output.x_hat, x)
        kl = notes_kld(output.mean, output.std, num_pixels=x[0].size)
        return {"loss": recon + 1.0 * kl, "recon": recon, "kl": kl}
