"""The compiled program that takes a run's steps."""

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxvae.config import Config
from jaxvae.data.images import usual_batch_size
from jaxvae.errors import InputError
from jaxvae.models.build import Model, with_traced_parts
from jaxvae.models.networks import Mlp
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
from jaxvae.typing import Array, Batch, ImageShape

LEAST_PART = 8  # Images: `jaxvae.models.convolution` moves as many numbers at once.
MOST_STEPS = 2**15  # In one compiled call: the metrics of every step are held on the device.
BLOCK = 64  # Steps that an accelerator takes without asking the host.


def steps_per_epoch(config: Config, num_images: int) -> int:
    """Steps of an epoch. The last, incomplete batch is dropped; the images are shuffled again every epoch.

    Raises:
      InputError: a batch is larger than the training set, or a line of metrics would average over more than an epoch.
    """
    if config.batch_size > num_images:
        said = f"--batch-size {config.batch_size} is larger than the {num_images} training images"
        raise InputError(f"{said}: try {usual_batch_size(num_images)}")
    steps: int = num_images // config.batch_size
    if config.log_every > steps:
        raise InputError(f"--log-every {config.log_every} is more than the {steps:,} steps of an epoch")
    return steps


def block_steps(block: int | None = None) -> int:
    """`block`, or if None the best on this platform. See `make_run_steps`."""
    return block or (1 if jax.default_backend() == "cpu" else BLOCK)


def part_size(config: Config, image_shape: ImageShape, shares: int, platform: str) -> int | None:
    """How many images of its share of a batch a device computes at a time: see `make_train_step`. None: all.

    On a CPU, an image takes longer in a part of more images than `Network.cached_images`.
    """
    objective = config.parts.objective
    separate = vars(type(objective)).get("separate", False)  # A subclass may compare images.
    if "prior" in objective.uses:
        separate = separate and config.parts.prior.separate
    if platform != "cpu" or not shares_batches(config) or not separate:
        return None
    cached = config.parts.network.cached_images(image_shape)
    if cached is None:
        return None
    share, most = config.batch_size // shares, max(LEAST_PART, cached // objective.latents)
    size = max(size for size in range(1, min(most, share) + 1) if share % size == 0)
    return size if size < share and 2 * size > most else None  # Very small parts would be slower still.


class StepProgram:
    """The compiled program that takes any number of a run's steps.

    Args:
      jitted: takes a run's state and what else it needs, and the number of steps, int32 [], last.
      capacity: the largest number of steps a call may take.
      recorded, tried: see `compiler_options`.
    """

    def __init__(self, jitted: Any, capacity: int, recorded: bool = False, tried: bool = True):
        self._jitted, self._capacity, self._recorded, self._tried = jitted, capacity, recorded, tried
        self._compiled: Any = None

    def usable(self, wanted: int) -> int:
        """The largest number of steps, at most `wanted` (>= 1), that a call can take."""
        return min(wanted, self._capacity)

    def trace(self, *arguments: Any) -> Any:
        """The program, as JAX traces it: it has a jaxpr, and can be lowered."""
        return self._jitted.trace(*arguments, np.int32(1))

    def compile(self, *arguments: Any) -> float:
        """Compile the program; the seconds it took, 0 if it was compiled before."""
        if self._compiled is not None:
            return 0.0
        start = time.perf_counter()
        self._compiled = self.compiled(self.trace(*arguments))
        return time.perf_counter() - start

    def compiled(self, traced: Any) -> Any:
        """What `trace` returned, compiled for this machine."""
        lowered = traced.lower()
        options = compiler_options(jax.default_backend(), self._recorded, self._tried)
        try:
            return lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            # The options of XLA come and go, and so do their values.
            if not any(words in str(error) for words in ("No such compile option", "While setting option")):
                raise
            return lowered.compile()

    def __call__(self, count: int, *arguments: Any) -> Any:
        """Dispatch a call of `count` steps. Waits only for a compilation, if one is needed."""
        self.compile(*arguments)
        return self._compiled(*arguments, np.int32(count))

    def memory(self) -> Any:
        """XLA's memory analysis of the compiled program."""
        return self._compiled.memory_analysis()


def program_bytes(memory: Any) -> int:
    """Bytes of arguments, results and temporaries, from XLA's memory analysis; what is shared counts once."""
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return int(total - memory.alias_size_in_bytes)


# What XLA records in CUDA graphs by default, and loops.
RECORDED = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE"
# With this, XLA takes the first kernel on a GPU that gives the same bits every time. Without it, XLA tries several for
# each product when it compiles, for seconds, and takes the fastest of that moment.
UNTRIED: dict[str, Any] = {"xla_gpu_exclude_nondeterministic_ops": True}


def compiler_options(backend: str, recorded: bool = False, tried: bool = True) -> dict[str, Any]:
    """XLA's options for the steps, on a backend: "cpu", "gpu" or "tpu". What XLA_FLAGS says holds.

    On a GPU, the kernels of a step that do not need each other run at the same time: of some fifty small ones, many do
    not fill it. With `recorded`, a CUDA graph holds the loop over the steps itself, not only each step. Without
    `tried`, `UNTRIED` holds, where XLA knows it.
    """
    if backend != "gpu":
        return {}
    options = {"xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"}
    if recorded:
        options["xla_gpu_enable_command_buffer"] = RECORDED
    return _unless_said(options if tried else options | seldom_options(backend))


def _unless_said(options: dict[str, Any]) -> dict[str, Any]:
    """The options that XLA_FLAGS does not name."""
    by_the_user = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in options.items() if name not in by_the_user}


# Measured on an H100, see experiments/accelerator/NOTES.md; the last is an assumption.
TRIALS = 11.0  # Seconds that trials of a dense model's step take.
SAVED = 33e-6  # Seconds that they save of a step, at most, where it is bound by latency.
SAVED_FLOPS = 250e12  # Where a step is bound by its products: the FLOP for which they save a second.


def worth_trials(config: Config, parameters: int, steps: int, devices: int = 1) -> bool:
    """Whether a run on a GPU takes less time if XLA tries several kernels for its steps before the first.

    Only dense models in float32 have been measured without trials, so others are worth them.

    Args:
      config: of the run.
      parameters: how many numbers its model has.
      steps: how many the run takes.
      devices: how many share each batch.
    """
    parts, precision = config.parts, (config.compute_dtype, config.matmul_precision)
    if parts.model is not None or type(parts.network) is not Mlp or precision != ("float32", "highest"):
        return True
    share = config.batch_size / devices
    flops = 6 * parameters * share * parts.objective.latents  # A product forward, two backward.
    return bool(steps * max(SAVED, flops / SAVED_FLOPS) > TRIALS)


@functools.cache
def seldom_options(backend: str) -> dict[str, Any]:
    """XLA's options for programs that take little of a run's time, such as evaluations, on a backend.

    On a GPU these are `UNTRIED`. What XLA_FLAGS says holds.
    """
    options = _unless_said(UNTRIED) if backend == "gpu" else {}
    if not options:
        return {}
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options=options)
    except jax.errors.JaxRuntimeError:  # The options of XLA come and go.
        return {}
    return options


def jit_seldom(function: Callable[..., Any], **given: Any) -> Any:
    """`jax.jit`, with `seldom_options` and the options `given`. JAX traces no function with such options in another."""
    return jax.jit(function, **given, compiler_options=seldom_options(jax.default_backend()))


def shares_batches(config: Config) -> bool:
    """Whether several devices may each take a share of a batch: not if the model is the user's own.

    Such a model may hold batch statistics or random streams, which belong to the whole batch.
    """
    return config.parts.model is None and build_objective(config, 0, 0).per_example


def make_call(
    config: Config,
    model: Model,
    num_images: int,
    capacity: int,
    batch_sharding: jax.sharding.NamedSharding | None = None,
    block: int = 1,
    fused: Any = None,
    part: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Callable[[TrainState, Batch, Array, Array, Hyperparameters, Array], tuple[TrainState, Metrics]]:
    """``call(state, examples, order, noise_key, hyperparameters, count) -> (state, metrics)``, as `make_run_steps`.

    To be jitted. `hyperparameters` replace ``config.traced()``. They are arguments, not constants that the compiler
    might fold, so that models that differ in them round alike. (The compiler must also make the same instructions of
    the step within larger programs; `tests/test_members.py` shows that it does for the presets.)

    With `part`, see `part_size`. With `shapes`, see `make_run_steps`. With `fused`, a
    `jaxvae.train.fused_plan.Plan`, the steps are fused. Of `hyperparameters`, these take the learning rate alone; the
    rest is in the plan.
    """
    steps = steps_per_epoch(config, num_images)

    def call(
        state: TrainState,
        examples: Batch,
        order: Array,
        noise_key: Array,
        hyperparameters: Hyperparameters,
        count: Array,
    ) -> tuple[TrainState, Metrics]:
        if fused is not None:
            from jaxvae.train.fused import make_fused_run_steps  # Pallas takes long to import.

            rate = hyperparameters["learning_rate"]
            return make_fused_run_steps(fused, steps, capacity, block, rate)(state, examples, order, noise_key, count)
        objective = build_objective(config, steps, num_images, hyperparameters)
        optimizer = build_optimizer(config, steps, hyperparameters)
        traced_model = with_traced_parts(model, hyperparameters)
        if batch_sharding is None or not shares_batches(config):
            # If a model needs the whole batch, the compiler distributes the work.
            step: Any = make_train_step(traced_model, objective, optimizer, part=part)
        else:
            shared = make_train_step(traced_model, objective, optimizer, batch_sharding.spec[0], part)
            step = on_every_device(shared, batch_sharding)
        run = make_run_steps(step, config.batch_size, steps, capacity, batch_sharding, block, shapes)
        return run(state, examples, order, noise_key, count)

    return call
