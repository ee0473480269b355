"""`jaxvae.weight_files`: what is written is read, nothing is executed, and other files are refused."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxvae.errors import InputError
from jaxvae.weight_files import StateDict, load_weights, save_weights

SUFFIXES = (".safetensors", ".npz")


def refuses(*fragments: object) -> Any:
    """An `InputError` of one line that holds the fragments in this order."""
    return pytest.raises(InputError, match="(?m)^[^\n]*" + "[^\n]*".join(map(str, fragments)) + "[^\n]*\\Z")


@pytest.fixture
def weights() -> StateDict:
    rng = np.random.default_rng(0)
    return {f"encoder.{i}.weight": rng.normal(size=(64, 32)).astype(np.float32) for i in (0, 2)}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_read(weights: StateDict, suffix: str, tmp_path: Path) -> None:
    weights["encoder.2.weight"] = weights["encoder.2.weight"].T  # A view in another order of memory.
    weights["log_scale"] = np.array(-2, np.float32)
    save_weights(tmp_path / f"w{suffix}", weights)
    found = load_weights(tmp_path / f"w{suffix}")
    assert found.keys() == weights.keys()
    for name, values in weights.items():
        np.testing.assert_array_equal(found[name], values, strict=True)


class Payload:
    """Unpickled, it makes a directory."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_a_malicious_pickle_is_refused_and_does_not_run(suffix: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path, trace = tmp_path / f"weights{suffix}", tmp_path / "ran"
    torch.save({"encoder.0.weight": torch.zeros(1), "more": Payload(trace)}, path)
    with refuses(path.name, "is no .pth? file", "more than tensors"):
        load_weights(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()  # It would have run.


def test_objects_in_an_npz_are_refused_and_do_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "weights.npz", tmp_path / "ran"
    np.savez(path, a=np.array([Payload(trace)], dtype=object))
    with refuses(path.name, "is no .npz file"):
        load_weights(path)
    assert not trace.exists()


def test_a_file_of_pytorchs_that_is_no_state_dict(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    for number, content in enumerate([torch.zeros(3), {"epoch": 3}, {1: torch.zeros(3)}, [torch.zeros(3)]]):
        path = tmp_path / f"{number}.pt"
        torch.save(content, path)
        with refuses(path.name, "no state_dict", "model.state_dict"):
            load_weights(path)


@pytest.mark.parametrize("suffix", [".pt", *SUFFIXES])
@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x08\0\0\0\0\0\0\0{", b"x" * 300, b"\x80\x02.", b"\x93NUMPY"]
)
def test_a_broken_file(suffix: str, content: bytes, tmp_path: Path) -> None:
    if suffix == ".pt":
        pytest.importorskip("torch")
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with refuses(path.name, "is no"):
        load_weights(path)


@pytest.mark.parametrize("suffix", [".pt", *SUFFIXES])
def test_a_file_that_was_cut_short(weights: StateDict, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch = pytest.importorskip("torch")
        torch.save({n: torch.tensor(v) for n, v in weights.items()}, path)
    else:
        save_weights(path, weights)
    path.write_bytes(path.read_bytes()[:-5000])
    with refuses(path.name, "is no"):
        load_weights(path)


@pytest.mark.parametrize("suffix", [".pt", ".pth", *SUFFIXES])
def test_a_file_that_is_not_there_or_is_a_directory(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    with refuses(path.name, "cannot be read", "No such file"):
        load_weights(path)
    path.mkdir()
    with refuses(path.name, "cannot be read", "directory"):
        load_weights(path)


def test_a_file_of_another_kind(weights: StateDict, tmp_path: Path) -> None:
    for name in ("weights", "weights.ckpt"):
        with refuses(name, ".safetensors"):
            load_weights(tmp_path / name)
    for name in ("weights", "weights.pt"):
        with refuses(name, ".safetensors or .npz"):
            save_weights(tmp_path / name, weights)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_place_that_cannot_be_written(weights: StateDict, suffix: str, tmp_path: Path) -> None:
    with refuses("cannot be written", "No such file"):
        save_weights(tmp_path / "no" / f"weights{suffix}", weights)


def test_without_torch_a_pt_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "weights.pt").write_bytes(b"whatever")
    with refuses("weights.pt", "needs PyTorch", ".safetensors"):
        load_weights(tmp_path / "weights.pt")


def test_bfloat16_safetensors_from_pytorch_are_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    values = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3) / 3
    save_file({"a": values}, tmp_path / "w.safetensors")
    np.testing.assert_array_equal(load_weights(tmp_path / "w.safetensors")["a"], values.float().numpy())
