"""Names and paths in, validated uint8 images ``[N, H, W, C]`` out. All file formats end here.

Everything read is untrusted: no pickles, no allocation on a header's word alone, and every defect is an
`InputError` of one line that names the flag or the file.
"""

import contextlib
import io
import math
import os
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxvae.data import download
from jaxvae.data.images import ImageData, Images
from jaxvae.errors import InputError, suggestion

IDX_DATASETS = tuple(download.BASE_URLS)
"""Datasets that come as MNIST's IDX files, from a folder or downloaded."""

DATASETS = ("auto", *IDX_DATASETS, "digits")
"""Every name `load` knows."""

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_IDX_STEMS = ("train-images", "t10k-images")
_IDX_MAGIC = 0x00000803  # unsigned bytes, three dimensions
_DEFLATE_MAX_RATIO = 1032  # the most that deflate can expand, in bytes per compressed byte
_CHUNK = 1 << 20  # bytes per read
_HOLD_OUT = 10  # every tenth image of a set that has no test set of its own


def _warn_on_stderr(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


def load(
    dataset: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    warn: Callable[[str], None] = _warn_on_stderr,
) -> ImageData:
    """Loads a dataset by name or by path.

    - ``mnist``, ``fashion_mnist``, ``kmnist``: 28x28 grey. The two IDX image files in `data_dir`, gzipped
      or not; without `data_dir`, those in TensorFlow Datasets' cache, or else downloaded into it.
    - ``digits``: scikit-learn's 1,797 digits of 8x8, scaled to 28x28; the first 1,500 are the training
      set. Needs neither files nor network.
    - ``auto``: ``mnist``; without `data_dir`, and where MNIST is neither in the cache nor can be
      downloaded, ``digits``, and `warn` is told.
    - ``FILE.npy``: one array, split.
    - ``FILE.npz``: ``x_train`` and ``x_test``, or ``train`` and ``test``, or, if there is only one array,
      that one, split.
    - a folder: the PNG and JPEG files in and below its ``train/`` and ``test/`` if it has both, else all in
      and below the folder, split.

    *Split* means that every tenth image (index 9, 19, ...) is held out for the test set; it takes at least
    10 images.

    Arrays are ``[N, H, W]`` or ``[N, H, W, C]`` with C one of 1, 3, 4; uint8, bool (to 0 and 255), floats
    in [0, 1] (times 255, rounded) or other integers in 0..255.

    A fourth channel of an array is taken as it stands, whatever it holds.

    Image files must all have one size. They are sorted by relative path and turned upright as their EXIF
    tag says. If the mode of every one is grey (1, L, LA), C is 1, else C is 3. Pictures with transparency are
    composited over white, so what colour a transparent pixel has does not matter.
    Links to files are followed, links to folders below the given one are not.

    Args:
      dataset: one of `DATASETS`, or a path; ``./mnist`` is a path, ``mnist`` a name.
      data_dir: folder with the IDX files; for ``auto`` and `IDX_DATASETS` only.
      warn: called with one line when ``auto`` falls back.

    Raises:
      InputError: an unknown name, a missing, damaged or unsuitable file, or a failed download. Only
        ``auto`` without `data_dir` ever falls back to other data than was asked for.
    """
    if data_dir is not None and dataset not in ("auto", *IDX_DATASETS):
        names = ", ".join(("auto", *IDX_DATASETS))
        raise InputError(f"--data-dir goes with --dataset {names}, not with {dataset!r}")
    if dataset == "auto":
        return _auto(data_dir, warn)
    if dataset in IDX_DATASETS:
        return _idx_dataset(dataset, data_dir)
    if dataset == "digits":
        return _digits()
    path = Path(dataset)
    with _blaming(f"--dataset {dataset!r}"):
        is_folder, is_file = path.is_dir() and dataset != "", path.is_file()
    if is_folder:
        return _folder(dataset, path)
    if is_file and path.suffix.lower() == ".npy":
        return _npy_file(dataset, path)
    if is_file and path.suffix.lower() == ".npz":
        return _npz_file(dataset, path)
    raise InputError(
        f"--dataset {dataset!r} is neither one of {', '.join(DATASETS)}, "
        f"nor the path of a .npy file, a .npz file or a folder of PNG or JPEG images{suggestion(dataset, DATASETS)}"
    )


# --- Named datasets -----------------------------------------------------------------------------------------


def _auto(data_dir: str | os.PathLike[str] | None, warn: Callable[[str], None]) -> ImageData:
    if data_dir is None:
        try:
            download.idx_files("mnist")
        except InputError as error:
            warn(f"TRAINING ON SCIKIT-LEARN'S 8x8 DIGITS, NOT ON MNIST, which is not to be had: {error}")
            return _digits()
    # A file that is there but damaged is an error, not a reason to train on something else.
    return _idx_dataset("mnist", data_dir)


def _idx_dataset(name: str, data_dir: str | os.PathLike[str] | None) -> ImageData:
    if data_dir is None:
        train, test = download.idx_files(name)
        source = f"IDX files in TensorFlow Datasets' cache {train.parent}"
    else:
        train, test = (_find_idx(Path(data_dir), stem) for stem in _IDX_STEMS)
        source = f"IDX files in {data_dir}"
    return _paired(name, source, _read_idx(train), _read_idx(test))


def _find_idx(folder: Path, stem: str) -> Path:
    with _blaming(f"--data-dir {folder}"):
        if not folder.is_dir():
            raise InputError(f"--data-dir {folder} is not a folder")
        for name in (f"{stem}-idx3-ubyte", f"{stem}.idx3-ubyte"):
            for path in (folder / name, folder / f"{name}.gz"):
                if path.is_file():
                    return path
    raise InputError(f"--data-dir {folder} has no file {stem}-idx3-ubyte, with or without .gz")


def _digits() -> ImageData:
    from PIL import Image
    from sklearn.datasets import load_digits

    small = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    # Bicubic, because bilinear smears strokes as thin as a pixel. Its only lobes are negative and are clipped
    # at 0, so no ripples show on the black ground.
    large = [np.asarray(Image.fromarray(d).resize((28, 28), Image.Resampling.BICUBIC)) for d in small]
    images = np.stack(large)[..., None]
    source = "scikit-learn's bundled digits, 8x8 scaled to 28x28"
    return ImageData("digits", source, images[:1500], images[1500:])


# --- Splitting and pairing ----------------------------------------------------------------------------------


def _split(name: str, source: str, images: Images) -> ImageData:
    """Holds out every tenth image: fixed, and fair to files that are sorted by class."""
    if len(images) < _HOLD_OUT:
        raise InputError(f"{name}: too few images to hold out every tenth for testing: {len(images)}, not 10")
    held_out = np.s_[_HOLD_OUT - 1 :: _HOLD_OUT]
    return _paired(name, source, np.delete(images, held_out, axis=0), images[held_out].copy())


def _paired(name: str, source: str, train: Images, test: Images) -> ImageData:
    if train.shape[1:] != test.shape[1:]:
        shapes = f"{list(train.shape[1:])} and {list(test.shape[1:])}"
        raise InputError(f"{name}: training and test images differ in [H, W, C]: {shapes}")
    return ImageData(name, source, train, test)


# --- Reading bytes ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _blaming(label: object) -> Iterator[None]:
    """Turns whatever a decoder raises on damaged input into an `InputError` that names the file.

    Every kind of exception, since the decoders of zlib, zipfile, NumPy and Pillow raise many on hostile
    bytes (struct.error, SyntaxError, RecursionError, ...) and document few.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise InputError(f"{label}: cannot be read: {' '.join(text.split())[:200]}") from error


def _read_exactly(file: IO[bytes] | io.BufferedIOBase, size: int, label: object) -> bytearray:
    """Reads the `size` bytes that remain, in pieces: memory follows what is there, not what is claimed."""
    data = bytearray()
    with _blaming(label):
        while len(data) < size and (piece := file.read(min(_CHUNK, size - len(data)))):
            data += piece
        # Reading past the end is also what makes gzip and zip verify their checksums.
        more = file.read(1)
    if len(data) < size:
        raise InputError(f"{label}: truncated: the header claims {size} bytes, only {len(data)} follow")
    if more:
        raise InputError(f"{label}: trailing bytes after the {size} that the header claims")
    return data


# --- IDX ----------------------------------------------------------------------------------------------------


def _read_idx(path: Path) -> Images:
    """Reads an IDX file of images, gzipped or not, as uint8 ``[N, H, W, 1]``."""
    import gzip

    with _blaming(path), path.open("rb") as raw:
        # By content, not by name: browsers unpack what they download and keep the .gz.
        gzipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        with gzip.open(raw) if gzipped else contextlib.nullcontext(raw) as file:
            header = file.read(16)
            if len(header) < 16:
                raise InputError(f"{path}: truncated: an IDX header takes 16 bytes, there are {len(header)}")
            magic, *shape = struct.unpack(">4I", header)
            if magic != _IDX_MAGIC:
                raise InputError(f"{path}: not IDX images: magic number 0x{magic:08x}, not 0x{_IDX_MAGIC:08x}")
            if 0 in shape:
                raise InputError(f"{path}: empty: shape {shape}")
            data = _read_exactly(file, math.prod(shape), path)
    return np.frombuffer(data, np.uint8).reshape(*shape, 1)


# --- NumPy --------------------------------------------------------------------------------------------------


def _npy_file(name: str, path: Path) -> ImageData:
    with _blaming(path), path.open("rb") as file:
        array = _read_npy(file, os.fstat(file.fileno()).st_size, path)
    return _split(name, f"NumPy file {path}", _to_uint8(array, path))


def _npz_file(name: str, path: Path) -> ImageData:
    source = f"NumPy file {path}"
    with _blaming(path), zipfile.ZipFile(path) as archive:
        arrays = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        members = {info.filename.removesuffix(".npy"): info for info in arrays}
        for pair in (("x_train", "x_test"), ("train", "test")):
            if members.keys() >= set(pair):
                train, test = (_read_member(archive, members[key], f"{path}: {key}") for key in pair)
                return _paired(name, source, train, test)
        if len(members) == 1:
            [(key, member)] = members.items()
            return _split(name, source, _read_member(archive, member, f"{path}: {key!r}"))
    found = ", ".join(repr(key) for key in sorted(members)[:20]) or "no arrays"
    raise InputError(f"{path}: needs x_train and x_test, or train and test, or a single array; found {found}")


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, label: str) -> Images:
    if member.file_size > _DEFLATE_MAX_RATIO * member.compress_size:
        sizes = f"{member.compress_size} bytes to {member.file_size}"
        raise InputError(f"{label}: claims to unpack from {sizes}, more than deflate can")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{label}: compressed in a way that NumPy does not write")
    with archive.open(member) as file:
        return _to_uint8(_read_npy(file, member.file_size, label), label)


def _read_npy(file: IO[bytes], size: int, label: object) -> np.ndarray[Any, Any]:
    """Reads the .npy content of `size` bytes that `file` is at the start of; never unpickles."""
    # NumPy warns when it has to mend a header that Python 2 wrote; it is mended, so nobody needs to know.
    with _blaming(label), warnings.catch_warnings():
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
    _require_image_shape(shape, label)
    flat = np.frombuffer(_read_exactly(file, claimed, label), dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


def _require_image_shape(shape: Sequence[int], label: object) -> None:
    if len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3, 4)):
        return
    hint = ""
    if len(shape) == 4 and shape[1] in (1, 3, 4):
        hint = "; this looks like [N, C, H, W]: channels go last, so transpose to (0, 2, 3, 1)"
    raise InputError(f"{label}: shape {list(shape)[:8]} is not [N, H, W] or [N, H, W, C] with C one of 1, 3, 4{hint}")


def _to_uint8(array: np.ndarray[Any, Any], label: object) -> Images:
    """Converts ``[N, H, W]`` or ``[N, H, W, C]`` of any accepted dtype to uint8 ``[N, H, W, C]``."""
    if array.ndim == 3:
        array = array[..., None]
    if array.dtype == np.bool_:
        # Through bytes, because nothing makes a file stick to 0 and 1.
        array = np.where(array.view(np.uint8) != 0, np.uint8(255), np.uint8(0))
    elif array.dtype != np.uint8:
        floating = array.dtype.kind == "f"
        high = 1 if floating else 255
        with np.errstate(invalid="ignore"):
            low, top = array.min(), array.max()
        if not (low >= 0 and top <= high):  # false for NaN too
            kind = "floats must be finite and in [0, 1]" if floating else "integers must be in 0..255"
            raise InputError(f"{label}: {array.dtype} values from {low:g} to {top:g}: {kind}")
        array = np.rint(array.astype(np.float32) * 255) if floating else array
    return np.ascontiguousarray(array, dtype=np.uint8)


# --- Folders of pictures ------------------------------------------------------------------------------------


def _folder(name: str, folder: Path) -> ImageData:
    parts = [folder / "train", folder / "test"]
    with _blaming(folder):
        split_already = all(part.is_dir() for part in parts)
    groups = [_picture_files(part) for part in (parts if split_already else [folder])]
    images = _read_pictures([path for group in groups for path in group])
    source = f"pictures in {folder}"
    if split_already:
        n = len(groups[0])
        return _paired(name, source, images[:n], images[n:])
    return _split(name, source, images)


def _picture_files(folder: Path) -> list[Path]:
    with _blaming(folder):
        found = [p for p in folder.rglob("*") if p.suffix.lower() in _IMAGE_SUFFIXES and not p.is_dir()]
    if not found:
        raise InputError(f"{folder}: no PNG or JPEG files in or below this folder")
    return sorted(found, key=lambda p: p.relative_to(folder).as_posix())


def _read_pictures(paths: Sequence[Path]) -> Images:
    """Reads picture files of one size as uint8 ``[N, H, W, C]``, C = 1 if all are grey, else 3."""
    from PIL import Image

    images: list[Images] = []
    with warnings.catch_warnings():
        # Nobody needs to know that metadata or a palette is odd, as long as the pixels can be read.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for path in paths:
            image = _read_picture(path)
            if images and image.shape[:2] != images[0].shape[:2]:
                (h, w), (first_h, first_w) = image.shape[:2], images[0].shape[:2]
                raise InputError(
                    f"{path}: {w}x{h} pixels, but {paths[0]} has {first_w}x{first_h}; all must have one size"
                )
            images.append(image)
    channels = max(image.shape[2] for image in images)
    return np.stack([np.broadcast_to(image, (*image.shape[:2], channels)) for image in images])


def _read_picture(path: Path) -> Images:
    """Reads one picture, over white, as uint8 ``[H, W, 1]`` if its mode is grey, else ``[H, W, 3]``."""
    from PIL import Image, ImageOps

    with _blaming(path), Image.open(path, formats=("PNG", "JPEG")) as image:
        if image.mode.startswith(("I", "F")):
            # Pillow would clip these to 255 instead of scaling them.
            raise InputError(f"{path}: has more than 8 bits per pixel; convert it to 8 bits")
        grey = image.mode in ("1", "L", "LA")
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            rgba = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        return np.atleast_3d(np.asarray(upright.convert("L" if grey else "RGB")))
