"""Read datasets in MATLAB's files: Omniglot at 28 x 28, and the silhouettes of Caltech 101.

All input is untrusted, as in `jaxvae.data.formats`. MATLAB stores an image column by column, so its rows and columns
are swapped here: images stand upright.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvae.data.arrays import paired, require_label_shape, to_labels, to_uint8, with_own_validation
from jaxvae.data.images import ImageData, Split
from jaxvae.data.matfile import Variable, variables
from jaxvae.data.reading import Reading
from jaxvae.errors import InputError

_SIDE = 28
_ALPHABETS = 50
_OBJECTS = 101


def omniglot(name: str, source: str, paths: Sequence[Path], labels: bool, reading: Reading) -> ImageData:
    """Handwritten characters of 50 alphabets, as Burda et al. scaled and split them (arXiv 1509.00519).

    The file holds `data` [784, N], a column for each image, with intensities in [0, 1]. Here they are uint8 [N, 28, 28,
    1]. Labels are the alphabets, int32 [N], 0 to 49: in `target` [50, N], each column has a 1 at its alphabet. Source:
    https://github.com/yburda/iwae. See `jaxvae.data.originals.Reader`.

    Raises:
      InputError: the file cannot be read, is damaged, or does not hold such arrays.
    """
    [path] = paths
    file = variables(path, ("data", "testdata", "target", "testtarget"))

    def examples(part: str) -> Split:
        told = f"{path}: {part}data"
        images = _upright(_numbers(file, f"{part}data", path), 0, told)
        if images.dtype.kind != "f":  # MATLAB stores whole numbers in fewer bytes: 0 and 1 are intensities, too.
            images = images.astype(np.float32)
        found: dict[str, np.ndarray[Any, Any]] = {"image": to_uint8(images, told)}
        if labels:
            found["label"] = _one_hot(_numbers(file, f"{part}target", path), len(images), f"{path}: {part}target")
        return found

    return paired(name, source, examples(""), examples("test"))


def caltech101_silhouettes(name: str, source: str, paths: Sequence[Path], labels: bool, reading: Reading) -> ImageData:
    """Outlines of the objects of Caltech 101, filled, as Marlin et al. split them (AISTATS 2010).

    The file holds `train_data`, `val_data` and `test_data` [N, 784], a row for each image, and draws objects as 0 on a
    background of 1. Here images are uint8 [N, 28, 28, 1]: objects are 255 and the background is 0, as in the code of
    Tomczak and Welling (arXiv 1705.07120). Labels are the 101 kinds of object, int32 [N], 0 to 100; the file counts
    from 1. Source: https://people.cs.umass.edu/~marlin/data.shtml. See `jaxvae.data.originals.Reader`.

    Raises:
      InputError: the file cannot be read, is damaged, or does not hold such arrays.
    """
    [path] = paths
    parts = ("train", "val", "test")
    wanted = [f"{part}_{kind}" for part in parts for kind in ("data", "labels")]
    file = variables(path, (*wanted, "classnames"))

    def examples(part: str) -> Split:
        told = f"{path}: {part}_data"
        images = _upright(_numbers(file, f"{part}_data", path), 1, told)
        if not ((images == 0) | (images == 1)).all():
            raise InputError(f"{told}: must hold only 0 and 1")
        found: dict[str, np.ndarray[Any, Any]] = {"image": to_uint8(images == 0, told)}
        if labels:
            found["label"] = _from_one(_numbers(file, f"{part}_labels", path), len(images), f"{path}: {part}_labels")
        return found

    train, validation, test = map(examples, parts)
    images = with_own_validation(paired(name, source, train, test), validation)
    names = file.get("classnames")
    if labels and isinstance(names, tuple) and len(names) == _OBJECTS:  # Runs need no names.
        images = dataclasses.replace(images, classes=names)
    return images


def _numbers(file: Mapping[str, Variable], key: str, path: Path) -> np.ndarray[Any, Any]:
    """A variable that must be an array of numbers, [..., ...], not empty."""
    if key not in file:
        raise InputError(f"{path}: holds no {key}")
    array = file[key]
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: {key} is no array of numbers")
    if not array.size:
        raise InputError(f"{path}: {key} is empty: shape {list(array.shape)}")
    return array


def _upright(array: np.ndarray[Any, Any], pixels: int, told: str) -> np.ndarray[Any, Any]:
    """Images [N, 28, 28] of an array whose axis `pixels` holds one column of an image after the other."""
    if array.ndim != 2 or array.shape[pixels] != _SIDE * _SIDE:
        raise InputError(f"{told}: shape {list(array.shape)[:8]} is not {('[784, N]', '[N, 784]')[pixels]}")
    return np.moveaxis(array, pixels, 1).reshape(-1, _SIDE, _SIDE).swapaxes(1, 2)


def _one_hot(array: np.ndarray[Any, Any], count: int, told: str) -> np.ndarray[Any, np.dtype[np.int32]]:
    """The place of the 1 in each column: int32 [count]."""
    if array.shape != (_ALPHABETS, count):
        raise InputError(f"{told}: shape {list(array.shape)[:8]} is not [{_ALPHABETS}, {count}]")
    if not (((array == 0) | (array == 1)).all() and ((array == 1).sum(axis=0) == 1).all()):
        raise InputError(f"{told}: each column must hold a single 1 and zeros")
    return to_labels(array.argmax(axis=0), count, told)


def _from_one(array: np.ndarray[Any, Any], count: int, told: str) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Labels that count from 1, [N, 1], as labels from 0 on: int32 [N]."""
    require_label_shape(array.shape, told)
    found = to_labels(array, count, told)
    if found.min() < 1 or found.max() > _OBJECTS:
        raise InputError(f"{told}: values from {found.min()} to {found.max()}: labels must be from 1 to {_OBJECTS}")
    return found - np.int32(1)
