"""Many models trained in one program: members that differ only in seed and hyperparameters.

Members never exchange anything, so the devices share them without any communication. Within a
device they are taken `at_once` together (`jax.vmap`), one group after the other (`jax.lax.map`). An accelerator
takes all of them together: one small model leaves it idle. A CPU core takes one at a time: the batched products that
several would need are slower there than products one after the other, and one model stays in its cache.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from jaxvae.chunks import cached_at_once
from jaxvae.config import Config
from jaxvae.data.images import ImageData
from jaxvae.distributed import devices as parallel
from jaxvae.errors import InputError
from jaxvae.keys import Purpose, key_of, purpose_key, purpose_keys
from jaxvae.models.build import Model, Start, build_model, with_traced_parts
from jaxvae.objectives.build import build_objective
from jaxvae.optimizer import build_optimizer
from jaxvae.protocols import Hyperparameters
from jaxvae.train.computer import PART_BATCHES, due, splits
from jaxvae.train.evaluation import PIXELS_AT_ONCE, joined, make_evaluate
from jaxvae.train.programs import (
    MOST_STEPS,
    StepProgram,
    block_steps,
    jit_seldom,
    make_call,
    part_size,
    steps_per_epoch,
)
from jaxvae.train.step import TrainState, as_rows, epoch_order, example_of, init_state, shapes_of
from jaxvae.train.trainer import start_of
from jaxvae.typing import Batch, Collections, ImageShape, Params

Array = jax.Array

AXIS = "member"
MOST_VALUES = 2**20  # Most values of a term, over all steps and members of a compiled call, held on the devices.
DIVERGED = "diverged"
_PURPOSES: tuple[Purpose, ...] = ("init", "shuffle", "train-noise", "test-noise")


class MembersState(NamedTuple):
    """The train states of M members, all at one step, and which of them diverged.

    Attributes:
      step: int32 [], of all.
      params: as in `TrainState`, each leaf with a first axis of M.
      opt_state: the same.
      diverged: int32 [M], the step at which a member diverged; 0 for members that have not.
        The parameters and the optimiser's state of a diverged member are zeros.
      collections: as `params`.
    """

    step: Array
    params: Params
    opt_state: optax.OptState
    diverged: Array
    collections: Collections = {}  # noqa: RUF012

    def member(self, index: int) -> TrainState:
        """One member's state, as a separate run would hold it."""
        own = jax.tree.map(lambda leaf: leaf[index], (self.params, self.opt_state, self.collections))
        return TrainState(self.step, *own)


def make_run_members(
    config: Config,
    model: Model,
    num_images: int,
    at_once: int,
    capacity: int,
    block: int = 1,
    part: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Callable[..., tuple[MembersState, Any]]:
    """``run_members(state, examples, orders, noise_keys, hyperparameters, count) -> (state, metrics)``: a call of
    every member.

    To be jitted. Each member computes `jaxvae.train.programs.make_call` with its own order, key and `hyperparameters`,
    [M] each; `metrics` are its terms at every step, [M, capacity].
    """

    call = make_call(config, model, num_images, capacity, block=block, part=part, shapes=shapes)
    epoch = steps_per_epoch(config, num_images)

    def run_members(
        state: MembersState,
        examples: Batch,
        orders: Array,
        noise_keys: Array,
        hyperparameters: Mapping[str, Array],
        count: Array,
    ) -> tuple[MembersState, Any]:
        def run_one(member: Any) -> Any:
            params, opt_state, collections, diverged, order, key, hyperparameters = member
            start = TrainState(state.step, params, opt_state, collections)
            end, metrics = call(start, examples, order, key, hyperparameters, count)
            # Checked once per call: a choice at every step would move every parameter and moment once more. So that
            # the cut into calls does not matter, the loss of every step is checked, but the parameters only at the
            # end of an epoch, and zeros replace a state that diverged.
            finite = jnp.isfinite(metrics["loss"])
            whole = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(end)]).all()
            bad = jnp.where(finite.all(), count, jnp.argmin(finite).astype(jnp.int32) + 1)
            good = finite.all() & (whole | (end.step % epoch != 0))
            diverged = jnp.where(diverged > 0, diverged, jnp.where(good, 0, start.step + bad))
            kept = jax.tree.map(lambda leaf: jnp.where(diverged > 0, jnp.zeros_like(leaf), leaf), end)
            return (kept.params, kept.opt_state, diverged, kept.collections), metrics

        own = (state.params, state.opt_state, state.collections, state.diverged)
        members = (*own, orders, noise_keys, dict(hyperparameters))
        ends, metrics = map_members(run_one, members, at_once)
        return MembersState(state.step + count, *ends), metrics

    return run_members


def map_members(function: Callable[[Any], Any], members: Any, at_once: int) -> Any:
    """Map `function` over the members of a tree with a first axis of M, `at_once` together."""
    count = jax.tree.leaves(members)[0].shape[0]
    if at_once == 1:
        return jax.lax.map(function, members)
    if at_once >= count:
        return jax.vmap(function)(members)
    return jax.lax.map(function, members, batch_size=at_once)


class MembersTrainer:
    """The device's side of many runs at once: as `jaxvae.train.trainer.Trainer`, with an axis of members.

    Args:
      config: what all have in common. Its seed and `TRACED` hyperparameters are ignored, but its weight decay must
        not be 0 if a member's is not.
      images: what to train and to test on.
      seeds: [M].
      hyperparameters: all of `TRACED`, [M] each.
      devices: those that share the members; at most one per member is used.
      at_once: members of a device that are computed together. Default: 1 on a CPU, else all.
      block: see `make_run_steps`. Default: the best on this platform.

    Raises:
      InputError: `config` asks for steps that members cannot take.
    """

    def __init__(
        self,
        config: Config,
        images: ImageData,
        seeds: Sequence[int],
        hyperparameters: Mapping[str, Sequence[float]],
        devices: Sequence[jax.Device] | None = None,
        at_once: int | None = None,
        block: int | None = None,
    ):
        if config.step_kernels != "plain":
            raise InputError(f"--step-kernels {config.step_kernels}: a sweep trains its members with plain steps")
        self.config, self.images, self.count = config, images, len(seeds)
        self.steps_per_epoch = steps_per_epoch(config, len(images.train))
        devices = (devices or jax.devices())[: self.count]
        share = -(-self.count // len(devices))
        self.at_once = at_once or (1 if devices[0].platform == "cpu" else share)
        # If shares are not equal, copies of the last member fill them; these are never read.
        self._padding = share * len(devices) - self.count
        self._seeds = self._padded(np.asarray(seeds, np.uint32))
        self._hyperparameters = {
            name: self._padded(np.asarray(hyperparameters[name], np.float32)) for name in config.traced()
        }
        self.mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
        self._spread = NamedSharding(self.mesh, PartitionSpec(AXIS))
        self._everywhere = NamedSharding(self.mesh, PartitionSpec())
        self.model = build_model(config, images.image_shape)
        self._example = example_of(images.split("train"))
        self.unit = build_objective(config, self.steps_per_epoch, len(images.train)).unit
        one, each = PartitionSpec(), PartitionSpec(AXIS)
        state = MembersState(one, each, each, each, each)  # type: ignore[arg-type]

        capacity = min(self.steps_per_epoch, MOST_STEPS, max(1, MOST_VALUES // (share * len(devices))))
        part = part_size(config, images.image_shape, 1, devices[0].platform)
        count, block, shapes = len(images.train), block_steps(block), shapes_of(self._example)
        run = make_run_members(config, self.model, count, self.at_once, capacity, block, part, shapes)
        specs = (state, one, each, each, each, one)
        run_steps = self._on_each_device(run, specs, (state, each))
        self._program = StepProgram(jax.jit(run_steps, donate_argnums=0), capacity)
        held_out = {split: images.split(split) for split in ("validation", "test")}
        self._held_out: dict[str, Any] = {split: found for split, found in held_out.items() if len(found["image"])}
        # So that evaluation takes no more memory than training, however many members are computed together.
        pixels = math.prod(images.image_shape) * config.parts.objective.latents
        most = max(config.batch_size, min(PART_BATCHES * config.batch_size, PIXELS_AT_ONCE // pixels // self.at_once))
        most = min(most, cached_at_once(config, images.image_shape, config.parts.objective.latents) or most)
        self._sizes = {split: min(most, len(found["image"])) for split, found in self._held_out.items()}
        self._shapes = {split: shapes_of(found) for split, found in self._held_out.items()}
        evaluation = (each, one, each, each, one)
        self._evaluate: dict[str, Any] = {
            split: jit_seldom(self._on_each_device(partial(self._evaluate_share, split), evaluation, each))
            for split in self._held_out
        }
        self._orders_of: Any = jax.jit(
            lambda keys, epoch: jax.vmap(lambda key: epoch_order(key, epoch, count))(keys), out_shardings=self._spread
        )
        self._orders: tuple[int, Array] | None = None
        self._copy: Any = jax.jit(lambda state: jax.tree.map(jnp.copy, state))

    def _on_each_device(self, function: Any, in_specs: Any, out_specs: Any) -> Any:
        return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def _padded(self, values: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([values, np.repeat(values[-1:], self._padding, axis=0)])

    def _first(self, start: Start) -> MembersState:
        """The first states of all members. To be traced."""
        optimizer = build_optimizer(self.config, self.steps_per_epoch)

        def first(seed: Array) -> TrainState:
            key = purpose_key(seed, "init")  # type: ignore[arg-type]
            return init_state(self.model, optimizer, key, start, self._example)

        states = map_members(first, jnp.asarray(self._seeds), self.at_once)
        none = jnp.zeros(len(self._seeds), jnp.int32)
        return MembersState(jnp.zeros((), jnp.int32), states.params, states.opt_state, none, states.collections)

    def abstract_state(self) -> MembersState:
        """The shapes and dtypes of the members' states on the host; nothing is computed."""
        return abstract_members(self.config, self.images.image_shape, self.count, self._example)

    def start(self, state: MembersState | None) -> MembersState:
        """Put the images on the devices, and there make the first states or put `state`, which is on the host."""
        each, one = self._spread, self._everywhere
        self._train_examples = parallel.place(as_rows(self.images.split("train")), one)
        self._held_out = {split: parallel.place(as_rows(found), one) for split, found in self._held_out.items()}
        hyperparameters = {name: jnp.asarray(values) for name, values in self._hyperparameters.items()}
        self._hyperparameters_placed = jax.device_put(hyperparameters, each)
        make_keys = jax.jit(jax.vmap(lambda seed: purpose_keys(seed, _PURPOSES)), out_shardings=each)
        self._keys: Mapping[Purpose, Array] = make_keys(self._seeds)
        placed = MembersState(one, each, each, each, each)  # type: ignore[arg-type]
        if state is None:
            make_first = jax.jit(self._first, out_shardings=placed)
            first: MembersState = make_first(start_of(self.config, self.images))
            return first
        rest = jax.tree.map(lambda leaf: self._padded(np.asarray(leaf)), state[1:])
        result: MembersState = parallel.place(MembersState(state.step, *rest), placed)
        return result

    def _arguments(self, state: MembersState, step: int) -> tuple[Any, ...]:
        epoch = step // self.steps_per_epoch
        if self._orders is None or self._orders[0] != epoch:
            self._orders = epoch, self._orders_of(self._keys["shuffle"], np.int32(epoch))
        return state, self._train_examples, self._orders[1], self._keys["train-noise"], self._hyperparameters_placed

    def usable(self, step: int, wanted: int) -> int:
        """See `Computer`."""
        return self._program.usable(min(wanted, self.steps_per_epoch - step % self.steps_per_epoch))

    def compile(self, state: MembersState) -> float:
        """See `Computer`."""
        return self._program.compile(*self._arguments(state, 0))

    def trace(self) -> Any:
        """The program of the steps for the devices given, which need not be here: traced, not compiled."""
        each, one, members = self._spread, self._everywhere, len(self._seeds)
        keys = jax.eval_shape(lambda: jax.random.split(key_of(0), members))
        state = abstract_members(self.config, self.images.image_shape, members, self._example)
        orders = np.zeros((members, len(self.images.train)), np.int32)
        return self._program.trace(
            parallel.placed_shapes(state, MembersState(one, each, each, each, each)),  # type: ignore[arg-type]
            parallel.placed_shapes(as_rows(self.images.split("train")), one),
            *parallel.placed_shapes((orders, keys, self._hyperparameters), each),
        )

    def memory(self, traced: Any) -> Any:
        """XLA's memory analysis of what `trace` returned; compiles it."""
        return self._program.compiled(traced).memory_analysis()

    @property
    def waited(self) -> float:
        """See `Computer`: all images are on the devices."""
        return 0.0

    def run_steps(self, state: MembersState, step: int, count: int) -> tuple[MembersState, Mapping[str, Array]]:
        """See `Computer`: the values of the steps are [M, capacity], and "diverged" is that of the state, [M, 1]."""
        end, terms = self._program(count, *self._arguments(state, step))
        # A copy, since the state itself is donated to the next call.
        return end, {**terms, DIVERGED: jnp.copy(end.diverged)[:, None]}

    def splits(self, step: int, total: int) -> Sequence[str]:
        """See `Computer`."""
        return splits("validation" in self._held_out, step == total)

    def parts(self, split: str) -> range:
        """See `Computer`."""
        return range(0, len(self._held_out[split]["image"]), self._sizes[split])

    def evaluate(self, state: MembersState, split: str, first: int) -> Mapping[str, Array]:
        """See `Computer`."""
        examples, keys = self._held_out[split], self._keys["test-noise"]
        arguments = variables_of(state), examples, keys, self._hyperparameters_placed, np.int32(first)
        terms: Mapping[str, Array] = self._evaluate[split](*arguments)
        return terms

    def joined(self, split: str, parts: Sequence[Mapping[str, Array]]) -> dict[str, NDArray[Any]]:
        """See `Computer`."""
        return joined([self.host(dict(part)) for part in parts], len(self._held_out[split]["image"]), axis=1)

    def pictures(self, state: MembersState, step: int, total: int) -> None:
        """None: no pictures of members are drawn."""

    def checkpoint(self, state: MembersState, step: int, total: int) -> MembersState | None:
        """See `Computer`."""
        return self.copy(state) if due(self.config.checkpoint_every, step, total, self.steps_per_epoch) else None

    def greatest(self, values: NDArray[np.float32]) -> Array:
        """See `Computer`. Members are trained by one process."""
        return jnp.asarray(values)

    def _evaluate_share(
        self, split: str, variables: Any, examples: Batch, keys: Array, hyperparameters: Hyperparameters, first: Array
    ) -> Any:
        def one(member: Any) -> Any:
            variables, key, hyperparameters = member
            objective = build_objective(self.config, self.steps_per_epoch, len(self.images.train), hyperparameters)
            traced_model = with_traced_parts(self.model, hyperparameters)
            evaluate = make_evaluate(traced_model, objective, self._sizes[split], shapes=self._shapes[split])
            return evaluate(variables, examples, key, first)

        return map_members(one, (variables, keys, dict(hyperparameters)), self.at_once)

    def copy(self, state: MembersState) -> MembersState:
        """Dispatch a copy, since the state itself is donated to the next call. Waits for nothing."""
        copied: MembersState = self._copy(state)
        return copied

    def host(self, tree: Any) -> Any:
        """A tree of results with a first axis of members, or a `MembersState`, as host arrays of the M members."""
        if isinstance(tree, MembersState):
            return MembersState(np.asarray(tree.step), *self.host(tree[1:]))  # type: ignore[arg-type]
        return jax.tree.map(lambda leaf: np.asarray(leaf)[: self.count], tree)


def variables_of(state: MembersState) -> dict[str, Any]:
    """The variables for evaluation, each leaf with a first axis of M; see `TrainState.variables`."""
    return TrainState(state.step, state.params, state.opt_state, state.collections).variables


def abstract_members(
    config: Config, image_shape: ImageShape, count: int, example: Mapping[str, Any] | None = None
) -> MembersState:
    """The shapes and dtypes of `count` members' states; nothing is computed."""
    model, optimizer = build_model(config, image_shape), build_optimizer(config, steps_per_epoch=1)
    keys = jax.eval_shape(lambda: jax.random.split(key_of(0), count))
    states = jax.eval_shape(jax.vmap(lambda key: init_state(model, optimizer, key, example=example)), keys)
    ints = partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    diverged: Any = ints((count,))
    return MembersState(ints(()), states.params, states.opt_state, diverged, states.collections)  # type: ignore[arg-type]


def common_config(configs: Sequence[Config]) -> Config:
    """The config of a `MembersTrainer` for members of these configurations, which differ only in seed and `TRACED`.

    Its traced hyperparameters are the greatest of any member, so that none is 0 if a member's is not.
    """
    names = configs[0].traced()
    return replace(configs[0], **{name: max(getattr(config, name) for config in configs) for name in names})
