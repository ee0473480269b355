"""Members of a sweep: each against a run of its own."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from numpy.typing import NDArray

from jaxvae import data
from jaxvae.config import PRESETS, TRACED, Config
from jaxvae.data.images import ImageData
from jaxvae.errors import InputError
from jaxvae.keys import purpose_key
from jaxvae.models.build import build_model
from jaxvae.objectives.build import build_objective
from jaxvae.optimizer import build_optimizer
from jaxvae.sweep import trainer as members
from jaxvae.sweep.members import train_members
from jaxvae.sweep.room import room
from jaxvae.sweep.trainer import MembersTrainer, make_run_members
from jaxvae.train import programs
from jaxvae.train.computer import advance
from jaxvae.train.step import epoch_order, init_state, make_run_steps, make_train_step
from jaxvae.train.trainer import Trainer

# Seed, learning rate and beta: no two members are equal, and no axis is a function of another.
GRID = [(0, 1e-3, 1.0), (7, 1e-3, 4.0), (0, 3e-4, 4.0), (2**32 - 1, 3e-4, 0.5), (7, 3e-3, 1.0)]


def alone(config: Config, images: ImageData) -> tuple[NDArray[Any], Any, Any]:
    """A run of its own: its losses, its state at the end, its test terms."""
    images = data.prepared(images, config)
    trainer = Trainer(config, images)
    state, calls = advance(trainer, trainer.start(None), 0, config.epochs * trainer.steps_per_epoch)
    losses = [np.asarray(terms["loss"])[:count] for count, terms in calls]
    parts = [trainer.evaluate(state, "test", first) for first in trainer.parts("test")]
    test = {name: np.mean(values, dtype=np.float64) for name, values in trainer.joined("test", parts).items()}
    return np.concatenate(losses), jax.device_get(state), test


@pytest.mark.long
@pytest.mark.parametrize(
    ("preset", "given"),
    [
        ("notes-ae", {}),
        ("notes-vae", {}),
        pytest.param("vae", {}, marks=pytest.mark.optimized),
        # Its batches are computed in parts.
        ("vae", {"architecture": "conv", "hidden": (4, 8), "batch_size": 64, "epochs": 5}),
    ],
)
def test_every_member_is_the_single_run_to_the_bit(preset: str, given: dict[str, Any]) -> None:
    """On a CPU, where members are taken one at a time: every loss of at least 100 steps, and all results."""
    config = dataclasses.replace(PRESETS[preset], **{"batch_size": 32, "epochs": 3, **given})
    images = data.load("digits")
    seeds, rates, betas = zip(*GRID, strict=True)
    numbers = {"learning_rate": rates, **({"beta": betas} if config.parts.objective.bound else {})}
    result = train_members(config, images, seeds, numbers, jax.devices()[:2])
    assert not np.any(result.state.diverged)
    for index, (seed, rate, beta) in enumerate(GRID):
        own = dataclasses.replace(
            config, seed=seed, learning_rate=rate, **({"beta": beta} if config.parts.objective.bound else {})
        )
        losses, state, test = alone(own, images)
        assert len(losses) >= 100
        np.testing.assert_array_equal(result.train["loss"][index], losses)
        jax.tree.map(np.testing.assert_array_equal, result.state.member(index), state)
        assert {name: values[index] for name, values in result.test.items()} == test


@pytest.mark.long
@pytest.mark.unoptimized
@pytest.mark.parametrize("preset", ["notes-vae", "vae"])
def test_members_taken_together_equal_the_single_run_in_float64(preset: str) -> None:
    """200 steps, three at a time, as on an accelerator: to rounding, which a VAE multiplies, hence float64."""
    at_once = 3
    config = PRESETS[preset]
    images = data.load("digits").train / 255.0
    # 200 batches of 7.
    config, count = dataclasses.replace(config, batch_size=7, hidden=(64, 32)), 1400
    images = images[:count]
    grid = GRID if config.parts.objective.bound else [(seed, rate, 1.0) for seed, rate, _ in GRID]
    with jax.enable_x64(True):
        model = build_model(config, (28, 28, 1)).clone(dtype=jax.numpy.float64)

        def first(seed: int) -> Any:
            state = jax.device_get(init_state(model, build_optimizer(config), purpose_key(seed, "init")))
            return jax.tree.map(lambda a: a.astype(np.float64) if a.dtype == np.float32 else a, state)

        states = [first(seed) for seed, _, _ in grid]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
        state = members.MembersState(np.int32(0), stacked.params, stacked.opt_state, np.zeros(len(grid), np.int32))
        keys = jax.numpy.stack([purpose_key(seed, "train-noise") for seed, _, _ in grid])
        orders = [epoch_order(purpose_key(seed, "shuffle"), 0, count) for seed, _, _ in grid]
        defaults = {name: np.full(len(grid), value) for name, value in config.traced().items()}
        swept = {"learning_rate": np.array([g[1] for g in grid]), "beta": np.array([g[2] for g in grid])}
        run: Any = jax.jit(make_run_members(config, model, count, at_once, 200))
        end, terms = run(state, images, jax.numpy.stack(orders), keys, {**defaults, **swept}, 200)

        def run_alone(state: Any, images: Any, order: Any, noise_key: Any, numbers: Any) -> Any:
            objective = build_objective(config, 200, len(images), numbers)
            step = make_train_step(model, objective, build_optimizer(config, 200, numbers))
            return make_run_steps(step, 7, 200)(state, images, order, noise_key, 200)

        one: Any = jax.jit(run_alone)
        for index, (seed, rate, beta) in enumerate(grid):
            numbers = {**config.traced(), "learning_rate": rate, "beta": beta}
            own, own_terms = one(states[index], images, orders[index], purpose_key(seed, "train-noise"), numbers)
            assert own_terms["loss"].dtype == np.float64
            deviation = np.max(np.abs(terms["loss"][index] / own_terms["loss"] - 1))
            assert deviation < 1e-8
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-7), end.member(index).params, own.params
            )


@pytest.mark.long
def test_evaluations_of_members_run_seldom_and_their_steps_do_not(
    images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "seldom_options", lambda backend: {"xla_gpu_no_such_option": 0})
    config = dataclasses.replace(PRESETS["vae"], hidden=(8,), latent_size=2, batch_size=16, validation=0.0)
    numbers = {name: [value] * 2 for name, value in config.traced().items()}
    trainer = MembersTrainer(config, ImageData("digits", "a test", images[:64], images[64:]), (0, 1), numbers)
    state, _ = advance(trainer, trainer.start(None), 0, 1)
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        trainer.evaluate(state, "test", 0)


@pytest.fixture(scope="module")
def singles() -> dict[int, Any]:
    """Separate runs of members of `GRID`, by number, filled as they are made."""
    return {}


@pytest.mark.long
@pytest.mark.parametrize(("at_once", "devices"), [(1, 2), (1, 8), (2, 2), (5, 1)])
def test_members_are_the_same_however_they_are_shared_out(
    at_once: int, devices: int, images: NDArray[np.uint8], singles: dict[int, Any]
) -> None:
    config = dataclasses.replace(PRESETS["vae"], hidden=(8,), latent_size=2, batch_size=16, epochs=2, validation=0.0)
    images_ = ImageData("digits", "a test", images[:64], images[64:])
    seeds, rates, betas = zip(*GRID, strict=True)
    numbers = {**{name: [value] * 5 for name, value in config.traced().items()}, "learning_rate": rates, "beta": betas}
    trainer = MembersTrainer(config, images_, seeds, numbers, jax.devices()[:devices], at_once)
    assert trainer.mesh.size == min(devices, 5)
    state, calls = advance(trainer, trainer.start(None), 0, 8)
    (_, terms) = calls[-1]
    parts = [trainer.evaluate(state, "test", first) for first in trainer.parts("test")]
    host, last, test = trainer.host(state), trainer.host(terms["loss"]), trainer.joined("test", parts)["loss"]
    assert last.shape == (5, 4) and test.shape == (5, 32) and host.step == 8
    forms = [jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), s) for s in (host, trainer.abstract_state())]
    assert forms[0] == forms[1]
    for index in (1, 4):
        seed, rate, beta = GRID[index]
        own_config = dataclasses.replace(config, seed=seed, learning_rate=rate, beta=beta)
        if index not in singles:
            singles[index] = alone(own_config, images_)
        losses, own, _ = singles[index]
        if at_once == 1:
            np.testing.assert_array_equal(last[index], losses[4:])
            jax.tree.map(np.testing.assert_array_equal, host.member(index), own)
        else:
            np.testing.assert_allclose(last[index], losses[4:], rtol=1e-5)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), host.member(index), own)


@pytest.mark.long
def test_a_member_that_diverges_does_not_affect_the_others(images: NDArray[np.uint8]) -> None:
    config = dataclasses.replace(PRESETS["vae"], hidden=(8,), latent_size=2, batch_size=16, epochs=3)
    images_ = ImageData("digits", "a test", images[:64], images[64:])
    good = train_members(config, images_, [0, 2], {"learning_rate": [1e-3, 1e-3]})
    for at in (0, 2):
        rates = [1e-3, 1e-3]
        rates.insert(at, 1e20)
        seeds = [0, 2]
        seeds.insert(at, 1)
        result = train_members(config, images_, seeds, {"learning_rate": rates}, jax.devices()[: at + 1])
        rest = [i for i in range(3) if i != at]
        assert result.state.diverged[at] == 2 and not np.any(np.asarray(result.state.diverged)[rest])
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.state))
        np.testing.assert_array_equal(result.train["loss"][rest], good.train["loss"])
        assert np.isnan(result.test["loss"][at])
        np.testing.assert_array_equal(result.test["loss"][rest], good.test["loss"])
        # Zeros do not depend on the calls in which the member was trained.
        assert not any(leaf.any() for leaf in jax.tree.leaves(result.state.member(at).params))


@pytest.mark.long
@pytest.mark.unoptimized
def test_weight_decay_may_be_none_for_some(images: NDArray[np.uint8]) -> None:
    config = dataclasses.replace(PRESETS["vae"], hidden=(8,), latent_size=2, batch_size=16, epochs=2)
    images_ = ImageData("digits", "a test", images[:64], images[64:])
    result = train_members(config, images_, [0, 0], {"weight_decay": [0.0, 0.5]})
    for index, decay in enumerate((0.0, 0.5)):
        losses, _, _ = alone(dataclasses.replace(config, weight_decay=decay), images_)
        np.testing.assert_allclose(result.train["loss"][index], losses, rtol=1e-5)


@pytest.mark.parametrize(("seeds", "numbers", "message"), [
    ([0], {"hidden": [3]}, f"hidden cannot differ between members; what can: seed, {', '.join(TRACED)}$"),
    ([0, 1], {"beta": [1.0]}, "--beta has 1 values for 2 members"),
    ([0], {"learning_rate": [-1.0]}, "--learning-rate must be positive and finite, not -1"),
    ([2**32], {}, "--seed must be .* below 2.32"),
    ([], {}, "no members"),
])  # fmt: skip
def test_bad_members_are_refused(seeds: list[int], numbers: Any, message: str, images: NDArray[np.uint8]) -> None:
    with pytest.raises(InputError, match=message):
        train_members(PRESETS["vae"], ImageData("digits", "a test", images, images), seeds, numbers)


@pytest.mark.long
def test_room_is_what_the_device_says(images: NDArray[np.uint8]) -> None:
    config = dataclasses.replace(PRESETS["vae"], hidden=(8,), latent_size=2, batch_size=16)
    images_ = ImageData("digits", "a test", images[:64], images[64:])
    found = room(config, images_, jax.devices()[:2], wanted=10**9)
    state = init_state(build_model(config, (6, 5, 1)), build_optimizer(config), purpose_key(0, "init"))
    floor = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert 2 * floor < found.member_bytes < 100 * floor
    assert found.members == 2 * (found.free_bytes // found.member_bytes) > 0


CHANGED: list[dict[str, Any]] = [
    {"hidden": (300, 100), "latent_size": 5},
    {"architecture": "conv", "hidden": (4, 8)},
    {"architecture": "resnet", "hidden": (4,), "blocks": 1},
    {"hidden": (8,), "prior": "vamp", "pseudo_inputs": 40},
]


@pytest.mark.long
@pytest.mark.unoptimized
@pytest.mark.parametrize("changed", CHANGED, ids=["dense", "conv", "resnet", "vamp"])
def test_members_that_surely_fit_are_not_compiled_to_see_it(
    changed: dict[str, Any], images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a member takes at most is more than XLA says that it takes."""
    config = dataclasses.replace(PRESETS["vae"], batch_size=16, **changed)
    images_ = ImageData("digits", "a test", images[:64], images[64:])
    measured = room(config, images_, jax.devices()[:1], wanted=10**9)
    monkeypatch.setattr(MembersTrainer, "memory", lambda *_: pytest.fail("compiled"))
    most = room(config, images_, jax.devices()[:1], wanted=2)
    assert (measured.compiled, most.compiled) == (True, False)
    assert measured.member_bytes < most.member_bytes
    assert 2 <= most.members <= measured.members


@pytest.mark.long
def test_members_of_binarised_images_are_runs_on_them(images: NDArray[np.uint8]) -> None:
    config = dataclasses.replace(PRESETS["vae"], hidden=(8,), latent_size=2, batch_size=16, epochs=2, inputs="static")
    images_ = ImageData("digits", "a test", images[:64], images[64:])
    losses, _, _ = alone(config, images_)
    np.testing.assert_array_equal(train_members(config, images_, [0, 0]).train["loss"], [losses, losses])


def test_every_swept_number_is_known_to_the_config() -> None:
    assert set(TRACED) <= {field.name for field in dataclasses.fields(Config)}
    expected = {"learning_rate", "weight_decay", "beta", "free_bits", "mmd_weight", "commitment"}
    assert set(TRACED) == expected | {"capacity", "capacity_weight", "code_l2", "decoder_l2"}


@pytest.mark.slow
@pytest.mark.unoptimized
def test_evaluation_takes_no_more_memory_for_more_samples() -> None:
    def evaluation_bytes(samples: int) -> int:
        config = dataclasses.replace(
            PRESETS["vae"], objective="iwae", samples=samples, hidden=(8,), latent_size=2, batch_size=512
        )
        rng = np.random.default_rng(0)
        images = ImageData("digits", "a test", *(rng.integers(0, 256, (n, 16, 16, 1), np.uint8) for n in (600, 5000)))
        numbers = {name: [value] for name, value in config.traced().items()}
        trainer = MembersTrainer(config, images, [0], numbers, jax.devices()[:1])
        state = trainer.start(None)
        held_out, keys = trainer._held_out["test"], trainer._keys["test-noise"]
        arguments = members.variables_of(state), held_out, keys, trainer._hyperparameters_placed, np.int32(0)
        program = trainer._evaluate["test"].lower(*arguments).compile()
        return int(program.memory_analysis().temp_size_in_bytes)

    assert evaluation_bytes(64) < 1.5 * evaluation_bytes(1)
