"""The optimisers: rates, decay and clipping; the average of the weights, and runs evaluated with it."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import train
from small import config_of

from jaxvae import config_file, load
from jaxvae.config import PRESETS
from jaxvae.errors import InputError
from jaxvae.optimizer import AverageState, build_optimizer, evaluated, with_average

pytestmark = pytest.mark.unoptimized


def test_stages_match_the_paper() -> None:
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


def test_decay_and_clipping_match_optax() -> None:
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


def test_the_average_matches_numpy() -> None:
    rng = np.random.default_rng(0)
    params = {"w": jnp.float32(rng.normal(size=3))}
    optimizer = with_average(optax.sgd(0.1), 0.9)
    state = optimizer.init(params)
    average, weights = np.float64(params["w"]), np.float64(params["w"])
    for t in range(200):
        gradient = rng.normal(size=3)
        updates, state = optimizer.update({"w": jnp.float32(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        weights = weights - 0.1 * gradient
        decay = min(0.9, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * weights
    np.testing.assert_allclose(params["w"], weights, rtol=1e-4)
    np.testing.assert_allclose(evaluated(params, state)["w"], average, rtol=1e-4)


def test_an_update_with_too_large_a_gradient_is_skipped() -> None:
    """It is as if that step had not been; a gradient that is not finite is skipped, too."""
    optimizer = build_optimizer(dataclasses.replace(PRESETS["vae"], skip_norm=5.0))
    plain = build_optimizer(PRESETS["vae"])
    params = ours = theirs = {"w": jnp.arange(2.0), "b": jnp.ones(1)}
    state, other = optimizer.init(params), plain.init(params)
    for gradient in ([3.0, -4.0, 0.0], [3.0, -4.0, 0.1], [1.0, 1.0, 1.0], [float("nan"), 0.0, 0.0], [0.0, 2.0, 0.0]):
        grads = {"w": jnp.float32(gradient[:2]), "b": jnp.float32(gradient[2:])}
        updates, state = optimizer.update(grads, state, ours)
        ours = optax.apply_updates(ours, updates)
        if np.linalg.norm(gradient) <= 5:
            updates, other = plain.update(grads, other, theirs)
            theirs = optax.apply_updates(theirs, updates)
        jax.tree.map(np.testing.assert_array_equal, (ours, state), (theirs, other))
    assert int(state[0].count) == 3


@pytest.mark.long
def test_a_step_that_may_be_skipped_compiles_to_so_much_for_each_parameter() -> None:
    """XLA may copy cheap operations into every update that needs them; the norm of all gradients must not be one."""
    optimizer = build_optimizer(dataclasses.replace(PRESETS["vae"], skip_norm=5.0))

    def instructions(leaves: int) -> int:
        params = {f"{number}": jnp.ones((3, number + 2)) for number in range(leaves)}
        state = optimizer.init(params)
        return jax.jit(optimizer.update).lower(params, state, params).compile().as_text().count(" = ")

    assert instructions(60) < 2.5 * instructions(30)


def test_averaging_does_not_change_the_updates() -> None:
    config = dataclasses.replace(PRESETS["vae"], clip_norm=1.0)
    averaged = build_optimizer(dataclasses.replace(config, ema=0.99))
    plain = build_optimizer(config)
    params = {"w": jnp.arange(3.0)}
    grads = {"w": jnp.array([3.0, -1.0, 2.0])}
    ours, _ = averaged.update(grads, averaged.init(params), params)
    theirs, _ = plain.update(grads, plain.init(params), params)
    np.testing.assert_array_equal(ours["w"], theirs["w"])
    assert evaluated(params, plain.init(params)) is params


@pytest.mark.parametrize("decay", ["-0.1", "1", "nan"])
def test_a_decay_out_of_range_is_refused(decay: str) -> None:
    with pytest.raises(InputError, match="--ema"):
        dataclasses.replace(PRESETS["vae"], ema=float(decay))


@pytest.mark.long
def test_a_run_evaluates_and_exports_the_average(image_file: Path, tmp_path: Path) -> None:
    """The reported test loss is that of the average, which differs from the last weights."""
    args = ["--preset", "notes-ae", "--dataset", str(image_file), "--hidden", "8", "--latent-size", "3"]
    args += ["--batch-size", "16", "--epochs", "3", "--learning-rate", "0.01"]
    assert train(*args, "--ema", "0.5", "--run-dir", str(tmp_path / "run")) == 0
    run = load(tmp_path / "run")
    from jaxvae.fitting import result_of

    state = result_of(tmp_path / "run").state
    assert isinstance(state.opt_state, AverageState)
    jax.tree.map(np.testing.assert_array_equal, run.variables["params"], state.opt_state.average["params"])
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), run.variables["params"], state.params["params"])
    assert max(jax.tree.leaves(moved)) > 1e-4
    images = np.load(image_file)["test"]
    error = np.square(run.reconstruct(images / 255.0) - images / 255.0).mean()
    lines = result_of(tmp_path / "run").metrics["test"]["loss"]
    assert lines[-1] == pytest.approx(error, rel=1e-4)
    assert config_file.load(tmp_path / "run" / "config.json").ema == 0.5
