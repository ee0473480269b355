"""A finished run, loaded: a model to use on images."""

import copy
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from numpy.typing import ArrayLike, NDArray

from jaxvae import config_file
from jaxvae.chunks import PIXELS_AT_ONCE, cached_at_once, in_chunks
from jaxvae.config import Config, describe
from jaxvae.data.sources import is_named
from jaxvae.errors import InputError, say, suggestion
from jaxvae.keys import purpose_key
from jaxvae.models.autoencoder import AutoEncoder
from jaxvae.models.build import Examples, Model, build_model, can_sample, class_rows, reconstruct, sample
from jaxvae.models.quantized import QuantizedVAE
from jaxvae.models.two_layer import TwoLayerVAE
from jaxvae.models.vae import LatentModel, label_of
from jaxvae.objectives.build import selection_term
from jaxvae.own import give, is_own
from jaxvae.run import directory as run_dirs
from jaxvae.run.checkpoint import Checkpoints
from jaxvae.run.records import better_unsaved
from jaxvae.train.programs import jit_seldom
from jaxvae.train.step import TrainState, as_batch, init_state
from jaxvae.typing import Array, Batch, ImageShape, Params

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """A trained model, to apply to images.

    Images are arrays [N, H, W, C], or [N, H, W] where C is 1: uint8, or floats in [0, 1]. Images made from images
    have their dtype; images made from latents are float32 in [0, 1]. All methods work on chunks, so N may be large.

    The model sees pixels as in training: binarised with ``inputs="dynamic"``, noised with `dequantize`. A model with
    ``inputs="static"`` needs binary images; training drew its own once.

    Attributes:
      config: of the run.
      model: the Flax module.
      variables: its variables, by collection, as ``model.apply`` takes them.
      step: the number of steps it was trained for.
      image_shape: (H, W, C).
      record: the checkpoint's record of the run and data that it belongs to.
    """

    config: Config
    model: Model
    variables: Params
    step: int
    image_shape: ImageShape
    record: dict[str, Any]

    def __repr__(self) -> str:
        """What was trained, for how long, and on which images."""
        height, width, channels = self.image_shape
        what = f"{describe(self.config)}, step {self.step:,}, images {height} x {width} x {channels}"
        return f"TrainedRun({what})"

    @property
    def dataset(self) -> str:
        """The name of what it was trained on, or the last part of its path."""
        return self.config.dataset if is_named(self.config.dataset) else Path(self.config.dataset).name

    def encode(self, images: ArrayLike, **others: ArrayLike) -> NDArray[np.float32]:
        """The latents of images, [N, L]: the posterior's mean, or an autoencoder's code.

        `others` is what else the model reads of a batch, such as ``label=...``, [N, ...] each. Raises `ValueError` for
        images of another shape or scale, and `TypeError` for a model without a method ``encode``.
        """
        self._needs("encode")
        latents: NDArray[np.float32] = self._map(self._encode, self._batch(images, others))
        return latents

    def codes(self, images: ArrayLike, **others: ArrayLike) -> NDArray[np.int32]:
        """The codes of images, [N, rows, columns], of a model with discrete latents. `others`: see `encode`."""
        self._needs("codes")
        found: NDArray[Any] = self._map(self._codes, self._batch(images, others))
        rows, columns = self.config.parts.network.grid(self.image_shape)
        return found.astype(np.int32).reshape(len(found), rows, columns)

    @property
    def has_deviation(self) -> bool:
        """Whether the model has what `posterior` returns. (What `encode` of a user's own model returns is unknown.)"""
        own = not type(self.model).__module__.startswith("jaxvae.")
        return isinstance(self.model, LatentModel) and not isinstance(self.model, QuantizedVAE) and not own

    def posterior(self, images: ArrayLike, **others: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The mean and the standard deviation of the posterior of images, [N, L] each.

        (Of a model of two layers, of the latents next to the image.) `others`: see `encode`. Raises `TypeError` for an
        autoencoder, for discrete latents and for a model of the user's own.
        """
        if not self.has_deviation:
            raise TypeError(f"the model {type(self.model).__name__} has no posterior with a standard deviation")
        found: tuple[NDArray[np.float32], NDArray[np.float32]]
        found = self._map(self._moments, self._batch(images, others))
        return found

    def reconstruct(self, images: ArrayLike, seed: int = 0, **others: ArrayLike) -> NDArray[Any]:
        """Images, encoded and decoded again. A VAE's latents are drawn from the posterior, with `seed`."""
        return self._like(images, self._map(self._reconstruct, self._batch(images, others), seed))

    def decode(self, latents: ArrayLike, **others: ArrayLike) -> NDArray[np.float32]:
        """The mean images [N, H, W, C] of latents [N, L]. (For a model of two layers, latents next to the image.)

        `others`: see `encode`. Raises `ValueError` for latents of another size.
        """
        self._needs("decode")
        given = np.asarray(latents, np.float32)
        if isinstance(self.model, LatentModel | AutoEncoder):
            size = self.model.latent_size * (2 if isinstance(self.model, TwoLayerVAE) else 1)
            if given.shape[1:] != (size,):
                raise ValueError(f"latents must be [N, {size}], not {list(given.shape)}")
        return np.asarray(self._map(self._decode, {"latent": given, **self._others(others, len(given))}))

    def sample(
        self, count: int, seed: int = 0, mixture: "GaussianMixture | None" = None, **others: ArrayLike
    ) -> NDArray[np.float32]:
        """Images drawn from the model, [count, H, W, C].

        Args:
          count: how many.
          seed: of the draws.
          mixture: what latents are drawn from, in place of the prior: see `fit_mixture`. An autoencoder needs it.
          others: what the model reads of a batch, such as ``label=...``, [count, ...] each. Without them, a conditional
            model draws 8 images of each class in turn, and begins again after the last.

        Raises:
          TypeError: it is an autoencoder, and there is no `mixture`.
          ValueError: `count` is less than 1, or the model knows no labels.
        """
        if mixture is None and not can_sample(self.model):
            missing = f"the model {type(self.model).__name__} has no method sample(count)"
            none = "the model has no prior to draw from: it is an autoencoder, so fit a mixture (fit_mixture)"
            raise TypeError(missing if self.config.model else none)
        if count < 1:
            raise ValueError(f"count must be at least 1, not {count}")
        own = any(is_own(getattr(self.config, name)) for name in ("model", "prior", "architecture", "objective"))
        if "label" in others and not self.config.reads_labels and not own:
            raise ValueError("label: the model was trained without --condition label, so it draws images of any class")
        if self.config.reads_labels and "label" not in others:
            others["label"] = class_rows(count, self.config.classes)
        if mixture is not None:
            drawn, _ = copy.copy(mixture).set_params(random_state=seed).sample(count)
            # scikit-learn sorts its draws by component.
            return self.decode(np.random.default_rng(seed).permutation(drawn), **others)
        # A chunk has one key for its draws, so chunks have the same size on every machine.
        size, batch = self._at_once(count), {"": np.arange(count), **self._others(others, count)}
        drawn = in_chunks(self._sample, self.variables, batch, purpose_key(seed, "generate"), size, np.float32)
        return self.decode(drawn, **others) if isinstance(self.model, LatentModel) else np.asarray(drawn)

    def fit_mixture(
        self, images: ArrayLike, components: int = 10, seed: int = 0, **others: ArrayLike
    ) -> "GaussianMixture":
        """A mixture of Gaussians, fitted to the latents of images (`encode`): ``sample(mixture=...)`` draws from it.

        Ghosh et al. (arXiv 1903.12436), section 4: ex-post density estimation. So autoencoders generate as well, and a
        VAE whose latents do not match its prior draws better images.

        Args:
          images: those that it was trained on, at least `components`.
          components: Gaussians, each with a full covariance matrix.
          seed: of the fit, which starts from k-means.
          others: as for `encode`.
        """
        from sklearn.mixture import GaussianMixture

        latents = self.encode(images, **others).astype(np.float64)
        return GaussianMixture(components, max_iter=1000, random_state=seed).fit(latents)

    def interpolate(self, start: ArrayLike, end: ArrayLike, steps: int = 8, **others: ArrayLike) -> NDArray[Any]:
        """Images between two images, [steps, H, W, C]: decoded from the straight line between their latents.

        Args:
          start, end: an image each, [H, W, C], or [H, W] where C is 1.
          steps: the number of images, including the reconstructions of both ends; at least 2.
          others: as for `encode`, of all images, such as ``label=3``.
        """
        repeated = {n: {name: np.repeat(np.asarray(v)[None], n, 0) for name, v in others.items()} for n in (2, steps)}
        first, last = self.encode(np.stack([np.asarray(start), np.asarray(end)]), **repeated[2])
        way = np.linspace(0, 1, steps, dtype=np.float32)[:, None]
        return self._like(start, self.decode((1 - way) * first + way * last, **repeated[steps]))

    def _needs(self, method: str) -> None:
        if not hasattr(self.model, method):
            raise TypeError(f"the model {type(self.model).__name__} has no method {method}")

    def _batch(self, images: ArrayLike, others: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]:
        array = np.asarray(images)
        if array.ndim == 3 and self.image_shape[2] == 1:
            array = array[..., None]
        if array.ndim != 4 or array.shape[1:] != self.image_shape:
            raise ValueError(f"images must be [N, {', '.join(map(str, self.image_shape))}], not {list(array.shape)}")
        if array.dtype != np.uint8:
            array = array.astype(np.float32)
            if array.size and not (array.min() >= 0 and array.max() <= 1):
                raise ValueError("images must be uint8, or floats in [0, 1]")
        return {"image": array, **self._others(others, len(array))}

    def _others(self, given: Mapping[str, ArrayLike], count: int) -> dict[str, Any]:
        """What examples hold besides images. Raises `ValueError` for a wrong name or length."""
        known = self.record.get("example", {})
        for name, values in given.items():
            if name not in known:
                raise ValueError(f"{name}: the model was trained on examples without it{suggestion(name, known)}")
            if np.shape(values)[:1] != (count,):
                raise ValueError(f"{name} must have {count} entries, not shape {list(np.shape(values))}")
            if name == "label" and self.config.reads_labels and count:
                labels, most = np.asarray(values), self.config.classes - 1
                if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > most:
                    raise ValueError(f"label must hold whole numbers from 0 to {most}, not {labels.tolist()[:8]}")
        return {name: np.asarray(values, known[name]["dtype"]) for name, values in given.items()}

    @functools.cached_property
    def _encode(self) -> Any:
        def encode(variables: Params, batch: Batch, keys: Array) -> Array:
            found = self._encoded(variables, batch, keys)
            code: Array = found[0] if isinstance(found, tuple | list) else found
            return code

        return jit_seldom(encode)

    @functools.cached_property
    def _codes(self) -> Any:
        def codes(variables: Params, batch: Batch, keys: Array) -> Array:
            seen = self._seen(batch, keys)
            found: Any = self.model.apply(variables, seen["image"], **label_of(self.model, seen), method="codes")
            code: Array = found
            return code

        return jit_seldom(codes)

    @functools.cached_property
    def _moments(self) -> Any:
        return jit_seldom(self._encoded)

    def _encoded(self, variables: Params, batch: Batch, keys: Array) -> Any:
        seen = self._seen(batch, keys)
        told = label_of(self.model, seen)
        return self.model.apply(variables, seen["image"], **told, method="encode", rngs={"params": keys[0]})

    @functools.cached_property
    def _reconstruct(self) -> Any:
        def run(variables: Params, batch: Batch, keys: Array) -> Array:
            found = reconstruct(self.model, variables, self._seen(batch, keys), keys)
            if found is None:
                raise TypeError(f"the model {type(self.model).__name__} returns no x_hat")
            return found

        return jit_seldom(run)

    @functools.cached_property
    def _sample(self) -> Any:
        def drawn(variables: Params, batch: Batch, keys: Array) -> Array:
            told = Examples({name: values for name, values in batch.items() if name})
            if not isinstance(self.model, LatentModel):
                return sample(self.model, variables, keys[0], len(keys), told)
            latent: Any = self.model.apply(variables, keys[0], len(keys), told, method="sample_latent")
            return jnp.asarray(latent)

        return jit_seldom(drawn)

    @functools.cached_property
    def _decode(self) -> Any:
        def decode(variables: Params, batch: Batch, keys: Array) -> Array:
            told = label_of(self.model, batch)
            latent, rngs = batch["latent"], {"params": keys[0]}
            decoded: Any = self.model.apply(variables, latent, **told, method="decode", rngs=rngs)
            images: Array = nn.sigmoid(decoded) if isinstance(self.model, LatentModel | AutoEncoder) else decoded
            return images

        return jit_seldom(decode)

    def _seen(self, batch: Batch, keys: Array) -> dict[str, Array]:
        seen = as_batch(batch)
        return {**seen, "image": self.config.parts.inputs.observe(seen["image"], keys)}

    def _map(self, run: Any, batch: Mapping[str, NDArray[Any]], seed: int = 0) -> Any:
        size = self._at_once(len(next(iter(batch.values()))))
        size = min(size, cached_at_once(self.config, self.image_shape) or size)
        return in_chunks(run, self.variables, batch, purpose_key(seed, "reconstructions"), size, np.float32)

    def _at_once(self, count: int) -> int:
        """How many of `count` examples to take at a time: a power of two, so that few sizes are compiled, or fewer."""
        most = max(1, PIXELS_AT_ONCE // math.prod(self.image_shape))
        return min(1 << (max(count, 1) - 1).bit_length(), most)

    def _like(self, images: ArrayLike, found: NDArray[np.float32]) -> NDArray[Any]:
        return np.round(255 * found).astype(np.uint8) if np.asarray(images).dtype == np.uint8 else found


def load_run(run_dir: Path, best: bool = False) -> TrainedRun:
    """The newest model of a run directory, or the best by the validation images, for use, not for training.

    A damaged checkpoint is skipped with a warning on stderr.

    Raises:
      InputError: it is not a run directory, none of its checkpoints can be read, or `best` is set and it had no
        validation images.
    """
    run_dirs.require(run_dir)
    config = config_file.load(run_dir / "config.json", to_use=True)
    if not (run_dir / "checkpoints").is_dir():
        raise InputError(f"{run_dir} holds no checkpoint yet")
    with Checkpoints(run_dir / "checkpoints", read_only=True) as checkpoints:
        image_shape = checkpoints.image_shape()
        model = build_model(config, image_shape)
        like = _used_of(config, model, example_of_run(image_shape, checkpoints.read_record()))
        saved = checkpoints.restore(like, best, partial=True)
        assert saved is not None  # Its record has just been read.
        if best and (note := better_unsaved(run_dir / "metrics.jsonl", saved.step, *selection_term(config))):
            say(note)
        state = saved.state
        variables = {**(state.opt_state["average"] if config.ema else state.params), **state.collections}
        return TrainedRun(config, model, variables, saved.step, image_shape, saved.record)


def example_of_run(image_shape: ImageShape, record: Mapping[str, Any]) -> dict[str, Any]:
    """A batch of one example, zeros, like those that a run was trained on, from a checkpoint's record."""
    others = record.get("example", {})
    forms = {name: np.zeros((1, *form["shape"]), form["dtype"]) for name, form in others.items()}
    return {"image": np.zeros((1, *image_shape), np.float32), **forms}


def _used_of(config: Config, model: Model, example: Mapping[str, Any]) -> TrainState:
    """The shapes and dtypes of the part of a state that a trained model needs: the average, but not the optimiser's."""

    def used() -> TrainState:
        state = init_state(model, optax.identity(), purpose_key(0, "init"), example=example)
        average: Any = {"average": state.params} if config.ema else {}
        return state._replace(opt_state=average)

    found: TrainState = jax.eval_shape(used)
    return found


def load(run_dir: str | Path, best: bool = False, model: nn.Module | None = None, objective: Any = None) -> TrainedRun:
    """A trained model, to be used on images: ``jaxvae.load("runs/mine").reconstruct(images)``.

    Args:
      run_dir: of a run of ``jaxvae.train`` or `jaxvae.fit`.
      best: the best checkpoint by the validation images, rather than the newest.
      model: the module that was given to `jaxvae.fit`, if this process cannot import it by its name.
      objective: the same for the objective.

    Raises:
      InputError: there is no such run, or nothing in it that can be read.
    """
    path = Path(run_dir)
    if (path / "config.json").is_file():
        names = config_file.names(path / "config.json")
        for slot, thing in (("model", model), ("objective", objective)):
            if thing is not None and isinstance(names.get(slot), str):
                give(thing, names[slot])
    return load_run(path, best)
