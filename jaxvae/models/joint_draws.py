"""Draw the random numbers of a function jointly: the same numbers, in a program that compiles several times as fast.

XLA compiles every draw, and every key that is folded from another, to a loop of its own. The `init` of a model has one
of each for every array. Together they took longer to compile than a train step.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.extend.core import primitives
from jax.extend.random import threefry2x32_p

from jaxvae.keys import GENERATOR, Array

# The most that are drawn jointly, and of one draw among them. Joint draws take some four times the memory of what they
# draw, and XLA does not make one after the other.
MOST_NUMBERS, MOST_OF_A_DRAW = 2**20, 2**19


class _Variable:
    """A value that is not computed yet."""


class _Step:
    """A primitive to apply: an equation of a jaxpr, with its inputs and outputs in the function as a whole."""

    def __init__(self, equation: Any, inputs: Sequence[Any]):
        self.equation, self.inputs = equation, inputs
        self.outputs = [_Variable() for _ in equation.outvars]


def with_joint_draws(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, with random numbers that are drawn jointly where they do not depend on one another.

    The random numbers are the same bits. What the results do not depend on is not computed. Only scalar keys of
    `GENERATOR` and draws of 32 bits are joined; other random numbers are drawn as ever. A function with side effects
    stays as it is.

    Args:
      function: from arrays and keys, in any pytrees, to the same.
    """

    def drawing_jointly(*args: Any) -> Any:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        if closed.effects:
            return function(*args)
        steps = list[_Step]()
        results = _flattened(closed, jax.tree.leaves(args), steps)
        forms, structure = jax.tree.flatten(shapes)
        found = zip(_evaluated(_needed(steps, results), results), forms, strict=True)
        # Numbers of the jaxpr itself are not arrays yet.
        arrays = [value if isinstance(value, jax.Array) else jnp.asarray(value, form.dtype) for value, form in found]
        return jax.tree.unflatten(structure, arrays)

    return drawing_jointly


def _flattened(closed: Any, inputs: Sequence[Any], steps: list[_Step]) -> list[Any]:
    """Append the steps of a jaxpr, and of all that it calls; the results."""
    jaxpr = closed.jaxpr
    values = {**dict(zip(jaxpr.constvars, closed.consts, strict=True)), **dict(zip(jaxpr.invars, inputs, strict=True))}

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for equation in jaxpr.eqns:
        given = [read(variable) for variable in equation.invars]
        if equation.primitive is primitives.jit_p:
            found = _flattened(equation.params["jaxpr"], given, steps)
        else:
            steps.append(_Step(equation, given))
            found = steps[-1].outputs
        values.update(zip(equation.outvars, found, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _needed(steps: Sequence[_Step], results: Iterable[Any]) -> list[_Step]:
    """The steps that the results depend on. An `init` returns the parameters, and computes a whole forward pass."""
    needed, kept = {value for value in results if isinstance(value, _Variable)}, list[_Step]()
    for step in reversed(steps):
        if not needed.isdisjoint(step.outputs):
            kept.append(step)
            needed.update(value for value in step.inputs if isinstance(value, _Variable))
    return kept[::-1]


def _evaluated(steps: Sequence[_Step], results: Sequence[Any]) -> list[Any]:
    """Apply the steps: joint draws as late as possible, so that many of them are possible at once."""
    values = dict[_Variable, Any]()

    def read(value: Any) -> Any:
        return values[value] if isinstance(value, _Variable) else value

    while steps:
        waiting, keys, draws = list[_Step](), list[_Step](), list[_Step]()
        for step in steps:
            primitive = step.equation.primitive
            if any(isinstance(value, _Variable) and value not in values for value in step.inputs):
                waiting.append(step)
            elif primitive is primitives.random_fold_in_p and _is_usual(step.equation, read(step.inputs[0])):
                keys.append(step)
            elif primitive is primitives.random_bits_p and _is_usual(step.equation, read(step.inputs[0])):
                draws.append(step)
            else:
                values.update(zip(step.outputs, _applied(step.equation, map(read, step.inputs)), strict=True))
        # First the keys: more draws may be possible then.
        together = keys or _within_limit(draws)
        if together:
            given = [[read(value) for value in step.inputs] for step in together]
            new = _folded(given) if keys else _drawn(given, [step.equation.params["shape"] for step in together])
            values.update(zip((step.outputs[0] for step in together), new, strict=True))
        steps = [*(draws if keys else draws[len(together) :]), *waiting]
    return [read(value) for value in results]


def _within_limit(draws: Sequence[_Step]) -> Sequence[_Step]:
    """The first of the draws, as many as have `MOST_NUMBERS` in all."""
    sizes = np.cumsum([_size(step.equation) for step in draws])
    return draws[: int(np.searchsorted(sizes, MOST_NUMBERS, side="right"))]


def _size(equation: Any) -> int:
    """How many numbers a draw has; 0: it is none."""
    return math.prod(equation.params["shape"]) if equation.primitive is primitives.random_bits_p else 0


def _applied(equation: Any, inputs: Iterable[Any]) -> list[Any]:
    """The outputs of an equation, computed as JAX does (`jax.core.eval_jaxpr`)."""
    primitive = equation.primitive
    with equation.ctx.manager:
        found = primitive.bind(*inputs, **primitive.get_bind_params(equation.params))
    return [*found] if primitive.multiple_results else [found]


def _is_usual(equation: Any, key: Array) -> bool:
    """Whether a draw, or a key folded from another, can be joined with others."""
    with equation.ctx.manager:
        partitionable = jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
    usual = partitionable and not key.shape and str(jax.random.key_impl(key)) == GENERATOR
    return bool(usual and equation.params.get("bit_width", 32) == 32 and _size(equation) <= MOST_OF_A_DRAW)


def _folded(given: Sequence[Sequence[Any]]) -> list[Array]:
    """`jax.random.fold_in` of each pair of a key and a number."""
    keys, numbers = (jnp.stack(values) for values in zip(*given, strict=True))
    return [*jax.vmap(jax.random.fold_in)(keys, numbers)]


def _drawn(given: Sequence[Sequence[Any]], shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    """The bits that `jax.random.bits` gives for each key and shape, uint32.

    A number is a function of the key and its place (Salmon et al., 2011, as JAX applies it): the exclusive or of both
    words that Threefry makes of the two words of the place.
    """
    sizes = [math.prod(shape) for shape in shapes]
    words = [jax.random.key_data(key) for (key,) in given]

    def spread(word: int) -> Array:
        parts = zip(words, sizes, strict=True)
        return jnp.concatenate([jnp.broadcast_to(data[word], (size,)) for data, size in parts])

    keys, places = (spread(0), spread(1)), jnp.concatenate([jnp.arange(size, dtype=jnp.uint32) for size in sizes])
    zeros = keys[0] ^ keys[0]  # Under shard_map, all must vary over the devices as the keys do.
    high, low = threefry2x32_p.bind(*keys, zeros, places ^ zeros)
    parts = jnp.split(high ^ low, np.cumsum(sizes)[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
