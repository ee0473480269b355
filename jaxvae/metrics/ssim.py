"""The structural similarity of images."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from jaxvae.typing import Array

WINDOW = 11  # Pixels of the window's side, and its deviation in pixels.
SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2  # For intensities from 0 to 1.


def ssim(x: Float[Array, "B H W C"], y: Float[Array, "B H W C"]) -> Float[Array, " B"]:
    """The structural similarity of pairs of images with intensities in [0, 1]: at most 1, for equal images.

    Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural similarity" (IEEE
    Transactions on Image Processing 13(4), 2004), equation 13, with a Gaussian window of 11 x 11 pixels and a
    deviation of 1.5, as there. The mean over the windows that lie within the image, and over the channels.

    Raises:
      ValueError: an image is smaller than the window.
    """
    height, width = x.shape[1:3]
    if min(height, width) < WINDOW:
        raise ValueError(f"images must be at least {WINDOW} x {WINDOW} pixels, not {height} x {width}")
    # As products with band matrices: these are fast on every device.
    down, across = (jnp.asarray(_windows(side), x.dtype) for side in (height, width))

    def blurred(images: Array) -> Array:
        return jnp.einsum("ih,bhwc,jw->bijc", down, images, across)

    # The second moments about the image's own mean: less is lost to rounding than about 0.
    middle_x, middle_y = x.mean(axis=(1, 2), keepdims=True), y.mean(axis=(1, 2), keepdims=True)
    u, v = x - middle_x, y - middle_y
    mean_u, mean_v = blurred(u), blurred(v)
    mean_x, mean_y = mean_u + middle_x, mean_v + middle_y
    var_x, var_y = blurred(u * u) - mean_u * mean_u, blurred(v * v) - mean_v * mean_v
    covariance = blurred(u * v) - mean_u * mean_v
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x * mean_x + mean_y * mean_y + _C1)
    structure = (2 * covariance + _C2) / (var_x + var_y + _C2)
    return (luminance * structure).mean(axis=(1, 2, 3))


def _windows(side: int) -> NDArray[np.float64]:
    """A row of weights for each place of the window along a side of the image: [side - 10, side]."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-0.5 * (offsets / SIGMA) ** 2)
    places = side - WINDOW + 1
    found = np.zeros((places, side))
    for place in range(places):
        found[place, place : place + WINDOW] = weights / weights.sum()
    return found
