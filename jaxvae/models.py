"""Flax linen modules: `Encoder`, `Decoder`, `AutoEncoder`, `VAE`. No losses here.

Every decoder ends in *logits*; pixel intensities are ``sigmoid(logits)`` (`x_hat` of an output).
Objectives choose which of the two they need, so one model serves them all.

Shapes: ``B`` images, ``[H, W, C]`` an image, ``L`` latent dimensions.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxvae.config import Config, Head

Array = jax.Array
Params: TypeAlias = Any

# The bound on |logvar| of a "linear" head. exp(10) is a variance of 22,026 and exp(-10) of 4.5e-5:
# far outside what a N(0, I) prior asks for, far inside what float32 can hold.
LOGVAR_BOUND = 10.0


class AutoEncoderOutput(NamedTuple):
    """What `AutoEncoder` returns: `logits` [B, H, W, C] and the code `latent` [B, L]."""

    logits: Array
    latent: Array

    @property
    def x_hat(self) -> Array:
        """Reconstructed pixel intensities in [0, 1], [B, H, W, C]."""
        return nn.sigmoid(self.logits)


class VAEOutput(NamedTuple):
    """What `VAE` returns: `logits` [B, H, W, C]; `latent`, a sample of the posterior `mean`, `std` [B, L]."""

    logits: Array
    latent: Array
    mean: Array
    std: Array

    @property
    def x_hat(self) -> Array:
        """Reconstructed pixel intensities in [0, 1], [B, H, W, C]."""
        return nn.sigmoid(self.logits)


def reparameterize(key: Array, mean: Array, std: Array) -> Array:
    """A sample of N(mean, std^2), differentiable in `mean` and `std`: ``mean + std * eps``.

    Kingma and Welling, "Auto-Encoding Variational Bayes" (arXiv 1312.6114), section 2.4.

    Args:
      key: one typed PRNG key for the whole batch, or one an example, shape [B]. With one an
        example the noise of an example does not depend on who shares its batch or its device.
      mean: [B, L].
      std: [B, L], a standard deviation, >= 0.

    Returns:
      Samples [B, L], in the dtype of `mean`.

    Raises:
      ValueError: if the shapes do not agree.
    """
    if mean.shape != std.shape:
        raise ValueError(f"mean {mean.shape} and std {std.shape} must have one shape")
    if key.ndim == 0:
        eps = jax.random.normal(key, mean.shape, mean.dtype)
    elif key.shape == mean.shape[:1]:
        eps = jax.vmap(lambda k: jax.random.normal(k, mean.shape[1:], mean.dtype))(key)
    else:
        raise ValueError(f"key {key.shape} must be a single key or one an example of mean {mean.shape}")
    return mean + std * eps


def _uniform_fan_in(fan_in: int) -> nn.initializers.Initializer:
    """PyTorch's distribution for `Linear`: uniform in +-1/sqrt(fan_in), for weight and bias alike."""
    limit = fan_in**-0.5

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32, **_: Any) -> Array:
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


class MLP(nn.Module):
    """Dense layers of the given widths with ReLU between them, none after the last.

    Input [B, F], output [B, widths[-1]]. `dtype` is what the products are computed in;
    parameters are always float32.
    """

    widths: tuple[int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i, width in enumerate(self.widths):
            if i:
                x = nn.relu(x)
            init = _uniform_fan_in(x.shape[-1])
            x = nn.Dense(width, dtype=self.dtype, kernel_init=init, bias_init=init, name=f"dense_{i}")(x)
        return x


def _at_least_float32(x: Array) -> Array:
    """Losses and noise are never in bfloat16, whatever the layers compute in."""
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x


class Encoder(nn.Module):
    """Images [B, H, W, C] with intensities in [0, 1] to features [B, out_size], at least float32."""

    hidden: tuple[int, ...]
    out_size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        features = MLP((*self.hidden, self.out_size), self.dtype, name="mlp")(x.reshape(x.shape[0], -1))
        return _at_least_float32(features)


class Decoder(nn.Module):
    """Latents [B, L] to logits [B, H, W, C], at least float32. `hidden` is in the decoder's own order."""

    hidden: tuple[int, ...]
    image_shape: tuple[int, int, int]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Array) -> Array:
        height, width, channels = self.image_shape
        logits = MLP((*self.hidden, height * width * channels), self.dtype, name="mlp")(z)
        return _at_least_float32(logits.reshape(-1, *self.image_shape))


class AutoEncoder(nn.Module):
    """A deterministic autoencoder, the decoder mirroring the encoder.

    Attributes:
      image_shape: (H, W, C).
      hidden: widths of the encoder's hidden layers; the decoder takes them in reverse.
      latent_size: L.
      head: "relu" puts a ReLU on the code, as the notes do; "linear" leaves it free.
      dtype: what the products are computed in; parameters are float32, code and logits at least that.
    """

    image_shape: tuple[int, int, int]
    hidden: tuple[int, ...] = (256, 64)
    latent_size: int = 20
    head: Head = "relu"
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.encoder = Encoder(self.hidden, self.latent_size, self.dtype)
        self.decoder = Decoder(self.hidden[::-1], self.image_shape, self.dtype)

    def encode(self, x: Array) -> Array:
        """Images [B, H, W, C] in [0, 1] to codes [B, L]."""
        features: Array = self.encoder(x)
        return nn.relu(features) if self.head == "relu" else features

    def decode(self, latent: Array) -> Array:
        """Codes [B, L] to logits [B, H, W, C]."""
        logits: Array = self.decoder(latent)
        return logits

    def __call__(self, x: Array, key: Array | None = None) -> AutoEncoderOutput:
        """Encode and decode `x` [B, H, W, C]. `key` is unused: all models are called alike."""
        del key
        latent = self.encode(x)
        return AutoEncoderOutput(self.decode(latent), latent)


class VAE(nn.Module):
    """A variational autoencoder with a diagonal Gaussian posterior and a N(0, I) prior.

    The encoder's last layer is 2 L wide and is split into halves. `head` says what they mean:

    - "relu", the notes': both halves go through a ReLU and are the mean and the standard
      deviation itself (which can be exactly 0).
    - "linear", the field's: the mean, and a log-variance held within +-`LOGVAR_BOUND` by
      ``bound * tanh(x / bound)``, the identity near 0, so that ``std = exp(logvar / 2)`` can
      neither overflow nor reach 0.

    Attributes: as `AutoEncoder`'s.
    """

    image_shape: tuple[int, int, int]
    hidden: tuple[int, ...] = (256, 64)
    latent_size: int = 10
    head: Head = "linear"
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.encoder = Encoder(self.hidden, 2 * self.latent_size, self.dtype)
        self.decoder = Decoder(self.hidden[::-1], self.image_shape, self.dtype)

    def encode(self, x: Array) -> tuple[Array, Array]:
        """Images [B, H, W, C] in [0, 1] to the posterior's `mean` and `std`, each [B, L]."""
        features = self.encoder(x)
        if self.head == "relu":
            mean, std = jnp.split(nn.relu(features), 2, axis=-1)
            return mean, std
        mean, raw = jnp.split(features, 2, axis=-1)
        logvar = LOGVAR_BOUND * jnp.tanh(raw / LOGVAR_BOUND)
        return mean, jnp.exp(0.5 * logvar)

    def decode(self, latent: Array) -> Array:
        """Latents [B, L] to logits [B, H, W, C]."""
        logits: Array = self.decoder(latent)
        return logits

    def __call__(self, x: Array, key: Array) -> VAEOutput:
        """Encode `x` [B, H, W, C], draw one latent an image with `key` (see `reparameterize`), decode it."""
        mean, std = self.encode(x)
        latent = reparameterize(key, mean, std)
        return VAEOutput(self.decode(latent), latent, mean, std)


def build_model(config: Config, image_shape: tuple[int, int, int]) -> AutoEncoder | VAE:
    """The model of a configuration, for images of shape (H, W, C)."""
    kind = VAE if config.is_vae else AutoEncoder
    return kind(image_shape, config.hidden, config.latent_size, config.head, jnp.dtype(config.compute_dtype))


def reconstruct(model: AutoEncoder | VAE, params: Params, x: Array, key: Array) -> Array:
    """Images `x` [B, H, W, C] in [0, 1], encoded and decoded again: intensities of the same shape.

    A VAE's latents are drawn with `key`, as in training.
    """
    output: AutoEncoderOutput | VAEOutput = model.apply(params, x, key)  # type: ignore[assignment]
    return output.x_hat


def sample(model: VAE, params: Params, key: Array, count: int) -> Array:
    """Images drawn from the model: z ~ N(0, I), decoded to mean intensities in [0, 1], [count, H, W, C]."""
    latent = jax.random.normal(key, (count, model.latent_size))
    logits: Array = model.apply(params, latent, method="decode")  # type: ignore[assignment]
    return nn.sigmoid(logits)
