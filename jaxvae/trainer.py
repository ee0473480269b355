"""The device's side of a run: its programs, each compiled once, and what they work on."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae import models, parallel
from jaxvae.config import Config
from jaxvae.data import ImageData
from jaxvae.errors import InputError
from jaxvae.keys import Purpose, purpose_key
from jaxvae.objectives import OBJECTIVES
from jaxvae.train_step import (
    TrainState,
    build_optimizer,
    init_state,
    intensities,
    make_evaluate,
    make_run_steps,
    make_train_step,
)

Array = jax.Array

SHOWN = 32  # Test images in a picture of reconstructions: one batch of the notes.
SAMPLED = 64  # Samples from the prior in a picture.


class Schedule(NamedTuple):
    """How a run is cut into compiled calls, as a function of the configuration and the data's size alone."""

    steps_per_call: int
    calls_per_epoch: int

    @property
    def steps_per_epoch(self) -> int:
        return self.steps_per_call * self.calls_per_epoch


def schedule(config: Config, num_images: int) -> Schedule:
    """Equal calls of at most `steps_per_call` steps, so that one program serves the whole run.

    Where the steps of an epoch do not divide into equal calls, the few left over are left out:
    the images are shuffled anew every epoch, so none is left out for good.

    Raises:
      InputError: a batch is larger than the training set.
    """
    steps = num_images // config.batch_size
    if steps == 0:
        raise InputError(f"--batch-size {config.batch_size} is larger than the {num_images} training images")
    calls = -(-steps // config.steps_per_call)
    return Schedule(steps // calls, calls)


class Due(NamedTuple):
    """What was due after a call: on the device, or None."""

    test: Mapping[str, Array] | None
    pictures: Mapping[str, Array] | None
    checkpoint: TrainState | None


class Trainer:
    """The device's side of a run: its programs, each compiled once, and what they work on.

    `start`, then `compile`, then `run_steps` as often as wanted.

    Args:
      config: what to train.
      plan: how it is cut into calls: ``schedule(config, len(images.train))``.
      images: what to train and to test on.
      devices: what to train on, each with an equal share of every batch. Default: the first there is.

    Raises:
      InputError: the devices cannot share a batch equally.
    """

    def __init__(self, config: Config, plan: Schedule, images: ImageData, devices: Sequence[jax.Device] | None = None):
        self.config, self.plan, self.images = config, plan, images
        mesh = parallel.data_mesh(devices or parallel.local_devices(1))
        parallel.check_divisible(config.batch_size, mesh)
        self._everywhere = parallel.replicated(mesh)
        _, height, width, channels = images.train.shape
        self.model = models.build_model(config, (height, width, channels))
        self.objective = OBJECTIVES[config.objective]
        self.optimizer = build_optimizer(config)
        self.shown = images.test[:SHOWN]
        step = make_train_step(self.model, self.objective, self.optimizer)
        self._run_steps: Any = jax.jit(
            make_run_steps(
                step,
                config.batch_size,
                plan.steps_per_epoch,
                plan.steps_per_call,
                batch_sharding=parallel.by_example(mesh) if mesh.size > 1 else None,
            ),
            donate_argnums=0,
            out_shardings=self._everywhere,
        )
        self._evaluate: Any = jax.jit(make_evaluate(self.model, self.objective))
        self._draw: Any = jax.jit(self._pictures)
        self._copy: Any = jax.jit(lambda state: jax.tree.map(jnp.copy, state))

    def _key(self, purpose: Purpose) -> Array:
        return purpose_key(self.config.seed, purpose)

    def start(self, state: TrainState | None) -> TrainState:
        """Put the images on every device, and there make the first state or put `state`."""
        self._train_images = jax.device_put(self.images.train, self._everywhere)
        self._test_images = jax.device_put(self.images.test, self._everywhere)
        if state is None:
            state = jax.jit(lambda key: init_state(self.model, self.optimizer, key))(self._key("init"))
        placed: TrainState = jax.device_put(state, self._everywhere)
        return placed

    def compile(self, state: TrainState) -> float:
        """Compile the training program; the seconds it took."""
        start = time.perf_counter()
        keys = self._key("shuffle"), self._key("train-noise")
        self._run_steps = self._run_steps.lower(state, self._train_images, *keys).compile()
        return time.perf_counter() - start

    def program_bytes(self) -> int:
        """Memory of the compiled training program: arguments, results and temporaries, those shared counted once."""
        memory = self._run_steps.memory_analysis()
        total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        return int(total - memory.alias_size_in_bytes)

    def run_steps(self, state: TrainState) -> tuple[TrainState, Mapping[str, Array]]:
        """Dispatch the call that starts at ``state.step``; the values of its steps. Waits for nothing."""
        keys = self._key("shuffle"), self._key("train-noise")
        result: tuple[TrainState, Mapping[str, Array]] = self._run_steps(state, self._train_images, *keys)
        return result

    def evaluate(self, state: TrainState) -> Mapping[str, Array]:
        """Dispatch the objective's terms of every test image, [N] each. Waits for nothing."""
        losses: Mapping[str, Array] = self._evaluate(state.params, self._test_images, self._key("test-noise"))
        return losses

    def run_due(self, state: TrainState, step: int, total: int) -> Due:
        """Dispatch what is due at `step`, the step of `state`. Waits for nothing."""
        epoch, inside = divmod(step, self.plan.steps_per_epoch)

        def due(every: int) -> bool:
            return not inside and (step == total or (every > 0 and epoch % every == 0))

        return Due(
            test=self.evaluate(state) if not inside else None,
            pictures=self._draw(state.params) if due(self.config.image_every) else None,
            # A copy, since the state itself is donated to the next call.
            checkpoint=self._copy(state) if due(self.config.checkpoint_every) else None,
        )

    def _pictures(self, params: models.Params) -> dict[str, Array]:
        x = intensities(jnp.asarray(self.shown))
        pictures = {"reconstructions": models.reconstruct(self.model, params, x, self._key("reconstructions"))}
        if isinstance(self.model, models.VAE):
            pictures["samples"] = models.sample(self.model, params, self._key("samples"), SAMPLED)
        return pictures
