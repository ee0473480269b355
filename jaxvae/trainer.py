"""The device's side of a run: its programs, each compiled once, and what they work on."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae import models, parallel
from jaxvae.config import Config
from jaxvae.data import ImageData
from jaxvae.errors import InputError
from jaxvae.keys import PURPOSES, Purpose, example_keys, purpose_key
from jaxvae.noise import observe
from jaxvae.train_step import (
    Metrics,
    TrainState,
    abstract_state,
    build_optimizer,
    init_state,
    intensities,
    make_evaluate,
    make_run_steps,
    make_train_step,
)
from jaxvae.variational import build_objective

Array = jax.Array
Numbers = Mapping[str, Array | float]  # Of `jaxvae.config.SWEPT`.

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


def make_call(
    config: Config,
    model: models.Model,
    plan: Schedule,
    num_images: int,
    batch_sharding: jax.sharding.NamedSharding | None = None,
) -> Callable[[TrainState, Array, Mapping[Purpose, Array], Numbers], tuple[TrainState, Metrics]]:
    """``call(state, images, keys, numbers) -> (state, metrics)``: the steps of one call of a run, as `make_run_steps`.

    To be jitted. `numbers` take the place of ``config.numbers()``. They are arguments, not constants that the
    compiler might fold, so that models which differ in them round alike (where the compiler makes the same
    instructions of the step within larger programs, too, as `tests/test_members.py` shows for the presets).
    """

    def call(
        state: TrainState, images: Array, keys: Mapping[Purpose, Array], numbers: Numbers
    ) -> tuple[TrainState, Metrics]:
        objective = build_objective(config, plan.steps_per_epoch, num_images, numbers)
        optimizer = build_optimizer(config, plan.steps_per_epoch, numbers)
        step = make_train_step(model, objective, optimizer)
        run = make_run_steps(step, config.batch_size, plan.steps_per_epoch, plan.steps_per_call, batch_sharding)
        return run(state, images, keys["shuffle"], keys["train-noise"])

    return call


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
      placement: how the run's arrays lie on the devices. Default: all on the first device there is.

    Raises:
      InputError: a batch cannot be cut into equal shares.
    """

    def __init__(self, config: Config, plan: Schedule, images: ImageData, placement: parallel.Placement | None = None):
        self.config, self.plan, self.images = config, plan, images
        placement = placement or parallel.data_parallel(jax.devices()[:1])
        parallel.check_divisible(config.batch_size, placement)
        self.placement = placement
        everywhere = placement.replicated
        batch_sharding = placement.batch if placement.shares > 1 else None
        _, height, width, channels = images.train.shape
        self.model = models.build_model(config, (height, width, channels))
        self.objective = build_objective(config, plan.steps_per_epoch, len(images.train))
        self.optimizer = build_optimizer(config, plan.steps_per_epoch)
        self.shown = images.test[:SHOWN]
        self._run_steps: Any = jax.jit(
            make_call(config, self.model, plan, len(images.train), batch_sharding),
            donate_argnums=0,
            out_shardings=(placement.state, everywhere),
        )
        evaluate = make_evaluate(self.model, self.objective, batch_sharding=batch_sharding)
        self._evaluate: Any = jax.jit(evaluate, out_shardings=everywhere)
        self._draw: Any = jax.jit(self._pictures, out_shardings=everywhere)
        self._copy: Any = jax.jit(lambda state: jax.tree.map(jnp.copy, state), out_shardings=everywhere)
        self._most: Any = jax.jit(jnp.max, out_shardings=everywhere)

    def abstract_state(self) -> TrainState:
        """The shapes and dtypes of a state; nothing is computed."""
        return abstract_state(self.model, self.optimizer)

    def start(self, state: TrainState | None) -> TrainState:
        """Put the images on the devices, and there make the first state, or put `state`, which is on the host."""
        placement = self.placement
        self._train_images = parallel.place(self.images.train, placement.images)
        self._test_images = parallel.place(self.images.test, placement.images)
        make_keys = jax.jit(self._make_keys, out_shardings=placement.replicated)
        self._keys: dict[Purpose, Array] = make_keys()
        numbers = {name: np.float32(value) for name, value in self.config.numbers().items()}
        self._numbers = parallel.place(numbers, placement.replicated)
        if state is not None:
            placed: TrainState = parallel.place(state, placement.state)
            return placed
        make_state = jax.jit(
            lambda key, mean: init_state(self.model, self.optimizer, key, mean), out_shardings=placement.state
        )
        mean = self.images.train.mean(axis=0, dtype=np.float64) / 255 if self.config.init == "glorot" else None
        first: TrainState = make_state(self._keys["init"], None if mean is None else np.float32(mean))
        return first

    def _make_keys(self) -> dict[Purpose, Array]:
        return {purpose: purpose_key(self.config.seed, purpose) for purpose in PURPOSES}

    def compile(self, state: TrainState) -> float:
        """Compile the training program; the seconds it took."""
        start = time.perf_counter()
        self._run_steps = self._run_steps.lower(state, self._train_images, self._keys, self._numbers).compile()
        return time.perf_counter() - start

    def program_bytes(self) -> int:
        """Memory of the compiled training program: arguments, results and temporaries, those shared counted once."""
        memory = self._run_steps.memory_analysis()
        total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        return int(total - memory.alias_size_in_bytes)

    def run_steps(self, state: TrainState) -> tuple[TrainState, Mapping[str, Array]]:
        """Dispatch the call that starts at ``state.step``; the values of its steps. Waits for nothing."""
        arguments = state, self._train_images, self._keys, self._numbers
        result: tuple[TrainState, Mapping[str, Array]] = self._run_steps(*arguments)
        return result

    def evaluate(self, state: TrainState) -> Mapping[str, Array]:
        """Dispatch the objective's terms of every test image, [N] each. Waits for nothing."""
        losses: Mapping[str, Array] = self._evaluate(state.params, self._test_images, self._keys["test-noise"])
        return losses

    def run_due(self, state: TrainState, step: int, total: int) -> Due:
        """Dispatch what is due at `step`, the step of `state`. Waits for nothing."""
        epoch, inside = divmod(step, self.plan.steps_per_epoch)

        def due(every: int) -> bool:
            return not inside and (step == total or (every > 0 and epoch % every == 0))

        return Due(
            test=self.evaluate(state) if not inside else None,
            pictures=self._draw(state.params, self._keys) if due(self.config.image_every) else None,
            # A copy, since the state itself is donated to the next call.
            checkpoint=self._copy(state) if due(self.config.checkpoint_every) else None,
        )

    def greatest(self, number: int) -> Array:
        """Dispatch the greatest `number` that any process of the job says, int32 []. Waits for nothing."""
        mesh = self.placement.replicated.mesh
        spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
        here = np.full(1, number, np.int32)
        said = jax.make_array_from_callback((mesh.size,), spread, lambda _: here)
        result: Array = self._most(said)
        return result

    def _pictures(self, params: models.Params, keys: Mapping[Purpose, Array]) -> dict[str, Array]:
        """Test images as the model sees them with their reconstructions, [2, N, H, W, C], and samples, [N, H, W, C]."""
        key = keys["reconstructions"]
        x = observe(self.config)(intensities(jnp.asarray(self.shown)), example_keys(key, 0, len(self.shown)))
        pictures = {"reconstructions": jnp.stack([x, models.reconstruct(self.model, params, x, key)])}
        if not isinstance(self.model, models.AutoEncoder):
            pictures["samples"] = models.sample(self.model, params, keys["samples"], SAMPLED)
        return pictures
