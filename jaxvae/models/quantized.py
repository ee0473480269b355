"""The VAE with discrete latents. Its posterior is a point: each place of an image has one code.

Shapes: B images [H, W, C]; N places, each with a vector of D dimensions and a code from 0 to K - 1; L = N D.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float, Int, Key

from jaxvae.models.vae import LatentModel, label_of
from jaxvae.protocols import PixelDistribution, PosteriorSamples
from jaxvae.typing import Array, Batch


class QuantizedOutput(NamedTuple):
    """What `QuantizedVAE` returns: `logits` [B, H, W, C], the quantised `latent` [B, L] and its `codes` [B, N]."""

    logits: Float[Array, "B H W C"]
    latent: Float[Array, "B L"]
    codes: Int[Array, "B N"]

    @property
    def x_hat(self) -> Float[Array, "B H W C"]:
        """Reconstructed pixel intensities in [0, 1], [B, H, W, C]."""
        return nn.sigmoid(self.logits)


class Quantized(NamedTuple):
    """What an objective reads: the pixels [B, H, W, C], the encoder's vectors and the codebook's, [B, N, D], and the
    codes' log-probability [B] in nats."""

    pixels: PixelDistribution
    features: Float[Array, "B N D"]
    vectors: Float[Array, "B N D"]
    log_prior: Float[Array, " B"]


class QuantizedVAE(LatentModel):
    """A VAE whose latents are codes: a `quantizer` between encoder and decoder, and an autoregressive prior of codes.

    The prior is trained together with the rest, on codes that it does not change: what van den Oord et al. (arXiv
    1711.00937, section 4) train in a second run.

    Attributes: those of `LatentModel`, of which `head` and `prior` are not used, and `latent_size` is L.
      quantizer: a `VectorQuantizer` or a `FiniteScalarQuantizer`.
      code_prior: a `CodePrior`.
    """

    quantizer: Any = None
    code_prior: Any = None

    def setup(self) -> None:
        self.encoder = self.network.encoder(self.latent_size, self.dtype)
        self._setup_pixels()

    def _features(self, x: Array, label: Array | None) -> Array:
        # Spatial latents have their channels first.
        features: Array = self.encoder(self.labelled(x, label))
        return features.reshape(x.shape[0], self.quantizer.size, -1).swapaxes(1, 2)

    def _latent(self, vectors: Array) -> Array:
        return vectors.swapaxes(1, 2).reshape(vectors.shape[0], -1)

    def codes(self, x: Float[Array, "B H W C"], label: Int[Array, " B"] | None = None) -> Int[Array, "B N"]:
        """The codes of images [B, H, W, C] in [0, 1], row by row of the places."""
        codes: Array = self.quantizer.quantize(self._features(x, label))[0]
        return codes

    def embed(self, codes: Int[Array, "B N"]) -> Float[Array, "B L"]:
        """The latents of codes, for `decode`."""
        return self._latent(self.quantizer.embed(codes))

    def encode(self, x: Float[Array, "B H W C"], label: Int[Array, " B"] | None = None) -> Float[Array, "B L"]:
        """Encode images [B, H, W, C] in [0, 1] to quantised latents [B, L]."""
        return self._latent(self.quantizer.quantize(self._features(x, label))[1])

    def quantize(self, batch: Batch) -> Quantized:
        """Encode, quantise and decode a batch. Gradients pass the quantiser."""
        told = label_of(self, batch)
        features = self._features(batch["image"], told.get("label"))
        codes, vectors = self.quantizer.quantize(features)
        pixels = self.pixels(self._latent(self.quantizer.through(features, vectors)), **told)
        return Quantized(pixels, features, vectors, self.code_prior.log_probability(codes, **told))

    def update(self, features: Float[Array, "T D"], key: Key[Array, ""]) -> Float[Array, ""]:
        """Let the quantiser count the codes of a batch's vectors, and move its averages; the codes' perplexity."""
        perplexity: Array = self.quantizer.update(features, key)
        return perplexity

    def draw(self, batch: Batch, keys: Key[Array, " B"], samples: int) -> PosteriorSamples:
        """The one latent of each image, `samples` times: its posterior has no other."""
        del keys
        found = self.quantize(batch)

        def repeated(values: Array) -> Array:
            return jnp.broadcast_to(values[:, None], (values.shape[0], samples, *values.shape[1:]))

        location, scale = found.pixels
        scale = repeated(scale) if scale is not None and scale.ndim else scale
        latent, log_prior = self._latent(found.vectors), repeated(found.log_prior)
        return PosteriorSamples(
            PixelDistribution(repeated(location), scale),
            log_prior,
            jnp.zeros_like(log_prior),
            repeated(latent),
            latent,
            jnp.zeros_like(latent),
            None,
        )

    def sample_latent(self, key: Key[Array, ""], count: int, batch: Batch | None = None) -> Float[Array, "{count} L"]:
        """Draw codes from the prior; their latents [count, L], for `decode`."""
        return self.embed(self.code_prior.sample(key, count, **label_of(self, batch)))

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        key: Key[Array, "..."] | None = None,
        label: Int[Array, " B"] | None = None,
    ) -> QuantizedOutput:
        """Encode `x` [B, H, W, C], quantise and decode. `key` is unused: all models share one signature."""
        del key
        codes, vectors = self.quantizer.quantize(self._features(x, label))
        latent = self._latent(vectors)
        return QuantizedOutput(self.decode(latent, label), latent, codes)
