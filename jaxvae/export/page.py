"""A web page with sliders for the latents of a model: one file, which any browser opens, from a disk, too.

The page holds the decoder's weights in half precision, and computes the decoder in JavaScript from the layers that
`jaxvae.protocols.Network.torch_decoder` names. It loads nothing.
"""

import ast
import base64
import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from jaxvae.config import describe
from jaxvae.errors import InputError, one_line
from jaxvae.models.priors import StandardNormal
from jaxvae.models.torch_layers import TorchArray, TorchLayer
from jaxvae.models.vae import VAE
from jaxvae.trained import TrainedRun
from jaxvae.walks import order

MOST_PARAMETERS = 5_000_000  # Of the decoder: more would make a page of over 13 MB, and slow sliders.


def page_of(run: TrainedRun) -> str:
    """The page of a run's model, as HTML.

    Raises:
      InputError: the model is the user's own, or no VAE of one stochastic layer; its prior is not N(0, I); its network
        has no form in PyTorch; or its decoder is too large.
    """
    model = run.model
    if run.config.model is not None:
        raise InputError(f"--format html takes built-in VAEs, not {run.config.model}")
    if not isinstance(model, VAE) or not isinstance(model.prior, StandardNormal):
        raise InputError("--format html needs a VAE with one layer of latents and --prior normal")
    height, width, channels = run.image_shape
    outputs, latents = model.likelihood.outputs, model.latent_size
    taken = latents * (2 if model.classes else 1)  # With labels, the decoder gets as many numbers again.
    layers = model.network.torch_decoder((height, width, channels * outputs), taken)
    if layers is None:
        raise InputError(f"--format html: the network {type(model.network).__name__} has no form in PyTorch")
    count = sum(int(np.prod(array.here)) for layer in layers for array in layer.arrays)
    if count > MOST_PARAMETERS:
        raise InputError(f"--format html: the decoder has {count:,} parameters; a page takes {MOST_PARAMETERS:,}")
    params = flatten_dict(run.variables["params"])
    facts: dict[str, Any] = {
        "shape": run.image_shape,
        "latents": latents,
        "outputs": outputs,
        # Whether the location of a pixel is a logit, or the mean intensity itself.
        "sigmoid": bool(model.likelihood.logits(jnp.float32(0.3)) == jnp.float32(0.3)),
        "order": order(run).tolist(),
        "layers": [_layer(layer, params) for layer in layers],
    }
    if model.classes:
        names = run.record.get("classes") or [str(number) for number in range(model.classes)]
        facts |= {"labels": _packed(params["label_latents", "table"]), "classes": names}
    parts = {
        "TITLE": html.escape(one_line(f"A VAE trained on {run.dataset}")),
        "ABOUT": html.escape(one_line(describe(run.config))),
        "DECODER": _file("decoder.js"),
        # No text of the model may end the script that holds it.
        "MODEL": json.dumps(facts).replace("<", "\\u003c"),
    }
    return re.sub("|".join(parts), lambda found: parts[found[0]], _file("page.html"))


def _file(name: str) -> str:
    return (resources.files("jaxvae.export") / name).read_text(encoding="utf-8")


def _packed(values: Any) -> str:
    return base64.b64encode(np.asarray(values).astype("<f2").tobytes()).decode()


def _layer(layer: TorchLayer, params: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """A layer as the page's JavaScript takes it."""
    weights = {array.name: _values(array, params) for array in layer.arrays}
    [statement] = ast.parse(layer.code).body
    assert isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
    return _call(statement.value, weights)


# What decoder.js can compute: the arguments of a layer that may not be otherwise, by its name.
_KNOWN: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("Linear", "Unflatten", "ZeroPad2d", "GroupNorm", "GLU", "ReLU", "Tanh", "ELU", "SiLU"), ("",)),
    "GELU": ("approximate='tanh'",),
    "Conv2d": ("1", "3, padding=1"),
    "ConvTranspose2d": ("4, stride=2, padding=1",),
}


def _call(call: ast.Call, weights: Mapping[str, str]) -> dict[str, Any]:
    kind = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if kind == "Residual":
        return {"kind": kind, "layers": _inner(call.args, weights)}
    # The first two arguments of a convolution are its channels.
    fixed = [ast.unparse(argument) for argument in call.args[2 if "Conv" in kind else len(call.args) :]]
    how = ", ".join([*fixed, *(f"{word.arg}={ast.unparse(word.value)}" for word in call.keywords)])
    if how not in _KNOWN.get(kind, ()):
        raise InputError(f"--format html: a page cannot compute the layer {ast.unparse(call)}")
    return {"kind": kind, "args": [ast.literal_eval(value) for value in call.args], **weights}


def _inner(calls: Sequence[ast.expr], weights: Mapping[str, str]) -> list[dict[str, Any]]:
    """The layers of a residual connection; their weights are called "0.weight" and so on."""
    found = []
    for place, call in enumerate(calls):
        assert isinstance(call, ast.Call)
        own = {name.removeprefix(f"{place}."): v for name, v in weights.items() if name.startswith(f"{place}.")}
        found.append(_call(call, own))
    return found


def _values(array: TorchArray, params: Mapping[tuple[str, ...], Any]) -> str:
    return _packed(array.to_torch(params["decoder", *array.path]))
