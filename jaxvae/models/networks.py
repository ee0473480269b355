"""Networks: the encoders and decoders that a model can be made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from flax import linen as nn

from jaxvae.errors import InputError
from jaxvae.models.layers import Activation, ConvDecoder, ConvEncoder, Decoder, Encoder
from jaxvae.options import Range, flag, option
from jaxvae.protocols import Network
from jaxvae.typing import ImageShape

MAX_WIDTH = 2**16  # Of a layer; a wider one is a slip of the finger, and would hang while it is allocated.
_WIDTHS = Range(f"widths from 1 to {MAX_WIDTH}", lambda widths: all(1 <= width <= MAX_WIDTH for width in widths))


@dataclass(frozen=True)
class _Mirrored(Network):
    """A decoder that mirrors its encoder."""

    hidden: tuple[int, ...] = option((256, 64), _WIDTHS)
    """Widths of the encoder's hidden layers (conv: their channels); the decoder mirrors them."""
    activation: Activation = option("relu")
    """Activation function between layers."""
    init: Literal["pytorch", "glorot"] = option("pytorch")
    """Initial weights of dense layers: as PyTorch's; or Glorot's, and the pixels' bias at the logit of their mean."""

    @property
    def starts_from_mean(self) -> bool:
        """See `Network`."""
        return self.init == "glorot"


@dataclass(frozen=True)
class Mlp(_Mirrored):
    """Dense layers of `hidden` widths."""

    def idle(self, config: Any) -> Mapping[str, str]:
        """See `Component`."""
        return {} if self.hidden else {"activation": "--hidden"}

    def encoder(self, size: int, dtype: Any = jnp.float32) -> nn.Module:
        """See `Network`."""
        return Encoder(self.hidden, size, dtype, self.activation, self.init == "glorot")

    def decoder(self, image_shape: ImageShape, dtype: Any = jnp.float32) -> nn.Module:
        """See `Network`."""
        return Decoder(self.hidden[::-1], image_shape, dtype, self.activation, self.init == "glorot")


@dataclass(frozen=True)
class Conv(_Mirrored):
    """Convolutions of stride 2 with `hidden` channels, for images of any size."""

    def check(self, config: Any) -> None:
        """See `Component`."""
        if not self.hidden:
            raise InputError(f"--architecture conv needs {flag('hidden')}: a layer's channels each")

    def idle(self, config: Any) -> Mapping[str, str]:
        """See `Component`."""
        return {"init": "--architecture mlp or two-layer"} if self.init == "pytorch" else {}

    def encoder(self, size: int, dtype: Any = jnp.float32) -> nn.Module:
        """See `Network`."""
        return ConvEncoder(self.hidden, size, dtype, self.activation)

    def decoder(self, image_shape: ImageShape, dtype: Any = jnp.float32) -> nn.Module:
        """See `Network`."""
        return ConvDecoder(self.hidden[::-1], image_shape, dtype, self.activation)


@dataclass(frozen=True)
class TwoLayer(_Mirrored):
    """The dense networks of a model with two layers of latents: `jaxvae.models.two_layer.TwoLayerVAE`.

    Burda, Grosse and Salakhutdinov (arXiv 1509.00519), section 5: between the layers lie two deterministic ones of
    `hidden[0]` next to the image, and of `hidden[1]` between the latents.
    """

    layers: ClassVar[int] = 2

    def check(self, config: Any) -> None:
        """See `Component`."""
        if len(self.hidden) != 2:
            raise InputError(f"--architecture two-layer needs two {flag('hidden')} widths: one a layer")

    def encoder(self, size: int, dtype: Any = jnp.float32) -> nn.Module:
        """See `Network`: from the image to the lower latents."""
        return Encoder(self.hidden[:1] * 2, size, dtype, self.activation, self.init == "glorot")

    def decoder(self, image_shape: ImageShape, dtype: Any = jnp.float32) -> nn.Module:
        """See `Network`: from the lower latents to the image."""
        return Decoder(self.hidden[:1] * 2, image_shape, dtype, self.activation, self.init == "glorot")


NETWORKS: Mapping[str, type[Network]] = {"mlp": Mlp, "conv": Conv, "two-layer": TwoLayer}
