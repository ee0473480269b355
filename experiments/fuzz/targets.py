"""Every loader of jaxvae as a function of bytes, which may refuse them with an `InputError` and nothing else."""

import dataclasses
import io
import json
import struct
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxvae import config_file, data
from jaxvae.config import PRESETS
from jaxvae.errors import InputError
from jaxvae.models.build import build_model
from jaxvae.models.vae import VAE
from jaxvae.optimizer import build_optimizer
from jaxvae.run import checkpoint, records, step_files
from jaxvae.torch_weights import params_from_torch
from jaxvae.train.step import abstract_state, init_state
from jaxvae.weight_files import load_weights

CONFIG = dataclasses.replace(PRESETS["notes-vae"], hidden=(3,), latent_size=2)
MODEL = build_model(CONFIG, (4, 4, 1))
OPTIMIZER = build_optimizer(CONFIG)


class Target(NamedTuple):
    """A loader: `load` reads the file at a path; `seed` is what it likes; `name` is the file's."""

    name: str
    seed: bytes
    load: Callable[[Path], object]


def _idx() -> bytes:
    return struct.pack(">IIII", 0x803, 20, 4, 4) + bytes(range(256)) + bytes(64)


def _saved(save: Callable[..., None], **arrays: Any) -> bytes:
    file = io.BytesIO()
    save(file, **arrays) if arrays else save(file, np.zeros((20, 4, 4), np.uint8))
    return file.getvalue()


def _png() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).save(file, "PNG")
    return file.getvalue()


def _weights() -> dict[str, Any]:
    from jaxvae.torch_weights import torch_from_params

    return torch_from_params(init_state(MODEL, OPTIMIZER, jax.random.key(0)).params, MODEL)


def _safetensors() -> bytes:
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(array) for name, array in _weights().items()})


def _load_idx(path: Path) -> object:
    return data.load("mnist", path.parent)


def _load_picture(path: Path) -> object:
    return data.load(str(path.parent))


def _load_weights(path: Path) -> object:
    assert isinstance(MODEL, VAE)
    return params_from_torch(load_weights(path), MODEL)


def _load_record(path: Path) -> object:
    """A record that was altered by somebody who knows how to seal it, if it can be sealed at all."""
    try:
        content = json.loads(path.read_bytes())
        content["digest"] = step_files.digest_of({k: v for k, v in content.items() if k != "digest"})
        path.write_text(json.dumps(content))
    except (ValueError, RecursionError, TypeError, AttributeError):
        pass
    with checkpoint.Checkpoints(path.parent.parent, read_only=True, warn=lambda _: None) as checkpoints:
        return checkpoints.restore(abstract_state(MODEL, OPTIMIZER))


def _record() -> bytes:
    arrays = {
        name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "sha256": "0" * 64}
        for name, leaf in step_files.named_leaves(abstract_state(MODEL, OPTIMIZER))
    }
    content = {"format": 1, "record": {"image_shape": [4, 4, 1], "validation_cost": 1.0}, "arrays": arrays, "files": {}}
    return json.dumps({**content, "digest": step_files.digest_of(content)}).encode()


def _metrics() -> bytes:
    line = '{"step": 1, "epoch": 1, "split": "train", "unit": "per pixel", "loss": 0.5}\n'
    return (line + line.replace("1", "2")).encode()


TARGETS: Mapping[str, Target] = {
    "idx": Target("train-images-idx3-ubyte", _idx(), _load_idx),
    "npy": Target("images.npy", _saved(np.save), lambda path: data.load(str(path))),
    "npz": Target(
        "images.npz",
        _saved(np.savez_compressed, train=np.zeros((9, 4, 4), np.uint8), test=np.ones((3, 4, 4), np.uint8)),
        lambda path: data.load(str(path)),
    ),
    "picture": Target("image.png", _png(), _load_picture),
    "config": Target("config.json", config_file.to_json(CONFIG).encode(), config_file.load),
    "metrics": Target("metrics.jsonl", _metrics(), records.read_records),
    "weights-npz": Target("weights.npz", _saved(np.savez, **_weights()), _load_weights),
    "weights-safetensors": Target("weights.safetensors", _safetensors(), _load_weights),
    "record": Target("record.json", _record(), _load_record),
}


def run(target: Target, content: bytes, directory: Path) -> bool:
    """Load `content`; whether it was taken. Raises whatever is not an `InputError`, and an error that is not a line."""
    where = directory / "checkpoints" / "7" if target.name == "record.json" else directory
    where.mkdir(parents=True, exist_ok=True)
    path = where / target.name
    path.write_bytes(content)
    if target.name.startswith("train-"):
        (directory / "t10k-images-idx3-ubyte").write_bytes(_idx())
    if target.name == "image.png":
        for i in range(11):
            (directory / f"other-{i}.png").write_bytes(target.seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            target.load(path)
    except InputError as error:
        if not str(error).isprintable():
            raise AssertionError(f"an error that is not a line: {error}") from error
        return False
    return True
