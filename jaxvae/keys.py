"""Randomness as a function: every key follows from the seed, a named purpose and a count.

Nothing random is kept between steps, so the train state is the whole state of a run.
"""

import zlib
from typing import Literal, get_args

import jax
import jax.numpy as jnp

Array = jax.Array
Purpose = Literal["init", "shuffle", "train-noise", "test-noise", "reconstructions", "samples", "generate"]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)


def purpose_key(seed: int, purpose: Purpose) -> Array:
    """The key of one purpose of a run: a typed PRNG key, shape []."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))


def example_keys(key: Array, first: int | Array, count: int) -> Array:
    """Keys [count] of the examples at places `first`, `first + 1`, ...: each a function of its place."""
    places = jnp.asarray(first, jnp.uint32) + jnp.arange(count, dtype=jnp.uint32)
    return jax.vmap(lambda place: jax.random.fold_in(key, place))(places)


def fold_in_each(keys: Array, purpose: str) -> Array:
    """Keys [B] for another purpose of the same examples."""
    number = zlib.crc32(purpose.encode())
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
