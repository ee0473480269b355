"""The picture files of a folder, and its folders of splits."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from jaxvae.data.arrays import VALIDATION, used_splits
from jaxvae.data.formats import blaming
from jaxvae.errors import InputError
from jaxvae.options import one_of

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def split_folders(folder: Path) -> dict[str, Path]:
    """The folders of splits in a folder: train, and test and one of `VALIDATION` as far as they are there.

    If there are none, `folder` itself is train. Raises `InputError` if there are some, but no train.
    """
    with blaming(folder):
        found = [name for name in ("train", "test", *VALIDATION) if (folder / name).is_dir()]
    if found and found[0] != "train":
        raise InputError(f"{folder}: holds {found[0]}/, but no train/: add that, or name {folder / found[0]} itself")
    return {name: folder / name for name in used_splits(found, folder)} if found else {"train": folder}


def is_picture(file: str) -> bool:
    """Whether a file's name is that of a picture. Hidden files are none: macOS leaves some beside pictures."""
    return file[0] != "." and file.lower().endswith(SUFFIXES)


def picture_files(part: Path, folder: Path) -> list[str]:
    """The picture files in and below a part of a folder, sorted; see `listed`."""
    if found := sorted(listed(part, folder)):
        return found
    raise InputError(f"{part}: no {one_of(FORMATS)} files in or below this folder")


def listed(part: Path, folder: Path) -> Iterator[str]:
    """The picture files in and below a part of a folder, without hidden folders, as paths relative to `folder`.

    Links are followed: many make a subset of a dataset of links to the folders of some classes.
    """
    above = {str(part): frozenset[str]()}  # The folders that each is in, without links: a link to one has no end.
    with blaming(part):
        # As strings: a path for each of a million files takes seconds.
        for directory, folders, files in os.walk(part, onerror=_raise, followlinks=True):
            within = above.pop(directory) | {os.path.realpath(directory)}
            folders[:] = [
                name for name in folders
                if name[0] != "." and os.path.realpath(os.path.join(directory, name)) not in within
            ]  # fmt: skip
            above.update((os.path.join(directory, name), within) for name in folders)
            place = os.path.relpath(directory, folder)
            inner = "" if place == "." else f"{place}/"
            yield from [inner + file for file in files if is_picture(file)]


def _raise(error: OSError) -> NoReturn:
    raise error
