"""Convolutions that are fast on every device: matrix products on CPUs and NVIDIA's GPUs, XLA's own elsewhere.

XLA's CPU backend runs a convolution as plain nested loops if it is inside a loop or its input is dilated. That is 10 to
75 times slower than the machine can do. On a GPU, XLA gives convolutions to cuDNN. There the gradient of a transposed
one takes most of a step, and none of it goes into a CUDA graph: on an H100 a step takes 2 to 8 times as long. So each
layer is one matrix product here. Values and gradients equal those of `flax.linen.Conv` and `flax.linen.ConvTranspose`
up to rounding. The parameters have the same names and shapes, so weights can be exchanged.

For products, images are laid out as [C, H W, B]: a pixel is a run of B numbers. Besides its product, a convolution
moves and adds such runs. Tables known at compile time say which. The products get their operands in the layout that
suits them, forward and backward. Every function still takes and returns [B, H, W, C]: XLA sees that consecutive layers
agree on the layout, and moves nothing between them.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from numpy.typing import NDArray

from jaxvae.typing import Array

_FEW = 6  # Channels: three colours, with a location and a scale each.
_NUMBERS = ("NHWC", "HWIO", "NHWC")


class _Table:
    """The input pixels that are summed for each output pixel. This is a linear map: a matrix of zeros and ones.

    Attributes:
      sources: int32 [T, Q], up to T input pixels for each of Q output pixels; `count` means none.
      count: the number of input pixels.
    """

    def __init__(self, sources: NDArray[np.int32], count: int):
        self.sources, self.count = sources, count

    @functools.cached_property
    def transposed(self) -> "_Table":
        """The table of the transposed matrix."""
        terms, places = np.nonzero(self.sources < self.count)
        sources = self.sources[terms, places]
        order = np.argsort(sources, kind="stable")
        sources, places = sources[order], places[order]
        uses = np.bincount(sources, minlength=self.count)
        nth = np.arange(len(sources)) - (np.cumsum(uses) - uses)[sources]
        size = self.sources.shape[1]
        table = np.full((uses.max(initial=1), self.count), size, np.int32)
        table[nth, sources] = places
        return _Table(table, size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _moved(x: Array, table: _Table) -> Array:
    """Apply a table to the pixels `x` [C, count, B]: [C, Q, B]."""
    parts = [jnp.take(x, sources, axis=1, mode="fill", fill_value=0) for sources in table.sources]
    return functools.reduce(jnp.add, parts)


def _moved_forward(x: Array, table: _Table) -> tuple[Array, None]:
    return _moved(x, table), None


def _moved_backward(table: _Table, _: None, gradient: Array) -> tuple[Array]:
    # XLA's own gradient is a scatter, one number at a time.
    return (_moved(gradient, table.transposed),)


_moved.defvjp(_moved_forward, _moved_backward)


@functools.cache
def _windows(size: tuple[int, int], window: tuple[int, int], stride: int) -> _Table:
    """All windows of a convolution with padding SAME: for each tap in turn, the pixels that it sees.

    Args:
      size: (H, W) of the images.
      window: (rows, columns) of the kernel.
      stride: of the window, along both axes.
    """
    seen, inside = [], []
    for pixels, taps in zip(size, window, strict=True):
        count = -(-pixels // stride)
        before = max(0, (count - 1) * stride + taps - pixels) // 2
        places = np.arange(taps)[:, None] - before + stride * np.arange(count)
        seen.append(places)
        inside.append((places >= 0) & (places < pixels))
    (rows, cols), (row_inside, col_inside) = seen, inside
    places = rows[:, None, :, None] * size[1] + cols[:, None]
    places = np.where(row_inside[:, None, :, None] & col_inside[:, None], places, size[0] * size[1])
    return _Table(places.reshape(1, -1).astype(np.int32), size[0] * size[1])


@functools.cache
def _rows(size: tuple[int, int], taps: int) -> _Table:
    """Adds up what the rows of a kernel give, each from all rows of the images: [taps H W] to [H W].

    Args:
      size: (H, W) of the images.
      taps: rows of the kernel. The stride is 1, the padding SAME.
    """
    height, width = size
    tap, row, col = np.ogrid[:taps, :height, :width]
    row = row + tap - (taps - 1) // 2
    places = np.where((row >= 0) & (row < height), (tap * height + row) * width + col, taps * height * width)
    return _Table(places.reshape(taps, -1).astype(np.int32), taps * height * width)


def _pixels(x: Array) -> Array:
    """[B, H, W, C] as [C, H W, B]."""
    return x.transpose(3, 1, 2, 0).reshape(x.shape[3], -1, x.shape[0])


def _images(pixels: Array, height: int, width: int) -> Array:
    """[C, H W, B] as [B, H, W, C]."""
    return pixels.reshape(len(pixels), height, width, -1).transpose(3, 1, 2, 0)


def _copied_images(pixels: Array, height: int, width: int) -> Array:
    """`_images` for a CPU: a product with the identity copies few channels to their new places.

    Without the copy, XLA reads these pixels far apart in all that is computed from them, and repeats the sum of
    `_moved` there. With it, a number that is not finite spoils the pixel's other channels.
    """
    channels = len(pixels)
    if not 1 < channels <= _FEW:
        return _images(pixels, height, width)
    copied = jnp.einsum("cqb,cd->bqd", pixels, jnp.eye(channels, dtype=pixels.dtype))
    return copied.reshape(-1, height, width, channels)


def _by_products(x: Array, kernel: Array, stride: int) -> Array:
    """A convolution with padding SAME: the product of its kernel with the pixels that all taps see."""
    batch, height, width, channels = x.shape
    rows, cols, _, features = kernel.shape
    seen = _moved(_pixels(x), _windows((height, width), (rows, cols), stride))
    taps = kernel.transpose(2, 0, 1, 3).reshape(channels * rows * cols, features)
    product = jnp.einsum("kf,km->fm", taps, seen.reshape(len(taps), -1))
    return _images(product.reshape(features, -1, batch), -(-height // stride), -(-width // stride))


def _row_by_row(x: Array, kernel: Array) -> Array:
    """`_by_products` with stride 1, with a third of the copies if the kernel has three rows.

    The taps of one row of the kernel see three copies of each pixel. They are multiplied with all rows of the kernel at
    once; then the results are added, each from its own row of the images.
    """
    batch, height, width, channels = x.shape
    rows, cols, _, features = kernel.shape
    seen = _moved(_pixels(x), _windows((height, width), (1, cols), 1))
    taps = kernel.transpose(2, 1, 3, 0).reshape(channels * cols, features * rows)
    product = jnp.einsum("kf,km->fm", taps, seen.reshape(len(taps), -1))
    return _images(_moved(product.reshape(features, -1, batch), _rows((height, width), rows)), height, width)


def _transposed_by_products(
    x: Array, kernel: Array, size: tuple[int, int], images: Callable[..., Array] = _images
) -> Array:
    """A transposed convolution with stride 2 and padding SAME: the transpose of `_by_products`, step by step."""
    batch, _, _, channels = x.shape
    rows, cols, _, features = kernel.shape
    # `jax.lax.conv_transpose` convolves a dilated image. Its kernel is the convolution's, rotated by 180 degrees.
    taps = kernel[::-1, ::-1].transpose(3, 0, 1, 2).reshape(features * rows * cols, channels)
    product = jnp.einsum("kc,cm->km", taps, _pixels(x).reshape(channels, -1))
    windows = _windows(size, (rows, cols), 2)
    return images(_moved(product.reshape(features, -1, batch), windows.transposed), *size)


# `jit` keeps what it traced, and the derivatives of that, for all layers of one form. Without it, those of a residual
# network take most of the time until a step is traced. `inline` leaves the program as it would be.
@functools.partial(jax.jit, static_argnames="stride", inline=True)
def convolve(x: Array, kernel: Array, stride: int = 1) -> Array:
    """A convolution with padding SAME.

    Args:
      x: [B, H, W, C].
      kernel: [rows, columns, C, F].
      stride: of the window, along both axes.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), F].
    """

    def by_xla(x: Array, kernel: Array) -> Array:
        result: Array = jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=_NUMBERS)
        return result

    by_products = functools.partial(_by_products, stride=stride)
    on_cpu = _row_by_row if stride == 1 else by_products
    result: Array = jax.lax.platform_dependent(x, kernel, cpu=on_cpu, cuda=by_products, default=by_xla)
    return result


@functools.partial(jax.jit, static_argnames="size", inline=True)
def convolve_transposed(x: Array, kernel: Array, size: tuple[int, int]) -> Array:
    """A transposed convolution with stride 2 and padding SAME, which doubles the size of images, cropped to `size`.

    The kernel is not flipped: see `jax.lax.conv_transpose`.

    Args:
      x: [B, H, W, C].
      kernel: [4, 4, C, F].
      size: rows and columns of the result: 2 H or 2 H - 1, and 2 W or 2 W - 1.

    Returns:
      [B, *size, F].

    Raises:
      ValueError: no such size.
    """
    if any(2 * here - there not in (0, 1) for here, there in zip(x.shape[1:3], size, strict=True)):
        raise ValueError(f"a transposed convolution of {x.shape[1:3]} cannot give {size}")

    def by_xla(x: Array, kernel: Array) -> Array:
        result: Array = jax.lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=_NUMBERS)
        return result[:, : size[0], : size[1]]

    by_products = functools.partial(_transposed_by_products, size=size)
    on_cpu = functools.partial(by_products, images=_copied_images)
    result: Array = jax.lax.platform_dependent(x, kernel, cpu=on_cpu, cuda=by_products, default=by_xla)
    return result


class Conv(nn.Module):
    """`flax.linen.Conv` with padding SAME: the same parameters, and the same values up to rounding.

    Input [B, H, W, C], output [B, ceil(H / stride), ceil(W / stride), features].
    """

    features: int
    size: int = 3
    stride: int = 1
    dtype: Any = jnp.float32
    kernel_init: Any = nn.initializers.lecun_normal()
    bias_init: Any = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        output: Array = convolve(x, kernel, self.stride) + bias.reshape(1, 1, 1, -1)
        return output


class ConvTranspose(nn.Module):
    """`flax.linen.ConvTranspose` with a 4 x 4 kernel, stride 2 and padding SAME: the same parameters and values.

    Input [B, H, W, C], output [B, *size, features]: `size` is the mirrored convolution's input size, so (2 H, 2 W) or
    one row or column less.
    """

    features: int
    size: tuple[int, int]
    dtype: Any = jnp.float32
    kernel_init: Any = nn.initializers.lecun_normal()
    bias_init: Any = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", self.kernel_init, (4, 4, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        output: Array = convolve_transposed(x, kernel, self.size) + bias.reshape(1, 1, 1, -1)
        return output
