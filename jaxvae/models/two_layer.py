"""The VAE with two layers of latents."""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Key

from jaxvae.models.autoencoder import Head
from jaxvae.models.layers import MLP, at_least_float32
from jaxvae.models.networks import TwoLayer
from jaxvae.models.priors import log_normal
from jaxvae.models.vae import LatentModel, VAEOutput, example_noise, split_posterior
from jaxvae.protocols import Network, PosteriorSamples
from jaxvae.typing import Array, Batch


class TwoLayerVAE(LatentModel):
    """Two layers of latents: q(h1 | x) q(h2 | h1), and p(h2), p(h1 | h2), p(x | h1).

    Burda, Grosse and Salakhutdinov (arXiv 1509.00519), section 5: h2 has `latent_size` dimensions and h1 twice as many.

    Attributes: those of `LatentModel`. The network must be a `TwoLayer`, and the head must not be "relu".
    """

    network: Network = TwoLayer((200, 100), "tanh", "glorot")
    latent_size: int = 50
    head: Head = "exp"

    def setup(self) -> None:
        network = self.network
        assert isinstance(network, TwoLayer)
        style = {"dtype": self.dtype, "activation": network.activation, "glorot": network.init == "glorot"}
        high = network.hidden[1]
        self.encoder = network.encoder(4 * self.latent_size, self.dtype)
        self.encoder_2 = MLP((high, high, 2 * self.latent_size), **style)
        self.decoder_2 = MLP((high, high, 4 * self.latent_size), **style)
        self._setup_pixels()

    def encode(self, x: Float[Array, "B H W C"]) -> tuple[Float[Array, "B K"], Float[Array, "B K"]]:
        """Encode images [B, H, W, C] in [0, 1] to the `mean` and `std` of q(h1 | x), each [B, 2 L]."""
        return split_posterior(self.encoder(x), self.head)

    def encode_upper(self, h1: Float[Array, "... K"]) -> tuple[Float[Array, "... K//2"], Float[Array, "... K//2"]]:
        """Encode h1 [..., 2 L] to the `mean` and `std` of q(h2 | h1), each [..., L]."""
        return split_posterior(at_least_float32(self.encoder_2(h1)), self.head)

    def lower(self, upper: Float[Array, "... L"]) -> tuple[Float[Array, "... 2*L"], Float[Array, "... 2*L"]]:
        """Decode h2 [..., L] to the `mean` and `std` of p(h1 | h2), each [..., 2 L]."""
        return split_posterior(at_least_float32(self.decoder_2(upper)), self.head)

    def draw(self, batch: Batch, keys: Key[Array, " B"], samples: int) -> PosteriorSamples:
        """Like `VAE.draw`; `latent` is h1."""
        mean, std = self.encode(batch["image"])
        noise = example_noise(keys, samples, 3 * self.latent_size, mean.dtype)
        noise_1, noise_2 = jnp.split(noise, [2 * self.latent_size], axis=-1)
        h1 = mean[:, None] + std[:, None] * noise_1
        mean_2, std_2 = self.encode_upper(h1)
        h2 = mean_2 + std_2 * noise_2
        posterior = log_normal(h1, mean[:, None], std[:, None]) + log_normal(h2, mean_2, std_2)
        prior = self.log_prior(h2, batch) + log_normal(h1, *self.lower(h2))
        return PosteriorSamples(self.pixels(h1), prior, posterior, h1, mean, std, None)

    def sample_latent(self, key: Key[Array, ""], count: int, batch: Batch | None = None) -> Float[Array, "{count} K"]:
        """Draw h1 [count, 2 L] from the prior, for `decode`."""
        mean, std = self.lower(self.sample_prior(key, (count,), batch))
        return mean + std * jax.random.normal(jax.random.fold_in(key, 1), mean.shape)

    def __call__(self, x: Float[Array, "B H W C"], key: Key[Array, ""] | Key[Array, " B"]) -> VAEOutput:
        """Like `VAE.__call__`, with one latent h1 per image."""
        keys = key if key.ndim else jax.random.split(key, x.shape[0])
        drawn = self.draw({"image": x}, keys, 1)
        logits = self.likelihood.logits(drawn.pixels.location[:, 0])
        return VAEOutput(logits, drawn.latent[:, 0], drawn.mean, drawn.std)
