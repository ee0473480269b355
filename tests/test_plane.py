"""The plane on which latents are drawn: against a singular value decomposition and scikit-learn."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from jaxvae.errors import InputError
from jaxvae.plane import SMALL, plane_of


def test_many_latents_lie_on_their_principal_components_and_a_place_has_the_nearest_latent() -> None:
    rng = np.random.default_rng(0)
    latents = (rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)) + 3).astype(np.float32)
    plane = plane_of(latents)
    centred = latents.astype(np.float64) - latents.astype(np.float64).mean(0)
    _, scale, axes = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(plane.places(latents)), np.abs(centred @ axes[:2].T), atol=1e-9)
    np.testing.assert_allclose(plane.shares, (scale**2 / (scale**2).sum())[:2])
    np.testing.assert_allclose(plane.shares, PCA(2).fit(centred).explained_variance_ratio_)
    for latent, (x, y) in zip(latents[:5], plane.places(latents[:5]), strict=True):
        rest = latent - plane.latent(x, y)
        np.testing.assert_allclose(axes[:2] @ rest, 0, atol=1e-6)  # What the map does not show is orthogonal to it.
        np.testing.assert_allclose(plane.places(plane.latent(x, y)[None])[0], [x, y], atol=1e-9)


def test_the_largest_entry_of_an_axis_is_positive() -> None:
    latents = np.random.default_rng(1).normal(size=(50, 5)) * [1, 2, 3, 9, 5]
    for values in (latents, -latents, latents[::-1]):
        axes = plane_of(values.astype(np.float32)).axes
        assert axes[0, 3] == np.abs(axes[0]).max() and axes[1, 4] == np.abs(axes[1]).max()


def test_many_latents_of_many_images_have_the_same_plane() -> None:
    rng = np.random.default_rng(0)
    spread = np.linspace(1, 3, SMALL + 40) ** 4
    latents = (rng.normal(size=(SMALL + 20, SMALL + 40)) * spread + 5).astype(np.float32)
    plane, centred = plane_of(latents), latents.astype(np.float64) - latents.astype(np.float64).mean(0)
    _, scale, axes = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(plane.axes), np.abs(axes[:2]), atol=1e-8)
    np.testing.assert_allclose(plane.shares, (scale**2 / (scale**2).sum())[:2])
    np.testing.assert_array_equal(plane.axes, plane_of(latents).axes)


def test_latents_that_are_not_finite_have_no_map() -> None:
    latents = np.ones((5, 4), np.float32)
    latents[2, 1] = np.nan
    with pytest.raises(InputError, match="finite latents: some are NaN or infinite"):
        plane_of(latents)


def test_the_map_of_two_latents_is_these() -> None:
    latents = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    plane = plane_of(latents)
    assert plane.shares is None
    np.testing.assert_array_equal(plane.places(latents), latents)
    np.testing.assert_array_equal(plane.latent(1.5, -2), [1.5, -2])


@pytest.mark.parametrize(("count", "size"), [(5, 1), (1, 4), (3, 4)])
def test_maps_of_few_or_equal_latents(count: int, size: int) -> None:
    plane = plane_of(np.full((count, size), 0.1, np.float32))
    assert plane.shares is None
    assert plane.places(np.ones((count, size))).shape == (count, 2)
    assert plane.latent(0.5, 0).shape == (size,) and plane.latent(0.5, 0)[0] == 0.5
