"""Flax linen modules: encoders, decoders, `AutoEncoder`, `VAE`, `TwoLayerVAE`. No losses here.

Every decoder ends in *logits*; pixel intensities are ``sigmoid(logits)`` (`x_hat` of an output).
Objectives choose which of the two they need, so one model serves them all.

Shapes: ``B`` images, ``[H, W, C]`` an image, ``L`` latent dimensions.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxvae.config import Config, Head, Likelihood, Precision

Array = jax.Array
Params: TypeAlias = Any

# The bound on |logvar| of a "linear" head. exp(10) is a variance of 22,026 and exp(-10) of 4.5e-5:
# far outside what a N(0, I) prior asks for, far inside what float32 can hold.
LOGVAR_BOUND = 10.0

F = TypeVar("F", bound=Callable[..., Any])


def with_precision(precision: Precision) -> Callable[[F], F]:
    """A decorator: wherever the function is traced, its float32 products have this precision, on every device."""
    decorator: Callable[[F], F] = jax.default_matmul_precision(precision)
    return decorator


float32_products = with_precision("highest")


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


# Glorot and Bengio (2010), and zero biases; also where nothing else is asked for.
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

    Input [B, F], output [B, widths[-1]]. `dtype` is what the products are computed in;
    parameters are always float32.
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
            init = _uniform_fan_in(x.shape[-1])
            inits: dict[str, Any] = GLOROT if self.glorot else {"kernel_init": init, "bias_init": init}
            x = nn.Dense(width, dtype=self.dtype, **inits, name=f"dense_{i}")(x)
        return x


def _at_least_float32(x: Array) -> Array:
    """Losses and noise are never in bfloat16, whatever the layers compute in."""
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x


class Encoder(nn.Module):
    """Images [B, H, W, C] with intensities in [0, 1] to features [B, out_size], at least float32."""

    hidden: tuple[int, ...]
    out_size: int
    dtype: Any = jnp.float32
    activation: str = "relu"
    glorot: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        mlp = MLP((*self.hidden, self.out_size), self.dtype, self.activation, self.glorot, name="mlp")
        return _at_least_float32(mlp(x.reshape(x.shape[0], -1)))


class Decoder(nn.Module):
    """Latents [B, L] to logits [B, H, W, C], at least float32. `hidden` is in the decoder's own order."""

    hidden: tuple[int, ...]
    image_shape: tuple[int, int, int]
    dtype: Any = jnp.float32
    activation: str = "relu"
    glorot: bool = False

    @nn.compact
    def __call__(self, z: Array) -> Array:
        height, width, channels = self.image_shape
        widths = (*self.hidden, height * width * channels)
        logits = MLP(widths, self.dtype, self.activation, self.glorot, name="mlp")(z)
        return _at_least_float32(logits.reshape(-1, *self.image_shape))


class ConvEncoder(nn.Module):
    """As `Encoder`, by 3 x 3 convolutions of stride 2 with `hidden` channels, and a dense layer."""

    hidden: tuple[int, ...]
    out_size: int
    dtype: Any = jnp.float32
    activation: str = "relu"
    glorot: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i, channels in enumerate(self.hidden):
            x = nn.Conv(channels, (3, 3), strides=2, dtype=self.dtype, **GLOROT, name=f"conv_{i}")(x)
            x = ACTIVATIONS[self.activation](x)
        features = nn.Dense(self.out_size, dtype=self.dtype, **GLOROT, name="out")(x.reshape(x.shape[0], -1))
        return _at_least_float32(features)


class ConvDecoder(nn.Module):
    """As `Decoder`, by a dense layer and transposed convolutions of stride 2, which mirror `ConvEncoder`.

    Sizes that are not powers of two come out right: each layer is cut to the size its mirror was given.
    """

    hidden: tuple[int, ...]
    image_shape: tuple[int, int, int]
    dtype: Any = jnp.float32
    activation: str = "relu"
    glorot: bool = False

    @nn.compact
    def __call__(self, z: Array) -> Array:
        height, width, channels = self.image_shape
        sizes = [(height, width)]
        for _ in self.hidden:
            sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
        (rows, cols), first = sizes[-1], self.hidden[0] if self.hidden else channels
        x = nn.Dense(rows * cols * first, dtype=self.dtype, **GLOROT, name="in")(z)
        x = x.reshape(-1, rows, cols, first)
        for i, (rows, cols) in enumerate(sizes[-2::-1]):
            x = ACTIVATIONS[self.activation](x)
            out = self.hidden[i + 1] if i + 1 < len(self.hidden) else channels
            name = "out" if i + 1 == len(self.hidden) else f"conv_{i}"
            x = nn.ConvTranspose(out, (4, 4), strides=(2, 2), dtype=self.dtype, **GLOROT, name=name)(x)
            x = x[:, :rows, :cols]
        return _at_least_float32(x)


class AutoEncoder(nn.Module):
    """A deterministic autoencoder, the decoder mirroring the encoder.

    Attributes:
      image_shape: (H, W, C).
      hidden: widths of the encoder's hidden layers; the decoder takes them in reverse.
      latent_size: L.
      head: "relu" puts a ReLU on the code, as the notes do; any other leaves it free.
      dtype: what the products are computed in; parameters are float32, code and logits at least that.
      activation: a name in `ACTIVATIONS`.
      glorot: initial weights of `GLOROT` rather than PyTorch's.
      conv: convolutions of `hidden` channels rather than dense layers.
      precision: of float32 products in training steps, as `Config.matmul_precision`.
    """

    image_shape: tuple[int, int, int]
    hidden: tuple[int, ...] = (256, 64)
    latent_size: int = 20
    head: Head = "relu"
    dtype: Any = jnp.float32
    activation: str = "relu"
    glorot: bool = False
    conv: bool = False
    precision: Precision = "highest"

    def setup(self) -> None:
        style = {"dtype": self.dtype, "activation": self.activation, "glorot": self.glorot}
        encoder, decoder = (ConvEncoder, ConvDecoder) if self.conv else (Encoder, Decoder)
        self.encoder = encoder(self.hidden, self.latent_size, **style)
        self.decoder = decoder(self.hidden[::-1], self.image_shape, **style)

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


class Pixels(NamedTuple):
    """The parameters of a distribution of images.

    `location` [..., H, W, C]: of a Gaussian the mean intensity itself, otherwise its logit. `log_scale`:
    the logarithm of a standard deviation or a logistic's scale, in units of intensity, [] or as
    `location`; None where the likelihood has no such parameter.
    """

    location: Array
    log_scale: Array | None


class Draws(NamedTuple):
    """`samples` latents an image, and what they are worth: all [B, S] or [B, S, ...].

    `log_prior` and `log_posterior` are the log-densities of the latents of all layers together, in
    nats. `mean` and `std` [B, L] are the posterior's of the layer next to the image.
    """

    pixels: Pixels
    log_prior: Array
    log_posterior: Array
    latent: Array
    mean: Array
    std: Array


def log_normal(z: Array, mean: Array | float = 0.0, std: Array | float = 1.0) -> Array:
    """The log-density of N(mean, std^2) at `z` [..., L], summed over L: [...], nats."""
    standard = (z - mean) / std
    return (-0.5 * (jnp.square(standard) + math.log(2 * math.pi)) - jnp.log(std)).sum(axis=-1)


def _posterior(features: Array, head: Head) -> tuple[Array, Array]:
    """Features [B, 2 L] as `mean` and `std` [B, L], for the heads that are never 0."""
    mean, raw = jnp.split(features, 2, axis=-1)
    if head == "exp":
        return mean, jnp.exp(raw)
    logvar = LOGVAR_BOUND * jnp.tanh(raw / LOGVAR_BOUND) if head == "linear" else raw
    return mean, jnp.exp(0.5 * logvar)


def _pixels(decoder: Any, log_scale: Array | None, likelihood: Likelihood, latent: Array) -> Pixels:
    """Latents [..., L], decoded as one batch, to the distribution of images [..., H, W, C]."""
    flat: Array = decoder(latent.reshape(-1, latent.shape[-1]))
    out = flat.reshape(*latent.shape[:-1], *flat.shape[1:])
    if likelihood in ("gaussian-pixel", "logistic"):
        # Bounded as a log-variance is; 0 stands for a scale of exp(-2), an eighth of the range.
        location, raw = jnp.split(out, 2, axis=-1)
        return Pixels(location, 5 * jnp.tanh(raw / 5) - 2)
    return Pixels(out, log_scale)


def _logit(p: Array, margin: float) -> Array:
    p = jnp.clip(p, margin, 1 - margin)
    return jnp.log(p) - jnp.log1p(-p)


def _logits(location: Array, likelihood: Likelihood) -> Array:
    """Logits of the mean intensity: of a Gaussian's, which may leave [0, 1], of the nearest within."""
    return _logit(location, 1e-5) if likelihood.startswith("gaussian") else location


def _noise(keys: Array, samples: int, size: int, dtype: Any) -> Array:
    """Standard normal [B, samples, size], keyed by example."""
    return jax.vmap(lambda key: jax.random.normal(key, (samples, size), dtype))(keys)


class VAE(nn.Module):
    """A variational autoencoder with a diagonal Gaussian posterior and a N(0, I) prior.

    The encoder's last layer is 2 L wide and is split into halves. `head` says what they mean:

    - "relu", the notes': both halves go through a ReLU and are the mean and the standard
      deviation itself (which can be exactly 0).
    - "linear", the field's: the mean, and a log-variance held within +-`LOGVAR_BOUND` by
      ``bound * tanh(x / bound)``, the identity near 0, so that ``std = exp(logvar / 2)`` can
      neither overflow nor reach 0.
    - "logvar": the mean and a log-variance without a bound, as most PyTorch VAEs have it.
    - "exp": the mean, and the logarithm of the standard deviation, without a bound.

    Attributes: as `AutoEncoder`'s; `likelihood` decides which parameters the decoder gives.
    """

    image_shape: tuple[int, int, int]
    hidden: tuple[int, ...] = (256, 64)
    latent_size: int = 10
    head: Head = "linear"
    dtype: Any = jnp.float32
    activation: str = "relu"
    glorot: bool = False
    conv: bool = False
    precision: Precision = "highest"
    likelihood: Likelihood = "bernoulli"

    def setup(self) -> None:
        style = {"dtype": self.dtype, "activation": self.activation, "glorot": self.glorot}
        encoder, decoder = (ConvEncoder, ConvDecoder) if self.conv else (Encoder, Decoder)
        self.encoder = encoder(self.hidden, 2 * self.latent_size, **style)
        height, width, channels = self.image_shape
        out = channels * (2 if self.likelihood in ("gaussian-pixel", "logistic") else 1)
        self.decoder = decoder(self.hidden[::-1], (height, width, out), **style)
        learned = self.likelihood == "gaussian-global"
        self.log_scale = self.param("log_scale", nn.initializers.constant(-2.0), ()) if learned else None

    def encode(self, x: Array) -> tuple[Array, Array]:
        """Images [B, H, W, C] in [0, 1] to the posterior's `mean` and `std`, each [B, L]."""
        features = self.encoder(x)
        if self.head == "relu":
            mean, std = jnp.split(nn.relu(features), 2, axis=-1)
            return mean, std
        return _posterior(features, self.head)

    def decode(self, latent: Array) -> Array:
        """Latents [B, L] to logits [B, H, W, C]."""
        return _logits(self.pixels(latent).location, self.likelihood)

    def pixels(self, latent: Array) -> Pixels:
        """Latents [..., L] to the distribution of images [..., H, W, C]."""
        return _pixels(self.decoder, self.log_scale, self.likelihood, latent)

    def draw(self, x: Array, keys: Array, samples: int) -> Draws:
        """Draw `samples` latents for each of the images `x` [B, H, W, C], with a key for each."""
        mean, std = self.encode(x)
        latent = mean[:, None] + std[:, None] * _noise(keys, samples, self.latent_size, mean.dtype)
        posterior = log_normal(latent, mean[:, None], std[:, None])
        return Draws(self.pixels(latent), log_normal(latent), posterior, latent, mean, std)

    def __call__(self, x: Array, key: Array) -> VAEOutput:
        """Encode `x` [B, H, W, C], draw one latent an image with `key` (see `reparameterize`), decode it."""
        mean, std = self.encode(x)
        latent = reparameterize(key, mean, std)
        return VAEOutput(self.decode(latent), latent, mean, std)


class TwoLayerVAE(nn.Module):
    """Two stochastic layers: q(h1 | x) q(h2 | h1), and p(h2) = N(0, I), p(h1 | h2), p(x | h1).

    Burda, Grosse and Salakhutdinov (arXiv 1509.00519), section 5: between the layers lie two
    deterministic ones of `hidden[0]` next to the image and of `hidden[1]` between h1 and h2; h2 has
    `latent_size` dimensions and h1 twice as many.

    Attributes: as `VAE`'s.
    """

    image_shape: tuple[int, int, int]
    hidden: tuple[int, ...] = (200, 100)
    latent_size: int = 50
    head: Head = "exp"
    dtype: Any = jnp.float32
    activation: str = "tanh"
    glorot: bool = True
    precision: Precision = "highest"
    likelihood: Likelihood = "bernoulli"

    def setup(self) -> None:
        style = {"dtype": self.dtype, "activation": self.activation, "glorot": self.glorot}
        low, high = self.hidden
        self.encoder = Encoder((low, low), 4 * self.latent_size, **style)
        self.encoder_2 = MLP((high, high, 2 * self.latent_size), **style)
        self.decoder_2 = MLP((high, high, 4 * self.latent_size), **style)
        height, width, channels = self.image_shape
        out = channels * (2 if self.likelihood in ("gaussian-pixel", "logistic") else 1)
        self.decoder = Decoder((low, low), (height, width, out), **style)
        learned = self.likelihood == "gaussian-global"
        self.log_scale = self.param("log_scale", nn.initializers.constant(-2.0), ()) if learned else None

    def pixels(self, latent: Array) -> Pixels:
        """h1 [..., 2 L] to the distribution of images [..., H, W, C]."""
        return _pixels(self.decoder, self.log_scale, self.likelihood, latent)

    def encode(self, x: Array) -> tuple[Array, Array]:
        """Images [B, H, W, C] in [0, 1] to the `mean` and `std` of q(h1 | x), each [B, 2 L]."""
        return _posterior(self.encoder(x), self.head)

    def encode_upper(self, h1: Array) -> tuple[Array, Array]:
        """h1 [..., 2 L] to the `mean` and `std` of q(h2 | h1), each [..., L]."""
        return _posterior(_at_least_float32(self.encoder_2(h1)), self.head)

    def decode(self, latent: Array) -> Array:
        """h1 [B, 2 L] to logits [B, H, W, C]."""
        return _logits(self.pixels(latent).location, self.likelihood)

    def lower(self, upper: Array) -> tuple[Array, Array]:
        """h2 [..., L] to the `mean` and `std` of p(h1 | h2), each [..., 2 L]."""
        return _posterior(_at_least_float32(self.decoder_2(upper)), self.head)

    def draw(self, x: Array, keys: Array, samples: int) -> Draws:
        """As `VAE.draw`; `latent` is h1."""
        mean, std = self.encode(x)
        noise = _noise(keys, samples, 3 * self.latent_size, mean.dtype)
        noise_1, noise_2 = jnp.split(noise, [2 * self.latent_size], axis=-1)
        h1 = mean[:, None] + std[:, None] * noise_1
        mean_2, std_2 = self.encode_upper(h1)
        h2 = mean_2 + std_2 * noise_2
        posterior = log_normal(h1, mean[:, None], std[:, None]) + log_normal(h2, mean_2, std_2)
        prior = log_normal(h2) + log_normal(h1, *self.lower(h2))
        return Draws(self.pixels(h1), prior, posterior, h1, mean, std)

    def __call__(self, x: Array, key: Array) -> VAEOutput:
        """As `VAE.__call__`, with one latent h1 an image."""
        keys = key if key.ndim else jax.random.split(key, x.shape[0])
        drawn = self.draw(x, keys, 1)
        logits = _logits(drawn.pixels.location[:, 0], self.likelihood)
        return VAEOutput(logits, drawn.latent[:, 0], drawn.mean, drawn.std)


Model: TypeAlias = AutoEncoder | VAE | TwoLayerVAE


def build_model(config: Config, image_shape: tuple[int, int, int]) -> Model:
    """The model of a configuration, for images of shape (H, W, C)."""
    style: dict[str, Any] = {"activation": config.activation, "glorot": config.init == "glorot"}
    style["precision"] = config.matmul_precision
    shape = (image_shape, config.hidden, config.latent_size, config.head, jnp.dtype(config.compute_dtype))
    likelihood: Likelihood = config.likelihood if config.in_nats else "bernoulli"  # The notes' decoders end in logits.
    if config.architecture == "two-layer":
        return TwoLayerVAE(*shape, **style, likelihood=likelihood)
    style["conv"] = config.architecture == "conv"
    return VAE(*shape, **style, likelihood=likelihood) if config.is_vae else AutoEncoder(*shape, **style)


def with_output_bias(params: Params, model: Model, mean: Array) -> Params:
    """`params` with the decoder's last bias at the logit of `mean` [H, W, C], clipped to [.001, .999].

    So that a fresh model draws pixels as bright as the data's; Burda et al. (arXiv 1509.00519), their code.
    Of a convolution, which has one bias a channel, at the logit of the channel's mean; of a Gaussian
    likelihood, at the mean itself.
    """
    params = jax.tree.map(lambda a: a, params)  # The dictionaries are copied, the arrays shared.
    decoder = params["params"]["decoder"]
    if "out" in decoder:
        layer, values = decoder["out"], mean.mean(axis=(0, 1))
    else:
        mlp = decoder["mlp"]
        layer, values = mlp[max(mlp, key=lambda name: int(name.rpartition("_")[2]))], mean
    gaussian = not isinstance(model, AutoEncoder) and model.likelihood.startswith("gaussian")
    logits = values if gaussian else _logit(values, 1e-3)
    bias = layer["bias"]
    # Scales, where there are any, come after the means, channel by channel: theirs stay as they are.
    parts = bias.size // logits.size
    rest = bias.reshape(*logits.shape[:-1], parts * logits.shape[-1])[..., logits.shape[-1] :]
    layer["bias"] = jnp.concatenate([logits, rest], axis=-1).reshape(bias.shape).astype(bias.dtype)
    return params


@float32_products
def reconstruct(model: Model, params: Params, x: Array, key: Array) -> Array:
    """Images `x` [B, H, W, C] in [0, 1], encoded and decoded again: intensities of the same shape.

    A VAE's latents are drawn with `key`, as in training.
    """
    output: AutoEncoderOutput | VAEOutput = model.apply(params, x, key)  # type: ignore[assignment]
    return output.x_hat


@float32_products
def sample(model: VAE | TwoLayerVAE, params: Params, key: Array, count: int) -> Array:
    """Images drawn from the model: z ~ N(0, I), decoded to mean intensities in [0, 1], [count, H, W, C]."""
    latent = jax.random.normal(key, (count, model.latent_size))
    if isinstance(model, TwoLayerVAE):
        lower: Any = model.apply(params, latent, method="lower")
        mean, std = lower
        latent = mean + std * jax.random.normal(jax.random.fold_in(key, 1), mean.shape)
    logits: Array = model.apply(params, latent, method="decode")  # type: ignore[assignment]
    return nn.sigmoid(logits)
