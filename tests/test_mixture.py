"""The mixture of Gaussians: its density against scikit-learn, its draws against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from jaxvae.models.mixture import MixtureModule, log_mixture, sample_mixture

pytestmark = pytest.mark.unoptimized

RNG = np.random.default_rng(0)
WEIGHTS = np.array([0.5, 0.3, 0.2])
MEAN, STD = RNG.normal(size=(3, 2)), RNG.uniform(0.3, 1.5, (3, 2))
GIVEN = tuple(map(jnp.float32, (np.log(WEIGHTS), MEAN, STD)))


def test_the_density_is_that_of_scikit_learn() -> None:
    theirs = GaussianMixture(3, covariance_type="diag")
    theirs.weights_, theirs.means_, theirs.covariances_ = WEIGHTS, MEAN, STD**2
    theirs.precisions_cholesky_ = 1 / STD
    latent = 2 * RNG.normal(size=(4, 5, 2))
    expected = theirs.score_samples(latent.reshape(-1, 2)).reshape(4, 5)
    np.testing.assert_allclose(log_mixture(jnp.float32(latent), *GIVEN), expected, rtol=1e-5)


def test_draws_have_the_moments_of_the_mixture() -> None:
    drawn = np.float64(sample_mixture(jax.random.key(1), (200_000,), *GIVEN))
    mean = WEIGHTS @ MEAN
    variance = WEIGHTS @ (STD**2 + MEAN**2) - mean**2
    np.testing.assert_allclose(drawn.mean(0), mean, atol=0.02)
    np.testing.assert_allclose(drawn.var(0), variance, rtol=0.03)
    # Shares of the components, which lie apart here.
    apart = jnp.array([[-100.0], [0.0], [100.0]])
    drawn = np.asarray(sample_mixture(jax.random.key(2), (100_000,), GIVEN[0], apart, jnp.ones((3, 1))))
    shares = [(drawn < -50).mean(), (np.abs(drawn) < 50).mean(), (drawn > 50).mean()]
    np.testing.assert_allclose(shares, WEIGHTS, atol=0.01)


def test_a_draw_of_one_and_its_gradient() -> None:
    one = sample_mixture(jax.random.key(3), (), *GIVEN)
    assert one.shape == (2,)
    by_mean = jax.grad(lambda mean: sample_mixture(jax.random.key(3), (), GIVEN[0], mean, GIVEN[2]).sum())(GIVEN[1])
    assert sorted(np.asarray(by_mean).sum(axis=1).tolist()) == [0, 0, 2]  # That of the component chosen.


@pytest.mark.long
def test_the_module_starts_with_equal_weights_and_learns_all_of_them() -> None:
    module = MixtureModule(latent_size=2, components=4)
    latent = jnp.float32(RNG.normal(size=(3, 5, 2)))
    params = module.init(jax.random.key(4), latent, {}, method="log_density")
    gradient = jax.grad(lambda p: module.apply(p, latent, {}, method="log_density").sum())(params)["params"]
    assert {name: leaf.shape for name, leaf in gradient.items()} == {"logits": (4,), "mean": (4, 2), "log_std": (4, 2)}
    assert all(float(jnp.abs(leaf).min()) > 0 for leaf in gradient.values())
    density = module.apply(params, latent, {}, method="log_density")
    means = params["params"]["mean"]
    expected = log_mixture(latent, jnp.full(4, -np.log(4), jnp.float32), means, jnp.ones((4, 2)))
    np.testing.assert_allclose(density, expected, rtol=1e-6)
