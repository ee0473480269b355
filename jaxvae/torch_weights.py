"""Weights travel between PyTorch and jaxvae.

    python -m jaxvae.torch_weights export RUN_DIR weights.safetensors
    python -m jaxvae.torch_weights import weights.pt RUN_DIR --preset notes-vae

The PyTorch side is the state_dict of a module whose `encoder` and `decoder` are `nn.Sequential` of
`Linear` layers, an activation after each: ``encoder.0.weight``, ``encoder.0.bias``,
``encoder.2.weight`` ... ``decoder.4.bias``, as NumPy arrays. A flattened image is in the order
(H, W, C) on both sides; with one channel, as in the notes, that is PyTorch's (C, H, W) too.

Weights are half of a model: `torch_code` says what PyTorch must compute with exported ones, and an imported
model takes a log-variance as PyTorch's modules do, without the bound that the head "linear" has.
"""

import dataclasses
import inspect
import os.path
import pickle
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import jax
import numpy as np
import tyro
from flax.traverse_util import flatten_dict, unflatten_dict
from numpy.typing import DTypeLike, NDArray

from jaxvae import cli, config_file
from jaxvae import config as configs
from jaxvae.data.sources import DATASETS
from jaxvae.errors import InputError
from jaxvae.keys import purpose_key
from jaxvae.models.autoencoder import AutoEncoder
from jaxvae.models.build import build_model
from jaxvae.models.vae import VAE
from jaxvae.optimizer import build_optimizer
from jaxvae.train.step import TrainState, init_state
from jaxvae.typing import Params

StateDict: TypeAlias = dict[str, NDArray[Any]]

DESCRIPTION = "Move weights between a run directory and a file that PyTorch reads or wrote."

EXPECTED = "layers are named by their place in encoder and decoder, each an nn.Sequential, as import --help says"


# --- Names and shapes ---------------------------------------------------------------------------------------


def _paths(params: Params) -> dict[str, tuple[str, ...]]:
    """The state_dict name of every parameter: "encoder.2.weight" for ("encoder", "mlp", "dense_1", "kernel")."""
    layers = {
        f"{part}.{2 * i}.{kind}": (part, "mlp", f"dense_{i}", leaf)
        for part in ("encoder", "decoder")
        for i in range(len(params["params"][part]["mlp"]))
        for kind, leaf in (("weight", "kernel"), ("bias", "bias"))
    }
    return layers | {name: (name,) for name in params["params"] if name not in ("encoder", "decoder")}


def torch_from_params(params: Params) -> StateDict:
    """The parameters of an `AutoEncoder` or a `VAE` as a state_dict: weights [out, in], biases [out].

    Values and dtypes are kept. What PyTorch must compute with them is `torch_code`'s to say.
    """
    leaves = flatten_dict(params["params"])
    return {name: np.asarray(leaves[path]).T for name, path in _paths(params).items()}


def params_from_torch(
    state_dict: Mapping[str, NDArray[Any]], model: AutoEncoder | VAE, dtype: DTypeLike = np.float32
) -> Params:
    """A state_dict as the parameters of `model`.

    The weights do not say what is computed with them: `model` must have the head and the activation that the
    PyTorch module has. A log-variance is most often `VAE.head` "logvar".

    Args:
      state_dict: floating-point arrays, weights [out, in], biases [out], by name.
      model: whose parameters they are to be; it says which names and shapes are right.
      dtype: of the result; jaxvae trains float32 parameters.

    Returns:
      What ``model.init`` returns, filled with the values of `state_dict`.

    Raises:
      InputError: a name is missing or unexpected, a shape is wrong, or a value is not
        floating-point or not finite (in `dtype`).
    """
    shapes = _parameter_shapes(model)
    paths, leaves = _paths(shapes), flatten_dict(shapes["params"])
    if missing := [name for name in paths if name not in state_dict]:
        raise InputError(f"weights lack {', '.join(missing)}: {EXPECTED}")
    if unexpected := [name for name in state_dict if name not in paths]:
        raise InputError(f"weights hold {', '.join(unexpected)}, which the model does not have")
    params: dict[tuple[str, ...], Any] = {}
    for name, path in paths.items():
        values, shape = state_dict[name], leaves[path].shape[::-1]
        if values.shape != shape:
            raise InputError(f"{name} has shape {list(values.shape)}; the model needs {list(shape)}")
        if not jax.numpy.issubdtype(values.dtype, np.floating):
            raise InputError(f"{name} is {values.dtype}, not floating-point")
        with np.errstate(over="ignore"):
            values = values.astype(dtype)
        if not np.isfinite(values).all():
            raise InputError(f"{name} holds NaN or infinite values")
        params[path] = jax.numpy.asarray(values.T)
    return {"params": unflatten_dict(params)}


def _parameter_shapes(model: AutoEncoder | VAE) -> Params:
    optimizer = build_optimizer(configs.Config())
    return jax.eval_shape(lambda key: init_state(model, optimizer, key), purpose_key(0, "init")).params


# --- What is computed ---------------------------------------------------------------------------------------

# In PyTorch's words, each as `jaxvae.models.models` computes it.
_ACTIVATIONS = {
    "relu": "nn.ReLU()",
    "tanh": "nn.Tanh()",
    "elu": "nn.ELU()",
    "gelu": 'nn.GELU(approximate="tanh")',
    "silu": "nn.SiLU()",
}
_POSTERIORS = {
    "relu": "mean, std = encoder(x).relu().chunk(2, dim=-1)",
    "linear": "mean, raw = encoder(x).chunk(2, dim=-1); logvar = 10 * (raw / 10).tanh(); std = (0.5 * logvar).exp()",
    "logvar": "mean, logvar = encoder(x).chunk(2, dim=-1); std = (0.5 * logvar).exp()",
    "exp": "mean, log_std = encoder(x).chunk(2, dim=-1); std = log_std.exp()",
}
_SPLIT = "location, raw = (a.flatten(1) for a in decoder(z).unflatten(-1, (-1, 2 * channels)).chunk(2, dim=-1))"
_PIXELS = {
    "bernoulli": "x_hat = decoder(z).sigmoid()",
    "gaussian": "x_hat = decoder(z)",
    "gaussian-global": "x_hat = decoder(z)",
    "gaussian-pixel": f"{_SPLIT}; x_hat = location; log_scale = 5 * (raw / 5).tanh() - 2",
    "logistic": f"{_SPLIT}; x_hat = location.sigmoid(); log_scale = 5 * (raw / 5).tanh() - 2",
}


def torch_code(config: configs.Config) -> str:
    """What PyTorch must compute with the weights of a run of `config`: three lines of Python.

    The first is the activation between the layers of `encoder` and `decoder`, each an ``nn.Sequential``. The
    second takes flattened images `x` [B, H W C] in [0, 1] to `mean` and `std` [B, L]; of an autoencoder, to its
    code `z`. The third takes `z` [B, L] to mean intensities `x_hat` [B, H W C] and, where the decoder gives
    it, the `log_scale` of every pixel's distribution, for images of so many `channels`.
    """
    posterior = _POSTERIORS[config.head]
    if not config.is_vae:
        posterior = "z = encoder(x).relu()" if config.head == "relu" else "z = encoder(x)"
    return f"activation = {_ACTIVATIONS[config.activation]}\n{posterior}\n{_PIXELS[config.likelihood]}"


# --- Files --------------------------------------------------------------------------------------------------


def load_weights(path: Path) -> StateDict:
    """The state_dict in a file; nothing in the file is executed.

    Args:
      path: what ``torch.save(model.state_dict(), path)`` wrote (.pt or .pth, which needs torch
        installed), a .safetensors file, or a .npz file.

    Raises:
      InputError: another suffix, a file that cannot be read or holds anything but arrays by name,
        or torch is needed and not installed.
    """
    readers = {".pt": _load_torch, ".pth": _load_torch, ".safetensors": _load_safetensors, ".npz": _load_npz}
    if path.suffix not in readers:
        raise InputError(f"{path}: weights end in {', '.join(readers)}")
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return readers[path.suffix](path)
    except InputError:
        raise
    except Exception as error:  # All three libraries raise many kinds for a damaged file.
        # What PyTorch says of a pickle that it refuses is how to run it all the same.
        refused = isinstance(error, pickle.UnpicklingError)
        reason = "it is damaged, or holds more than tensors" if refused else str(error).split("\n")[0]
        raise InputError(f"{path} is no {path.suffix} file of arrays by name: {reason}") from None


def _load_torch(path: Path) -> StateDict:
    try:
        import torch
    except ImportError:
        raise InputError(f"{path} needs PyTorch to be read: pip install torch, or save .safetensors") from None
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in loaded.items()
    ):
        raise InputError(f"{path} is no state_dict of tensors; save model.state_dict()")
    # NumPy has no bfloat16; float32 holds its values exactly.
    return {name: (value.float() if value.dtype == torch.bfloat16 else value).numpy() for name, value in loaded.items()}


def _load_safetensors(path: Path) -> StateDict:
    import safetensors.numpy

    loaded: StateDict = safetensors.numpy.load_file(path)
    return loaded


def _load_npz(path: Path) -> StateDict:
    # Given a path, NumPy would leave a damaged file open.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return dict(archive)


def save_weights(path: Path, state_dict: Mapping[str, NDArray[Any]]) -> None:
    """Write a state_dict to a .safetensors or .npz file.

    Raises:
      InputError: another suffix, or the file cannot be written.
    """
    # Transposed views would be written in memory order, under the wrong shape.
    arrays = {name: np.ascontiguousarray(values) for name, values in state_dict.items()}
    try:
        if path.suffix == ".safetensors":
            import safetensors.numpy

            path.write_bytes(safetensors.numpy.save(arrays))
        elif path.suffix == ".npz":
            np.savez(path, **arrays)  # type: ignore[arg-type]
        else:
            raise InputError(f"{path}: weights are written as .safetensors or .npz")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None


# --- Run directories ----------------------------------------------------------------------------------------


def export_run(run_dir: Path, out: Path) -> StateDict:
    """Write the newest weights of a run to `out`, and return them.

    Raises:
      InputError: no run, an unreadable checkpoint, or as `save_weights`.
    """
    from jaxvae import trained

    run = trained.load_run(run_dir)
    if run.config.architecture != "mlp" or run.config.model is not None:
        raise InputError(f"{run_dir}: only dense models of one stochastic layer have a form in PyTorch")
    state_dict = torch_from_params(run.variables)
    save_weights(out, state_dict)
    return state_dict


def import_run(
    weights: Path,
    run_dir: Path,
    preset: str = configs.Config.preset,
    dataset: str = "mnist",
    data_dir: str | None = None,
    image_shape: tuple[int, int, int] = (28, 28, 1),
) -> None:
    """Make a run directory, to evaluate and to generate from, of weights that PyTorch trained.

    Its one checkpoint is at step 0. It cannot be resumed: it does not know its training images.

    Args:
      weights: as `load_weights` takes.
      run_dir: a directory to create.
      preset: which model the weights are of. Its head "linear" becomes "logvar", without a bound.
      dataset, data_dir: what it is evaluated on.
      image_shape: (H, W, C).

    Raises:
      InputError: `run_dir` exists, or as `load_weights` and `params_from_torch`.
    """
    from jaxvae.run.checkpoint import Checkpoints

    chosen = configs.preset(preset)
    config = dataclasses.replace(
        chosen,
        head="logvar" if chosen.head == "linear" else chosen.head,  # A log-variance of PyTorch's has no bound.
        dataset=dataset if dataset in DATASETS else os.path.abspath(dataset),
        data_dir=os.path.abspath(data_dir) if data_dir else None,
    )
    if min(image_shape) < 1:
        raise InputError(f"--image-shape takes sizes of at least 1, not {list(image_shape)}")
    model = build_model(config, image_shape)
    if not isinstance(model, AutoEncoder | VAE):
        raise InputError(f"--preset {preset}: only dense models of one stochastic layer have a form in PyTorch")
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
    # Last, since it is what makes the directory a run.
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
    """Make a run directory, for jaxvae.evaluate and jaxvae.generate, of weights that PyTorch trained.

    The module's `encoder` and `decoder` must each be an nn.Sequential of Linear layers with the preset's widths
    and an activation after each, so that layers are named encoder.0, encoder.2, ... decoder.4. Layers with other
    names (fc1, fc21, fc22) must be renamed, and the two that give mean and log-variance joined to one, the
    mean's weights and biases first. The weights do not say what is computed with them. The import
    assumes that the module computes what the preset does: vae: mean and log-variance (no bound), ReLU between
    layers; notes-vae: mean and standard deviation after a ReLU; notes-ae: the code after a ReLU; iwae: mean and the
    logarithm of the standard deviation, tanh between layers; and the sigmoid of the decoder's last layer.
    """

    weights: Annotated[Path, tyro.conf.Positional]
    """A state_dict, named as above: .pt or .pth (needs PyTorch), .safetensors or .npz."""
    run_dir: Annotated[Path, tyro.conf.Positional]
    """Directory to create."""
    preset: str = configs.Config.preset
    """Which model the weights are of: notes-ae, notes-vae, vae or iwae."""
    dataset: str = "mnist"
    """What the run is evaluated on, as in jaxvae.train."""
    data_dir: str | None = None
    """Directory of its files, as in jaxvae.train."""
    image_shape: tuple[int, int, int] = (28, 28, 1)
    """Height, width and channels of the images."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code (see `jaxvae.cli`)."""
    args = list(sys.argv[1:] if argv is None else argv)
    cli.answer_version(args)
    prog, commands = "python -m jaxvae.torch_weights", {"export": Export, "import": Import}
    if not args or args[0] not in commands:
        usage = f"{prog} {{{','.join(commands)}}} ... (each with --help)"
        if args and args[0] in ("-h", "--help"):
            print(f"usage: {usage}\n\n{DESCRIPTION}")
            return cli.EXIT_OK
        raise InputError(f"usage: {usage}")
    kind = commands[args[0]]
    parsed: Any = cli.parse(kind, args[1:], prog=f"{prog} {args[0]}", description=inspect.getdoc(kind) or "")
    if isinstance(parsed, Export):
        written = export_run(parsed.run_dir, parsed.out)
        print(f"{len(written)} arrays -> {parsed.out}\nIn PyTorch:")
        print(torch_code(config_file.load(parsed.run_dir / "config.json")))
    else:
        import_run(**{field.name: getattr(parsed, field.name) for field in dataclasses.fields(parsed)})
        print(f"{parsed.weights} -> {parsed.run_dir}")
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
