"""Layers of encoders and decoders, their initial weights, and the precision of their products.

Shapes: B images [H, W, C]; L latent dimensions. Parameters are float32; `dtype` is that of the matrix products.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxvae.models.convolution import Conv, ConvTranspose
from jaxvae.typing import Array, ImageShape

Precision = Literal["default", "high", "highest"]
Activation = Literal["relu", "tanh", "elu", "gelu", "silu"]
F = TypeVar("F", bound=Callable[..., Any])


def with_precision(precision: Precision) -> Callable[[F], F]:
    """A decorator: wherever the function is traced, its float32 products have this precision, on every device."""
    decorator: Callable[[F], F] = jax.default_matmul_precision(precision)
    return decorator


float32_products = with_precision("highest")


def uniform_fan_in(fan_in: int) -> nn.initializers.Initializer:
    """PyTorch's distribution for `Linear`: uniform in +-1/sqrt(fan_in), for weight and bias alike."""
    limit = fan_in**-0.5

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32, **_: Any) -> Array:
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


# Glorot and Bengio (2010), with zero biases. Layers without a choice of initial weights use it as well.
GLOROT: dict[str, Any] = {
    "kernel_init": nn.initializers.glorot_uniform(),
    "bias_init": nn.initializers.zeros_init(),
}

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "tanh": nn.tanh,
    "elu": nn.elu,
    "gelu": nn.gelu,
    "silu": nn.silu,
}


class MLP(nn.Module):
    """Dense layers of the given widths with an activation between them, none after the last.

    Input [B, F], output [B, widths[-1]].
    """

    widths: tuple[int, ...]
    dtype: Any = jnp.float32
    activation: str = "relu"
    glorot: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i, width in enumerate(self.widths):
            if i:
                x = ACTIVATIONS[self.activation](x)
            init = uniform_fan_in(x.shape[-1])
            inits: dict[str, Any] = GLOROT if self.glorot else {"kernel_init": init, "bias_init": init}
            x = nn.Dense(width, dtype=self.dtype, **inits, name=f"dense_{i}")(x)
        return x


def at_least_float32(x: Array) -> Array:
    """Cast `x` to at least float32: losses and noise are never in bfloat16."""
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x


class ByLabel(nn.Module):
    """A learned vector for each label: labels [B] to [B, size]. A label that there is not has zeros.

    As a product with one-hot labels: the gradient of a gather has no fixed order of sums on a GPU.
    """

    classes: int
    size: int
    first: nn.initializers.Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, label: Array) -> Array:
        table = self.param("table", self.first, (self.classes, self.size))
        vectors: Array = nn.one_hot(label.astype(jnp.int32), self.classes, dtype=table.dtype) @ table
        return vectors


class Encoder(nn.Module):
    """Map images [B, H, W, C] with intensities in [0, 1] to features [B, out_size], at least float32."""

    hidden: tuple[int, ...]
    out_size: int
    dtype: Any = jnp.float32
    activation: str = "relu"
    glorot: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        mlp = MLP((*self.hidden, self.out_size), self.dtype, self.activation, self.glorot, name="mlp")
        return at_least_float32(mlp(x.reshape(x.shape[0], -1)))


class Decoder(nn.Module):
    """Map latents [B, L] to [B, H, W, C], at least float32. `hidden` is in the decoder's order."""

    hidden: tuple[int, ...]
    image_shape: ImageShape
    dtype: Any = jnp.float32
    activation: str = "relu"
    glorot: bool = False

    @nn.compact
    def __call__(self, z: Array) -> Array:
        height, width, channels = self.image_shape
        widths = (*self.hidden, height * width * channels)
        logits = MLP(widths, self.dtype, self.activation, self.glorot, name="mlp")(z)
        return at_least_float32(logits.reshape(-1, *self.image_shape))


def spatial_features(x: Array, size: int, dtype: Any) -> Array:
    """[B, H, W, C] to [B, size]: equally many features for each pixel, by a 1 x 1 convolution named "out".

    Channels come first in [B, size], so a head that splits the features splits the channels.
    """
    count, rows, cols, _ = x.shape
    x = nn.Dense(size // (rows * cols), dtype=dtype, **GLOROT, name="out")(x)
    return x.transpose(0, 3, 1, 2).reshape(count, size)


def spatial_input(z: Array, rows: int, cols: int, channels: int, dtype: Any) -> Array:
    """Spatial latents [B, L], channels first, to [B, rows, cols, channels], by a 1 x 1 convolution named "in"."""
    maps = z.reshape(z.shape[0], -1, rows, cols).transpose(0, 2, 3, 1)
    return nn.Dense(channels, dtype=dtype, **GLOROT, name="in")(maps)


class ConvEncoder(nn.Module):
    """Like `Encoder`, but with 3 x 3 convolutions of stride 2 with `hidden` channels, and a dense layer.

    If `spatial`, the last layer is a 1 x 1 convolution instead.
    """

    hidden: tuple[int, ...]
    out_size: int
    dtype: Any = jnp.float32
    activation: str = "relu"
    spatial: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i, channels in enumerate(self.hidden):
            x = Conv(channels, 3, 2, self.dtype, **GLOROT, name=f"conv_{i}")(x)
            x = ACTIVATIONS[self.activation](x)
        if self.spatial:
            return at_least_float32(spatial_features(x, self.out_size, self.dtype))
        features = nn.Dense(self.out_size, dtype=self.dtype, **GLOROT, name="out")(x.reshape(x.shape[0], -1))
        return at_least_float32(features)


class ConvDecoder(nn.Module):
    """Like `Decoder`, but with a dense layer and transposed convolutions of stride 2 that mirror `ConvEncoder`.

    Sizes need not be powers of two: each layer's output has the input size of its mirror.
    """

    hidden: tuple[int, ...]
    image_shape: ImageShape
    dtype: Any = jnp.float32
    activation: str = "relu"
    spatial: bool = False

    @nn.compact
    def __call__(self, z: Array) -> Array:
        height, width, channels = self.image_shape
        sizes = level_sizes(height, width, len(self.hidden))
        (rows, cols), first = sizes[-1], self.hidden[0] if self.hidden else channels
        if self.spatial:
            x = spatial_input(z, rows, cols, first, self.dtype)
        else:
            x = nn.Dense(rows * cols * first, dtype=self.dtype, **GLOROT, name="in")(z)
            x = x.reshape(-1, rows, cols, first)
        for i, size in enumerate(sizes[-2::-1]):
            x = ACTIVATIONS[self.activation](x)
            out = self.hidden[i + 1] if i + 1 < len(self.hidden) else channels
            name = "out" if i + 1 == len(self.hidden) else f"conv_{i}"
            x = ConvTranspose(out, size, self.dtype, **GLOROT, name=name)(x)
        return at_least_float32(x)


def logit(p: Array, margin: float) -> Array:
    """The logit of probabilities, clipped to [margin, 1 - margin]."""
    p = jnp.clip(p, margin, 1 - margin)
    return jnp.log(p) - jnp.log1p(-p)


def level_sizes(rows: int, cols: int, levels: int) -> tuple[tuple[int, int], ...]:
    """Rows and columns of an image, then of the output of each of `levels` convolutions of stride 2, rounded up."""
    sizes = [(rows, cols)]
    for _ in range(levels):
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return tuple(sizes)
