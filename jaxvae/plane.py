"""A plane through the latents: the map on which they are drawn."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Plane:
    """The plane ``centre + x * axes[0] + y * axes[1]`` in the space of the latents.

    Attributes:
      centre: [L].
      axes: [2, L], orthonormal rows; with a single latent, the second is 0.
      shares: of the variance of the latents, those that the two principal components hold; None if the axes are the
        first latents themselves.
    """

    centre: Floats
    axes: Floats
    shares: tuple[float, float] | None = None

    def places(self, latents: ArrayLike) -> Floats:
        """Where latents [N, L] lie on the map, [N, 2]: their orthogonal projection."""
        found: Floats = (np.asarray(latents, np.float64) - self.centre) @ self.axes.T
        return found

    def latent(self, x: float, y: float) -> Floats:
        """The latent [L] of a place: of all that are projected to it, the one on the plane."""
        found: Floats = self.centre + np.array([x, y]) @ self.axes
        return found


def plane_of(latents: NDArray[np.floating]) -> Plane:
    """The plane of latents [N, L]: up to two latents themselves, or the first two principal components.

    The components are those of the covariance matrix, in float64; of each, the entry that is farthest from 0 is
    positive. Latents that do not vary are their own axes.
    """
    size = latents.shape[1]
    if size <= 2 or len(latents) < 2 or not latents.var(axis=0).any():
        return Plane(np.zeros(size), np.eye(2, size))
    values = latents.astype(np.float64)
    variances, vectors = np.linalg.eigh(np.cov(values, rowvar=False))
    axes = vectors[:, :-3:-1].T
    farthest = np.abs(axes).argmax(axis=1, keepdims=True)
    first, second = variances[:-3:-1] / variances.sum()
    return Plane(values.mean(axis=0), axes * np.sign(np.take_along_axis(axes, farthest, 1)), (first, second))
