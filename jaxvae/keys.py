"""Randomness as a function: every key follows from the seed, a named purpose and a count.

Nothing random is kept between steps, so the train state is the whole state of a run. The generator is part of the
function: it is `GENERATOR`, independent of JAX's default. Others, such as "rbg" (usual on TPUs), draw other numbers
under `vmap`. With them, an example's noise would depend on the rest of its batch and on the number of devices.
"""

import zlib
from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Purpose = Literal["init", "shuffle", "train-noise", "test-noise", "reconstructions", "samples", "generate"]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
GENERATOR = "threefry2x32"


def key_of(seed: int | Array) -> Array:
    """A key of `GENERATOR`: a typed PRNG key, shape []."""
    return jax.random.key(seed, impl=GENERATOR)


def purpose_key(seed: int, purpose: Purpose) -> Array:
    """The key of one purpose of a run: a typed PRNG key, shape []."""
    return jax.random.fold_in(key_of(seed), zlib.crc32(purpose.encode()))


def purpose_keys(seed: int | Array, purposes: Sequence[Purpose] = PURPOSES) -> dict[Purpose, Array]:
    """The `purpose_key` of each purpose, made at once: that compiles much faster."""
    numbers = np.array([zlib.crc32(purpose.encode()) for purpose in purposes], np.uint32)
    keys = jax.vmap(lambda number: jax.random.fold_in(key_of(seed), number))(numbers)
    return dict(zip(purposes, keys, strict=True))


def example_keys(key: Array, first: int | Array, count: int) -> Array:
    """Keys [count] of the examples at places `first`, `first + 1`, ...: each a function of its place.

    Raises:
      TypeError: `key` is not a typed key of `GENERATOR`, or jax_threefry_partitionable is off.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or str(jax.random.key_impl(key)) != GENERATOR:
        raise TypeError(f"keys must be those of {GENERATOR}: make them with jax.random.key(seed, impl='{GENERATOR}')")
    if not jax.config.jax_threefry_partitionable:  # type: ignore[attr-defined]
        raise TypeError("jax_threefry_partitionable is off, which changes all random numbers: turn it on")
    places = jnp.asarray(first, jnp.uint32) + jnp.arange(count, dtype=jnp.uint32)
    return jax.vmap(lambda place: jax.random.fold_in(key, place))(places)


def fold_in_each(keys: Array, purpose: str) -> Array:
    """Keys [B] for another purpose of the same examples."""
    number = zlib.crc32(purpose.encode())
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def fold_in_purpose(key: Array, purpose: str) -> Array:
    """A key derived from `key`, for another purpose."""
    return jax.random.fold_in(key, zlib.crc32(purpose.encode()))
