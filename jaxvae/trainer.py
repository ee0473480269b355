"""The device's side of a run: its programs, each compiled once, and what they work on."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxvae import memory, models, parallel
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
    epoch_order,
    evaluation_size,
    init_state,
    intensities,
    joined,
    make_evaluate,
    make_run_steps,
    make_train_step,
    on_every_device,
)
from jaxvae.variational import build_objective

Array = jax.Array
Numbers = Mapping[str, Array | float]  # Of `jaxvae.config.SWEPT`.
S = TypeVar("S")

SHOWN = 32  # Held-out images in a picture of reconstructions: one batch of the notes.
SAMPLED = 64  # Samples from the prior in a picture.
MOST_STEPS = 2**15  # In one compiled call, whose metrics of every step are held on the device.
PART_BATCHES = 8  # Evaluated in one call at most, which takes about as long as three steps.
SIZES = (1, 8, 64, 512)  # Steps of a compiled call on an accelerator.


def steps_per_epoch(config: Config, num_images: int) -> int:
    """Steps an epoch takes: the last, incomplete batch is dropped, of images that are shuffled anew every epoch.

    Raises:
      InputError: a batch is larger than the training set, or a line of metrics would average over more than an epoch.
    """
    if config.batch_size > num_images:
        raise InputError(f"--batch-size {config.batch_size} is larger than the {num_images} training images")
    steps = num_images // config.batch_size
    if config.log_every > steps:
        raise InputError(f"--log-every {config.log_every} is more than the {steps:,} steps of an epoch")
    return steps


class StepPrograms:
    """The compiled programs that take a run's steps.

    On a CPU one program takes any number of steps, so nothing depends on how a run is cut into calls. An accelerator
    would ask the host before every step of such a program: there each of `SIZES` is a program of its own, compiled
    when it is first needed.

    Args:
      make: the function to jit and lower, of a capacity as `make_run_steps` takes it; its last argument is the count.
      capacity: the largest number of steps a call may take.
      traced: whether one program takes any number. Default: on a CPU.
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
        """Dispatch a call of `count` steps. Waits for nothing but a compilation that is still to do."""
        self.compile(count, *arguments)
        if self._traced:
            return self._compiled[None](*arguments, np.int32(count))
        return self._compiled[count](*arguments)

    def memory(self) -> Any:
        """XLA's memory analysis of the program compiled first."""
        return next(iter(self._compiled.values())).memory_analysis()


def make_call(
    config: Config,
    model: models.Model,
    num_images: int,
    capacity: int | None = None,
    batch_sharding: jax.sharding.NamedSharding | None = None,
) -> Callable[[TrainState, Array, Array, Array, Numbers, int | Array], tuple[TrainState, Metrics]]:
    """``call(state, images, order, noise_key, numbers, count) -> (state, metrics)``, as `make_run_steps`.

    To be jitted. `numbers` take the place of ``config.numbers()``. They are arguments, not constants that the
    compiler might fold, so that models which differ in them round alike (where the compiler makes the same
    instructions of the step within larger programs, too, as `tests/test_members.py` shows for the presets).
    """
    steps = steps_per_epoch(config, num_images)

    def call(
        state: TrainState, images: Array, order: Array, noise_key: Array, numbers: Numbers, count: int | Array
    ) -> tuple[TrainState, Metrics]:
        objective = build_objective(config, steps, num_images, numbers)
        optimizer = build_optimizer(config, steps, numbers)
        if batch_sharding is None:
            step = make_train_step(model, objective, optimizer)
        else:
            step = on_every_device(make_train_step(model, objective, optimizer, batch_sharding.spec[0]), batch_sharding)
        run = make_run_steps(step, config.batch_size, steps, capacity, batch_sharding)
        return run(state, images, order, noise_key, count)

    return call


class Computer(Protocol[S]):
    """What computes a run, one model's or many members'. Every method dispatches work and waits for nothing.

    Attributes:
      steps_per_epoch: steps an epoch.
    """

    steps_per_epoch: int

    def usable(self, wanted: int) -> int:
        """The largest number of steps, at most `wanted`, that one call can take."""

    def compile(self, state: S, count: int = 1) -> float:
        """Compile the program of a call of `count` steps; the seconds it took, 0 if it was compiled before."""

    def run_steps(self, state: S, step: int, count: int) -> tuple[S, Mapping[str, Array]]:
        """The `count` steps from `step`, the step of `state`, on; the values of every step, [..., capacity]."""

    def splits(self, step: int, total: int) -> Sequence[str]:
        """What is evaluated at the end of the epoch that ends at `step`, of a run of `total` steps."""

    def parts(self, split: str) -> range:
        """The places at which the parts begin in which the images of a split are evaluated."""

    def evaluate(self, state: S, split: str, first: int) -> Mapping[str, Array]:
        """The objective's terms of the part that begins at place `first`, [..., size]."""

    def joined(self, split: str, parts: Sequence[Mapping[str, Array]]) -> dict[str, NDArray[Any]]:
        """The terms of all parts on the host: of every image of the split, [..., N]."""

    def pictures(self, state: S, step: int, total: int) -> Mapping[str, Array] | None:
        """The pictures due at the end of an epoch, or None."""

    def checkpoint(self, state: S, step: int, total: int) -> S | None:
        """A copy of `state` where a checkpoint is due at the end of an epoch, or None."""

    def greatest(self, values: NDArray[np.float32]) -> Array:
        """The greatest of each of the values [N] that the processes of the job say, [N]."""


def advance(computer: Computer[S], state: S, step: int, count: int) -> tuple[S, list[tuple[int, Mapping[str, Array]]]]:
    """Dispatch `count` steps from `step`, the step of `state`, on, in as few calls as there can be.

    Returns:
      The state; of each call, its number of steps and their values, [..., capacity].
    """
    calls, end = [], step + count
    while step < end:
        taken = computer.usable(min(end - step, computer.steps_per_epoch - step % computer.steps_per_epoch))
        state, values = computer.run_steps(state, step, taken)
        calls.append((taken, values))
        step += taken
    return state, calls


def due(every: int, step: int, total: int, steps_per_epoch: int) -> bool:
    """Whether something is due at `step`, the end of an epoch: after every so many epochs (0: none), and at the end."""
    return step == total or (every > 0 and step // steps_per_epoch % every == 0)


def splits(validation: bool, last: bool) -> Sequence[str]:
    """The splits evaluated at the end of an epoch: of a run with validation images or not, the last epoch or not.

    The test images are for final metrics, and seen at the end alone; but where no validation images are held out, they
    are what is watched, and nothing is chosen by them.
    """
    if not validation:
        return ("test",)
    return ("validation", "test") if last else ("validation",)


class Trainer:
    """The device's side of a run: its programs, each compiled once, and what they work on. A `Computer`.

    `start`, then `compile`, then `run_steps` as often as wanted.

    Args:
      config: what to train.
      images: what to train and to test on.
      placement: how the run's arrays lie on the devices. Default: all on the first device there is.
      traced: as of `StepPrograms`.

    Raises:
      InputError: a batch cannot be cut into equal shares, or is larger than the training set.
    """

    def __init__(
        self,
        config: Config,
        images: ImageData,
        placement: parallel.Placement | None = None,
        traced: bool | None = None,
    ):
        self.config, self.images = config, images
        self.steps_per_epoch = steps_per_epoch(config, len(images.train))
        placement = placement or parallel.data_parallel(jax.devices()[:1])
        parallel.check_divisible(config.batch_size, placement)
        self.placement = placement
        everywhere = placement.replicated
        batch_sharding = placement.batch if placement.shares > 1 else None
        count, height, width, channels = images.train.shape
        self.model = models.build_model(config, (height, width, channels))
        self.objective = build_objective(config, self.steps_per_epoch, count)
        self.optimizer = build_optimizer(config, self.steps_per_epoch)
        self.shown = (images.validation if len(images.validation) else images.test)[:SHOWN]

        def program(capacity: int | None) -> Any:
            return jax.jit(
                make_call(config, self.model, count, capacity, batch_sharding),
                donate_argnums=0,
                static_argnums=5 if capacity is None else None,
                out_shardings=(placement.state, everywhere),
            )

        self._programs = StepPrograms(program, self.steps_per_epoch, traced)
        self._size = {
            name: evaluation_size(
                images.train.shape[1:], len(split), config.samples, placement.shares, PART_BATCHES * config.batch_size
            )
            for name, split in self._held_out().items()
        }
        self._evaluate: dict[str, Any] = {
            name: jax.jit(make_evaluate(self.model, self.objective, size, batch_sharding), out_shardings=everywhere)
            for name, size in self._size.items()
        }
        self._order_of: Any = jax.jit(lambda key, epoch: epoch_order(key, epoch, count), out_shardings=everywhere)
        self._order: tuple[int, Array] | None = None
        self._draw: Any = jax.jit(self._pictures, out_shardings=everywhere)
        self._copy: Any = jax.jit(lambda state: jax.tree.map(jnp.copy, state), out_shardings=everywhere)
        self._most: Any = jax.jit(lambda said: said.max(axis=0), out_shardings=everywhere)

    def _held_out(self) -> dict[str, NDArray[np.uint8]]:
        held_out = {"validation": self.images.validation, "test": self.images.test}
        return {split: images for split, images in held_out.items() if len(images)}

    def abstract_state(self) -> TrainState:
        """The shapes and dtypes of a state; nothing is computed."""
        return abstract_state(self.model, self.optimizer)

    def check_fits(self) -> None:
        """Raise `InputError` where the devices' memory is certainly not enough; nothing is compiled."""
        config, images = self.config, self.images
        share = config.batch_size // self.placement.shares
        required = memory.required_bytes(self.abstract_state(), images.train.shape[1:], share, config.samples)
        memory.check_fits(required, images.nbytes, list(self.placement.batch.mesh.devices.flat))

    def start(self, state: TrainState | None) -> TrainState:
        """Put the images on the devices, and there make the first state, or put `state`, which is on the host."""
        placement = self.placement
        self._train_images = parallel.place(self.images.train, placement.images)
        self._held_out_images = {
            name: parallel.place(images, placement.images) for name, images in self._held_out().items()
        }
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

    def _arguments(self, state: TrainState, step: int) -> tuple[Any, ...]:
        epoch = step // self.steps_per_epoch
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self._order_of(self._keys["shuffle"], np.int32(epoch))
        return state, self._train_images, self._order[1], self._keys["train-noise"], self._numbers

    def usable(self, wanted: int) -> int:
        """See `Computer`."""
        return self._programs.usable(wanted)

    def compile(self, state: TrainState, count: int = 1) -> float:
        """See `Computer`."""
        return self._programs.compile(count, *self._arguments(state, 0))

    def program_bytes(self) -> int:
        """Memory of the compiled training program: arguments, results and temporaries, those shared counted once."""
        memory = self._programs.memory()
        total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        return int(total - memory.alias_size_in_bytes)

    def run_steps(self, state: TrainState, step: int, count: int) -> tuple[TrainState, Mapping[str, Array]]:
        """See `Computer`."""
        result: tuple[TrainState, Mapping[str, Array]] = self._programs(count, *self._arguments(state, step))
        return result

    def splits(self, step: int, total: int) -> Sequence[str]:
        """See `Computer`."""
        return splits(len(self.images.validation) > 0, step == total)

    def parts(self, split: str) -> range:
        """See `Computer`."""
        return range(0, len(self._held_out()[split]), self._size[split])

    def evaluate(self, state: TrainState, split: str, first: int) -> Mapping[str, Array]:
        """See `Computer`."""
        key, images = self._keys["test-noise"], self._held_out_images[split]
        losses: Mapping[str, Array] = self._evaluate[split](state.params, images, key, np.int32(first))
        return losses

    def joined(self, split: str, parts: Sequence[Mapping[str, Array]]) -> dict[str, NDArray[Any]]:
        """See `Computer`."""
        return joined(parts, len(self._held_out()[split]))

    def pictures(self, state: TrainState, step: int, total: int) -> Mapping[str, Array] | None:
        """See `Computer`."""
        if not due(self.config.image_every, step, total, self.steps_per_epoch):
            return None
        drawn: Mapping[str, Array] = self._draw(state.params, self._keys)
        return drawn

    def checkpoint(self, state: TrainState, step: int, total: int) -> TrainState | None:
        """See `Computer`. A copy, since the state itself is donated to the next call."""
        if not due(self.config.checkpoint_every, step, total, self.steps_per_epoch):
            return None
        copied: TrainState = self._copy(state)
        return copied

    def greatest(self, values: NDArray[np.float32]) -> Array:
        """See `Computer`."""
        mesh = self.placement.replicated.mesh
        spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
        said = jax.make_array_from_callback((mesh.size, len(values)), spread, lambda _: values[None])
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
