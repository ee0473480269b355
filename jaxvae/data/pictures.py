"""Read folders of pictures. All input is untrusted."""

import contextlib
import dataclasses
import errno
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from jaxvae import errors, memory
from jaxvae.data.arrays import of_splits
from jaxvae.data.decoded import decoded_once
from jaxvae.data.formats import blaming
from jaxvae.data.images import SPLITS, ImageData, Split
from jaxvae.data.labels import labels_of, some
from jaxvae.data.listing import FORMATS, listed, picture_files, split_folders
from jaxvae.data.reading import Images, Reading, shape_words
from jaxvae.data.rows import Rows, picked
from jaxvae.errors import InputError
from jaxvae.machine import cores
from jaxvae.options import one_of

if TYPE_CHECKING:
    from PIL import ImageFile

T = TypeVar("T")

_GREY = ("1", "L", "LA")  # Modes of Pillow.
_DEEP = ("I", "F")  # How the names of those begin that have more than 8 bits per channel.
_BITS_PER_SAMPLE = 258  # The TIFF tag.
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
      counts: how many are of each split, in order, by its name. Without splits, all are of "train".
      skipped: a line for each file that was left out.
      source: where they came from, in words.
    """

    images: Images
    labels: NDArray[np.int32] | None
    classes: tuple[str, ...]
    files: list[str]
    counts: Mapping[str, int]
    skipped: tuple[str, ...]
    source: str


def pictures_of(folder: Path, reading: Reading, warn: Callable[[str], None] = errors.warn) -> Pictures:
    """The pictures in and below a folder, or in its folders of splits. `warn`: see `labels_of`. Raises `InputError`."""
    parts = split_folders(folder)
    if parts == {"train": folder / "train"}:
        # Other folders would be ignored, and may be classes: CIFAR-100 has one called train.
        for name in listed(folder, folder):
            if not name.startswith("train/"):
                raise InputError(
                    f"{folder}: pictures lie in train/ and beside it, such as {name}: put all into train/, or none"
                )
    groups = {split: picture_files(part, folder) for split, part in parts.items()}
    names = [name for group in groups.values() for name in group]
    labels = labels_of(folder, [*parts.values()], names, warn)
    source = f"pictures in {folder}"
    if _is_streamed(folder, names, reading):
        images, bad, place = _decoded(folder, names, reading)
        source = f"{source}, decoded in {place}"
    else:
        images, bad = _read(folder, names, reading)
    counts = {split: sum(name not in bad for name in group) for split, group in groups.items()}
    for split, count in counts.items():
        if not count:
            raise InputError(f"{parts[split]}: none of its picture files can be read")
    kept = np.array([name not in bad for name in names])
    return Pictures(
        images,
        None if labels is None else labels.values[kept],
        labels.classes if labels else (),
        [name for name in names if name not in bad],
        counts,
        tuple(bad.values()),
        source,
    )


def folder_of_pictures(
    name: str, folder: Path, reading: Reading, warn: Callable[[str], None] = errors.warn
) -> ImageData:
    """The images of a folder of picture files. Raises `InputError`.

    `warn` is called with one line: see `labels_of`; or if no picture for training has a label that others have.
    """
    found = pictures_of(folder, reading, warn)
    whole: Split = {"image": found.images} | ({} if found.labels is None else {"label": found.labels})
    splits = {"train": whole}
    if len(found.counts) > 1:
        places = np.split(np.arange(len(found.files)), np.cumsum([*found.counts.values()])[:-1])
        pairs = zip(found.counts, places, strict=True)
        splits = {split: {key: picked(values, own) for key, values in whole.items()} for split, own in pairs}
    images = of_splits(name, found.source, splits)
    if found.labels is not None:
        labels = {split: set(np.asarray(images.split(split).get("label", ())).tolist()) for split in SPLITS}
        if absent := sorted((labels["validation"] | labels["test"]) - labels["train"]):
            which = some([found.classes[value] if found.classes else str(value) for value in absent])
            warn(f"{folder}: no picture for training has the label {which}")
    return dataclasses.replace(images, skipped=found.skipped, classes=found.classes, whole=len(splits) == 1)


def _read(folder: Path, names: Sequence[str], reading: Reading) -> tuple[Images, dict[str, str]]:
    """Read picture files as uint8 ``[N, H, W, C]``, and say what is wrong with those that are left out.

    C is 1 if all are grey, else 3, unless `reading` says it.
    """
    bad: dict[str, str] = {}
    return stacked(list(_pictures(folder, names, reading, bad))), bad


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


def _pictures(folder: Path, names: Sequence[str], reading: Reading, bad: dict[str, str]) -> Iterator[Images]:
    """The pictures that can be read, in order; `bad` gets what is wrong with the others.

    Raises:
      InputError: they have several sizes; or, at the end, some cannot be read and are not to be left out.
    """
    size: tuple[int, ...] | None = None
    with checked(reading):
        every = _in_threads(lambda path: _picture_or_fault(path, reading), folder, names)
        for name, found in zip(names, every, strict=True):
            if isinstance(found, str):
                bad[name] = found
                continue
            size = size or found.shape[:2]
            if found.shape[:2] != size:
                raise InputError(f"{folder}: {_sizes(folder, names)}")
            yield found
    if bad and (size is None or not reading.skip_bad):
        advice = "" if size is None else "; --skip-bad leaves them out"
        named = "; ".join([*list(bad.values())[:_NAMED], *(["..."] if len(bad) > _NAMED else [])])
        raise InputError(f"{folder}: {len(bad)} of {len(names)} picture files cannot be read: {named}{advice}")


def _is_streamed(folder: Path, names: Sequence[str], reading: Reading) -> bool:
    """Whether the pictures are to be decoded into a file: if that is asked for, or they might not fit in memory."""
    if reading.stream != "auto":
        return reading.stream == "always"
    # The first that can be read: if there are other sizes, that is an error anyway.
    with checked(reading):
        found = (_header_or_none(folder / name) for name in names)
        size = reading.size or next((header.size for header in found if header is not None), (0, 0))
    return len(names) * math.prod(size) * (reading.channels or 3) > memory.host_free_bytes() // 2


def _decoded(folder: Path, names: Sequence[str], reading: Reading) -> tuple[Images, dict[str, str], Path]:
    """The pictures as rows of a file in the user's cache, which is written if need be; the bad ones; the file."""

    def read(reading: Reading) -> tuple[Rows, dict[str, str]]:
        return decoded_once(folder, names, reading, lambda bad: _pictures(folder, names, reading, bad))

    if reading.channels is not None:
        rows, bad = read(reading)
        return cast(Images, rows), bad, rows.files[0].path
    with checked(reading):
        found = _in_threads(_header_or_none, folder, names)
        coloured = {
            name
            for name, each in zip(names, found, strict=True)
            if each is not None and not each.deep and each.mode not in _GREY
        }
    rows, bad = read(dataclasses.replace(reading, channels=3 if coloured else 1))
    if coloured and coloured <= bad.keys():  # Those with colours have a header, but cannot be read.
        rows, bad = read(dataclasses.replace(reading, channels=1))
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


def _in_threads(run: Callable[[Path], T], folder: Path, names: Sequence[str]) -> Iterator[T]:
    """What `run` gives for each file of a folder, in order."""
    with ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(names), _AT_ONCE):
            yield from pool.map(run, map(folder.joinpath, names[start : start + _AT_ONCE]))


def _sizes(folder: Path, names: Sequence[str]) -> str:
    """A sentence about pictures of several sizes, from what the files' headers say."""
    sizes, first = Counter[tuple[int, int]](), dict[tuple[int, int], str]()
    for name, header in zip(names, _in_threads(_header_or_none, folder, names), strict=True):
        if header is not None:
            sizes[header.size] += 1
            first.setdefault(header.size, name)
    named = ", ".join(
        f"{shape_words(size)} ({count}, such as {folder / first[size]})" for size, count in sizes.most_common(_NAMED)
    )
    side = min(_SMALL_SIDE, *(min(size) for size in sizes))
    return (
        f"pictures of {len(sizes)} sizes, height x width: {named}{', ...' if len(sizes) > _NAMED else ''}; "
        f"give all of them one, such as --image-size {side}"
    )


class Header(NamedTuple):
    """What the header of a picture file says.

    Attributes:
      mode: Pillow's.
      size: (height, width), turned as the EXIF tag says.
      deep: whether it has more than 8 bits per channel.
    """

    mode: str
    size: tuple[int, int]
    deep: bool


def headers(folder: Path) -> Iterator[Header]:
    """The headers of the picture files of a folder, without those that cannot be opened."""
    names = [name for part in split_folders(folder).values() for name in picture_files(part, folder)]
    yield from (header for header in _in_threads(_header_or_none, folder, names) if header is not None)


def _header_or_none(path: Path) -> Header | None:
    try:
        with _opened(path) as image:
            # To look for the tag of a PNG file behind its pixels, Pillow would decode them.
            tagged = image.format != "PNG" or "exif" in image.info
            turned = tagged and image.getexif().get(_ORIENTATION, 1) >= _TURNED
            return Header(image.mode, image.size if turned else image.size[::-1], _is_deep(image))
    except InputError:
        return None


def _is_deep(image: "ImageFile.ImageFile") -> bool:
    """Whether a picture whose header is read has more than 8 bits per channel.

    Of such pictures Pillow takes the upper byte, or clips them to 255, or garbles them.
    """
    if image.format == "PNG":
        return any(str(mode).endswith(";16B") for *_, mode in image.tile)  # As it is stored, such as "RGB;16B".
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, ())  # Of a TIFF.
    return image.mode.startswith(_DEEP) or any(count > 8 for count in bits)


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


def picture_of(image: "ImageFile.ImageFile", reading: Reading, label: object) -> Images:
    """A picture of Pillow, composited over white: uint8 ``[H, W, 1]`` if its mode is grey, else ``[H, W, 3]``.

    Raises `InputError` if it has more than 8 bits per channel.
    """
    from PIL import Image, ImageOps

    if _is_deep(image):
        raise InputError(f"{label}: has more than 8 bits per channel; convert it to 8 bits")
    grey = image.mode in _GREY if reading.channels is None else reading.channels == 1
    upright: Image.Image = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.atleast_3d(np.asarray(reading.resized(upright.convert("L" if grey else "RGB"))))
