"""The protocols of the components that make up a run. `docs/extending.md` has an example of each.

A component is a frozen dataclass. Its fields are options (`jaxvae.options.option`): flags of the command lines and keys
of ``config.json``. It inherits from the protocol that it implements, which has defaults for what it leaves out.

Shapes: B images [H, W, C]; S latents per image; L latent dimensions.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import optax
from flax import linen as nn
from jaxtyping import Float, Key
from numpy.typing import NDArray

from jaxvae.errors import InputError
from jaxvae.typing import Array, Batch, ImageShape, Params, Terms

if TYPE_CHECKING:
    from jaxvae.models.torch_layers import TorchLayer
    from jaxvae.models.vae import LatentModel

Pixels = Literal["levels", "binary", "continuous"]
"""What the pixels of an image are: one of 256 levels, 0 or 1, or any number in [0, 1)."""
Measure = Literal["probability", "density", "unnormalised"]
"""What kind of value p(x | z) is for the pixels of the images. Values of different measures cannot be compared.

- "probability": of discrete pixels, or a lower bound on it (`jaxvae.noise.dequantize`); at most 1.
- "density": of a continuous distribution at discrete values. It grows without bound as the distribution narrows (Theis,
  van den Oord and Bethge, arXiv 1511.01844, section 3.1).
- "unnormalised": a Bernoulli at grey values. It neither sums nor integrates to 1 (Loaiza-Ganem and Cunningham,
  "The continuous Bernoulli", arXiv 1907.06845).
"""

Hyperparameters: TypeAlias = Mapping[str, Array | float]
"""Values by the names of the options that they replace. They may be traced."""


class Component(Protocol):
    """What every component may define. `config` is the whole `jaxvae.Config`; its components are ``config.parts``."""

    def check(self, config: Any) -> None:
        """Raise `InputError` if this component's options conflict with each other or with the rest of `config`."""
        return

    def idle(self, config: Any) -> Mapping[str, str]:
        """The options of this component that have no effect in `config`, each with the flag that it needs."""
        return {}

    @property
    def by_length(self) -> bool:
        """Whether what a step computes depends on the length of the whole run."""
        return False


class Inputs(Component, Protocol):
    """What is done to the pixels of an image before a model sees them."""

    @property
    def pixels(self) -> Pixels:
        """What the pixels are afterwards."""
        raise NotImplementedError

    def observe(self, x: Float[Array, "B H W C"], keys: Key[Array, " B"]) -> Float[Array, "B H W C"]:
        """What a model sees of intensities [B, H, W, C] in [0, 1], in training and evaluation; one key per image."""
        raise NotImplementedError


class PixelDistribution(NamedTuple):
    """The parameters of a distribution of images.

    `location` is [..., H, W, C]. `log_scale` is the logarithm of a scale in units of intensity, [] or shaped like
    `location`; None if there is none. The likelihood decides what they mean.
    """

    location: Float[Array, "..."]
    log_scale: Float[Array, "..."] | None = None


class Likelihood(Component, Protocol):
    """p(x | z): the distribution of an image, given the decoder's output for a latent.

    Attributes:
      outputs: values that the decoder returns for each channel of a pixel.
      continuous: whether it has a density rather than probabilities.
    """

    outputs: ClassVar[int] = 1
    continuous: ClassVar[bool]

    def parameters(self) -> Mapping[str, float]:
        """Learned parameters of the distribution, [] each: their names in the model, and their initial values."""
        return {}

    def pixels(self, decoded: Float[Array, "... H W C"], learned: Mapping[str, Float[Array, ""]]) -> PixelDistribution:
        """The distribution for the decoder's output [..., H, W, `outputs` C] and the learned `parameters`."""
        del learned
        return PixelDistribution(decoded)

    def nll(self, pixels: PixelDistribution, x: Float[Array, "N D"]) -> Float[Array, " N"]:
        """-log p(x) of images, nats: [N]. The arrays are [N, D]; `log_scale` may also be [] or None."""
        raise NotImplementedError

    def logits(self, location: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Logits of the mean intensity, from the distribution's `location`."""
        return location

    def first_bias(self, mean: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The decoder's last bias for which an untrained model draws images of the mean intensities `mean` [...]."""
        from jaxvae.models.layers import logit

        return logit(mean, 1e-3)

    def measure(self, pixels: Pixels) -> Measure:
        """What kind of value p(x | z) is for such pixels."""
        if not self.continuous or pixels == "continuous":
            return "probability"
        return "density"


Encode: TypeAlias = Callable[[Array], tuple[Array, Array]]
"""The mean and the standard deviation [K, L] of the posteriors of images [K, H, W, C] in [0, 1]."""


class Prior(Component, Protocol):
    """p(z). `module` makes a Flax module. Its parameters, if it has any, are trained with the model's.

    Attributes:
      reads_labels: whether it is p(z | y) and needs ``batch["label"]``.
      closed_form: whether its KL term has a closed form for each dimension (`PriorModule.kl`).
      separate: whether a batch may be computed in parts, as far as the prior is concerned: not if every part would
        repeat work of its own.
    """

    reads_labels: ClassVar[bool] = False
    closed_form: ClassVar[bool] = True
    separate: ClassVar[bool] = True

    def module(self, latent_size: int) -> "PriorModule":
        """The prior of latents with L dimensions."""
        del latent_size
        raise NotImplementedError

    def module_with(self, latent_size: int, encode: Encode, image_shape: ImageShape) -> "PriorModule":
        """`module`, for a prior that encodes images of its own: it defines this method instead.

        Args:
          latent_size: L.
          encode: the model's encoder. The module may call it within its own methods.
          image_shape: (H, W, C).
        """
        del encode, image_shape
        return self.module(latent_size)

    @property
    def first_images(self) -> int:
        """How many training images its first parameters are made from (`from_images`)."""
        return 0

    def from_images(self, params: Params, images: Float[Array, "K H W C"]) -> Params:
        """The module's first parameters, from those that it was initialised with and `first_images` training images.

        The images are in [0, 1] and spread evenly over the training set. Where it has fewer, some come more than once.
        """
        del images
        return params


class PriorModule(Protocol):
    """A `flax.linen.Module` with these methods. A conditional prior reads entries of the batch besides the images."""

    def log_density(self, latent: Float[Array, "B S L"], batch: Batch) -> Float[Array, "B S"]:
        """log p(z) at latents [B, S, L] of a batch: [B, S], nats."""

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...], batch: Batch | None = None) -> Float[Array, "... L"]:
        """Draw latents [*shape, L] with one key. `shape` is (B,), or () for a single example."""

    def kl(self, mean: Float[Array, "B L"], std: Float[Array, "B L"], batch: Batch) -> Float[Array, "B L"] | None:
        """KL(N(mean, std^2) || p(z)) of each dimension, [B, L], nats; None where it has no closed form."""


class Network(Component, Protocol):
    """An encoder and a decoder. Both compute in `dtype` and return at least float32.

    Attributes:
      hierarchical: whether it has several layers of latents.
      ignores: fields of a configuration that it does not read.
      widths: its own default of ``--hidden``, if the presets' widths of dense layers make no sense for it.
    """

    hierarchical: ClassVar[bool] = False
    ignores: ClassVar[tuple[str, ...]] = ()
    widths: ClassVar[tuple[int, ...] | None] = None

    def model(self) -> "type[LatentModel]":
        """The class of VAEs that have such networks."""
        from jaxvae.models.vae import VAE

        return VAE

    def latent_count(self, image_shape: ImageShape, latent_size: int) -> int:
        """L, the number of latents in all, for images (H, W, C), where `latent_size` are asked for."""
        return latent_size

    @property
    def spatial(self) -> bool:
        """Whether each place of a grid has latents of its own, channels first: [L / (rows columns), rows, columns]."""
        return False

    def grid(self, image_shape: ImageShape) -> tuple[int, int]:
        """Rows and columns of the grid of spatial latents of images (H, W, C); 1 x 1 if they are not spatial."""
        return 1, 1

    @property
    def starts_from_mean(self) -> bool:
        """Whether the decoder's last bias is set so that an untrained model draws images as bright as the data's."""
        return False

    def encoder(self, size: int, dtype: Any) -> nn.Module:
        """A module from images [B, H, W, C] in [0, 1] to features [B, size]."""
        raise NotImplementedError

    def decoder(self, image_shape: ImageShape, dtype: Any) -> nn.Module:
        """A module from latents [B, L] to [B, *image_shape]. Its C is the image's times `Likelihood.outputs`."""
        raise NotImplementedError

    def cached_images(self, image_shape: ImageShape) -> int | None:
        """How many images (H, W, C) a CPU should compute at a time, so that a layer's values stay in its caches.

        None: any number, as where the weights are larger than the values.
        """
        return None

    def check_sizes(self, image_shape: ImageShape, latent_size: int) -> None:
        """Raise `InputError` if it cannot encode images (H, W, C) to `latent_size` dimensions."""
        return

    def torch_encoder(self, image_shape: ImageShape, size: int) -> "Sequence[TorchLayer] | None":
        """`encoder` in PyTorch, for images (H, W, C): the entries of an ``nn.Sequential`` that takes [B, C, H, W].

        None: it has no such form, and its weights are not exported.
        """
        return None

    def torch_decoder(self, image_shape: ImageShape, latent_size: int) -> "Sequence[TorchLayer] | None":
        """`decoder` in PyTorch: an ``nn.Sequential`` from [B, L] to [B, C, H, W]; None: it has no such form."""
        return None


class PosteriorSamples(NamedTuple):
    """S latents per image and their densities, [B, S] or [B, S, ...] unless stated otherwise.

    `log_prior` and `log_posterior` are the log-densities of the latents of all layers together, in nats. `mean` and
    `std` [B, L] describe the posterior of the layer next to the image; for a ladder, of all layers. `kl` [B, L] is
    KL(posterior || prior) per dimension, None if it has no closed form.
    """

    pixels: PixelDistribution
    log_prior: Float[Array, "B S"]
    log_posterior: Float[Array, "B S"]
    latent: Float[Array, "B S L"]
    mean: Float[Array, "B L"]
    std: Float[Array, "B L"]
    kl: Float[Array, "B L"] | None


class Objective(Component, Protocol):
    """What a model is trained to minimise.

    Attributes:
      unit: the unit of its terms.
      uses: which of "likelihood" and "prior" it reads.
      ignores: fields of a configuration that its `model` does not read.
      latent_model: whether it trains a model with a distribution of latents, rather than an autoencoder.
      hierarchical: whether it can train models with several layers of latents.
      bound: the name of the lower bound on log p(x) that evaluation reports; "" if there is none.
      point_posterior: whether an image has one latent, so that no number of draws changes its bound.
      tightens: whether more latents per image tighten the bound. Bounds then compare only for equal numbers of latents.
      separate: whether an image's terms depend on no other image, so that a batch may be computed in parts. Each class
        says so of itself; it is not inherited.
    """

    unit: ClassVar[str] = "nats/image"
    uses: ClassVar[tuple[str, ...]] = ("likelihood", "prior")
    ignores: ClassVar[tuple[str, ...]] = ()
    latent_model: ClassVar[bool] = True
    hierarchical: ClassVar[bool] = False
    bound: ClassVar[str] = "elbo"
    point_posterior: ClassVar[bool] = False
    tightens: ClassVar[bool] = False
    separate: ClassVar[bool] = False

    @property
    def latents(self) -> int:
        """Latents drawn for each image."""
        return 1

    def model(self, config: Any, image_shape: ImageShape) -> nn.Module | None:
        """The model that it trains. None: the autoencoder or VAE that `config` describes."""
        return None

    def needs(self) -> Mapping[str, str]:
        """The facts of a run that it depends on, "steps_per_epoch" or "num_images", each with the reason."""
        return {}

    def terms(self, view: Any, batch: Batch, keys: Key[Array, " B"]) -> Terms:
        """The terms of a batch, [B] each. "loss" is minimised. An objective with a `bound` also returns "bound".

        Args:
          view: the model with its current weights, and the step: a `jaxvae.objectives.base.View`.
          batch: its images are intensities in [0, 1], as the model sees them.
          keys: [B], for the noise of each image.
        """
        raise NotImplementedError


class Optimizer(Component, Protocol):
    """Computes the updates of a step."""

    def build(
        self, epochs: int, steps_per_epoch: int | None, hyperparameters: Hyperparameters
    ) -> optax.GradientTransformation:
        """The optimiser of a run of `epochs` epochs. `hyperparameters` replace its own options.

        The state's structure does not depend on the arguments. Raises `TypeError` if `steps_per_epoch` is needed but
        None.
        """
        raise NotImplementedError


class Measured(NamedTuple):
    """The result of a metric.

    Attributes:
      value: a number, or a list of them. None: there is none here, and the note says why.
      unit: the unit of the value.
      standard_error: of a mean over the images.
      note: a remark for people.
      extra: more numbers by their full names, for programs.
      each: the values [N] of the images, if `value` is their mean.
    """

    value: float | list[int] | list[float] | None
    unit: str = ""
    standard_error: float | None = None
    note: str = ""
    extra: Mapping[str, Any] = {}
    each: NDArray[Any] | None = None


@runtime_checkable
class Metric(Component, Protocol):
    """What an evaluation reports besides the objective's terms.

    Attributes:
      reads_labels: whether it reads the label of an image, or its factors. Data with a name is then read with them.
    """

    reads_labels: ClassVar[bool] = False

    def applies(self, config: Any) -> bool:
        """Whether it applies to models of `config`."""
        return True

    def check_images(self, images: Any) -> None:
        """Raise `InputError` if it cannot measure with `images`, a `jaxvae.data.ImageData`, here for want of labels."""
        if self.reads_labels and not all("label" in images.split(name) for name in ("train", "test")):
            raise InputError(f"--metric: {images.source}: the images have no labels, which it needs")

    def measure(self, subject: Any, images: Mapping[str, NDArray[Any]], key: jax.Array) -> Mapping[str, Measured]:
        """The metric, or metrics, by name.

        Args:
          subject: the model and what it was trained on: a `jaxvae.metrics.Subject`.
          images: the test split, arrays [N, ...] by name, among them uint8 "image" [N, H, W, C].
          key: for everything random. The key of an image follows from its place.
        """
        raise NotImplementedError
