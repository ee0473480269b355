"""The encoder and the decoder of a trained model as functions of arrays, which the formats of programs write down."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import export

from jaxvae.errors import InputError, one_line
from jaxvae.models.autoencoder import AutoEncoder
from jaxvae.models.layers import float32_products
from jaxvae.models.quantized import QuantizedVAE
from jaxvae.models.vae import LatentModel
from jaxvae.trained import TrainedRun
from jaxvae.typing import Array


class Functions(NamedTuple):
    """The encoder and the decoder, and the forms of what they take; N, the number of images, is symbolic.

    Attributes:
      encode: intensities [N, H, W, C] in [0, 1], and labels [N] if there are any, to what the model's `encode` returns.
      decode: latents [N, L], and labels, to intensities [N, H, W, C].
      images: the form of the images.
      latents: the form of the latents.
      labels: the form of the labels, int32; empty: the model reads none.
      encoded: the names of what `encode` returns, such as "mean" and "std".
    """

    encode: Callable[..., Any]
    decode: Callable[..., Array]
    images: jax.ShapeDtypeStruct
    latents: jax.ShapeDtypeStruct
    labels: tuple[jax.ShapeDtypeStruct, ...]
    encoded: tuple[str, ...]


def functions_of(run: TrainedRun, form: str) -> Functions:
    """The functions of a run's model.

    Args:
      run: the model.
      form: the value of --format, for messages.

    Raises:
      InputError: the model has no methods `encode` and `decode`.
    """
    for method in ("encode", "decode"):
        if not hasattr(run.model, method):
            raise InputError(f"--format {form}: the model {type(run.model).__name__} has no method {method}")
    own = not isinstance(run.model, LatentModel | AutoEncoder)

    def told(label: tuple[Array, ...]) -> dict[str, Any]:
        return {"label": label[0]} if label and isinstance(run.model, LatentModel) and run.model.classes else {}

    @float32_products
    def encode(x: Array, *label: Array) -> Any:
        return run.model.apply(run.variables, x, **told(label), method="encode")

    @float32_products
    def decode(z: Array, *label: Array) -> Array:
        decoded: Any = run.model.apply(run.variables, z, **told(label), method="decode")
        return decoded if own else nn.sigmoid(decoded)

    (batch,) = export.symbolic_shape("N")
    images = jax.ShapeDtypeStruct((batch, *run.image_shape), jnp.float32)
    labels = (jax.ShapeDtypeStruct((batch,), jnp.int32),) if run.config.reads_labels else ()
    with own_code(run, form):
        found = jax.tree.leaves(jax.eval_shape(encode, images, *labels))
    latents = jax.ShapeDtypeStruct(found[0].shape, jnp.float32)
    names = tuple(f"encoded_{place}" for place in range(len(found)))
    if not own:
        one = ("latent",) if isinstance(run.model, QuantizedVAE) else ("code",)
        names = ("mean", "std") if len(found) == 2 else one
    return Functions(encode, decode, images, latents, labels, names)


@contextmanager
def own_code(run: TrainedRun, form: str) -> Iterator[None]:
    """Where a model is traced. One of the user's own may do anything: any error becomes an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if run.config.model is None:
            raise
        why = one_line(str(error).split("\n")[0])[:200]
        raise InputError(
            f"--format {form}: encode and decode must work without random numbers and for any number of images "
            f"(x.shape[0], not len(x)): {why}"
        ) from error
