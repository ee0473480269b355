"""The compiled programs that take a run's steps."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxvae.config import Config
from jaxvae.errors import InputError
from jaxvae.models.build import Model, with_traced_parts
from jaxvae.objectives.build import build_objective
from jaxvae.optimizer import build_optimizer
from jaxvae.protocols import Hyperparameters
from jaxvae.train.step import (
    Metrics,
    TrainState,
    make_run_steps,
    make_train_step,
    on_every_device,
)
from jaxvae.typing import Array, Batch

MOST_STEPS = 2**15  # In one compiled call: the metrics of every step are held on the device.
SIZES = (1, 8, 64, 512)  # Steps of a compiled call on an accelerator.


def steps_per_epoch(config: Config, num_images: int) -> int:
    """Steps of an epoch. The last, incomplete batch is dropped; the images are shuffled again every epoch.

    Raises:
      InputError: a batch is larger than the training set, or a line of metrics would average over more than an epoch.
    """
    if config.batch_size > num_images:
        raise InputError(f"--batch-size {config.batch_size} is larger than the {num_images} training images")
    steps: int = num_images // config.batch_size
    if config.log_every > steps:
        raise InputError(f"--log-every {config.log_every} is more than the {steps:,} steps of an epoch")
    return steps


class StepPrograms:
    """The compiled programs that take a run's steps.

    On a CPU one program takes any number of steps, so nothing depends on how a run is cut into calls. An accelerator
    would ask the host before every step of such a program: there each of `SIZES` has its own program, compiled when it
    is first needed.

    Args:
      make: from a capacity, as of `make_run_steps`, to the jitted function. Its last argument is the count.
      capacity: the largest number of steps a call may take.
      traced: whether one program takes any number of steps. Default: only on a CPU.
    """

    def __init__(self, make: Callable[[int | None], Any], capacity: int, traced: bool | None = None):
        self._traced = jax.default_backend() == "cpu" if traced is None else traced
        self._make, self._capacity = make, max(1, min(capacity, MOST_STEPS))
        self._compiled: dict[int | None, Any] = {}

    def usable(self, wanted: int) -> int:
        """The largest number of steps, at most `wanted` (>= 1), that a call can take."""
        wanted = min(wanted, self._capacity)
        return wanted if self._traced else max(size for size in SIZES if size <= wanted)

    def lower(self, count: int, *arguments: Any) -> Any:
        """The program for a call of `count` steps, lowered but not compiled."""
        if self._traced:
            return self._make(self._capacity).lower(*arguments, np.int32(count))
        return self._make(None).lower(*arguments, count)

    def compile(self, count: int, *arguments: Any) -> float:
        """Compile the program for a call of `count` steps; the seconds it took, 0 if it was compiled before."""
        key = None if self._traced else count
        if key in self._compiled:
            return 0.0
        start = time.perf_counter()
        self._compiled[key] = self.lower(count, *arguments).compile()
        return time.perf_counter() - start

    def __call__(self, count: int, *arguments: Any) -> Any:
        """Dispatch a call of `count` steps. Waits only for a compilation, if one is needed."""
        self.compile(count, *arguments)
        if self._traced:
            return self._compiled[None](*arguments, np.int32(count))
        return self._compiled[count](*arguments)

    def memory(self) -> Any:
        """XLA's memory analysis of the program compiled first."""
        return next(iter(self._compiled.values())).memory_analysis()


def shares_batches(config: Config) -> bool:
    """Whether several devices may each take a share of a batch: not if the model is the user's own.

    Such a model may hold batch statistics or random streams, which belong to the whole batch.
    """
    return config.parts.model is None and build_objective(config, 0, 0).per_example


def make_call(
    config: Config,
    model: Model,
    num_images: int,
    capacity: int | None = None,
    batch_sharding: jax.sharding.NamedSharding | None = None,
) -> Callable[[TrainState, Batch, Array, Array, Hyperparameters, int | Array], tuple[TrainState, Metrics]]:
    """``call(state, examples, order, noise_key, hyperparameters, count) -> (state, metrics)``, as `make_run_steps`.

    To be jitted. `hyperparameters` replace ``config.traced()``. They are arguments, not constants that the compiler
    might fold, so that models that differ in them round alike. (The compiler must also make the same instructions of
    the step within larger programs; `tests/test_members.py` shows that it does for the presets.)
    """
    steps = steps_per_epoch(config, num_images)

    def call(
        state: TrainState,
        examples: Batch,
        order: Array,
        noise_key: Array,
        hyperparameters: Hyperparameters,
        count: int | Array,
    ) -> tuple[TrainState, Metrics]:
        objective = build_objective(config, steps, num_images, hyperparameters)
        optimizer = build_optimizer(config, steps, hyperparameters)
        traced_model = with_traced_parts(model, hyperparameters)
        if batch_sharding is None or not shares_batches(config):
            # If a model needs the whole batch, the compiler distributes the work.
            step: Any = make_train_step(traced_model, objective, optimizer)
        else:
            shared = make_train_step(traced_model, objective, optimizer, batch_sharding.spec[0])
            step = on_every_device(shared, batch_sharding)
        run = make_run_steps(step, config.batch_size, steps, capacity, batch_sharding)
        return run(state, examples, order, noise_key, count)

    return call
