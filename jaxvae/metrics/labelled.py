"""Latents beside the labels of their images: what a probe and a k-NN classifier take."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxvae.errors import InputError
from jaxvae.metrics.subject import Subject, mean_of
from jaxvae.protocols import Measured

MOST_TRAINING = 10_000  # Training images whose latents a classifier is fitted on.


class Labelled(NamedTuple):
    """Latents [N, L] and labels [N] of some training images, and those of the test images."""

    train: NDArray[np.float32]
    train_labels: NDArray[Any]
    test: NDArray[np.float32]
    test_labels: NDArray[Any]

    def accuracy(self, classifier: Any, what: str) -> Measured:
        """The share of test images that a classifier of scikit-learn gets right, fitted on the training latents."""
        predicted = classifier.fit(self.train, self.train_labels).predict(self.test)
        right = (predicted == self.test_labels).astype(np.float64)
        return mean_of(right, note=f"; {what}, latents of {len(self.train):,} training images")


def check_encodes(name: str, config: Any) -> None:
    """Raise `InputError` if the model is the user's own and encodes nothing; `name` is the metric's."""
    own = config.parts.model
    if own is not None and not hasattr(own, "encode"):
        raise InputError(f"--metric {name}: the model {type(own).__name__} has no method encode")


def check_classes(name: str, images: Any) -> None:
    """Raise `InputError` if the training images of an `ImageData` are all of one class; `name` is the metric's."""
    labels = images.split("train").get("label")
    if labels is not None and len(np.unique(labels)) < 2:
        raise InputError(f"--metric {name}: the training images are all of one class")


def encoded(subject: Subject, examples: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """The latents [N, L] of examples: the means of their posteriors, or the codes of an autoencoder."""
    told = {"label": examples["label"]} if subject.config.reads_labels else {}
    return subject.run.encode(examples["image"], **told).reshape(len(examples["image"]), -1)


def some_training(subject: Subject) -> dict[str, NDArray[Any]]:
    """At most `MOST_TRAINING` training examples. Which these are depends on the number of all of them alone."""
    count = len(subject.train["image"])
    chosen = np.sort(np.random.default_rng(0).permutation(count)[:MOST_TRAINING])
    return {name: values[chosen] for name, values in subject.train.items()}


def labelled_latents(name: str, subject: Subject, images: Mapping[str, NDArray[Any]]) -> Labelled:
    """The latents of the test images, and of `some_training` images.

    Raises `InputError` if these have one class only.
    """
    few = some_training(subject)
    if len(np.unique(few["label"])) < 2:
        raise InputError(f"--metric {name}: the training images are all of one class")
    return Labelled(encoded(subject, few), few["label"], encoded(subject, images), images["label"])
