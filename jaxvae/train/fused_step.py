"""A fused training step: the five kernels of `jaxvae.train.kernels`, one after another."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxvae.train import kernels
from jaxvae.train.fused_plan import TILE, Plan, Weights
from jaxvae.typing import Array

WARPS = 8  # Of a program that computes an image; the others have half as many.


class Carry(NamedTuple):
    """What steps change.

    Attributes:
      place: int32 [2]: the step's place among those here, and the steps of Adam before it.
      params, mu, nu: the parameters and Adam's moments.
      recon: the reconstruction's cost at every step, of tiles of pixels and images: [steps, tiles, batch].
      kl: the latents' cost, [steps, batch].
    """

    place: Array
    params: Weights
    mu: Weights
    nu: Weights
    recon: Array
    kl: Array


def step(plan: Plan, carry: Carry, images: Array, noise: Array, rate: Array) -> Carry:
    """Take a step.

    Args:
      plan: see `Plan`.
      carry: see `Carry`.
      images: of every step here, flattened: uint8, or float32 in [0, 1], [steps, batch, D].
      noise: of the latents, [steps, batch, L].
      rate: Adam's learning rate, float32 [1].
    """
    place, params, batch, last = carry.place, carry.params, plan.batch_size, plan.layers - 1
    floats = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    # Shapes of a, d and h: see `jaxvae.train.kernels`.
    outputs = tuple(floats((batch, width)) for width in plan.widths[1:-1])
    inputs = tuple(floats((batch, size)) for size in plan.inputs[1:])
    latents, logits = floats((batch, plan.latents)), floats((batch, plan.widths[-1]))

    tiles = pl.cdiv(plan.widths[1], TILE), plan.first_shares[0]
    given: tuple[Any, ...] = (place, images, params.kernels[0])
    parts = _call(plan, kernels.first_layer, tiles, given, floats((plan.first_shares[0], batch, plan.widths[1])))
    given = (place, parts, noise, params, carry.kl)
    results: Any = (outputs, inputs, latents, _like(carry.kl))
    a, h, now, kl = _call(plan, kernels.middle_layers, (batch,), given, results, {4: 3}, WARPS)
    given = (place, images, params.kernels[-1], params.biases[-1], h[-1], carry.recon)
    results = (_like(carry.recon), logits, floats((plan.pixel_tiles, batch, plan.inputs[-1])))
    recon, d_last, back = _call(
        plan, kernels.last_layer, (plan.pixel_tiles, plan.last_shares[0]), given, results, {len(given) - 1: 0}
    )
    given = (place, back, params.kernels, a, now)
    results = (outputs, latents, _like(place))
    d, _, place = _call(plan, kernels.middle_gradients, (batch,), given, results, {0: 2}, WARPS)
    assert len(d) == last
    given = (place, rate, images, h, (*d, d_last), (params, carry.mu, carry.nu))
    params, mu, nu = _call(
        plan, kernels.update, (kernels.tiles(plan),), given, _like(given[-1]), {len(given) - 1: None}
    )
    return Carry(place, params, mu, nu, recon, kl)


def _like(tree: Any) -> Any:
    """The shapes and dtypes of a tree."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def _call(
    plan: Plan,
    kernel: Callable[..., None],
    grid: tuple[int, ...],
    given: tuple[Any, ...],
    results: Any,
    in_place: Mapping[int, int | None] | None = None,
    warps: int = WARPS // 2,
) -> Any:
    """Call a kernel on trees of arrays. It is called with the plan, trees of references to them, and to its results.

    Args:
      plan: of the step.
      kernel: one of `jaxvae.train.kernels`.
      grid: of its programs.
      given: the trees.
      results: the tree of shapes of its results.
      in_place: which of the trees given are overwritten, by place; each with the place of its result, or None if the
        result is that tree alone.
      warps: of a program.
    """
    leaves, structure = jax.tree.flatten(given)
    outs, out_structure = jax.tree.flatten(results)

    def body(*references: Any) -> None:
        trees = jax.tree.unflatten(structure, references[: len(leaves)])
        kernel(plan, *trees, jax.tree.unflatten(out_structure, references[len(leaves) :]))

    aliases: dict[int, int] = {}
    for old, new in (in_place or {}).items():
        first, count = len(jax.tree.leaves(given[:old])), len(jax.tree.leaves(given[old]))
        start = 0 if new is None else len(jax.tree.leaves(results[:new]))
        aliases |= {first + i: start + i for i in range(count)}
    found = pl.pallas_call(
        body,
        out_shape=outs,
        grid=grid,
        input_output_aliases=aliases,
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=2),
        interpret=plan.interpret,
        name=kernel.__name__,
    )(*leaves)
    return jax.tree.unflatten(out_structure, found)
