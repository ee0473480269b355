"""A plane through the latents: the map on which they are drawn."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxvae.errors import InputError

Floats = NDArray[np.float64]
SMALL = 512  # Latents, or images: up to here all singular values are computed in a second or so.


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

    @property
    def names(self) -> list[str]:
        """What both axes are, in words."""
        if self.shares is None:
            return ["latent 0", "latent 1"]
        return [f"principal component {i + 1}: {share:.0%} of the variance" for i, share in enumerate(self.shares)]

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

    Of each component, the entry that is farthest from 0 is positive. Latents that do not vary are their own axes.

    Raises:
      InputError: one is NaN or infinite.
    """
    if not np.isfinite(latents).all():
        raise InputError("a map needs finite latents: some are NaN or infinite")
    count, size = latents.shape
    if size <= 2 or count < 2 or (latents == latents[:1]).all():
        return Plane(np.zeros(size), np.eye(2, size))
    values = latents.astype(np.float64)
    centre = values.mean(axis=0)
    values -= centre
    axes, scale = _largest(values)
    farthest = np.abs(axes).argmax(axis=1, keepdims=True)
    first, second = np.square(scale) / np.square(values).sum()
    return Plane(centre, axes * np.sign(np.take_along_axis(axes, farthest, 1)), (float(first), float(second)))


def _largest(values: Floats) -> tuple[Floats, Floats]:
    """The right singular vectors of the two largest singular values of [N, L], [2, L], and these, [2]."""
    if min(values.shape) <= SMALL:
        _, scale, axes = np.linalg.svd(values, full_matrices=False)
        return axes[:2], scale[:2]
    from scipy.sparse.linalg import svds

    # Lanczos' method; from a fixed start, so that a map is the same each time.
    _, scale, axes = svds(values, k=2, v0=np.ones(min(values.shape)), return_singular_vectors="vh")
    return axes[::-1], scale[::-1]
