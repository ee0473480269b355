"""The total correlation against its definition and against that of Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from written import stratified

from jaxvae.objectives.beta_tc import total_correlation

pytestmark = pytest.mark.unoptimized


def test_total_correlation_matches_stratified_sampling_in_numpy() -> None:
    rng = np.random.default_rng(0)
    z, mean = rng.normal(size=(2, 6, 3))
    std = rng.uniform(0.3, 1, (6, 3))
    got = jax.jit(total_correlation, static_argnums=3)(*map(jnp.float32, (z, mean, std)), 100)
    np.testing.assert_allclose(got, stratified(z, mean, std, 100), rtol=1e-4)


def test_total_correlation_of_the_whole_training_set_is_exact() -> None:
    rng = np.random.default_rng(0)
    z, mean = rng.normal(size=(2, 6, 3))
    std = rng.uniform(0.3, 1, (6, 3))
    q = np.array([[stats.norm.pdf(z[i], mean[j], std[j]) for j in range(6)] for i in range(6)])
    got = total_correlation(*map(jnp.float32, (z, mean, std)), 6)
    np.testing.assert_allclose(got, np.log(q.prod(-1).mean(1)) - np.log(q.mean(1)).sum(-1), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(("latents", "std", "slack"), [(2, 0.9, 0.03), (2, 0.4, 0.1), (10, 0.9, 0.15), (10, 0.7, 0.6)])
def test_total_correlation_matches_that_of_gaussians(latents: int, std: float, slack: float, rho: float) -> None:
    """q(z) is N(0, C), whose total correlation is -log det C / 2: 0 for independent dimensions."""
    rng = np.random.default_rng(0)
    count, batch, batches = 60_000, 128, 30
    means = (1 - std**2) * ((1 - rho) * np.eye(latents) + rho)
    exact = -0.5 * np.linalg.slogdet(means + std**2 * np.eye(latents))[1]
    mean = rng.multivariate_normal(np.zeros(latents), means, batches * batch).reshape(batches, batch, latents)
    arrays = mean + std * rng.normal(size=mean.shape), mean, np.full_like(mean, std)
    estimate = jax.jit(jax.vmap(lambda z, m, s: total_correlation(z, m, s, count).mean()))
    values = np.asarray(estimate(*map(jnp.float32, arrays)), np.float64)
    error = values.std() / batches**0.5
    assert error < 0.1
    assert values.mean() == pytest.approx(exact, abs=slack + 4 * error)
