"""The programs of a run, against the step they are made of."""

import dataclasses
import re
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from numpy.typing import NDArray

from jaxvae.config import PRESETS
from jaxvae.data.images import ImageData
from jaxvae.distributed import devices as parallel
from jaxvae.errors import InputError
from jaxvae.keys import purpose_key
from jaxvae.objectives.build import OBJECTIVES
from jaxvae.objectives.elbo import Elbo
from jaxvae.presets import OVERRIDES as PRESET_OVERRIDES
from jaxvae.train import programs
from jaxvae.train.computer import PART_BATCHES, advance, splits
from jaxvae.train.programs import make_call, steps_per_epoch
from jaxvae.train.step import make_train_step
from jaxvae.train.trainer import Trainer

CONFIG = dataclasses.replace(PRESETS["notes-vae"], hidden=(8,), latent_size=2, batch_size=16)


def trainer_of(images: NDArray[np.uint8], devices: int = 1, **options: Any) -> Trainer:
    data = ImageData("digits", "a test", images[:64], images[64:])
    return Trainer(CONFIG, data, parallel.data_parallel(parallel.select_devices(devices)), **options)


def losses_of(calls: Any) -> list[float]:
    return [loss for count, terms in calls for loss in np.asarray(terms["loss"])[:count].tolist()]


def test_an_epoch_drops_the_incomplete_batch() -> None:
    config = PRESETS["notes-vae"]
    assert steps_per_epoch(config, 60_000) == 1875
    assert steps_per_epoch(dataclasses.replace(config, batch_size=128), 60_000) == 468
    with pytest.raises(InputError, match="--batch-size 32 .* 31 "):
        steps_per_epoch(config, 31)
    assert steps_per_epoch(dataclasses.replace(config, log_every=3), 96) == 3
    with pytest.raises(InputError, match="--log-every 4 "):
        steps_per_epoch(dataclasses.replace(config, log_every=4), 96)


@pytest.mark.parametrize(
    ("changed", "size", "shares", "platform", "expected"),
    [
        ({}, 28, 1, "cpu", 32),
        ({}, 28, 2, "cpu", 32),
        ({}, 28, 4, "cpu", None),  # A share of 32 images is computed at once.
        ({}, 28, 1, "gpu", None),
        ({}, 64, 1, "cpu", 8),
        ({}, 512, 1, "cpu", 8),
        ({"batch_size": 100}, 28, 1, "cpu", 25),
        ({"batch_size": 127}, 28, 1, "cpu", None),  # One image at a time would be slow.
        ({"architecture": "resnet"}, 28, 1, "cpu", 32),
        ({"architecture": "mlp"}, 28, 1, "cpu", None),
        ({"objective": "iwae", "samples": 2}, 28, 1, "cpu", 16),
        ({"objective": "iwae", "samples": 50}, 28, 1, "cpu", 8),
        ({"objective": "iwae", "samples": 5}, 64, 1, "cpu", 8),
        ({"objective": "info", "mmd_weight": 1.0}, 28, 1, "cpu", None),  # It compares the images of a batch.
    ],
)
def test_a_cpu_computes_as_many_images_at_a_time_as_its_caches_hold(
    changed: dict[str, Any], size: int, shares: int, platform: str, expected: int | None
) -> None:
    given = {"architecture": "conv", "hidden": (32, 64), "batch_size": 128, **changed}
    config = dataclasses.replace(PRESETS["vae"], **given)
    assert programs.part_size(config, (size, size, 1), shares, platform) == expected


def test_a_subclass_does_not_inherit_that_it_treats_images_separately(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Elbo):
        """A cost that compares the images of a batch, perhaps."""

    given: dict[str, Any] = {"architecture": "conv", "hidden": (32, 64), "batch_size": 128}
    assert programs.part_size(dataclasses.replace(PRESETS["vae"], **given), (28, 28, 1), 1, "cpu") == 32
    monkeypatch.setitem(OBJECTIVES, "elbo", Own)  # type: ignore[misc]
    config = dataclasses.replace(PRESETS["vae"], **given)
    assert isinstance(config.parts.objective, Own)
    assert programs.part_size(config, (28, 28, 1), 1, "cpu") is None


@pytest.mark.long
@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_computes_batches_in_parts(
    devices: int, images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "LEAST_PART", 1)
    config = dataclasses.replace(CONFIG, architecture="conv", hidden=(4, 8))
    data = ImageData("digits", "a test", images[:64], images[64:])

    def run(most: int) -> tuple[list[float], int]:
        monkeypatch.setattr("jaxvae.models.networks.Conv.cached_images", lambda self, shape: most)
        trainer = Trainer(config, data, parallel.data_parallel(parallel.select_devices(devices)))
        loops = trainer.trace().lower().as_text().count("stablehlo.while")
        return losses_of(advance(trainer, trainer.start(None), 0, 4)[1]), loops

    (losses, loops), (expected, before) = run(4), run(1024)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert loops == before + 1


@pytest.mark.long
def test_calls_take_the_steps_of_the_epoch(images: NDArray[np.uint8]) -> None:
    trainer = trainer_of(images)
    state = trainer.start(None)
    trainer.compile(state)
    expected = jax.device_get(state)
    state, calls = advance(trainer, state, 0, 6)
    losses = losses_of(calls)

    step = jax.jit(make_train_step(trainer.model, trainer.objective, trainer.optimizer))
    shuffle_key, noise_key = purpose_key(0, "shuffle"), purpose_key(0, "train-noise")
    for count in range(6):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(shuffle_key, count // 4), 64))
        batch = images[:64][order[count % 4 * 16 :][:16]]
        expected, metrics = step(expected, batch, noise_key)
        np.testing.assert_allclose(losses[count], metrics["loss"], rtol=1e-5)
    assert int(state.step) == len(losses) == 6


def test_no_part_of_an_evaluation_takes_longer_than_some_steps(images: NDArray[np.uint8]) -> None:
    trainer = Trainer(dataclasses.replace(CONFIG, batch_size=2), ImageData("digits", "a test", images[:16], images))
    assert list(trainer.parts("test")) == list(range(0, 96, PART_BATCHES * 2))
    state = trainer.start(None)
    parts = [trainer.evaluate(state, "test", first) for first in trainer.parts("test")]
    assert {len(part["loss"]) for part in parts} == {PART_BATCHES * 2}
    assert trainer.joined("test", parts)["loss"].shape == (96,)


@pytest.mark.long
def test_blocks_of_steps_compute_the_same_bits(images: NDArray[np.uint8]) -> None:
    """As an accelerator takes them, here on the CPU: an epoch of 4 steps is a block of 3 and a single step."""
    results = []
    for block in (1, 3):
        trainer = trainer_of(images, block=block)
        state, calls = advance(trainer, trainer.start(None), 0, 10)
        results.append((jax.device_get(state), losses_of(calls)))
        assert [count for count, _ in calls] == [4, 4, 2]
    jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.mark.slow
@pytest.mark.parametrize("option", [("xla_gpu_no_such_option", "1"), ("xla_gpu_enable_command_buffer", "NO_SUCH")])
def test_an_option_or_a_value_that_xla_does_not_have_is_left_out(
    option: tuple[str, str], images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "compiler_options", lambda backend, recorded, tried: dict([option]))
    trainer = trainer_of(images)
    state, calls = advance(trainer, trainer.start(None), 0, 4)
    assert int(state.step) == len(losses_of(calls)) == 4


def test_on_a_gpu_the_loop_itself_is_recorded_unless_the_user_says_what_is(monkeypatch: pytest.MonkeyPatch) -> None:
    recording, order = "xla_gpu_enable_command_buffer", "xla_gpu_command_buffer_scheduling_mode"
    assert programs.compiler_options("cpu", recorded=True) == programs.compiler_options("tpu", recorded=True) == {}
    assert set(programs.compiler_options("gpu")) == {order}
    options = programs.compiler_options("gpu", recorded=True)
    assert set(options) == {order, recording} and "WHILE" in options[recording]
    monkeypatch.setenv("XLA_FLAGS", f"--{recording}=")
    assert set(programs.compiler_options("gpu", recorded=True)) == {order}


def test_on_a_gpu_no_kernels_are_tried_for_what_runs_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    seldom, repeatable = programs.seldom_options.__wrapped__, "xla_gpu_exclude_nondeterministic_ops"
    assert seldom("cpu") == seldom("tpu") == {}
    assert seldom("gpu") == {repeatable: True}
    assert programs.compiler_options("gpu", tried=False)[repeatable] is True
    assert repeatable not in programs.compiler_options("gpu")
    with monkeypatch.context() as patch:
        patch.setenv("XLA_FLAGS", f"--{repeatable}=false")
        assert seldom("gpu") == {}
        assert repeatable not in programs.compiler_options("gpu", tried=False)
    monkeypatch.setattr(programs, "UNTRIED", {"xla_gpu_no_such_option": 0})
    assert seldom("gpu") == {}


@pytest.mark.parametrize(
    ("changed", "parameters", "steps", "expected"),
    [
        # 33 us a step; 11 s in all.
        ({}, 500_000, 9_375, False),
        ({}, 500_000, 333_000, False),
        ({}, 500_000, 334_000, True),
        # 6 FLOP for each number and image: 0.12 s a step.
        ({"batch_size": 5_000, "hidden": (30_000,)}, 1_000_000_000, 80, False),
        ({"batch_size": 5_000, "hidden": (30_000,)}, 1_000_000_000, 100, True),
        # As many again for every latent.
        ({**PRESET_OVERRIDES["iwae"], "samples": 50, "batch_size": 5_000}, 100_000_000, 10, False),
        ({**PRESET_OVERRIDES["iwae"], "samples": 50, "batch_size": 5_000}, 100_000_000, 20, True),
        ({"architecture": "conv", "hidden": (4,)}, 500_000, 10, True),
        ({"architecture": "gated"}, 500_000, 10, True),
        ({"compute_dtype": "bfloat16"}, 500_000, 10, True),
        ({"matmul_precision": "default"}, 500_000, 10, True),
    ],
)
def test_kernels_are_tried_where_that_saves_more_time_than_it_takes(
    changed: dict[str, Any], parameters: int, steps: int, expected: bool
) -> None:
    config = dataclasses.replace(PRESETS["vae"], **changed)
    assert programs.worth_trials(config, parameters, steps) is expected
    # Two devices, each with half of twice the batch.
    double = dataclasses.replace(config, batch_size=2 * config.batch_size)
    assert programs.worth_trials(double, parameters, steps, devices=2) is expected


@pytest.mark.slow
@pytest.mark.parametrize(("platform", "epochs", "tried"), [("gpu", 2, False), ("gpu", 10**6, True), ("cpu", 2, True)])
def test_a_run_of_few_steps_on_a_gpu_is_compiled_without_trials(
    platform: str, epochs: int, tried: bool, images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(programs, "compiler_options", lambda backend, recorded, tried: seen.append(tried) or {})
    monkeypatch.setattr(Trainer, "_devices", lambda self: [SimpleNamespace(platform=platform)])
    data = ImageData("digits", "a test", images[:64], images[64:])
    trainer = Trainer(dataclasses.replace(CONFIG, epochs=epochs, stream="never"), data)
    advance(trainer, trainer.start(None), 0, 1)
    assert seen == [tried]


def test_evaluations_and_pictures_run_seldom_and_steps_do_not(
    images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "seldom_options", lambda backend: {"xla_gpu_no_such_option": 0})
    trainer = trainer_of(images)
    state, _ = advance(trainer, trainer.start(None), 0, 1)
    for refused in (lambda: trainer.evaluate(state, "test", 0), lambda: trainer.pictures(state, 4, 4)):
        with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
            refused()


def test_a_call_takes_no_more_than_it_holds(images: NDArray[np.uint8]) -> None:
    trainer = trainer_of(images)
    assert [trainer.usable(0, wanted) for wanted in (1, 3, 4, 9999)] == [1, 3, 4, 4]


def test_test_images_are_evaluated_only_at_the_end_if_there_are_validation_images() -> None:
    assert splits(validation=True, last=False) == ("validation",)
    assert splits(validation=True, last=True) == ("validation", "test")
    assert splits(validation=False, last=False) == splits(validation=False, last=True) == ("test",)


@pytest.mark.long
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_several_devices_compute_what_one_does(devices: int, images: NDArray[np.uint8]) -> None:
    def run(count: int) -> tuple[Any, list[Any]]:
        trainer = trainer_of(images, count)
        state, calls = advance(trainer, trainer.start(None), 0, 40)
        losses = losses_of(calls)
        assert all(len(leaf.sharding.device_set) == count for leaf in jax.tree.leaves(state))
        return jax.device_get(state), losses

    one, several = run(1), run(devices)
    np.testing.assert_allclose(several[1], one[1], rtol=1e-5)
    # Adam magnifies rounding where a gradient is all but zero.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), several[0], one[0])


@pytest.mark.slow
def test_each_device_works_on_its_share(images: NDArray[np.uint8]) -> None:
    trainer = trainer_of(images, 8)
    state = trainer.start(None)
    trainer.compile(state)
    program = trainer._program._compiled.as_text()
    assert "all-reduce" in program
    # The first layer's product, for 2 of the 16 examples.
    assert "f32[2,30]" in program and "f32[16,30]" not in program


@pytest.mark.slow
def test_a_mesh_of_one_device_adds_nothing_to_the_program(images: NDArray[np.uint8]) -> None:
    """Instruction by instruction, it is what `jax.jit` makes of the same function on its own."""
    trainer = trainer_of(images)
    state = trainer.start(None)
    arguments = trainer._arguments(state, 0)
    shapes = {"image": images.shape[1:]}
    call = make_call(trainer.config, trainer.model, 64, trainer.steps_per_epoch, shapes=shapes)
    plain = jax.jit(call, donate_argnums=0)
    unplaced = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (*arguments, np.int32(1)))

    def instructions(lowered: Any) -> list[str]:
        return sorted(re.findall(r"= (\S.*? [a-z-]+)\(", lowered.compile().as_text()))

    ours = instructions(trainer._program.trace(*arguments).lower())
    assert len(ours) > 100
    assert ours == instructions(plain.lower(*unplaced))


def test_a_batch_must_divide(images: NDArray[np.uint8]) -> None:
    with pytest.raises(InputError, match="--batch-size 16 does not divide over 3 devices"):
        trainer_of(images, 3)


def test_program_bytes_hold_the_images_and_the_state(images: NDArray[np.uint8]) -> None:
    trainer = trainer_of(images)
    state = trainer.start(None)
    trainer.compile(state)
    least = images[:64].nbytes + sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert least <= trainer.program_bytes() < least + 100_000
