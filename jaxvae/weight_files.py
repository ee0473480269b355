"""Files of arrays by name, as users of PyTorch have them. Nothing in a file is executed."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from jaxvae.errors import InputError

StateDict: TypeAlias = dict[str, NDArray[Any]]


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
        # PyTorch's message about a refused pickle says how to run it anyway.
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
    arrays = {name: np.asarray(values, order="C") for name, values in state_dict.items()}
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
