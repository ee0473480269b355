"""The test images that a model does worst on."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxvae.errors import InputError
from jaxvae.metrics.reconstruction import seen_and_reconstructed
from jaxvae.metrics.subject import Subject
from jaxvae.models.layers import float32_products
from jaxvae.train.programs import jit_seldom

SHOWN = 16  # Images by each measure.


class Outliers(NamedTuple):
    """The images that are worst by one measure, the worst first.

    Attributes:
      name: of the measure.
      what: what these images are, in words.
      places: of the images in the test split.
      values: of the measure.
      seen, reconstructed: intensities [N, H, W, C]: the pixels that the model saw, and what it made of them.
    """

    name: str
    what: str
    places: NDArray[np.int64]
    values: NDArray[np.float64]
    seen: NDArray[np.float32]
    reconstructed: NDArray[np.float32]


def outliers(
    subject: Subject,
    images: Mapping[str, NDArray[Any]],
    key: jax.Array,
    each: Mapping[str, NDArray[Any]],
    likelihood: str | None,
) -> list[Outliers]:
    """The worst reconstructed and the least likely test images, with the noise of their evaluation.

    Args:
      subject: the model.
      images: the test split.
      key: of the evaluation.
      each: the values [N] of the images by the name of the measure: "mse", and `likelihood`.
      likelihood: the name of the bound or the estimate of log p(x); None: the model has none.

    Raises:
      InputError: the model gives no reconstructions.
    """
    if "mse" not in each:
        raise InputError("--outliers: the model gives no reconstructions")
    wanted = [("mse", "worst reconstructed", -each["mse"])]
    if likelihood is not None:
        wanted.append((likelihood, "least likely", each[likelihood]))
    found = []
    for name, what, values in wanted:
        places = np.argsort(values, kind="stable")[:SHOWN]
        batch = {other: jnp.asarray(values[places]) for other, values in images.items()}
        # The key of an image follows from its place: see `jaxvae.keys.example_keys`.
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(places, jnp.uint32))
        shown = jit_seldom(float32_products(lambda v, b, k: seen_and_reconstructed(subject, v, b, k)))
        seen, reconstructed = shown(subject.variables, batch, keys)
        found.append(Outliers(name, what, places, each[name][places], np.asarray(seen), np.asarray(reconstructed)))
    return found
