"""Read datasets in the files that their authors publish: CIFAR, SVHN, EMNIST, and MNIST as Larochelle binarised it.

All input is untrusted, as in `jaxvae.data.formats`. Every reader takes the paths of a dataset's files, in the order of
`ORIGINALS`, and whether labels are wanted. The readers of some datasets have a module of their own.
"""

import gzip
import tarfile
import types
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from jaxvae.data.arrays import paired, require_image_shape, require_label_shape, to_labels, with_own_validation
from jaxvae.data.dsprites import dsprites
from jaxvae.data.formats import blaming, idx_images, idx_labels, read_exactly
from jaxvae.data.images import ImageData, Split
from jaxvae.data.matfile import variables
from jaxvae.data.matlab import caltech101_silhouettes, omniglot
from jaxvae.data.reading import Reading
from jaxvae.errors import InputError

Reader: TypeAlias = Callable[[str, str, Sequence[Path], bool, Reading], ImageData]
"""``read(name, source, paths, labels, reading)``. Raises `InputError`.

Only a dataset that may not fit in memory needs `reading`. The size and channels of others are changed afterwards."""

_CIFAR_PIXELS = 32 * 32 * 3
_MOST_MEMBER = 2**28  # Bytes of a file in CIFAR's archive, which has 30 million: gzip can claim any number.
_CHUNK = 2**20  # Bytes that are read at a time.
_AMAT_ROW = 2 * 28 * 28  # Each digit is followed by a space or the end of the line.
EMNIST = ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")
"""The splits of EMNIST (Cohen et al., arXiv 1702.05373)."""


def _cifar(
    name: str, source: str, paths: Sequence[Path], labels: bool, files: Sequence[str], label_bytes: int, names: str
) -> ImageData:
    """CIFAR's binary version: records of labels, of which the last counts, and three planes of colour.

    Args:
      name, source, paths, labels: see `Reader`.
      files: the names of the files of records; the last one is for testing.
      label_bytes: of a record.
      names: the file with the names of the classes.
    """
    [path] = paths
    parts: dict[str, Split] = {}
    classes: tuple[str, ...] = ()
    with blaming(path), gzip.open(path) as unpacked, tarfile.open(fileobj=unpacked, mode="r:") as archive:
        for member in archive:
            file, base = archive.extractfile(member) if member.isfile() else None, Path(member.name).name
            if file is not None and base in files:
                told = f"{path}: {base}"
                if member.size > _MOST_MEMBER:
                    raise InputError(f"{told}: {member.size} bytes are too many for a file of CIFAR")
                records = np.frombuffer(read_exactly(file, member.size, told), np.uint8)
                if not records.size or records.size % (label_bytes + _CIFAR_PIXELS):
                    raise InputError(f"{told}: {records.size} bytes are no records of CIFAR")
                records = records.reshape(-1, label_bytes + _CIFAR_PIXELS)
                planes = records[:, label_bytes:].reshape(-1, 3, 32, 32)
                parts[base] = {"image": planes.transpose(0, 2, 3, 1), "label": records[:, label_bytes - 1]}
            elif file is not None and base == names and labels and member.size <= _MOST_MEMBER:
                lines = bytes(read_exactly(file, member.size, f"{path}: {base}")).decode().split("\n")
                classes = tuple(line.strip() for line in lines if line.strip())
        while unpacked.read(_CHUNK):  # To its end, where its checksum is verified.
            pass
    if missing := [base for base in files if base not in parts]:
        raise InputError(f"{path}: holds no {missing[0]}")

    def joined(splits: Sequence[Split]) -> Split:
        images = np.concatenate([split["image"] for split in splits])
        found: dict[str, np.ndarray[Any, Any]] = {"image": np.ascontiguousarray(images)}
        if labels:
            found["label"] = to_labels(np.concatenate([split["label"] for split in splits]), len(images), path)
        return found

    images = paired(name, source, joined([parts[base] for base in files[:-1]]), joined([parts[files[-1]]]))
    return ImageData(name, source, images.train, images.test, others=images.others, classes=classes)


def _cifar10(name: str, source: str, paths: Sequence[Path], labels: bool, reading: Reading) -> ImageData:
    files = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    return _cifar(name, source, paths, labels, files, 1, "batches.meta.txt")


def _cifar100(name: str, source: str, paths: Sequence[Path], labels: bool, reading: Reading) -> ImageData:
    # A coarse label, then a fine one.
    return _cifar(name, source, paths, labels, ("train.bin", "test.bin"), 2, "fine_label_names.txt")


def _svhn(name: str, source: str, paths: Sequence[Path], labels: bool, reading: Reading) -> ImageData:
    """Street View House Numbers, cropped: Matlab's files, where a label of 10 means the digit 0."""
    return paired(name, source, *(_svhn_split(path, labels) for path in paths))


def _svhn_split(path: Path, labels: bool) -> Split:
    file = variables(path, ("X", "y"))
    pixels, digits = file.get("X"), file.get("y")
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 4 or pixels.dtype != np.uint8:
        raise InputError(f"{path}: needs X, uint8 [H, W, C, N]")
    if not pixels.size:
        raise InputError(f"{path}: empty: shape {list(pixels.shape)}")
    images = np.ascontiguousarray(pixels.transpose(3, 0, 1, 2))
    require_image_shape(images.shape, path)
    if not labels:
        return {"image": images}
    if not isinstance(digits, np.ndarray):
        raise InputError(f"{path}: needs y, the labels")
    require_label_shape(digits.shape, path)
    return {"image": images, "label": to_labels(digits, len(images), path) % 10}


def _binarized_mnist(name: str, source: str, paths: Sequence[Path], labels: bool, reading: Reading) -> ImageData:
    """MNIST with pixels of 0 and 1 that were drawn once, which papers share (Larochelle and Murray, AISTATS 2011).

    It brings 10,000 images for validation along. Raises `InputError` if labels are wanted: it has none.
    """
    if labels:
        raise InputError(f"--dataset {name}: it has no labels")
    train, validation, test = (_amat(path) for path in paths)
    return with_own_validation(paired(name, source, train, test), validation)


def _amat(path: Path) -> Split:
    with blaming(path), path.open("rb") as file:
        characters = np.frombuffer(read_exactly(file, path.stat().st_size, path), np.uint8)
    if not characters.size or characters.size % _AMAT_ROW:
        raise InputError(f"{path}: {characters.size} bytes are no lines of 784 digits")
    rows = characters.reshape(-1, _AMAT_ROW)
    digits, between = rows[:, ::2], rows[:, 1::2]
    if not (np.isin(digits, (ord("0"), ord("1"))).all() and np.isin(between, (ord(" "), ord("\n"))).all()):
        raise InputError(f"{path}: must hold only 0 and 1, with spaces between")
    return {"image": ((digits == ord("1")) * np.uint8(255)).reshape(-1, 28, 28, 1)}


def _emnist(name: str, source: str, paths: Sequence[Path], labels: bool, reading: Reading) -> ImageData:
    """A split of EMNIST: IDX files in a ZIP file. Its images lie on their side; here they are upright."""
    [path] = paths
    split = name.partition("/")[2]
    with blaming(path), zipfile.ZipFile(path) as archive:
        members = {Path(info.filename).name: info for info in archive.infolist()}

        def examples(part: str) -> Split:
            stem = f"emnist-{split}-{part}"
            needed = [f"{stem}-images-idx3-ubyte.gz", *([f"{stem}-labels-idx1-ubyte.gz"] if labels else [])]
            if missing := [file for file in needed if file not in members]:
                raise InputError(f"{path}: holds no {missing[0]}")
            with archive.open(members[needed[0]]) as file:
                images = idx_images(file, f"{path}: {needed[0]}")
            found: dict[str, np.ndarray[Any, Any]] = {"image": np.ascontiguousarray(images.swapaxes(1, 2))}
            if labels:
                with archive.open(members[needed[1]]) as file:
                    # Letters count from 1.
                    found["label"] = idx_labels(file, len(images), f"{path}: {needed[1]}") - (split == "letters")
            return found

        return paired(name, source, examples("train"), examples("test"))


class Original(NamedTuple):
    """A dataset's files, by name, and what reads them."""

    files: tuple[str, ...]
    read: Reader


ORIGINALS: Mapping[str, Original] = types.MappingProxyType(
    {
        "cifar10": Original(("cifar-10-binary.tar.gz",), _cifar10),
        "cifar100": Original(("cifar-100-binary.tar.gz",), _cifar100),
        "svhn_cropped": Original(("train_32x32.mat", "test_32x32.mat"), _svhn),
        "omniglot": Original(("chardata.mat",), omniglot),
        "caltech101_silhouettes": Original(("caltech101_silhouettes_28_split1.mat",), caltech101_silhouettes),
        "dsprites": Original(("dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz",), dsprites),
        "binarized_mnist": Original(
            tuple(f"binarized_mnist_{split}.amat" for split in ("train", "valid", "test")), _binarized_mnist
        ),
        **{f"emnist/{split}": Original(("gzip.zip",), _emnist) for split in EMNIST},
    }
)
"""Every dataset that this module reads, by name."""
