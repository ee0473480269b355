"""Many models trained in one program: members that differ in seed and in numbers, and in nothing else.

Members never exchange anything, so they are shared out over the devices without any communication. Within a
device they are taken `at_once` together (`jax.vmap`), one group after the other (`jax.lax.map`). An accelerator
takes all of them together: a small model leaves it idle. A CPU core takes one at a time: the batched products that
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

from jaxvae import models
from jaxvae.config import SWEPT, Config
from jaxvae.data.images import ImageData
from jaxvae.distributed import devices as parallel
from jaxvae.keys import Purpose, key_of, purpose_key
from jaxvae.objectives.variational import build_objective
from jaxvae.train.computer import PART_BATCHES, due, splits
from jaxvae.train.evaluation import PIXELS_AT_ONCE, joined, make_evaluate
from jaxvae.train.optimizer import build_optimizer
from jaxvae.train.programs import StepPrograms, make_call, steps_per_epoch
from jaxvae.train.step import TrainState, epoch_order, init_state

Array = jax.Array

AXIS = "member"
MOST_VALUES = 2**20  # Of a term, of all steps and members of a compiled call, held on the devices.
DIVERGED = "diverged"
_PURPOSES: tuple[Purpose, ...] = ("init", "shuffle", "train-noise", "test-noise")


class MembersState(NamedTuple):
    """The train states of M members, all at one step, and which of them diverged.

    Attributes:
      step: int32 [], of all.
      params: as in `TrainState`, each leaf with a first axis of M.
      opt_state: the same.
      diverged: int32 [M], the step at which a member's loss was not finite any more; 0 while it is.
        The parameters and the optimiser's state of such a member are zeros.
    """

    step: Array
    params: models.Params
    opt_state: optax.OptState
    diverged: Array

    def member(self, index: int) -> TrainState:
        """One member's state, as a run of its own would hold it."""
        params, opt_state = jax.tree.map(lambda leaf: leaf[index], (self.params, self.opt_state))
        return TrainState(self.step, params, opt_state)


def make_run_members(
    config: Config,
    model: models.Model,
    num_images: int,
    at_once: int,
    capacity: int | None = None,
) -> Callable[..., tuple[MembersState, Any]]:
    """``run_members(state, images, orders, noise_keys, numbers, count) -> (state, metrics)``: a call of every member.

    To be jitted. What each member computes is `jaxvae.train.programs.make_call`, with an order, a key and `numbers` of
    its own, [M] each; `metrics` are its terms at every step, [M, capacity].
    """

    call = make_call(config, model, num_images, capacity)
    epoch = steps_per_epoch(config, num_images)

    def run_members(
        state: MembersState,
        images: Array,
        orders: Array,
        noise_keys: Array,
        numbers: Mapping[str, Array],
        count: int | Array,
    ) -> tuple[MembersState, Any]:
        def run_one(member: Any) -> Any:
            params, opt_state, diverged, order, key, numbers = member
            start = TrainState(state.step, params, opt_state)
            end, metrics = call(start, images, order, key, numbers, count)
            # Looked at once a call: a choice at every step would move every parameter and moment once more. So that
            # it does not matter which steps make a call, a loss is looked at wherever it is, but the parameters at
            # the end of an epoch alone, and zeros take the place of what diverged.
            finite = jnp.isfinite(metrics["loss"])
            whole = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(end)]).all()
            bad = jnp.where(finite.all(), count, jnp.argmin(finite).astype(jnp.int32) + 1)
            good = finite.all() & (whole | (end.step % epoch != 0))
            diverged = jnp.where(diverged > 0, diverged, jnp.where(good, 0, start.step + bad))
            kept = jax.tree.map(lambda leaf: jnp.where(diverged > 0, jnp.zeros_like(leaf), leaf), end)
            return (kept.params, kept.opt_state, diverged), metrics

        members = (state.params, state.opt_state, state.diverged, orders, noise_keys, dict(numbers))
        ends, metrics = map_members(run_one, members, at_once)
        return MembersState(state.step + count, *ends), metrics

    return run_members


def map_members(function: Callable[[Any], Any], members: Any, at_once: int) -> Any:
    """`function` of each member of a tree with a first axis of M, `at_once` together."""
    count = jax.tree.leaves(members)[0].shape[0]
    if at_once == 1:
        return jax.lax.map(function, members)
    if at_once >= count:
        return jax.vmap(function)(members)
    return jax.lax.map(function, members, batch_size=at_once)


class MembersTrainer:
    """The device's side of many runs at once: as `jaxvae.train.trainer.Trainer`, with an axis of members.

    Args:
      config: what all have in common; its seed and `SWEPT` numbers are not looked at, but that its weight
        decay must not be 0 where a member's is not.
      images: what to train and to test on.
      seeds: [M].
      numbers: all of `SWEPT`, [M] each.
      devices: to share the members; at most as many are used as there are members.
      at_once: members of a device that are computed together. Default: 1 on a CPU, else all.
      traced: as of `StepPrograms`.
    """

    def __init__(
        self,
        config: Config,
        images: ImageData,
        seeds: Sequence[int],
        numbers: Mapping[str, Sequence[float]],
        devices: Sequence[jax.Device] | None = None,
        at_once: int | None = None,
        traced: bool | None = None,
    ):
        self.config, self.images, self.count = config, images, len(seeds)
        self.steps_per_epoch = steps_per_epoch(config, len(images.train))
        devices = (devices or jax.devices())[: self.count]
        share = -(-self.count // len(devices))
        self.at_once = at_once or (1 if devices[0].platform == "cpu" else share)
        # Where shares are not equal, copies of the last member fill them; they are never looked at.
        self._padding = share * len(devices) - self.count
        self._seeds = self._padded(np.asarray(seeds, np.uint32))
        self._numbers = {name: self._padded(np.asarray(numbers[name], np.float32)) for name in SWEPT}
        self.mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
        self._spread = NamedSharding(self.mesh, PartitionSpec(AXIS))
        self._everywhere = NamedSharding(self.mesh, PartitionSpec())
        _, height, width, channels = images.train.shape
        self.model = models.build_model(config, (height, width, channels))
        self.unit = build_objective(config, self.steps_per_epoch, len(images.train)).unit
        one, each = PartitionSpec(), PartitionSpec(AXIS)
        state = MembersState(one, each, each, each)  # type: ignore[arg-type]

        def program(capacity: int | None) -> Any:
            run = make_run_members(config, self.model, len(images.train), self.at_once, capacity)

            def run_steps(*arguments: Any) -> Any:
                *arrays, count = arguments
                specs = (state, one, each, each, each)
                if capacity is not None:
                    return self._on_each_device(run, (*specs, one), (state, each))(*arrays, count)
                return self._on_each_device(partial(run, count=count), specs, (state, each))(*arrays)

            return jax.jit(run_steps, donate_argnums=0, static_argnums=5 if capacity is None else None)

        capacity = min(self.steps_per_epoch, max(1, MOST_VALUES // (share * len(devices))))
        self._programs = StepPrograms(program, capacity, traced)
        held_out = {"validation": images.validation, "test": images.test}
        self._held_out: dict[str, Any] = {split: found for split, found in held_out.items() if len(found)}
        # So that evaluation takes no more memory than training, however many are computed together.
        pixels = math.prod(self.model.image_shape) * config.samples
        most = max(config.batch_size, min(PART_BATCHES * config.batch_size, PIXELS_AT_ONCE // pixels // self.at_once))
        self._sizes = {split: min(most, len(found)) for split, found in self._held_out.items()}
        specs = (each, one, each, each, one)
        self._evaluate: dict[str, Any] = {
            split: jax.jit(self._on_each_device(partial(self._evaluate_share, size), specs, each))
            for split, size in self._sizes.items()
        }
        count = len(images.train)
        self._orders_of: Any = jax.jit(
            lambda keys, epoch: jax.vmap(lambda key: epoch_order(key, epoch, count))(keys), out_shardings=self._spread
        )
        self._orders: tuple[int, Array] | None = None
        self._copy: Any = jax.jit(lambda state: jax.tree.map(jnp.copy, state))

    def _on_each_device(self, function: Any, in_specs: Any, out_specs: Any) -> Any:
        return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def _padded(self, values: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([values, np.repeat(values[-1:], self._padding, axis=0)])

    def _first(self) -> MembersState:
        """The first states of all, to be traced."""
        mean = self.images.train.mean(axis=0, dtype=np.float64) / 255 if self.config.init == "glorot" else None
        optimizer = build_optimizer(self.config, self.steps_per_epoch)

        def first(seed: Array) -> TrainState:
            output_mean = None if mean is None else jnp.asarray(mean, jnp.float32)
            return init_state(self.model, optimizer, purpose_key(seed, "init"), output_mean)  # type: ignore[arg-type]

        states = map_members(first, jnp.asarray(self._seeds), self.at_once)
        none = jnp.zeros(len(self._seeds), jnp.int32)
        return MembersState(jnp.zeros((), jnp.int32), states.params, states.opt_state, none)

    def abstract_state(self) -> MembersState:
        """The shapes and dtypes of the members' states on the host; nothing is computed."""
        return abstract_members(self.config, self.images.train.shape[1:], self.count)

    def start(self, state: MembersState | None) -> MembersState:
        """Put the images on the devices, and there make the first states, or put `state`, of the host's arrays."""
        each, one = self._spread, self._everywhere
        self._train_images = parallel.place(self.images.train, one)
        self._held_out = {split: parallel.place(images, one) for split, images in self._held_out.items()}
        numbers = {name: jnp.asarray(values) for name, values in self._numbers.items()}
        self._numbers_placed = jax.device_put(numbers, each)
        make_keys = jax.jit(
            lambda seeds: {p: jax.vmap(lambda seed, p=p: purpose_key(seed, p))(seeds) for p in _PURPOSES},
            out_shardings=each,
        )
        self._keys: Mapping[Purpose, Array] = make_keys(self._seeds)
        placed = MembersState(one, each, each, each)  # type: ignore[arg-type]
        if state is None:
            first: MembersState = jax.jit(self._first, out_shardings=placed)()
            return first
        rest = jax.tree.map(lambda leaf: self._padded(np.asarray(leaf)), state[1:])
        result: MembersState = parallel.place(MembersState(state.step, *rest), placed)
        return result

    def _arguments(self, state: MembersState, step: int) -> tuple[Any, ...]:
        epoch = step // self.steps_per_epoch
        if self._orders is None or self._orders[0] != epoch:
            self._orders = epoch, self._orders_of(self._keys["shuffle"], np.int32(epoch))
        return state, self._train_images, self._orders[1], self._keys["train-noise"], self._numbers_placed

    def usable(self, wanted: int) -> int:
        """See `Computer`."""
        return self._programs.usable(wanted)

    def compile(self, state: MembersState, count: int = 1) -> float:
        """See `Computer`."""
        return self._programs.compile(count, *self._arguments(state, 0))

    def run_steps(self, state: MembersState, step: int, count: int) -> tuple[MembersState, Mapping[str, Array]]:
        """See `Computer`: the values of the steps are [M, capacity], and "diverged" is that of the state, [M]."""
        end, terms = self._programs(count, *self._arguments(state, step))
        # A copy, since the state itself is donated to the next call.
        return end, {**terms, DIVERGED: jnp.copy(end.diverged)[:, None]}

    def splits(self, step: int, total: int) -> Sequence[str]:
        """See `Computer`."""
        return splits("validation" in self._held_out, step == total)

    def parts(self, split: str) -> range:
        """See `Computer`."""
        return range(0, len(self._held_out[split]), self._sizes[split])

    def evaluate(self, state: MembersState, split: str, first: int) -> Mapping[str, Array]:
        """See `Computer`."""
        images, keys = self._held_out[split], self._keys["test-noise"]
        arguments = state.params, images, keys, self._numbers_placed, np.int32(first)
        terms: Mapping[str, Array] = self._evaluate[split](*arguments)
        return terms

    def joined(self, split: str, parts: Sequence[Mapping[str, Array]]) -> dict[str, NDArray[Any]]:
        """See `Computer`."""
        return joined([self.host(dict(part)) for part in parts], len(self._held_out[split]), axis=1)

    def pictures(self, state: MembersState, step: int, total: int) -> None:
        """None: of members nothing is drawn."""

    def checkpoint(self, state: MembersState, step: int, total: int) -> MembersState | None:
        """See `Computer`."""
        return self.copy(state) if due(self.config.checkpoint_every, step, total, self.steps_per_epoch) else None

    def greatest(self, values: NDArray[np.float32]) -> Array:
        """See `Computer`. Members are trained by one process."""
        return jnp.asarray(values)

    def _evaluate_share(
        self, size: int, params: Any, images: Array, keys: Array, numbers: Mapping[str, Array], first: Array
    ) -> Any:
        def one(member: Any) -> Any:
            params, key, numbers = member
            objective = build_objective(self.config, self.steps_per_epoch, len(self.images.train), numbers)
            evaluate = make_evaluate(self.model, objective, size)
            return evaluate(params, images, key, first)

        return map_members(one, (params, keys, dict(numbers)), self.at_once)

    def copy(self, state: MembersState) -> MembersState:
        """Dispatch a copy, since the state itself is donated to the next call. Waits for nothing."""
        copied: MembersState = self._copy(state)
        return copied

    def host(self, tree: Any) -> Any:
        """A tree of results with a first axis of members, or a `MembersState`, as host arrays of the M members."""
        if isinstance(tree, MembersState):
            return MembersState(np.asarray(tree.step), *self.host(tree[1:]))  # type: ignore[arg-type]
        return jax.tree.map(lambda leaf: np.asarray(leaf)[: self.count], tree)


def abstract_members(config: Config, image_shape: Sequence[int], count: int) -> MembersState:
    """The shapes and dtypes of `count` members' states; nothing is computed."""
    height, width, channels = image_shape
    model, optimizer = models.build_model(config, (height, width, channels)), build_optimizer(config, steps_per_epoch=1)
    keys = jax.eval_shape(lambda: jax.random.split(key_of(0), count))
    states = jax.eval_shape(jax.vmap(partial(init_state, model, optimizer)), keys)
    ints = partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    return MembersState(ints(()), states.params, states.opt_state, ints((count,)))  # type: ignore[arg-type]


def common_config(configs: Sequence[Config]) -> Config:
    """What `MembersTrainer` takes for members of these configurations: they differ in seed and `SWEPT` alone."""
    return replace(configs[0], weight_decay=max(config.weight_decay for config in configs))
