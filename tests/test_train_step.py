import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec
from numpy.typing import NDArray
from runs import SHALLOW

from jaxvae.config import PRESETS
from jaxvae.keys import example_keys, purpose_key
from jaxvae.models.autoencoder import AutoEncoder
from jaxvae.models.build import build_model
from jaxvae.models.vae import VAE
from jaxvae.objectives.base import Context
from jaxvae.objectives.build import OBJECTIVES, build_objective
from jaxvae.optimizer import build_optimizer
from jaxvae.train.evaluation import PIXELS_AT_ONCE, evaluation_size, joined, make_evaluate
from jaxvae.train.step import (
    TrainState,
    abstract_state,
    as_rows,
    epoch_order,
    init_state,
    intensities,
    make_run_steps,
    make_train_step,
    shaped,
)

pytestmark = pytest.mark.unoptimized

SHAPE = (6, 5, 1)
BATCH = 16  # Most tests take batches of this size, so that they share compiled programs.
STEPS = 6  # Of an epoch of 96 images.
NOISE = purpose_key(0, "train-noise")
# What does not depend on the loss is shown for a model without and one with a state besides its parameters.
STATELESS_AND_STATEFUL = ("notes-vae", "vq-vae")


@functools.cache
def _parts(preset: str) -> tuple[AutoEncoder | VAE, Any, Any, TrainState]:
    config = dataclasses.replace(PRESETS[preset], hidden=(16, 8), **SHALLOW.get(preset, {"latent_size": 4}))
    model, optimizer = build_model(config, SHAPE), build_optimizer(config, steps_per_epoch=3)
    state = jax.jit(lambda key: init_state(model, optimizer, key))(purpose_key(0, "init"))
    return model, build_objective(config), optimizer, jax.device_get(state)


def parts(preset: str) -> tuple[AutoEncoder | VAE, Any, Any, TrainState]:
    """A preset's model, objective, optimiser and first state, of which calls may take the arrays."""
    model, objective, optimizer, state = _parts(preset)
    return model, objective, optimizer, jax.tree.map(jnp.asarray, state)


@functools.cache
def train_step_of(preset: str) -> Any:
    return jax.jit(make_train_step(*_parts(preset)[:3]))


@functools.cache
def run_steps(preset: str, capacity: int | None) -> Any:
    """Calls of up to `capacity` steps of an epoch."""
    run = make_run_steps(make_train_step(*_parts(preset)[:3]), BATCH, STEPS, capacity)
    return jax.jit(run, donate_argnums=0, static_argnums=4 if capacity is None else None)


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


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_step_is_the_gradient_step_written_out(preset: str, images: NDArray[np.uint8]) -> None:
    model, objective, optimizer, state = parts(preset)
    new, metrics = train_step_of(preset)(state, jnp.asarray(images[:BATCH]), NOISE)

    @jax.jit
    def written_out(state: TrainState, x: jax.Array) -> Any:
        keys = example_keys(jax.random.fold_in(NOISE, 0), 0, BATCH)

        def mean_loss(params: Any) -> Any:
            context = Context(jnp.int32(0))
            terms = objective.of(model, params, {"image": x}, keys, context, state.collections)[0]
            return terms["loss"].mean(), terms

        grads, terms = jax.grad(mean_loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        return optax.apply_updates(state.params, updates), opt_state[0].mu, terms

    params, moments, expected = written_out(state, jnp.asarray(images[:BATCH] / np.float32(255)))
    assert {"loss"} <= metrics.keys() <= expected.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(value, np.asarray(expected[name], np.float64).mean(), rtol=1e-5)
    assert_trees_close(new.opt_state[0].mu, moments, rtol=1e-5, atol=1e-7)

    def assert_moved_alike(one: Any, other: Any, moment: Any) -> None:
        # Adam's first step is lr * sign(g): where a gradient is 0 to rounding, its sign is not determined.
        determined = np.abs(moment) > 1e-6
        np.testing.assert_allclose(one[determined], other[determined], rtol=1e-5, atol=1e-6)

    jax.tree.map(assert_moved_alike, *jax.device_get((new.params, params, moments)))
    assert int(new.step) == 1


@pytest.mark.long
def test_each_step_and_each_example_has_noise_of_its_own(images: NDArray[np.uint8]) -> None:
    state, train_step = parts("notes-vae")[-1], train_step_of("notes-vae")
    batch = jnp.asarray(np.repeat(images[:1], BATCH, axis=0))
    first, metrics = train_step(state, batch, NOISE)
    again, same = train_step(state, batch, NOISE)
    _, later = train_step(state._replace(step=state.step + 1), batch, NOISE)
    assert_trees_equal((first, metrics), (again, same))
    assert float(metrics["recon"]) != float(later["recon"])
    alone = train_step(state, batch[:1], NOISE)[1]["recon"]
    assert float(alone) != float(metrics["recon"])  # The other copies of the image drew other latents.


@pytest.mark.long
@pytest.mark.parametrize("axis_name", [None, "data"])
@pytest.mark.parametrize("objective", [name for name, kind in OBJECTIVES.items() if kind.separate])
def test_a_batch_in_parts_has_the_same_gradients(
    objective: str, axis_name: str | None, images: NDArray[np.uint8]
) -> None:
    preset = {"mse": "notes-ae", "fsq": "fsq"}.get(objective, "vae")
    network: Any = {"architecture": "conv", "hidden": (4, 8), **SHALLOW.get(preset, {"latent_size": 3})}
    config = dataclasses.replace(PRESETS[preset], objective=objective, **network)
    model, optimizer = build_model(config, SHAPE), build_optimizer(config)
    loss = build_objective(config)
    state = jax.jit(lambda key: init_state(model, optimizer, key))(jax.random.key(1))
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
    state = abstract_state(model, optimizer)
    step = make_train_step(model, build_objective(config, 1, 12), optimizer, part=4)
    with pytest.raises(TypeError, match="separate"):
        jax.eval_shape(step, state, jnp.asarray(images[:12]), NOISE)


@pytest.mark.long
@pytest.mark.parametrize(
    ("preset", "way", "devices"),
    [(preset, way, devices) for preset in PRESETS for way, devices in (("shard_map", 8), ("varying tracked", 4))]
    + [(preset, "pmap", 8) for preset in STATELESS_AND_STATEFUL],
)
def test_with_axis_name_many_devices_compute_what_one_does(
    preset: str, way: str, devices: int, images: NDArray[np.uint8]
) -> None:
    model, objective, optimizer, state = parts(preset)
    batch = jnp.asarray(images[:BATCH])
    expected, metrics = train_step_of(preset)(state, batch, NOISE)

    step = make_train_step(model, objective, optimizer, axis_name="data")
    if way == "pmap":
        shares = batch.reshape(devices, -1, *SHAPE)
        run = jax.pmap(step, axis_name="data", in_axes=(None, 0, None), devices=jax.devices()[:devices])
        found = jax.device_get(run(state, shares, NOISE))
    else:
        mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
        here, split = PartitionSpec(), PartitionSpec("data")
        specs = {"in_specs": (here, split, here), "out_specs": (here, here)}
        run = jax.jit(jax.shard_map(step, mesh=mesh, **specs, check_vma=way == "varying tracked"))
        on_each = [
            [shard.data for shard in leaf.addressable_shards] for leaf in jax.tree.leaves(run(state, batch, NOISE))
        ]
        found = jax.tree.unflatten(jax.tree.structure((expected, metrics)), [np.stack(leaf) for leaf in on_each])
    for leaf in jax.tree.leaves(found):  # All devices end with the same state.
        assert len(leaf) == devices
        np.testing.assert_array_equal(leaf, np.repeat(leaf[:1], devices, axis=0))
    new: Any
    got: Any
    new, got = jax.tree.map(lambda a: a[0], found)
    assert_trees_close(got, metrics, rtol=1e-5, atol=0)
    # The parameters tell less: Adam's first step is lr * sign(g).
    smallest = {"fsq": 1e-6, "vq-vae": 1e-7}.get(preset, 1e-8)
    assert_trees_close(new.opt_state[0].mu, expected.opt_state[0].mu, rtol=1e-4, atol=smallest)
    assert_trees_close(new.collections, expected.collections, rtol=1e-4, atol=1e-6)


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


@pytest.mark.long
@pytest.mark.parametrize(
    ("preset", "capacity"),
    [(preset, STEPS) for preset in PRESETS] + [(preset, None) for preset in STATELESS_AND_STATEFUL],
)
def test_a_call_equals_its_steps_one_by_one(preset: str, capacity: int | None, images: NDArray[np.uint8]) -> None:
    state, step = parts(preset)[-1], train_step_of(preset)
    one_by_one, losses = state, []
    for epoch in range(2):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(purpose_key(0, "shuffle"), epoch), 96))
        for i in range(STEPS):
            one_by_one, metrics = step(one_by_one, jnp.asarray(images[order[i * BATCH : (i + 1) * BATCH]]), NOISE)
            losses.append(metrics["loss"])
    run = run_steps(preset, capacity)
    together = []
    for epoch in range(2):
        state, metrics = run(state, jnp.asarray(images), order_of(epoch), NOISE, STEPS)
        together.append(metrics["loss"])
    np.testing.assert_allclose(np.concatenate(together), np.stack(losses), rtol=1e-4)
    assert int(state.step) == int(one_by_one.step) == 12


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_how_an_epoch_is_cut_into_calls_does_not_change_a_bit(preset: str, images: NDArray[np.uint8]) -> None:
    run, results = run_steps(preset, STEPS), []
    for cuts in ([6], [1, 2, 3], [2, 2, 2], [5, 1]):
        state, losses = parts(preset)[-1], []
        for epoch in range(4):
            for count in cuts:
                state, metrics = run(state, jnp.asarray(images), order_of(epoch), NOISE, count)
                losses += np.asarray(metrics["loss"])[:count].tolist()
        results.append((jax.device_get(state), losses))
        assert len(losses) == 24
    for other in results[1:]:
        assert_trees_equal(results[0], other)


@pytest.mark.slow
@pytest.mark.parametrize(("part", "block"), [(None, 1), (4, 1), (4, 3)])
def test_a_run_traces_its_loss_once(part: int | None, block: int, images: NDArray[np.uint8]) -> None:
    """Whatever the number of steps of its calls, the parts of its batches, and the loops around it."""
    model, objective, optimizer, state = parts("vae")
    traces = 0

    class Counted:
        precision = objective.precision

        def of(self, *args: Any) -> Any:
            nonlocal traces
            traces += 1
            return objective.of(*args)

    step = make_train_step(model, Counted(), optimizer, part=part)  # type: ignore[arg-type]
    run = jax.jit(make_run_steps(step, 8, steps_per_epoch=12, capacity=12, block=block), donate_argnums=0)
    for count in (1, 5, 2, 3, 1):
        state, _ = run(state, jnp.asarray(images), order_of(0), NOISE, count)
    assert traces == 1


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("capacity", [None, 6])
def test_the_number_of_steps_has_any_integer_type(capacity: int | None, block: int, images: NDArray[np.uint8]) -> None:
    model, objective, optimizer, state = parts("notes-ae")
    step = make_train_step(model, objective, optimizer)
    run = make_run_steps(step, 8, steps_per_epoch=12, capacity=capacity, block=block)
    expected = run(state, jnp.asarray(images), order_of(0), NOISE, 5)[1]["loss"]
    counts: list[Any] = [5] if capacity is None else [np.int16(5), jnp.int32(5)]
    for count in counts:
        found = run(state, jnp.asarray(images), order_of(0), NOISE, count)[1]["loss"]
        np.testing.assert_array_equal(found, expected)
    with jax.enable_x64(True):
        found = run(state, jnp.asarray(images), order_of(0), NOISE, 5)[1]["loss"]
        np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.exact
@pytest.mark.parametrize("preset", STATELESS_AND_STATEFUL)
def test_steps_take_images_in_rows(preset: str, images: NDArray[np.uint8]) -> None:
    """The same bits, whether images lie as they are or in rows that become images again once a batch is picked."""
    model, objective, optimizer, state = parts(preset)
    step = make_train_step(model, objective, optimizer)
    ended = []
    for shapes in (None, {"image": SHAPE}):
        run = jax.jit(make_run_steps(step, 8, steps_per_epoch=12, capacity=12, shapes=shapes))
        given = images if shapes is None else images.reshape(len(images), -1)
        ended.append(run(state, {"image": jnp.asarray(given)}, order_of(0), NOISE, 5))
    assert_trees_equal(*ended)


def test_rows_become_examples_again() -> None:
    """Whatever axes an example's values have; numbers and rows stay as they are."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"image": (5, 4, 3), "map": (3, 2), "row": (7,), "label": ()}
    examples = {name: rng.integers(0, 256, (6, *shape)) for name, shape in shapes.items()}
    rows = as_rows(examples)
    assert {name: values.shape for name, values in rows.items()} == {
        "image": (6, 60),
        "map": (6, 6),
        "row": (6, 7),
        "label": (6,),
    }
    assert as_rows({"image": np.zeros((0, 5, 4, 3))})["image"].shape == (0, 60)
    picked = {name: jnp.asarray(values[[4, 0]]) for name, values in rows.items()}
    assert_trees_equal(shaped(picked, shapes), {name: values[[4, 0]] for name, values in examples.items()})


@pytest.mark.slow
def test_without_jit_a_loss_sees_values(images: NDArray[np.uint8]) -> None:
    model, objective, optimizer, state = parts("notes-ae")
    step, seen = make_train_step(model, objective, optimizer), list[bool]()

    def looking(state: TrainState, batch: Any, key: Any) -> Any:
        seen.append(not isinstance(batch["image"], jax.core.Tracer))
        return step(state, batch, key)

    with jax.disable_jit():
        make_run_steps(looking, 8, steps_per_epoch=12)(state, jnp.asarray(images), order_of(0), NOISE, 2)
    assert seen.count(True) == 2


@pytest.mark.slow
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
    run_steps("notes-vae", STEPS)(state, jnp.asarray(images), order_of(0), NOISE, 4)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_training_lowers_the_loss(preset: str, images: NDArray[np.uint8]) -> None:
    state, run = parts(preset)[-1], run_steps(preset, STEPS)
    losses = []
    for epoch in range(80 if preset == "vq-vae" else 40):
        state, metrics = run(state, jnp.asarray(images), order_of(epoch), NOISE, STEPS)
        losses.append(float(metrics["loss"].mean()))
    assert losses[-1] < 0.9 * losses[0]


@functools.cache
def terms_of(preset: str) -> Any:
    """A function of variables, images and the keys' key: the objective's terms of all images at once."""
    model, objective, _, _ = _parts(preset)

    def terms(variables: Any, test: jax.Array, key: jax.Array) -> Any:
        return objective.of(model, variables, {"image": intensities(test)}, example_keys(key, 0, len(test)), Context())

    return jax.jit(lambda *given: terms(*given)[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "size"),
    [(preset, 7) for preset in PRESETS]
    + [(preset, size) for preset in STATELESS_AND_STATEFUL for size in (1, 32, 1000)],
)
def test_evaluate_takes_every_image_once_whatever_the_size(preset: str, size: int, images: NDArray[np.uint8]) -> None:
    model, objective, _, state = parts(preset)
    key, test = purpose_key(0, "test-noise"), jnp.asarray(images[:32])
    evaluate = jax.jit(make_evaluate(model, objective, size))
    got = joined([evaluate(state.variables, test, key, first) for first in range(0, 32, size)], 32)
    expected = terms_of(preset)(state.variables, test, key)
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


@pytest.mark.slow
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
