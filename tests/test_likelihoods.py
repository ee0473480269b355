"""Likelihoods against SciPy and closed forms."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats
from small import SHAPE, config_of, images, keys_of, model_and_params

from jaxvae.models.build import build_model, reconstruct
from jaxvae.models.likelihoods import LIKELIHOODS, bernoulli_nll, discretized_logistic_nll, gaussian_nll
from jaxvae.models.networks import Mlp
from jaxvae.models.vae import VAE
from jaxvae.objectives.build import build_objective, loss_of
from jaxvae.optimizer import build_optimizer
from jaxvae.protocols import PixelDistribution
from jaxvae.train.step import init_state, make_train_step

pytestmark = pytest.mark.unoptimized


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


def test_gaussian_nll_matches_scipy() -> None:
    rng = np.random.default_rng(5)
    mean, x = rng.normal(size=(2, 5, *SHAPE))
    log_std = rng.uniform(-3, 1, (5, *SHAPE))
    expected = -stats.norm.logpdf(x, mean, np.exp(log_std)).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(
        gaussian_nll(jnp.float32(mean), jnp.float32(log_std), jnp.float32(x)), expected, rtol=1e-4
    )
    expected = -stats.norm.logpdf(x, mean, 0.3).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(gaussian_nll(jnp.float32(mean), math.log(0.3), jnp.float32(x)), expected, rtol=1e-4)


@pytest.mark.parametrize(("mean", "log_scale"), [(0.5, -2), (0.0, -1), (1.0, -6.9), (0.31, -6.9), (-3.0, 3), (0.9, 3)])
def test_discretized_logistic_sums_to_one_and_is_the_difference_of_cdfs(mean: float, log_scale: float) -> None:
    every = jnp.arange(256, dtype=jnp.float32)[:, None] / 255
    full = jnp.full_like(every, mean), jnp.full_like(every, log_scale)
    nll = np.asarray(discretized_logistic_nll(*full, every), np.float64)
    assert np.exp(-nll).sum() == pytest.approx(1, abs=2e-5)
    edges = (np.arange(257) - 0.5) / 255
    edges[0], edges[-1] = -np.inf, np.inf
    logistic = stats.logistic(mean, math.exp(log_scale))
    expected = np.diff(logistic.cdf(edges))
    sure = expected > 1e-12  # Below this, the reference itself loses its digits.
    np.testing.assert_allclose(np.exp(-nll[sure]), expected[sure], rtol=2e-3)
    slope = jax.grad(lambda m: discretized_logistic_nll(m, full[1], every).sum())(full[0])
    assert np.isfinite(nll).all() and np.isfinite(slope).all()


def test_the_gradient_of_the_discretized_logistic_is_that_of_its_formula() -> None:
    """Against JAX's gradient of the difference of two sigmoids, in float64: by the mean, the scale and the pixels."""

    def formula(mean: Any, log_scale: Any, x: Any) -> Any:
        upper, lower = ((x + edge / 255 - mean) * jnp.exp(-log_scale) for edge in (0.5, -0.5))
        upper, lower = jnp.where(x > 0.999, jnp.inf, upper), jnp.where(x < 0.001, -jnp.inf, lower)
        return -jnp.log(jax.nn.sigmoid(upper) - jax.nn.sigmoid(lower)).sum(axis=-1)

    rng = np.random.default_rng(6)
    mean, log_scale = rng.uniform(-0.2, 1.2, (40, 64)), rng.uniform(-2.5, 2, (40, 64))
    x = rng.integers(0, 256, (40, 64)) / 255
    x[:, :9], x[:, 9:18] = 0, 1
    weights = rng.normal(size=40)
    given = [jnp.float32(each) for each in (mean, log_scale, x)]
    value, back = jax.vjp(discretized_logistic_nll, *given)
    with jax.enable_x64(True):
        wanted, wanted_back = jax.vjp(formula, *(jnp.float64(np.float32(each)) for each in (mean, log_scale, x)))
        expected = wanted_back(jnp.float64(weights))
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    for found, each in zip(back(jnp.float32(weights)), expected, strict=True):
        np.testing.assert_allclose(found, each, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("likelihood", "dequantize"),
    [
        ("bernoulli", False),
        ("logistic", False),
        *(
            (gaussian, noisy)
            for gaussian in ("gaussian", "gaussian-global", "gaussian-pixel")
            for noisy in (False, True)
        ),
    ],
)
def test_the_likelihood_of_pixels_matches_scipy(likelihood: str, dequantize: bool) -> None:
    """For three images with two latents each; all pixels differ."""
    config = config_of(
        likelihood=likelihood, likelihood_std=0.2 if likelihood == "gaussian" else 0.1, dequantize=dequantize
    )
    rng = np.random.default_rng(0)
    location, log_scale = rng.normal(size=(3, 2, *SHAPE)), rng.uniform(-2, 0, size=(3, 2, *SHAPE))
    levels = rng.integers(0, 256, (3, *SHAPE))
    x, shown = levels[:, None] / 255, np.broadcast_to(levels[:, None] / 255, location.shape)
    scales = {"gaussian-pixel": log_scale, "logistic": log_scale, "gaussian-global": np.float64(-1.5)}
    scale: Any = scales.get(likelihood)
    if likelihood == "bernoulli":
        p = special.expit(location)
        expected = x * np.log(p) + (1 - x) * np.log1p(-p)
    elif likelihood == "logistic":
        edges = (levels[:, None, ..., None] + np.array([-0.5, 0.5])) / 255
        edges = np.where(edges < 0, -np.inf, np.where(edges > 1, np.inf, edges))
        cdf = stats.logistic(special.expit(location)[..., None], np.exp(log_scale)[..., None]).cdf(edges)
        expected = np.log(np.diff(cdf)[..., 0])
    else:
        std = 0.2 if scale is None else np.exp(scale)
        expected = stats.norm.logpdf(shown, location, std) - (math.log(256) if dequantize else 0)
    pixels = PixelDistribution(jnp.float32(location), None if scale is None else jnp.float32(scale))
    got = loss_of(config).nll(pixels, jnp.float32(levels / 255))
    np.testing.assert_allclose(got, -expected.sum(axis=(2, 3, 4)), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "gaussian-global", "gaussian-pixel", "logistic"])
def test_the_likelihood_of_many_draws_is_that_of_each(likelihood: str) -> None:
    config = config_of("elbo", likelihood=likelihood)
    model, params = model_and_params(config)
    x = jnp.round(255 * images(5)) / 255
    draws = model.apply(params, {"image": x}, keys_of(0, 5), 4, method="draw")
    nll = loss_of(config).nll(draws.pixels, x)
    assert nll.shape == (5, 4)
    for s in range(4):
        one = model.apply(params, draws.latent[:, s], method="pixels")
        np.testing.assert_allclose(nll[:, s], loss_of(config).nll(one, x), rtol=1e-5)
        np.testing.assert_allclose(draws.log_prior[:, s], stats.norm.logpdf(draws.latent[:, s]).sum(-1), rtol=1e-5)
        log_q = stats.norm.logpdf(draws.latent[:, s], draws.mean, draws.std).sum(-1)
        np.testing.assert_allclose(draws.log_posterior[:, s], log_q, rtol=1e-4, atol=1e-5)
    shown = reconstruct(model, params, {"image": x}, jax.random.key(0))
    assert shown.shape == x.shape and float(shown.min()) >= 0 and float(shown.max()) <= 1


@pytest.mark.long
def test_a_learned_variance_learns_the_variance() -> None:
    """On constant images with noise of a known standard deviation."""
    rng = np.random.default_rng(5)
    config = config_of("elbo", likelihood="gaussian-global", learning_rate=3e-3)
    model, optimizer = build_model(config, SHAPE), build_optimizer(config)
    state = init_state(model, optimizer, jax.random.key(0))
    noisy = jnp.float32(0.5 + 0.05 * rng.normal(size=(1500, 64, *SHAPE)))
    step = make_train_step(model, build_objective(config), optimizer)
    state, _ = jax.jit(lambda s: jax.lax.scan(lambda s, b: step(s, b, jax.random.key(1)), s, noisy))(state)
    assert math.exp(float(state.params["params"]["log_scale"])) == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize("likelihood", ["gaussian-pixel", "logistic"])
def test_scales_are_bounded_and_start_at_an_eighth_of_the_range(likelihood: str) -> None:
    model = VAE((2, 2, 1), Mlp(()), latent_size=2, likelihood=LIKELIHOODS[likelihood]())
    params = model.init(jax.random.key(7), jnp.zeros((1, 2, 2, 1)), jax.random.key(7))
    layer = params["params"]["decoder"]["mlp"]["dense_0"]
    for raw in (0.0, 1.5, -100.0, 100.0):
        layer["kernel"], layer["bias"] = 0 * layer["kernel"], jnp.float32([0.3, raw] * 4)
        pixels = model.apply(params, jnp.zeros((1, 2)), method="pixels")
        np.testing.assert_allclose(pixels.location, 0.3 * np.ones((1, 2, 2, 1)), rtol=1e-6)
        np.testing.assert_allclose(pixels.log_scale, (5 * np.tanh(raw / 5) - 2) * np.ones((1, 2, 2, 1)), rtol=1e-5)
