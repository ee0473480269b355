"""Dense networks with gated layers, as Tomczak and Welling use them (arXiv 1705.07120, section 5).

A gated layer of width W computes ``h = (A x + b) * sigmoid(C x + d)``, [B, W] each: Dauphin et al. (arXiv 1612.08083),
equation 1, with dense layers in place of convolutions. A and C are the halves of one kernel.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxvae.models.layers import at_least_float32, uniform_fan_in
from jaxvae.models.torch_layers import FLATTEN, TorchLayer, linear, unflatten
from jaxvae.typing import Array, ImageShape

# As in the paper's code: He's normal distribution, not truncated, and PyTorch's biases.
_HE = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class GatedLayers(nn.Module):
    """Gated layers of the widths but the last, then a dense layer. Input [B, F], output [B, widths[-1]]."""

    widths: tuple[int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i, width in enumerate(self.widths[:-1]):
            x = nn.glu(self._dense(2 * width, x, f"gated_{i}"))
        return at_least_float32(self._dense(self.widths[-1], x, "out"))

    def _dense(self, width: int, x: Array, name: str) -> Array:
        bias = uniform_fan_in(x.shape[-1])
        found: Array = nn.Dense(width, dtype=self.dtype, kernel_init=_HE, bias_init=bias, name=name)(x)
        return found


class GatedEncoder(nn.Module):
    """Map images [B, H, W, C] with intensities in [0, 1] to features [B, out_size], at least float32."""

    hidden: tuple[int, ...]
    out_size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        features: Array = GatedLayers((*self.hidden, self.out_size), self.dtype, name="layers")(
            x.reshape(x.shape[0], -1)
        )
        return features


class GatedDecoder(nn.Module):
    """Map latents [B, L] to [B, H, W, C], at least float32. `hidden` is in the decoder's order."""

    hidden: tuple[int, ...]
    image_shape: ImageShape
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Array) -> Array:
        logits: Array = GatedLayers((*self.hidden, math.prod(self.image_shape)), self.dtype, name="layers")(z)
        return logits.reshape(-1, *self.image_shape)


def torch_encoder(hidden: Sequence[int], image_shape: ImageShape, size: int) -> tuple[TorchLayer, ...]:
    """`GatedEncoder` in PyTorch."""
    return (FLATTEN, *_torch_layers((image_shape, *hidden, size)))


def torch_decoder(hidden: Sequence[int], image_shape: ImageShape, size: int) -> tuple[TorchLayer, ...]:
    """`GatedDecoder` in PyTorch; `hidden` is in the decoder's order."""
    return (*_torch_layers((size, *hidden, image_shape)), unflatten(*image_shape))


def _torch_layers(widths: Sequence[int | ImageShape]) -> tuple[TorchLayer, ...]:
    """`GatedLayers` from ``widths[0]`` inputs to ``widths[-1]`` outputs; an image's width is its shape."""
    layers: list[TorchLayer] = []
    for place, width in enumerate(widths[1:-1]):
        assert isinstance(width, int)
        layers += [linear(("layers", f"gated_{place}"), widths[place], 2 * width), TorchLayer("nn.GLU()")]
    return (*layers, linear(("layers", "out"), widths[-2], widths[-1]))
