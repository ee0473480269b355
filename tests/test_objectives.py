"""Closed forms, NumPy in float64 and Monte Carlo. The notes' formulas have tests of their own in test_parity."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae.config import Config
from jaxvae.models.autoencoder import AutoEncoderOutput
from jaxvae.models.likelihoods import bernoulli_nll
from jaxvae.models.build import build_model, init_variables
from jaxvae.models.priors import gaussian_kl_per_dimension
from jaxvae.models.vae import VAEOutput
from jaxvae.objectives.base import Context
from jaxvae.objectives.build import OBJECTIVES, build_objective
from jaxvae.objectives.notes import Mse, NotesElbo, mse, notes_kld


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
    got = gaussian_kl_per_dimension(jnp.float32(mean)[None], jnp.float32(std)[None])[0].sum()
    assert abs(float(got) - log_ratio.mean()) < 4 * error


def test_gaussian_kl_is_zero_for_the_prior_alone() -> None:
    zeros, ones = jnp.zeros((2, 5)), jnp.ones((2, 5))
    np.testing.assert_array_equal(gaussian_kl_per_dimension(zeros, ones), zeros)
    assert float(gaussian_kl_per_dimension(zeros, 1.01 * ones).min()) > 0
    assert float(gaussian_kl_per_dimension(zeros + 0.01, ones).min()) > 0


@pytest.mark.parametrize(
    "call",
    [
        lambda a, b: mse(a, b),
        lambda a, b: bernoulli_nll(a, b),
        lambda a, b: gaussian_kl_per_dimension(a, b),
        lambda a, b: notes_kld(a, b, 784),
    ],
)
def test_shapes_that_would_broadcast_are_refused(call: Any) -> None:
    with pytest.raises(ValueError, match=r"shapes must agree: .*\(4, 3\).*\(4, 1\)"):
        call(jnp.ones((4, 3)), jnp.ones((4, 1)))


class Given:
    """A view of a model, in evaluation, whose output is given."""

    train = False

    def __init__(self, output: Any):
        self._output = output

    def output(self, batch: Any, keys: Any) -> Any:
        return self._output


def terms_of(objective: Any, output: Any, x: jax.Array) -> dict[str, jax.Array]:
    """The terms of the notes' objectives for images and what a model made of them."""
    terms: dict[str, jax.Array] = objective.terms(
        Given(output), {"image": x}, jax.random.split(jax.random.key(0), len(x))
    )
    return terms


def outputs(objective: Any) -> tuple[Any, jax.Array]:
    rng = np.random.default_rng(3)
    logits = jnp.float32(rng.normal(size=(6, 4, 3, 2)))
    x = jnp.float32(rng.uniform(size=logits.shape))
    latent, mean = jnp.float32(rng.normal(size=(2, 6, 5)))
    std = jnp.float32(rng.uniform(0.1, 2, size=(6, 5)))
    return (VAEOutput(logits, latent, mean, std) if objective.latent_model else AutoEncoderOutput(logits, latent)), x


@pytest.mark.parametrize("objective", [Mse(), NotesElbo()])
def test_terms_are_per_example_and_add_up(objective: Any) -> None:
    output, x = outputs(objective)
    terms = terms_of(objective, output, x)
    assert {v.shape for v in terms.values()} == {(6,)}
    if objective.latent_model:
        np.testing.assert_allclose(terms["loss"], terms["recon"] + terms["kl"], rtol=1e-6)
    # One example alone gives what it gives in company.
    alone = terms_of(objective, jax.tree.map(lambda a: a[2:3], output), x[2:3])
    for term, value in alone.items():
        np.testing.assert_allclose(value[0], terms[term][2], rtol=1e-6)


@pytest.mark.unoptimized
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_evaluation_of_one_example_is_that_in_company(name: str) -> None:
    latents = OBJECTIVES[name].latent_model
    needed = {"mmd_weight": 1.0} if name == "info" else {}
    config = Config("vae", objective=name, hidden=(4,), latent_size=5, **needed)
    model, loss = build_model(config, (4, 3, 2)), build_objective(config, 1, 100)
    x = jnp.float32(np.random.default_rng(3).uniform(size=(6, 4, 3, 2)))
    variables = jax.jit(lambda key: init_variables(model, key, {"image": x[:1]}))(jax.random.key(0))
    of = jax.jit(lambda x, keys: loss.of(model, variables, {"image": x}, keys, Context())[0])
    keys = jax.random.split(jax.random.key(1), 6)
    terms = of(x, keys)
    assert {v.shape for v in terms.values()} == {(6,)}
    assert len(terms) == (1 if not latents else 4 if OBJECTIVES[name].bound else 3)
    for term, value in of(x[2:3], keys[2:3]).items():
        np.testing.assert_allclose(value[0], terms[term][2], rtol=1e-5)


def test_notes_elbo_is_a_gaussian_elbo_of_variance_one_half_over_pixels() -> None:
    output, x = outputs(NotesElbo())
    terms = terms_of(NotesElbo(), output, x)
    pixels = x[0].size
    squared = (np.asarray(output.x_hat, np.float64) - np.asarray(x, np.float64)) ** 2
    nll = (squared + 0.5 * np.log(np.pi)).reshape(6, -1).sum(1)  # -log N(x; x_hat, 1/2), summed
    elbo_loss = nll + np.asarray(gaussian_kl_per_dimension(output.mean, output.std), np.float64).sum(1)
    constant = 0.5 * np.log(np.pi) * pixels
    np.testing.assert_allclose(np.asarray(terms["loss"]) * pixels, elbo_loss - constant, rtol=1e-5)
