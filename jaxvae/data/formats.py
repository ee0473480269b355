"""Read files of arrays: IDX files and NumPy files. All input is untrusted."""

import contextlib
import dataclasses
import io
import math
import os
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np

from jaxvae import errors, memory
from jaxvae.data.arrays import (
    VALIDATION,
    is_label_shape,
    of_splits,
    require_image_shape,
    split_off_test,
    to_labels,
    to_uint8,
    used_splits,
)
from jaxvae.data.images import ImageData
from jaxvae.data.reading import AS_THEY_ARE, Images, Reading, shape_words
from jaxvae.data.rows import Rows, StoredArray
from jaxvae.errors import InputError

_IDX_MAGIC = 0x00000803  # unsigned bytes, three dimensions
_IDX_LABELS_MAGIC = 0x00000801  # one dimension
_DEFLATE_MAX_RATIO = 1032  # the most that deflate can expand, in bytes per compressed byte
_CHUNK = 1 << 20  # bytes per read


@contextlib.contextmanager
def blaming(label: object) -> Iterator[None]:
    """Turn any exception that a decoder raises on damaged input into an `InputError` that names the file.

    All exceptions are caught: the decoders of zlib, zipfile, NumPy and Pillow raise many kinds on malicious
    bytes (struct.error, SyntaxError, RecursionError, ...) and document few.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise InputError(f"{label}: cannot be read: {' '.join(text.split())[:200]}") from error


def read_exactly(file: IO[bytes] | io.BufferedIOBase, size: int, label: object) -> bytearray:
    """Read the remaining `size` bytes in pieces, so that memory grows with the real size, not the claimed one."""
    data = bytearray()
    with blaming(label):
        while len(data) < size and (piece := file.read(min(_CHUNK, size - len(data)))):
            data += piece
        # Reading past the end is also what makes gzip and zip verify their checksums.
        more = file.read(1)
    if len(data) < size:
        raise InputError(f"{label}: truncated: the header claims {size} bytes, only {len(data)} follow")
    if more:
        raise InputError(f"{label}: trailing bytes after the {size} that the header claims")
    return data


def read_idx(path: Path) -> Images:
    """Read an IDX file of images, gzipped or not, as uint8 ``[N, H, W, 1]``. Raises `InputError`."""
    with blaming(path), path.open("rb") as file:
        return idx_images(file, path)


def idx_images(file: IO[bytes], label: object) -> Images:
    """The images of an open IDX file, gzipped or not: uint8 ``[N, H, W, 1]``. Raises `InputError`."""
    shape, data = _idx_content(file, _IDX_MAGIC, 3, "images", label)
    return np.frombuffer(data, np.uint8).reshape(*shape, 1)


def _idx_content(file: IO[bytes], wanted: int, axes: int, what: str, label: object) -> tuple[list[int], bytearray]:
    """The shape and the bytes of an open IDX file, which must have a magic number."""
    import gzip

    with blaming(label):
        # By content, not by name: browsers unpack a download and keep its .gz.
        gzipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        with gzip.open(file) if gzipped else contextlib.nullcontext(file) as content:
            size = 4 * (1 + axes)
            header = content.read(size)
            if len(header) < size:
                raise InputError(f"{label}: truncated: an IDX header takes {size} bytes, there are {len(header)}")
            magic, *shape = struct.unpack(f">{1 + axes}I", header)
            if magic != wanted:
                raise InputError(f"{label}: not IDX {what}: magic number 0x{magic:08x}, not 0x{wanted:08x}")
            if 0 in shape:
                raise InputError(f"{label}: empty: shape {shape}")
            return shape, read_exactly(content, math.prod(shape), label)


def read_idx_labels(path: Path, count: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Read the labels of `count` images from an IDX file, gzipped or not: int32 ``[N]``. Raises `InputError`."""
    with blaming(path), path.open("rb") as file:
        return idx_labels(file, count, path)


def idx_labels(file: IO[bytes], count: int, label: object) -> np.ndarray[Any, np.dtype[np.int32]]:
    """The labels of `count` images from an open IDX file, gzipped or not: int32 ``[N]``. Raises `InputError`."""
    _, data = _idx_content(file, _IDX_LABELS_MAGIC, 1, "labels", label)
    return to_labels(np.frombuffer(data, np.uint8), count, label)


def npy_file(name: str, path: Path, reading: Reading = AS_THEY_ARE) -> ImageData:
    """The images of a .npy file, which stay there if `reading` says so. Raises `InputError`."""
    return split_off_test(name, f"NumPy file {path}", {"image": npy_images([path], reading)})


def npy_images(paths: Sequence[Path], reading: Reading = AS_THEY_ARE) -> Images:
    """The images of .npy files, one file after the other: uint8 [N, H, W, C]. They stay there if `reading` says so.

    Raises:
      InputError: a file cannot be read, or is damaged; the images of two files differ in shape; or they are to stay in
        files that do not hold uint8 in C's order.
    """
    forms = [npy_form(path) for path in paths]
    shape = forms[0].shape[1:]
    for path, form in zip(paths, forms, strict=True):
        if form.shape[1:] != shape:
            here, there = shape_words(form.shape[1:]), shape_words(shape)
            raise InputError(f"{path}: images of {here}, but those of {paths[0].name} are {there}")
    total = sum(math.prod(form.shape) * form.dtype.itemsize for form in forms)
    wanted = reading.stream == "always" or (reading.stream == "auto" and total > memory.host_free_bytes() // 2)
    if wanted:
        held = [(path, f.held) for path, f in zip(paths, forms, strict=True) if f.held != "uint8"]
        if not held:
            stored = []
            for path, form in zip(paths, forms, strict=True):
                with blaming(path):
                    stored.append(StoredArray(path, form.offset, form.shape))
            return cast(Images, Rows(stored))  # They have as much of an array's interface as images need.
        if reading.stream == "always":
            path, kind = held[0]
            raise InputError(f"--stream always: {path}: holds {kind}; only uint8 in C's order can be streamed")
    with blaming(paths[0]):
        images, start = np.empty((sum(form.shape[0] for form in forms), *shape), np.uint8), 0
    for path, form in zip(paths, forms, strict=True):
        stop = start + form.shape[0]
        images[start:stop] = to_uint8(read_npy(path, require_image_shape), path)
        start = stop
    return images


class NpyForm(NamedTuple):
    """What a .npy file holds, by its header.

    Attributes:
      shape: [n, H, W, C].
      dtype: of its values.
      held: the name of the dtype, or that the array is in Fortran's order.
      offset: where the values begin, in bytes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    held: str
    offset: int


def npy_form(path: Path) -> NpyForm:
    """The form of a .npy file of images. Raises `InputError`."""
    with blaming(path), path.open("rb") as file:
        shape, fortran, dtype = _npy_header(file, os.fstat(file.fileno()).st_size, path)
        held = "an array in Fortran's order" if fortran else str(dtype)
        return NpyForm(shape if len(shape) == 4 else (*shape, 1), dtype, held, file.tell())


def read_npy(path: Path, check: Callable[[Sequence[int], object], None]) -> np.ndarray[Any, Any]:
    """The array of a .npy file. `check` refuses wrong shapes. Raises `InputError`."""
    with blaming(path), path.open("rb") as file:
        return _content(file, *_npy_header(file, os.fstat(file.fileno()).st_size, path, check), path)


# What the arrays of a .npz file are called, by split: images and labels. Keras' names, plain ones, MedMNIST's.
_LAYOUTS = (("x_{}", "y_{}"), ("{}", "{}_labels"), ("{}_images", "{}_labels"))


def npz_file(name: str, path: Path, warn: Callable[[str], None] = errors.warn) -> ImageData:
    """The images of a .npz file, and their labels if it holds one for each image of every split.

    Args:
      name: of the dataset.
      path: the file.
      warn: called with one line if the file holds labels that are left out.

    Raises:
      InputError: the file cannot be read, or its arrays have other names.
    """
    with blaming(path), zipfile.ZipFile(path) as archive:
        arrays = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        members = {info.filename.removesuffix(".npy"): info for info in arrays}
        names = _npz_names([*members], path)
        splits: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
        unfit = [f"there is no {labels}" for _, labels in names.values() if labels not in members]
        for split, (images, labels) in names.items():
            told = f"{path}: {images if labels else repr(images)}"
            array = read_member(archive, members[images], told, require_image_shape)
            found = splits[split] = {"image": to_uint8(array, told)}
            if labels in members:
                told = f"{path}: {labels}"
                array = read_member(archive, members[labels], told, lambda *_: None)
                if is_label_shape(array.shape):
                    found["label"] = to_labels(array, len(found["image"]), told)
                else:
                    unfit.append(f"{labels} is {list(array.shape)}, not one label for each image")
    if unfit and any(labels in members for _, labels in names.values()):
        warn(f"{path}: labels are left out: {unfit[0]}")
    # Without other splits, the images are in the order of the file.
    return dataclasses.replace(of_splits(name, f"NumPy file {path}", splits), whole=len(splits) == 1)


def _npz_names(members: Sequence[str], path: Path) -> dict[str, tuple[str, str]]:
    """The names of the images and of the labels, by split, in a .npz file of these members. Raises `InputError`."""
    layouts = [
        {split: (image.format(split), label.format(split)) for split in ("train", "test", *VALIDATION)}
        for image, label in _LAYOUTS
    ]
    tested = any(name in members for layout in layouts for name in layout["test"])
    held = [{split: names for split, names in layout.items() if names[0] in members} for layout in layouts]
    for splits in held:
        if "train" in splits and ("test" in splits or not tested):
            return {split: splits[split] for split in used_splits(splits, path)}
    if "images" in members:
        if other := [names["test"][0] for names in layouts if names["test"][0] in members]:
            raise InputError(f"{path}: holds images and {other[0]}: if both belong together, name images x_train, too")
        return {"train": ("images", "labels")}
    if len(members) == 1:
        return {"train": (members[0], "")}
    names = ", ".join(repr(key) for key in sorted(members)[:20]) or "no arrays"
    raise InputError(
        f"{path}: needs x_train and, for testing, x_test, or train and test, or train_images and test_images, or "
        f"images, or a single array; found {names}"
    )


def read_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, label: str, check: Callable[[Sequence[int], object], None]
) -> np.ndarray[Any, Any]:
    """An array of an open .npz file. `check` refuses wrong shapes. Raises `InputError`."""
    with opened_member(archive, member, label, check) as (file, shape, fortran, dtype):
        return _content(file, shape, fortran, dtype, label)


@contextlib.contextmanager
def opened_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, label: str, check: Callable[[Sequence[int], object], None]
) -> Iterator[tuple[IO[bytes], tuple[int, ...], bool, np.dtype[Any]]]:
    """An array of an open .npz file, from which its content can be read; and the form of the array.

    The form is its shape, whether it is in Fortran's order, and its dtype. Raises `InputError`.
    """
    if member.file_size > _DEFLATE_MAX_RATIO * member.compress_size:
        sizes = f"{member.compress_size} bytes to {member.file_size}"
        raise InputError(f"{label}: claims to unpack from {sizes}, more than deflate can")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{label}: compressed in a way that NumPy does not write")
    with archive.open(member) as file:
        yield file, *_npy_header(file, member.file_size, label, check)


def _npy_header(
    file: IO[bytes], size: int, label: object, check: Callable[[Sequence[int], object], None] = require_image_shape
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """The shape, whether it is in Fortran's order, and the dtype of .npy content, `size` bytes, at `file`'s start."""
    # NumPy warns when it repairs a header that Python 2 wrote. The repaired header works, so the warning is no use.
    with blaming(label), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:  # 3.0 is for names of fields, which images do not have
            raise InputError(f"{label}: .npy version {version[0]}.{version[1]} does not hold images")
    if dtype.hasobject:
        raise InputError(f"{label}: holds pickled Python objects, refused because unpickling runs code")
    if dtype.kind not in "buif" or dtype.itemsize > 8:
        raise InputError(f"{label}: dtype {str(dtype)[:50]} is not uint8, bool, float16/32/64 or an integer")
    shape = tuple(int(n) for n in shape)  # a header may say True for 1
    if any(n < 1 for n in shape):
        raise InputError(f"{label}: empty: shape {list(shape)[:8]}")
    claimed = math.prod(shape) * dtype.itemsize
    if claimed != size - file.tell():
        state = "truncated" if claimed > size - file.tell() else "trailing bytes"
        raise InputError(f"{label}: {state}: the header claims {claimed} bytes, {size - file.tell()} follow")
    check(shape, label)
    return shape, fortran, dtype


def _content(
    file: IO[bytes], shape: tuple[int, ...], fortran: bool, dtype: np.dtype[Any], label: object
) -> np.ndarray[Any, Any]:
    """What follows the header of a .npy file."""
    flat = np.frombuffer(read_exactly(file, math.prod(shape) * dtype.itemsize, label), dtype)
    return flat.reshape(shape, order="F" if fortran else "C")
