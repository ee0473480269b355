"""Read folders of shards: .npy files whose images follow one another. All input is untrusted."""

import dataclasses
import os
from pathlib import Path

import numpy as np

from jaxvae.data.arrays import VALIDATION, of_splits, require_label_shape, to_labels
from jaxvae.data.formats import blaming, npy_form, npy_images, read_npy
from jaxvae.data.images import ImageData, Split
from jaxvae.data.listing import is_picture, split_folders
from jaxvae.data.reading import Reading
from jaxvae.errors import InputError

MOST_FILES = 500  # A streamed one stays open, and many systems allow a process 1,024 open files.
_IMAGES, _LABELS = "images", "labels"


def holds_shards(folder: Path) -> bool:
    """Whether a folder, or its folders of splits, hold .npy files, and no pictures lie in or below it."""
    parts = (folder, *(folder / name for name in ("train", "test", *VALIDATION)))
    if not any(_arrays(part) for part in parts if part.is_dir()):
        return False
    return not any(is_picture(file) for _, _, files in os.walk(folder) for file in files)


def folder_of_shards(name: str, folder: Path, reading: Reading) -> ImageData:
    """The images of a folder of .npy files, sorted by name, and their labels. They stay there if `reading` says so.

    The files lie in folders of splits, or in the folder itself. Every tenth image is held out if there is no ``test/``.
    If some files are called ``labels*.npy``, the images are those of ``images*.npy``: ``labels-007.npy`` belongs to
    ``images-007.npy``.

    Raises:
      InputError: a file cannot be read, is damaged, or has other images than the first; there are too many files; or
        there are labels for some of them only.
    """
    parts = split_folders(folder)
    if parts == {"train": folder / "train"} and (beside := _arrays(folder)):
        name = beside[0].name
        raise InputError(f"{folder}: arrays lie in train/ and beside it, such as {name}: put all into train/, or none")
    if (count := sum(len(_arrays(part)) for part in parts.values())) > MOST_FILES:
        raise InputError(f"{folder}: {count:,} .npy files: the most are {MOST_FILES}; join some of them")
    splits = {split: _split(part, reading) for split, part in parts.items()}
    if len({"label" in split for split in splits.values()}) > 1:
        raise InputError(f"{folder}: only some of {', '.join(splits)} have files of labels")
    return dataclasses.replace(of_splits(name, f"NumPy files in {folder}", splits), whole=len(splits) == 1)


def _arrays(folder: Path) -> list[Path]:
    """The .npy files of a folder, sorted by name, without hidden ones: macOS leaves such."""
    with blaming(folder):
        names = sorted(name for name in os.listdir(folder) if name.lower().endswith(".npy") and name[0] != ".")
        return [folder / name for name in names if (folder / name).is_file()]


def _split(folder: Path, reading: Reading) -> Split:
    paths = _arrays(folder)
    labels = [path for path in paths if path.name.startswith(_LABELS)]
    images = [path for path in paths if not path.name.startswith(_LABELS)]
    if not images:
        raise InputError(f"{folder}: no .npy files of images in this folder")
    if not labels:
        return {"image": npy_images(images, reading)}
    expected = [path.with_name(path.name.replace(_IMAGES, _LABELS, 1)) for path in images]
    for image, label in zip(images, expected, strict=True):
        if label not in labels:
            raise InputError(f"{image}: has no labels; {labels[0].name} holds those of {_of_images(labels[0])}")
    if alone := [path for path in labels if path not in expected]:
        raise InputError(f"{alone[0]}: there is no {_of_images(alone[0])}")
    found = [
        to_labels(read_npy(label, require_label_shape), npy_form(image).shape[0], label)
        for image, label in zip(images, expected, strict=True)
    ]
    return {"image": npy_images(images, reading), "label": np.concatenate(found)}


def _of_images(labels: Path) -> str:
    return labels.name.replace(_LABELS, _IMAGES, 1)
