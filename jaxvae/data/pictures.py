"""Read folders of pictures. All input is untrusted."""

import contextlib
import dataclasses
import errno
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, NoReturn, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from jaxvae import memory
from jaxvae.data.arrays import paired, split_off_test
from jaxvae.data.decoded import decoded_once
from jaxvae.data.formats import blaming
from jaxvae.data.images import ImageData, Split
from jaxvae.data.labels import labels_of
from jaxvae.data.reading import Images, Reading, shape_words
from jaxvae.data.rows import picked
from jaxvae.errors import InputError
from jaxvae.machine import cores
from jaxvae.options import one_of

if TYPE_CHECKING:
    from PIL import Image, ImageFile

T = TypeVar("T")

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_GREY = ("1", "L", "LA")  # Modes of Pillow.
_DEEP = ("I", "F")  # How the names of those begin that have more than 8 bits per channel.
_ORIENTATION, _TURNED = 0x0112, 5  # The EXIF tag, and its least value that swaps height and width.
_SMALL_SIDE = 64  # The most that a message proposes.
_AT_ONCE = 256  # Pictures that are decoded before the next are begun.
_NAMED = 3  # Files or sizes that a message names.


class Pictures(NamedTuple):
    """The pictures of a folder that can be read, in order.

    Attributes:
      images: uint8 [N, H, W, C].
      labels: [N]; None: there are none.
      classes: the names of the labels; empty if they have none.
      files: the path of each picture, relative to the folder.
      counts: how many are of each split, if it has splits: training, then test.
      skipped: a line for each file that was left out.
      source: where they came from, in words.
    """

    images: Images
    labels: NDArray[np.int32] | None
    classes: tuple[str, ...]
    files: list[str]
    counts: tuple[int, ...]
    skipped: tuple[str, ...]
    source: str


def pictures_of(folder: Path, reading: Reading) -> Pictures:
    """The pictures in and below a folder. Raises `InputError`."""
    parts = [folder / "train", folder / "test"]
    with blaming(folder):
        split_already = all(part.is_dir() for part in parts)
    parts = parts if split_already else [folder]
    every = {part: _picture_files(part) for part in parts}
    paths = [path for group in every.values() for path in group]
    source = f"pictures in {folder}"
    if _is_streamed(paths, reading):
        images, bad, place = _decoded(folder, paths, reading)
        source = f"{source}, decoded in {place}"
    else:
        images, bad = _read(folder, paths, reading)
    labels = labels_of(folder, every)
    kept = {part: [path for path in group if path not in bad] for part, group in every.items()}
    for part, group in kept.items():
        if not group:
            raise InputError(f"{part}: none of its picture files can be read")
    whole = [path for group in kept.values() for path in group]
    return Pictures(
        images,
        None if labels is None else labels.array(whole),
        labels.classes if labels else (),
        [path.relative_to(folder).as_posix() for path in whole],
        tuple(len(group) for group in kept.values()) if split_already else (),
        tuple(bad.values()),
        source,
    )


def folder_of_pictures(name: str, folder: Path, reading: Reading) -> ImageData:
    """The images of a folder of picture files. Raises `InputError`."""
    found = pictures_of(folder, reading)
    whole: Split = {"image": found.images} | ({} if found.labels is None else {"label": found.labels})
    if found.counts:
        count = found.counts[0]
        places = np.arange(count), np.arange(count, len(found.files))
        splits = ({key: picked(values, part) for key, values in whole.items()} for part in places)
        images = paired(name, found.source, *splits)
    else:
        images = split_off_test(name, found.source, whole)
    return dataclasses.replace(images, skipped=found.skipped, classes=found.classes)


def _picture_files(folder: Path) -> list[Path]:
    """The picture files in and below a folder, by their relative path."""
    found = []
    with blaming(folder):
        # As strings, which are listed and sorted ten times as fast as paths.
        for directory, _, files in os.walk(folder, onerror=_raise):
            place = os.path.relpath(directory, folder)
            inner = "" if place == "." else f"{Path(place).as_posix()}/"
            found += [inner + file for file in files if file.lower().endswith(SUFFIXES)]
    if not found:
        raise InputError(f"{folder}: no {one_of(FORMATS)} files in or below this folder")
    return [folder / file for file in sorted(found)]


def _raise(error: OSError) -> NoReturn:
    raise error


def _read(folder: Path, paths: Sequence[Path], reading: Reading) -> tuple[Images, dict[Path, str]]:
    """Read picture files as uint8 ``[N, H, W, C]``, and say what is wrong with those that are left out.

    C is 1 if all are grey, else 3, unless `reading` says it.
    """
    bad: dict[Path, str] = {}
    return stacked(list(_pictures(folder, paths, reading, bad))), bad


def stacked(pictures: Sequence[Images]) -> Images:
    """Pictures of one size as uint8 ``[N, H, W, C]``; C is 1 if all are grey, else 3."""
    channels = max(picture.shape[2] for picture in pictures)
    return np.stack([np.broadcast_to(picture, (*picture.shape[:2], channels)) for picture in pictures])


def of_one_size(pictures: Iterable[Images], reading: Reading, told: str) -> Images:
    """Pictures as uint8 ``[N, H, W, C]``.

    Args:
      pictures: each uint8 [H, W, C], read as `reading` says.
      reading: how they are read.
      told: where they are, in messages.

    Raises:
      InputError: there are none, or they have several sizes; or reading them fails.
    """
    found = list[Images]()
    with blaming(told), checked(reading):
        for picture in pictures:
            found.append(picture)
            if picture.shape[:2] != found[0].shape[:2]:
                sizes = f"{shape_words(found[0].shape[:2])} and {shape_words(picture.shape[:2])}"
                raise InputError(f"{told}: images of several sizes, such as {sizes}: give them one with --image-size")
    if not found:
        raise InputError(f"{told}: holds no images")
    return stacked(found)


def _pictures(folder: Path, paths: Sequence[Path], reading: Reading, bad: dict[Path, str]) -> Iterator[Images]:
    """The pictures that can be read, in order; `bad` gets what is wrong with the others.

    Raises:
      InputError: they have several sizes; or, at the end, some cannot be read and are not to be left out.
    """
    size: tuple[int, ...] | None = None
    with checked(reading):
        for path, found in zip(paths, _in_threads(lambda path: _picture_or_fault(path, reading), paths), strict=True):
            if isinstance(found, str):
                bad[path] = found
                continue
            size = size or found.shape[:2]
            if found.shape[:2] != size:
                raise InputError(f"{folder}: {_sizes(paths)}")
            yield found
    if bad and (size is None or not reading.skip_bad):
        advice = "" if size is None else "; --skip-bad leaves them out"
        named = "; ".join([*list(bad.values())[:_NAMED], *(["..."] if len(bad) > _NAMED else [])])
        raise InputError(f"{folder}: {len(bad)} of {len(paths)} picture files cannot be read: {named}{advice}")


def _is_streamed(paths: Sequence[Path], reading: Reading) -> bool:
    """Whether the pictures are to be decoded into a file: if that is asked for, or they might not fit in memory."""
    if reading.stream != "auto":
        return reading.stream == "always"
    # The first that can be read: if there are other sizes, that is an error anyway.
    with checked(reading):
        size = reading.size or next((size for size in map(_size_or_none, paths) if size is not None), (0, 0))
    return len(paths) * math.prod(size) * (reading.channels or 3) > memory.host_free_bytes() // 2


def _decoded(folder: Path, paths: Sequence[Path], reading: Reading) -> tuple[Images, dict[Path, str], Path]:
    """The pictures as rows of a file in the user's cache, which is written if need be; the bad ones; the file."""
    if reading.channels is None:
        with checked(reading):
            grey = all(found for found in _in_threads(_grey_or_none, paths) if found is not None)
        reading = dataclasses.replace(reading, channels=1 if grey else 3)
    rows, bad = decoded_once(folder, paths, reading, lambda bad: _pictures(folder, paths, reading, bad))
    return cast(Images, rows), bad, rows.files[0].path


@contextlib.contextmanager
def checked(reading: Reading) -> Iterator[None]:
    """Refuse pictures of very many pixels, and ignore what else Pillow warns of."""
    from PIL import Image

    with warnings.catch_warnings():
        # Warnings of odd metadata or palettes do not matter as long as the pixels can be read.
        warnings.simplefilter("ignore")
        if reading.size is None:
            # From 90 million pixels on. A photograph that is scaled down may have twice as many, which Pillow allows.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _in_threads(run: Callable[[Path], T], paths: Sequence[Path]) -> Iterator[T]:
    """What `run` gives for each path, in order."""
    with ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(paths), _AT_ONCE):
            yield from pool.map(run, paths[start : start + _AT_ONCE])


def _sizes(paths: Sequence[Path]) -> str:
    """A sentence about pictures of several sizes, from what the files' headers say."""
    sizes, first = Counter[tuple[int, int]](), dict[tuple[int, int], Path]()
    for path, size in zip(paths, _in_threads(_size_or_none, paths), strict=True):
        if size is not None:
            sizes[size] += 1
            first.setdefault(size, path)
    named = ", ".join(
        f"{shape_words(size)} ({count}, such as {first[size]})" for size, count in sizes.most_common(_NAMED)
    )
    side = min(_SMALL_SIDE, *(min(size) for size in sizes))
    return (
        f"pictures of {len(sizes)} sizes, height x width: {named}{', ...' if len(sizes) > _NAMED else ''}; "
        f"give all of them one, such as --image-size {side}"
    )


def _size_or_none(path: Path) -> tuple[int, int] | None:
    """(height, width) of a picture, upright; None: it cannot be read."""
    try:
        with _opened(path) as image:
            width, height = image.size
            return (width, height) if image.getexif().get(_ORIENTATION, 1) >= _TURNED else (height, width)
    except InputError:
        return None


def _grey_or_none(path: Path) -> bool | None:
    """Whether a picture is grey; None: it cannot be read, or has too many bits."""
    try:
        with _opened(path) as image:
            return None if image.mode.startswith(_DEEP) else image.mode in _GREY
    except InputError:
        return None


def _picture_or_fault(path: Path, reading: Reading) -> Images | str:
    """The picture of a file, or what is wrong with it.

    Raises:
      InputError: the fault is that of the disk or the process, and may be gone the next time.
    """
    try:
        return _read_picture(path, reading)
    except InputError as error:
        cause = error.__cause__
        if isinstance(cause, MemoryError):
            raise cause from None
        if isinstance(cause, OSError) and cause.errno not in (None, errno.ENOENT):
            raise
        return str(error)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator["ImageFile.ImageFile"]:
    """A picture file, whose header is read. Raises `InputError`."""
    # As a stream: Pillow maps a path into memory, and then garbles TIFF files that are turned.
    with blaming(path), path.open("rb") as file, opened_stream(file, path) as image:
        yield image


@contextlib.contextmanager
def opened_stream(file: IO[bytes], label: object) -> Iterator["ImageFile.ImageFile"]:
    """A picture in one of `FORMATS`, whose header is read. Raises `InputError`."""
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        what = f"not a {one_of(FORMATS)} file" if file.seek(0, os.SEEK_END) else "empty"
        raise InputError(f"{label}: {what}") from None
    with image:
        yield image


def _read_picture(path: Path, reading: Reading) -> Images:
    with _opened(path) as image:
        if reading.size:
            # A large JPEG is decoded several times as fast at a half, a quarter or an eighth of its size.
            enough = 2 * max(reading.size)
            image.draft(None, (enough, enough))
        return picture_of(image, reading, path)


def picture_of(image: "Image.Image", reading: Reading, label: object) -> Images:
    """A picture of Pillow, composited over white: uint8 ``[H, W, 1]`` if its mode is grey, else ``[H, W, 3]``.

    Raises `InputError` if it has more than 8 bits per channel.
    """
    from PIL import Image, ImageOps

    if image.mode.startswith(_DEEP):
        # Pillow would clip these to 255 instead of scaling them.
        raise InputError(f"{label}: has more than 8 bits per channel; convert it to 8 bits")
    grey = image.mode in _GREY if reading.channels is None else reading.channels == 1
    upright: Image.Image = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.atleast_3d(np.asarray(reading.resized(upright.convert("L" if grey else "RGB"))))
