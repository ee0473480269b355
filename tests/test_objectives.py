"""Closed forms, NumPy in float64 and Monte Carlo. The notes' formulas have tests of their own in test_parity."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae import objectives
from jaxvae.models.autoencoder import AutoEncoderOutput
from jaxvae.models.likelihoods import bernoulli_nll
from jaxvae.models.vae import VAEOutput
from jaxvae.objectives.build import OBJECTIVES
from jaxvae.objectives.notes import mse, notes_kld


def test_bernoulli_nll_is_minus_log_probability() -> None:
    rng = np.random.default_rng(3)
    logits, x = rng.normal(size=(5, 4, 3, 2)) * 3, rng.uniform(size=(5, 4, 3, 2))
    p = 1 / (1 + np.exp(-logits))
    expected = -(x * np.log(p) + (1 - x) * np.log1p(-p)).sum(axis=(1, 2, 3))
    got = bernoulli_nll(jnp.float32(logits), jnp.float32(x))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_bernoulli_nll_is_exact_for_logits_that_would_overflow() -> None:
    logits = jnp.array([[1e4], [-1e4], [1e4], [-1e4]])
    x = jnp.array([[1.0], [0.0], [0.0], [1.0]])
    np.testing.assert_array_equal(bernoulli_nll(logits, x), [0, 0, 1e4, 1e4])
    small = bernoulli_nll(jnp.array([[15.0], [-80.0]]), jnp.array([[1.0], [0.0]]))
    np.testing.assert_allclose(small, np.log1p(np.exp([-15.0, -80.0])), rtol=1e-6)
    slope = jax.grad(lambda v: bernoulli_nll(v, x).sum())(logits)
    np.testing.assert_array_equal(slope, [[0], [0], [1], [-1]])


def test_gaussian_kl_against_monte_carlo() -> None:
    rng = np.random.default_rng(3)
    mean, std = rng.normal(size=3), rng.uniform(0.3, 2, size=3)
    z = mean + std * rng.normal(size=(400_000, 3))
    log_ratio = (-0.5 * ((z - mean) / std) ** 2 - np.log(std) + 0.5 * z**2).sum(axis=1)
    error = log_ratio.std() / len(z) ** 0.5
    got = objectives.gaussian_kl(jnp.float32(mean)[None], jnp.float32(std)[None])[0]
    assert abs(float(got) - log_ratio.mean()) < 4 * error


def test_gaussian_kl_is_zero_for_the_prior_alone() -> None:
    zeros, ones = jnp.zeros((2, 5)), jnp.ones((2, 5))
    np.testing.assert_array_equal(objectives.gaussian_kl(zeros, ones), [0, 0])
    assert float(objectives.gaussian_kl(zeros, 1.01 * ones)[0]) > 0
    assert float(objectives.gaussian_kl(zeros + 0.01, ones)[0]) > 0


@pytest.mark.parametrize(
    "call",
    [
        lambda a, b: mse(a, b),
        lambda a, b: bernoulli_nll(a, b),
        lambda a, b: objectives.gaussian_kl(a, b),
        lambda a, b: notes_kld(a, b, 784),
    ],
)
def test_shapes_that_would_broadcast_are_refused(call: Any) -> None:
    with pytest.raises(ValueError, match=r"shapes must agree: .*\(4, 3\).*\(4, 1\)"):
        call(jnp.ones((4, 3)), jnp.ones((4, 1)))


def outputs(name: str) -> tuple[Any, jax.Array]:
    rng = np.random.default_rng(3)
    logits = jnp.float32(rng.normal(size=(6, 4, 3, 2)))
    x = jnp.float32(rng.uniform(size=logits.shape))
    latent, mean = jnp.float32(rng.normal(size=(2, 6, 5)))
    std = jnp.float32(rng.uniform(0.1, 2, size=(6, 5)))
    output = AutoEncoderOutput(logits, latent) if name == "mse" else VAEOutput(logits, latent, mean, std)
    return output, x


@pytest.mark.parametrize("name", OBJECTIVES)
def test_terms_are_per_example_and_add_up(name: str) -> None:
    output, x = outputs(name)
    losses = OBJECTIVES[name].losses(output, x)
    assert {v.shape for v in losses.values()} == {(6,)}
    if name != "mse":
        np.testing.assert_allclose(losses["loss"], losses["recon"] + losses["kl"], rtol=1e-6)
    # One example alone gives what it gives in company.
    alone = OBJECTIVES[name].losses(jax.tree.map(lambda a: a[2:3], output), x[2:3])
    for term, value in alone.items():
        np.testing.assert_allclose(value[0], losses[term][2], rtol=1e-6)


def test_notes_elbo_is_a_gaussian_elbo_of_variance_one_half_over_pixels() -> None:
    output, x = outputs("notes-elbo")
    losses = OBJECTIVES["notes-elbo"].losses(output, x)
    pixels = x[0].size
    squared = (np.asarray(output.x_hat, np.float64) - np.asarray(x, np.float64)) ** 2
    nll = (squared + 0.5 * np.log(np.pi)).reshape(6, -1).sum(1)  # -log N(x; x_hat, 1/2), summed
    elbo_loss = nll + np.asarray(objectives.gaussian_kl(output.mean, output.std), np.float64)
    constant = 0.5 * np.log(np.pi) * pixels
    np.testing.assert_allclose(np.asarray(losses["loss"]) * pixels, elbo_loss - constant, rtol=1e-5)
