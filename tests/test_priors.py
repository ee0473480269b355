"""Priors: densities against SciPy, the KL term against a closed form and Monte Carlo."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxvae import PRESETS, InputError, build_model, build_objective, build_optimizer, make_train_step
from jaxvae.models.priors import gaussian_kl_per_dimension, log_normal
from jaxvae.train.step import abstract_state

pytestmark = pytest.mark.unoptimized


def test_log_normal_matches_scipy() -> None:
    z, mean = np.random.default_rng(0).normal(size=(2, 4, 5, 3))
    std = np.random.default_rng(1).uniform(0.2, 3, (4, 5, 3))
    np.testing.assert_allclose(log_normal(jnp.float32(z)), stats.norm.logpdf(z).sum(-1), rtol=1e-5)
    got = log_normal(*map(jnp.float32, (z, mean, std)))
    np.testing.assert_allclose(got, stats.norm.logpdf(z, mean, std).sum(-1), rtol=1e-4)


def test_gaussian_kl_against_monte_carlo() -> None:
    rng = np.random.default_rng(3)
    mean, std = rng.normal(size=3), rng.uniform(0.3, 2, size=3)
    z = mean + std * rng.normal(size=(400_000, 3))
    log_ratio = (-0.5 * ((z - mean) / std) ** 2 - np.log(std) + 0.5 * z**2).sum(axis=1)
    error = log_ratio.std() / len(z) ** 0.5
    got = gaussian_kl_per_dimension(jnp.float32(mean)[None], jnp.float32(std)[None])[0].sum()
    assert abs(float(got) - log_ratio.mean()) < 4 * error


def test_gaussian_kl_is_zero_only_for_the_prior() -> None:
    zeros, ones = jnp.zeros((2, 5)), jnp.ones((2, 5))
    np.testing.assert_array_equal(gaussian_kl_per_dimension(zeros, ones), zeros)
    assert float(gaussian_kl_per_dimension(zeros, 1.01 * ones).min()) > 0
    assert float(gaussian_kl_per_dimension(zeros + 0.01, ones).min()) > 0


def test_an_objective_that_needs_a_closed_form_refuses_a_prior_without_one() -> None:
    config = dataclasses.replace(PRESETS["vae"], objective="beta-tc", prior="own_parts:Learned")
    model, optimizer = build_model(config, (4, 4, 1)), build_optimizer(config)
    step = make_train_step(model, build_objective(config, num_images=16), optimizer)
    batch = jax.ShapeDtypeStruct((2, 4, 4, 1), jnp.uint8)
    with pytest.raises(InputError, match="^--objective beta-tc needs a prior whose KL term has a closed form"):
        jax.eval_shape(step, abstract_state(model, optimizer), batch, jax.random.key(0))
