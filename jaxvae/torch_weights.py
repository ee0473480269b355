"""Move weights between PyTorch and jaxvae.

    python -m jaxvae.torch_weights export RUN_DIR weights.safetensors
    python -m jaxvae.torch_weights import weights.pt RUN_DIR --preset notes-vae

The PyTorch side is the state_dict of a module with `nn.Sequential` as `encoder` and `decoder`: ``encoder.0.weight``,
``encoder.0.bias``, ``encoder.2.weight`` ... ``decoder.4.bias``, as NumPy arrays. The network defines their layers
(`jaxvae.protocols.Network.torch_encoder`). Dense models take flattened images, in the order (H, W, C)
on both sides; with one channel, as in the notes, that is PyTorch's (C, H, W) too. All others take images [B, C, H, W].

Weights are only half of a model: `torch_code` says what PyTorch must compute with exported ones, and an imported
model uses a log-variance as PyTorch's modules do, without the bound of the head "linear".
"""

import dataclasses
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import tyro
from flax.traverse_util import flatten_dict, unflatten_dict
from numpy.typing import DTypeLike, NDArray

from jaxvae import cli, config_file, data, flags
from jaxvae import config as configs
from jaxvae.errors import InputError
from jaxvae.keys import purpose_key
from jaxvae.models.autoencoder import AutoEncoder
from jaxvae.models.build import Model, build_model
from jaxvae.models.likelihoods import Bernoulli, Gaussian, GaussianGlobal, GaussianPixel, Logistic
from jaxvae.models.networks import Mlp
from jaxvae.models.torch_layers import ACTIVATIONS, TorchArray, TorchLayer
from jaxvae.models.vae import VAE
from jaxvae.optimizer import build_optimizer
from jaxvae.options import words
from jaxvae.train.loop import with_absolute_paths
from jaxvae.train.step import TrainState, init_state
from jaxvae.typing import Params
from jaxvae.weight_files import StateDict, load_weights, save_weights

DESCRIPTION = "Move weights between a run directory and a file that PyTorch reads or wrote."

EXPECTED = "layers are named by their place in encoder and decoder, each an nn.Sequential, as import --help says"
_PARTS = ("encoder", "decoder")


# --- Names and shapes ---------------------------------------------------------------------------------------


def _layers(model: Model) -> dict[str, Sequence[TorchLayer]]:
    """The encoder and the decoder of a model in PyTorch. Raises `InputError` if they have no form there."""
    if not isinstance(model, AutoEncoder | VAE):
        raise InputError(f"{type(model).__name__} has no form in PyTorch: only models of one stochastic layer have one")
    height, width, channels = model.image_shape
    is_vae = isinstance(model, VAE)
    outputs = model.likelihood.outputs if is_vae else 1
    encoder = model.network.torch_encoder(model.image_shape, (2 if is_vae else 1) * model.latent_size)
    decoder = model.network.torch_decoder((height, width, channels * outputs), model.latent_size)
    if encoder is None or decoder is None:
        raise InputError(f"the network {type(model.network).__name__} has no form in PyTorch")
    return {"encoder": encoder, "decoder": decoder}


class _Place(NamedTuple):
    """A name of the state_dict: the path of its parameter, its layout there (None: as here), and its shape there."""

    path: tuple[str, ...]
    array: TorchArray | None
    shape: tuple[int, ...]


def _places(model: Model, shapes: Params) -> dict[str, _Place]:
    """Every name of the state_dict of a model with parameters of these shapes, in the order of the layers."""
    found = {
        f"{part}.{place}.{array.name}": _Place((part, *array.path), array, array.there)
        for part, layers in _layers(model).items()
        for place, layer in enumerate(layers)
        for array in layer.arrays
    }
    # Parameters of the likelihood and the prior.
    left_out = (*_PARTS, *getattr(model, "training_only", ()))
    others = {path: leaf for path, leaf in flatten_dict(shapes["params"]).items() if path[0] not in left_out}
    return found | {".".join(path): _Place(path, None, leaf.shape) for path, leaf in others.items()}


def torch_from_params(params: Params, model: Model) -> StateDict:
    """The parameters of an `AutoEncoder` or a `VAE` as a state_dict: names, shapes and order of axes are PyTorch's.

    Values and dtypes are kept. `torch_code` says what PyTorch must compute with them.

    Raises:
      InputError: the model has no form in PyTorch.
    """
    leaves = flatten_dict(params["params"])
    return {
        name: np.asarray(leaves[path]) if array is None else array.to_torch(leaves[path])
        for name, (path, array, _) in _places(model, params).items()
    }


def params_from_torch(state_dict: Mapping[str, NDArray[Any]], model: Model, dtype: DTypeLike = np.float32) -> Params:
    """A state_dict as the parameters of `model`.

    The weights do not say what is computed with them: `model` must have the head and the activation of the
    PyTorch module. If that gives a log-variance, the right `VAE.head` is most often "logvar".

    Args:
      state_dict: floating-point arrays by name, shaped as PyTorch's.
      model: the model of the parameters; it defines their names and shapes.
      dtype: of the result; jaxvae trains float32 parameters.

    Returns:
      What ``model.init`` returns, filled with the values of `state_dict`.

    Raises:
      InputError: the model has no form in PyTorch, a name is missing or unexpected, a shape is wrong, or a value is not
        floating-point or not finite (in `dtype`).
    """
    if only := getattr(model, "training_only", ()):
        raise InputError(f"weights from PyTorch have no {', '.join(only)}, which this model needs to train")
    places = _places(model, _parameter_shapes(model))
    if missing := [name for name in places if name not in state_dict]:
        raise InputError(f"weights lack {', '.join(missing)}: {EXPECTED}")
    if unexpected := [name for name in state_dict if name not in places]:
        raise InputError(f"weights hold {', '.join(unexpected)}, which the model does not have")
    params: dict[tuple[str, ...], Any] = {}
    for name, (path, array, shape) in places.items():
        values = state_dict[name]
        if values.shape != shape:
            raise InputError(f"{name} has shape {list(values.shape)}; the model needs {list(shape)}")
        if not jax.numpy.issubdtype(values.dtype, np.floating):
            raise InputError(f"{name} is {values.dtype}, not floating-point")
        with np.errstate(over="ignore"):
            values = values.astype(dtype)
        if not np.isfinite(values).all():
            raise InputError(f"{name} holds NaN or infinite values")
        params[path] = jax.numpy.asarray(values if array is None else array.from_torch(values))
    return {"params": unflatten_dict(params)}


def _parameter_shapes(model: Model) -> Params:
    optimizer = build_optimizer(configs.Config())
    return jax.eval_shape(lambda key: init_state(model, optimizer, key), purpose_key(0, "init")).params


# --- What is computed ---------------------------------------------------------------------------------------

_POSTERIORS = {
    "relu": "mean, std = encoder(x).relu().chunk(2, dim=-1)",
    "linear": "mean, raw = encoder(x).chunk(2, dim=-1); logvar = 10 * (raw / 10).tanh(); std = (0.5 * logvar).exp()",
    "logvar": "mean, logvar = encoder(x).chunk(2, dim=-1); std = (0.5 * logvar).exp()",
    "exp": "mean, log_std = encoder(x).chunk(2, dim=-1); std = log_std.exp()",
}
_SPLIT_FLAT = "location, raw = (a.flatten(1) for a in decoder(z).unflatten(-1, (-1, 2 * channels)).chunk(2, dim=-1))"
_SPLIT = "location, raw = decoder(z).chunk(2, dim=1)"
_PIXELS: Mapping[type, str] = {
    Bernoulli: "x_hat = decoder(z).sigmoid()",
    Gaussian: "x_hat = decoder(z)",
    GaussianGlobal: "x_hat = decoder(z)",
    GaussianPixel: f"{_SPLIT}; x_hat = location; log_scale = 5 * (raw / 5).tanh() - 2",
    Logistic: f"{_SPLIT}; x_hat = location.sigmoid(); log_scale = 5 * (raw / 5).tanh() - 2",
}


def torch_code(model: Model) -> str:
    """What PyTorch must compute with the weights of a model, in Python.

    For a dense model: three lines. The first is the activation between the layers of `encoder` and `decoder`, each an
    ``nn.Sequential``. The second takes flattened images `x` [B, H W C] in [0, 1] to `mean` and `std` [B, L]; for an
    autoencoder, to its code `z`. The third takes `z` [B, L] to mean intensities `x_hat` [B, H W C] and, where the
    decoder gives it, the `log_scale` of every pixel's distribution, for images of `channels` channels. If the
    likelihood is the user's own, it takes `z` to what the decoder gives: `decoded`.

    For any other model: code that makes `encoder`, `decoder` and `model`, the module with the weights as state_dict;
    then, after an empty line and a comment, the last two lines, for images and intensities [B, C, H, W].

    Raises:
      InputError: the model has no form in PyTorch.
    """
    layers = _layers(model)
    assert isinstance(model, AutoEncoder | VAE)
    posterior = _POSTERIORS[model.head]
    if not isinstance(model, VAE):
        posterior = "z = encoder(x).relu()" if model.head == "relu" else "z = encoder(x)"
    likelihood = model.likelihood if isinstance(model, VAE) else Bernoulli()
    pixels = _PIXELS.get(type(likelihood), "decoded = decoder(z)")
    if isinstance(model.network, Mlp):
        activation = ACTIVATIONS[model.network.activation]
        return f"activation = {activation}\n{posterior}\n{pixels.replace(_SPLIT, _SPLIT_FLAT)}"
    definitions = dict.fromkeys(layer.definition for part in layers.values() for layer in part if layer.definition)
    parameters = (f"model.{name} = nn.Parameter(torch.zeros(()))" for name in likelihood.parameters())
    return "\n".join(
        [
            "import torch",
            "from torch import nn\n",
            *(f"\n{definition}\n" for definition in definitions),
            *(f"{name} = nn.Sequential(\n{_listed(part)})" for name, part in layers.items()),
            'model = nn.ModuleDict({"encoder": encoder, "decoder": decoder})',
            *parameters,
            "\n# x: images [B, C, H, W] in [0, 1]; z: latents [B, L].",
            posterior,
            pixels,
        ]
    )


def _listed(layers: Sequence[TorchLayer]) -> str:
    return "".join(f"    {layer.code},\n" for layer in layers)


# --- Run directories ----------------------------------------------------------------------------------------


def export_run(run_dir: Path, out: Path) -> tuple[StateDict, str]:
    """Write the newest weights of a run to `out`; return them, and what PyTorch must compute (`torch_code`).

    Raises:
      InputError: no run, an unreadable checkpoint, a model that has no form in PyTorch, or as in `save_weights`.
    """
    from jaxvae import trained

    run = trained.load_run(run_dir)
    _refuse_labels(run.config)
    try:
        state_dict, code = torch_from_params(run.variables, run.model), torch_code(run.model)
    except InputError as error:
        raise InputError(f"{run_dir}: {error}") from None
    save_weights(out, state_dict)
    return state_dict, code


def _refuse_labels(config: configs.Config) -> None:
    if config.reads_labels:
        raise InputError(f"a model with {config.labels_flag} has no form in PyTorch")


def without_bound(config: configs.Config) -> configs.Config:
    """`config` with the head "logvar" in place of "linear": a log-variance in PyTorch has no bound."""
    return dataclasses.replace(config, head="logvar") if config.head == "linear" else config


def import_run(
    weights: Path, run_dir: Path, config: configs.Config, image_shape: tuple[int, int, int] = (28, 28, 1)
) -> None:
    """Make a run directory from weights that PyTorch trained, for evaluation and generation.

    Its only checkpoint is at step 0. It cannot be resumed: it does not know its training images.

    Args:
      weights: a file as `load_weights` takes.
      run_dir: a directory to create.
      config: the model of the weights, and the dataset to evaluate it on.
      image_shape: (H, W, C).

    Raises:
      InputError: `run_dir` exists, or as in `load_weights` and `params_from_torch`.
    """
    from jaxvae.run.checkpoint import Checkpoints

    config = with_absolute_paths(config)
    _refuse_labels(config)
    if min(image_shape) < 1:
        raise InputError(f"--image-shape takes sizes of at least 1, not {list(image_shape)}")
    reading = data.reading_of(config)
    if reading.size not in (None, image_shape[:2]) or reading.channels not in (None, image_shape[2]):
        raise InputError(f"--image-shape {words(tuple(image_shape))} is not what --image-size and --channels give")
    model = build_model(config, image_shape)
    try:
        params = params_from_torch(load_weights(weights), model)
    except InputError as error:
        named = str(error).startswith(str(weights))
        raise error if named else InputError(f"{weights}: {error}") from None
    state = TrainState(
        jax.numpy.zeros((), jax.numpy.int32), params, build_optimizer(config, steps_per_epoch=1).init(params)
    )
    try:
        run_dir.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{run_dir} cannot be created: {error.strerror}") from None
    with Checkpoints(run_dir / "checkpoints") as checkpoints:
        checkpoints.save(state, {"image_shape": list(image_shape)})
    # Last, since this file makes the directory a run.
    (run_dir / "config.json").write_text(config_file.to_json(config), encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Export:
    """Write the newest weights of a run to a file that PyTorch reads, and print what it must compute with them."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """Directory of a run of jaxvae.train."""
    out: Annotated[Path, tyro.conf.Positional]
    """File to write: .safetensors or .npz."""


@dataclasses.dataclass(frozen=True)
class Import:
    """Make a run directory from weights that PyTorch trained, for jaxvae.evaluate and jaxvae.generate.

    The flags of jaxvae.train describe the model; those that say how to train have no effect here. The
    module's `encoder` and `decoder` must each be an nn.Sequential, since layers are named by their places. Dense
    models: Linear layers of the widths --hidden with an activation after each, so they are encoder.0, encoder.2, ...,
    decoder.0, decoder.2, ... Convolutional models (--architecture conv): for each of --hidden ZeroPad2d, Conv2d(..., 3,
    stride=2) and the activation, then Flatten and Linear; the decoder: Linear and Unflatten, then for each width the
    activation, ConvTranspose2d(..., 4, stride=2, padding=1) and ZeroPad2d, which cuts to size. The export of a run
    prints its modules, residual ones (--architecture resnet) too. Layers with other names (fc1, fc21, fc22) must be
    renamed, and the two that give mean and log-variance joined into one, the mean's weights and biases first.

    The weights do not say what is computed with them. The import assumes that the module computes what the preset
    does, except for what --head, --activation and --likelihood change: vae: mean and log-variance (no bound), ReLU
    between layers; notes-vae: mean and standard deviation after a ReLU; notes-ae: the code after a ReLU; iwae: mean and
    the logarithm of the standard deviation, tanh between layers; and the sigmoid of the decoder's last layer. For
    weights that jaxvae exported from the preset vae, add --head linear: its log-variance has the bound that the
    exported code shows.
    """

    weights: Annotated[Path, tyro.conf.Positional]
    """A state_dict, named as above: .pt or .pth (needs PyTorch), .safetensors or .npz."""
    run_dir: Annotated[Path, tyro.conf.Positional]
    """Directory to create."""
    config: configs.Config
    image_shape: tuple[int, int, int] = (28, 28, 1)
    """Height, width and channels of the images."""


Arguments = Export | Import


def _parse_import(argv: Sequence[str], prog: str) -> Import:
    """Parse the command line of an import. Raises `InputError`."""
    known = flags.peek(argv)
    base = without_bound(configs.preset(known.preset or configs.Config.preset))
    base = flags.defaults(dataclasses.replace(base, dataset="mnist"), known)
    default = Import(tyro.MISSING, tyro.MISSING, base)
    return flags.parse(default, argv, prog=prog, description=inspect.getdoc(Import) or "")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code (see `jaxvae.cli`)."""
    args = list(sys.argv[1:] if argv is None else argv)
    cli.answer_version(args)
    prog, commands = "python -m jaxvae.torch_weights", ("export", "import")
    if not args or args[0] not in commands:
        usage = f"{prog} {{{','.join(commands)}}} ... (each with --help)"
        if args and args[0] in ("-h", "--help"):
            print(f"usage: {usage}\n\n{DESCRIPTION}")
            return cli.EXIT_OK
        raise InputError(f"usage: {usage}")
    command, *rest = args
    prog = f"{prog} {command}"
    if command == "export":
        asked = cli.parse(Export, rest, prog=prog, description=inspect.getdoc(Export) or "")
        written, code = export_run(asked.run_dir, asked.out)
        print(f"{len(written)} arrays -> {asked.out}\nIn PyTorch:\n{code}")
    else:
        given = _parse_import(rest, prog)
        import_run(given.weights, given.run_dir, given.config, given.image_shape)
        print(f"{given.weights} -> {given.run_dir}")
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
