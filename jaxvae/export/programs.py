"""The encoder and the decoder as StableHLO: programs that JAX runs on any device, without this package."""

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import export

from jaxvae.errors import InputError
from jaxvae.export.functions import functions_of, own_code
from jaxvae.trained import TrainedRun

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
    model = functions_of(run, "stablehlo")
    with own_code(run, "stablehlo"):
        files = {
            "encode.stablehlo": _exported(model.encode, model.images, *model.labels),
            "decode.stablehlo": _exported(model.decode, model.latents, *model.labels),
        }
    several = len(model.encoded) > 1
    words = {
        "encoded": "the mean and the standard deviation [N, L]" if several else f"the {model.encoded[0]} [N, L]",
        "labels": "\nBoth take the labels, int32 [N], as a second argument." if model.labels else "",
    }
    return {**files, "README.txt": README.format(**words).encode()}


def _exported(function: Callable[..., Any], *forms: jax.ShapeDtypeStruct) -> bytes:
    return bytes(export.export(jax.jit(function), platforms=PLATFORMS)(*forms).serialize())
