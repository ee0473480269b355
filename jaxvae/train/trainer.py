"""The device's side of a run: its programs, each compiled once, and their data."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxvae import memory
from jaxvae.chunks import cached_at_once
from jaxvae.config import Config
from jaxvae.data.images import ImageData, Split
from jaxvae.data.rows import Rows, mean
from jaxvae.distributed import devices as parallel
from jaxvae.keys import Purpose, example_keys, purpose_keys
from jaxvae.models.autoencoder import AutoEncoder
from jaxvae.models.build import Start, build_model, can_sample, class_rows, reconstruct, sample
from jaxvae.models.layers import float32_products
from jaxvae.models.vae import LatentModel, label_of
from jaxvae.objectives.build import build_objective
from jaxvae.optimizer import build_optimizer
from jaxvae.train.computer import PART_BATCHES, due, splits
from jaxvae.train.evaluation import evaluation_size, joined, make_evaluate
from jaxvae.train.programs import (
    MOST_STEPS,
    StepProgram,
    block_steps,
    jit_seldom,
    make_call,
    part_size,
    program_bytes,
    steps_per_epoch,
    worth_trials,
)
from jaxvae.train.step import (
    TrainState,
    abstract_state,
    as_batch,
    as_rows,
    epoch_order,
    example_of,
    init_state,
    shapes_of,
)
from jaxvae.train.stream import Blocks, Place, part_of
from jaxvae.typing import Array, Params

SHOWN = 32  # Held-out images in a picture of reconstructions: one batch of the notes.
MAPPED = 500  # Held-out images whose latents are kept with the pictures,
MAPPED_VALUES = 2**21  # within this many values.
SAMPLED = 64  # Samples from the prior in a picture.


class Trainer:
    """The device's side of a run: its programs, each compiled once, and their data. A `Computer`.

    Call `start`, then `compile`, then `run_steps` any number of times. A context manager: streamed images are read by
    threads.

    Args:
      config: what to train.
      images: what to train and to test on.
      placement: how the run's arrays lie on the devices. Default: all on the first device.
      block: see `make_run_steps`. Default: the best on this platform.
      fused: a `jaxvae.train.fused_plan.Plan` of fused steps. Default: what `config` asks for.

    Raises:
      InputError: a batch cannot be cut into equal shares, or is larger than the training set; or the step's kernels do
        not suit the run.
    """

    def __init__(
        self,
        config: Config,
        images: ImageData,
        placement: parallel.Placement | None = None,
        block: int | None = None,
        fused: Any = None,
    ):
        self.config, self.images = config, images
        self.steps_per_epoch = steps_per_epoch(config, len(images.train))
        placement = placement or parallel.data_parallel(jax.devices()[:1])
        parallel.check_divisible(config.batch_size, placement)
        self.placement = placement
        everywhere = placement.replicated
        batch_sharding = placement.batch if placement.shares > 1 else None
        count = len(images.train)
        if fused is None and config.step_kernels != "plain":
            from jaxvae.train.fused import chosen_plan  # Pallas takes long to import.

            fused = chosen_plan(config, images.image_shape, list(placement.batch.mesh.devices.flat))
        self.model = build_model(config, images.image_shape)
        self._example = example_of(images.split("train"))
        self.objective = build_objective(config, self.steps_per_epoch, count)
        self.optimizer = build_optimizer(config, self.steps_per_epoch)
        shown = images.split("validation" if len(images.validation) else "test")
        self._shown = {name: values[:SHOWN] for name, values in shown.items()}
        most = max(math.prod(images.image_shape), getattr(self.model, "latent_size", 1))
        mapped = min(MAPPED, max(SHOWN, MAPPED_VALUES // most))
        self._mapped = {name: values[:mapped] for name, values in shown.items()}

        platform = placement.batch.mesh.devices.flat[0].platform
        self._part = part_size(config, images.image_shape, placement.shares, platform)
        capacity = min(self.steps_per_epoch, MOST_STEPS)
        jitted = jax.jit(
            make_call(
                config,
                self.model,
                count,
                capacity,
                batch_sharding,
                block_steps(block),
                fused,
                self._part,
                shapes_of(self._example),
            ),
            donate_argnums=0,
            out_shardings=(placement.state, everywhere),
        )
        # Fused steps are slower in a recorded loop; several devices' steps were not tried in one.
        recorded = fused is None and placement.batch.mesh.devices.size == 1
        # Fused steps have not been measured without trials of what surrounds them.
        self._program = StepProgram(jitted, capacity, recorded, fused is not None or self._tries_kernels())
        latents = self.objective.objective.latents
        most = PART_BATCHES * config.batch_size
        if (cached := cached_at_once(config, images.image_shape, latents)) is not None:
            most = min(most, cached * placement.shares)
        self._size = {
            name: evaluation_size(images.image_shape, len(split["image"]), latents, placement.shares, most)
            for name, split in self._held_out().items()
        }
        self._evaluate: dict[str, Any] = {
            name: jit_seldom(
                make_evaluate(self.model, self.objective, self._size[name], batch_sharding, shapes_of(split)),
                out_shardings=everywhere,
            )
            for name, split in self._held_out().items()
        }
        self._order_of: Any = jax.jit(lambda key, epoch: epoch_order(key, epoch, count), out_shardings=everywhere)
        self._order: tuple[int, Array] | None = None
        self._blocks = self._streamed()
        self._block: tuple[Place, Any] | None = None  # The one on the devices.
        self._draw: Any = jit_seldom(self._pictures, out_shardings=everywhere)
        self._copy: Any = jax.jit(lambda state: jax.tree.map(jnp.copy, state), out_shardings=everywhere)
        self._most: Any = jax.jit(lambda said: said.max(axis=0), out_shardings=everywhere)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._blocks is not None:
            self._blocks.close()

    def _streamed(self) -> Blocks | None:
        """The training images in blocks, if they are not to lie on the devices."""
        wanted = self.config.stream == "always" or isinstance(self.images.train, Rows)
        if self.config.stream == "auto" and not wanted:
            wanted = not memory.images_fit(self._required(), self.images.nbytes, self._devices())
        if not wanted:
            return None

        def order_of(epoch: int) -> Array:
            order: Array = self._order_of(self._keys["shuffle"], np.int32(epoch))
            return order

        return Blocks(self.images.split("train"), self.config.batch_size, self.steps_per_epoch, order_of)

    def _tries_kernels(self) -> bool:
        """Whether the steps are worth XLA's trials of kernels, if they run on a GPU: see `worth_trials`."""
        devices = self._devices()
        if devices[0].platform != "gpu":
            return True
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.abstract_state().params))
        return worth_trials(self.config, parameters, self.config.epochs * self.steps_per_epoch, len(devices))

    def _devices(self) -> list[jax.Device]:
        return list(self.placement.batch.mesh.devices.flat)

    @property
    def where(self) -> str:
        """Where the training images are while the run trains, in words."""
        if self._blocks is None:
            return "resident on the device"
        return f"streamed in blocks of {self._blocks.steps:,} steps ({memory.in_words(self._blocks.nbytes)})"

    @property
    def waited(self) -> float:
        """See `Computer`."""
        return 0.0 if self._blocks is None else self._blocks.waited

    def _held_out(self) -> dict[str, Split]:
        held_out = {name: self.images.split(name) for name in ("validation", "test")}
        return {name: split for name, split in held_out.items() if len(split["image"])}

    def abstract_state(self) -> TrainState:
        """The shapes and dtypes of a state; nothing is computed."""
        return self._abstract_state

    @functools.cached_property
    def _abstract_state(self) -> TrainState:
        return abstract_state(self.model, self.optimizer, self._example)  # It traces the model, which takes long.

    def check_fits(self) -> None:
        """Raise `InputError` if the devices' memory is certainly not enough; nothing is compiled."""
        resident = self.images.nbytes if self._blocks is None else 2 * self._blocks.nbytes
        memory.check_fits(self._required(), resident, self._devices())

    def _required(self) -> dict[str, int]:
        share = self.config.batch_size // self.placement.shares
        return memory.required_bytes(
            self.abstract_state(), self.images.image_shape, share, self.objective.objective.latents, self._part
        )

    def start(self, state: TrainState | None) -> TrainState:
        """Put the images on the devices, and there make the first state or put `state`, which is on the host."""
        placement = self.placement
        if self._blocks is None:
            self._train_examples = parallel.place(as_rows(self.images.split("train")), placement.images)
            self._held_out_examples = {
                name: parallel.place(as_rows(split), placement.images) for name, split in self._held_out().items()
            }
        else:
            self._places = parallel.place(self._blocks.places(), placement.replicated)
        make_keys = jax.jit(self._make_keys, out_shardings=placement.replicated)
        self._keys: dict[Purpose, Array] = make_keys()
        hyperparameters = {name: np.float32(value) for name, value in self.config.traced().items()}
        self._hyperparameters = parallel.place(hyperparameters, placement.replicated)
        if state is not None:
            placed: TrainState = parallel.place(state, placement.state)
            return placed
        make_state = jax.jit(
            lambda key, start: init_state(self.model, self.optimizer, key, start, self._example),
            out_shardings=placement.state,
        )
        first: TrainState = make_state(self._keys["init"], start_of(self.config, self.images))
        return first

    def _make_keys(self) -> dict[Purpose, Array]:
        return purpose_keys(self.config.seed)

    def _arguments(self, state: TrainState, step: int) -> tuple[Any, ...]:
        rest = self._keys["train-noise"], self._hyperparameters
        if self._blocks is not None:
            place = self._blocks.place(step)
            if self._block is None or self._block[0] != place:
                self._block = None  # Its memory is free as soon as the last call that reads it is done.
                self._block = place, parallel.place(self._blocks.read(place), self.placement.images)
            return state, self._block[1], self._places, *rest
        epoch = step // self.steps_per_epoch
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self._order_of(self._keys["shuffle"], np.int32(epoch))
        return state, self._train_examples, self._order[1], *rest

    def usable(self, step: int, wanted: int) -> int:
        """See `Computer`."""
        wanted = min(wanted, self.steps_per_epoch - step % self.steps_per_epoch)
        return self._program.usable(wanted if self._blocks is None else min(wanted, self._blocks.left(step)))

    def compile(self, state: TrainState) -> float:
        """See `Computer`."""
        if self._blocks is None:
            return self._program.compile(*self._arguments(state, 0))
        rest = self._places, self._keys["train-noise"], self._hyperparameters
        return self._program.compile(state, parallel.placed_shapes(self._blocks.forms, self.placement.images), *rest)

    def trace(self) -> Any:
        """The program of the steps for the placement's devices, which need not be here: traced, not compiled."""
        placement, count = self.placement, len(self.images.train)
        keys = jax.eval_shape(self._make_keys)
        hyperparameters = {name: np.float32(value) for name, value in self.config.traced().items()}
        order = np.zeros(count, np.int32) if self._blocks is None else self._blocks.places()
        rest = order, keys["train-noise"], hyperparameters
        return self._program.trace(
            parallel.placed_shapes(self.abstract_state(), placement.state),
            parallel.placed_shapes(
                as_rows(self.images.split("train")) if self._blocks is None else self._blocks.forms, placement.images
            ),
            *parallel.placed_shapes(rest, placement.replicated),
        )

    def program_bytes(self) -> int:
        """Bytes of the compiled program of the steps: see `jaxvae.train.programs.program_bytes`."""
        return program_bytes(self._program.memory())

    def run_steps(self, state: TrainState, step: int, count: int) -> tuple[TrainState, Mapping[str, Array]]:
        """See `Computer`."""
        result: tuple[TrainState, Mapping[str, Array]] = self._program(count, *self._arguments(state, step))
        return result

    def splits(self, step: int, total: int) -> Sequence[str]:
        """See `Computer`."""
        return splits(len(self.images.validation) > 0, step == total)

    def parts(self, split: str) -> range:
        """See `Computer`."""
        return range(0, len(self._held_out()[split]["image"]), self._size[split])

    def evaluate(self, state: TrainState, split: str, first: int) -> Mapping[str, Array]:
        """See `Computer`."""
        key, begin = self._keys["test-noise"], np.int32(first)
        if self._blocks is None:
            examples, origin = self._held_out_examples[split], np.int32(0)
        else:
            part = part_of(self._held_out()[split], first, self._size[split])
            examples, origin = parallel.place(part, self.placement.images), begin
        terms: Mapping[str, Array] = self._evaluate[split](state.variables, examples, key, begin, origin)
        return terms

    def joined(self, split: str, parts: Sequence[Mapping[str, Array]]) -> dict[str, NDArray[Any]]:
        """See `Computer`."""
        return joined(parts, len(self._held_out()[split]["image"]))

    def pictures(self, state: TrainState, step: int, total: int) -> Mapping[str, Array] | None:
        """See `Computer`."""
        if not due(self.config.image_every, step, total, self.steps_per_epoch):
            return None
        drawn: Mapping[str, Array] = self._draw(state.variables, self._keys)
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

    @float32_products
    def _pictures(self, variables: Params, keys: Mapping[Purpose, Array]) -> dict[str, Array]:
        """Held-out images as the model sees them, with their reconstructions, [2, N, H, W, C]; samples, [N, H, W, C];
        latents of held-out images, [N, L], with their labels, [N], if there are any.

        What the model does not give is left out.
        """
        key = keys["reconstructions"]
        batch = as_batch(jax.tree.map(jnp.asarray, self._shown))
        x = self.objective.inputs.observe(batch["image"], example_keys(key, 0, len(batch["image"])))
        drawn = reconstruct(self.model, variables, {**batch, "image": x}, key)
        pictures = {} if drawn is None else {"reconstructions": jnp.stack([x, drawn])}
        if isinstance(self.model, LatentModel | AutoEncoder):
            seen = as_batch(jax.tree.map(jnp.asarray, self._mapped))
            x = self.objective.inputs.observe(seen["image"], example_keys(key, 0, len(seen["image"])))
            code: Any = self.model.apply(variables, x, **label_of(self.model, seen), method="encode")
            pictures["latents"] = code[0] if isinstance(code, tuple) else code
            pictures |= {"labels": seen["label"]} if "label" in seen and seen["label"].ndim == 1 else {}
        if can_sample(self.model):
            # A prior that depends on the batch gets the images shown, repeated.
            given = {name: values[np.arange(SAMPLED) % len(values)] for name, values in batch.items()}
            if self.config.reads_labels:
                given["label"] = jnp.asarray(class_rows(SAMPLED, self.config.classes))
            pictures["samples"] = sample(self.model, variables, keys["samples"], SAMPLED, given)
        return pictures


def start_of(config: Config, images: ImageData) -> Start:
    """What the first parameters of a model of `config` are made from."""
    parts, train = config.parts, images.train
    if parts.model is not None:
        return Start()
    wanted = parts.prior.first_images if "prior" in parts.objective.uses else 0
    places = np.linspace(0, len(train) - 1, wanted).astype(int)  # All classes of a folder, where they come in turn.
    return Start(
        (mean(train) / 255).astype(np.float32) if parts.network.starts_from_mean else None,
        train[places].astype(np.float32) / np.float32(255) if wanted else None,
    )
