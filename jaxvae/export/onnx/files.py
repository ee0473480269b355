"""The encoder and the decoder as ONNX files, for runtimes that know neither JAX nor this package."""

import dataclasses
import importlib.util
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxvae.config import describe
from jaxvae.errors import InputError
from jaxvae.export.functions import functions_of, own_code
from jaxvae.export.onnx.trace import model_of
from jaxvae.models.autoencoder import AutoEncoder
from jaxvae.models.vae import LatentModel
from jaxvae.trained import TrainedRun

_IMAGE = "Intensities in [0, 1], float32 [N, H, W, C] = [N, {}, {}, {}], for any N."
_ABOUT = {
    "label": "The class of each image, a whole number, int32 [N].",
    "latent": "What the decoder takes, float32 [N, L]: the encoder's first output, or a draw from the prior.",
    "mean": "The mean of the Gaussian posterior of the latents, float32 [N, L].",
    "std": "The standard deviation of the posterior, float32 [N, L].",
    "code": "The code of each image, float32 [N, L].",
}


def onnx_files_of(run: TrainedRun) -> Mapping[str, bytes]:
    """encoder.onnx and decoder.onnx.

    They compute in float32, also after ``--compute-dtype bfloat16``. Their metadata say what each input and output
    means.

    Raises:
      InputError: the package onnx is not installed; the model has no methods `encode` and `decode`, or computes
        something that `jaxvae.export.onnx.operations` does not know.
    """
    if importlib.util.find_spec("onnx") is None:
        raise InputError("--format onnx: needs the package onnx: pip install 'jaxvae[onnx]'")
    if isinstance(run.model, LatentModel | AutoEncoder):
        run = dataclasses.replace(run, model=run.model.clone(dtype=jnp.float32))
    model = functions_of(run, "onnx")
    about = {**_ABOUT, "image": _IMAGE.format(*run.image_shape)}
    title = {"model": describe(run.config), "trained_on": run.dataset, "steps": str(run.step)}
    labels = dict(zip(["label"], model.labels, strict=False))

    def file(function: str, inputs: Mapping[str, jax.ShapeDtypeStruct], outputs: tuple[str, ...]) -> bytes:
        said = {name: about[name] for name in (*inputs, *outputs) if name in about}
        with own_code(run, "onnx"):
            return model_of(getattr(model, function), inputs, outputs, {**title, **said})

    return {
        "encoder.onnx": file("encode", {"image": model.images, **labels}, model.encoded),
        "decoder.onnx": file("decode", {"latent": model.latents, **labels}, ("image",)),
    }
