"""The five kernels of a fused training step of a dense model, in Pallas, for one GPU and small batches.

XLA compiles a step of the notes' VAE to some fifty kernels, of which 24 wait for each other. At small batches nearly
all of a step's time is their latency. Here a step is a chain of five:

1. `first_layer`: the first layer, cut along its inputs.
2. `middle_layers`: all layers between the first and the last, and the latents. A program computes them for one image.
3. `last_layer`: the last layer, the loss and its gradient, and how much of it each of the last layer's inputs gets.
4. `middle_gradients`: the gradients of all layers between, for one image a program.
5. `update`: the gradients of all weights, from those of the layers' outputs, and Adam in place.

Each layer i maps inputs ``h[i]`` to ``a[i] = h[i] @ kernel[i] + bias[i]``; the next layer's inputs are ``h[i + 1] =
act(a[i])``, or the latents where the encoder ends. ``d[i]`` is the gradient of the loss with respect to ``a[i]``. The
tuple `h` in the code begins with ``h[1]``, since ``h[0]`` is the image.

`place` holds two numbers: the step's place among those at hand, and the steps of Adam before it. `middle_gradients`
counts both up, so `update` sees those of the next step.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxvae.train.fused_plan import TILE, Plan, Weights
from jaxvae.typing import Array

COLUMNS = 64  # Columns of a tile of a weight's gradient.
HELD = 2.5  # Times `Plan.values`: the weights that a program holds all the time. At 8 warps, 160 registers a thread.


def _span(size: int) -> Array:
    return jnp.arange(size)


def _load(ref: Any, mask: Array) -> Array:
    return triton.load(ref, mask=mask, other=0)


def _dot(plan: Plan, a: Array, b: Array) -> Array:
    return jnp.dot(a, b, precision=plan.precision)


def _barrier(plan: Plan) -> None:
    """Let this program read what it wrote. It does not wait for other programs, whatever its docstring in JAX says."""
    if not plan.interpret:
        triton.debug_barrier()


def _intensities(plan: Plan, step: Array, images: Any, columns: Array) -> Array:
    """The intensities of a step's batch at some pixels: [rows, columns]."""
    rows = _span(plan.rows)
    mask = (rows < plan.batch_size)[:, None] & (columns < plan.widths[0])[None, :]
    values = _load(images.at[step, rows[:, None], columns[None, :]], mask)
    return values.astype(jnp.float32) / 255 if values.dtype == jnp.uint8 else values


def _chunks(size: int, chunk: int, body: Callable[[Any, Any], Any], first: Any) -> Any:
    """``body(start, carry)`` at every chunk's start."""
    count = pl.cdiv(size, chunk)
    if count == 1:
        return body(0, first)
    return jax.lax.fori_loop(0, count, lambda i, carry: body(i * chunk, carry), first)


def first_layer(plan: Plan, place: Any, images: Any, kernel: Any, partial_: Any) -> None:
    """``partial_[split]``: what a part of the pixels adds to ``a[0]``."""
    columns, share = pl.program_id(0) * TILE + _span(TILE), plan.first_shares[1]
    start, width = pl.program_id(1) * share, plan.widths[1]

    def add(offset: Any, total: Array) -> Array:
        pixels = start + offset + _span(plan.chunk)
        x = _intensities(plan, place[0], images, pixels)
        mask = (pixels < plan.widths[0])[:, None] & (columns < width)[None, :]
        return total + _dot(plan, x, _load(kernel.at[pixels[:, None], columns[None, :]], mask))

    total = _chunks(share, plan.chunk, add, jnp.zeros((plan.rows, TILE), jnp.float32))
    rows = _span(plan.rows)
    mask = (rows < plan.batch_size)[:, None] & (columns < width)[None, :]
    triton.store(partial_.at[pl.program_id(1), rows[:, None], columns[None, :]], total, mask=mask)


def _padded(size: int) -> tuple[Array, Array]:
    """Places up to the next power of two, and which of them are inside."""
    places = _span(pl.next_power_of_2(size))
    return places, places < size


def _tile(kernel: Any, start: Any, chunk: int, size: int, width: int) -> Array:
    """`chunk` rows of a kernel from `start`, and all its columns."""
    rows, (columns, inside) = start + _span(chunk), _padded(width)
    return _load(kernel.at[rows[:, None], columns[None, :]], (rows < size)[:, None] & inside[None, :])


def _chunk(plan: Plan, size: int, width: int) -> int:
    """Rows of an array [size, width] that a program holds at a time."""
    return min(pl.next_power_of_2(size), max(1, plan.values // pl.next_power_of_2(width)))


def _held(plan: Plan, kernels: Sequence[Any]) -> dict[int, Array]:
    """The kernels between first and last that a program loads at its start, by layer: as many as it can hold."""
    held: dict[int, Array] = {}
    for i in range(1, plan.layers - 1):
        size, width = plan.inputs[i], plan.widths[i + 1]
        chunk = _chunk(plan, size, width)
        values = chunk * pl.next_power_of_2(width) + sum(tile.size for tile in held.values())
        if chunk >= size and values <= HELD * plan.values:
            held[i] = _tile(kernels[i], 0, chunk, size, width)
    return held


def middle_layers(
    plan: Plan, place: Any, partial_: Any, noise: Any, weights: Weights, before: Any, results: Any
) -> None:
    """``a[0]`` to ``a[-2]`` and ``h[1]`` to ``h[-1]`` of one image; ``now``, its noise; ``kl[step]``, its cost."""
    del before  # The costs so far, which this step's are written into.
    a, h, now, kl = results
    row, widths, last = pl.program_id(0), plan.widths, plan.layers - 1
    between = range(1, last)
    sizes = {i: (plan.inputs[i], widths[i + 1]) for i in between}
    whole = _held(plan, weights.kernels)

    columns, inside = _padded(widths[1])
    parts, real = _padded(plan.first_shares[0])
    mask = real[:, None] & inside[None, :]
    value = _load(partial_.at[parts[:, None], row, columns[None, :]], mask).sum(axis=0)
    value = value + _load(weights.biases[0].at[columns], inside)
    for i in range(last):
        columns, inside = _padded(widths[i + 1])
        triton.store(a[i].at[row, columns], value, mask=inside)
        if i + 1 != plan.encoder:
            given = plan.act(value)
            triton.store(h[i].at[row, columns], given, mask=inside)
        else:
            given = _latents(plan, place, row, value, a[i], noise, h[i], now, kl)
        if i + 1 == last:
            return
        size, width = sizes[i + 1]
        outs, inside = _padded(width)
        value = _load(weights.biases[i + 1].at[outs], inside)
        if i + 1 in whole:
            value = value + (given[:, None] * whole[i + 1]).sum(axis=0)
            continue
        _barrier(plan)
        chunk = _chunk(plan, size, width)

        def add(
            start: Any, total: Array, i: int = i, chunk: int = chunk, size: int = size, width: int = width
        ) -> Array:
            rows = start + _span(chunk)
            part = _load(h[i].at[row, rows], rows < size)
            return total + (part[:, None] * _tile(weights.kernels[i + 1], start, chunk, size, width)).sum(axis=0)

        value = _chunks(size, chunk, add, value)


def _latents(plan: Plan, place: Any, row: Array, value: Array, a: Any, noise: Any, h: Any, now: Any, kl: Any) -> Array:
    """The latents of an image, stored as ``h``, from ``a``, which is stored."""
    places, inside = _padded(plan.latents)
    if plan.latent is None:
        z = plan.code(value)
        triton.store(h.at[row, places], z, mask=inside)
        return z
    _barrier(plan)
    first, second = (_load(a.at[row, half * plan.latents + places], inside) for half in (0, 1))
    eps = _load(noise.at[place[0], row, places], inside)
    z, cost = plan.latent(first, second, eps)
    triton.store(h.at[row, places], z, mask=inside)
    triton.store(now.at[row, places], eps, mask=inside)
    kl[place[0], row] = jnp.where(inside, cost, 0).sum()
    return jnp.where(inside, z, 0)


def last_layer(plan: Plan, place: Any, images: Any, kernel: Any, bias: Any, h: Any, before: Any, results: Any) -> None:
    """``recon[step, tile]``: a tile's cost; ``d[-1]``; ``back[tile]``: its part of the gradient of ``h[-1]``."""
    del before  # The costs so far, which this step's are written into.
    recon, d, back = results
    tile, rows = pl.program_id(0), _span(plan.rows)
    columns, size = tile * TILE + _span(TILE), plan.inputs[-1]
    inside, real = columns < plan.widths[-1], rows < plan.batch_size
    mask = real[:, None] & inside[None, :]

    def weights(start: Any) -> tuple[Array, Array]:
        places = start + _span(plan.chunk)
        kept = (places < size)[:, None] & inside[None, :]
        return places, _load(kernel.at[places[:, None], columns[None, :]], kept)

    def add(start: Any, total: Array) -> Array:
        places, tile_of_kernel = weights(start)
        given = _load(h.at[rows[:, None], places[None, :]], real[:, None] & (places < size)[None, :])
        return total + _dot(plan, given, tile_of_kernel)

    logits = _chunks(size, plan.chunk, add, jnp.zeros((plan.rows, TILE), jnp.float32))
    logits = logits + _load(bias.at[columns], inside)[None, :]
    x = _intensities(plan, place[0], images, columns)
    cost, pull = jax.vjp(lambda logits: plan.pixel(logits, x), logits)
    (gradient,) = pull(jnp.full(logits.shape, 1 / plan.batch_size, jnp.float32))
    gradient = jnp.where(mask, gradient, 0)

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        triton.store(d.at[rows[:, None], columns[None, :]], gradient, mask=mask)
        triton.store(recon.at[place[0], tile, rows], jnp.where(mask, cost, 0).sum(axis=1), mask=real)

    share = plan.last_shares[1]

    def give(offset: Any, carry: Any) -> Any:
        places, tile_of_kernel = weights(pl.program_id(1) * share + offset)
        mask = real[:, None] & (places < size)[None, :]
        triton.store(back.at[tile, rows[:, None], places[None, :]], _dot(plan, gradient, tile_of_kernel.T), mask=mask)
        return carry

    _chunks(share, plan.chunk, give, 0)


def middle_gradients(plan: Plan, place: Any, back: Any, kernels: Any, a: Any, now: Any, results: Any) -> None:
    """``d[-2]`` to ``d[0]`` of one image. Counts the step in ``place``, which becomes ``following``."""
    d, dz, following = results
    row, last = pl.program_id(0), plan.layers - 1

    @pl.when(row == 0)
    def _() -> None:
        for i in range(2):
            following[i] = place[i] + 1

    between = range(1, last)
    sizes = {i: (plan.inputs[i], plan.widths[i + 1]) for i in between}
    whole = _held(plan, kernels)

    def give(i: int, places: Array, inside: Array, gradient: Array) -> None:
        """Store ``d[i - 1]``, or what becomes of it, from the gradient of ``h[i]`` at some places."""
        if i == plan.encoder:
            triton.store(dz.at[row, places], gradient, mask=inside)
        else:
            _, pull = jax.vjp(plan.act, _load(a[i - 1].at[row, places], inside))
            triton.store(d[i - 1].at[row, places], pull(gradient)[0], mask=inside)

    parts, real = _padded(plan.pixel_tiles)
    chunk = _chunk(plan, plan.inputs[last], len(parts))

    def gather(start: Any, carry: Any) -> Any:
        places = start + _span(chunk)
        inside = places < plan.inputs[last]
        mask = real[:, None] & inside[None, :]
        give(last, places, inside, _load(back.at[parts[:, None], row, places[None, :]], mask).sum(axis=0))
        return carry

    _chunks(plan.inputs[last], chunk, gather, 0)
    for i in reversed(range(last)):
        _barrier(plan)
        if i + 1 == plan.encoder:
            _latents_back(plan, row, a[i], now, dz, d[i])
            _barrier(plan)
        if i == 0:
            return
        size, width = sizes[i]
        columns, inside = _padded(width)
        gradient = _load(d[i].at[row, columns], inside)
        chunk = _chunk(plan, size, width)

        def spread(start: Any, carry: Any, i: int = i, gradient: Array = gradient, chunk: int = chunk) -> Any:
            places = start + _span(chunk)
            tile = whole[i] if i in whole else _tile(kernels[i], start, chunk, *sizes[i])
            give(i, places, places < sizes[i][0], (tile * gradient[None, :]).sum(axis=1))
            return carry

        _chunks(size, chunk, spread, 0)


def _latents_back(plan: Plan, row: Array, a: Any, now: Any, dz: Any, d: Any) -> None:
    """The gradient of the encoder's outputs."""
    places, inside = _padded(plan.latents)
    gradient = _load(dz.at[row, places], inside)
    if plan.latent is None:
        _, pull = jax.vjp(plan.code, _load(a.at[row, places], inside))
        triton.store(d.at[row, places], pull(gradient)[0], mask=inside)
        return
    halves = [_load(a.at[row, half * plan.latents + places], inside) for half in (0, 1)]
    eps = _load(now.at[row, places], inside)
    latent = plan.latent
    _, pull = jax.vjp(lambda first, second: latent(first, second, eps), *halves)
    for half, value in enumerate(
        pull((gradient, jnp.full(gradient.shape, plan.weight / plan.batch_size, jnp.float32)))
    ):
        triton.store(d.at[row, half * plan.latents + places], value, mask=inside)


def update(plan: Plan, place: Any, rate: Any, images: Any, h: Any, d: Any, olds: Sequence[Weights], news: Any) -> None:
    """Adam, in place, of every tile of every kernel and bias; `news` are `olds`: parameters and both moments."""
    program, rows = pl.program_id(0), _span(plan.rows)
    real = rows < plan.batch_size
    t = place[1].astype(jnp.float32)
    corrections = [-1 / jnp.expm1(t * math.log(b)) if b else 1.0 for b in (plan.b1, plan.b2)]

    def adam(which: str, i: int, at: Any, mask: Array, gradient: Array) -> None:
        p, m, v = (_load(getattr(old, which)[i].at[at], mask) for old in olds)
        m = plan.b1 * m + (1 - plan.b1) * gradient
        v = plan.b2 * v + (1 - plan.b2) * gradient * gradient
        p = p - rate[0] * (m * corrections[0] / (jnp.sqrt(v * corrections[1]) + plan.eps))
        for new, value in zip(news, (p, m, v), strict=True):
            triton.store(getattr(new, which)[i].at[at], value, mask=mask)

    first = 0
    for i, (size, width) in enumerate(zip(plan.inputs, plan.widths[1:], strict=True)):
        across = pl.cdiv(width, COLUMNS)
        count = pl.cdiv(size, TILE) * across

        @pl.when((program >= first) & (program < first + count))
        def _(i: int = i, size: int = size, width: int = width, across: int = across, first: int = first) -> None:
            tile = program - first
            ins, outs = tile // across * TILE + _span(TILE), tile % across * COLUMNS + _span(COLUMNS)
            inside, kept = outs < width, ins < size
            mask = real[:, None] & inside[None, :]
            gradient = _load(d[i].at[rows[:, None], outs[None, :]], mask)
            if i == 0:
                given = _intensities(plan, place[0] - 1, images, ins)
            else:
                given = _load(h[i - 1].at[rows[:, None], ins[None, :]], real[:, None] & kept[None, :])
            at, mask = (ins[:, None], outs[None, :]), kept[:, None] & inside[None, :]
            adam("kernels", i, at, mask, _dot(plan, given.T, gradient))

            @pl.when(tile // across == 0)
            def _() -> None:
                adam("biases", i, (outs,), inside, gradient.sum(axis=0))

        first += count


def tiles(plan: Plan) -> int:
    """Programs of `update`."""
    sides = zip(plan.inputs, plan.widths[1:], strict=True)
    return sum(pl.cdiv(size, TILE) * pl.cdiv(width, COLUMNS) for size, width in sides)
