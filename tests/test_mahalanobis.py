"""Distances to Gaussians, and their gradients, against NumPy in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae.models.mahalanobis import _at_once, _by_dimension, squared_distances

pytestmark = pytest.mark.unoptimized


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(6, 5, 3), (1, 1, 1), (3, 70, 40)])
@pytest.mark.parametrize("deviation", [0.01, 1.0])
@pytest.mark.parametrize("form", [_at_once, _by_dimension])
def test_distances_and_their_gradients(form: Any, shape: tuple[int, int, int], deviation: float) -> None:
    """On every platform: a CPU has a form of its own."""
    n, k, size = shape
    rng = np.random.default_rng(0)
    std = np.float32(deviation * rng.uniform(0.5, 2, (k, size)))
    mean = np.float32(rng.normal(size=(k, size)))
    latent = np.float32(mean[rng.integers(k, size=n)] + deviation * rng.normal(size=(n, size)))
    weight = np.float32(rng.normal(size=(n, k)) * (rng.random((n, k)) < 0.5))

    found, back = jax.vjp(lambda *given: form(*given[:2], 1 / given[2]), *map(jnp.asarray, (latent, mean, std)))
    by_latent, by_mean, by_std = back(jnp.asarray(weight))
    # NumPy in float64, of the same rounded numbers.
    apart = latent[:, None].astype(np.float64) - mean.astype(np.float64)
    wide, weights = std.astype(np.float64), weight.astype(np.float64)[..., None]
    close = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(found, np.square(apart / wide).sum(-1), **close)

    def compare(given: jax.Array, terms: np.ndarray, axis: int) -> None:
        np.testing.assert_allclose(given, terms.sum(axis), rtol=1e-4, atol=1e-5 * np.abs(terms).sum(axis).max())

    compare(by_latent, 2 * weights * apart / wide**2, 1)
    compare(by_mean, -2 * weights * apart / wide**2, 0)
    compare(by_std, -2 * weights * apart**2 / wide**3, 0)


def test_many_members_at_once_are_each_alone() -> None:
    """A sweep maps the function over members."""
    rng = np.random.default_rng(1)
    given = [jnp.float32(rng.uniform(0.5, 2, (4, *shape))) for shape in ((6, 3), (5, 3), (5, 3))]
    together = jax.vmap(jax.value_and_grad(lambda *given: squared_distances(*given).sum(), argnums=(0, 1, 2)))(*given)
    for member in range(4):
        alone = jax.value_and_grad(lambda *given: squared_distances(*given).sum(), argnums=(0, 1, 2))(
            *(each[member] for each in given)
        )
        jax.tree.map(lambda a, b, n=member: np.testing.assert_allclose(a[n], b, rtol=1e-5), together, alone)
