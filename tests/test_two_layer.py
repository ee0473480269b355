"""The VAE with two layers of latents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from small import config_of, images, keys_of, model_and_params

pytestmark = pytest.mark.unoptimized


@pytest.mark.slow
def test_two_layers_weights_are_the_densities_written_out() -> None:
    config = config_of("iwae", architecture="two-layer", hidden=(8, 6), samples=3)
    model, params = model_and_params(config)
    x, keys = images(5), keys_of(0, 5)
    draws = jax.jit(lambda p: model.apply(p, {"image": x}, keys, 3, method="draw"))(params)
    eps = jax.vmap(lambda k: jax.random.normal(k, (3, 9)))(keys)
    mean, std = jax.jit(lambda p: model.apply(p, x, method="encode"))(params)
    h1 = mean[:, None] + std[:, None] * eps[..., :6]
    np.testing.assert_allclose(draws.latent, h1, rtol=1e-6)
    upper = jax.jit(lambda p: model.apply(p, h1, method=lambda m, h: m.encoder_2(h)))(params)
    mean_2, raw = np.split(np.asarray(upper), 2, axis=-1)
    std_2 = np.exp(5 * np.tanh(raw / 10))
    h2 = mean_2 + std_2 * np.asarray(eps[..., 6:])
    lower_mean, lower_std = jax.jit(lambda p: model.apply(p, jnp.float32(h2), method="lower"))(params)
    prior = stats.norm.logpdf(h2).sum(-1) + stats.norm.logpdf(h1, lower_mean, lower_std).sum(-1)
    posterior = stats.norm.logpdf(h1, mean[:, None], std[:, None]).sum(-1) + stats.norm.logpdf(h2, mean_2, std_2).sum(
        -1
    )
    np.testing.assert_allclose(draws.log_prior, prior, rtol=1e-4)
    np.testing.assert_allclose(draws.log_posterior, posterior, rtol=1e-4)
