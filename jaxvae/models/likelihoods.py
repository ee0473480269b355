"""Likelihoods: the distributions of an image given its latents."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxvae.errors import InputError
from jaxvae.models.layers import logit
from jaxvae.options import POSITIVE, option
from jaxvae.protocols import Likelihood, Measure, PixelDistribution, Pixels
from jaxvae.typing import Array


def sum_per_example(values: Float[Array, "B ..."]) -> Float[Array, " B"]:
    """The sum over all axes but the first: [B, ...] to [B]."""
    return values.reshape(values.shape[0], -1).sum(axis=-1)


def check_same_shape(**arrays: Array) -> None:
    """Raise `ValueError` if shapes differ: broadcasting [B, 1] against [B] would give a plausible but wrong number."""
    if len({a.shape for a in arrays.values()}) > 1:
        raise ValueError("shapes must agree: " + ", ".join(f"{n} {a.shape}" for n, a in arrays.items()))


def bernoulli_nll(logits: Float[Array, "B *shape"], x: Float[Array, "B *shape"]) -> Float[Array, " B"]:
    """Negative log-likelihood of intensities under a Bernoulli per pixel, given its logits.

    ``sum_pixels max(l, 0) - x * l + log(1 + exp(-|l|))``, which is ``softplus(l) - x * l`` in a
    form that does not overflow and keeps the digits of small values. For grey `x` it is the
    cross-entropy, as usual in the literature (Kingma and Welling, arXiv 1312.6114, appendix C.1).

    Args:
      logits: [B, ...].
      x: intensities [B, ...] in [0, 1].

    Returns:
      [B], >= 0, nats per image.

    Raises:
      ValueError: if the shapes differ.
    """
    check_same_shape(logits=logits, x=x)
    return sum_per_example(bernoulli_nll_per_pixel(logits, x))


def bernoulli_nll_per_pixel(
    logits: Float[Array, "*shape"], x: Float[Array, "*shape"], relu: Callable[[Array], Array] = jax.nn.relu
) -> Float[Array, "*shape"]:
    """What each pixel adds to `bernoulli_nll`. `relu` is another form of it where `jax.nn.relu` does not serve."""
    return relu(logits) - x * logits + jnp.log1p(jnp.exp(-jnp.abs(logits)))


def gaussian_nll(
    mean: Float[Array, "B *shape"], log_std: Float[Array, "..."] | float, x: Float[Array, "B *shape"]
) -> Float[Array, " B"]:
    """Negative log-likelihood of intensities under N(mean, std^2) per pixel: a density, so it may be negative.

    ``sum_pixels 0.5 * ((x - mean) / std)^2 + log std + 0.5 log(2 pi)``.

    Args:
      mean: [B, ...].
      log_std: the logarithm of the standard deviation: a number, [], or shaped like `mean`.
      x: intensities [B, ...].

    Returns:
      [B], nats per image.

    Raises:
      ValueError: if the shapes of `mean` and `x` differ.
    """
    check_same_shape(mean=mean, x=x)
    log_std = jnp.broadcast_to(jnp.asarray(log_std, mean.dtype), mean.shape)
    return sum_per_example(0.5 * jnp.square((x - mean) * jnp.exp(-log_std)) + log_std + 0.5 * math.log(2 * math.pi))


def discretized_logistic_nll(
    mean: Float[Array, "B *shape"], log_scale: Float[Array, "B *shape"], x: Float[Array, "B *shape"]
) -> Float[Array, " B"]:
    """Negative log-probability of 8-bit intensities under a logistic distribution cut into 256 bins.

    Kingma et al. (arXiv 1606.04934), section 5.3; the lowest bin reaches to minus infinity and the highest
    to infinity, so that the 256 probabilities sum to 1 (Salimans et al., arXiv 1701.05517, equation 2).

    Args:
      mean: [B, ...], in units of intensity.
      log_scale: the logarithm of the scale, shaped like `mean`.
      x: intensities k / 255 [B, ...].

    Returns:
      [B], >= 0, nats per image.

    Raises:
      ValueError: if the shapes differ.
    """
    check_same_shape(mean=mean, log_scale=log_scale, x=x)
    return sum_per_example(_logistic_nll_per_pixel(mean, log_scale, x))


class _Bin(NamedTuple):
    """The bin of each pixel under its logistic distribution; arrays like the images.

    Attributes:
      inverse: of the scale.
      upper, lower: the bin's edges, in scales from the mean.
      far_upper, far_lower: ``exp(-|edge|)``.
      inside: 1 - exp(lower - upper).
      lowest, highest: whether the bin reaches to minus infinity, or to infinity.
    """

    inverse: Array
    upper: Array
    lower: Array
    far_upper: Array
    far_lower: Array
    inside: Array
    lowest: Array
    highest: Array


def _bin(mean: Array, log_scale: Array, x: Array) -> _Bin:
    inverse = jnp.exp(-log_scale)
    upper, lower = (x + 0.5 / 255 - mean) * inverse, (x - 0.5 / 255 - mean) * inverse
    far_upper, far_lower = jnp.exp(-jnp.abs(upper)), jnp.exp(-jnp.abs(lower))
    inside, lowest, highest = -jnp.expm1(-inverse / 255), x < 0.5 / 255, x > 254.5 / 255
    return _Bin(inverse, upper, lower, far_upper, far_lower, inside, lowest, highest)


@jax.custom_vjp
def _logistic_nll_per_pixel(mean: Array, log_scale: Array, x: Array) -> Array:
    """What each pixel adds to `discretized_logistic_nll`.

    ``-log(sigmoid(upper) - sigmoid(lower)) = softplus(-upper) + softplus(lower) - log(1 - exp(lower - upper))``, whose
    logarithms are one: on a CPU, a training step of a convolutional VAE spends a fifth of its time here otherwise.
    """
    b = _bin(mean, log_scale, x)
    beyond = jnp.where(b.highest, 0.0, jax.nn.relu(-b.upper)) + jnp.where(b.lowest, 0.0, jax.nn.relu(b.lower))
    ratio = jnp.where(b.highest, 1.0, 1 + b.far_upper) * jnp.where(b.lowest, 1.0, 1 + b.far_lower)
    return beyond + jnp.log(ratio / jnp.where(b.lowest | b.highest, 1.0, b.inside))


def _logistic_forward(mean: Array, log_scale: Array, x: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return _logistic_nll_per_pixel(mean, log_scale, x), (mean, log_scale, x)


def _logistic_backward(given: tuple[Array, Array, Array], slope: Array) -> tuple[Array, Array, Array]:
    """The gradient in closed form. JAX's own, of the same formula, takes two to three times as long on a CPU."""
    b = _bin(*given)
    by_upper = jnp.where(b.upper > 0, b.far_upper, 1.0) / (1 + b.far_upper)  # sigmoid(-upper)
    by_lower = jnp.where(b.lower > 0, 1.0, b.far_lower) / (1 + b.far_lower)  # sigmoid(lower)
    by_upper, by_lower = jnp.where(b.highest, 0.0, -by_upper), jnp.where(b.lowest, 0.0, by_lower)
    by_width = jnp.where(b.lowest | b.highest, 0.0, (b.inside - 1) / b.inside)
    by_x = slope * (by_upper + by_lower) * b.inverse
    by_log_scale = -slope * (by_upper * b.upper + by_lower * b.lower + by_width * b.inverse / 255)
    return -by_x, by_log_scale, by_x


_logistic_nll_per_pixel.defvjp(_logistic_forward, _logistic_backward)


def split_scale(decoded: Float[Array, "... K"]) -> PixelDistribution:
    """Split a decoder's output [..., 2 C] into a location and a log-scale, each [..., C].

    The log-scale is bounded like a log-variance. An output of 0 means a scale of exp(-2), an eighth of the range.
    """
    location, raw = jnp.split(decoded, 2, axis=-1)
    return PixelDistribution(location, 5 * jnp.tanh(raw / 5) - 2)


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """A Bernoulli per pixel, given by its logit."""

    continuous: ClassVar[bool] = False

    def nll(self, pixels: PixelDistribution, x: Float[Array, "N D"]) -> Float[Array, " N"]:
        """See `Likelihood`."""
        return bernoulli_nll(pixels.location, x)

    def measure(self, pixels: Pixels) -> Measure:
        """See `Likelihood`."""
        return "probability" if pixels == "binary" else "unnormalised"


class _GaussianBase(Likelihood):
    """The base of all Gaussians: their `location` is the mean intensity itself."""

    continuous: ClassVar[bool] = True

    def logits(self, location: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """See `Likelihood`. The mean may lie outside (0, 1), so it is clipped into it first."""
        return logit(location, 1e-5)

    def first_bias(self, mean: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """See `Likelihood`."""
        return mean


@dataclass(frozen=True)
class Gaussian(_GaussianBase):
    """N(mean, likelihood_std^2) per pixel."""

    likelihood_std: float = option(0.1, POSITIVE)
    """Standard deviation of --likelihood gaussian, in units of intensity (0 to 1)."""

    def nll(self, pixels: PixelDistribution, x: Float[Array, "N D"]) -> Float[Array, " N"]:
        """See `Likelihood`."""
        return gaussian_nll(pixels.location, math.log(self.likelihood_std), x)


@dataclass(frozen=True)
class GaussianGlobal(_GaussianBase):
    """N(mean, std^2) per pixel, with one learned standard deviation for all pixels."""

    def parameters(self) -> Mapping[str, float]:
        """See `Likelihood`."""
        return {"log_scale": -2.0}

    def pixels(self, decoded: Float[Array, "... H W C"], learned: Mapping[str, Float[Array, ""]]) -> PixelDistribution:
        """See `Likelihood`."""
        return PixelDistribution(decoded, learned["log_scale"])

    def nll(self, pixels: PixelDistribution, x: Float[Array, "N D"]) -> Float[Array, " N"]:
        """See `Likelihood`."""
        assert pixels.log_scale is not None
        return gaussian_nll(pixels.location, pixels.log_scale, x)


@dataclass(frozen=True)
class GaussianPixel(_GaussianBase):
    """N(mean, std^2) per pixel. The decoder gives each pixel its own standard deviation."""

    outputs: ClassVar[int] = 2

    def pixels(self, decoded: Float[Array, "... H W C"], learned: Mapping[str, Float[Array, ""]]) -> PixelDistribution:
        """See `Likelihood`."""
        del learned
        return split_scale(decoded)

    def nll(self, pixels: PixelDistribution, x: Float[Array, "N D"]) -> Float[Array, " N"]:
        """See `Likelihood`."""
        assert pixels.log_scale is not None
        return gaussian_nll(pixels.location, pixels.log_scale, x)


@dataclass(frozen=True)
class Logistic(Likelihood):
    """A logistic distribution per pixel, cut into 256 levels. The decoder gives the logit of its mean and its scale."""

    outputs: ClassVar[int] = 2
    continuous: ClassVar[bool] = False

    def check(self, config: Any) -> None:
        """See `Component`."""
        if config.parts.inputs.pixels == "binary":
            raise InputError("--likelihood logistic needs --inputs grey: it models 256 levels")

    def pixels(self, decoded: Float[Array, "... H W C"], learned: Mapping[str, Float[Array, ""]]) -> PixelDistribution:
        """See `Likelihood`."""
        del learned
        return split_scale(decoded)

    def nll(self, pixels: PixelDistribution, x: Float[Array, "N D"]) -> Float[Array, " N"]:
        """See `Likelihood`."""
        assert pixels.log_scale is not None
        return discretized_logistic_nll(jax.nn.sigmoid(pixels.location), pixels.log_scale, x)


LIKELIHOODS: Mapping[str, type[Likelihood]] = {
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
    "gaussian-global": GaussianGlobal,
    "gaussian-pixel": GaussianPixel,
    "logistic": Logistic,
}
