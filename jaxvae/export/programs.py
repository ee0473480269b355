"""The encoder and the decoder as StableHLO: programs that JAX runs on any device, without this package."""

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import export

from jaxvae.errors import InputError, one_line
from jaxvae.models.autoencoder import AutoEncoder
from jaxvae.models.layers import float32_products
from jaxvae.models.vae import LatentModel
from jaxvae.trained import TrainedRun
from jaxvae.typing import Array

PLATFORMS = ("cpu", "cuda", "tpu")

README = """Programs of a model that jaxvae trained, as StableHLO with the weights inside. They need JAX and the
package flatbuffers:

    import jax
    from pathlib import Path

    decode = jax.export.deserialize(bytearray(Path("decode.stablehlo").read_bytes()))
    images = decode.call(latents)  # float32 [N, L] to intensities [N, H, W, C] in [0, 1], for any N

encode.stablehlo takes intensities [N, H, W, C] and returns {encoded}.{labels}
They run on CPUs, NVIDIA's GPUs and TPUs.
"""


def programs_of(run: TrainedRun) -> Mapping[str, bytes]:
    """What `README` describes: the files of a folder, by name.

    Raises:
      InputError: the model has no methods `encode` and `decode`, or the package flatbuffers is not installed.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise InputError("--format stablehlo: needs the package flatbuffers: pip install 'jaxvae[stablehlo]'")
    for method in ("encode", "decode"):
        if not hasattr(run.model, method):
            raise InputError(f"--format stablehlo: the model {type(run.model).__name__} has no method {method}")
    (batch,) = export.symbolic_shape("N")
    images = jax.ShapeDtypeStruct((batch, *run.image_shape), jnp.float32)
    labels = [jax.ShapeDtypeStruct((batch,), jnp.int32)] if run.config.reads_labels else []

    @float32_products
    def encode(x: Array, *label: Array) -> Any:
        return run.model.apply(run.variables, x, **_told(run, label), method="encode")

    @float32_products
    def decode(z: Array, *label: Array) -> Array:
        decoded: Any = run.model.apply(run.variables, z, **_told(run, label), method="decode")
        return nn.sigmoid(decoded) if isinstance(run.model, LatentModel | AutoEncoder) else decoded

    try:
        encoded: Any = jax.eval_shape(encode, images, *labels)
        latents = jax.ShapeDtypeStruct(jax.tree.leaves(encoded)[0].shape, jnp.float32)
        files = {
            "encode.stablehlo": _exported(encode, images, *labels),
            "decode.stablehlo": _exported(decode, latents, *labels),
        }
    except Exception as error:
        if run.config.model is None:
            raise
        # The user's model may do anything.
        raise InputError(
            "--format stablehlo: encode and decode must work without random numbers and for any number of images "
            f"(x.shape[0], not len(x)): {_why(error)}"
        ) from error
    words = {
        "encoded": "the mean and the standard deviation [N, L]" if isinstance(encoded, tuple) else "the code [N, L]",
        "labels": "\nBoth take the labels, int32 [N], as a second argument." if labels else "",
    }
    return {**files, "README.txt": README.format(**words).encode()}


def _told(run: TrainedRun, label: tuple[Array, ...]) -> dict[str, Any]:
    return {"label": label[0]} if label and isinstance(run.model, LatentModel) and run.model.classes else {}


def _exported(function: Callable[..., Any], *forms: jax.ShapeDtypeStruct) -> bytes:
    return bytes(export.export(jax.jit(function), platforms=PLATFORMS)(*forms).serialize())


def _why(error: Exception) -> str:
    return one_line(str(error).split("\n")[0])[:200]
