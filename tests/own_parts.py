"""Components as a user would write them, for the tests: a module with dropout, batch statistics and a random stream."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from jaxvae.models.networks import Mlp
from jaxvae.models.priors import log_normal
from jaxvae.models.vae import VAE
from jaxvae.options import NOT_NEGATIVE, POSITIVE, option
from jaxvae.protocols import Likelihood, Prior


class Net(nn.Module):
    """An autoencoder with all that a module of the user's own may have."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        h = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(16)(x.reshape(len(x), -1)))
        h = nn.Dropout(0.2, deterministic=not train)(nn.relu(h))
        mean = nn.Dense(3)(h)
        z = mean + 0.1 * jax.random.normal(self.make_rng("latent"), mean.shape)
        return {"x_hat": nn.sigmoid(nn.Dense(x[0].size)(z)).reshape(x.shape), "mean": mean}


def loss(output: Any, batch: Any) -> Any:
    recon = jnp.square(output["x_hat"] - batch["image"]).sum((1, 2, 3))
    sparsity = jnp.abs(output["mean"]).sum(-1)
    return {"loss": recon + 0.1 * sparsity, "recon": recon, "sparsity": sparsity}


class Labelled(nn.Module):
    """A decoder of labels: images from what the label is, and nothing else."""

    @nn.compact
    def __call__(self, batch: Any) -> Any:
        shape = batch["image"].shape
        return nn.sigmoid(nn.Dense(batch["image"][0].size)(jax.nn.one_hot(batch["label"], 4))).reshape(shape)

    def sample(self, count: int) -> Any:
        label = jax.random.randint(self.make_rng("labels"), (count,), 0, 4)
        return self({"image": jnp.zeros((count, 6, 5, 1)), "label": label})


def label_loss(output: Any, batch: Any) -> Any:
    return {"loss": jnp.square(output - batch["image"]).mean((1, 2, 3)), "labels": batch["label"].astype(jnp.float32)}


class Vae(nn.Module):
    """A whole VAE: images [B, 7, 6, 3], three latents."""

    def setup(self) -> None:
        self.seen, self.moments = nn.Conv(4, (3, 3), strides=2), nn.Dense(6)
        self.widen, self.pixels = nn.Dense(8), nn.Dense(7 * 6 * 3)

    def encode(self, x: Any) -> Any:
        hidden = nn.softplus(self.seen(x))
        mean, log_variance = jnp.split(self.moments(hidden.reshape(x.shape[0], -1)), 2, axis=-1)
        return mean, log_variance

    def decode(self, latent: Any) -> Any:
        return nn.sigmoid(self.pixels(nn.gelu(self.widen(latent), approximate=False))).reshape(-1, 7, 6, 3)

    def __call__(self, x: Any) -> Any:
        mean, log_variance = self.encode(x)
        latent = mean + jnp.exp(log_variance / 2) * jax.random.normal(self.make_rng("latent"), mean.shape)
        return {"x_hat": self.decode(latent), "mean": mean}


def not_a_loss(output: Any, batch: Any) -> Any:
    return {"recon": jnp.zeros(len(batch["image"]))}


@dataclass(frozen=True)
class Cauchy(Likelihood):
    """A Cauchy distribution a pixel."""

    cauchy_scale: float = option(0.1, POSITIVE, traced=True)
    """Its scale."""

    continuous = True

    def nll(self, pixels: Any, x: Any) -> Any:
        standard = (x - pixels.location) / self.cauchy_scale
        return (jnp.log1p(jnp.square(standard)) + jnp.log(jnp.pi * self.cauchy_scale)).sum(-1)


@dataclass(frozen=True)
class Clashing(Likelihood):
    """One of whose options has another default than the built-in one of that name."""

    beta: float = option(3.0)
    continuous = True

    def nll(self, pixels: Any, x: Any) -> Any:
        return jnp.zeros(len(x))


@dataclass(frozen=True)
class Wrong(Clashing):
    """Whose values are of pixels, not of images."""

    beta: float = option(1.0, NOT_NEGATIVE, traced=True)

    def nll(self, pixels: Any, x: Any) -> Any:
        return jnp.square(x - pixels.location)


@dataclass(frozen=True)
class Taken(Wrong):
    """One of whose options is called like a flag of the command lines."""

    resume: int = option(0)


@dataclass(frozen=True)
class Without(Likelihood):
    """That says nothing of what it is."""

    continuous = True


class NoDataclass(Cauchy):
    """A class that is no dataclass itself."""


class WideModule(nn.Module):
    latent_size: int
    width: Any

    def log_density(self, latent: Any, batch: Any) -> Any:
        return log_normal(latent, 0.0, jnp.broadcast_to(self.width, latent.shape))

    def sample(self, key: Any, shape: Any, batch: Any = None) -> Any:
        return self.width * jax.random.normal(key, (*shape, self.latent_size))

    def kl(self, mean: Any, std: Any, batch: Any) -> Any:
        return None


@dataclass(frozen=True)
class Wide(Prior):
    """N(0, prior_width^2), whose KL term is estimated."""

    prior_width: float = option(1.0, POSITIVE, traced=True)
    """Its deviation."""

    def module(self, latent_size: int) -> Any:
        return WideModule(latent_size, self.prior_width)


class OfLabelModule(nn.Module):
    latent_size: int

    def setup(self) -> None:
        self.means = self.param("means", nn.initializers.normal(1.0), (4, self.latent_size))

    def log_density(self, latent: Any, batch: Any) -> Any:
        return log_normal(latent, self.means[batch["label"]][:, None])

    def sample(self, key: Any, shape: Any, batch: Any = None) -> Any:
        return self.means[batch["label"]] + 0.01 * jax.random.normal(key, (*shape, self.latent_size))

    def kl(self, mean: Any, std: Any, batch: Any) -> Any:
        return None


@dataclass(frozen=True)
class OfLabel(Prior):
    """A Gaussian whose mean is the label's."""

    def module(self, latent_size: int) -> Any:
        return OfLabelModule(latent_size)


class LearnedModule(nn.Module):
    latent_size: int

    def setup(self) -> None:
        self.mean = self.param("mean", nn.initializers.normal(1.0), (self.latent_size,))

    def log_density(self, latent: Any, batch: Any) -> Any:
        return log_normal(latent, jnp.broadcast_to(self.mean, latent.shape))

    def sample(self, key: Any, shape: Any, batch: Any = None) -> Any:
        return self.mean + jax.random.normal(key, (*shape, self.latent_size))

    def kl(self, mean: Any, std: Any, batch: Any) -> Any:
        return None


@dataclass(frozen=True)
class Learned(Prior):
    """A Gaussian whose mean is learned."""

    def module(self, latent_size: int) -> Any:
        return LearnedModule(latent_size)


lion = optax.lion(1e-3)


def brightness(images: Any) -> Any:
    """Features of images [N, H, W, C]: the mean of each row of pixels."""
    return images.mean((2, 3))


class LoudVae(VAE):
    """A VAE of the user's own, whatever it changes."""


@dataclass(frozen=True)
class Loud(Mlp):
    """Dense layers whose model is the user's own."""

    def model(self) -> Any:
        return LoudVae
