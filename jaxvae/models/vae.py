"""The variational autoencoder. Its decoder returns the parameters of a `jaxvae.protocols.Likelihood`.

Shapes: B images [H, W, C]; S latents per image; L latent dimensions.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float, Int, Key

from jaxvae.errors import InputError
from jaxvae.models.autoencoder import Head
from jaxvae.models.layers import ByLabel
from jaxvae.models.likelihoods import Bernoulli
from jaxvae.models.networks import Mlp
from jaxvae.models.priors import StandardNormal, log_normal
from jaxvae.protocols import Likelihood, Network, PixelDistribution, PosteriorSamples, Prior
from jaxvae.typing import Array, Batch, ImageShape

# The bound on |logvar| of a "linear" head. exp(10) is a variance of 22,026 and exp(-10) of 4.5e-5:
# far outside what a N(0, I) prior asks for, far inside what float32 can hold.
LOGVAR_BOUND = 10.0


class VAEOutput(NamedTuple):
    """What `VAE` returns: `logits` [B, H, W, C]; `latent`, a sample of the posterior, its `mean` and `std` [B, L]."""

    logits: Float[Array, "B H W C"]
    latent: Float[Array, "B L"]
    mean: Float[Array, "B L"]
    std: Float[Array, "B L"]

    @property
    def x_hat(self) -> Float[Array, "B H W C"]:
        """Reconstructed pixel intensities in [0, 1], [B, H, W, C]."""
        return nn.sigmoid(self.logits)


def reparameterize(
    key: Key[Array, ""] | Key[Array, " B"], mean: Float[Array, "B L"], std: Float[Array, "B L"]
) -> Float[Array, "B L"]:
    """A sample of N(mean, std^2), differentiable in `mean` and `std`: ``mean + std * eps``.

    Kingma and Welling, "Auto-Encoding Variational Bayes" (arXiv 1312.6114), section 2.4.

    Args:
      key: one typed PRNG key for the whole batch, or one per example, shape [B]. With one per
        example, the noise of an example does not depend on the rest of its batch or on the device.
      mean: [B, L].
      std: [B, L], a standard deviation, >= 0.

    Returns:
      Samples [B, L], in the dtype of `mean`.

    Raises:
      ValueError: if the shapes do not agree.
    """
    if mean.shape != std.shape:
        raise ValueError(f"mean {mean.shape} and std {std.shape} must have the same shape")
    if key.ndim == 0:
        eps = jax.random.normal(key, mean.shape, mean.dtype)
    elif key.shape == mean.shape[:1]:
        eps = jax.vmap(lambda k: jax.random.normal(k, mean.shape[1:], mean.dtype))(key)
    else:
        raise ValueError(f"key {key.shape} must be a single key or one per example of mean {mean.shape}")
    return mean + std * eps


def split_posterior(
    features: Float[Array, "... F"], head: Head
) -> tuple[Float[Array, "... F//2"], Float[Array, "... F//2"]]:
    """Split features into `mean` and `std`, half of them each. The head decides what the halves mean: see `VAE`."""
    first, second = jnp.split(features, 2, axis=-1)
    return moments(first, second, head)


def moments(
    first: Float[Array, "..."], second: Float[Array, "..."], head: Head, relu: Callable[[Array], Array] = nn.relu
) -> tuple[Array, Array]:
    """`mean` and `std` from the halves of the encoder's features, elementwise: see `VAE`."""
    if head == "relu":
        return relu(first), relu(second)
    if head == "exp":
        return first, jnp.exp(second)
    logvar = LOGVAR_BOUND * jnp.tanh(second / LOGVAR_BOUND) if head == "linear" else second
    return first, jnp.exp(0.5 * logvar)


def example_noise(keys: Key[Array, " B"], samples: int, size: int, dtype: Any) -> Float[Array, "B {samples} {size}"]:
    """Standard normal noise [B, samples, size], from one key per example."""
    return jax.vmap(lambda key: jax.random.normal(key, (samples, size), dtype))(keys)


class LatentModel(nn.Module):
    """The base of all models with a distribution of latents: it has the decoder and the prior.

    With `classes`, it is conditional: q(z | x, y) and p(x | z, y), where y is an image's label. Sohn, Lee and Yan,
    "Learning Structured Output Representation using Deep Conditional Generative Models" (NeurIPS 2015). A label has two
    learned vectors: an image that is added to what the encoder sees, and L numbers that the decoder gets after the
    latents. (So many, that a decoder of spatial latents can share them out.) The methods below that take a `label` then
    need it.

    Attributes:
      image_shape: (H, W, C).
      network: its encoder and decoder.
      latent_size: L.
      head: what the encoder's output means; see `VAE`.
      likelihood: the distribution of an image. It decides what the decoder returns.
      prior: the distribution of the latents.
      dtype: the dtype of the matrix products; parameters are float32, and all that follows the layers at least float32.
      classes: how many labels a conditional model knows; 0: it is not conditional.
      training_only: names of parameters that nothing but training reads.
    """

    training_only: ClassVar[tuple[str, ...]] = ()

    image_shape: ImageShape
    network: Network = Mlp()
    latent_size: int = 10
    head: Head = "linear"
    likelihood: Likelihood = Bernoulli()
    prior: Prior = StandardNormal()
    dtype: Any = jnp.float32
    classes: int = 0

    def _setup_pixels(self) -> None:
        height, width, channels = self.image_shape
        self.decoder = self.network.decoder((height, width, channels * self.likelihood.outputs), self.dtype)
        learned = self.likelihood.parameters()
        self.learned = {name: self.param(name, nn.initializers.constant(first), ()) for name, first in learned.items()}
        self.p_z: Any = self.prior.module_with(self.latent_size, self.encode, self.image_shape)
        if self.classes:
            self.label_image = ByLabel(self.classes, height * width * channels)
            self.label_latents = ByLabel(self.classes, self.latent_size, nn.initializers.normal(1.0))

    def _label(self, label: Array | None) -> Array:
        if label is None:
            raise InputError("the model is conditional: it needs the label of each image")
        return label

    def labelled(self, x: Float[Array, "B H W C"], label: Int[Array, " B"] | None = None) -> Float[Array, "B H W C"]:
        """What the encoder sees of images [B, H, W, C] in [0, 1]."""
        if not self.classes:
            return x
        told: Array = self.label_image(self._label(label))
        return x + told.reshape(x.shape)

    def pixels(self, latent: Float[Array, "B ... L"], label: Int[Array, " B"] | None = None) -> PixelDistribution:
        """Decode the latents next to the image, [B, ..., L], to the distribution of images [B, ..., H, W, C]."""
        lead = latent.shape[:-1]
        if self.classes:
            told: Array = self.label_latents(self._label(label))
            told = told.reshape(told.shape[0], *[1] * (latent.ndim - 2), -1)
            latent = jnp.concatenate([latent, jnp.broadcast_to(told, latent.shape)], axis=-1)
        flat: Array = self.decoder(latent.reshape(-1, latent.shape[-1]))
        return self.likelihood.pixels(flat.reshape(*lead, *flat.shape[1:]), self.learned)

    def decode(self, latent: Float[Array, "B L"], label: Int[Array, " B"] | None = None) -> Float[Array, "B H W C"]:
        """Decode the latents next to the image [B, L] to logits of the mean intensities [B, H, W, C]."""
        return self.likelihood.logits(self.pixels(latent, label).location)

    def log_prior(self, latent: Float[Array, "B S L"], batch: Batch) -> Float[Array, "B S"]:
        """log p(z) at latents [B, S, L] of a batch: [B, S], nats."""
        density: Array = self.p_z.log_density(latent, batch)
        return density

    def sample_prior(
        self, key: Key[Array, ""], shape: tuple[int, ...], batch: Batch | None = None
    ) -> Float[Array, "... L"]:
        """Draw latents [*shape, L] from the prior; see `PriorModule.sample`."""
        latent: Array = self.p_z.sample(key, shape, batch)
        return latent


class VAE(LatentModel):
    """A variational autoencoder with a diagonal Gaussian posterior.

    The encoder's last layer is 2 L wide and is split into halves. `head` says what they mean:

    - "relu", as in the notes: both halves go through a ReLU. They are the mean and the standard
      deviation itself, which can be exactly 0.
    - "linear", the usual one: the mean, and a log-variance kept within +-`LOGVAR_BOUND` by
      ``bound * tanh(x / bound)``. That is the identity near 0, and ``std = exp(logvar / 2)`` can
      neither overflow nor reach 0.
    - "logvar": the mean and a log-variance without a bound, as in most PyTorch VAEs.
    - "exp": the mean, and the logarithm of the standard deviation, without a bound.

    Attributes: those of `LatentModel`.
    """

    def setup(self) -> None:
        self.encoder = self.network.encoder(2 * self.latent_size, self.dtype)
        self._setup_pixels()

    def encode(
        self, x: Float[Array, "B H W C"], label: Int[Array, " B"] | None = None
    ) -> tuple[Float[Array, "B L"], Float[Array, "B L"]]:
        """Encode images [B, H, W, C] in [0, 1] to the posterior's `mean` and `std`, each [B, L]."""
        return split_posterior(self.encoder(self.labelled(x, label)), self.head)

    def draw(self, batch: Batch, keys: Key[Array, " B"], samples: int) -> PosteriorSamples:
        """Draw `samples` latents for each image of a batch, with one key per image."""
        told = label_of(self, batch)
        mean, std = self.encode(batch["image"], **told)
        latent = mean[:, None] + std[:, None] * example_noise(keys, samples, self.latent_size, mean.dtype)
        posterior = log_normal(latent, mean[:, None], std[:, None])
        prior, kl = self.log_prior(latent, batch), self.kl(mean, std, batch)
        return PosteriorSamples(self.pixels(latent, **told), prior, posterior, latent, mean, std, kl)

    def kl(self, mean: Float[Array, "B L"], std: Float[Array, "B L"], batch: Batch) -> Float[Array, "B L"] | None:
        """KL(N(mean, std^2) || p(z)) of each dimension, [B, L], nats; None where it has no closed form."""
        kl: Array | None = self.p_z.kl(mean, std, batch)
        return kl

    def sample_latent(self, key: Key[Array, ""], count: int, batch: Batch | None = None) -> Float[Array, "{count} L"]:
        """Draw latents [count, L] from the prior, for `decode`."""
        return self.sample_prior(key, (count,), batch)

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        key: Key[Array, ""] | Key[Array, " B"],
        label: Int[Array, " B"] | None = None,
    ) -> VAEOutput:
        """Encode `x` [B, H, W, C], draw one latent per image with `key` (see `reparameterize`), and decode it."""
        mean, std = self.encode(x, label)
        latent = reparameterize(key, mean, std)
        return VAEOutput(self.decode(latent, label), latent, mean, std)


def label_of(model: nn.Module, batch: Batch | None) -> dict[str, Any]:
    """What methods of a conditional model take besides images or latents: a batch's labels. Other models: nothing."""
    if batch is None or "label" not in batch or not isinstance(model, LatentModel) or not model.classes:
        return {}
    return {"label": batch["label"]}
