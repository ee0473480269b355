"""Networks: the encoders and decoders that a model can be made of."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from flax import linen as nn

from jaxvae.errors import InputError
from jaxvae.models import gated, resnet, torch_layers
from jaxvae.models.gated import GatedDecoder, GatedEncoder
from jaxvae.models.layers import Activation, ConvDecoder, ConvEncoder, Decoder, Encoder, level_sizes
from jaxvae.models.resnet import ResNetDecoder, ResNetEncoder
from jaxvae.models.top_down import BottomUp, TopDown, latent_count
from jaxvae.models.torch_layers import TorchLayer
from jaxvae.options import Range, flag, option
from jaxvae.protocols import Network
from jaxvae.typing import ImageShape

MAX_WIDTH = 2**16  # Of a layer. A greater width is a typo, and its allocation would hang.
# What two cores compute fastest: see experiments/speed/NOTES.md.
CACHED_PIXELS = 2**15  # Of the images that a convolutional network computes at a time on a CPU.
_WIDTHS = Range(f"widths from 1 to {MAX_WIDTH}", lambda widths: all(1 <= width <= MAX_WIDTH for width in widths))
_BLOCKS = Range("from 1 to 64", lambda blocks: 1 <= blocks <= 64)


@dataclass(frozen=True)
class _Hidden(Network):
    """A network with hidden layers."""

    hidden: tuple[int, ...] = option((256, 64), _WIDTHS)
    """Widths of the encoder's hidden layers (conv, resnet: their channels, such as 32 64). The decoder mirrors them."""


@dataclass(frozen=True)
class _Mirrored(_Hidden):
    """A network with a choice of activation and initial weights."""

    activation: Activation = option("relu")
    """Activation function between layers."""
    init: Literal["pytorch", "glorot"] = option("pytorch")
    """Initial weights of dense layers. pytorch: PyTorch's; glorot: Glorot's, output bias at the mean image's logit."""

    @property
    def starts_from_mean(self) -> bool:
        """See `Network`."""
        return self.init == "glorot"


@dataclass(frozen=True)
class Mlp(_Mirrored):
    """Dense layers with widths `hidden`."""

    def idle(self, config: Any) -> Mapping[str, str]:
        """See `Component`."""
        return {} if self.hidden else {"activation": "--hidden"}

    def encoder(self, size: int, dtype: Any = jnp.float32) -> nn.Module:
        """See `Network`."""
        return Encoder(self.hidden, size, dtype, self.activation, self.init == "glorot")

    def decoder(self, image_shape: ImageShape, dtype: Any = jnp.float32) -> nn.Module:
        """See `Network`."""
        return Decoder(self.hidden[::-1], image_shape, dtype, self.activation, self.init == "glorot")

    def torch_encoder(self, image_shape: ImageShape, size: int) -> Sequence[TorchLayer]:
        """See `Network`, but it takes flattened images [B, H W C]."""
        return torch_layers.mlp((math.prod(image_shape), *self.hidden, size), self.activation)

    def torch_decoder(self, image_shape: ImageShape, latent_size: int) -> Sequence[TorchLayer]:
        """See `Network`, but it returns flattened images [B, H W C]."""
        return torch_layers.mlp((latent_size, *self.hidden[::-1], math.prod(image_shape)), self.activation)


@dataclass(frozen=True)
class Gated(_Hidden):
    """Gated dense layers with widths `hidden`: see `jaxvae.models.gated`."""

    def encoder(self, size: int, dtype: Any = jnp.float32) -> GatedEncoder:
        """See `Network`."""
        return GatedEncoder(self.hidden, size, dtype)

    def decoder(self, image_shape: ImageShape, dtype: Any = jnp.float32) -> GatedDecoder:
        """See `Network`."""
        return GatedDecoder(self.hidden[::-1], image_shape, dtype)

    def torch_encoder(self, image_shape: ImageShape, size: int) -> Sequence[TorchLayer]:
        """See `Network`."""
        return gated.torch_encoder(self.hidden, image_shape, size)

    def torch_decoder(self, image_shape: ImageShape, latent_size: int) -> Sequence[TorchLayer]:
        """See `Network`."""
        return gated.torch_decoder(self.hidden[::-1], image_shape, latent_size)


@dataclass(frozen=True)
class _Channels(_Mirrored):
    """Convolutions with `hidden` channels, for images of any size."""

    # As channels, a preset's widths of dense layers would be too many by far.
    widths: ClassVar[tuple[int, ...] | None] = (32, 64)

    def check(self, config: Any) -> None:
        """See `Component`."""
        if not self.hidden:
            raise InputError(f"--architecture {config.architecture} needs {flag('hidden')}: the channels of each layer")

    def idle(self, config: Any) -> Mapping[str, str]:
        """See `Component`."""
        return {"init": "--architecture mlp or two-layer"} if self.init == "pytorch" else {}

    def cached_images(self, image_shape: ImageShape) -> int | None:
        """See `Network`."""
        return max(1, CACHED_PIXELS // math.prod(image_shape[:2]))


@dataclass(frozen=True)
class _Convolutional(_Channels):
    """The same, with latents of one layer."""

    latents: Literal["dense", "spatial"] = option("dense")
    """Latents of conv and resnet. dense: of the whole image; spatial: equally many for each pixel of the last level."""

    @property
    def spatial(self) -> bool:
        """See `Network`."""
        return self.latents == "spatial"

    def grid(self, image_shape: ImageShape) -> tuple[int, int]:
        """See `Network`: the pixels of the last level."""
        return level_sizes(*image_shape[:2], len(self.hidden))[-1] if self.spatial else (1, 1)

    def check_sizes(self, image_shape: ImageShape, latent_size: int) -> None:
        """See `Network`. Each pixel of the last level has the same number of spatial latents."""
        rows, cols = self.grid(image_shape)
        cells = rows * cols
        if latent_size % cells:
            low = max(1, latent_size // cells) * cells
            raise InputError(
                f"--latent-size {latent_size} does not fit --latents spatial: the last level of {image_shape[0]} x "
                f"{image_shape[1]} images is {rows} x {cols}, so it must be a multiple of {cells}, such as {low} or "
                f"{low + cells}"
            )


@dataclass(frozen=True)
class Conv(_Convolutional):
    """Convolutions of stride 2 with `hidden` channels."""

    def encoder(self, size: int, dtype: Any = jnp.float32) -> nn.Module:
        """See `Network`."""
        return ConvEncoder(self.hidden, size, dtype, self.activation, self.spatial)

    def decoder(self, image_shape: ImageShape, dtype: Any = jnp.float32) -> nn.Module:
        """See `Network`."""
        return ConvDecoder(self.hidden[::-1], image_shape, dtype, self.activation, self.spatial)

    def torch_encoder(self, image_shape: ImageShape, size: int) -> Sequence[TorchLayer]:
        """See `Network`."""
        return torch_layers.conv_encoder(self.hidden, self.activation, image_shape, size, self.spatial)

    def torch_decoder(self, image_shape: ImageShape, latent_size: int) -> Sequence[TorchLayer]:
        """See `Network`."""
        return torch_layers.conv_decoder(self.hidden, self.activation, image_shape, latent_size, self.spatial)


@dataclass(frozen=True)
class ResNet(_Convolutional):
    """Residual blocks with `hidden` channels. Each level halves the image size: see `jaxvae.models.resnet`."""

    blocks: int = option(2, _BLOCKS)
    """Residual blocks per level of a resnet, in the encoder and in the decoder; layers of latents per level of a
    ladder."""

    def encoder(self, size: int, dtype: Any = jnp.float32) -> ResNetEncoder:
        """See `Network`."""
        return ResNetEncoder(self.hidden, size, self.blocks, self.spatial, dtype, self.activation)

    def decoder(self, image_shape: ImageShape, dtype: Any = jnp.float32) -> ResNetDecoder:
        """See `Network`."""
        return ResNetDecoder(self.hidden, image_shape, self.blocks, self.spatial, dtype, self.activation)

    def torch_encoder(self, image_shape: ImageShape, size: int) -> Sequence[TorchLayer]:
        """See `Network`."""
        return resnet.torch_encoder(self.encoder(size), image_shape)

    def torch_decoder(self, image_shape: ImageShape, latent_size: int) -> Sequence[TorchLayer]:
        """See `Network`."""
        return resnet.torch_decoder(self.decoder(image_shape), latent_size)


@dataclass(frozen=True)
class TwoLayer(_Mirrored):
    """The dense networks of a model with two layers of latents: `jaxvae.models.two_layer.TwoLayerVAE`.

    Burda, Grosse and Salakhutdinov (arXiv 1509.00519), section 5: two deterministic layers of width `hidden[0]` lie
    between the image and the lower latents, and two of width `hidden[1]` between the lower and the upper latents.
    """

    hierarchical: ClassVar[bool] = True

    def model(self) -> type[Any]:
        """See `Network`."""
        from jaxvae.models.two_layer import TwoLayerVAE

        return TwoLayerVAE

    def check(self, config: Any) -> None:
        """See `Component`."""
        if len(self.hidden) != 2:
            raise InputError(f"--architecture two-layer needs two {flag('hidden')} widths: one per layer")

    def encoder(self, size: int, dtype: Any = jnp.float32) -> nn.Module:
        """See `Network`: from the image to the lower latents."""
        return Encoder(self.hidden[:1] * 2, size, dtype, self.activation, self.init == "glorot")

    def decoder(self, image_shape: ImageShape, dtype: Any = jnp.float32) -> nn.Module:
        """See `Network`: from the lower latents to the image."""
        return Decoder(self.hidden[:1] * 2, image_shape, dtype, self.activation, self.init == "glorot")


@dataclass(frozen=True)
class Ladder(_Channels):
    """The networks of a hierarchical VAE, from the top down: `jaxvae.models.ladder.LadderVAE`."""

    blocks: int = option(2, _BLOCKS)
    """Residual blocks per level of a resnet, in the encoder and in the decoder; layers of latents per level of a
    ladder."""
    maps: int = option(4, Range("from 1 to 4096", lambda value: 1 <= value <= 4096))
    """Latents of each place of a ladder's grids, in each layer."""

    hierarchical: ClassVar[bool] = True
    ignores: ClassVar[tuple[str, ...]] = ("latent_size", "prior")

    def model(self) -> type[Any]:
        """See `Network`."""
        from jaxvae.models.ladder import LadderVAE

        return LadderVAE

    def latent_count(self, image_shape: ImageShape, latent_size: int) -> int:
        """See `Network`."""
        return latent_count(image_shape, len(self.hidden), self.blocks, self.maps)

    def encoder(self, size: int, dtype: Any = jnp.float32) -> BottomUp:
        """From images to the features of each level; `size` is not used."""
        return BottomUp(self.hidden, self.blocks, self.activation, dtype)

    def decoder(self, image_shape: ImageShape, dtype: Any = jnp.float32) -> TopDown:
        """See `TopDown`."""
        return TopDown(self.hidden, image_shape, self.blocks, self.maps, self.activation, dtype)


NETWORKS: Mapping[str, type[Network]] = {
    "mlp": Mlp,
    "gated": Gated,
    "conv": Conv,
    "resnet": ResNet,
    "two-layer": TwoLayer,
    "ladder": Ladder,
}
