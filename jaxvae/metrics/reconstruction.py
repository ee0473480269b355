"""How close reconstructions are to their images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float
from numpy.typing import NDArray

from jaxvae.chunks import chunk_size, in_chunks
from jaxvae.metrics.ssim import WINDOW, ssim
from jaxvae.metrics.subject import Subject, mean_of
from jaxvae.models.build import reconstruction
from jaxvae.objectives.notes import mse
from jaxvae.protocols import Measured, Metric
from jaxvae.train.step import as_batch
from jaxvae.typing import Array, Batch, Params

MOST_PSNR = 100.0  # dB: where a reconstruction equals its image, there would be no number.


def psnr(error: Float[Array, " B"]) -> Float[Array, " B"]:
    """The peak signal-to-noise ratio in dB of intensities in [0, 1], from mean squared errors; at most `MOST_PSNR`."""
    return -10 * jnp.log10(jnp.maximum(error, 10 ** (-MOST_PSNR / 10)))


@dataclass(frozen=True)
class Reconstruction(Metric):
    """The mean squared error per pixel, PSNR and SSIM of reconstructions, for a model trained on any objective.

    Each is computed for an image by itself, then averaged. The PSNR of the mean error would be another number.
    """

    def measure(self, subject: Subject, images: Mapping[str, NDArray[Any]], key: jax.Array) -> Mapping[str, Measured]:
        """See `Metric`: "mse", "psnr" and "ssim". Empty for a model that gives no reconstruction."""
        large = min(images["image"].shape[1:3]) >= WINDOW

        def of_batch(variables: Params, batch: Batch, keys: Array) -> dict[str, Array] | None:
            x, x_hat = seen_and_reconstructed(subject, variables, batch, keys)
            if x_hat is None:
                return None
            error = mse(x_hat, x)
            return {"mse": error, "psnr": psnr(error)} | ({"ssim": ssim(x, x_hat)} if large else {})

        found = in_chunks(of_batch, subject.variables, images, key, chunk_size(images, subject.config))
        if found is None:
            return {}
        units = {"mse": "per pixel", "psnr": "dB", "ssim": ""}
        measured = {name: mean_of(values, units[name]) for name, values in found.items()}
        if not large:
            measured["ssim"] = Measured(None, note=f"none: it needs images of at least {WINDOW} x {WINDOW} pixels")
        return measured


def seen_and_reconstructed(
    subject: Subject, variables: Params, batch: Batch, keys: Array
) -> tuple[Array, Array | None]:
    """The pixels [B, H, W, C] that the model sees of a batch, and their reconstruction, if it gives one."""
    seen = as_batch(batch)
    x = subject.loss.inputs.observe(seen["image"], keys)
    return x, reconstruction(subject.view(variables).output({**seen, "image": x}, keys), x)
