"""How close samples of a model come to the test images: FID, KID, precision and recall."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxvae import own
from jaxvae.chunks import PIXELS_AT_ONCE
from jaxvae.errors import InputError
from jaxvae.keys import fold_in_purpose
from jaxvae.metrics import classifier
from jaxvae.metrics.distances import frechet_distance, kernel_distances, precision_and_recall
from jaxvae.metrics.subject import Subject, mean_and_error
from jaxvae.models.build import Examples, sample
from jaxvae.protocols import Measured, Metric
from jaxvae.run.records import rounded
from jaxvae.train.programs import jit_seldom
from jaxvae.typing import Array, Params

KID_SUBSETS, KID_SIZE = 100, 1000  # As in the code of KID's authors.
NEIGHBOURS = 3  # As in the paper on precision and recall.
_AT_ONCE = 1000  # Samples of one compiled call, if they are small.
Extract = Callable[[NDArray[np.uint8]], NDArray[Any]]


class _Features(NamedTuple):
    """Features of the test images, of samples and of as many training images, and what there is to say of them."""

    name: str
    real: NDArray[Any]
    drawn: NDArray[Any]
    train: NDArray[Any]
    note: str = ""
    extra: Mapping[str, Any] = {}


@dataclass(frozen=True)
class SampleQuality(Metric):
    """FID, KID, precision and recall of samples, against the test images. The features are named in each number.

    Attributes:
      features: ``module:function``, or the function itself: from uint8 images [N, H, W, C] to features [N, F]. None:
        the last layer but one of a classifier that is trained on the labelled training images.
      count: how many samples are drawn.
    """

    features: str | Extract | None = None
    count: int = 10_000

    @property
    def reads_labels(self) -> bool:  # type: ignore[override]
        """See `Metric`."""
        return self.features is None

    def check(self, config: Any) -> None:
        """See `Component`."""
        model = config.parts.model
        if model is None and not config.parts.objective.latent_model:
            raise InputError("--metric fid: the model has no prior to draw from: it is an autoencoder")
        if model is not None and not hasattr(model, "sample"):
            raise InputError(f"--metric fid: the model {type(model).__name__} has no method sample(count)")
        self._own()

    def _own(self) -> tuple[str, Extract] | None:
        """The user's own function, and its name."""
        if self.features is None:
            return None
        named = isinstance(self.features, str)
        found = own.resolve(self.features, "--features") if named else self.features  # type: ignore[arg-type]
        if not callable(found):
            raise InputError(f"--features {self.features}: must be a function from images to features")
        return (self.features if named else own.name_of(found)), found  # type: ignore[return-value]

    def measure(self, subject: Subject, images: Mapping[str, NDArray[Any]], key: jax.Array) -> Mapping[str, Measured]:
        """See `Metric`: "fid", "kid", "precision" and "recall", each with the name of the features in brackets."""
        real, train = np.asarray(images["image"]), subject.train["image"]
        labels = images["label"] if subject.config.reads_labels else None
        drawn = draw(subject, self.count, labels, bool(np.isin(real, (0, 255)).all()), key)
        chosen = np.sort(np.random.default_rng(0).permutation(len(train))[: self.count])
        sets, given = (real, drawn, np.asarray(train[chosen])), self._own()
        found = _classified(subject, images["label"], *sets) if given is None else _of_function(*given, *sets)
        return {f"{name}[{found.name}]": measured for name, measured in _distances(found).items()}


def _classified(subject: Subject, labels: NDArray[Any], *sets: NDArray[np.uint8]) -> _Features:
    """The features of sets of images, the test images with `labels` first, by the dataset's classifier."""
    train = subject.train
    name, params, classes = classifier.trained(train["image"], train["label"], subject.run.dataset)
    (real, logits), (drawn, _), (some, _) = (classifier.features_and_logits(params, each, classes) for each in sets)
    right = float((logits.argmax(axis=1) == labels).mean())
    note = f"; the classifier is right on {right:.2%} of the test images"
    return _Features(name, real, drawn, some, note, {"classifier_accuracy": rounded(right, 6)})


def _of_function(name: str, extract: Extract, *sets: NDArray[np.uint8]) -> _Features:
    """The features of sets of images by a function. Raises `InputError` for what are no features."""

    def checked(images: NDArray[np.uint8]) -> NDArray[Any]:
        features = np.asarray(extract(images))
        if features.ndim != 2 or len(features) != len(images) or not np.isfinite(features).all():
            wanted = f"--features {name}: must return finite features [{len(images)}, F]"
            raise InputError(f"{wanted}, not {features.dtype} {list(features.shape)}")
        return features

    real, drawn, train = map(checked, sets)
    return _Features(name, real, drawn, train)


def _distances(found: _Features) -> dict[str, Measured]:
    real, drawn, width = found.real, found.drawn, found.real.shape[1]
    fewest, measured = min(len(real), len(drawn)), dict[str, Measured]()
    extra: dict[str, Any] = {"samples_drawn": len(drawn), "features": width, **found.extra}
    if fewest > width:
        note = f"; {len(drawn):,} samples, {len(real):,} test images, {width} features"
        if len(found.train) > width:
            best = frechet_distance(real, found.train)
            note += f"; of training images it is {best:.3g}"
            extra[f"fid_of_training_images[{found.name}]"] = rounded(best, 6)
        measured["fid"] = Measured(frechet_distance(real, drawn), note=note + found.note, extra=extra)
    else:
        note = f"none: {width} features need more than {width} test images and samples"
        measured["fid"] = Measured(None, note=note, extra=extra)
    size = min(KID_SIZE, fewest)
    if size > 1:
        kid, error = mean_and_error(kernel_distances(real, drawn, KID_SUBSETS, size))
        measured["kid"] = Measured(kid, "", error, f"; {KID_SUBSETS} subsets of {size:,}")
    if fewest > NEIGHBOURS:
        some = np.sort(np.random.default_rng(0).permutation(len(real))[:fewest])  # A folder is in the order of classes.
        values = precision_and_recall(real[some], drawn[:fewest], NEIGHBOURS)
        for name, value in zip(("precision", "recall"), values, strict=True):
            measured[name] = Measured(value, note=f"; {NEIGHBOURS} neighbours, {fewest:,} of each")
    return measured


def draw(subject: Subject, count: int, labels: NDArray[Any] | None, binary: bool, key: jax.Array) -> NDArray[np.uint8]:
    """Samples of the model as pictures, uint8 [count, H, W, C]: the mean image of each latent.

    Args:
      subject: the model.
      count: how many.
      labels: those of the test images, for a conditional model: its samples have each in the same proportion.
      binary: draw each pixel, black or white, with the mean as its probability: for images of such pixels.
      key: of the draws.
    """
    size = max(1, min(_AT_ONCE, count, PIXELS_AT_ONCE // (8 * math.prod(subject.run.image_shape))))
    told = None if labels is None else np.random.default_rng(0).permutation(np.resize(labels, count))

    @jit_seldom
    def drawn(variables: Params, key: Array, batch: dict[str, Array]) -> Array:
        images = sample(subject.model, variables, key, size, Examples(batch))
        if binary:
            noise = jax.random.uniform(fold_in_purpose(key, "pixels"), images.shape)
            images = (noise < images).astype(jnp.float32)
        return jnp.round(255 * jnp.clip(images, 0, 1)).astype(jnp.uint8)

    parts = []
    for first in range(0, count, size):
        # Pads the last call with labels that are not used.
        batch = {} if told is None else {"label": jnp.asarray(np.resize(told[first : first + size], size))}
        own_key = jax.random.fold_in(fold_in_purpose(key, "samples"), first)
        parts.append(np.asarray(drawn(subject.variables, own_key, batch)))
    return np.concatenate(parts)[:count]
