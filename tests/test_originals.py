"""`jaxvae.data.originals`: small files of the true formats, and damaged ones."""

import gzip
import io
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import dataset_files
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.io import savemat

from jaxvae import data
from jaxvae.data import originals
from jaxvae.errors import InputError

Writer = Callable[[Path], tuple[NDArray[np.uint8], NDArray[np.uint8]]]


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def write_tar(path: Path, files: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def cifar_records(images: NDArray[np.uint8], *labels: NDArray[np.uint8]) -> bytes:
    """Records as https://www.cs.toronto.edu/~kriz/cifar.html describes them: labels, then red, green and blue."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([*(label[:, None] for label in labels), planes], axis=1).tobytes()


def cifar10(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    train, test = noise(10, 32, 32, 3), noise(3, 32, 32, 3, seed=1)
    classes = np.arange(10, dtype=np.uint8)
    files = {
        f"cifar-10-batches-bin/data_batch_{n}.bin": cifar_records(train[2 * n - 2 : 2 * n], classes[2 * n - 2 : 2 * n])
        for n in (2, 1, 3, 4, 5)
    }
    files["cifar-10-batches-bin/test_batch.bin"] = cifar_records(test, classes[:3])
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    files["cifar-10-batches-bin/batches.meta.txt"] = "\n".join([*names, "", ""]).encode()
    files["cifar-10-batches-bin/readme.html"] = b"<html>"
    write_tar(folder / "cifar-10-binary.tar.gz", files)
    return train, test


def cifar100(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    train, test = noise(10, 32, 32, 3), noise(3, 32, 32, 3, seed=1)
    fine = np.arange(10, dtype=np.uint8)
    files = {
        "cifar-100-binary/coarse_label_names.txt": b"wrong\n",
        "cifar-100-binary/fine_label_names.txt": "\n".join(f"fine {n}" for n in range(10)).encode(),
        "cifar-100-binary/test.bin": cifar_records(test, 7 + fine[:3], fine[:3]),
        "cifar-100-binary/train.bin": cifar_records(train, 7 + fine, fine),
    }
    write_tar(folder / "cifar-100-binary.tar.gz", files)
    return train, test


def svhn_cropped(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    train, test = noise(10, 32, 32, 3), noise(3, 32, 32, 3, seed=1)
    for name, images in (("train", train), ("test", test)):
        labels = np.arange(len(images), dtype=np.uint8)[:, None]
        labels[labels == 0] = 10
        savemat(folder / f"{name}_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": labels}, do_compression=True)
    return train, test


def binarized_mnist(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    splits = {name: noise(n, 28, 28, 1, seed=n) // 128 for name, n in (("train", 10), ("valid", 4), ("test", 3))}
    for name, images in splits.items():
        np.savetxt(folder / f"binarized_mnist_{name}.amat", images.reshape(len(images), -1), "%d")
    return 255 * splits["train"], 255 * splits["test"]


def idx(images: NDArray[np.uint8]) -> bytes:
    header = struct.pack(f">{1 + images.ndim}I", 0x800 + images.ndim, *images.shape)
    return gzip.compress(header + images.tobytes())


def emnist(folder: Path, split: str = "letters", first: int = 1) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    train, test = noise(10, 28, 28, 1), noise(3, 28, 28, 1, seed=1)
    with zipfile.ZipFile(folder / "gzip.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, images in (("train", train), ("test", test)):
            labels = np.arange(first, first + len(images), dtype=np.uint8)
            archive.writestr(f"gzip/emnist-{split}-{name}-images-idx3-ubyte.gz", idx(images[..., 0].swapaxes(1, 2)))
            archive.writestr(f"gzip/emnist-{split}-{name}-labels-idx1-ubyte.gz", idx(labels))
    return train, test


WRITERS: Mapping[str, Writer] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "svhn_cropped": svhn_cropped,
    "binarized_mnist": binarized_mnist,
    "emnist/letters": emnist,
    "emnist/digits": lambda folder: emnist(folder, "digits", first=0),
    "omniglot": dataset_files.omniglot,
    "caltech101_silhouettes": dataset_files.caltech101_silhouettes,
    "dsprites": dataset_files.dsprites,
}


def refused(name: str, folder: Path, *fragments: str, labels: bool = False) -> None:
    with pytest.raises(InputError) as caught:
        data.load(name, folder, labels=labels)
    assert "\n" not in str(caught.value)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_every_kind_of_file_is_tested() -> None:
    assert {name.partition("/")[0] for name in WRITERS} == {name.partition("/")[0] for name in originals.ORIGINALS}


@pytest.mark.parametrize("name", WRITERS)
def test_images_and_labels_are_those_that_were_written(name: str, tmp_path: Path) -> None:
    train, test = WRITERS[name](tmp_path)
    loaded = data.load(name, tmp_path)
    np.testing.assert_array_equal(loaded.train, train)
    np.testing.assert_array_equal(loaded.test, test)
    assert loaded.train.flags.c_contiguous and loaded.name == name and str(tmp_path) in loaded.source
    assert "label" not in loaded.split("train")
    if name == "binarized_mnist":
        assert len(loaded.validation) == 4
        refused(name, tmp_path, "it has no labels", labels=True)
        return
    labelled = data.load(name, tmp_path, labels=True)
    if name == "dsprites":  # It has three, and its split is drawn: see test_dsprites.
        assert labelled.split("test")["label"].shape == (3,)
        return
    np.testing.assert_array_equal(labelled.split("train")["label"], np.arange(10))
    np.testing.assert_array_equal(labelled.split("test")["label"], np.arange(3))
    assert labelled.split("train")["label"].dtype == np.int32
    first = {"cifar10": ("airplane",), "cifar100": ("fine 0",), "caltech101_silhouettes": ("object 0",)}
    assert labelled.classes[:1] == first.get(name, ())


@pytest.mark.parametrize("name", WRITERS)
def test_damaged_files_are_refused(name: str, tmp_path: Path) -> None:
    """A file that is missing, cut, or something else."""
    WRITERS[name](tmp_path)
    path = tmp_path / originals.ORIGINALS[name].files[0]
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2 - 1], b"", b"\x1f\x8b" + bytes(100), b"0 1\n" * 500):
        path.write_bytes(content)
        refused(name, tmp_path, path.name)
    path.unlink()
    refused(name, tmp_path, "--data-dir", f"has no file {path.name}")
    refused(name, tmp_path / "nowhere", "--data-dir")


def test_cifar_files_of_another_size(tmp_path: Path) -> None:
    path = tmp_path / "cifar-10-binary.tar.gz"
    record = cifar_records(noise(1, 32, 32, 3), np.uint8([3]))
    write_tar(path, {"a/data_batch_1.bin": record + b"x", "a/test_batch.bin": record})
    refused("cifar10", tmp_path, "data_batch_1.bin: 3074 bytes are no records")
    write_tar(path, {"a/data_batch_1.bin": record, "a/test_batch.bin": record})
    refused("cifar10", tmp_path, "holds no data_batch_2.bin")


def test_the_checksum_at_the_end_of_an_archive_is_verified(tmp_path: Path) -> None:
    cifar10(tmp_path)
    path = tmp_path / "cifar-10-binary.tar.gz"
    content = path.read_bytes()
    path.write_bytes(content[:-8] + bytes([content[-8] ^ 1]) + content[-7:])
    refused("cifar10", tmp_path, path.name)


def test_a_file_that_claims_to_unpack_to_very_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(originals, "_MOST_MEMBER", 1000)
    cifar10(tmp_path)
    refused("cifar10", tmp_path, "6146 bytes", "too many")


def test_svhn_without_its_arrays(tmp_path: Path) -> None:
    svhn_cropped(tmp_path)
    savemat(tmp_path / "test_32x32.mat", {"X": noise(32, 32, 3, 3)})
    refused("svhn_cropped", tmp_path, "needs y", labels=True)
    assert len(data.load("svhn_cropped", tmp_path).test) == 3
    savemat(tmp_path / "test_32x32.mat", {"X": noise(32, 32, 3, 0), "y": noise(0, 1)})
    refused("svhn_cropped", tmp_path, "empty", labels=True)
    savemat(tmp_path / "test_32x32.mat", {"Z": noise(32, 32, 3, 3)})
    refused("svhn_cropped", tmp_path, "needs X")


def test_binarized_mnist_with_another_character(tmp_path: Path) -> None:
    binarized_mnist(tmp_path)
    path = tmp_path / "binarized_mnist_valid.amat"
    whole = path.read_bytes()
    for end in (b"2\n", b"0\t", b" 0"):
        path.write_bytes(whole[:-2] + end)
        refused("binarized_mnist", tmp_path, "must hold only 0 and 1")


def test_an_archive_without_the_split_asked_for(tmp_path: Path) -> None:
    emnist(tmp_path)
    refused("emnist/balanced", tmp_path, "holds no emnist-balanced-train-images-idx3-ubyte.gz")
    refused("emnist/nonsense", tmp_path, "emnist")
