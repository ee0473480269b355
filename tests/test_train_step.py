import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec
from numpy.typing import NDArray
from runs import SIZED

from jaxvae.config import PRESETS
from jaxvae.keys import example_keys, purpose_key
from jaxvae.models.autoencoder import AutoEncoder
from jaxvae.models.build import build_model
from jaxvae.models.vae import VAE
from jaxvae.objectives.base import Context
from jaxvae.objectives.build import OBJECTIVES, build_objective
from jaxvae.optimizer import build_optimizer
from jaxvae.train.evaluation import PIXELS_AT_ONCE, evaluation_size, joined, make_evaluate
from jaxvae.train.step import TrainState, epoch_order, init_state, intensities, make_run_steps, make_train_step

pytestmark = pytest.mark.unoptimized

SHAPE = (6, 5, 1)
NOISE = purpose_key(0, "train-noise")


def parts(preset: str) -> tuple[AutoEncoder | VAE, Any, Any, TrainState]:
    size = {} if preset in SIZED else {"latent_size": 4}
    config = dataclasses.replace(PRESETS[preset], hidden=(16, 8), **size)
    model, optimizer = build_model(config, SHAPE), build_optimizer(config, steps_per_epoch=3)
    state = jax.jit(lambda key: init_state(model, optimizer, key))(purpose_key(0, "init"))
    return model, build_objective(config), optimizer, state


def assert_trees_equal(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_trees_close(a: Any, b: Any, rtol: float, atol: float) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def test_intensities() -> None:
    every = jnp.arange(256, dtype=jnp.uint8)
    # To one rounding: XLA may multiply by the reciprocal.
    np.testing.assert_allclose(intensities(every), np.arange(256) / 255, rtol=1.2e-7)
    assert intensities(every).dtype == jnp.float32
    floats = jnp.array([0.0, 0.3, 1.0])
    assert intensities(floats) is floats
    with pytest.raises(TypeError, match="uint8, or floats in .0, 1., not int32"):
        intensities(jnp.arange(3))


@pytest.mark.parametrize("preset", PRESETS)
def test_step_is_the_gradient_step_written_out(preset: str, images: NDArray[np.uint8]) -> None:
    model, objective, optimizer, state = parts(preset)
    batch = jnp.asarray(images[:8])
    new, metrics = jax.jit(make_train_step(model, objective, optimizer))(state, batch, NOISE)

    x = jnp.asarray(images[:8] / np.float32(255))
    keys = example_keys(jax.random.fold_in(NOISE, 0), 0, 8)

    @jax.jit
    def terms(params: Any) -> Any:
        return objective.of(model, params, {"image": x}, keys, Context(jnp.int32(0)), state.collections)[0]

    expected = terms(state.params)
    assert {"loss"} <= metrics.keys() <= expected.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(value, np.asarray(expected[name], np.float64).mean(), rtol=1e-5)
    grads = jax.grad(lambda p: terms(p)["loss"].mean())(state.params)
    updates, _ = optimizer.update(grads, state.opt_state)
    assert_trees_close(new.params, optax.apply_updates(state.params, updates), rtol=1e-5, atol=1e-6)
    assert int(new.step) == 1


def test_each_step_and_each_example_has_noise_of_its_own(images: NDArray[np.uint8]) -> None:
    model, objective, optimizer, state = parts("notes-vae")
    train_step = jax.jit(make_train_step(model, objective, optimizer))
    batch = jnp.asarray(np.repeat(images[:1], 8, axis=0))
    first, metrics = train_step(state, batch, NOISE)
    again, same = train_step(state, batch, NOISE)
    _, later = train_step(state._replace(step=state.step + 1), batch, NOISE)
    assert_trees_equal((first, metrics), (again, same))
    assert float(metrics["recon"]) != float(later["recon"])
    alone = train_step(state, batch[:1], NOISE)[1]["recon"]
    assert float(alone) != float(metrics["recon"])  # The seven copies of the image drew other latents.


@pytest.mark.parametrize("axis_name", [None, "data"])
@pytest.mark.parametrize("objective", [name for name, kind in OBJECTIVES.items() if kind.separate])
def test_a_batch_in_parts_has_the_same_gradients(
    objective: str, axis_name: str | None, images: NDArray[np.uint8]
) -> None:
    preset = {"mse": "notes-ae", "fsq": "fsq"}.get(objective, "vae")
    size = {} if preset in SIZED else {"latent_size": 3}
    config = dataclasses.replace(PRESETS[preset], objective=objective, architecture="conv", hidden=(4, 8), **size)
    model, optimizer = build_model(config, SHAPE), build_optimizer(config)
    loss = build_objective(config)
    state = init_state(model, optimizer, jax.random.key(1))
    batch = jnp.asarray(images[:12])
    expected, metrics = jax.jit(make_train_step(model, loss, optimizer))(state, batch, NOISE)
    step = make_train_step(model, loss, optimizer, axis_name, part=4)
    if axis_name is not None:
        mesh = Mesh(np.array(jax.devices()[:1]), (axis_name,))
        specs: Any = {"in_specs": (PartitionSpec(), PartitionSpec(axis_name), PartitionSpec())}
        step = jax.shard_map(step, mesh=mesh, out_specs=PartitionSpec(), check_vma=True, **specs)
    new, got = jax.jit(step)(state, batch, NOISE)
    # Adam's first moments are a tenth of the gradient; its update hides a factor.
    moments = [optax.tree_utils.tree_get(each.opt_state, "mu") for each in (new, expected)]
    assert_trees_close(*moments, rtol=1e-4, atol=1e-5)
    assert_trees_close(got, metrics, rtol=1e-5, atol=1e-6)


def test_an_objective_that_gathers_cannot_be_computed_in_parts(images: NDArray[np.uint8]) -> None:
    config = dataclasses.replace(PRESETS["vae"], objective="beta-tc")
    model, optimizer = build_model(config, SHAPE), build_optimizer(config)
    state = init_state(model, optimizer, jax.random.key(1))
    step = make_train_step(model, build_objective(config, 1, 12), optimizer, part=4)
    with pytest.raises(TypeError, match="separate"):
        step(state, jnp.asarray(images[:12]), NOISE)


@pytest.mark.parametrize(("way", "devices"), [("pmap", 8), ("shard_map", 2), ("shard_map, varying tracked", 4)])
@pytest.mark.parametrize("preset", PRESETS)
def test_with_axis_name_many_devices_compute_what_one_does(
    preset: str, way: str, devices: int, images: NDArray[np.uint8]
) -> None:
    model, objective, optimizer, state = parts(preset)
    batch = jnp.asarray(images[:32])
    expected, metrics = jax.jit(make_train_step(model, objective, optimizer))(state, batch, NOISE)

    step = make_train_step(model, objective, optimizer, axis_name="data")
    new: Any
    got: Any
    if way == "pmap":
        shares = batch.reshape(devices, -1, *SHAPE)
        run = jax.pmap(step, axis_name="data", in_axes=(None, 0, None), devices=jax.devices()[:devices])
        new, got = run(state, shares, NOISE)
        for leaf in jax.tree.leaves((new, got)):  # All devices end with the same state.
            np.testing.assert_array_equal(leaf, np.repeat(leaf[:1], devices, axis=0))
        new, got = jax.tree.map(lambda a: a[0], (new, got))
    else:
        mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
        here, split = PartitionSpec(), PartitionSpec("data")
        specs = {"in_specs": (here, split, here), "out_specs": (here, here)}
        run = jax.shard_map(step, mesh=mesh, **specs, check_vma="tracked" in way)
        new, got = jax.jit(run)(state, batch, NOISE)
    assert_trees_close(got, metrics, rtol=1e-5, atol=0)
    # Adam's first step is lr * sign(g): where a gradient is 0 to rounding, its sign is not determined.
    assert_trees_close(new.opt_state[0].mu, expected.opt_state[0].mu, rtol=1e-4, atol=1e-6 if preset == "fsq" else 1e-8)


def run_steps(preset: str, steps_per_epoch: int, batch_size: int = 8, capacity: int | None = 12) -> Any:
    model, objective, optimizer, _ = parts(preset)
    step = make_train_step(model, objective, optimizer)
    run = make_run_steps(step, batch_size, steps_per_epoch, capacity)
    return jax.jit(run, donate_argnums=0, static_argnums=4 if capacity is None else None)


def order_of(epoch: int) -> jax.Array:
    return epoch_order(purpose_key(0, "shuffle"), epoch, 96)


def test_an_epoch_takes_every_image_once_in_a_new_order(images: NDArray[np.uint8]) -> None:
    seen: list[NDArray[np.uint8]] = []

    def record(state: TrainState, batch: Any, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        jax.debug.callback(lambda b: seen.append(np.asarray(b)), batch["image"], ordered=True)
        return state._replace(step=state.step + 1), {"loss": jnp.zeros(())}

    state = TrainState(jnp.zeros((), jnp.int32), {}, ())
    run = jax.jit(make_run_steps(record, batch_size=8, steps_per_epoch=12, capacity=7))
    for epoch in range(2):
        for count in (5, 7):
            state, metrics = run(state, jnp.asarray(images), order_of(epoch), NOISE, count)
            assert metrics["loss"].shape == (7,)
    jax.effects_barrier()
    epochs = np.concatenate(seen).reshape(2, 96, -1)
    everything = sorted(map(bytes, images.reshape(96, -1)))
    assert [sorted(map(bytes, epoch)) for epoch in epochs] == [everything, everything]
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0], images.reshape(96, -1))


@pytest.mark.parametrize("capacity", [None, 6])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_call_equals_its_steps_one_by_one(preset: str, capacity: int | None, images: NDArray[np.uint8]) -> None:
    model, objective, optimizer, state = parts(preset)
    step = jax.jit(make_train_step(model, objective, optimizer))
    on_device = jnp.asarray(images)
    one_by_one, losses = state, []
    for epoch in range(2):
        order = jax.random.permutation(jax.random.fold_in(purpose_key(0, "shuffle"), epoch), 96)
        for i in range(6):
            one_by_one, metrics = step(one_by_one, on_device[order[i * 16 : (i + 1) * 16]], NOISE)
            losses.append(metrics["loss"])
    run = run_steps(preset, steps_per_epoch=6, batch_size=16, capacity=capacity)
    together = []
    for epoch in range(2):
        state, metrics = run(state, on_device, order_of(epoch), NOISE, 6)
        together.append(metrics["loss"])
    np.testing.assert_allclose(np.concatenate(together), np.stack(losses), rtol=1e-4)
    assert int(state.step) == int(one_by_one.step) == 12


@pytest.mark.parametrize("preset", PRESETS)
def test_how_an_epoch_is_cut_into_calls_does_not_change_a_bit(preset: str, images: NDArray[np.uint8]) -> None:
    run, results = run_steps(preset, 12), []
    for cuts in ([12], [1, 2, 9], [4, 4, 4], [11, 1]):
        state, losses = parts(preset)[-1], []
        for epoch in range(2):
            for count in cuts:
                state, metrics = run(state, jnp.asarray(images), order_of(epoch), NOISE, count)
                losses += np.asarray(metrics["loss"])[:count].tolist()
        results.append((jax.device_get(state), losses))
        assert len(losses) == 24
    for other in results[1:]:
        assert_trees_equal(results[0], other)


def test_a_run_traces_its_step_once(images: NDArray[np.uint8]) -> None:
    """Whatever the number of steps of its calls. (Twice: the first time only for the shapes of its values.)"""
    model, objective, optimizer, state = parts("notes-vae")
    step = make_train_step(model, objective, optimizer)
    traces = 0

    def counted(*args: Any) -> Any:
        nonlocal traces
        traces += 1
        return step(*args)

    run = jax.jit(make_run_steps(counted, 8, steps_per_epoch=12, capacity=12), donate_argnums=0)
    for count in (1, 5, 2, 3, 1):
        state, _ = run(state, jnp.asarray(images), order_of(0), NOISE, count)
    assert traces == 2


def test_vmap_over_seeds_is_each_seed_alone(images: NDArray[np.uint8]) -> None:
    model, objective, optimizer, _ = parts("notes-vae")
    train_step, batch = make_train_step(model, objective, optimizer), jnp.asarray(images[:8])

    def first_step(seed: jax.Array) -> Any:
        key = jax.random.key(seed)
        return train_step(init_state(model, optimizer, key), batch, key)

    together = jax.jit(jax.vmap(first_step))(jnp.arange(3))
    for i in range(3):
        alone = jax.jit(first_step)(i)
        assert_trees_close(jax.tree.map(lambda a: a[i], together[1]), alone[1], rtol=1e-5, atol=0)  # noqa: B023


def test_state_is_donated(images: NDArray[np.uint8]) -> None:
    state = parts("notes-vae")[-1]
    run_steps("notes-vae", 12)(state, jnp.asarray(images), order_of(0), NOISE, 4)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("preset", PRESETS)
def test_training_lowers_the_loss(preset: str, images: NDArray[np.uint8]) -> None:
    state, run = parts(preset)[-1], run_steps(preset, 12)
    losses = []
    for epoch in range(40):
        state, metrics = run(state, jnp.asarray(images), order_of(epoch), NOISE, 12)
        losses.append(float(metrics["loss"].mean()))
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [1, 7, 32, 1000])
def test_evaluate_takes_every_image_once_whatever_the_size(preset: str, size: int, images: NDArray[np.uint8]) -> None:
    model, objective, _, state = parts(preset)
    key, test = purpose_key(0, "test-noise"), jnp.asarray(images[:32])
    evaluate = jax.jit(make_evaluate(model, objective, size))
    got = joined([evaluate(state.variables, test, key, first) for first in range(0, 32, size)], 32)
    x = intensities(test)
    keys = example_keys(key, 0, 32)
    expected = jax.jit(lambda p: objective.of(model, p, {"image": x}, keys, Context())[0])(state.variables)
    assert got.keys() == expected.keys()
    for name, value in got.items():
        # A KL that is estimated from one latent may be near 0, as a difference of larger numbers.
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-5)


def test_init_state_is_a_function_of_its_key() -> None:
    model, _, optimizer, state = parts("vae")
    init = jax.jit(lambda key: init_state(model, optimizer, key))
    assert_trees_equal(state, init(purpose_key(0, "init")))
    other = init(purpose_key(1, "init"))
    kernels = [jax.tree.leaves(s.params)[1] for s in (state, other)]
    assert not np.array_equal(*kernels)


@pytest.mark.parametrize("objective", ["elbo", "iwae", "dreg"])
def test_evaluation_takes_no_more_memory_for_more_samples(objective: str) -> None:
    """Measured on compiled programs. (One image with all its samples is always taken at once.)"""
    few, many = (_evaluation_bytes(objective, samples) for samples in (1, 64))
    assert few > 4 * PIXELS_AT_ONCE  # `PIXELS_AT_ONCE` is what limits it.
    assert many < 1.5 * few


def _evaluation_bytes(objective: str, samples: int) -> int:
    config = dataclasses.replace(PRESETS["vae"], objective=objective, samples=samples, hidden=(8,), latent_size=2)
    model = build_model(config, (16, 16, 1))
    params = jax.eval_shape(lambda: init_state(model, build_optimizer(config), jax.random.key(0))).params
    images = jax.ShapeDtypeStruct((5000, 16, 16, 1), jnp.uint8)
    evaluate = jax.jit(make_evaluate(model, build_objective(config), evaluation_size((16, 16, 1), 5000, samples)))
    compiled = evaluate.lower(params, images, jax.eval_shape(lambda: jax.random.key(0)), 0).compile()
    return int(compiled.memory_analysis().temp_size_in_bytes)
