"""The map: a plane through the latents, with a place for each image and a latent for each place."""

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
      words: what the two axes are, as a sentence.
    """

    centre: Floats
    axes: Floats
    words: str

    def places(self, latents: ArrayLike) -> Floats:
        """Where latents [N, L] lie on the map, [N, 2]: their orthogonal projection."""
        found: Floats = (np.asarray(latents, np.float64) - self.centre) @ self.axes.T
        return found

    def latent(self, x: float, y: float) -> Floats:
        """The latent [L] of a place: of all that are projected to it, the one on the plane."""
        found: Floats = self.centre + np.array([x, y]) @ self.axes
        return found


def plane_of(latents: NDArray[np.float32]) -> Plane:
    """The map of latents [N, L]: up to two latents themselves, or the first two principal components."""
    size = latents.shape[1]
    if size <= 2 or len(latents) < 2 or not latents.var(axis=0).any():
        words = "The axes are the latents themselves." if size <= 2 else "The axes are the first two latents."
        return Plane(np.zeros(size), np.eye(2, size), words)
    from sklearn.decomposition import PCA

    found = PCA(2, svd_solver="full").fit(latents.astype(np.float64))
    share = found.explained_variance_ratio_.sum()
    words = (
        f"The axes are the first two principal components (PCA) of the {size} latents; they hold {share:.0%} of the "
        "variance. A click decodes the latent that PCA's inverse gives: the other components are at their mean."
    )
    return Plane(found.mean_, found.components_, words)
