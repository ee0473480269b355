"""Apply a function to many images, in chunks."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxvae.config import Config
from jaxvae.keys import example_keys
from jaxvae.models.layers import float32_products
from jaxvae.train.programs import LEAST_PART, jit_seldom
from jaxvae.typing import Array, Params

PIXELS_AT_ONCE = 2**22  # Of all images and draws that are in memory.

# Compiled: one call after another, its operations take ten times as long as decoding an image.
_keys = jax.jit(example_keys, static_argnums=2)


def chunk_size(examples: Mapping[str, NDArray[Any]], config: Config | None = None, draws: int = 1) -> int:
    """How many examples to take at once, if each makes `draws` images: `PIXELS_AT_ONCE` pixels in all.

    With `config`, a model of it computes them: at most `cached_at_once`.
    """
    images = examples["image"]
    most = max(1, PIXELS_AT_ONCE // (math.prod(images.shape[1:]) * draws))
    cached = None if config is None else cached_at_once(config, images.shape[1:], draws)
    return min(len(images), most, cached or most)


def cached_at_once(config: Config, image_shape: Sequence[int], draws: int = 1) -> int | None:
    """How many images an evaluation should take at a time, so that a network's values stay in a CPU's caches.

    Twice as many as a part of a training step, which keeps values for its gradients; fewer if each makes several draws.
    None: any number, on accelerators, for networks without such a limit (`Network.cached_images`), and for priors that
    would do work of their own for each part.
    """
    parts = config.parts
    costly = "prior" in parts.objective.uses and not parts.prior.separate
    if config.model is not None or jax.default_backend() != "cpu" or costly:
        return None
    height, width, channels = image_shape
    cached = parts.network.cached_images((height, width, channels))
    return None if cached is None else 2 * max(LEAST_PART, cached // draws)


@float32_products
def in_chunks(
    run: Callable[[Params, dict[str, Array], Array], Any],
    variables: Params,
    examples: Mapping[str, NDArray[Any]],
    key: Array,
    size: int,
    dtype: Any = np.float64,
) -> Any:
    """``run(variables, batch, keys)`` on all examples, in chunks of one size; its arrays, on the host.

    Args:
      run: from a batch of `size` examples, with a key for each, to a tree of arrays with a first axis of `size`;
        jitted here, if it is not.
      variables: the first argument of `run`.
      examples: arrays [N, ...] by name.
      key: an example's key is a function of this and of its place.
      size: of a chunk.
      dtype: of the result.
    """
    compiled: Any = run if hasattr(run, "lower") else jit_seldom(run)
    parts = []
    count = len(next(iter(examples.values())))
    for first in range(0, count, size):
        places = np.minimum(np.arange(first, first + size), count - 1)  # Pads the last chunk with its last example.
        batch = {name: jnp.asarray(values[places]) for name, values in examples.items()}
        result = compiled(variables, batch, _keys(key, first, size))
        parts.append(jax.tree.map(lambda a: np.asarray(a, dtype), result))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[:count], *parts)
