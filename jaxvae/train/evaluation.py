"""Evaluation of an objective's terms on held-out images, every image once."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxvae.keys import example_keys
from jaxvae.models.build import Model
from jaxvae.models.layers import float32_products
from jaxvae.objectives.base import Context, Loss
from jaxvae.train.programs import jit_seldom
from jaxvae.train.step import as_batch, shaped
from jaxvae.typing import Array, Batch, Params, Terms

PIXELS_AT_ONCE = 2**20  # Of all reconstructions that an evaluation holds in memory.


def make_evaluate(
    model: Model,
    objective: Loss,
    size: int,
    batch_sharding: jax.sharding.NamedSharding | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Callable[..., Terms]:
    """``evaluate(variables, examples, key, first, origin=0) -> terms``: the terms of some images, [size] each.

    To be jitted. `variables` are all the model's variables, by collection. `examples` are arrays [N, ...] by name,
    among them the images, uint8 [N, H, W, C]; or the images alone. `size` of them are taken from place `first` on;
    places past the end repeat the last one, and `joined` cuts them off. Each image's noise is keyed by its place, so
    `size` does not matter (except for rounding). Terms are per example: the caller reduces. Float32 products are
    computed in float32, whatever precision the model was trained with. `origin` is the place in the split of the first
    of `examples`.

    With `batch_sharding`, the sharding of an array with a first axis of images, each device works on its share. With
    `shapes`, see `make_run_steps`.
    """

    def evaluate(
        variables: Params, examples: Batch | Array, key: Array, first: int | Array, origin: int | Array = 0
    ) -> Terms:
        places = first - origin + jnp.arange(size)
        if batch_sharding is not None:
            places = jax.lax.with_sharding_constraint(places, batch_sharding)
        named = examples if isinstance(examples, Mapping) else {"image": examples}
        taken = {name: values.at[places].get(mode="clip") for name, values in named.items()}
        batch = as_batch(taken if shapes is None else shaped(taken, shapes))
        keys = example_keys(key, first, size)
        return objective.of(model, variables, batch, keys, Context())[0]

    return float32_products(evaluate)


def evaluation_size(
    image_shape: Sequence[int], num_images: int, samples: int = 1, shares: int = 1, most: int | None = None
) -> int:
    """How many images `make_evaluate` should take at once: their reconstructions have `PIXELS_AT_ONCE` pixels in all.

    So memory grows neither with the number of images nor with the number of samples.

    Args:
      image_shape: (H, W, C).
      num_images: N.
      samples: the objective's reconstructions per image.
      shares: devices that share them; the size is a multiple of it.
      most: the largest size allowed, so that a signal does not wait long, or a network is fast. None: any size.
    """
    size = min(max(1, PIXELS_AT_ONCE // (math.prod(image_shape) * samples)), num_images, most or num_images)
    return -(-size // shares) * shares


def joined(parts: Sequence[Mapping[str, Any]], num_images: int, axis: int = 0) -> dict[str, NDArray[Any]]:
    """The terms of successive calls of `make_evaluate`, joined on the host: [N] each."""
    cut = (slice(None),) * axis + (slice(num_images),)
    return {name: np.concatenate([np.asarray(part[name]) for part in parts], axis=axis)[cut] for name in parts[0]}


def evaluate_images(
    model: Model,
    objective: Loss,
    variables: Params,
    examples: Mapping[str, NDArray[Any]],
    key: Array,
    most: int | None = None,
) -> dict[str, NDArray[Any]]:
    """The objective's terms of all images of a split, at most `most` in a call: [N] each, on the host."""
    images = examples["image"]
    size = evaluation_size(images.shape[1:], len(images), objective.objective.latents, most=most)
    run, placed = jit_seldom(make_evaluate(model, objective, size)), jax.tree.map(jnp.asarray, dict(examples))
    return joined([run(variables, placed, key, np.int32(first)) for first in range(0, len(images), size)], len(images))
