"""What can be asked of a trained model: where its test images lie, what a latent decodes to, what the prior draws."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxvae import trained
from jaxvae.chunks import chunk_size, in_chunks
from jaxvae.data.images import Split
from jaxvae.errors import InputError
from jaxvae.flops import product_flops
from jaxvae.keys import purpose_key
from jaxvae.models.autoencoder import AutoEncoder
from jaxvae.models.build import can_sample
from jaxvae.models.layers import float32_products
from jaxvae.models.priors import LabelGaussian, LabelGaussianModule, StandardNormal
from jaxvae.models.quantized import QuantizedVAE
from jaxvae.models.two_layer import TwoLayerVAE
from jaxvae.models.vae import VAE, LatentModel, label_of
from jaxvae.plane import Plane, plane_of
from jaxvae.run_images import images_of
from jaxvae.train.step import as_batch
from jaxvae.trained import TrainedRun
from jaxvae.typing import Array, Batch, Params

MOST_IMAGES = 5000  # On a map: more points hide each other.
LEAST_IMAGES = 500
CPU_FLOP = 2e10  # That a CPU may spend on encoding the images of a map: about a second, as long as people wait.
AT_ONCE = 8  # Images of one compiled call; the other call decodes one.
SAMPLES = 24  # Images that are drawn at a time.

Floats = NDArray[np.float32]


class Tested(NamedTuple):
    """The test images. Each is called by its number in the test split, from 0.

    Attributes:
      split: all of them, with their labels if they have any.
      mapped: the numbers of those on the map, [N], in order.
      classes: the names of the labels; may be empty.
    """

    split: Split
    mapped: NDArray[np.int64]
    classes: tuple[str, ...]

    @property
    def total(self) -> int:
        """How many there are."""
        return len(self.split["image"])


@dataclass(frozen=True, eq=False)
class Explored:
    """A trained model and its test images.

    Attributes:
      run: the model.
      tested: the test images.
      latents: of the images on the map, [N, L]: the posterior's mean, or an autoencoder's code.
      usage: how much each latent is used, [L]: see `unit`.
      unit: "KL" (nats, the mean over these images) or "variance" (of the latents over these images).
      ranges: the least and greatest value worth looking at, [L, 2].
      plane: the map.
    """

    run: TrainedRun
    tested: Tested
    latents: Floats
    usage: NDArray[np.float64]
    unit: str
    ranges: NDArray[np.float64]
    plane: Plane

    def images(self, numbers: ArrayLike) -> NDArray[np.uint8]:
        """Test images [N, H, W, C]."""
        found: NDArray[np.uint8] = np.asarray(self.tested.split["image"][np.asarray(numbers)])
        return found

    @property
    def labels(self) -> NDArray[Any] | None:
        """Those of the images on the map, [N]; None if there are none."""
        labels = self.tested.split.get("label")
        return None if labels is None else labels[self.tested.mapped]

    def label(self, number: int) -> int | None:
        """That of a test image; None if there are none."""
        labels = self.tested.split.get("label")
        return None if labels is None else int(labels[number])

    def latent(self, number: int) -> Floats:
        """The latent [L] of a test image. One that is not on the map is encoded as a picture of the visitor's is."""
        place = int(np.searchsorted(self.tested.mapped, number))
        if place < len(self.latents) and self.tested.mapped[place] == number:
            found: Floats = self.latents[place].copy()
            return found
        return self.encode(self.images([number])[0], self.label(number) or 0)

    @property
    def conditional(self) -> bool:
        """Whether the model needs a class."""
        return bool(self.run.config.reads_labels)

    @functools.cached_property
    def order(self) -> NDArray[np.int64]:
        """The latents, the most used first."""
        return np.argsort(-self.usage, kind="stable")

    def name_of(self, label: int) -> str:
        """The name of a class."""
        classes = self.tested.classes
        return classes[label] if label < len(classes) else str(label)

    def decode(self, latents: ArrayLike, label: int = 0) -> NDArray[np.uint8]:
        """The mean images [N, H, W, C] of latents [N, L]: by one compiled program if N is 1, else by another."""
        given = np.asarray(latents, np.float32)
        count = len(given)
        size = 1 if count == 1 else AT_ONCE
        padded = np.concatenate([given, np.repeat(given[-1:], -count % size, axis=0)])
        told = self._told(label, size)
        parts = [self.run.decode(padded[start : start + size], **told) for start in range(0, count, size)]
        return np.round(255 * np.clip(np.nan_to_num(np.concatenate(parts)[:count]), 0, 1)).astype(np.uint8)

    def encode(self, image: NDArray[np.uint8], label: int = 0) -> Floats:
        """The latent [L] of an image [H, W, C], as the model sees it: binary if it was trained on binary images."""
        if self.run.config.inputs == "static":
            image = np.where(image > 127, 255, 0).astype(np.uint8)
        found: Floats = self.run.encode(image[None], **self._told(label, 1))[0]
        return found

    def between(self, start: ArrayLike, end: ArrayLike, label: int = 0) -> NDArray[np.uint8]:
        """Images [AT_ONCE, H, W, C] along the straight line between two latents [L]."""
        way = np.linspace(0, 1, AT_ONCE)[:, None]
        return self.decode((1 - way) * np.asarray(start) + way * np.asarray(end), label)

    def code_map(self, number: int) -> NDArray[np.uint8] | None:
        """The codes of a test image as a picture [rows, columns, 3], a colour each; None for a model without codes."""
        if not isinstance(self.run.model, QuantizedVAE):
            return None
        codes = self.run.codes(self.images([number]), **self._told(self.label(number) or 0, 1))[0]
        # Hues that lie far apart for neighbouring codes, and three brightnesses.
        hue, value = codes * 0.618034 % 1, 1 - 0.25 * (codes % 3)
        wheel = np.abs((hue[..., None] * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
        colours: NDArray[np.uint8] = np.round(255 * value[..., None] * np.clip(wheel, 0, 1)).astype(np.uint8)
        return colours

    def traversal(self, latent: ArrayLike, which: int, label: int = 0) -> NDArray[np.uint8]:
        """Images [AT_ONCE, H, W, C] of a latent [L]: entry `which` takes the middles of equal parts of its range."""
        low, high = self.ranges[which]
        moved = np.repeat(np.asarray(latent, np.float32)[None], AT_ONCE, axis=0)
        moved[:, which] = low + (np.arange(AT_ONCE) + 0.5) / AT_ONCE * (high - low)
        return self.decode(moved, label)

    @property
    def without_samples(self) -> str | None:
        """Why nothing can be sampled, as a sentence; None if it can."""
        if can_sample(self.run.model):
            return None
        if self.run.config.model:
            return f"The model {type(self.run.model).__name__} has no method sample(count)."
        return "An autoencoder has no prior to sample from."

    @property
    def has_temperature(self) -> bool:
        """Whether `samples` reads its temperature: the prior must be one whose mean is known."""
        model = self.run.model
        return isinstance(model, VAE | TwoLayerVAE) and isinstance(model.prior, StandardNormal | LabelGaussian)

    def samples(self, seed: int, temperature: float = 1.0, label: int = 0) -> NDArray[np.uint8]:
        """`SAMPLES` images drawn from the prior.

        Args:
          seed: of the draws.
          temperature: factor of each Gaussian's standard deviation (Kingma and Dhariwal, arXiv 1807.03039, section 6).
          label: the class, of a conditional model.
        """
        if not isinstance(self.run.model, LatentModel):
            drawn = np.clip(np.nan_to_num(self.run.sample(SAMPLES, seed)), 0, 1)
            return np.round(255 * drawn).astype(np.uint8)
        labels = {"label": np.full(SAMPLES, label, np.int32)} if self.conditional else {}
        # The key of `TrainedRun.sample`: at a temperature of 1 its images.
        key = jax.random.fold_in(purpose_key(seed, "generate"), 0)
        return self.decode(np.asarray(self._drawn(self.run.variables, key, np.float32(temperature), labels)), label)

    @functools.cached_property
    def _drawn(self) -> Any:
        has_temperature = self.has_temperature

        def from_prior(model: Any, key: Array, temperature: Array, batch: Batch) -> Array:
            """As `sample_latent` of the model, with a temperature where it has one."""
            if not has_temperature:
                drawn: Array = model.sample_latent(key, SAMPLES, batch or None)
                return drawn
            latent: Array = model.sample_prior(key, (SAMPLES,), batch or None)
            centre = model.p_z.mean(batch["label"]) if isinstance(model.p_z, LabelGaussianModule) else 0.0
            latent = centre + temperature * (latent - centre)
            if not isinstance(model, TwoLayerVAE):
                return latent
            mean, std = model.lower(latent)
            return mean + temperature * std * jax.random.normal(jax.random.fold_in(key, 1), mean.shape)

        @jax.jit
        @float32_products
        def draw(variables: Params, key: Array, temperature: Array, batch: Batch) -> Any:
            return self.run.model.apply(variables, key, temperature, batch, method=from_prior)

        return draw

    def warm_up(self) -> None:
        """Call every compiled program once, so that no later call compiles."""
        latent = self.encode(self.images([0])[0])
        self.decode(latent[None])
        self.between(latent, latent)
        self.code_map(0)
        if self.without_samples is None:
            self.samples(0)

    def _told(self, label: int, count: int) -> dict[str, Any]:
        return {"label": np.full(count, label, np.int32)} if self.conditional else {}


def explored(
    run_dir: Path,
    best: bool = False,
    dataset: str | None = None,
    data_dir: str | None = None,
    images: Tested | None = None,
) -> Explored:
    """Load a run's newest model (or its best) and encode its test images.

    Args:
      run_dir: of the run.
      best: the best checkpoint by the validation images.
      dataset, data_dir: where the images are, if not where they were in training.
      images: the `Explored.tested` of an earlier call, so that they are not read again.

    Raises:
      InputError: no run, an unreadable checkpoint, other test images than the run's; or a user-defined model without
        the methods encode and decode of latents [B, L].
    """
    run = trained.load_run(run_dir, best)
    name = type(run.model).__name__
    for method in ("encode", "decode"):
        if not hasattr(run.model, method):
            raise InputError(f"{run_dir}: the model {name} has no method {method}, so it has no latents to explore")
    images = images or tested_of(run, run_dir, dataset, data_dir)
    try:
        return _explored(run, run_dir, images)
    except InputError:
        raise
    except Exception as error:
        if run.config.model is None:
            raise
        # The user's model may do anything.
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(f"{run_dir}: encode, decode or sample of the model {name} failed: {why}") from error


def _explored(run: TrainedRun, run_dir: Path, images: Tested) -> Explored:
    mean, std, kl = _encoded(run, {name: np.asarray(values[images.mapped]) for name, values in images.split.items()})
    if mean.ndim != 2 or not np.isfinite(mean).all():
        raise InputError(
            f"{run_dir}: encode must return finite latents [B, L], not {list(mean.shape)} with {_worst(mean)}"
        )
    usage, unit = (mean.var(axis=0), "variance") if kl is None else (kl.mean(axis=0, dtype=np.float64), "KL")
    model = run.model
    least = 0.0 if isinstance(model, AutoEncoder) and model.head == "relu" else -np.inf
    found = Explored(
        run,
        images,
        mean,
        np.asarray(usage, np.float64),
        unit,
        _ranges(mean, std, least),
        plane_of(mean),
    )
    found.warm_up()
    return found


def tested_of(run: TrainedRun, run_dir: Path, dataset: str | None, data_dir: str | None) -> Tested:
    """The test images of a run, with labels if there are any. Raises `InputError`."""
    try:
        images = images_of(run, run_dir, dataset, data_dir, labels=True)
    except InputError:
        if run.config.reads_labels:
            raise
        images = images_of(run, run_dir, dataset, data_dir)
    total = len(images.test)
    count = min(total, _most_images(run, images.split("test")))
    split = {name: v for name, v in images.split("test").items() if name == "image" or _is_label(name, v)}
    return Tested(split, np.linspace(0, total - 1, count).astype(np.int64), images.classes)


def _is_label(name: str, values: NDArray[Any]) -> bool:
    return name == "label" and values.ndim == 1 and values.dtype.kind in "iu" and values.min() >= 0


def _worst(values: NDArray[Any]) -> str:
    return "NaN or infinity" if not np.isfinite(values).all() else "finite values"


def _most_images(run: TrainedRun, split: Split) -> int:
    """How many images a map of this model may have: on a CPU as many as `CPU_FLOP` encode, within limits."""
    if run.config.model is not None or jax.default_backend() != "cpu":
        return MOST_IMAGES
    one = {name: np.asarray(values[:1]) for name, values in split.items()}
    keys = purpose_key(run.config.seed, "test-noise")[None]
    flop, _ = product_flops(jax.make_jaxpr(_encoder(run))(run.variables, one, keys).jaxpr)
    return int(np.clip(CPU_FLOP / max(flop, 1), LEAST_IMAGES, MOST_IMAGES))


def _encoder(run: TrainedRun) -> Callable[[Params, Batch, Array], dict[str, Array]]:
    """What `_encoded` computes of a batch, with a key for each image."""
    model, inputs = run.model, run.config.parts.inputs

    def of_batch(variables: Params, batch: Batch, keys: Array) -> dict[str, Array]:
        seen = as_batch(batch)
        x = inputs.observe(seen["image"], keys)
        told = label_of(model, seen)
        found: Any = model.apply(variables, x, **told, method="encode", rngs={"params": keys[0]})
        mean = found[0] if isinstance(found, tuple | list) else found
        if not run.has_deviation:
            return {"mean": jnp.asarray(mean)}
        moments = {"mean": mean, "std": found[1]}
        kl: Any = None
        if isinstance(model, VAE):
            kl = model.apply(variables, *found, {**seen, "image": x}, method="kl")
        return moments if kl is None else {**moments, "kl": kl}

    return of_batch


def _encoded(run: TrainedRun, split: Split) -> tuple[Floats, Floats | None, Floats | None]:
    """The posterior's mean [N, L] and, of built-in VAEs, its standard deviation and the KL term of each dimension."""
    # The key of evaluations: a model that sees random binary images gets the same ones.
    key = purpose_key(run.config.seed, "test-noise")
    found = in_chunks(_encoder(run), run.variables, split, key, chunk_size(split, run.config), np.float32)
    return found["mean"], found.get("std"), found.get("kl")


def _ranges(mean: Floats, std: Floats | None, least: float) -> NDArray[np.float64]:
    """Three standard deviations of the aggregate posterior about its mean, and the latents of all images: [L, 2]."""
    spread = mean.var(axis=0, dtype=np.float64)
    if std is not None:
        spread = spread + np.square(std, dtype=np.float64).mean(axis=0)
    centre, reach = mean.mean(axis=0, dtype=np.float64), np.maximum(3 * np.sqrt(spread), 0.05)
    low = np.minimum(centre - reach, mean.min(axis=0))
    high = np.maximum(centre + reach, mean.max(axis=0))
    ends = np.stack([np.floor(10 * low) / 10, np.ceil(10 * high) / 10], axis=1)
    ranges: NDArray[np.float64] = np.maximum(ends, [least, -np.inf])
    return ranges
