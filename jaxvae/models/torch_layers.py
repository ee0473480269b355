"""Networks in PyTorch: the code of every layer, and the layout of its parameters. PyTorch itself is not needed.

PyTorch's images are [B, C, H, W], so a dense layer next to an image has its values in the order (C, H, W). In jaxvae
the order is (H, W, C).
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxvae.models.layers import level_sizes
from jaxvae.typing import ImageShape

Shape = tuple[int, ...]


class TorchArray(NamedTuple):
    """A parameter in jaxvae and in PyTorch.

    Attributes:
      name: its key in the state_dict of its layer, such as "weight".
      path: its path in jaxvae, within the encoder or the decoder, such as ("conv_0", "kernel").
      here: its shape in jaxvae.
      apart: the same shape, with the axes split that PyTorch orders differently.
      axes: the axes of `apart` in PyTorch's order.
      there: its shape in PyTorch.
      flipped: whether the last two axes are reversed in PyTorch.
    """

    name: str
    path: tuple[str, ...]
    here: Shape
    apart: Shape
    axes: Shape
    there: Shape
    flipped: bool = False

    def to_torch(self, values: Any) -> NDArray[Any]:
        """Convert values of shape `here` to shape `there`."""
        ordered = np.asarray(values).reshape(self.apart).transpose(self.axes)
        ordered = ordered[..., ::-1, ::-1] if self.flipped else ordered
        return np.ascontiguousarray(ordered.reshape(self.there))  # PyTorch takes no negative strides.

    def from_torch(self, values: NDArray[Any]) -> NDArray[Any]:
        """Convert values of shape `there` to shape `here`."""
        ordered = values.reshape([self.apart[axis] for axis in self.axes])
        ordered = ordered[..., ::-1, ::-1] if self.flipped else ordered
        return ordered.transpose(np.argsort(self.axes)).reshape(self.here)


class TorchLayer(NamedTuple):
    """An entry of an ``nn.Sequential``.

    Attributes:
      code: the Python code that makes it, such as "nn.Linear(784, 256)".
      arrays: its parameters.
      definition: Python code that must come before `code`; "" if ``from torch import nn`` is enough.
    """

    code: str
    arrays: tuple[TorchArray, ...] = ()
    definition: str = ""


# The PyTorch modules that compute the same as `jaxvae.models.layers.ACTIVATIONS`.
ACTIVATIONS: Mapping[str, str] = {
    "relu": "nn.ReLU()",
    "tanh": "nn.Tanh()",
    "elu": "nn.ELU()",
    "gelu": 'nn.GELU(approximate="tanh")',
    "silu": "nn.SiLU()",
}
FLATTEN = TorchLayer("nn.Flatten()")


def activation(name: str) -> TorchLayer:
    """An activation function."""
    return TorchLayer(ACTIVATIONS[name])


def unflatten(rows: int, cols: int, channels: int) -> TorchLayer:
    """Reshape [B, C H W] to [B, C, H, W]."""
    return TorchLayer(f"nn.Unflatten(1, ({channels}, {rows}, {cols}))")


def _channels_first(shape: Shape, first: int) -> Shape:
    """The axes of an image [H, W, C], or of a vector, in PyTorch's order, counted from `first`."""
    order = tuple(range(first, first + len(shape)))
    return (order[-1], *order[:-1])


def linear(path: tuple[str, ...], inputs: int | ImageShape, outputs: int | ImageShape) -> TorchLayer:
    """A dense layer. If it takes or makes a flattened image, `inputs` or `outputs` is the image's shape [H, W, C]."""
    ins, outs = (size if isinstance(size, tuple) else (size,) for size in (inputs, outputs))
    count_in, count_out = math.prod(ins), math.prod(outs)
    first_out = _channels_first(outs, len(ins))
    weight = TorchArray(
        "weight",
        (*path, "kernel"),
        (count_in, count_out),
        (*ins, *outs),
        (*first_out, *_channels_first(ins, 0)),
        (count_out, count_in),
    )
    bias = TorchArray("bias", (*path, "bias"), (count_out,), outs, _channels_first(outs, 0), (count_out,))
    return TorchLayer(f"nn.Linear({count_in}, {count_out})", (weight, bias))


def _vector(name: str, path: tuple[str, ...], size: int) -> TorchArray:
    return TorchArray(name, path, (size,), (size,), (0,), (size,))


def conv(path: tuple[str, ...], inputs: int, outputs: int, stride: int = 1) -> TorchLayer:
    """A 3 x 3 convolution: of stride 1 with padding 1, or of stride 2 after `pad`."""
    shape = (3, 3, inputs, outputs)
    weight = TorchArray("weight", (*path, "kernel"), shape, shape, (3, 2, 0, 1), (outputs, inputs, 3, 3))
    how = "padding=1" if stride == 1 else f"stride={stride}"
    return TorchLayer(f"nn.Conv2d({inputs}, {outputs}, 3, {how})", (weight, _vector("bias", (*path, "bias"), outputs)))


def pointwise(path: tuple[str, ...], inputs: int, outputs: int) -> TorchLayer:
    """A 1 x 1 convolution. In jaxvae it is a dense layer over the channels."""
    weight = TorchArray(
        "weight", (*path, "kernel"), (inputs, outputs), (1, 1, inputs, outputs), (3, 2, 0, 1), (outputs, inputs, 1, 1)
    )
    return TorchLayer(f"nn.Conv2d({inputs}, {outputs}, 1)", (weight, _vector("bias", (*path, "bias"), outputs)))


def pad(rows: int, cols: int) -> TorchLayer:
    """The padding of a 3 x 3 convolution of stride 2. An even number of rows or columns gets none before the first."""
    return TorchLayer(f"nn.ZeroPad2d(({cols % 2}, 1, {rows % 2}, 1))")


def upsample(path: tuple[str, ...], inputs: int, outputs: int, rows: int, cols: int) -> tuple[TorchLayer, TorchLayer]:
    """A transposed 4 x 4 convolution of stride 2, and a layer that crops its output to `rows` and `cols`.

    PyTorch defines it as the gradient of a convolution, so its kernel is flipped.
    """
    shape = (4, 4, inputs, outputs)
    weight = TorchArray("weight", (*path, "kernel"), shape, shape, (2, 3, 0, 1), (inputs, outputs, 4, 4), flipped=True)
    code = f"nn.ConvTranspose2d({inputs}, {outputs}, 4, stride=2, padding=1)"
    cut = TorchLayer(f"nn.ZeroPad2d((0, {-(cols % 2)}, 0, {-(rows % 2)}))")
    return TorchLayer(code, (weight, _vector("bias", (*path, "bias"), outputs))), cut


def group_norm(path: tuple[str, ...], channels: int, groups: int) -> TorchLayer:
    """Group normalisation; its epsilon is PyTorch's 1e-5."""
    arrays = (_vector("weight", (*path, "scale"), channels), _vector("bias", (*path, "bias"), channels))
    return TorchLayer(f"nn.GroupNorm({groups}, {channels})", arrays)


RESIDUAL = """class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)
"""


def residual(layers: Sequence[TorchLayer]) -> TorchLayer:
    """A residual connection: the input plus the output of the layers."""
    arrays = tuple(
        array._replace(name=f"{place}.{array.name}") for place, layer in enumerate(layers) for array in layer.arrays
    )
    return TorchLayer(f"Residual({', '.join(layer.code for layer in layers)})", arrays, RESIDUAL)


# --- Networks -----------------------------------------------------------------------------------------------


def mlp(widths: Sequence[int], between: str) -> tuple[TorchLayer, ...]:
    """`jaxvae.models.layers.MLP`, from ``widths[0]`` to ``widths[-1]``, with the activation `between`."""
    layers: list[TorchLayer] = []
    for place, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        layers += [activation(between)] if place else []
        layers += [linear(("mlp", f"dense_{place}"), inputs, outputs)]
    return tuple(layers)


def features(shape: ImageShape, size: int, spatial: bool) -> tuple[TorchLayer, ...]:
    """The end of an encoder: from maps (rows, cols, channels) to [B, size]."""
    rows, cols, channels = shape
    if spatial:
        return pointwise(("out",), channels, size // (rows * cols)), FLATTEN
    return FLATTEN, linear(("out",), shape, size)


def first_maps(size: int, shape: ImageShape, spatial: bool) -> tuple[TorchLayer, ...]:
    """The beginning of a decoder: from [B, size] to maps (rows, cols, channels)."""
    rows, cols, channels = shape
    if spatial:
        maps = size // (rows * cols)
        return unflatten(rows, cols, maps), pointwise(("in",), maps, channels)
    return linear(("in",), size, shape), unflatten(rows, cols, channels)


def conv_encoder(
    hidden: Sequence[int], between: str, image_shape: ImageShape, size: int, spatial: bool
) -> tuple[TorchLayer, ...]:
    """`jaxvae.models.layers.ConvEncoder`."""
    height, width, channels = image_shape
    sizes, last = level_sizes(height, width, len(hidden)), (channels, *hidden)[-1]
    layers: list[TorchLayer] = []
    for level, (inputs, outputs) in enumerate(itertools.pairwise((channels, *hidden))):
        layers += [pad(*sizes[level]), conv((f"conv_{level}",), inputs, outputs, stride=2), activation(between)]
    return *layers, *features((*sizes[-1], last), size, spatial)


def conv_decoder(
    hidden: Sequence[int], between: str, image_shape: ImageShape, size: int, spatial: bool
) -> tuple[TorchLayer, ...]:
    """`jaxvae.models.layers.ConvDecoder`; `hidden` is in the encoder's order."""
    height, width, channels = image_shape
    sizes, last = level_sizes(height, width, len(hidden)), (channels, *hidden)[-1]
    layers = [*first_maps(size, (*sizes[-1], last), spatial)]
    for level in range(len(hidden) - 1, -1, -1):
        name = f"conv_{len(hidden) - 1 - level}" if level else "out"
        outputs = hidden[level - 1] if level else channels
        layers += [activation(between), *upsample((name,), hidden[level], outputs, *sizes[level])]
    return tuple(layers)
