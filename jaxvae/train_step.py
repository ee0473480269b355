"""The train state, the pure steps, and the compiled calls that run many of them.

A step is a plain function of its arguments: `jit`, `vmap`, `pmap` and `shard_map` all take it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec
from numpy.typing import NDArray

from jaxvae.config import Config
from jaxvae.keys import example_keys, key_of
from jaxvae.models import Model, Params, float32_products, with_output_bias, with_precision
from jaxvae.objectives import Context, Objective
from jaxvae.variational import Variational

Array = jax.Array
Metrics: TypeAlias = dict[str, Array]


PIXELS_AT_ONCE = 2**20  # Of the reconstructions that an evaluation has in work.
STAGES = 8  # Of the rate, in the schedule of that name.


class TrainState(NamedTuple):
    """All there is to save: the number of steps taken (int32 []), the parameters, the optimiser's state."""

    step: Array
    params: Params
    opt_state: optax.OptState


def build_optimizer(
    config: Config, steps_per_epoch: int | None = None, numbers: Mapping[str, Array | float] | None = None
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba, arXiv 1412.6980), with the rate's schedule, decay and clipping that are configured.

    Args:
      config: the notes' own defaults are PyTorch's.
      steps_per_epoch: of training, needed where the rate has a schedule or a warm-up, which count in epochs. The
        state's structure does not depend on it.
      numbers: values, which may be traced, in place of ``config.numbers()``.

    Raises:
      TypeError: `config` needs `steps_per_epoch`, and it is missing.
    """
    numbers = config.numbers() if numbers is None else numbers
    rate = numbers["learning_rate"]
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    parts.append(_scale_by_adam(config.adam_b1, config.adam_b2, config.adam_eps))
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(numbers["weight_decay"]))
    if config.schedule == "constant" and not config.warmup_epochs:
        parts.append(optax.scale(-rate))
    elif steps_per_epoch is None:
        raise TypeError("build_optimizer needs steps_per_epoch: schedule and warmup_epochs count in epochs")
    else:
        fraction = rate_schedule(config, steps_per_epoch)
        parts.append(optax.scale_by_schedule(lambda count: -rate * fraction(count)))
    return optax.chain(*parts)


def rate_schedule(config: Config, steps_per_epoch: int) -> Callable[[Array], Array]:
    """The learning rate at a step, as a fraction of the highest: from an int32 [] to a float32 []."""
    total, warmup = config.epochs * steps_per_epoch, config.warmup_epochs * steps_per_epoch
    # Stage i of Burda et al. (arXiv 1509.00519), appendix: 3^i parts of the 3,280, at 10^(-i/7).
    ends = [total * (3 ** (i + 1) - 1) / (3**STAGES - 1) for i in range(STAGES - 1)]

    def fraction(count: Array) -> Array:
        step = count.astype(jnp.float32)
        value = jnp.ones((), jnp.float32)
        if config.schedule == "cosine":
            done = jnp.clip((step - warmup) / max(total - warmup, 1), 0, 1)
            value = 0.5 * (1 + jnp.cos(jnp.pi * done))
        elif config.schedule == "stages":
            stage = jnp.searchsorted(jnp.asarray(ends, jnp.float32), step, side="right").astype(jnp.float32)
            value = 10.0 ** (-stage / (STAGES - 1))
        if warmup:
            value = value * jnp.minimum((step + 1) / warmup, 1)
        return value

    return fraction


def _scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """`optax.scale_by_adam`, but for the bias corrections ``1 - b**t``, which are exact to rounding here.

    Optax rounds ``b**t`` before it subtracts. In float32 that puts the first steps off by some 1e-5
    of their size, and the loss after 200 steps by up to 6e-3, against 4e-7 with ``-expm1(t * log(b))``.
    """

    def update(grads: Params, state: optax.OptState, params: Params | None = None) -> tuple[Params, optax.OptState]:
        del params
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, grads)

        def direction(m: Array, v: Array) -> Array:
            t = count.astype(m.dtype)
            # By a scalar's reciprocal, as XLA rewrites some divisions and not others: so every program rounds alike.
            m_hat = m * (-1 / jnp.expm1(t * math.log(b1))) if b1 else m
            v_hat = v * (-1 / jnp.expm1(t * math.log(b2))) if b2 else v
            return m_hat / (jnp.sqrt(v_hat) + eps)

        return jax.tree.map(direction, mu, nu), optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


def init_state(
    model: Model, optimizer: optax.GradientTransformation, key: Array, output_mean: Array | None = None
) -> TrainState:
    """A fresh state at step 0, float32, for a `model` of `jaxvae.models`.

    With `output_mean` [H, W, C], the mean of the training images, the decoder starts out from it.
    """
    image = jnp.zeros((1, *model.image_shape), jnp.float32)
    params = model.init(key, image, jax.random.fold_in(key, 0))
    if output_mean is not None:
        params = with_output_bias(params, model, output_mean)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def abstract_state(model: Model, optimizer: optax.GradientTransformation) -> TrainState:
    """The shapes and dtypes of `init_state`, to restore to; nothing is computed."""
    state: TrainState = jax.eval_shape(lambda key: init_state(model, optimizer, key), key_of(0))
    return state


def intensities(images: Array) -> Array:
    """Intensities in [0, 1]: uint8 images are divided by 255 (float32), float images are taken as they are.

    Raises:
      TypeError: another dtype, whose scale nobody could tell.
    """
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"images must be uint8, or floats in [0, 1], not {images.dtype}")
    return images


def make_train_step(
    model: Model,
    objective: Objective | Variational,
    optimizer: optax.GradientTransformation,
    axis_name: str | tuple[str, ...] | None = None,
) -> Callable[[TrainState, Array, Array], tuple[TrainState, Metrics]]:
    """The pure ``train_step(state, batch, key) -> (state, metrics)`` of a model and an objective.

    `batch` is uint8 [B, H, W, C], or float32 in [0, 1]. `key` is the key of the run's noise, a typed key of
    `jaxvae.keys.GENERATOR` and the same for every step: the step's number and each example's place in the batch
    are folded in. `metrics` are the objective's terms, averaged over the batch, [].
    Float32 products have the precision `model.precision`.

    With `axis_name`, the step runs inside `pmap` or `shard_map` over that axis, or axes: `batch` is this
    device's share, gradients and metrics are averaged over the *global* batch, and noise is keyed
    by the place in it, so any number of devices computes what one computes (to rounding). The average
    is one collective of one vector: between machines, each costs its latency, whatever its size.
    """

    def train_step(state: TrainState, batch: Array, key: Array) -> tuple[TrainState, Metrics]:
        x = intensities(batch)
        size = x.shape[0]
        params = state.params
        if axis_name is not None:
            # Where shard_map tracks what varies, a gradient by parameters that do not would be summed over
            # the devices unasked; `pmean` below is to be the only reduction.
            params = jax.lax.pcast(params, axis_name, to="varying")
        first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * size
        keys = example_keys(jax.random.fold_in(key, state.step), first, size)
        context = Context(state.step)
        if axis_name is not None:
            context = Context(state.step, lambda share: jax.lax.all_gather(share, axis_name, tiled=True))

        def mean_loss(params: Params) -> tuple[Array, Metrics]:
            losses = objective.of(model, params, x, keys, context)
            metrics = {name: value.mean() for name, value in losses.items()}
            return metrics["loss"], metrics

        grads, metrics = jax.grad(mean_loss, has_aux=True)(params)
        if axis_name is not None:
            vector, restored = ravel_pytree((grads, metrics))
            grads, metrics = restored(jax.lax.pmean(vector, axis_name))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), metrics

    return with_precision(model.precision)(train_step)


def on_every_device(
    train_step: Callable[[TrainState, Array, Array], tuple[TrainState, Metrics]], batch_sharding: NamedSharding
) -> Callable[[TrainState, Array, Array], tuple[TrainState, Metrics]]:
    """`train_step`, made with the axes of ``batch_sharding.spec[0]``, of a whole batch that the devices share."""
    axes = batch_sharding.spec[0]
    return jax.shard_map(
        train_step,
        mesh=batch_sharding.mesh,
        in_specs=(PartitionSpec(), PartitionSpec(axes), PartitionSpec()),
        out_specs=PartitionSpec(),
        # Along other axes of the mesh, the compiler shares the work as the state's sharding says.
        axis_names={axes} if isinstance(axes, str) else set(axes),
        check_vma=False,
    )


def epoch_order(shuffle_key: Array, epoch: int | Array, num_images: int) -> Array:
    """The order in which an epoch takes the images: int32 [N], a function of `shuffle_key` and the epoch alone."""
    return jax.random.permutation(jax.random.fold_in(shuffle_key, epoch), num_images)


def make_run_steps(
    train_step: Callable[[TrainState, Array, Array], tuple[TrainState, Metrics]],
    batch_size: int,
    steps_per_epoch: int,
    capacity: int | None = None,
    batch_sharding: jax.sharding.NamedSharding | None = None,
) -> Callable[[TrainState, Array, Array, Array, int | Array], tuple[TrainState, Metrics]]:
    """``run_steps(state, images, order, noise_key, count) -> (state, metrics)``: `count` steps in one program.

    To be jitted with the state donated. `images` are uint8 [N, H, W, C] on the device; `order` is the
    `epoch_order` of the epoch that ``state.step`` lies in. The call takes the `count` steps that follow
    ``state.step``, which must not cross the end of the epoch. `metrics` hold the value of every step, and
    zeros after those: [capacity].

    Args:
      train_step: the step, as `make_train_step` makes it.
      batch_size: images a step.
      steps_per_epoch: steps an epoch.
      capacity: the largest `count` of a program whose `count` is traced, so that one program takes any number
        of steps. None: `count` is a Python number, and each number is a program of its own.
      batch_sharding: the sharding of an array whose first axis is the batch's, where the devices share every batch:
        then `train_step` is one that was put `on_every_device`.
    """

    def run_steps(
        state: TrainState, images: Array, order: Array, noise_key: Array, count: int | Array
    ) -> tuple[TrainState, Metrics]:
        first = state.step % steps_per_epoch

        def take(i: Array, state: TrainState) -> tuple[TrainState, Metrics]:
            indices = jax.lax.dynamic_slice_in_dim(order, (first + i) * batch_size, batch_size)
            if batch_sharding is not None:
                indices = jax.lax.with_sharding_constraint(indices, batch_sharding)
            return train_step(state, images[indices], noise_key)

        def body(i: Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, metrics = carry
            state, values = take(i, state)
            return state, {name: metrics[name].at[i].set(value) for name, value in values.items()}

        length = count if capacity is None else capacity
        forms = jax.eval_shape(take, jnp.zeros((), jnp.int32), state)[1]
        metrics = {name: jnp.zeros((length, *form.shape), form.dtype) for name, form in forms.items()}
        result: tuple[TrainState, Metrics] = jax.lax.fori_loop(0, count, body, (state, metrics))
        return result

    return run_steps


def make_evaluate(
    model: Model,
    objective: Objective | Variational,
    size: int,
    batch_sharding: jax.sharding.NamedSharding | None = None,
) -> Callable[[Params, Array, Array, int | Array], Metrics]:
    """``evaluate(params, images, key, first) -> losses``: the objective's terms of some images, [size] each.

    To be jitted. `images` are uint8 [N, H, W, C]; those from place `first` on are taken, `size` of them, and the
    last image again in the places past it, which `joined` cuts off. Each image's noise is keyed by its place, so
    `size` does not matter (but for rounding). Terms are per example: the caller reduces. Float32
    products are float32, whatever the model was trained with.

    With `batch_sharding`, the sharding of an array whose first axis is the images', each device works on its share.
    """

    def evaluate(params: Params, images: Array, key: Array, first: int | Array) -> Metrics:
        places = first + jnp.arange(size)
        if batch_sharding is not None:
            places = jax.lax.with_sharding_constraint(places, batch_sharding)
        x = intensities(images.at[places].get(mode="clip"))
        keys = example_keys(key, first, size)
        return objective.of(model, params, x, keys, Context())

    return float32_products(evaluate)


def evaluation_size(
    image_shape: Sequence[int], num_images: int, samples: int = 1, shares: int = 1, most: int | None = None
) -> int:
    """How many images `make_evaluate` should take at once: `PIXELS_AT_ONCE` of reconstructions in all.

    So memory grows neither with the number of images nor with that of samples.

    Args:
      image_shape: (H, W, C).
      num_images: N.
      samples: reconstructions of an image, the objective's.
      shares: devices that share them; the size is a multiple of it.
      most: images that it may be at most, so that a signal does not wait long. None: any number.
    """
    size = min(max(1, PIXELS_AT_ONCE // (math.prod(image_shape) * samples)), num_images, most or num_images)
    return -(-size // shares) * shares


def joined(parts: Sequence[Mapping[str, Any]], num_images: int, axis: int = 0) -> dict[str, NDArray[Any]]:
    """The terms of one call of `make_evaluate` after the other, on the host: those of all images, [N] each."""
    cut = (slice(None),) * axis + (slice(num_images),)
    return {name: np.concatenate([np.asarray(part[name]) for part in parts], axis=axis)[cut] for name in parts[0]}


def evaluate_images(
    model: Model,
    objective: Objective | Variational,
    params: Params,
    images: NDArray[np.uint8],
    key: Array,
) -> dict[str, NDArray[Any]]:
    """The objective's terms of all images [N, H, W, C], in as many calls as it takes: [N] each, on the host."""
    size = evaluation_size(model.image_shape, len(images), objective.samples)
    run, placed = jax.jit(make_evaluate(model, objective, size)), jnp.asarray(images)
    return joined([run(params, placed, key, np.int32(first)) for first in range(0, len(images), size)], len(images))
