"""Training from Python: `fit`, with the user's own model, loss, optimiser and data."""

import contextlib
import dataclasses
import operator
import re
import signal
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax
from flax import linen as nn
from numpy.typing import NDArray

from jaxvae import config_file, data, memory
from jaxvae.components import SLOTS
from jaxvae.config import Config, config_type, own_widths, values_of
from jaxvae.data.arrays import CHANNELS
from jaxvae.errors import InputError, suggestion
from jaxvae.models.build import build_model
from jaxvae.optimizer import build_optimizer
from jaxvae.own import GIVEN, give
from jaxvae.run import records
from jaxvae.run.checkpoint import Checkpoints
from jaxvae.train import loop
from jaxvae.train.step import TrainState, abstract_state
from jaxvae.trained import TrainedRun, example_of_run

PRESET = "vae"  # If no configuration is given.
ARRAY_BYTES = 400  # What an array takes besides its values.


class Fit(NamedTuple):
    """What `fit` returns.

    Attributes:
      run_dir: the run directory, which every command line takes.
      metrics: the lines of ``metrics.jsonl`` by split, as arrays: ``metrics["train"]["loss"]``, ``["step"]``, ...
      state: the final train state, on the host.
      run: the trained model, to be used on images.
    """

    run_dir: Path
    metrics: dict[str, dict[str, NDArray[Any]]]
    state: TrainState
    run: TrainedRun

    def __repr__(self) -> str:
        """The run directory, and the last metrics of each split."""
        lines = [f"Fit({str(self.run_dir)!r}, step {int(self.state.step):,}"]
        for split, columns in self.metrics.items():
            last = {name: values[-1] for name, values in columns.items() if name not in ("step", "epoch")}
            lines.append(f"    {split}: {records.words(last)}")
        return "\n".join(lines) + ")"


def fit(
    config: Config | str | None = None,
    *,
    data: Any = None,
    model: nn.Module | str | None = None,
    objective: Any = None,
    optimizer: Any = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    devices: int | None = None,
    **options: Any,
) -> Fit:
    """Train a model, with compiled epochs, logs, pictures and checkpoints, as ``python -m jaxvae.train`` does.

    Args:
      config: a `jaxvae.Config`, or the name of a preset. Default: the preset "vae".
      data: what to train on, in place of the dataset of `config`: a name or path that ``--dataset`` takes; images
        [N, H, W, C] or [N, H, W], integers from 0 to 255 or floats in [0, 1]; a mapping with "image" and anything else
        that the model or the loss reads, arrays with the same first axis; a pair of any of these, for training and
        testing; an iterable, which is read once, to its end, of batches of images, of pictures [H, W, C], of pairs of
        images and labels, or of such mappings; or a `jaxvae.ImageData`. Of an iterable's elements, an image array of
        three axes, the last 1, 3 or 4 long, is one picture. Without test images, every tenth example is held out.
      model: a Flax module. Its ``__call__`` gets the images of a batch, float32 [B, H, W, C] in [0, 1], or the whole
        batch if its first parameter is called `batch`; and, by their names, `train` (or `deterministic`) and `key`.
        Mutable collections and random streams work. Default: that of `config`.
      objective: a function ``objective(output, batch) -> terms``. It takes what the model returns and the batch, a
        mapping, and returns named values, [B] or, for the whole batch, [], among them "loss". Or a
        `jaxvae.protocols.Objective`, or the name of one. Default: that of `config`.
      optimizer: an optimiser of optax, or a name. Default: that of `config`.
      run_dir: a directory that holds no run yet; default: a new one, runs/PRESET-DATE-TIME.
      resume: resume the run in `run_dir`, with the same arguments; the result is that of a run never stopped.
      devices: how many share each batch. Default: all.
      options: changes to `config`, such as ``epochs=5``, and components, by name (``likelihood="logistic"`` or
        ``"module:Name"``) or as objects (``likelihood=StudentT(freedom=3.0)``).

    On resume, `fit` cannot notice a function or an optimiser that has the same name but computes something else.

    Raises:
      InputError: bad input, found before a step is taken; a `ValueError`.
      jaxvae.Diverged: a loss or a parameter is not finite.
      KeyboardInterrupt: after Ctrl-C, once the state is saved.
    """
    with _arguments_named():
        base = Config(preset=config or PRESET) if not isinstance(config, Config) else config
        given = {"model": model, "objective": objective, "optimizer": optimizer}
        options |= {name: thing for name, thing in given.items() if thing is not None}
        own = {name: _named(name, options.pop(name)) for name in (*SLOTS, "model") if name in options}
        kind: Any = config_type({**values_of(base), **own})
        for name in options:
            if name not in kind.__dataclass_fields__:
                raise InputError(f"{name}: there is no such option{suggestion(name, kind.__dataclass_fields__)}")
            if isinstance(kind.__dataclass_fields__[name].default, tuple) and isinstance(options[name], int):
                options[name] = (options[name],)  # As --image-size 64.
        images = None
        if isinstance(data, str | Path):
            options["dataset"] = str(data)
        elif data is not None:
            images = image_data(data)
        network = own.get("architecture", base.architecture)
        if network != base.architecture and (widths := own_widths(network)):
            options.setdefault("hidden", widths)
        full = dataclasses.replace(base, **own, **options)
        path = None if run_dir is None else Path(run_dir)
        outcome = loop.train(full, path, resume, devices, images)
        if outcome.stopped_by == signal.SIGINT:
            # A signal before the first step leaves nothing to resume.
            where = f"fit(..., run_dir={str(outcome.run_dir)!r}, resume=True)"
            raise KeyboardInterrupt(f"stopped; to resume, if a step was saved: {where}")
        if outcome.stopped_by is not None:
            raise SystemExit(128 + outcome.stopped_by)
        if outcome.run_dir is None:
            raise InputError("fit works in one process; to train in several, use python -m jaxvae.train")
        return result_of(outcome.run_dir)


def _named(slot: str, thing: Any) -> str:
    """The name of a component or a model that was given by name or as an object."""
    if isinstance(thing, str):
        return thing
    if isinstance(thing, optax.GradientTransformation):
        return give(thing, f"{GIVEN}:{slot}")  # Its class does not identify it.
    if isinstance(thing, type | types.FunctionType | nn.Module):
        return give(thing)
    return give(thing, f"{GIVEN}:{type(thing).__name__}")  # It has its own options.


def result_of(run_dir: Path) -> Fit:
    """What `fit` returned for the run in a directory. Raises `InputError` if none can be read."""
    config = config_file.load(run_dir / "config.json")
    with Checkpoints(run_dir / "checkpoints", read_only=True) as checkpoints:
        shape = checkpoints.image_shape()
        model = build_model(config, shape)
        example = example_of_run(shape, checkpoints.read_record())
        saved = checkpoints.restore(abstract_state(model, build_optimizer(config, 1), example))
    assert saved is not None  # Its record has just been read.
    run = TrainedRun(config, model, saved.state.variables, saved.step, shape, saved.record)
    lines = records.read_records(run_dir / "metrics.jsonl")
    metrics = {}
    for split in dict.fromkeys(line["split"] for line in lines):
        own = [line for line in lines if line["split"] == split]
        names = ("step", "epoch", *records.terms_of(own))
        metrics[split] = {name: np.array([line[name] for line in own]) for name in names}
    return Fit(run_dir, metrics, saved.state, run)


@contextlib.contextmanager
def _arguments_named() -> Iterator[None]:
    """In messages, replace the names of flags by those of arguments."""
    try:
        yield
    except InputError as error:
        said = re.sub(r"--([a-z][a-z0-9-]*)", lambda found: found[1].replace("-", "_"), str(error))
        raise InputError(said) from error


def image_data(given: Any) -> data.ImageData:
    """Data as `fit` takes it. Raises `InputError`."""
    if isinstance(given, data.ImageData):
        return given
    train, test = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    return data.from_arrays(_columns(train), None if test is None else _columns(test))


def _columns(given: Any) -> dict[str, NDArray[Any]]:
    """Examples as arrays by name, with the same first axis."""
    if isinstance(given, Mapping):
        return {str(name): np.asarray(values) for name, values in given.items()}
    if hasattr(given, "__array__"):
        return {"image": np.asarray(given)}
    try:
        elements = iter(given)
    except TypeError:
        what = f"not {type(given).__name__}"
        raise InputError(f"data must be images, a mapping, a pair of these, or an iterable, {what}") from None
    room = memory.host_free_bytes() // 2  # Joining what was read takes as much again.
    too_much = InputError(
        f"data: the iterable gives more than {memory.in_words(room)}, half of the free memory, or has no end; "
        "images in .npy files are streamed, however many there are"
    )
    try:
        length = operator.length_hint(given)
    except OverflowError:
        raise too_much from None
    except Exception:  # One that does not know its length.
        length = 0
    if length > room // ARRAY_BYTES:
        raise too_much
    parts = list[dict[str, NDArray[Any]]]()
    for part in map(_part, elements):
        if parts and part.keys() != parts[0].keys():
            raise InputError(f"data: an element does not hold what the first does: {', '.join(parts[0])}")
        for name, values in part.items():
            if parts and values.shape[1:] != parts[0][name].shape[1:]:
                shapes = f"{list(parts[0][name].shape[1:])} and {list(values.shape[1:])}"
                raise InputError(f"data: each {name} must have the same shape, not {shapes}")
        parts.append({name: np.array(values) for name, values in part.items()})  # Many reuse their buffers.
        room -= sum(values.nbytes + ARRAY_BYTES for values in part.values())
        if room < 0:
            raise too_much
    if not parts:
        raise InputError("data is an iterable of no batches")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _part(given: Any) -> dict[str, NDArray[Any]]:
    """An element of an iterable, a batch or a picture, as arrays by name with the same first axis."""
    if isinstance(given, list) and all(hasattr(each, "ndim") for each in given):
        axes = [each.ndim for each in given]
        if axes in ([3], [4]) or (len(axes) == 2 and axes[0] > axes[1]):  # What a loader of PyTorch gives.
            given = tuple(given)
    if isinstance(given, tuple) and len(given) == 1:
        [given] = given
    if isinstance(given, tuple) and len(given) == 2:
        given = {"image": given[0], "label": given[1]}
    try:
        part = _columns(given if isinstance(given, Mapping) else {"image": given})
    except ValueError:  # Of lists of several lengths.
        part = {}
    image = part.get("image", np.empty(0))
    if image.ndim == 3 and image.shape[2] in CHANNELS:
        part, image = {name: values[None] for name, values in part.items()}, image[None]
    if image.ndim < 3 or min(values.ndim for values in part.values()) == 0:
        raise InputError(
            "data: an element must be a batch [N, H, W] or [N, H, W, C], a picture [H, W, C], a pair of images and "
            f'labels, or a mapping such as {{"image": x, "label": y}}, not {type(given).__name__}'
        )
    return part
