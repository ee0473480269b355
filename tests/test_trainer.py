"""The programs of a run, against the step they are made of."""

import dataclasses
import re
from typing import Any

import jax
import numpy as np
import pytest
from numpy.typing import NDArray

from jaxvae import parallel
from jaxvae.config import PRESETS
from jaxvae.data import ImageData
from jaxvae.errors import InputError
from jaxvae.keys import purpose_key
from jaxvae.train_step import make_train_step
from jaxvae.trainer import Schedule, Trainer, make_call, schedule

CONFIG = dataclasses.replace(PRESETS["notes-vae"], hidden=(8,), latent_size=2, batch_size=16, steps_per_call=2)


def trainer_of(images: NDArray[np.uint8], devices: int = 1) -> Trainer:
    data = ImageData("digits", "a test", images[:64], images[64:])
    return Trainer(CONFIG, schedule(CONFIG, 64), data, parallel.data_parallel(parallel.select_devices(devices)))


def test_schedule_cuts_an_epoch_into_equal_calls() -> None:
    config = PRESETS["notes-vae"]
    assert schedule(config, 60_000) == Schedule(1875, 1)
    assert schedule(dataclasses.replace(config, steps_per_call=1000), 60_000) == Schedule(937, 2)
    assert schedule(dataclasses.replace(config, steps_per_call=1), 100) == Schedule(1, 3)
    with pytest.raises(InputError, match="--batch-size 32 is larger than the 31 training images"):
        schedule(config, 31)


def test_calls_take_the_steps_of_the_epoch(images: NDArray[np.uint8]) -> None:
    trainer = trainer_of(images)
    state = trainer.start(None)
    trainer.compile(state)
    expected = jax.device_get(state)
    losses: list[Any] = []
    for _ in range(3):
        state, terms = trainer.run_steps(state)
        losses += list(np.asarray(terms["loss"]))

    step = jax.jit(make_train_step(trainer.model, trainer.objective, trainer.optimizer))
    shuffle_key, noise_key = purpose_key(0, "shuffle"), purpose_key(0, "train-noise")
    for count in range(6):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(shuffle_key, count // 4), 64))
        batch = images[:64][order[count % 4 * 16 :][:16]]
        expected, metrics = step(expected, batch, noise_key)
        np.testing.assert_allclose(losses[count], metrics["loss"], rtol=1e-5)
    assert int(state.step) == 6


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_several_devices_compute_what_one_does(devices: int, images: NDArray[np.uint8]) -> None:
    def run(count: int) -> tuple[Any, list[Any]]:
        trainer = trainer_of(images, count)
        state = trainer.start(None)
        trainer.compile(state)
        losses: list[Any] = []
        for _ in range(20):
            state, terms = trainer.run_steps(state)
            losses += list(np.asarray(terms["loss"]))
        assert all(len(leaf.sharding.device_set) == count for leaf in jax.tree.leaves(state))
        return jax.device_get(state), losses

    one, several = run(1), run(devices)
    np.testing.assert_allclose(several[1], one[1], rtol=1e-5)
    # Adam magnifies rounding where a gradient is all but zero.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), several[0], one[0])


def test_each_device_works_on_its_share(images: NDArray[np.uint8]) -> None:
    trainer = trainer_of(images, 8)
    state = trainer.start(None)
    trainer.compile(state)
    program = trainer._run_steps.as_text()
    assert "all-reduce" in program
    # The first layer's product, for 2 of the 16 examples.
    assert "f32[2,30]" in program and "f32[16,30]" not in program


def test_a_mesh_of_one_device_adds_nothing_to_the_program(images: NDArray[np.uint8]) -> None:
    """Instruction by instruction, it is what `jax.jit` makes of the same function on its own."""
    trainer = trainer_of(images)
    state = trainer.start(None)
    arguments = state, trainer._train_images, trainer._keys, trainer._numbers
    plain = jax.jit(make_call(trainer.config, trainer.model, trainer.plan, 64), donate_argnums=0)
    unplaced = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arguments)

    def instructions(lowered: Any) -> list[str]:
        return sorted(re.findall(r"= (\S.*? [a-z-]+)\(", lowered.compile().as_text()))

    ours = instructions(trainer._run_steps.lower(*arguments))
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
