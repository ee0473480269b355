"""Distances between two sets of features. All in float64, whatever the features are."""

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

_ROWS = 1000  # Of a matrix of distances, at a time.
Features = Float[np.ndarray, "N F"]


def frechet_distance(x: Features, y: Features) -> float:
    """The squared Fréchet distance between Gaussians of the features' means and covariances: FID.

    Heusel et al., "GANs trained by a two time-scale update rule converge to a local Nash equilibrium" (arXiv
    1706.08500), equation 6: ``|m - n|^2 + tr(C + D - 2 (C D)^(1/2))``. The trace of the root is the sum of the roots of
    the eigenvalues of ``C^(1/2) D C^(1/2)``, which is symmetric. The covariances are divided by N - 1.
    """
    means = [features.mean(axis=0, dtype=np.float64) for features in (x, y)]
    first, second = (np.atleast_2d(np.cov(features, rowvar=False, dtype=np.float64)) for features in (x, y))
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    of_product = np.linalg.eigvalsh(root @ second @ root)
    trace = np.trace(first) + np.trace(second) - 2 * np.sqrt(np.maximum(of_product, 0)).sum()
    return float(np.square(means[0] - means[1]).sum() + trace)


def kernel_distances(x: Features, y: Features, subsets: int, size: int, seed: int = 0) -> NDArray[np.float64]:
    """The squared maximum mean discrepancy of subsets of the features, [subsets]; their mean is KID.

    Binkowski, Sutherland, Arbel and Gretton, "Demystifying MMD GANs" (arXiv 1801.01401), section 4: the unbiased
    estimate with the kernel ``(x . y / F + 1)^3``. It may be negative.

    Args:
      x, y: the features.
      subsets: how many.
      size: features of each set in a subset, drawn without replacement.
      seed: of the draws.
    """
    rng, found = np.random.default_rng(seed), np.empty(subsets)
    for place in range(subsets):
        one, other = (
            features[rng.choice(len(features), size, replace=False)].astype(np.float64) for features in (x, y)
        )
        within = sum((kernel.sum() - np.trace(kernel)) / (size * (size - 1)) for kernel in map(_kernel, (one, other)))
        found[place] = within - 2 * _kernel(one, other).mean()
    return found


def _kernel(x: Any, y: Any = None) -> NDArray[np.float64]:
    kernel: NDArray[np.float64] = (x @ (x if y is None else y).T / x.shape[1] + 1) ** 3
    return kernel


def precision_and_recall(real: Features, drawn: Features, k: int = 3) -> tuple[float, float]:
    """How many of the drawn features lie where real ones are, and how many of the real ones where drawn ones are.

    Kynkäänniemi et al., "Improved precision and recall metric for assessing generative models" (arXiv 1904.06991),
    equations 1 and 2. A set covers the balls around its features that reach to their `k`-th nearest neighbour in it.
    """
    return _covered(drawn, by=real, k=k), _covered(real, by=drawn, k=k)


def _covered(features: Features, by: Features, k: int) -> float:
    """The share of some features that lies in the balls of others."""
    # Less is lost to rounding around the middle.
    middle = by.mean(axis=0, dtype=np.float64)
    features, by = features - middle, by - middle
    # The nearest of all is the feature itself.
    parts = (_squared_distances(by[first : first + _ROWS], by) for first in range(0, len(by), _ROWS))
    radii = np.concatenate([np.partition(part, k, axis=1)[:, k] for part in parts])
    inside = 0
    for first in range(0, len(features), _ROWS):
        distances = _squared_distances(features[first : first + _ROWS], by)
        inside += int((distances <= radii).any(axis=1).sum())
    return inside / len(features)


def _squared_distances(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    squares = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)
    distances: NDArray[np.float64] = np.maximum(squares - 2 * (x @ y.T), 0)
    return distances
