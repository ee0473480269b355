"""Pictures from a trained model's latents: lines between images, one latent at a time, and the nearest images."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxvae.data.rows import Rows
from jaxvae.trained import TrainedRun

REACH = 3.0  # Standard deviations of a N(0, 1) prior, to either side, that a latent is moved.
_ROWS = 4096  # Training images that are compared at a time.


def order(run: TrainedRun) -> NDArray[np.int64]:
    """The latents in the order of how much the image changes from -2 to 2, at 0 in all others."""
    latents = run.model.latent_size
    label = {"label": np.zeros(2 * latents, np.int64)} if run.config.reads_labels else {}
    ends = run.decode(np.concatenate([-2 * np.eye(latents), 2 * np.eye(latents)]), **label)
    change = np.square(ends[latents:] - ends[:latents]).sum((1, 2, 3))
    return np.argsort(-change, kind="stable")


def traverse(run: TrainedRun, rows: int, columns: int, label: int | None = None) -> NDArray[np.float32]:
    """A row of images for each of the `rows` latents that change most: it goes from -3 to 3, the others are 0.

    Returns:
      Images [rows * columns, H, W, C] in [0, 1], row by row; fewer rows if there are fewer latents.
    """
    moved = order(run)[:rows]
    latents = np.zeros((len(moved), columns, run.model.latent_size), np.float32)
    latents[np.arange(len(moved)), :, moved] = np.linspace(-REACH, REACH, columns)
    flat = latents.reshape(-1, latents.shape[-1])
    told = {} if label is None else {"label": np.full(len(flat), label)}
    return run.decode(flat, **told)


def interpolations(
    run: TrainedRun, images: NDArray[np.uint8], columns: int, labels: NDArray[Any] | None = None
) -> NDArray[np.float32]:
    """A row of images for each pair of `images` [2 N, H, W, C]: decoded from the straight line between their latents.

    The label of a row is that of its first image, if the model takes labels.

    Returns:
      Images [N * columns, H, W, C] in [0, 1], row by row.
    """
    told = {} if labels is None else {"label": labels}
    ends = run.encode(images, **told)
    starts, stops = ends[::2, None], ends[1::2, None]
    way = np.linspace(0, 1, columns, dtype=np.float32)[None, :, None]
    latents = ((1 - way) * starts + way * stops).reshape(-1, ends.shape[-1])
    told = {} if labels is None else {"label": np.repeat(labels[::2], columns)}
    return run.decode(latents, **told)


def nearest(samples: NDArray[np.float32], images: Any) -> NDArray[np.int64]:
    """The place of the image nearest to each of some samples, by the squared error of the pixels.

    Args:
      samples: [S, H, W, C] in [0, 1].
      images: uint8 [N, H, W, C], which may stay in a file.
    """
    flat = samples.reshape(len(samples), -1).astype(np.float32)
    best, places = np.full(len(flat), np.inf, np.float32), np.zeros(len(flat), np.int64)
    chunks = (
        images.chunks() if isinstance(images, Rows) else (images[i : i + _ROWS] for i in range(0, len(images), _ROWS))
    )
    first = 0
    for chunk in chunks:
        pixels = chunk.reshape(len(chunk), -1).astype(np.float32) / np.float32(255)
        # Without the samples' own squares, which are the same for all images.
        distances = np.square(pixels).sum(axis=1) - 2 * flat @ pixels.T
        here = distances.argmin(axis=1)
        least = distances[np.arange(len(flat)), here]
        places = np.where(least < best, first + here, places)
        best = np.minimum(best, least)
        first += len(chunk)
    return places
