"""The importance-weighted bound and its gradients: statistics of many draws, and central differences."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from small import SHAPE, config_of, images, many, model_and_params, terms_of
from written import Written, flat

from jaxvae.config import Config
from jaxvae.keys import example_keys
from jaxvae.objectives.base import Context
from jaxvae.objectives.build import build_objective
from jaxvae.objectives.iwae import iwae_bound

pytestmark = pytest.mark.unoptimized


@pytest.mark.slow
def test_iwae_of_one_sample_is_the_elbo_in_expectation_and_grows_with_samples() -> None:
    model, params = model_and_params(config_of("iwae"), scale=3.0)
    x = images(4)
    elbo = -many(config_of("elbo"), params, model, x, 4000)["loss"]
    bounds = {k: -many(config_of("iwae", samples=k), params, model, x, 4000)["loss"] for k in (1, 2, 5, 20)}
    error = np.hypot(elbo.std(0), bounds[1].std(0)) / 4000**0.5
    assert (np.abs(bounds[1].mean(0) - elbo.mean(0)) < 4.5 * error).all()
    for fewer, more in ((1, 2), (2, 5), (5, 20)):
        error = np.hypot(bounds[fewer].std(0), bounds[more].std(0)) / 4000**0.5
        assert (bounds[more].mean(0) > bounds[fewer].mean(0) - 4.5 * error).all()
    assert (bounds[20].mean(0) > bounds[1].mean(0)).all()


def test_iwae_bound_is_log_mean_exp() -> None:
    rng = np.random.default_rng(5)
    log_w = rng.normal(size=(6, 9)) * 5 + np.array([[500], [-500], [0], [0], [0], [0]])
    peak = log_w.max(axis=1, keepdims=True)
    expected = np.log(np.exp(log_w - peak).mean(axis=1)) + peak[:, 0]
    np.testing.assert_allclose(iwae_bound(jnp.float32(log_w)), expected, rtol=1e-5)


def gradients(config: Config, params: Any, model: Any, x: jax.Array, repeats: int) -> Any:
    objective = build_objective(config)
    keys = jax.vmap(lambda k: example_keys(k, 0, x.shape[0]))(jax.random.split(jax.random.key(4), repeats))

    def gradient(keys: jax.Array) -> Any:
        def mean_loss(params: Any) -> jax.Array:
            terms, _ = objective.of(model, params, {"image": x}, keys, Context(jnp.int32(0)))
            return terms["loss"].mean()

        return jax.grad(mean_loss)(params)

    return jax.jit(lambda keys: jax.lax.map(gradient, keys, batch_size=200))(keys)


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0])
def test_dreg_has_iwaes_value_and_expected_gradient(beta: float) -> None:
    """The means of both gradients agree, parameter by parameter and, within 6 %, along the gradient."""
    repeats = 6000
    iwae, dreg = (config_of(name, samples=8, beta=beta) for name in ("iwae", "dreg"))
    model, params = model_and_params(dreg, scale=2.0)
    x = jnp.float32(np.random.default_rng(0).uniform(size=(3, *SHAPE)))
    a, b = many(iwae, params, model, x, 50), many(dreg, params, model, x, 50)
    for term in a:
        np.testing.assert_allclose(a[term], b[term], rtol=1e-4)
    ours, theirs = (gradients(c, params, model, x, repeats)["params"] for c in (dreg, iwae))
    # The decoder's gradient is the same, draw by draw.
    jax.tree.map(
        lambda p, q: np.testing.assert_allclose(p, q, rtol=2e-3, atol=2e-4), ours["decoder"], theirs["decoder"]
    )
    # The encoder's is another estimate of the same gradient.
    flat, other = (
        np.concatenate([np.asarray(leaf, np.float64).reshape(repeats, -1) for leaf in jax.tree.leaves(g["encoder"])], 1)
        for g in (ours, theirs)
    )
    error = (flat - other).std(0) / repeats**0.5
    moving = error > 1e-7
    assert moving.any() or beta == 0  # At 0 both are identical.
    assert np.abs((flat - other).mean(0)[moving] / error[moving]).max(initial=0) < 5.5
    fixed, rest = other[:1000].mean(0), slice(1000, None)  # A direction that does not depend on the compared draws.
    along, expected = (flat[rest] - other[rest]) @ fixed, (other[rest] @ fixed).mean()
    relative_error = along.std() / len(along) ** 0.5 / expected
    assert relative_error < 0.06
    assert abs(along.mean() / expected) < 4 * relative_error + 1e-5
    if beta == 1:
        assert flat.var(0).sum() < 0.8 * other.var(0).sum()


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("objective", ["iwae", "dreg"])
def test_gradients_match_central_differences(objective: str, beta: float) -> None:
    """IWAE: of -log mean_s exp(log p(x | z_s) + beta (log p(z_s) - log q(z_s | x))). DReG: of its surrogates."""
    written = Written(objective, 4, beta=beta)
    start = written.start
    fixed = written.densities(start, start, start)
    weights = special.softmax(fixed.log_px + beta * fixed.log_ratio, axis=1)

    def loss(vector: Any) -> float:
        if objective == "iwae":
            log_px, log_ratio, *_ = written.densities(vector, vector, vector)
            return float(-np.log(np.exp(log_px + beta * log_ratio).mean(axis=1)).mean())
        decoder, encoder = written.densities(start, start, vector), written.densities(vector, start, start)
        of_latents = (1 - beta) * weights + beta * weights**2
        surrogate = weights * decoder.log_px + of_latents * (encoder.log_px + beta * encoder.log_ratio)
        return float(-surrogate.sum(axis=1).mean())

    expected = [(loss(start + step) - loss(start - step)) / 2e-5 for step in 1e-5 * np.eye(len(start))]
    got = jax.grad(lambda p: terms_of(written.config, written.model, p, written.x, written.keys)["loss"].mean())(
        written.params
    )
    np.testing.assert_allclose(flat(got), expected, rtol=1e-3, atol=2e-6)
