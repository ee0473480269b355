"""The hierarchical VAE: any number of layers of latents, on grids that grow towards the image.

Sønderby et al. (arXiv 1602.02282) and Kingma et al. (arXiv 1606.04934): an image goes up through the encoder once. Then
latents are drawn from the top down, and each layer's posterior reads the encoder's features and what was drawn above.

Shapes: B images [H, W, C]; S latents per image; L latents of all layers together.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Key

from jaxvae.models.priors import gaussian_kl_per_dimension, log_normal
from jaxvae.models.top_down import Bottleneck, layer_grids
from jaxvae.models.vae import LatentModel, VAEOutput, example_noise, split_posterior
from jaxvae.protocols import PixelDistribution, PosteriorSamples
from jaxvae.typing import Array, Batch


class LadderVAE(LatentModel):
    """A hierarchical VAE with a top-down posterior: see the module.

    `latent` arrays hold the latents of all layers, from the top down, row by row. Given those above, each layer has a
    diagonal Gaussian posterior and prior.

    Attributes: those of `LatentModel`, of which `prior` is not used, and `latent_size` is L.
    """

    def setup(self) -> None:
        network: Any = self.network
        self.encoder = network.encoder(0, self.dtype)
        self._setup_pixels()
        widths = [channels for channels in network.hidden[::-1] for _ in range(network.blocks)]
        self.posteriors = [
            Bottleneck(2 * network.maps, network.activation, 0.0, self.dtype, name=f"posterior_{i}")
            for i, _ in enumerate(widths)
        ]

    def _grids(self) -> list[tuple[int, int]]:
        network: Any = self.network
        return layer_grids(self.image_shape, len(network.hidden), network.blocks)

    def layer_sizes(self) -> list[int]:
        """The number of latents of each layer, from the top down."""
        network: Any = self.network
        return [rows * columns * network.maps for rows, columns in self._grids()]

    def _split(self, values: Array) -> list[Array]:
        """[N, L] as [N, rows, columns, maps] for each layer."""
        sizes = self.layer_sizes()
        parts = jnp.split(values, np.cumsum(sizes)[:-1], axis=1)
        return [
            part.reshape(-1, *grid, size // math.prod(grid))
            for part, grid, size in zip(parts, self._grids(), sizes, strict=True)
        ]

    def _down(self, count: int, pick: Callable[[int, int, Array, Array], Array]) -> PixelDistribution:
        return self.likelihood.pixels(self.decoder(count, pick), self.learned)

    def _posterior(
        self, features: tuple[Array, ...], choose: Callable[[int, Array, Array], Array]
    ) -> tuple[PixelDistribution, dict[str, Array]]:
        """From the top down: ``choose(layer, mean, std)`` are the latents. Their Gaussians, [N, L] each, by name."""
        found: dict[str, list[Array]] = {"mean": [], "std": [], "prior_mean": [], "prior_std": [], "latent": []}

        def pick(layer: int, level: int, prior: Array, state: Array) -> Array:
            seen = jnp.concatenate([state, features[level]], axis=-1)
            mean, std = split_posterior(self.posteriors[layer](seen), self.head)
            prior_mean, prior_std = split_posterior(prior, self.head)
            z = choose(layer, mean, std)
            for name, value in zip(found, (mean, std, prior_mean, prior_std, z), strict=True):
                found[name].append(value.reshape(value.shape[0], -1))
            return z

        pixels = self._down(features[0].shape[0], pick)
        return pixels, {name: jnp.concatenate(values, axis=1) for name, values in found.items()}

    def encode(self, x: Float[Array, "B H W C"]) -> tuple[Float[Array, "B L"], Float[Array, "B L"]]:
        """The `mean` and `std` of each layer's posterior, where those above are at their means, [B, L] each."""
        _, found = self._posterior(self.encoder(x), lambda layer, mean, std: mean)
        return found["mean"], found["std"]

    def beyond_prior(self, x: Float[Array, "B H W C"]) -> Float[Array, "B L"]:
        """The means of `encode` about those of their priors, in units of the priors' deviations, [B, L]."""
        _, found = self._posterior(self.encoder(x), lambda layer, mean, std: mean)
        beyond: Array = (found["mean"] - found["prior_mean"]) / found["prior_std"]
        return beyond

    def draw(self, batch: Batch, keys: Key[Array, " B"], samples: int) -> PosteriorSamples:
        """Like `VAE.draw`. `mean` and `std` are of the first of the samples, and `kl` is averaged over them."""
        features = tuple(jnp.repeat(maps, samples, axis=0) for maps in self.encoder(batch["image"]))
        noise = self._split(example_noise(keys, samples, self.latent_size, jnp.float32).reshape(-1, self.latent_size))
        pixels, found = self._posterior(features, lambda layer, mean, std: mean + std * noise[layer])
        z, mean, std = found["latent"], found["mean"], found["std"]
        prior, posterior = log_normal(z, found["prior_mean"], found["prior_std"]), log_normal(z, mean, std)
        # In units of the prior's deviation, about its mean: the KL term does not change.
        centre, deviation = found["prior_mean"], found["prior_std"]
        kl = gaussian_kl_per_dimension((mean - centre) / deviation, std / deviation)

        def by_image(values: Array) -> Array:
            return values.reshape(-1, samples, *values.shape[1:])

        location, scale = pixels
        scale = by_image(scale) if scale is not None and scale.ndim else scale
        return PosteriorSamples(
            PixelDistribution(by_image(location), scale),
            by_image(prior),
            by_image(posterior),
            by_image(z),
            by_image(mean)[:, 0],
            by_image(std)[:, 0],
            by_image(kl).mean(1),
        )

    def pixels(self, latent: Float[Array, "B ... L"], label: Any = None) -> PixelDistribution:
        """Decode the latents of all layers, [B, ..., L], to the distribution of images [B, ..., H, W, C]."""
        del label
        lead, flat = latent.shape[:-1], latent.reshape(-1, latent.shape[-1])
        given = self._split(flat)
        location, scale = self._down(flat.shape[0], lambda layer, level, prior, state: given[layer])
        shaped = scale.reshape(*lead, *scale.shape[1:]) if scale is not None and scale.ndim else scale
        return PixelDistribution(location.reshape(*lead, *location.shape[1:]), shaped)

    def sample_latent(self, key: Key[Array, ""], count: int, batch: Batch | None = None) -> Float[Array, "{count} L"]:
        """Draw the latents of all layers, [count, L], from the top down, for `decode`."""
        del batch
        drawn: list[Array] = []

        def pick(layer: int, level: int, prior: Array, state: Array) -> Array:
            mean, std = split_posterior(prior, self.head)
            z = mean + std * jax.random.normal(jax.random.fold_in(key, layer), mean.shape)
            drawn.append(z.reshape(count, -1))
            return z

        self._down(count, pick)
        return jnp.concatenate(drawn, axis=1)

    def __call__(self, x: Float[Array, "B H W C"], key: Key[Array, ""] | Key[Array, " B"]) -> VAEOutput:
        """Like `VAE.__call__`, with one latent per image, of all layers."""
        keys = key if key.ndim else jax.random.split(key, x.shape[0])
        drawn = self.draw({"image": x}, keys, 1)
        logits = self.likelihood.logits(drawn.pixels.location[:, 0])
        return VAEOutput(logits, drawn.latent[:, 0], drawn.mean, drawn.std)
