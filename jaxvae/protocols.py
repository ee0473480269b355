"""What jaxvae asks of the parts that a run is put together from. `docs/extending.md` adds one of each.

A component is a frozen dataclass whose fields are options (`jaxvae.options.option`): flags of the command lines and
keys of ``config.json``. It may inherit from the protocol it implements, for the defaults of what it leaves out.

Shapes: B images [H, W, C]; S latents an image; L latent dimensions.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import optax
from flax import linen as nn
from numpy.typing import NDArray

from jaxvae.typing import Array, Batch, ImageShape, Terms

if TYPE_CHECKING:
    from jaxvae.models.torch_layers import TorchLayer

Pixels = Literal["levels", "binary", "continuous"]
"""What the pixels of an image are: one of 256 levels, 0 or 1, or any number in [0, 1)."""
Measure = Literal["probability", "density", "unnormalised"]
"""What p(x | z) is to the pixels as they are. Numbers of different measures cannot be compared.

- "probability": of discrete pixels, or a lower bound on it (`jaxvae.noise.dequantize`); at most 1.
- "density": of a continuous distribution at discrete values. It grows without bound as the distribution narrows (Theis,
  van den Oord and Bethge, arXiv 1511.01844, section 3.1).
- "unnormalised": of a Bernoulli at grey values, where nothing sums or integrates to 1 (Loaiza-Ganem and Cunningham,
  "The continuous Bernoulli", arXiv 1907.06845).
"""


Hyperparameters: TypeAlias = Mapping[str, Array | float]
"""Values, which may be traced, by the names of the options that they take the place of."""


class Component(Protocol):
    """What every component may have. `config` is the whole `jaxvae.Config`; its components are ``config.parts``."""

    def check(self, config: Any) -> None:
        """Raise `InputError` where this component's options, or the rest of `config`, do not go together with it."""
        return

    def idle(self, config: Any) -> Mapping[str, str]:
        """The options of this component that have no effect in `config`, each with the flag that it would need."""
        return {}

    @property
    def by_length(self) -> bool:
        """Whether what a step computes depends on the length of the whole run."""
        return False


class Inputs(Component, Protocol):
    """What becomes of the pixels of an image before a model sees it."""

    @property
    def pixels(self) -> Pixels:
        """What the pixels are then."""
        raise NotImplementedError

    def observe(self, x: Array, keys: Array) -> Array:
        """Intensities [B, H, W, C] in [0, 1] and a key for each image to what is seen, in training and evaluation."""
        raise NotImplementedError


class PixelDistribution(NamedTuple):
    """The parameters of a distribution of images.

    `location` [..., H, W, C]; `log_scale`: the logarithm of a scale, in units of intensity, [] or as `location`; None
    where there is none. What they mean is the likelihood's to say.
    """

    location: Array
    log_scale: Array | None = None


class Likelihood(Component, Protocol):
    """p(x | z): the distribution of an image, given what the decoder makes of a latent.

    Attributes:
      outputs: values that the decoder gives for each channel of a pixel.
      continuous: whether it has a density rather than probabilities.
    """

    outputs: ClassVar[int] = 1
    continuous: ClassVar[bool]

    def parameters(self) -> Mapping[str, float]:
        """Parameters of the distribution that are learnt, [] each: their names in the model, and their first values."""
        return {}

    def pixels(self, decoded: Array, learnt: Mapping[str, Array]) -> PixelDistribution:
        """The decoder's output [..., H, W, `outputs` C] and the `parameters` to the distribution."""
        del learnt
        return PixelDistribution(decoded)

    def nll(self, pixels: PixelDistribution, x: Array) -> Array:
        """-log p(x) of images, nats: [N]. All arrays are [N, D], or `log_scale` is [] or None."""
        raise NotImplementedError

    def logits(self, location: Array) -> Array:
        """Logits of the mean intensity, from the distribution's `location`."""
        return location

    def first_bias(self, mean: Array) -> Array:
        """The last bias of a decoder with which a fresh model draws images of the mean intensities `mean` [...]."""
        from jaxvae.models.layers import logit

        return logit(mean, 1e-3)

    def measure(self, pixels: Pixels) -> Measure:
        """What p(x | z) is to pixels of this kind."""
        if not self.continuous or pixels == "continuous":
            return "probability"
        return "density"


class Prior(Component, Protocol):
    """p(z). `module` makes a Flax module, whose parameters, if it has any, are trained with the model's."""

    def module(self, latent_size: int) -> "PriorModule":
        """The prior of latents of L dimensions."""
        raise NotImplementedError


class PriorModule(Protocol):
    """A `flax.linen.Module` with these methods. Where it depends on the batch, it reads more of it than the images."""

    def log_density(self, latent: Array, batch: Batch) -> Array:
        """log p(z) at latents [B, S, L] of a batch: [B, S], nats."""

    def sample(self, key: Array, shape: tuple[int, ...], batch: Batch | None = None) -> Array:
        """Latents [*shape, L] drawn with one key. `shape` is (B,), or () of one example."""

    def kl(self, mean: Array, std: Array, batch: Batch) -> Array | None:
        """KL(N(mean, std^2) || p(z)) of each dimension, [B, L], nats; None where it has no closed form."""


class Network(Component, Protocol):
    """An encoder and a decoder. Both compute in `dtype` and return at least float32.

    Attributes:
      layers: of latents.
    """

    layers: ClassVar[int] = 1

    @property
    def starts_from_mean(self) -> bool:
        """Whether the decoder's last bias is set such that a fresh model draws images as bright as the data's."""
        return False

    def encoder(self, size: int, dtype: Any) -> nn.Module:
        """A module from images [B, H, W, C] in [0, 1] to features [B, size]."""
        raise NotImplementedError

    def decoder(self, image_shape: ImageShape, dtype: Any) -> nn.Module:
        """A module from latents [B, L] to [B, *image_shape], whose C is that of the image times the outputs."""
        raise NotImplementedError

    def check_sizes(self, image_shape: ImageShape, latent_size: int) -> None:
        """Raise `InputError` where it cannot encode images (H, W, C) to `latent_size` dimensions."""
        return

    def torch_encoder(self, image_shape: ImageShape, size: int) -> "Sequence[TorchLayer] | None":
        """What `encoder` is in PyTorch, for images (H, W, C): the entries of an ``nn.Sequential`` that takes [B, C, H,
        W].

        None: it has no such form, and its weights are not exported.
        """
        return None

    def torch_decoder(self, image_shape: ImageShape, latent_size: int) -> "Sequence[TorchLayer] | None":
        """What `decoder` is in PyTorch: an ``nn.Sequential`` from [B, L] to [B, C, H, W]; None: it has no such form."""
        return None


class PosteriorSamples(NamedTuple):
    """S latents an image, and what they are worth: all [B, S] or [B, S, ...].

    `log_prior` and `log_posterior` are the log-densities of the latents of all layers together, in nats. `mean` and
    `std` [B, L] are the posterior's of the layer next to the image; `kl` [B, L] is KL(posterior || prior) by dimension,
    None where it has no closed form.
    """

    pixels: PixelDistribution
    log_prior: Array
    log_posterior: Array
    latent: Array
    mean: Array
    std: Array
    kl: Array | None


class Objective(Component, Protocol):
    """What a model is trained on.

    Attributes:
      unit: the scale that its terms are in.
      uses: which of "likelihood" and "prior" it reads.
      latent_model: whether it trains a model with a distribution of latents, rather than an autoencoder.
      layers: the most layers of latents that it can train.
      bound: the name of the lower bound on log p(x) that `terms` holds in evaluation; "" where there is none.
      tightens: whether the bound is tighter with more latents an image, so that it compares for one number alone.
    """

    unit: ClassVar[str] = "nats/image"
    uses: ClassVar[tuple[str, ...]] = ("likelihood", "prior")
    latent_model: ClassVar[bool] = True
    layers: ClassVar[int] = 1
    bound: ClassVar[str] = "elbo"
    tightens: ClassVar[bool] = False

    @property
    def latents(self) -> int:
        """Latents drawn for each image."""
        return 1

    def needs(self) -> Mapping[str, str]:
        """The facts of a run that it depends on, "steps_per_epoch" or "num_images", each with the reason."""
        return {}

    def terms(self, view: Any, batch: Batch, keys: Array) -> Terms:
        """The terms of a batch, [B] each; "loss" is what is minimised, and in evaluation "bound" is there as well.

        Args:
          view: the model at its present weights, and the step: a `jaxvae.objectives.base.View`.
          batch: its images are intensities in [0, 1], as the model sees them.
          keys: [B], of each image's noise.
        """
        raise NotImplementedError


class Optimizer(Component, Protocol):
    """What makes the updates of a step."""

    def build(
        self, epochs: int, steps_per_epoch: int | None, hyperparameters: Hyperparameters
    ) -> optax.GradientTransformation:
        """The optimiser of a run of so many epochs, with values that may be traced in place of its own.

        The state's structure does not depend on the arguments. Raises `TypeError` where `steps_per_epoch` is needed,
        and None.
        """
        raise NotImplementedError


class Measured(NamedTuple):
    """What a metric found.

    Attributes:
      value: a number, or a list of them.
      unit: of it.
      standard_error: of a mean over the images.
      note: more, for people.
      extra: more numbers by their full names, for programs.
    """

    value: float | list[int] | list[float]
    unit: str = ""
    standard_error: float | None = None
    note: str = ""
    extra: Mapping[str, Any] = {}


@runtime_checkable
class Metric(Component, Protocol):
    """What an evaluation reports besides the objective's terms."""

    def applies(self, config: Any) -> bool:
        """Whether models of `config` have it."""
        return True

    def measure(self, subject: Any, images: Mapping[str, NDArray[Any]], key: jax.Array) -> Mapping[str, Measured]:
        """The metric, or metrics, by name.

        Args:
          subject: the model and what it was trained on: a `jaxvae.metrics.Subject`.
          images: the test split, arrays [N, ...] by name, among them uint8 "image" [N, H, W, C].
          key: of all that is drawn, those of an image by its place.
        """
        raise NotImplementedError
