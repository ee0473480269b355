"""Residual convolutional encoders and decoders, for images that need a deeper network than plain convolutions.

Blocks are pre-activation blocks (He, Zhang, Ren and Sun, "Identity Mappings in Deep Residual Networks", arXiv
1603.05027) with group normalisation (Wu and He, "Group Normalization", arXiv 1803.08494), which treats each image
separately.

Shapes: B images [H, W, C]; L latent dimensions. Parameters are float32; `dtype` is that of the matrix products.
Normalisation is at least float32.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxvae.models import torch_layers
from jaxvae.models.convolution import Conv, ConvTranspose
from jaxvae.models.layers import (
    ACTIVATIONS,
    GLOROT,
    at_least_float32,
    level_sizes,
    spatial_features,
    spatial_input,
)
from jaxvae.models.torch_layers import TorchLayer
from jaxvae.typing import Array, ImageShape

MOST_GROUPS = 32  # As in the paper.
LEAST_CHANNELS = 8  # Per group, so that there are values to average even on a level of one pixel.
EPSILON = 1e-5  # As in the paper and in PyTorch.


def group_count(channels: int) -> int:
    """The number of groups: the most that divide the channels, up to 32, with at least 8 channels each; else 1."""
    most = max(1, min(MOST_GROUPS, channels // LEAST_CHANNELS))
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


class GroupNorm(nn.Module):
    """Group normalisation of [B, H, W, C], at least float32, in `group_count` groups (arXiv 1803.08494, section 3)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = at_least_float32(x)
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (channels,)).astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,)).astype(x.dtype)

        def mean_of_groups(values: Array) -> Array:
            """The mean of each group of [B, H, W, C], repeated for each of its channels: [B, 1, 1, C]."""
            # Over pixels first: a reduction that keeps the channels handles several values at once.
            means = values.mean((1, 2)).reshape(values.shape[0], group_count(channels), -1)
            return jnp.broadcast_to(means.mean(-1, keepdims=True), means.shape).reshape(-1, 1, 1, channels)

        centred = x - mean_of_groups(x)
        inverse = jax.lax.rsqrt(mean_of_groups(jnp.square(centred)) + EPSILON)
        return centred * (inverse * scale.reshape(1, 1, 1, -1)) + bias.reshape(1, 1, 1, -1)


class ResidualBlock(nn.Module):
    """``x + f(x)`` for x [B, H, W, C]. f is normalisation, activation and 3 x 3 convolution, twice (figure 4e).

    The last convolution starts at zero, so untrained blocks are the identity, however many there are (Zhang, Dauphin
    and Ma, "Fixup Initialization", arXiv 1901.09321, section 3).
    """

    activation: str = "relu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        activation, y = ACTIVATIONS[self.activation], x
        for i, init in enumerate((GLOROT["kernel_init"], nn.initializers.zeros_init())):
            y = activation(GroupNorm(name=f"norm_{i}")(y))
            y = Conv(x.shape[-1], dtype=self.dtype, kernel_init=init, name=f"conv_{i}")(y)
        return x + y


def nearest_neighbour_init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    """A kernel [4, 4, in, out] with which `ConvTranspose` is nearest-neighbour upsampling, then a 3 x 3 convolution.

    The 3 x 3 kernel is Glorot's. Each of its values is added to 2 x 2 places.
    """
    kernel: Array = GLOROT["kernel_init"](key, (3, 3, *shape[2:]), dtype)
    for axis in (0, 1):
        before, after = ([(0, 0)] * 4 for _ in range(2))
        before[axis], after[axis] = (1, 0), (0, 1)
        kernel = jnp.pad(kernel, before) + jnp.pad(kernel, after)
    return kernel


class ResNetEncoder(nn.Module):
    """Map images [B, H, W, C] with intensities in [0, 1] to features [B, out_size], at least float32.

    Each level is a 3 x 3 convolution of stride 2 to its number of channels, then `blocks` residual blocks. After the
    last level comes a dense layer or, if `spatial`, a 1 x 1 convolution to [H', W', out_size / (H' W')].
    """

    hidden: tuple[int, ...]
    out_size: int
    blocks: int = 2
    spatial: bool = False
    dtype: Any = jnp.float32
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for level, channels in enumerate(self.hidden):
            x = Conv(channels, stride=2, dtype=self.dtype, **GLOROT, name=f"down_{level}")(x)
            for block in range(self.blocks):
                x = ResidualBlock(self.activation, self.dtype, name=f"block_{level}_{block}")(x)
        x = ACTIVATIONS[self.activation](GroupNorm(name="norm")(x))
        if self.spatial:
            return at_least_float32(spatial_features(x, self.out_size, self.dtype))
        x = x.reshape(x.shape[0], -1)
        return at_least_float32(nn.Dense(self.out_size, dtype=self.dtype, **GLOROT, name="out")(x))


class ResNetDecoder(nn.Module):
    """Map latents [B, L] to [B, H, W, C], at least float32; `hidden` is in the encoder's order.

    It mirrors `ResNetEncoder`: each level has `blocks` residual blocks and an upsampling step, cropped to the input
    size of the mirrored level. The last upsampling step gives the image, so no block runs at full resolution.

    An upsampling step is a transposed 4 x 4 convolution of stride 2. Each output pixel depends on 2 x 2 input pixels.
    This takes 4/9 of the products of nearest-neighbour upsampling and a 3 x 3 convolution, and includes it as a special
    case. Transposed convolutions are known for checkerboard artifacts, caused by uneven overlap or random initial
    weights (Odena, Dumoulin and Olah, "Deconvolution and Checkerboard Artifacts", Distill 2016). Here the overlap is
    even, and the initial weights are those of nearest-neighbour upsampling (as in Aitken et al., arXiv 1707.02937, for
    sub-pixel convolutions).
    """

    hidden: tuple[int, ...]
    image_shape: ImageShape
    blocks: int = 2
    spatial: bool = False
    dtype: Any = jnp.float32
    activation: str = "relu"

    @nn.compact
    def __call__(self, z: Array) -> Array:
        height, width, channels = self.image_shape
        sizes, last = level_sizes(height, width, len(self.hidden)), self.hidden[-1]
        rows, cols = sizes[-1]
        if self.spatial:
            x = spatial_input(z, rows, cols, last, self.dtype)
        else:
            x = nn.Dense(rows * cols * last, dtype=self.dtype, **GLOROT, name="in")(z).reshape(-1, rows, cols, last)
        for level in range(len(self.hidden) - 1, -1, -1):
            for block in range(self.blocks):
                x = ResidualBlock(self.activation, self.dtype, name=f"block_{level}_{block}")(x)
            if not level:
                x = ACTIVATIONS[self.activation](GroupNorm(name="norm")(x))
            out, name = (self.hidden[level - 1], f"up_{level}") if level else (channels, "out")
            x = ConvTranspose(out, sizes[level], self.dtype, kernel_init=nearest_neighbour_init, name=name)(x)
        return at_least_float32(x)


# --- In PyTorch ---------------------------------------------------------------------------------------------


def _torch_blocks(level: int, channels: int, blocks: int, activation: str) -> list[TorchLayer]:
    between = torch_layers.activation(activation)
    made = []
    for block in range(blocks):
        branch: list[TorchLayer] = []
        for i in range(2):
            path = (f"block_{level}_{block}",)
            branch += [torch_layers.group_norm((*path, f"norm_{i}"), channels, group_count(channels)), between]
            branch += [torch_layers.conv((*path, f"conv_{i}"), channels, channels)]
        made.append(torch_layers.residual(branch))
    return made


def _torch_end(channels: int, activation: str) -> list[TorchLayer]:
    return [
        torch_layers.group_norm(("norm",), channels, group_count(channels)),
        torch_layers.activation(activation),
    ]


def torch_encoder(encoder: ResNetEncoder, image_shape: ImageShape) -> Sequence[TorchLayer]:
    """`ResNetEncoder` in PyTorch, for images (H, W, C)."""
    height, width, inputs = image_shape
    sizes = level_sizes(height, width, len(encoder.hidden))
    layers: list[TorchLayer] = []
    for level, channels in enumerate(encoder.hidden):
        layers += [torch_layers.pad(*sizes[level]), torch_layers.conv((f"down_{level}",), inputs, channels, stride=2)]
        layers += _torch_blocks(level, channels, encoder.blocks, encoder.activation)
        inputs = channels
    layers += _torch_end(inputs, encoder.activation)
    rows, cols = sizes[-1]
    return *layers, *torch_layers.features((rows, cols, inputs), encoder.out_size, encoder.spatial)


def torch_decoder(decoder: ResNetDecoder, latent_size: int) -> Sequence[TorchLayer]:
    """`ResNetDecoder` in PyTorch."""
    height, width, outputs = decoder.image_shape
    sizes, last = level_sizes(height, width, len(decoder.hidden)), decoder.hidden[-1]
    rows, cols = sizes[-1]
    layers = [*torch_layers.first_maps(latent_size, (rows, cols, last), decoder.spatial)]
    for level in range(len(decoder.hidden) - 1, -1, -1):
        channels = decoder.hidden[level]
        layers += _torch_blocks(level, channels, decoder.blocks, decoder.activation)
        layers += [] if level else _torch_end(channels, decoder.activation)
        out, name = (decoder.hidden[level - 1], f"up_{level}") if level else (outputs, "out")
        layers += torch_layers.upsample((name,), channels, out, *sizes[level])
    return layers
