"""Bounds, estimators and schedules: closed forms, NumPy in float64, statistics of many draws."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec
from numpy.typing import NDArray
from scipy import stats

from jaxvae import variational
from jaxvae.config import PRESETS, Config
from jaxvae.errors import InputError
from jaxvae.keys import example_keys
from jaxvae.models import Pixels, build_model, reconstruct
from jaxvae.objectives import Context, corrupt, discretized_logistic_nll, gaussian_kl, gaussian_nll
from jaxvae.train_step import build_optimizer, init_state, make_train_step, rate_schedule
from jaxvae.variational import build_objective

pytestmark = pytest.mark.unoptimized

SHAPE = (4, 3, 1)
RNG = np.random.default_rng(5)
SMALL = dataclasses.replace(PRESETS["vae"], hidden=(8,), latent_size=3, batch_size=16)


def config_of(objective: str, **changes: Any) -> Config:
    return dataclasses.replace(SMALL, objective=objective, **changes)  # type: ignore[arg-type]


def model_and_params(config: Config, scale: float = 1.0) -> tuple[Any, Any]:
    model = build_model(config, SHAPE)
    params = init_state(model, build_optimizer(config), jax.random.key(1)).params
    return model, jax.tree.map(lambda a: scale * a, params)


def images(count: int) -> jax.Array:
    return jnp.float32(RNG.uniform(size=(count, *SHAPE)))


def keys_of(seed: int, count: int) -> jax.Array:
    return example_keys(jax.random.key(seed), 0, count)


# --- Likelihoods ---------------------------------------------------------------------------------------------


def test_gaussian_nll_is_scipys() -> None:
    mean, x = RNG.normal(size=(2, 5, *SHAPE))
    log_std = RNG.uniform(-3, 1, (5, *SHAPE))
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


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "gaussian-global", "gaussian-pixel", "logistic"])
def test_the_likelihood_of_many_draws_is_that_of_each(likelihood: str) -> None:
    config = config_of("elbo", likelihood=likelihood)
    model, params = model_and_params(config)
    x = jnp.round(255 * images(5)) / 255
    draws = model.apply(params, x, keys_of(0, 5), 4, method="draw")
    nll = variational.pixel_nll(draws.pixels, x, config)
    assert nll.shape == (5, 4)
    for s in range(4):
        one = model.apply(params, draws.latent[:, s], method="pixels")
        np.testing.assert_allclose(nll[:, s], variational.pixel_nll(one, x, config), rtol=1e-5)
        np.testing.assert_allclose(draws.log_prior[:, s], stats.norm.logpdf(draws.latent[:, s]).sum(-1), rtol=1e-5)
        log_q = stats.norm.logpdf(draws.latent[:, s], draws.mean, draws.std).sum(-1)
        np.testing.assert_allclose(draws.log_posterior[:, s], log_q, rtol=1e-4, atol=1e-5)
    shown = reconstruct(model, params, x, jax.random.key(0))
    assert shown.shape == x.shape and float(shown.min()) >= 0 and float(shown.max()) <= 1


def test_a_learned_variance_learns_the_variance() -> None:
    """Constant images but for noise of a known standard deviation."""
    config = config_of("elbo", likelihood="gaussian-global", learning_rate=3e-3)
    model, optimizer = build_model(config, SHAPE), build_optimizer(config)
    state = init_state(model, optimizer, jax.random.key(0))
    noisy = jnp.float32(0.5 + 0.05 * RNG.normal(size=(1500, 64, *SHAPE)))
    step = make_train_step(model, build_objective(config), optimizer)
    state, _ = jax.jit(lambda s: jax.lax.scan(lambda s, b: step(s, b, jax.random.key(1)), s, noisy))(state)
    assert math.exp(float(state.params["params"]["log_scale"])) == pytest.approx(0.05, rel=0.1)


def test_binarized_pixels_are_bernoulli_keyed_by_example() -> None:
    x = jnp.broadcast_to(jnp.linspace(0, 1, 12).reshape(SHAPE), (20_000, *SHAPE))
    drawn = variational.binarize(x, keys_of(0, 20_000))
    assert set(np.unique(drawn)) == {0.0, 1.0}
    error = np.sqrt(np.asarray(x[0] * (1 - x[0])) / 20_000)
    assert (np.abs(np.asarray(drawn.mean(axis=0) - x[0])) <= 4 * error + 1e-7).all()
    np.testing.assert_array_equal(drawn[5:9], variational.binarize(x[5:9], keys_of(0, 20_000)[5:9]))
    assert not np.array_equal(drawn[5:9], variational.binarize(x[5:9], keys_of(1, 20_000)[5:9]))


def test_every_step_draws_other_pixels(images: NDArray[np.uint8]) -> None:
    config = dataclasses.replace(SMALL, learning_rate=1e-30)
    model, optimizer = build_model(config, (6, 5, 1)), build_optimizer(config)
    state = init_state(model, optimizer, jax.random.key(0))
    step = jax.jit(make_train_step(model, build_objective(config), optimizer, binarized=True))
    losses = []
    for _ in range(3):
        state, terms = step(state, jnp.asarray(images[:16]), jax.random.key(0))
        losses.append(float(terms["recon"]))
    assert len(set(losses)) == 3


def test_corruption_hides_pixels_from_the_model_alone() -> None:
    x = jnp.full((5000, *SHAPE), 0.5)
    seen = np.asarray(corrupt(x, keys_of(0, 5000), 0.3))
    assert set(np.unique(seen)) == {0.0, 0.5}
    assert (seen == 0).mean() == pytest.approx(0.3, abs=4 * (0.21 / seen.size) ** 0.5)
    config = dataclasses.replace(PRESETS["notes-ae"], hidden=(8,), latent_size=3, corruption=0.3)
    model, params = model_and_params(config)
    objective, keys = build_objective(config), keys_of(0, 6)
    x = images(6)
    output = model.apply(params, corrupt(x, keys, 0.3), keys)
    expected = np.square(np.asarray(output.x_hat) - np.asarray(x)).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(objective.of(model, params, x, keys, Context(jnp.int32(0)))["loss"], expected, rtol=1e-5)
    clean = objective.of(model, params, x, keys, Context())["loss"]  # Evaluation sees all.
    np.testing.assert_allclose(clean, objective.losses(model.apply(params, x, keys), x)["loss"], rtol=1e-6)


# --- Bounds --------------------------------------------------------------------------------------------------


def many(config: Config, params: Any, model: Any, x: jax.Array, repeats: int) -> dict[str, NDArray[np.float64]]:
    """The objective's terms for the images, with `repeats` independent sets of keys: [repeats, B] each."""
    objective = build_objective(config)
    keys = jax.vmap(lambda k: example_keys(k, 0, x.shape[0]))(jax.random.split(jax.random.key(3), repeats))
    terms = jax.jit(jax.vmap(lambda k: objective.of(model, params, x, k, Context())))(keys)
    return {name: np.asarray(values, np.float64) for name, values in terms.items()}


def test_elbo_is_recon_plus_the_closed_form_kl() -> None:
    config = config_of("elbo")
    model, params = model_and_params(config)
    x, keys = images(6), keys_of(0, 6)
    terms = build_objective(config).of(model, params, x, keys, Context())
    mean, std = model.apply(params, x, method="encode")
    np.testing.assert_allclose(terms["kl"], gaussian_kl(mean, std), rtol=1e-5)
    output = model.apply(params, x, keys)  # The same latent, by the other way to draw it.
    p = np.asarray(output.x_hat, np.float64)
    recon = -(np.asarray(x) * np.log(p) + (1 - np.asarray(x)) * np.log1p(-p)).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(terms["recon"], recon, rtol=1e-5)
    np.testing.assert_allclose(terms["loss"], recon + np.asarray(terms["kl"]), rtol=1e-5)


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
    log_w = RNG.normal(size=(6, 9)) * 5 + np.array([[500], [-500], [0], [0], [0], [0]])
    peak = log_w.max(axis=1, keepdims=True)
    expected = np.log(np.exp(log_w - peak).mean(axis=1)) + peak[:, 0]
    np.testing.assert_allclose(variational.iwae_bound(jnp.float32(log_w)), expected, rtol=1e-5)


def gradients(config: Config, params: Any, model: Any, x: jax.Array, repeats: int) -> Any:
    objective = build_objective(config)
    keys = jax.vmap(lambda k: example_keys(k, 0, x.shape[0]))(jax.random.split(jax.random.key(4), repeats))

    def gradient(keys: jax.Array) -> Any:
        return jax.grad(lambda p: objective.of(model, p, x, keys, Context(jnp.int32(0)))["loss"].mean())(params)

    return jax.jit(lambda keys: jax.lax.map(gradient, keys, batch_size=200))(keys)


def test_dreg_has_iwaes_value_and_expected_gradient_and_less_variance() -> None:
    repeats = 6000
    model, params = model_and_params(config_of("dreg"), scale=2.0)
    x = images(3)
    iwae, dreg = (config_of(name, samples=8) for name in ("iwae", "dreg"))
    a, b = many(iwae, params, model, x, 50), many(dreg, params, model, x, 50)
    for term in ("loss", "recon", "kl"):
        np.testing.assert_allclose(a[term], b[term], rtol=1e-4)
    ours, theirs = (gradients(c, params, model, x, repeats)["params"] for c in (dreg, iwae))
    # The decoder's gradient is the same, draw by draw.
    jax.tree.map(
        lambda p, q: np.testing.assert_allclose(p, q, rtol=2e-3, atol=2e-4), ours["decoder"], theirs["decoder"]
    )
    # The encoder's is another estimate of the same.
    flat = [
        np.concatenate([np.asarray(leaf, np.float64).reshape(repeats, -1) for leaf in jax.tree.leaves(g["encoder"])], 1)
        for g in (ours, theirs)
    ]
    error = np.sqrt((flat[0].var(0) + flat[1].var(0)) / repeats)
    moving = error > 1e-7
    z = (flat[0].mean(0) - flat[1].mean(0))[moving] / error[moving]
    assert np.abs(z).max() < 5.5 and z.std() < 1.5
    assert flat[0].var(0).sum() < 0.8 * flat[1].var(0).sum()


def test_two_layers_weights_are_the_densities_written_out() -> None:
    config = config_of("iwae", architecture="two-layer", hidden=(8, 6), samples=3)
    model, params = model_and_params(config)
    x, keys = images(5), keys_of(0, 5)
    draws = model.apply(params, x, keys, 3, method="draw")
    noise = jax.vmap(lambda k: jax.random.normal(k, (3, 9)))(keys)
    mean, std = model.apply(params, x, method="encode")
    h1 = mean[:, None] + std[:, None] * noise[..., :6]
    np.testing.assert_allclose(draws.latent, h1, rtol=1e-6)
    upper = model.apply(params, h1, method=lambda m, h: m.encoder_2(h))
    mean_2, raw = np.split(np.asarray(upper), 2, axis=-1)
    std_2 = np.exp(5 * np.tanh(raw / 10))
    h2 = mean_2 + std_2 * np.asarray(noise[..., 6:])
    lower_mean, lower_std = model.apply(params, jnp.asarray(h2), method="lower")
    prior = stats.norm.logpdf(h2).sum(-1) + stats.norm.logpdf(h1, lower_mean, lower_std).sum(-1)
    posterior = stats.norm.logpdf(h1, mean[:, None], std[:, None]).sum(-1) + stats.norm.logpdf(h2, mean_2, std_2).sum(
        -1
    )
    np.testing.assert_allclose(draws.log_prior, prior, rtol=1e-4)
    np.testing.assert_allclose(draws.log_posterior, posterior, rtol=1e-4)


# --- Weights and terms of the ELBO's kin -----------------------------------------------------------------------


def test_beta_and_free_bits_written_out() -> None:
    model, params = model_and_params(config_of("elbo"), scale=2.0)
    x, keys = images(6), keys_of(0, 6)
    plain = build_objective(config_of("elbo")).of(model, params, x, keys, Context())
    weighed = build_objective(config_of("elbo", beta=4.0)).of(model, params, x, keys, Context())
    np.testing.assert_allclose(weighed["loss"], plain["recon"] + 4 * plain["kl"], rtol=1e-6)
    free = build_objective(config_of("elbo", free_bits=0.2)).of(model, params, x, keys, Context())
    mean, std = (np.asarray(a, np.float64) for a in model.apply(params, x, method="encode"))
    per_dimension = 0.5 * (mean**2 + std**2 - 1) - np.log(std)
    assert (per_dimension < 0.2).any() and (per_dimension > 0.2).any()
    cost = np.maximum(per_dimension, 0.2).sum(-1)
    np.testing.assert_allclose(free["loss"], np.asarray(plain["recon"]) + cost, rtol=1e-5)
    np.testing.assert_allclose(free["kl"], per_dimension.sum(-1), rtol=1e-4)


def test_kl_warmup_is_linear_and_repeats_and_is_over_in_evaluation() -> None:
    def weights(**changes: Any) -> list[float]:
        objective: Any = build_objective(config_of("elbo", beta=2.0, epochs=8, **changes), steps_per_epoch=10)
        return [float(objective.kl_weight(jnp.int32(step))) for step in (0, 5, 10, 20, 39, 40, 45, 79)]

    assert weights() == [2.0] * 8
    np.testing.assert_allclose(weights(kl_warmup_epochs=2.0), [0, 0.5, 1, 2, 2, 2, 2, 2])
    np.testing.assert_allclose(weights(kl_warmup_epochs=2.0, kl_cycles=2), [0, 0.5, 1, 2, 2, 0, 0.5, 2])
    config = config_of("elbo", beta=2.0, kl_warmup_epochs=2.0)
    model, params = model_and_params(config)
    x, keys, objective = images(3), keys_of(0, 3), build_objective(config, steps_per_epoch=10)
    first = objective.of(model, params, x, keys, Context(jnp.int32(0)))
    np.testing.assert_allclose(first["loss"], first["recon"], rtol=1e-6)
    evaluated = objective.of(model, params, x, keys, Context())
    np.testing.assert_allclose(evaluated["loss"], evaluated["recon"] + 2 * evaluated["kl"], rtol=1e-6)


def test_mmd_is_the_double_sum_and_tells_samples_apart() -> None:
    a, b = RNG.normal(size=(2, 7, 3))

    def kernel(x: Any, y: Any) -> float:
        return math.exp(-((x - y) ** 2).sum() / 3)

    pairs = [(i, j) for i in range(7) for j in range(7)]
    within = sum(kernel(a[i], a[j]) + kernel(b[i], b[j]) for i, j in pairs if i != j) / 42
    expected = within - 2 * sum(kernel(a[i], b[j]) for i, j in pairs) / 49
    assert float(variational.mmd(jnp.float32(a), jnp.float32(b))) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    same, other = RNG.normal(size=(2, 800, 3)), RNG.normal(size=(800, 3)) + 1
    assert abs(float(variational.mmd(*jnp.float32(same)))) < 0.01
    assert float(variational.mmd(jnp.float32(same[0]), jnp.float32(other))) > 0.1


def test_total_correlation_is_minibatch_weighted_sampling_written_out() -> None:
    z, mean = RNG.normal(size=(2, 6, 3))
    std = RNG.uniform(0.3, 1, (6, 3))
    log_q = np.array([[stats.norm.logpdf(z[i], mean[j], std[j]) for j in range(6)] for i in range(6)])
    joint = np.log(np.exp(log_q.sum(-1)).sum(1) / (6 * 100))
    product = np.log(np.exp(log_q).sum(1) / (6 * 100)).sum(-1)
    got = variational.total_correlation(*map(jnp.float32, (z, mean, std)), 100)
    np.testing.assert_allclose(got, joint - product, rtol=1e-4)


def test_total_correlation_sees_correlation() -> None:
    """As an estimate, it is lower by log(B N)'s share for a latent, and its differences are what it is used for."""
    count = 400
    free = RNG.normal(size=(count, 2))
    tied = np.repeat(free[:, :1], 2, axis=1)
    std = np.full((count, 2), 0.3)
    noise = 0.3 * RNG.normal(size=(count, 2))
    values = [
        float(variational.total_correlation(*map(jnp.float32, (m + noise, m, std)), count).mean()) for m in (free, tied)
    ]
    # Of two Gaussians with correlation 1 / 1.09: -log(1 - rho^2) / 2.
    assert values[1] - values[0] == pytest.approx(-0.5 * math.log(1 - (1 / 1.09) ** 2), abs=0.15)


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


def test_beta_weighs_the_total_correlation_alone() -> None:
    model, params = model_and_params(config_of("beta-tc"))
    x, keys, context = images(8), keys_of(0, 8), Context(jnp.int32(0))
    terms = build_objective(config_of("beta-tc", beta=5.0), 1, 100).of(model, params, x, keys, context)
    np.testing.assert_allclose(terms["loss"], terms["recon"] + terms["kl"] + 4 * terms["tc"], rtol=1e-5)
    assert "tc" not in build_objective(config_of("beta-tc"), 1, 100).of(model, params, x, keys, Context())


# --- Rates ---------------------------------------------------------------------------------------------------


def test_stages_are_those_of_the_paper() -> None:
    fraction = rate_schedule(PRESETS["iwae"], steps_per_epoch=3000)
    first = 0
    for stage in range(8):
        for step in (first, first + 3**stage * 3000 - 1):
            assert float(fraction(jnp.int32(step))) == pytest.approx(10 ** (-stage / 7), rel=1e-5)
        first += 3**stage * 3000
    assert first == 3280 * 3000


def test_cosine_and_warmup() -> None:
    config = config_of("elbo", schedule="cosine", epochs=10, warmup_epochs=1.0)
    fraction = rate_schedule(config, steps_per_epoch=10)
    got = [float(fraction(jnp.int32(step))) for step in (0, 4, 9, 10, 55, 100)]
    np.testing.assert_allclose(got, [0.1, 0.5, 1, 1, 0.5, 0], atol=1e-6)


def test_decay_and_clipping_are_optaxs() -> None:
    config = config_of("elbo", weight_decay=0.1, clip_norm=0.5, learning_rate=1e-2)
    params = {"a": jnp.float32(RNG.normal(size=(3, 4)))}
    grads = [{"a": jnp.float32(RNG.normal(size=(3, 4)) * scale)} for scale in (0.01, 10, 1)]
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
        ({"objective": "beta-tc", "samples": 2}, "--samples needs --objective elbo, iwae or dreg"),
        ({"objective": "dreg", "architecture": "two-layer"}, "--architecture two-layer needs --objective elbo or iwae"),
        ({"architecture": "two-layer", "hidden": (3,)}, "needs two --hidden widths"),
        ({"mmd_weight": 1.0}, "--mmd-weight needs --objective info"),
        ({"corruption": 0.5}, "--corruption needs --objective mse"),
        ({"objective": "notes-elbo", "beta": 2.0}, "--beta 2.0 needs an objective in nats"),
        ({"likelihood": "logistic", "inputs": "dynamic"}, "--likelihood logistic needs --inputs grey"),
        ({"kl_cycles": 3}, "--kl-cycles needs --kl-warmup-epochs"),
        ({"free_bits": -1.0}, "--free-bits must be finite and not negative"),
        ({"adam_b1": 1.0}, r"--adam-b1 must be in \[0, 1\)"),
        ({"likelihood_std": 0.0}, "--likelihood-std must be positive"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        dataclasses.replace(SMALL, **changes)


def test_a_gaussian_location_is_an_intensity() -> None:
    config = config_of("elbo", likelihood="gaussian", likelihood_std=0.2)
    x = images(2)
    pixels = Pixels(x + 0.1, None)
    expected = -stats.norm.logpdf(np.asarray(x), np.asarray(x) + 0.1, 0.2).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(variational.pixel_nll(pixels, x, config), expected, rtol=1e-4)
