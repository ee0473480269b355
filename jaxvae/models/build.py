"""Build the model of a configuration, call any model, reconstruct images and draw samples."""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from numpy.typing import NDArray

from jaxvae.errors import InputError
from jaxvae.models.autoencoder import AutoEncoder
from jaxvae.models.flow import RealNvp
from jaxvae.models.joint_draws import with_joint_draws
from jaxvae.models.layers import float32_products
from jaxvae.models.likelihoods import Bernoulli
from jaxvae.models.mixture import Mixture
from jaxvae.models.priors import LabelGaussian, StandardNormal
from jaxvae.models.vae import LatentModel, label_of
from jaxvae.models.vamp import Vamp
from jaxvae.options import with_traced
from jaxvae.protocols import Prior
from jaxvae.typing import Array, Batch, ImageShape, Params

Model: TypeAlias = nn.Module
"""An `AutoEncoder`, a `LatentModel` or a user-defined module. `call_arguments` says how it is called."""

PRIORS: Mapping[str, type[Prior]] = {
    "normal": StandardNormal,
    "label": LabelGaussian,
    "mixture": Mixture,
    "vamp": Vamp,
    "realnvp": RealNvp,
}


class Examples(dict[str, Array]):
    """A batch. Reading a missing entry raises an `InputError` that lists the entries it holds."""

    def __missing__(self, name: str) -> Array:
        raise InputError(f"the data holds no {name}, which the model or the loss reads: it holds {', '.join(self)}")


def build_model(config: Any, image_shape: ImageShape) -> Model:
    """The model of a `jaxvae.Config` for images of shape (H, W, C), or the user-defined model that it names.

    Raises:
      InputError: the network cannot encode images of this shape to this many latents.
    """
    parts = config.parts
    if parts.model is not None:
        own: Model = parts.model
        return own
    if (made := parts.objective.model(config, image_shape)) is not None:
        return made  # type: ignore[no-any-return]
    if not parts.objective.latent_model:
        parts.network.check_sizes(image_shape, config.latent_size)
        dtype = jnp.dtype(config.compute_dtype)
        return AutoEncoder(image_shape, parts.network, config.latent_size, config.head, dtype)
    return latent_model(config, image_shape, parts.network.model())


def latent_model(config: Any, image_shape: ImageShape, kind: type[LatentModel]) -> LatentModel:
    """A model of class `kind` with the network, the likelihood and the prior of a `jaxvae.Config`.

    Raises `InputError` as `build_model` does.
    """
    parts = config.parts
    parts.network.check_sizes(image_shape, config.latent_size)
    uses = parts.objective.uses
    return kind(
        image_shape,
        parts.network,
        parts.network.latent_count(image_shape, config.latent_size),
        config.head,
        parts.likelihood if "likelihood" in uses else Bernoulli(),  # The notes' decoders end in logits.
        parts.prior if "prior" in uses else StandardNormal(),
        jnp.dtype(config.compute_dtype),
        config.classes if config.condition == "label" else 0,
    )


def with_traced_parts(model: Model, hyperparameters: Mapping[str, Any]) -> Model:
    """Replace the traced options of a model's components by `hyperparameters`. The values may be traced."""
    if not isinstance(model, LatentModel | AutoEncoder):
        return model
    parts = {name: getattr(model, name) for name in ("network", "likelihood", "prior") if hasattr(model, name)}
    changed = {name: with_traced(part, hyperparameters) for name, part in parts.items()}
    if all(changed[name] is part for name, part in parts.items()):
        return model
    clone: Model = model.clone(**changed)
    return clone


def call_arguments(model: Model, batch: Batch, keys: Array, train: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments for ``model(...)``. The parameter names of its ``__call__`` decide them.

    - The first parameter gets the images [B, H, W, C], or the whole batch if it is named `batch`.
    - `key`: the keys of the examples, [B].
    - `train`: whether this is a training step; `deterministic`: the opposite.
    - `label`: the labels [B], if it is a conditional `LatentModel`.

    Random streams of any name (``self.make_rng("dropout")``) are available as well.
    """
    parameters = [p for name, p in inspect.signature(type(model).__call__).parameters.items() if name != "self"]
    names = [parameter.name for parameter in parameters]
    known = {"key": keys, "train": train, "deterministic": not train}
    told = label_of(model, batch)
    unknown = [p.name for p in parameters[1:] if p.name not in (*known, *told) and _is_required(p)]
    if unknown:
        raise InputError(
            f"{type(model).__name__}.__call__ needs {unknown[0]}, which nothing gives it: after the images or the "
            f"batch it may take {', '.join(known)}"
        )
    given = {name: known[name] for name in names[1:] if name in known}
    return (batch if names[:1] == ["batch"] else batch["image"],), {**given, **told}


def _is_required(parameter: inspect.Parameter) -> bool:
    several = parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return parameter.default is inspect.Parameter.empty and not several


def init_variables(model: Model, key: Array, example: Mapping[str, Any]) -> dict[str, Any]:
    """The initial variables of a model, by collection, from a batch of one example."""
    batch = Examples({name: jnp.asarray(value) for name, value in example.items()})

    def init(key: Array) -> dict[str, Any]:
        if isinstance(model, LatentModel):
            # `draw`, because `__call__` does not use the prior. The latents drawn do not affect the variables.
            return dict(model.init(key, batch, jax.random.split(key, 1), 1, method="draw"))
        arguments, named = call_arguments(model, batch, jax.random.fold_in(key, 0), train=False)
        return dict(model.init(key, *arguments, **named))

    variables: dict[str, Any] = with_joint_draws(init)(key)
    return variables


def reconstruction(output: Any, images: Array) -> Array | None:
    """The reconstructed intensities [B, H, W, C] of a model's output: its `x_hat` or the output itself; else None."""
    found = output.get("x_hat") if isinstance(output, Mapping) else getattr(output, "x_hat", output)
    return found if isinstance(found, jax.Array) and found.shape == images.shape else None


@float32_products
def reconstruct(model: Model, variables: Params, batch: Batch, keys: Array) -> Array | None:
    """Encode and decode a batch's images [B, H, W, C] in [0, 1]: intensities, or None if the model returns none.

    A VAE's latents are drawn with `keys` [B], or with a single key, as in training.
    """
    arguments, named = call_arguments(model, batch, keys, train=False)
    stream = keys if keys.ndim == 0 else keys[0]
    return reconstruction(model.apply(variables, *arguments, **named, rngs={"params": stream}), batch["image"])


@float32_products
def sample(model: Model, variables: Params, key: Array, count: int, batch: Batch | None = None) -> Array:
    """Draw latents from the prior and decode them to mean intensities in [0, 1], [count, H, W, C].

    A user-defined module needs a method ``sample(count)`` that returns such images. It draws from a random stream.
    """
    if isinstance(model, LatentModel):
        latent: Any = model.apply(variables, key, count, batch, method="sample_latent")
        logits: Any = model.apply(variables, latent, **label_of(model, batch), method="decode")
        intensities: Array = nn.sigmoid(logits)
        return intensities
    drawn: Any = model.apply(variables, count, method="sample", rngs={"params": key})
    return jnp.asarray(drawn)


def class_rows(count: int, classes: int) -> NDArray[np.int32]:
    """Labels [count] for pictures with 8 images a row: a row of each class in turn, and from the first again."""
    return (np.arange(count) // 8 % classes).astype(np.int32)


def can_sample(model: Model) -> bool:
    """Whether `sample` can draw from the model."""
    return isinstance(model, LatentModel) or (not isinstance(model, AutoEncoder) and hasattr(model, "sample"))


class Start(NamedTuple):
    """What first parameters are made from: intensities in [0, 1]; None where nothing is."""

    mean: Array | NDArray[np.float32] | None = None
    """[H, W, C]: the mean training image, for the decoder's last bias."""
    images: Array | NDArray[np.float32] | None = None
    """[K, H, W, C]: training images, for the prior; see `Prior.from_images`."""


def started(params: Params, model: Model, start: Start) -> Params:
    """A copy of `params` in which what starts from the training images does so."""
    if start.images is not None and isinstance(model, LatentModel):
        inner = params["params"]
        params = {"params": {**inner, "p_z": model.prior.from_images(inner["p_z"], jnp.asarray(start.images))}}
    if start.mean is not None and isinstance(model, LatentModel | AutoEncoder):
        params = with_output_bias(params, model, jnp.asarray(start.mean))
    return params


def with_output_bias(params: Params, model: Model, mean: Array) -> Params:
    """A copy of `params` with the decoder's last bias set, so that an untrained model is as bright as the data.

    As in the code of Burda et al. (arXiv 1509.00519), the bias is the logit of `mean` [H, W, C], clipped to
    [.001, .999]. A convolution has one bias per channel: the logit of the channel's mean. With a Gaussian likelihood,
    the bias is the mean itself.
    """
    params = jax.tree.map(lambda a: a, params)  # The dictionaries are copied, the arrays shared.
    decoder = params["params"]["decoder"]
    if "out" in decoder:
        layer, values = decoder["out"], mean.mean(axis=(0, 1))
    else:
        mlp = decoder["mlp"]
        layer, values = mlp[max(mlp, key=lambda name: int(name.rpartition("_")[2]))], mean
    likelihood = model.likelihood if isinstance(model, LatentModel) else Bernoulli()
    first = likelihood.first_bias(values)
    bias = layer["bias"]
    # Scales, if there are any, follow the means along the channel axis. Their biases stay unchanged.
    parts = bias.size // first.size
    rest = bias.reshape(*first.shape[:-1], parts * first.shape[-1])[..., first.shape[-1] :]
    layer["bias"] = jnp.concatenate([first, rest], axis=-1).reshape(bias.shape).astype(bias.dtype)
    return params
