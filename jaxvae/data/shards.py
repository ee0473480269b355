"""Read folders of shards: .npy files whose images follow one another. All input is untrusted."""

import os
from pathlib import Path

import numpy as np

from jaxvae.data.arrays import paired, require_label_shape, split_off_test, to_labels
from jaxvae.data.formats import blaming, npy_form, npy_images, read_npy
from jaxvae.data.images import ImageData, Split
from jaxvae.data.pictures import SUFFIXES
from jaxvae.data.reading import Reading
from jaxvae.errors import InputError

MOST_FILES = 500  # A streamed one stays open, and many systems allow a process 1,024 open files.
_IMAGES, _LABELS = "images", "labels"


def holds_shards(folder: Path) -> bool:
    """Whether a folder, or its ``train/`` and ``test/``, hold .npy files, and no pictures lie in or below it."""
    if not any(_arrays(part) for part in _parts(folder)):
        return False
    return not any(file.lower().endswith(SUFFIXES) for _, _, files in os.walk(folder) for file in files)


def folder_of_shards(name: str, folder: Path, reading: Reading) -> ImageData:
    """The images of a folder of .npy files, sorted by name, and their labels. They stay there if `reading` says so.

    The files lie in ``train/`` and ``test/``, or in the folder itself; then every tenth image is held out. If some are
    called ``labels*.npy``, the images are those of ``images*.npy``: ``labels-007.npy`` belongs to ``images-007.npy``.

    Raises:
      InputError: a file cannot be read, is damaged, or has other images than the first; there are too many files; or
        there are labels for some of them only.
    """
    if (count := sum(len(_arrays(part)) for part in _parts(folder))) > MOST_FILES:
        raise InputError(f"{folder}: {count:,} .npy files: the most are {MOST_FILES}; join some of them")
    splits = [_split(part, reading) for part in _parts(folder)]
    source = f"NumPy files in {folder}"
    if len(splits) == 1:
        return split_off_test(name, source, splits[0])
    if splits[0].keys() != splits[1].keys():
        raise InputError(f"{folder}: only one of train and test has files of labels")
    return paired(name, source, *splits)


def _parts(folder: Path) -> list[Path]:
    parts = [folder / "train", folder / "test"]
    with blaming(folder):
        return parts if all(part.is_dir() for part in parts) else [folder]


def _arrays(folder: Path) -> list[Path]:
    """The .npy files of a folder, sorted by name, without hidden ones: macOS leaves such."""
    with blaming(folder):
        found = (path for path in folder.iterdir() if path.suffix.lower() == ".npy" and path.name[0] != ".")
        return sorted(path for path in found if path.is_file())


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
