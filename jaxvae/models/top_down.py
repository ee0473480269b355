"""The networks of a hierarchical VAE: a bottom-up encoder, and a decoder that takes latents from the top down.

The blocks are those of Child, "Very Deep VAEs" (arXiv 2011.10650, figure 3), at a small scale.

Shapes: B images [H, W, C]. Parameters are float32; `dtype` is that of the matrix products.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxvae.models.convolution import Conv, ConvTranspose
from jaxvae.models.layers import ACTIVATIONS, GLOROT, at_least_float32, level_sizes
from jaxvae.models.resnet import nearest_neighbour_init
from jaxvae.typing import Array, ImageShape

LEAST_WIDTH = 8  # Of a bottleneck.


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 3 x 3 and 1 x 1 convolutions, the inner ones of a quarter of the channels; [B, H, W, out].

    The last starts at `scale` times its usual size.
    """

    out: int
    activation: str = "gelu"
    scale: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        activation, width = ACTIVATIONS[self.activation], max(LEAST_WIDTH, self.out // 4)
        y = nn.Dense(width, dtype=self.dtype, **GLOROT, name="down")(activation(x))
        for i in range(2):
            y = Conv(width, dtype=self.dtype, **GLOROT, name=f"conv_{i}")(activation(y))
        init = nn.initializers.variance_scaling(max(self.scale, 1e-6) ** 2, "fan_avg", "uniform")
        init = init if self.scale else nn.initializers.zeros_init()
        return at_least_float32(nn.Dense(self.out, dtype=self.dtype, kernel_init=init, name="up")(activation(y)))


class BottomUp(nn.Module):
    """The encoder: [B, H, W, C] to the features of each level, [B, rows, columns, channels], from the image up."""

    hidden: tuple[int, ...]
    blocks: int
    activation: str = "gelu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, ...]:
        features = []
        for level, channels in enumerate(self.hidden):
            x = at_least_float32(Conv(channels, stride=2, dtype=self.dtype, **GLOROT, name=f"down_{level}")(x))
            for block in range(self.blocks):
                name = f"block_{level}_{block}"
                x = x + Bottleneck(channels, self.activation, self.blocks**-0.5, self.dtype, name=name)(x)
            features.append(x)
        return tuple(features)


class TopDown(nn.Module):
    """The decoder. `pick` chooses the latents of each layer: see `__call__`."""

    hidden: tuple[int, ...]
    image_shape: ImageShape
    blocks: int
    maps: int
    activation: str = "gelu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, count: int, pick: Callable[[int, int, Array, Array], Array]) -> Array:
        """Images' parameters [count, H, W, C].

        ``pick(layer, level, prior, state)`` returns a layer's latents [count, rows, columns, maps]. `prior` is
        [count, rows, columns, 2 maps] and `state` [count, rows, columns, channels]. Layers count from the top down.
        """
        height, width, channels = self.image_shape
        sizes = level_sizes(height, width, len(self.hidden))
        small = (self.blocks * len(self.hidden)) ** -0.5  # So that the sum of all layers keeps its size.
        top = self.param("top", nn.initializers.normal(0.1), (*sizes[-1], self.hidden[-1]))
        x, layer = jnp.broadcast_to(top, (count, *top.shape)), 0
        style: dict[str, Any] = {"activation": self.activation, "dtype": self.dtype}
        for level in range(len(self.hidden) - 1, -1, -1):
            wide = self.hidden[level]
            for _ in range(self.blocks):
                # It starts at N(0, I), and adds nothing.
                told = Bottleneck(2 * self.maps + wide, **style, scale=0.0, name=f"prior_{layer}")(x)
                prior, more = told[..., : 2 * self.maps], told[..., 2 * self.maps :]
                z = pick(layer, level, prior, x)
                x = x + more + at_least_float32(nn.Dense(wide, dtype=self.dtype, **GLOROT, name=f"latent_{layer}")(z))
                x = x + Bottleneck(wide, **style, scale=small, name=f"block_{layer}")(x)
                layer += 1
            out, name = (self.hidden[level - 1], f"up_{level}") if level else (channels, "out")
            x = ACTIVATIONS[self.activation](x) if not level else x
            up = ConvTranspose(out, sizes[level], self.dtype, kernel_init=nearest_neighbour_init, name=name)
            x = at_least_float32(up(x))
        return x


def layer_grids(image_shape: ImageShape, levels: int, blocks: int) -> list[tuple[int, int]]:
    """Rows and columns of the grid of each layer of latents, from the top down."""
    sizes = level_sizes(*image_shape[:2], levels)
    return [size for size in sizes[:0:-1] for _ in range(blocks)]


def latent_count(image_shape: ImageShape, levels: int, blocks: int, maps: int) -> int:
    """L, of all layers."""
    return maps * sum(math.prod(grid) for grid in layer_grids(image_shape, levels, blocks))
