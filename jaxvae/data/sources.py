"""Load datasets by name or path, in any file format, as validated uint8 images ``[N, H, W, C]``.

All input is untrusted. Pickles are refused, no memory is allocated for what a header only claims, and every
defect is a one-line `InputError` that names the flag or the file.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jaxvae import errors
from jaxvae.config import Config
from jaxvae.data import download, hub, originals, tfds
from jaxvae.data.arrays import GIVEN, paired
from jaxvae.data.formats import blaming, npy_file, npz_file, read_idx, read_idx_labels
from jaxvae.data.images import ImageData, Split, reading_of, with_validation
from jaxvae.data.pictures import folder_of_pictures
from jaxvae.data.reading import AS_THEY_ARE, Reading
from jaxvae.data.shards import folder_of_shards, holds_shards
from jaxvae.errors import InputError, suggestion

FILE_DATASETS = (*download.IDX_DATASETS, *originals.ORIGINALS)
"""Datasets that come in their authors' files, from a folder or downloaded."""

DATASETS = ("auto", *FILE_DATASETS, "digits")
"""Every name `load` knows."""
_IDX_SPLITS = ("train", "t10k")


def load(
    dataset: str,
    data_dir: str | os.PathLike[str] | None = None,
    reading: Reading = AS_THEY_ARE,
    *,
    labels: bool = False,
    warn: Callable[[str], None] = errors.warn,
) -> ImageData:
    """Load a dataset by name or by path.

    - ``mnist``, ``fashion_mnist``, ``kmnist``: 28x28 grey. The two IDX image files in `data_dir`, gzipped
      or not; without `data_dir`, those in TensorFlow Datasets' cache, or else downloaded into it.
    - ``cifar10``, ``cifar100``, ``svhn_cropped``, ``omniglot``, ``caltech101_silhouettes``, ``dsprites``,
      ``binarized_mnist``, ``emnist/SPLIT``: the files of `originals.ORIGINALS`, found in the same way. Of ``dsprites``
      a tenth, drawn once and for all, is the test set. If `reading` says so, its images stay in a file, too.
    - ``digits``: scikit-learn's 1,797 digits of 8x8, scaled to 28x28; the first 1,500 are the training
      set. Needs neither files nor network.
    - ``auto``: ``mnist``. Without `data_dir`, if MNIST is neither in the cache nor can be downloaded:
      ``digits``, and `warn` is called.
    - ``FILE.npy``: one array, split. If `reading` says so, uint8 images stay in the file: see `jaxvae.data.rows.Rows`.
    - ``FILE.npz``: ``x_train``, ``x_test`` and ``x_val``, or ``train``, ``test`` and ``val``, or ``train_images`` and
      so on, as far as they are there; or ``images``, or a single array. Without test images, split. With labels:
      ``y_train`` and so on, or ``train_labels`` and so on, or ``labels``. Labels that a split lacks, or several for
      each image, are left out, and `warn` is called.
    - ``hf:NAME``, ``hf:NAME:CONFIGURATION``: a dataset of Hugging Face's hub. Needs the package `datasets`.
    - a folder: the picture files (PNG, JPEG, WebP, BMP, TIFF, GIF) in and below its ``train/``, ``test/`` and
      ``validation/`` (or ``valid/``, ``val/``), as far as they are there; else all in and below the folder. Without
      ``test/``, the images for training are split.
    - a folder that TensorFlow Datasets prepared: see `jaxvae.data.tfds.prepared_folder`.
    - a folder of ``.npy`` files without pictures: see `jaxvae.data.shards.folder_of_shards`.

    *Split* means that every tenth image (index 9, 19, ...) is held out for the test set. This needs at least
    10 images.

    Arrays are ``[N, H, W]`` or ``[N, H, W, C]`` with C one of 1, 3, 4; uint8, bool (to 0 and 255), floats
    in [0, 1] (times 255, rounded) or other integers in 0..255.

    A fourth channel of an array is kept as it is.

    Picture files must all have one size, unless `reading` gives them one. They are sorted by relative path and
    turned upright as their EXIF tag says. If all modes are grey (1, L, LA), C is 1, else C is 3. Pictures with
    transparency are composited over white, so the colour of a transparent pixel does not matter. Of an animation
    the first frame is taken. Links are followed. Their labels come from ``metadata.csv`` or
    ``metadata.jsonl``, or from the folders: see `jaxvae.data.labels`.

    Labels are ``others[split]["label"]``, int32 [N].

    Args:
      dataset: one of `DATASETS`, or a path; ``./mnist`` is a path, ``mnist`` a name.
      data_dir: folder with the files; for ``auto`` and `FILE_DATASETS` only.
      reading: the size and channels that images are given, and whether bad picture files are left out.
      labels: whether the labels of datasets with a name are read, too. Those of files come with the images.
      warn: called with one line when ``auto`` falls back, and when files or labels are left out.

    Raises:
      InputError: an unknown name, a missing, damaged or unsuitable file, or a failed download. Only
        ``auto`` without `data_dir` ever falls back to other data.
    """
    if data_dir is not None and dataset not in ("auto", *FILE_DATASETS):
        names = ", ".join(("auto", *FILE_DATASETS))
        raise InputError(f"--data-dir goes with --dataset {names}, not with {dataset!r}")
    found = _found(dataset, data_dir, reading, labels, warn).read_as(reading)
    if found.skipped:
        warn(f"picture files that cannot be read are left out: {len(found.skipped)}, such as {found.skipped[0]}")
    return found


def load_for(config: Config, warn: Callable[[str], None] = errors.warn) -> ImageData:
    """The images that a run of `config` names, read as it says. See `load`.

    Raises:
      InputError: as `load`; or an option of reading has no effect on these images.
    """
    reading = reading_of(config)
    images = load(config.dataset, config.data_dir, reading, labels=config.reads_labels, warn=warn)
    reading.check(images.name)
    return images


def labels_beside(config: Config, images: ImageData) -> NDArray[np.integer] | None:
    """Labels of the images that a run evaluates while it trains, from files that lie beside those of its images.

    A run reads them only for a map of its latents. So nothing is downloaded, and None is no error: there are none.

    Args:
      config: of a run whose dataset has a name.
      images: the run's, as `prepared` returns them.
    """
    try:
        if config.dataset == "digits":
            train, test = (_digits(labels=True).split(split)["label"] for split in ("train", "test"))
        elif config.dataset in download.IDX_DATASETS:
            counts = len(images.train) + len(images.validation), len(images.test)
            train, test = map(read_idx_labels, _label_files(config.dataset, config.data_dir, fetch=False), counts)
        else:
            return None
    except InputError:
        return None
    if not len(images.validation):
        return test
    # The choice of validation images depends on their number alone, so labels can stand in for them.
    first, second = (values.astype(np.uint8).reshape(-1, 1, 1, 1) for values in (train, test))
    whole = ImageData(images.name, images.source, first, second)
    return with_validation(whole, config.validation, config.validation_seed).validation.ravel()


def is_named(dataset: str) -> bool:
    """Whether `dataset` is a name, not a path."""
    return dataset in (*DATASETS, GIVEN) or dataset.startswith(hub.PREFIX)


def is_picture_folder(path: Path) -> bool:
    """Whether a folder is read as one of pictures: not as one of arrays, or one that TensorFlow Datasets prepared."""
    return path.is_dir() and not tfds.is_prepared(path) and not holds_shards(path)


def _found(
    dataset: str, data_dir: str | os.PathLike[str] | None, reading: Reading, labels: bool, warn: Callable[[str], None]
) -> ImageData:
    if dataset == "auto":
        return _auto(data_dir, labels, warn)
    if dataset in download.IDX_DATASETS:
        return _idx_dataset(dataset, data_dir, labels)
    if dataset in originals.ORIGINALS:
        return _original(dataset, data_dir, labels, reading)
    if dataset == "digits":
        return _digits(labels)
    if dataset == GIVEN:
        raise InputError(f"--dataset {GIVEN}: the run was trained on data given in Python: continue it with jaxvae.fit")
    if dataset.startswith(hub.PREFIX):
        return hub.hub_dataset(dataset, reading)
    path = Path(dataset)
    with blaming(f"--dataset {dataset!r}"):
        is_folder, is_file = path.is_dir() and dataset != "", path.is_file()
    if is_folder and is_picture_folder(path):
        return folder_of_pictures(dataset, path, reading, warn)
    if is_folder:
        reading.without_skip_bad(dataset)
        read = tfds.prepared_folder if tfds.is_prepared(path) else folder_of_shards
        return read(dataset, path, reading)
    if is_file and path.suffix.lower() == ".npy":
        return npy_file(dataset, path, reading)
    if is_file and path.suffix.lower() == ".npz":
        return npz_file(dataset, path, warn)
    names = dict.fromkeys("emnist/SPLIT" if name.startswith("emnist/") else name for name in DATASETS)
    what = "there is no such folder, file or name"
    if path.exists() and dataset != "":
        what = "it is neither a folder nor a .npy or .npz file"
    raise InputError(
        f"--dataset {dataset!r}: {what}{suggestion(dataset, DATASETS)} (it takes a folder of pictures or arrays, "
        f"a .npy or .npz file, hf:NAME for Hugging Face's hub, or one of {', '.join(names)})"
    )


def _auto(data_dir: str | os.PathLike[str] | None, labels: bool, warn: Callable[[str], None]) -> ImageData:
    if data_dir is None:
        try:
            download.cached_files("mnist")
        except InputError as error:
            warn(f"TRAINING ON SCIKIT-LEARN'S 8x8 DIGITS, NOT ON MNIST, which is not available: {error}")
            return _digits(labels)
    # A damaged file is an error, not a reason to train on something else.
    return _idx_dataset("mnist", data_dir, labels)


def _idx_dataset(name: str, data_dir: str | os.PathLike[str] | None, labels: bool) -> ImageData:
    if data_dir is None:
        images: list[Path] = download.cached_files(name)
        source = f"IDX files in TensorFlow Datasets' cache {images[0].parent}"
    else:
        folder = Path(data_dir)
        images = [_find_idx(folder, f"{split}-images", 3) for split in _IDX_SPLITS]
        source = f"IDX files in {data_dir}"
    splits: list[Split] = [{"image": read_idx(path)} for path in images]
    if labels:
        pairs = zip(splits, _label_files(name, data_dir), strict=True)
        splits = [{**split, "label": read_idx_labels(path, len(split["image"]))} for split, path in pairs]
    return paired(name, source, *splits)


def _label_files(name: str, data_dir: str | os.PathLike[str] | None, fetch: bool = True) -> list[Path]:
    """The files of labels of an IDX dataset, for training and testing. `fetch`: download those that the cache lacks."""
    if data_dir is None:
        return download.cached_files(name, download.LABEL_FILES, fetch=fetch)
    return [_find_idx(Path(data_dir), f"{split}-labels", 1) for split in _IDX_SPLITS]


def _original(name: str, data_dir: str | os.PathLike[str] | None, labels: bool, reading: Reading) -> ImageData:
    files, read = originals.ORIGINALS[name]
    if data_dir is None:
        paths = download.cached_files(name, files)
        source = f"files in TensorFlow Datasets' cache {paths[0].parent}"
    else:
        paths = [Path(data_dir) / file for file in files]
        source = f"files in {data_dir}"
        with blaming(f"--data-dir {data_dir}"):
            for path in paths:
                if not path.is_file():
                    raise InputError(f"--data-dir {data_dir} has no file {path.name}")
    return read(name, source, paths, labels, reading)


def _find_idx(folder: Path, stem: str, axes: int) -> Path:
    with blaming(f"--data-dir {folder}"):
        if not folder.is_dir():
            raise InputError(f"--data-dir {folder} is not a folder")
        for name in (f"{stem}-idx{axes}-ubyte", f"{stem}.idx{axes}-ubyte"):
            for path in (folder / name, folder / f"{name}.gz"):
                if path.is_file():
                    return path
    raise InputError(f"--data-dir {folder} has no file {stem}-idx{axes}-ubyte, with or without .gz")


def _digits(labels: bool) -> ImageData:
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    # Bicubic, because bilinear smears strokes as thin as a pixel. Its only lobes are negative and are clipped
    # at 0, so no ripples show on the black background.
    large = [np.asarray(Image.fromarray(d).resize((28, 28), Image.Resampling.BICUBIC)) for d in small]
    whole = {"image": np.stack(large)[..., None]}
    if labels:
        whole["label"] = digits.target.astype(np.int32)
    source = "scikit-learn's bundled digits, 8x8 scaled to 28x28"
    train, test = ({name: values[part] for name, values in whole.items()} for part in np.s_[:1500, 1500:])
    return paired("digits", source, train, test)
