"""The autoencoder. It maps an image to a code, not to a distribution."""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float, Key

from jaxvae.models.networks import Mlp
from jaxvae.protocols import Network
from jaxvae.typing import Array, ImageShape

Head = Literal["relu", "linear", "logvar", "exp"]


class AutoEncoderOutput(NamedTuple):
    """What `AutoEncoder` returns: `logits` [B, H, W, C] and the code `latent` [B, L]."""

    logits: Float[Array, "B H W C"]
    latent: Float[Array, "B L"]

    @property
    def x_hat(self) -> Float[Array, "B H W C"]:
        """Reconstructed pixel intensities in [0, 1], [B, H, W, C]."""
        return nn.sigmoid(self.logits)


class AutoEncoder(nn.Module):
    """A deterministic autoencoder.

    Attributes:
      image_shape: (H, W, C).
      network: its encoder and decoder.
      latent_size: L.
      head: "relu" applies a ReLU to the code, as in the notes; any other head leaves the code unchanged.
      dtype: the dtype of the matrix products; parameters are float32, the code and the logits at least float32.
    """

    image_shape: ImageShape
    network: Network = Mlp()
    latent_size: int = 20
    head: Head = "relu"
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.encoder = self.network.encoder(self.latent_size, self.dtype)
        self.decoder = self.network.decoder(self.image_shape, self.dtype)

    def encode(self, x: Float[Array, "B H W C"]) -> Float[Array, "B L"]:
        """Encode images [B, H, W, C] in [0, 1] to codes [B, L]."""
        features: Array = self.encoder(x)
        return nn.relu(features) if self.head == "relu" else features

    def decode(self, latent: Float[Array, "B L"]) -> Float[Array, "B H W C"]:
        """Decode codes [B, L] to logits [B, H, W, C]."""
        logits: Array = self.decoder(latent)
        return logits

    def __call__(self, x: Float[Array, "B H W C"], key: Key[Array, "..."] | None = None) -> AutoEncoderOutput:
        """Encode and decode `x` [B, H, W, C]. `key` is unused: all models share one signature."""
        del key
        latent = self.encode(x)
        return AutoEncoderOutput(self.decode(latent), latent)
