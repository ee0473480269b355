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
from jax.extend.core import jaxpr_as_fun
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float, Int, Key, Num

from jaxvae.keys import example_keys, fold_in_purpose, key_of
from jaxvae.models.build import Model, Start, init_variables, started
from jaxvae.models.layers import with_precision
from jaxvae.objectives.base import Context, Loss
from jaxvae.optimizer import evaluated
from jaxvae.typing import Array, Batch, Collections, Params, Terms

Metrics: TypeAlias = dict[str, Array]


class TrainState(NamedTuple):
    """All that a checkpoint saves.

    Attributes:
      step: the number of steps taken, int32 [].
      params: the trained variables.
      opt_state: the optimiser's state.
      collections: the model's other variables, such as batch statistics; empty for models that have none.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState
    collections: Collections = {}  # noqa: RUF012

    @property
    def variables(self) -> dict[str, Any]:
        """The variables for evaluation: the parameters, or their average if there is one, and the other collections."""
        return {**evaluated(self.params, self.opt_state), **self.collections}


def init_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    start: Start | None = None,
    example: Mapping[str, Any] | None = None,
) -> TrainState:
    """A fresh state at step 0, float32.

    Args:
      model: the model.
      optimizer: the optimiser.
      key: for the initial weights.
      start: of the training images, what first parameters are made from.
      example: a batch of one example; only its shapes count. Default: an image of ``model.image_shape``, and a label.
    """
    if example is None:
        example = {"image": jnp.zeros((1, *model.image_shape), jnp.float32), "label": jnp.zeros(1, jnp.int32)}
    variables = init_variables(model, key, example)
    params = {"params": variables.pop("params", {})}
    if start is not None:
        params = started(params, model, start)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), variables)


def abstract_state(
    model: Model, optimizer: optax.GradientTransformation, example: Mapping[str, Any] | None = None
) -> TrainState:
    """The shapes and dtypes of `init_state`, to restore to; nothing is computed."""
    state: TrainState = jax.eval_shape(lambda key: init_state(model, optimizer, key, example=example), key_of(0))
    return state


def example_of(split: Mapping[str, Any]) -> dict[str, Any]:
    """A batch of one example like those of a split, all zeros, for `init_state`; images are float32."""
    return {
        name: np.zeros((1, *values.shape[1:]), np.float32 if name == "image" else values.dtype)
        for name, values in split.items()
    }


def as_rows(examples: Mapping[str, Any]) -> dict[str, Any]:
    """Examples as they lie on a device: the values of each in one row, [N, size]; [N] stays.

    A TPU lays an array's last axis out in lanes of 128 numbers. Of images [N, H, W, C] it would copy a whole training
    set into another order, and every batch once more.
    """

    def rows(values: Any) -> Any:
        return values.reshape(values.shape[0], math.prod(values.shape[1:])) if values.ndim > 2 else values

    return {name: rows(values) for name, values in examples.items()}


def shapes_of(examples: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of the values of one example, by name: see `shaped`."""
    return {name: values.shape[1:] for name, values in examples.items()}


def shaped(batch: Mapping[str, Array], shapes: Mapping[str, Sequence[int]]) -> dict[str, Array]:
    """Some of the examples that `as_rows` made, with their shapes again: [B, *shape]."""
    return {name: values.reshape(values.shape[0], *shapes[name]) for name, values in batch.items()}


def intensities(images: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Intensities in [0, 1]: uint8 images are divided by 255 (float32), float images are taken as they are.

    Raises:
      TypeError: any other dtype, since its scale is unknown.
    """
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"images must be uint8, or floats in [0, 1], not {images.dtype}")
    return images


def traced_once(function: Callable[..., Any], *args: Any) -> tuple[Any, Callable[..., Any]]:
    """The form of a function's result for arguments of these forms, and the function, which is not traced again.

    To trace a deep network and its gradient takes seconds. A loop needs the form of what it carries before it traces
    its body.
    """
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        return jax.eval_shape(function, *args), function  # Somebody wants to see values.
    closed, form = jax.make_jaxpr(function, return_shape=True)(*args)
    structure, applied = jax.tree.structure(form), jaxpr_as_fun(closed)
    return form, lambda *given: jax.tree.unflatten(structure, applied(*jax.tree.leaves(given)))


def as_batch(batch: Batch | Array) -> dict[str, Array]:
    """`batch` as a mapping, with images as intensities; images alone are a batch, too."""
    named = dict(batch) if isinstance(batch, Mapping) else {"image": batch}
    return {**named, "image": intensities(named["image"])}


def make_train_step(
    model: Model,
    objective: Loss,
    optimizer: optax.GradientTransformation,
    axis_name: str | tuple[str, ...] | None = None,
    part: int | None = None,
) -> Callable[[TrainState, Any, Array], tuple[TrainState, Metrics]]:
    """The pure ``train_step(state, batch, key) -> (state, metrics)`` of a model and an objective.

    `batch` is a mapping with "image", uint8 [B, H, W, C] or float32 in [0, 1]; or the images alone. `key` is the key of
    the run's noise, a typed key of `jaxvae.keys.GENERATOR` and the same for every step: the step's number and each
    example's place in the batch are folded in. `metrics` are the objective's terms, averaged over the batch, [].
    Float32 products have the precision ``objective.precision``.

    With `axis_name`, the step runs inside `pmap` or `shard_map` over that axis, or axes: `batch` is this
    device's share, gradients and metrics are averaged over the *global* batch, and noise is keyed
    by the place in it, so any number of devices computes what one computes (to rounding). The average
    is one collective of one vector, since between machines every collective costs its latency. The model's other
    variables are averaged with it.

    With `part`, gradients of so many images at a time are computed, and averaged over the batch's parts. It must divide
    the batch, and the objective must treat images separately (`Objective.separate`).
    """

    def train_step(state: TrainState, batch: Batch | Array, key: Array) -> tuple[TrainState, Metrics]:
        x = as_batch(batch)
        size = x["image"].shape[0]
        params = state.params
        if axis_name is not None:
            # If shard_map tracks which values vary, it sums the gradients of parameters that do not over the
            # devices; `pmean` below must be the only reduction.
            params = jax.lax.pcast(params, axis_name, to="varying")
        first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * size
        step_key = jax.random.fold_in(key, state.step)
        keys = example_keys(step_key, first, size)
        streams = fold_in_purpose(step_key, "streams")
        context = Context(state.step, key=streams)
        if axis_name is not None:
            streams = jax.random.fold_in(streams, first)
            gather = lambda share: jax.lax.all_gather(share, axis_name, tiled=True)  # noqa: E731
            context = Context(state.step, gather, streams)

        def mean_loss(
            params: Params, x: Batch, keys: Array, context: Context
        ) -> tuple[Array, tuple[Metrics, Collections]]:
            terms, collections = objective.of(model, params, x, keys, context, state.collections)
            metrics: Terms = {name: value.mean() for name, value in terms.items()}
            return metrics["loss"], (metrics, collections)

        def of_part(x: Batch, keys: Array) -> Any:
            own = context._replace(gather=_refuse_to_gather, key=fold_in_purpose(keys[0], "streams"))
            return jax.grad(mean_loss, has_aux=True)(params, x, keys, own)

        if part in (None, size):
            grads, (metrics, collections) = jax.grad(mean_loss, has_aux=True)(params, x, keys, context)
        else:
            grads, (metrics, collections) = _mean_of_parts(of_part, part, axis_name, x, keys)
        if axis_name is not None:
            grads, metrics, collections = mean_over_devices((grads, metrics, collections), axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state, collections), metrics

    return with_precision(objective.precision)(train_step)


def _refuse_to_gather(share: Array) -> Array:
    raise TypeError("this objective gathers the batch, so it must not set separate = True")


def _mean_of_parts(
    function: Callable[..., Any], part: int | None, axis_name: str | tuple[str, ...] | None, *arrays: Any
) -> Any:
    """The mean of what `function` finds for parts of `arrays`, trees of [B, ...], one after the other."""

    def add(total: Any, given: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, traced(*given)), None

    parts = jax.tree.map(lambda values: values.reshape(-1, part, *values.shape[1:]), arrays)
    count = len(jax.tree.leaves(parts)[0])
    form, traced = traced_once(function, *jax.tree.map(lambda values: values[0], parts))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), form)
    if axis_name is not None:
        nothing = jax.lax.pcast(nothing, axis_name, to="varying")
    total, _ = jax.lax.scan(add, nothing, parts)
    return jax.tree.map(lambda leaf: (leaf / count).astype(leaf.dtype), total)


def mean_over_devices(tree: Any, axis_name: str | tuple[str, ...]) -> Any:
    """The mean of every leaf of a tree over the devices of an axis: one collective.

    It is that of one vector. On a TPU XLA joins the collectives of the leaves by itself, and so spares them the copies
    into a vector and back: 20 of 71 kernels of the notes' VAE. On a GPU it copies as well.
    """

    def of_one_vector(tree: Any) -> Any:
        vector, restored = ravel_pytree(tree)
        return restored(jax.lax.pmean(vector, axis_name))

    return jax.lax.platform_dependent(tree, tpu=lambda tree: jax.lax.pmean(tree, axis_name), default=of_one_vector)


def on_every_device(
    train_step: Callable[[TrainState, Any, Array], tuple[TrainState, Metrics]], batch_sharding: NamedSharding
) -> Callable[[TrainState, Any, Array], tuple[TrainState, Metrics]]:
    """`train_step`, made with the axes of ``batch_sharding.spec[0]``, as a step on a whole batch that devices share."""
    axes = batch_sharding.spec[0]
    return jax.shard_map(
        train_step,
        mesh=batch_sharding.mesh,
        in_specs=(PartitionSpec(), PartitionSpec(axes), PartitionSpec()),
        out_specs=PartitionSpec(),
        # Along other axes of the mesh, the compiler distributes the work according to the state's sharding.
        axis_names={axes} if isinstance(axes, str) else set(axes),
        check_vma=False,
    )


def epoch_order(
    shuffle_key: Key[Array, ""], epoch: int | Int[Array, ""], num_images: int
) -> Int[Array, " {num_images}"]:
    """The order in which an epoch takes the images: int32 [N], a function of `shuffle_key` and the epoch alone."""
    return jax.random.permutation(jax.random.fold_in(shuffle_key, epoch), num_images)


def make_run_steps(
    train_step: Callable[[TrainState, Any, Array], tuple[TrainState, Metrics]],
    batch_size: int,
    steps_per_epoch: int,
    capacity: int | None = None,
    batch_sharding: jax.sharding.NamedSharding | None = None,
    block: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Callable[[TrainState, Batch | Array, Array, Array, int | Array], tuple[TrainState, Metrics]]:
    """``run_steps(state, examples, order, noise_key, count) -> (state, metrics)``: `count` steps in one program.

    To be jitted with the state donated. `examples` are arrays [N, ...] on the device by name, among them the images,
    uint8 [N, H, W, C], or in rows (see `shapes`); or the images alone. `order` is the `epoch_order` of the epoch that
    ``state.step`` lies in. The call takes the `count` steps that follow ``state.step``, which must not cross the end of
    the epoch. `metrics` hold the value of every step, and zeros after those: [capacity].

    Args:
      train_step: the step, as `make_train_step` makes it.
      batch_size: images a step.
      steps_per_epoch: steps an epoch.
      capacity: the largest `count`. Then `count` is traced, so that one program takes any number
        of steps. None: `count` is a Python number, and each number has its own program.
      batch_sharding: the sharding of an array with a first axis of the batch, if the devices share every batch. Then
        `train_step` comes from `on_every_device`, or takes a whole batch that the compiler distributes.
      block: steps are taken in blocks of this many, then one by one. A loop whose length XLA does not know makes an
        accelerator ask the host before every turn, so there a turn should be many steps; the result is the same.
      shapes: of the values of one example, by name. Then `examples` lie in rows, [N, size], as `as_rows` makes them,
        and a batch gets these shapes. Rows spare TPUs copies. Default: a batch has the shapes of `examples`.
    """

    def run_steps(
        state: TrainState, examples: Batch | Array, order: Array, noise_key: Array, count: int | Array
    ) -> tuple[TrainState, Metrics]:
        first = state.step % steps_per_epoch
        named = examples if isinstance(examples, Mapping) else {"image": examples}

        def take(i: Array, state: TrainState) -> tuple[TrainState, Metrics]:
            indices = jax.lax.dynamic_slice_in_dim(order, (first + i) * batch_size, batch_size)
            if batch_sharding is not None:
                indices = jax.lax.with_sharding_constraint(indices, batch_sharding)
            batch = {name: values[indices] for name, values in named.items()}
            return train_step(state, batch if shapes is None else shaped(batch, shapes), noise_key)

        def body(i: Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, metrics = carry
            state, values = taken_once(jnp.asarray(i, jnp.int32), state)  # The loop's has the type of `count`.
            return state, {name: metrics[name].at[i].set(value) for name, value in values.items()}

        length = count if capacity is None else capacity
        (_, forms), taken_once = traced_once(take, jnp.zeros((), jnp.int32), state)
        metrics = {name: jnp.zeros((length, *form.shape), form.dtype) for name, form in forms.items()}
        carry = state, metrics
        whole: int | Array = 0  # Steps in blocks.
        if block > 1:

            def turn(i: Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
                taken: tuple[TrainState, Metrics] = jax.lax.fori_loop(
                    0, block, lambda j, carry: body(i * block + j, carry), carry
                )
                return taken

            whole = count // block * block
            carry = jax.lax.fori_loop(0, count // block, turn, carry)
        result: tuple[TrainState, Metrics] = jax.lax.fori_loop(whole, count, body, carry)
        return result

    return run_steps
