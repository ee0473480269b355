"""A small classifier of a dataset's images, whose features tell images apart.

It is trained on the labelled training images once, and kept in the user's cache directory.
"""

import contextlib
import io
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float
from numpy.typing import NDArray

from jaxvae import compilation_cache
from jaxvae.chunks import chunk_size, in_chunks
from jaxvae.data.images import digest
from jaxvae.errors import say
from jaxvae.keys import key_of
from jaxvae.models.convolution import Conv
from jaxvae.models.layers import float32_products
from jaxvae.optimizer import Adam
from jaxvae.train.step import intensities
from jaxvae.typing import Array, Params

VERSION = 1  # Of all that follows here. Another one is another classifier, and makes other numbers.
FEATURES = 64
WIDTHS = (32, 64, 128)  # Channels of the convolutions; of those that follow, as many as of the last.
SIDE = 8  # Convolutions halve an image until its sides are no longer than this.
STEPS, BATCH_SIZE, LEARNING_RATE = 2000, 128, 1e-3
_SCALED_BY = 10_000  # Training images whose features give their scale.


class Classifier(nn.Module):
    """Convolutions of stride 2, a layer of features, and a logit for each class.

    Attributes:
      classes: how many.
    """

    classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> tuple[Float[Array, "B F"], Float[Array, "B K"]]:
        """The features, which are not negative, and the logits of images [B, H, W, C] in [0, 1]."""
        for place in range(max(1, math.ceil(math.log2(max(x.shape[1:3]) / SIDE)))):
            x = nn.relu(Conv(WIDTHS[min(place, len(WIDTHS) - 1)], stride=2)(x))
        features = nn.relu(nn.Dense(FEATURES, name="features")(x.reshape(len(x), -1)))
        return features, nn.Dense(self.classes, name="logits")(features)


def features_and_logits(
    params: Params, images: NDArray[np.uint8], classes: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The features [N, F] of uint8 images [N, H, W, C], and the logits [N, K] of their classes.

    The mean square of the features is 1 on training images. KID's kernel is not the same at every scale.
    """

    def run(params: Params, batch: Mapping[str, Array], keys: Array) -> tuple[Array, Array]:
        del keys
        model: Any = Classifier(classes)
        features, logits = model.apply({"params": params["params"]}, intensities(batch["image"]))
        return features / params["scale"], logits

    examples = {"image": images}
    size = max(1, chunk_size(examples, draws=WIDTHS[0]))
    found: tuple[NDArray[np.float32], NDArray[np.float32]] = in_chunks(
        run, params, examples, key_of(0), size, np.float32
    )
    return found


def trained(images: Any, labels: NDArray[Any], name: str) -> tuple[str, Params, int]:
    """The classifier of labelled images: its name, its parameters and the number of its classes.

    The name is ``classifier:NAME-DIGEST-vVERSION``. The digest is of the images and labels it is trained on, so equal
    names mean the same data. (On machines of other kinds, rounding makes a slightly different classifier.)

    Args:
      images: uint8 [N, H, W, C].
      labels: [N], from 0 on.
      name: of the dataset, for the name.
    """
    classes = int(labels.max()) + 1
    data = digest(np.frombuffer(f"{digest(images)}{digest(labels)}".encode(), np.uint8))
    full_name = f"classifier:{name}-{data[:6]}-v{VERSION}"
    params: Params | None = None
    path = None
    with contextlib.suppress(RuntimeError):  # There may be no home directory.
        path = compilation_cache.root(os.environ).with_name("jaxvae-classifiers") / f"{data}-v{VERSION}.npz"
        params = _read(path)
    if params is None:
        say(f"training {full_name} on {len(images):,} images, once")
        params = _train(images, labels, classes)
        if path is not None:
            _write(path, params)
    return full_name, params, classes


@float32_products
def _train(images: Any, labels: NDArray[Any], classes: int) -> Params:
    """Adam on the cross entropy, its rate falling along a cosine. The order of the images has a fixed seed."""
    model = Classifier(classes)
    optimizer = Adam(learning_rate=LEARNING_RATE, schedule="cosine").build(1, STEPS, {})
    params: Params = model.init(key_of(0), jnp.zeros((1, *images.shape[1:])))

    @jax.jit
    def step(params: Params, state: Any, batch: Array, told: Array) -> tuple[Params, Any]:
        def cost(params: Params) -> Array:
            _, logits = model.apply(params, intensities(batch))
            loss: Array = optax.softmax_cross_entropy_with_integer_labels(logits, told).mean()
            return loss

        updates, state = optimizer.update(jax.grad(cost)(params), state, params)
        return optax.apply_updates(params, updates), state

    state, rng, count = optimizer.init(params), np.random.default_rng(0), len(images)
    order = np.empty(0, np.int64)
    for _ in range(STEPS):
        while len(order) < BATCH_SIZE:
            order = np.concatenate([order, rng.permutation(count)])
        places, order = order[:BATCH_SIZE], order[BATCH_SIZE:]
        params, state = step(params, state, images[places], labels[places].astype(np.int32))
    some = np.sort(rng.permutation(count)[:_SCALED_BY])
    features, _ = features_and_logits({**params, "scale": jnp.float32(1)}, images[some], classes)
    return {**params, "scale": jnp.sqrt(jnp.mean(jnp.square(features)))}


def _read(path: Path) -> Params | None:
    """The parameters in a file; None: there is no such file, or it is damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            arrays = {tuple(name.split("/")): jnp.asarray(kept[name]) for name in kept.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    found: Params = unflatten_dict(arrays)
    return found


def _write(path: Path, params: Params) -> None:
    """Keep the parameters for the next time. That it cannot be done is no error."""
    content = io.BytesIO()
    arrays: dict[str, Any] = {"/".join(name): np.asarray(array) for name, array in flatten_dict(params).items()}
    np.savez(content, **arrays)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        fresh.write_bytes(content.getvalue())
        fresh.replace(path)
