"""FLOP of a function, counted from the shapes of the products in its jaxpr."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr


def product_flops(jaxpr: Any) -> tuple[int, list[str]]:
    """FLOP of the matrix products and convolutions in a jaxpr, 2 per multiplication and addition.

    The count is what the mathematics needs. For a convolution, that is its products of weights and pixels, without the
    zeros of padding and dilation; each of its two gradients needs as many. A convolution written as a product of
    patches counts as that product, padding included. A loop counts once per iteration, a conditional counts as its
    most expensive branch, and what no output needs does not count.

    Args:
      jaxpr: such as ``jax.make_jaxpr(train_step)(...).jaxpr``.

    Returns:
      The FLOP, and a sentence about each thing that is not counted.
    """
    missed: list[str] = []
    needed, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    return 2 * _multiplications(needed, missed), list(dict.fromkeys(missed))


def _multiplications(jaxpr: Any, missed: list[str]) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, inner = equation.primitive.name, [_multiplications(j, missed) for j in inner_jaxprs(equation)]
        if name == "dot_general":
            ((contracted, _), _) = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            total += _of_convolution(equation)
        elif name == "scan":
            total += equation.params["length"] * sum(inner)
        elif name == "cond" and equation.params.get("branches_platforms"):
            # One branch per platform; the last is for all other platforms: the convolution itself.
            total += inner[-1]
        elif name == "cond":
            total += max(inner)
        elif name == "while":
            total += sum(inner)
            if sum(inner):
                missed.append("a loop with an unknown number of iterations counts as one iteration")
        elif name in ("pallas_call", "ffi_call", "pure_callback", "io_callback"):
            missed.append(f"what JAX does not look into ({name}) is not counted")
        else:
            total += sum(inner)
    return total


def inner_jaxprs(equation: Any) -> Iterator[Any]:
    """The jaxprs that an equation calls."""
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(item, "jaxpr", item)
            if hasattr(inner, "eqns"):
                yield inner


def _of_convolution(equation: Any) -> int:
    """The number of triples of a pixel, a weight and an output that a convolution sums over."""
    params, (image, kernel, *_) = equation.params, (v.aval.shape for v in equation.invars)
    image_axes, kernel_axes, out_axes = params["dimension_numbers"]
    out = equation.outvars[0].aval.shape
    triples: int = out[out_axes[0]] * out[out_axes[1]] * kernel[kernel_axes[1]]
    for axis, (low, _) in enumerate(params["padding"]):
        pixels, weights, outputs = image[image_axes[axis + 2]], kernel[kernel_axes[axis + 2]], out[out_axes[axis + 2]]
        apart = params["lhs_dilation"][axis]
        # Where each weight meets each output, in the image with zeros between its pixels.
        first = np.arange(outputs)[:, None] * params["window_strides"][axis] - low
        place = first + np.arange(weights) * params["rhs_dilation"][axis]
        triples *= int(((place >= 0) & (place <= apart * (pixels - 1)) & (place % apart == 0)).sum())
    return triples
