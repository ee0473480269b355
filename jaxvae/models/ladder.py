"""The hierarchical VAE: any number of layers of latents, on grids that grow towards the image.

Sønderby et al. (arXiv 1602.02282) and Kingma et al. (arXiv 1606.04934): an image goes up through the encoder once. Then
latents are drawn from the top down, and each layer's posterior reads the encoder's features and what was drawn above.
The blocks are those of Child, "Very Deep VAEs" (arXiv 2011.10650, figure 3), at a small scale.

Shapes: B images [H, W, C]; S latents per image; L latents of all layers together.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float, Key

from jaxvae.models.convolution import Conv, ConvTranspose
from jaxvae.models.layers import ACTIVATIONS, GLOROT, at_least_float32, level_sizes
from jaxvae.models.priors import gaussian_kl, log_normal
from jaxvae.models.resnet import nearest_neighbour_init
from jaxvae.models.vae import LatentModel, VAEOutput, example_noise, split_posterior
from jaxvae.protocols import PixelDistribution, PosteriorSamples
from jaxvae.typing import Array, Batch, ImageShape

LEAST_WIDTH = 8  # Of a bottleneck.


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 3 x 3 and 1 x 1 convolutions, the inner ones of a quarter of the channels; [B, H, W, out].

    The last starts at `scale` times its usual size.
    """

    out: int
    activation: str = "gelu"
    scale: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        activation, width = ACTIVATIONS[self.activation], max(LEAST_WIDTH, self.out // 4)
        y = nn.Dense(width, dtype=self.dtype, **GLOROT, name="down")(activation(x))
        for i in range(2):
            y = Conv(width, dtype=self.dtype, **GLOROT, name=f"conv_{i}")(activation(y))
        init = nn.initializers.variance_scaling(max(self.scale, 1e-6) ** 2, "fan_avg", "uniform")
        init = init if self.scale else nn.initializers.zeros_init()
        return at_least_float32(nn.Dense(self.out, dtype=self.dtype, kernel_init=init, name="up")(activation(y)))


class BottomUp(nn.Module):
    """The encoder: [B, H, W, C] to the features of each level, [B, rows, columns, channels], from the image up."""

    hidden: tuple[int, ...]
    blocks: int
    activation: str = "gelu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, ...]:
        features = []
        for level, channels in enumerate(self.hidden):
            x = at_least_float32(Conv(channels, stride=2, dtype=self.dtype, **GLOROT, name=f"down_{level}")(x))
            for block in range(self.blocks):
                name = f"block_{level}_{block}"
                x = x + Bottleneck(channels, self.activation, self.blocks**-0.5, self.dtype, name=name)(x)
            features.append(x)
        return tuple(features)


class TopDown(nn.Module):
    """The decoder. `pick` chooses the latents of each layer: see `__call__`."""

    hidden: tuple[int, ...]
    image_shape: ImageShape
    blocks: int
    maps: int
    activation: str = "gelu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, count: int, pick: Callable[[int, int, Array, Array], Array]) -> Array:
        """Images' parameters [count, H, W, C].

        ``pick(layer, level, prior, state)`` returns a layer's latents [count, rows, columns, maps]. `prior` is
        [count, rows, columns, 2 maps] and `state` [count, rows, columns, channels]. Layers count from the top down.
        """
        height, width, channels = self.image_shape
        sizes = level_sizes(height, width, len(self.hidden))
        small = (self.blocks * len(self.hidden)) ** -0.5  # So that the sum of all layers keeps its size.
        top = self.param("top", nn.initializers.normal(0.1), (*sizes[-1], self.hidden[-1]))
        x, layer = jnp.broadcast_to(top, (count, *top.shape)), 0
        style: dict[str, Any] = {"activation": self.activation, "dtype": self.dtype}
        for level in range(len(self.hidden) - 1, -1, -1):
            wide = self.hidden[level]
            for _ in range(self.blocks):
                # It starts at N(0, I), and adds nothing.
                told = Bottleneck(2 * self.maps + wide, **style, scale=0.0, name=f"prior_{layer}")(x)
                prior, more = told[..., : 2 * self.maps], told[..., 2 * self.maps :]
                z = pick(layer, level, prior, x)
                x = x + more + at_least_float32(nn.Dense(wide, dtype=self.dtype, **GLOROT, name=f"latent_{layer}")(z))
                x = x + Bottleneck(wide, **style, scale=small, name=f"block_{layer}")(x)
                layer += 1
            out, name = (self.hidden[level - 1], f"up_{level}") if level else (channels, "out")
            x = ACTIVATIONS[self.activation](x) if not level else x
            x = ConvTranspose(out, self.dtype, kernel_init=nearest_neighbour_init, name=name)(x)
            rows, columns = sizes[level]
            x = at_least_float32(x[:, :rows, :columns])
        return x


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

    def _layers(self) -> list[tuple[int, int]]:
        """Rows and columns of each layer's grid, from the top down."""
        network: Any = self.network
        return layer_grids(self.image_shape, len(network.hidden), network.blocks)

    def _split(self, values: Array) -> list[Array]:
        """[N, L] as [N, rows, columns, maps] for each layer."""
        maps, parts, first = self.network.maps, [], 0  # type: ignore[attr-defined]
        for rows, columns in self._layers():
            size = rows * columns * maps
            parts.append(values[:, first : first + size].reshape(-1, rows, columns, maps))
            first += size
        return parts

    def _down(self, count: int, pick: Callable[[int, int, Array, Array], Array]) -> PixelDistribution:
        return self.likelihood.pixels(self.decoder(count, pick), self.learnt)

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
                found[name].append(value.reshape(len(value), -1))
            return z

        pixels = self._down(len(features[0]), pick)
        return pixels, {name: jnp.concatenate(values, axis=1) for name, values in found.items()}

    def encode(self, x: Float[Array, "B H W C"]) -> tuple[Float[Array, "B L"], Float[Array, "B L"]]:
        """The `mean` and `std` of each layer's posterior, where those above are at their means, [B, L] each."""
        _, found = self._posterior(self.encoder(x), lambda layer, mean, std: mean)
        return found["mean"], found["std"]

    def draw(self, batch: Batch, keys: Key[Array, " B"], samples: int) -> PosteriorSamples:
        """Like `VAE.draw`. `mean` and `std` are of the first of the samples, and `kl` is averaged over them."""
        features = tuple(jnp.repeat(maps, samples, axis=0) for maps in self.encoder(batch["image"]))
        noise = self._split(
            example_noise(keys, samples, self.latent_size, jnp.float32).reshape(-1, self.latent_size)
        )
        pixels, found = self._posterior(features, lambda layer, mean, std: mean + std * noise[layer])
        z, mean, std = found["latent"], found["mean"], found["std"]
        prior, posterior = log_normal(z, found["prior_mean"], found["prior_std"]), log_normal(z, mean, std)
        kl = gaussian_kl(mean, std, found["prior_mean"], found["prior_std"])

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
        location, scale = self._down(len(flat), lambda layer, level, prior, state: given[layer])
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


def layer_grids(image_shape: ImageShape, levels: int, blocks: int) -> list[tuple[int, int]]:
    """Rows and columns of the grid of each layer of latents, from the top down."""
    sizes = level_sizes(*image_shape[:2], levels)
    return [size for size in sizes[:0:-1] for _ in range(blocks)]


def latent_count(image_shape: ImageShape, levels: int, blocks: int, maps: int) -> int:
    """L, of all layers."""
    return maps * sum(math.prod(grid) for grid in layer_grids(image_shape, levels, blocks))
