"""The train state, the pure steps, and the compiled calls that run many of them.

A step is a plain function of its arguments: `jit`, `vmap`, `pmap` and `shard_map` all take it.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxvae.config import Config
from jaxvae.keys import example_keys
from jaxvae.models import VAE, AutoEncoder, Params
from jaxvae.objectives import Objective

Array = jax.Array
Metrics: TypeAlias = dict[str, Array]


class TrainState(NamedTuple):
    """All there is to save: the number of steps taken (int32 []), the parameters, the optimiser's state."""

    step: Array
    params: Params
    opt_state: optax.OptState


def build_optimizer(config: Config) -> optax.GradientTransformation:
    """Adam (Kingma and Ba, arXiv 1412.6980) with PyTorch's default constants, at the configured rate."""
    return optax.chain(_scale_by_adam(b1=0.9, b2=0.999, eps=1e-8), optax.scale(-config.learning_rate))


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
            m_hat = m / -jnp.expm1(t * math.log(b1))
            v_hat = v / -jnp.expm1(t * math.log(b2))
            return m_hat / (jnp.sqrt(v_hat) + eps)

        return jax.tree.map(direction, mu, nu), optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


def init_state(model: AutoEncoder | VAE, optimizer: optax.GradientTransformation, key: Array) -> TrainState:
    """A fresh state at step 0, float32, for a `model` of `jaxvae.models`."""
    image = jnp.zeros((1, *model.image_shape), jnp.float32)
    params = model.init(key, image, jax.random.fold_in(key, 0))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def abstract_state(model: AutoEncoder | VAE, optimizer: optax.GradientTransformation) -> TrainState:
    """The shapes, dtypes and (one-device) shardings of `init_state`, to restore to; nothing is computed."""
    shapes = jax.eval_shape(lambda key: init_state(model, optimizer, key), jax.random.key(0))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state: TrainState = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), shapes)
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
    model: AutoEncoder | VAE,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    axis_name: str | None = None,
) -> Callable[[TrainState, Array, Array], tuple[TrainState, Metrics]]:
    """The pure ``train_step(state, batch, key) -> (state, metrics)`` of a model and an objective.

    `batch` is uint8 [B, H, W, C], or float32 in [0, 1]. `key` is the key of the run's noise, the
    same for every step: the step's number and each example's place in the batch are folded in.
    `metrics` are the objective's terms, averaged over the batch, [].

    With `axis_name`, the step runs inside `pmap` or `shard_map` over that axis: `batch` is this
    device's share, gradients and metrics are averaged over the *global* batch, and noise is keyed
    by the place in it, so any number of devices computes what one computes (to rounding).
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

        def mean_loss(params: Params) -> tuple[Array, Metrics]:
            losses = objective.losses(model.apply(params, x, keys), x)
            metrics = {name: value.mean() for name, value in losses.items()}
            return metrics["loss"], metrics

        grads, metrics = jax.grad(mean_loss, has_aux=True)(params)
        if axis_name is not None:
            grads, metrics = jax.lax.pmean((grads, metrics), axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def make_run_steps(
    train_step: Callable[[TrainState, Array, Array], tuple[TrainState, Metrics]],
    batch_size: int,
    steps_per_epoch: int,
    steps_per_call: int,
    batch_sharding: jax.sharding.Sharding | None = None,
) -> Callable[[TrainState, Array, Array, Array], tuple[TrainState, Metrics]]:
    """``run_steps(state, images, shuffle_key, noise_key) -> (state, metrics)``: many steps in one program.

    To be jitted with the state donated. `images` are uint8 [N, H, W, C] on the device; they are
    shuffled there, anew every epoch, as a function of `shuffle_key` and the epoch alone. The call
    takes the `steps_per_call` steps that follow `state.step`, which must not cross the end of an
    epoch. `metrics` hold the value of every step, [steps_per_call].

    With `batch_sharding`, the sharding of an array whose first axis is the batch's, each device works
    on its share of every batch, and the compiler averages the gradients over all of them.
    """

    def run_steps(state: TrainState, images: Array, shuffle_key: Array, noise_key: Array) -> tuple[TrainState, Metrics]:
        epoch, step_in_epoch = state.step // steps_per_epoch, state.step % steps_per_epoch
        order = jax.random.permutation(jax.random.fold_in(shuffle_key, epoch), images.shape[0])
        taken = jax.lax.dynamic_slice_in_dim(order, step_in_epoch * batch_size, steps_per_call * batch_size)

        def body(state: TrainState, indices: Array) -> tuple[TrainState, Metrics]:
            if batch_sharding is not None:
                indices = jax.lax.with_sharding_constraint(indices, batch_sharding)
            return train_step(state, images[indices], noise_key)

        return jax.lax.scan(body, state, taken.reshape(steps_per_call, batch_size))

    return run_steps


def make_evaluate(
    model: AutoEncoder | VAE, objective: Objective, chunk: int | None = None
) -> Callable[[Params, Array, Array], Metrics]:
    """``evaluate(params, images, key) -> losses``: the objective's terms for every image once, [N] each.

    To be jitted. `images` are uint8 [N, H, W, C]; they are taken `chunk` at a time (by default about
    a million pixels), so memory does not grow with N, and each image's noise is keyed by its place,
    so the chunk's size does not matter (but for rounding). Terms are per example: the caller reduces.
    """
    chunk = chunk or max(1, 2**20 // math.prod(model.image_shape))

    def evaluate(params: Params, images: Array, key: Array) -> Metrics:
        def losses(image_and_key: tuple[Array, Array]) -> dict[str, Array]:
            image, image_key = image_and_key
            x = intensities(image)[None]
            return {k: v[0] for k, v in objective.losses(model.apply(params, x, image_key[None]), x).items()}

        keys = example_keys(key, 0, images.shape[0])
        terms: Metrics = jax.lax.map(losses, (images, keys), batch_size=min(chunk, images.shape[0]))
        return terms

    return evaluate
