"""Read dSprites: every image of a white shape that five factors allow. All input is untrusted."""

import contextlib
import dataclasses
import math
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from jaxvae import memory
from jaxvae.data.arrays import paired
from jaxvae.data.decoded import decoded_once
from jaxvae.data.formats import blaming, opened_member, read_member
from jaxvae.data.images import ImageData
from jaxvae.data.reading import Images, Reading, applied
from jaxvae.data.rows import picked
from jaxvae.errors import InputError

SHAPES = ("square", "ellipse", "heart")
"""What the labels 0, 1 and 2 mean."""

_SIDE = 64
_SHAPE_FACTOR = 1  # The factors are colour, shape, scale, orientation, x and y.
_FACTORS = 6
_AT_ONCE = 2**12  # Images that are unpacked at a time: 16 MiB.
_HOLD_OUT = 10  # One in so many is held out for testing.
_TEST_SEED = 0


def dsprites(name: str, source: str, paths: Sequence[Path], labels: bool, reading: Reading) -> ImageData:
    """The 737,280 images of dSprites (Matthey et al., 2017), 0 or 255; with `labels`, their shapes and "factors".

    The file has no test images: NumPy's default generator, seeded with 0, draws a tenth. Every tenth would be biased:
    the vertical position has 32 values and changes from each image to the next, so every tenth image has an odd one.
    Images that might not fit in memory are unpacked once, into a file from which they stream. Source:
    https://github.com/google-deepmind/dsprites-dataset. See `jaxvae.data.originals.Reader`.

    Raises:
      InputError: the file cannot be read, is damaged, or does not hold such images; or, to stream them, there is no
        room for the unpacked ones.
    """
    [path] = paths
    with _opened_images(path) as (_, count):
        pass
    whole: dict[str, np.ndarray[Any, Any]] = {}
    if labels:
        whole["factors"] = factors = _factors(path, count)
        whole["label"] = factors[:, _SHAPE_FACTOR].astype(np.int32)
    size = reading.size or (_SIDE, _SIDE)
    shape = (count, *size, reading.channels or 1)
    too_many = math.prod(shape) > memory.host_free_bytes() // 2  # A split is a copy.
    if reading.stream == "always" or (reading.stream == "auto" and too_many):
        pictures = (image for images in _unpacked(path, reading) for image in images)
        rows, _ = decoded_once(path.parent, [path.name], reading, lambda _: pictures, count)
        source = f"{source}, unpacked in {rows.files[0].path}"
        whole["image"] = cast(Images, rows)
    else:
        whole["image"], start = np.empty(shape, np.uint8), 0
        for images in _unpacked(path, reading):
            whole["image"][start : start + len(images)] = images
            start += len(images)
    held_out = np.sort(np.random.default_rng(_TEST_SEED).permutation(count)[: count // _HOLD_OUT])
    kept = np.delete(np.arange(count), held_out)
    train, test = ({key: picked(values, part) for key, values in whole.items()} for part in (kept, held_out))
    return dataclasses.replace(paired(name, source, train, test), classes=SHAPES if labels else ())


def _unpacked(path: Path, reading: Reading) -> Iterator[Images]:
    """All images, some thousand at a time: uint8 [n, H, W, C]. They are 0 or 255, unless `reading` scales them."""
    with _opened_images(path) as (file, count):
        for start in range(0, count, _AT_ONCE):
            size = min(_AT_ONCE, count - start) * _SIDE * _SIDE
            content = file.read(size)
            if len(content) < size:
                raise InputError(f"{path}: imgs: truncated")
            images = np.frombuffer(content, np.uint8).reshape(-1, _SIDE, _SIDE, 1)
            if images.max() > 1:
                raise InputError(f"{path}: imgs: must hold only 0 and 1")
            yield applied(images * np.uint8(255), reading, path)


def _factors(path: Path, count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The numbers of colour, shape, scale, orientation, x and y of each image: uint8 [count, 6]."""
    told = f"{path}: latents_classes"

    def check(shape: Sequence[int], label: object) -> None:
        if shape != (count, _FACTORS):
            raise InputError(f"{label}: shape {list(shape)[:8]} is not [{count}, {_FACTORS}]")

    with _member(path, "latents_classes") as (archive, member):
        found = read_member(archive, member, told, check)
    if found.dtype.kind not in "iu" or found.min() < 0 or found.max() > np.iinfo(np.uint8).max:
        held = f"{found.dtype} from {found.min()} to {found.max()}"
        raise InputError(f"{told}: {held}: must be whole numbers from 0 to 255")
    if (highest := found[:, _SHAPE_FACTOR].max()) >= len(SHAPES):
        raise InputError(f"{told}: shapes up to {highest}: must be from 0 to {len(SHAPES) - 1}")
    return found.astype(np.uint8)


@contextlib.contextmanager
def _member(path: Path, name: str) -> Iterator[tuple[zipfile.ZipFile, zipfile.ZipInfo]]:
    """The open file, and where an array is in it."""
    with blaming(path), zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if f"{name}.npy" not in members:
            raise InputError(f"{path}: holds no {name}")
        yield archive, members[f"{name}.npy"]


@contextlib.contextmanager
def _opened_images(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """The open array of images, from which its content can be read, and how many images it claims to hold."""

    def check(shape: Sequence[int], label: object) -> None:
        if len(shape) != 3 or tuple(shape[1:]) != (_SIDE, _SIDE):
            raise InputError(f"{label}: shape {list(shape)[:8]} is not [N, {_SIDE}, {_SIDE}]")
        if shape[0] < _HOLD_OUT:
            raise InputError(f"{label}: too few images to hold out a tenth for testing: {shape[0]}")

    told = f"{path}: imgs"
    with _member(path, "imgs") as found, opened_member(*found, told, check) as (file, shape, fortran, dtype):
        if dtype != np.uint8 or fortran:
            raise InputError(f"{told}: holds {'Fortran order' if fortran else dtype}, not uint8 in C's order")
        yield file, shape[0]
