"""Bounds, estimators and schedules: closed forms, NumPy in float64, statistics of many draws."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec
from numpy.typing import NDArray
from scipy import special, stats

from jaxvae.config import PRESETS, Config
from jaxvae.errors import InputError
from jaxvae.keys import example_keys, fold_in_each
from jaxvae.models.build import build_model, reconstruct
from jaxvae.models.likelihoods import discretized_logistic_nll, gaussian_nll
from jaxvae.noise import binarize, corrupt, dequantize
from jaxvae.objectives.base import Context, View
from jaxvae.objectives.beta_tc import total_correlation
from jaxvae.objectives.build import build_objective, loss_of, measure_warning, selection_cost, selection_term
from jaxvae.objectives.info import mmd
from jaxvae.objectives.iwae import iwae_bound
from jaxvae.optimizer import build_optimizer
from jaxvae.protocols import PixelDistribution
from jaxvae.run import records
from jaxvae.train.step import init_state, make_train_step

pytestmark = pytest.mark.unoptimized

SHAPE = (4, 3, 1)
SMALL = dataclasses.replace(PRESETS["vae"], hidden=(8,), latent_size=3, batch_size=16)


def config_of(objective: str = "elbo", **changes: Any) -> Config:
    needed = {"mmd_weight": 1.0} if objective == "info" else {}
    return dataclasses.replace(SMALL, objective=objective, **{**needed, **changes})  # type: ignore[arg-type]


def model_and_params(config: Config, scale: float = 1.0) -> tuple[Any, Any]:
    model = build_model(config, SHAPE)
    init = jax.jit(
        lambda key: jax.tree.map(lambda a: scale * a, init_state(model, build_optimizer(config), key).params)
    )
    return model, init(jax.random.key(1))


def images(count: int) -> jax.Array:
    rng = np.random.default_rng(5)
    return jnp.float32(rng.uniform(size=(count, *SHAPE)))


def keys_of(seed: int, count: int) -> jax.Array:
    return example_keys(jax.random.key(seed), 0, count)


# --- Likelihoods ---------------------------------------------------------------------------------------------


def test_gaussian_nll_is_scipys() -> None:
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
    sure = expected > 1e-12  # Below, the reference itself cancels.
    np.testing.assert_allclose(np.exp(-nll[sure]), expected[sure], rtol=2e-3)
    slope = jax.grad(lambda m: discretized_logistic_nll(m, full[1], every).sum())(full[0])
    assert np.isfinite(nll).all() and np.isfinite(slope).all()


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
def test_the_likelihood_of_pixels_is_scipys(likelihood: str, dequantize: bool) -> None:
    """For two latents each of three images, whose pixels are unlike."""
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


def test_a_learned_variance_learns_the_variance() -> None:
    """Constant images but for noise of a known standard deviation."""
    rng = np.random.default_rng(5)
    config = config_of("elbo", likelihood="gaussian-global", learning_rate=3e-3)
    model, optimizer = build_model(config, SHAPE), build_optimizer(config)
    state = init_state(model, optimizer, jax.random.key(0))
    noisy = jnp.float32(0.5 + 0.05 * rng.normal(size=(1500, 64, *SHAPE)))
    step = make_train_step(model, build_objective(config), optimizer)
    state, _ = jax.jit(lambda s: jax.lax.scan(lambda s, b: step(s, b, jax.random.key(1)), s, noisy))(state)
    assert math.exp(float(state.params["params"]["log_scale"])) == pytest.approx(0.05, rel=0.1)


def test_binarized_pixels_are_bernoulli_keyed_by_example() -> None:
    x = jnp.broadcast_to(jnp.linspace(0, 1, 12).reshape(SHAPE), (20_000, *SHAPE))
    drawn = binarize(x, keys_of(0, 20_000))
    assert set(np.unique(drawn)) == {0.0, 1.0}
    error = np.sqrt(np.asarray(x[0] * (1 - x[0])) / 20_000)
    assert (np.abs(np.asarray(drawn.mean(axis=0) - x[0])) <= 4 * error + 1e-7).all()
    np.testing.assert_array_equal(drawn[5:9], binarize(x[5:9], keys_of(0, 20_000)[5:9]))
    assert not np.array_equal(drawn[5:9], binarize(x[5:9], keys_of(1, 20_000)[5:9]))


LEVELS = np.array([0, 1, 2, 77, 100, 127, 128, 200, 253, 254, 255, 13]).reshape(SHAPE)


def test_dequantized_pixels_are_uniform_in_their_bins_keyed_by_example() -> None:
    x = jnp.broadcast_to(jnp.float32(LEVELS / 255), (5000, *SHAPE))
    drawn = np.asarray(dequantize(x, keys_of(0, 5000)), np.float64)
    inside = (256 * drawn - LEVELS).reshape(5000, -1)
    assert inside.min() > -1e-4 and inside.max() < 1 + 1e-4  # float32 rounds 255 x to 3e-5.
    for pixel in inside.T:
        assert stats.kstest(pixel, "uniform").pvalue > 1e-4
    assert np.abs(np.corrcoef(inside.T) - np.eye(12)).max() < 0.07
    np.testing.assert_array_equal(drawn[5:9], dequantize(x[5:9], keys_of(0, 5000)[5:9]))
    assert not np.array_equal(drawn[5:9], dequantize(x[5:9], keys_of(1, 5000)[5:9]))


@pytest.mark.parametrize(("std", "gap"), [(0.5, 1e-4), (0.002, 0.3)])
def test_a_dequantized_density_bounds_the_probability_of_the_levels(std: float, gap: float) -> None:
    """The difference of the normal's distribution function over each bin; where it is flat, the bound is tight."""
    config = config_of(likelihood="gaussian", likelihood_std=std, dequantize=True)
    mean = np.float32((LEVELS + 0.8) / 256)
    x = dequantize(jnp.broadcast_to(jnp.float32(LEVELS / 255), (4000, *SHAPE)), keys_of(0, 4000))
    location = jnp.broadcast_to(jnp.asarray(mean), x.shape)
    bounds = -np.float64(loss_of(config).nll(PixelDistribution(location, None), x))
    exact = np.log(np.diff(stats.norm(mean[..., None], std).cdf((LEVELS[..., None] + np.array([0, 1])) / 256))).sum()
    error = bounds.std() / len(bounds) ** 0.5
    assert exact - 12 * gap - 4 * error < bounds.mean() < exact + 4 * error + 1e-4
    assert exact < 0


@pytest.mark.parametrize("changes", [{"inputs": "dynamic"}, {"likelihood": "gaussian-global", "dequantize": True}])
@pytest.mark.parametrize("objective", ["elbo", "iwae", "dreg", "info", "beta-tc"])
def test_training_and_evaluation_see_noisy_pixels(objective: str, changes: dict[str, Any]) -> None:
    _assert_sees_noisy_pixels(config_of(objective, **changes))


@pytest.mark.parametrize("preset", ["notes-ae", "notes-vae"])
def test_the_notes_models_see_binarized_pixels(preset: str) -> None:
    _assert_sees_noisy_pixels(dataclasses.replace(PRESETS[preset], hidden=(8,), latent_size=3, inputs="dynamic"))


def _assert_sees_noisy_pixels(config: Config) -> None:
    """Nothing but the configuration says so."""
    model, params = model_and_params(config)
    x = jnp.float32(np.random.default_rng(0).integers(0, 256, (6, *SHAPE)) / 255)
    keys = example_keys(jax.random.fold_in(jax.random.key(0), 0), 0, 6)  # Those of a step 0.
    draw = dequantize if config.dequantize else binarize
    seen, plain = draw(x, keys), dataclasses.replace(config, inputs="grey", dequantize=False)
    nats = 12 * math.log(256) if config.dequantize else 0.0
    step = make_train_step(model, build_objective(config, 1, 100), build_optimizer(config))
    _, trained = jax.jit(step)(init_state(model, build_optimizer(config), jax.random.key(1)), x, jax.random.key(0))
    evaluated = terms_of(config, model, params, x, keys, Context())
    for context, got in ((Context(jnp.int32(0)), trained), (Context(), evaluated)):
        expected = terms_of(plain, model, params, seen, keys, context)["loss"] + nats
        np.testing.assert_allclose(np.mean(got["loss"]), expected.mean(), rtol=1e-5)
        other = terms_of(plain, model, params, x, keys, context)["loss"] + nats
        assert abs(expected.mean() - other.mean()) > 1e-4 * abs(other.mean())


def test_corruption_hides_pixels_from_the_model_alone() -> None:
    x = jnp.full((5000, *SHAPE), 0.5)
    seen = np.asarray(corrupt(x, keys_of(0, 5000), 0.3))
    assert set(np.unique(seen)) == {0.0, 0.5}
    assert (seen == 0).mean() == pytest.approx(0.3, abs=4 * (0.21 / seen.size) ** 0.5)
    config = dataclasses.replace(PRESETS["notes-ae"], hidden=(8,), latent_size=3, corruption=0.3)
    model, params = model_and_params(config)
    x, keys, plain = images(6), keys_of(0, 6), dataclasses.replace(config, corruption=0.0)
    output = jax.jit(lambda x: model.apply(params, corrupt(x, keys, 0.3)))(x)
    expected = np.square(np.asarray(output.x_hat) - np.asarray(x)).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(terms_of(config, model, params, x, keys)["loss"], expected, rtol=1e-5)
    clean = terms_of(config, model, params, x, keys, Context())["loss"]  # Evaluation sees all.
    np.testing.assert_allclose(clean, terms_of(plain, model, params, x, keys, Context())["loss"], rtol=1e-6)


# --- Bounds --------------------------------------------------------------------------------------------------


def terms_of(
    config: Config, model: Any, params: Any, x: jax.Array, keys: jax.Array, context: Context | None = None
) -> dict[str, jax.Array]:
    """The objective's terms, [B] each: those of step 0 unless told otherwise."""
    context = Context(jnp.int32(0)) if context is None else context
    objective = build_objective(config, 1, 100)
    return jax.jit(lambda p, x, k: objective.of(model, p, {"image": x}, k, context)[0])(params, x, keys)


def many(config: Config, params: Any, model: Any, x: jax.Array, repeats: int) -> dict[str, NDArray[np.float64]]:
    """The objective's terms for the images, with `repeats` independent sets of keys: [repeats, B] each."""
    objective = build_objective(config)
    keys = jax.vmap(lambda k: example_keys(k, 0, x.shape[0]))(jax.random.split(jax.random.key(3), repeats))
    terms = jax.jit(jax.vmap(lambda k: objective.of(model, params, {"image": x}, k, Context())[0]))(keys)
    return {name: np.asarray(values, np.float64) for name, values in terms.items()}


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
    # The encoder's is another estimate of the same.
    flat, other = (
        np.concatenate([np.asarray(leaf, np.float64).reshape(repeats, -1) for leaf in jax.tree.leaves(g["encoder"])], 1)
        for g in (ours, theirs)
    )
    error = (flat - other).std(0) / repeats**0.5
    moving = error > 1e-7
    assert moving.any() or beta == 0  # There, both are one and the same.
    assert np.abs((flat - other).mean(0)[moving] / error[moving]).max(initial=0) < 5.5
    fixed, rest = other[:1000].mean(0), slice(1000, None)  # A direction that those compared along it have no part in.
    along, expected = (flat[rest] - other[rest]) @ fixed, (other[rest] @ fixed).mean()
    relative_error = along.std() / len(along) ** 0.5 / expected
    assert relative_error < 0.06
    assert abs(along.mean() / expected) < 4 * relative_error + 1e-5
    if beta == 1:
        assert flat.var(0).sum() < 0.8 * other.var(0).sum()


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


@pytest.mark.parametrize(
    ("likelihood", "inputs", "prefix", "log_p"),
    [
        ("bernoulli", "dynamic", "", "log_likelihood"),
        ("bernoulli", "static", "", "log_likelihood"),
        ("logistic", "grey", "", "log_likelihood"),
        ("bernoulli", "grey", "unnormalised_", "unnormalised_log_likelihood"),
        ("gaussian", "grey", "density_", "log_density"),
        ("gaussian-global", "grey", "density_", "log_density"),
        ("gaussian-pixel", "dynamic", "density_", "log_density"),
        ("gaussian", "dequantized", "", "log_likelihood"),
        ("gaussian-global", "dequantized", "", "log_likelihood"),
    ],
)
@pytest.mark.parametrize(("objective", "bound"), [("elbo", "elbo"), ("info", "elbo"), ("beta-tc", "elbo"),
                                                  ("iwae", "iwae_bound"), ("dreg", "iwae_bound")])  # fmt: skip
def test_a_bound_is_named_for_what_it_bounds(
    objective: str, bound: str, likelihood: str, inputs: str, prefix: str, log_p: str
) -> None:
    pixels = {"dequantize": True} if inputs == "dequantized" else {"inputs": inputs}
    config = config_of(objective, likelihood=likelihood, **pixels)
    warning = measure_warning(config)
    assert ("--dequantize" in (warning or "")) == (warning is not None) == (prefix == "density_")
    assert loss_of(config).bound_name == prefix + bound
    assert loss_of(config).likelihood_name == log_p
    assert selection_term(config) == (prefix + bound, True)
    assert prefix + bound in records.FIRST


@pytest.mark.parametrize("preset", ["notes-ae", "notes-vae"])
def test_the_notes_models_are_chosen_by_their_loss(preset: str) -> None:
    assert selection_term(PRESETS[preset]) == ("loss", False)
    assert selection_cost(PRESETS[preset], {"loss": 0.5, "elbo": 9.0}) == 0.5


def test_of_what_models_are_chosen_by_the_lower_cost_is_better() -> None:
    config = config_of(inputs="dynamic")
    assert selection_cost(config, {"loss": 0.5, "elbo": -9.0}) == 9.0
    assert selection_cost(config, {"loss": 0.5}) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "elbo"},
        {"objective": "elbo", "samples": 3},
        {"objective": "elbo", "free_bits": 0.3},
        {"objective": "info", "mmd_weight": 2.0, "free_bits": 0.3},
        {"objective": "beta-tc"},
        {"objective": "iwae", "samples": 3},
        {"objective": "dreg", "samples": 3},
        {"objective": "elbo", "architecture": "two-layer", "hidden": (8, 6)},
        {"objective": "iwae", "samples": 3, "architecture": "two-layer", "hidden": (8, 6)},
    ],
    ids=["elbo", "samples", "free_bits", "info", "beta-tc", "iwae", "dreg", "two-layer", "two-layer-iwae"],
)
def test_the_bound_is_the_same_for_all_weights(changes: dict[str, Any]) -> None:
    config = config_of(beta=3.0, **changes)
    model, params = model_and_params(config, scale=2.0)
    rng = np.random.default_rng(0)
    x, keys = jnp.float32(rng.uniform(size=(6, *SHAPE))), keys_of(0, 6)
    name = loss_of(config).bound_name
    terms = terms_of(config, model, params, x, keys, Context())
    assert name not in terms_of(config, model, params, x, keys)
    draws = model.apply(params, {"image": x}, keys, config.samples, method="draw")
    log_px = -np.float64(loss_of(config).nll(draws.pixels, x))
    if name.endswith("iwae_bound"):
        expected = np.log(np.exp(log_px + draws.log_prior - draws.log_posterior).mean(axis=1))
    elif config.architecture == "two-layer":
        expected = (log_px + draws.log_prior - draws.log_posterior).mean(axis=1)
    else:
        mean, std = np.float64(draws.mean), np.float64(draws.std)
        expected = log_px.mean(axis=1) - (0.5 * (mean**2 + std**2 - 1) - np.log(std)).sum(axis=1)
    np.testing.assert_allclose(terms[name], expected, rtol=1e-4)
    if config.objective == "elbo" and not config.free_bits:
        np.testing.assert_allclose(terms["loss"], terms["recon"] + 3 * terms["kl"], rtol=1e-5)
    plain = dataclasses.replace(config, beta=1.0, free_bits=0.0)
    same = terms_of(plain, model, params, x, keys, Context())
    np.testing.assert_allclose(terms[name], -same["loss"], rtol=1e-5)


# --- A VAE without hidden layers, written out in NumPy, float64 --------------------------------------------------


class Densities(NamedTuple):
    """Of latents z [B, S, L] drawn for images: all [B, S], but for the posterior's mean and std [B, L]."""

    log_px: NDArray[np.float64]
    log_ratio: NDArray[np.float64]
    z: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]


def _drawn(samples: int) -> tuple[jax.Array, jax.Array]:
    """Keys of five images, and the noise of their latents."""
    keys = keys_of(0, 5)
    return keys, jax.vmap(lambda k: jax.random.normal(k, (samples, 3)))(keys)


class Written:
    """A configuration's model and parameters, some images, and what is drawn for them with some keys."""

    def __init__(self, objective: str, samples: int, **changes: Any):
        self.config = config_of(objective, samples=samples, hidden=(), head="exp", **changes)
        rng = np.random.default_rng(1)
        self.model = build_model(self.config, SHAPE)
        sizes = {"encoder": (12, 6), "decoder": (3, 12)}
        self.params: Any = {
            "params": {
                side: {
                    "mlp": {
                        "dense_0": {
                            "bias": np.float32(rng.uniform(-0.3, 0.3, shape[1])),
                            "kernel": np.float32(rng.uniform(-0.3, 0.3, shape)),
                        }
                    }
                }
                for side, shape in sizes.items()
            }
        }
        self.x = np.float32(rng.uniform(size=(5, *SHAPE)))
        self.keys, eps = jax.jit(_drawn, static_argnums=0)(samples)
        self._eps = np.float64(eps)
        leaves, self._structure = jax.tree.flatten(self.params)
        self._shapes = [leaf.shape for leaf in leaves]
        self.start = flat(self.params)

    def densities(self, latents: Any, posterior: Any, decoder: Any) -> Densities:
        """With the latents of one vector of parameters, the posterior's density and the decoder of two others."""
        pixels = np.float64(self.x).reshape(5, 1, -1)

        def layer(vector: Any, side: str) -> Any:
            ends = np.cumsum([math.prod(shape) for shape in self._shapes])[:-1]
            parts = [p.reshape(s) for p, s in zip(np.split(vector, ends), self._shapes, strict=True)]
            return jax.tree.unflatten(self._structure, parts)["params"][side]["mlp"]["dense_0"]

        def encode(vector: Any) -> Any:
            mean, log_std = np.split(
                pixels @ layer(vector, "encoder")["kernel"] + layer(vector, "encoder")["bias"], 2, -1
            )
            return mean, np.exp(log_std)

        mean, std = encode(latents)
        z = mean + std * self._eps
        logits = z @ layer(decoder, "decoder")["kernel"] + layer(decoder, "decoder")["bias"]
        log_px = (pixels * logits - np.logaddexp(0, logits)).sum(-1)
        log_ratio = (stats.norm.logpdf(z) - stats.norm.logpdf(z, *encode(posterior))).sum(-1)
        return Densities(log_px, log_ratio, z, mean[:, 0], std[:, 0])


def flat(tree: Any) -> NDArray[np.float64]:
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("objective", ["iwae", "dreg"])
def test_gradients_are_the_central_differences_of_what_is_written_out(objective: str, beta: float) -> None:
    """IWAE's: of -log mean_s exp(log p(x | z_s) + beta (log p(z_s) - log q(z_s | x))). DReG's: of its surrogates."""
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


@pytest.mark.parametrize(
    ("objective", "samples", "changes"),
    [
        ("elbo", 1, {}),
        ("elbo", 3, {"beta": 3.0}),
        ("elbo", 1, {"beta": 3.0, "free_bits": 0.2}),
        ("iwae", 3, {"beta": 3.0}),
        ("dreg", 3, {"beta": 3.0}),
        ("info", 1, {"beta": 3.0, "free_bits": 0.2, "mmd_weight": 2.0}),
        ("beta-tc", 1, {"beta": 3.0}),
    ],
    ids=["elbo", "samples", "free_bits", "iwae", "dreg", "info", "beta-tc"],
)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_terms_are_those_written_out(training: bool, objective: str, samples: int, changes: dict[str, Any]) -> None:
    written = Written(objective, samples, **changes)
    log_px, log_ratio, z, mean, std = written.densities(*[written.start] * 3)
    per_dimension = 0.5 * (mean**2 + std**2 - 1) - np.log(std)
    expected = {"recon": -log_px.mean(axis=1), "kl": per_dimension.sum(axis=1)}
    beta, free = changes.get("beta", 1.0), changes.get("free_bits", 0.0)
    assert not free or ((per_dimension < free).any() and (per_dimension > free).any())
    bound = "unnormalised_elbo", -(expected["recon"] + expected["kl"])
    expected["loss"] = expected["recon"] + beta * np.maximum(per_dimension, free).sum(axis=1)
    if objective in ("iwae", "dreg"):
        expected["kl"] = -log_ratio.mean(axis=1)
        expected["loss"] = -np.log(np.exp(log_px + beta * log_ratio).mean(axis=1))
        bound = "unnormalised_iwae_bound", np.log(np.exp(log_px + log_ratio).mean(axis=1))
    if objective == "beta-tc":
        expected["loss"] = expected["recon"] + expected["kl"]
    if training and objective == "beta-tc":
        expected["tc"] = np.full(5, stratified(z[:, 0], mean, std, 100).mean())
        expected["loss"] = expected["loss"] + 2 * expected["tc"]
    if training and objective == "info":
        prior = np.float64(jax.vmap(lambda k: jax.random.normal(k, (3,)))(fold_in_each(written.keys, "prior")))
        expected["mmd"] = np.full(5, double_sum(z[:, 0], prior))
        expected["loss"] = expected["loss"] + 2.0 * 12 * expected["mmd"]
    if not training:
        expected |= dict([bound])
    context = Context(jnp.int32(0)) if training else Context()
    got = terms_of(written.config, written.model, written.params, written.x, written.keys, context)
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


def double_sum(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The unbiased squared mean discrepancy of two samples [N, 3], pair by pair."""

    def kernel(x: Any, y: Any) -> float:
        return math.exp(-((x - y) ** 2).sum() / 3)

    count = len(a)
    pairs = [(i, j) for i in range(count) for j in range(count)]
    within = sum(kernel(a[i], a[j]) + kernel(b[i], b[j]) for i, j in pairs if i != j) / (count * (count - 1))
    return within - 2 * sum(kernel(a[i], b[j]) for i, j in pairs) / count**2


def stratified(z: Any, mean: Any, std: Any, num_images: int) -> NDArray[np.float64]:
    """The estimate of the total correlation at latents [B, L], image by image."""
    count = len(z)
    q = np.array([[stats.norm.pdf(z[i], mean[j], std[j]) for j in range(count)] for i in range(count)])

    def mixed(densities: Any) -> Any:
        others = [np.delete(densities[i], i, axis=0).mean(axis=0) for i in range(count)]
        own = 1 / num_images
        return np.array([own * densities[i, i] + (1 - own) * others[i] for i in range(count)])

    return np.log(mixed(q.prod(axis=-1))) - np.log(mixed(q)).sum(axis=-1)


def test_mmd_is_the_double_sum() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 7, 3))
    assert float(jax.jit(mmd)(jnp.float32(a), jnp.float32(b))) == pytest.approx(double_sum(a, b), rel=1e-4, abs=1e-6)


def test_mmd_tells_samples_apart() -> None:
    rng = np.random.default_rng(0)
    same, other = rng.normal(size=(2, 800, 3)), rng.normal(size=(800, 3)) + 1
    assert abs(float(mmd(*jnp.float32(same)))) < 0.01
    assert float(mmd(jnp.float32(same[0]), jnp.float32(other))) > 0.1


def test_total_correlation_is_stratified_sampling_written_out() -> None:
    rng = np.random.default_rng(0)
    z, mean = rng.normal(size=(2, 6, 3))
    std = rng.uniform(0.3, 1, (6, 3))
    got = jax.jit(total_correlation, static_argnums=3)(*map(jnp.float32, (z, mean, std)), 100)
    np.testing.assert_allclose(got, stratified(z, mean, std, 100), rtol=1e-4)


# --- Weights and terms of the ELBO's kin -----------------------------------------------------------------------


def test_kl_warmup_is_linear_and_repeats_and_is_over_in_evaluation() -> None:
    def weights(**changes: Any) -> list[float]:
        loss = build_objective(config_of("elbo", beta=2.0, epochs=8, **changes), steps_per_epoch=10)
        elbo: Any = loss.objective
        steps = [Context(jnp.int32(step)) for step in (0, 5, 10, 20, 39, 40, 45, 79)]
        return [float(elbo.kl_weight(View(None, {}, {}, loss, context))) for context in steps]

    assert weights() == [2.0] * 8
    np.testing.assert_allclose(weights(kl_warmup_epochs=2.0), [0, 0.5, 1, 2, 2, 2, 2, 2])
    np.testing.assert_allclose(weights(kl_warmup_epochs=2.0, kl_cycles=2), [0, 0.5, 1, 2, 2, 0, 0.5, 2])
    config = config_of("elbo", beta=2.0, kl_warmup_epochs=2.0)
    model, params = model_and_params(config)
    x, keys, objective = images(3), keys_of(0, 3), build_objective(config, steps_per_epoch=10)
    first, _ = objective.of(model, params, {"image": x}, keys, Context(jnp.int32(0)))
    np.testing.assert_allclose(first["loss"], first["recon"], rtol=1e-6)
    evaluated, _ = objective.of(model, params, {"image": x}, keys, Context())
    np.testing.assert_allclose(evaluated["loss"], evaluated["recon"] + 2 * evaluated["kl"], rtol=1e-6)


def test_total_correlation_of_the_whole_training_set_is_exact() -> None:
    rng = np.random.default_rng(0)
    z, mean = rng.normal(size=(2, 6, 3))
    std = rng.uniform(0.3, 1, (6, 3))
    q = np.array([[stats.norm.pdf(z[i], mean[j], std[j]) for j in range(6)] for i in range(6)])
    got = total_correlation(*map(jnp.float32, (z, mean, std)), 6)
    np.testing.assert_allclose(got, np.log(q.prod(-1).mean(1)) - np.log(q.mean(1)).sum(-1), rtol=1e-4)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(("latents", "std", "slack"), [(2, 0.9, 0.03), (2, 0.4, 0.1), (10, 0.9, 0.15), (10, 0.7, 0.6)])
def test_total_correlation_is_that_of_gaussians(latents: int, std: float, slack: float, rho: float) -> None:
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


@pytest.mark.parametrize("objective", ["info", "beta-tc"])
def test_terms_of_a_batch_are_of_the_global_batch(objective: str) -> None:
    config = config_of(objective, beta=3.0, mmd_weight=2.0 if objective == "info" else 0.0)
    model, optimizer = build_model(config, SHAPE), build_optimizer(config)
    state = init_state(model, optimizer, jax.random.key(0))
    batch, parts = images(16), (model, build_objective(config, 1, 500), optimizer)
    _, expected = jax.jit(make_train_step(*parts))(state, batch, jax.random.key(1))
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",), axis_types=(AxisType.Auto,))
    here, split = PartitionSpec(), PartitionSpec("data")
    step = make_train_step(*parts, axis_name="data")
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(here, split, here), out_specs=here, check_vma=False)
    _, got = jax.jit(mapped)(state, batch, jax.random.key(1))
    assert expected.keys() == got.keys() >= {"loss", "tc" if objective == "beta-tc" else "mmd"}
    for term, value in expected.items():
        np.testing.assert_allclose(got[term], value, rtol=1e-4, atol=1e-6)


# --- Rates ---------------------------------------------------------------------------------------------------


def test_stages_are_those_of_the_paper() -> None:
    fraction = PRESETS["iwae"].parts.optimizer.rate_schedule(3280, steps_per_epoch=3000)
    first = 0
    for stage in range(8):
        for step in (first, first + 3**stage * 3000 - 1):
            assert float(fraction(jnp.int32(step))) == pytest.approx(10 ** (-stage / 7), rel=1e-5)
        first += 3**stage * 3000
    assert first == 3280 * 3000


def test_cosine_and_warmup() -> None:
    config = config_of("elbo", schedule="cosine", epochs=10, warmup_epochs=1.0)
    fraction = config.parts.optimizer.rate_schedule(10, steps_per_epoch=10)
    got = [float(fraction(jnp.int32(step))) for step in (0, 4, 9, 10, 55, 100)]
    np.testing.assert_allclose(got, [0.1, 0.5, 1, 1, 0.5, 0], atol=1e-6)


def test_decay_and_clipping_are_optaxs() -> None:
    rng = np.random.default_rng(5)
    config = config_of("elbo", weight_decay=0.1, clip_norm=0.5, learning_rate=1e-2)
    params = {"a": jnp.float32(rng.normal(size=(3, 4)))}
    grads = [{"a": jnp.float32(rng.normal(size=(3, 4)) * scale)} for scale in (0.01, 10, 1)]
    expected, ours = params, params
    reference = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2, weight_decay=0.1))
    states = [reference.init(params), build_optimizer(config).init(params)]
    for grad in grads:
        with jax.numpy_dtype_promotion("standard"):
            updates, states[0] = reference.update(grad, states[0], expected)
        expected = optax.apply_updates(expected, updates)
        updates, states[1] = build_optimizer(config).update(grad, states[1], ours)
        ours = optax.apply_updates(ours, updates)
    np.testing.assert_allclose(ours["a"], expected["a"], rtol=2e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head": "relu"}, "--objective elbo needs --head linear, logvar or exp"),
        ({"objective": "beta-tc", "samples": 2}, "--samples 2 .*--objective elbo, iwae or dreg"),
        (
            {"objective": "dreg", "architecture": "two-layer", "hidden": (8, 6)},
            "--architecture two-layer needs --objective elbo or iwae",
        ),
        ({"architecture": "two-layer", "hidden": (3,)}, "needs two --hidden widths"),
        ({"mmd_weight": 1.0}, "--mmd-weight 1 .*--objective info"),
        ({"corruption": 0.5}, "--corruption 0.5 .*--objective mse"),
        ({"objective": "notes-elbo", "beta": 2.0}, "--beta 2 .*--objective elbo, iwae"),
        ({"likelihood": "logistic", "inputs": "dynamic"}, "--likelihood logistic needs --inputs grey"),
        ({"kl_cycles": 3}, "--kl-cycles 3 .*--kl-warmup-epochs"),
        ({"dequantize": True}, "--dequantize needs a gaussian --likelihood"),
        ({"dequantize": True, "likelihood": "logistic"}, "--dequantize needs a gaussian --likelihood"),
        ({"dequantize": True, "likelihood": "gaussian", "inputs": "static"}, "--dequantize .* needs --inputs grey"),
        ({"dequantize": True, "objective": "notes-elbo"}, "--dequantize needs"),
        ({"free_bits": -1.0}, "--free-bits must be finite and not negative"),
        ({"adam_b1": 1.0}, r"--adam-b1 must be in \[0, 1\)"),
        ({"likelihood_std": 0.0}, "--likelihood-std must be positive"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        dataclasses.replace(SMALL, **changes)
