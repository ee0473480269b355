"""Datasets of the Hugging Face hub, and folders in its form: ``hf:NAME`` or ``hf:NAME:CONFIGURATION``.

The package `datasets` reads them, from the hub or from its cache. All input is untrusted: it runs no code of a dataset.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np

from jaxvae.data.arrays import of_splits, to_labels, used_splits
from jaxvae.data.formats import blaming
from jaxvae.data.images import ImageData, Split
from jaxvae.data.pictures import of_one_size, opened_stream, picture_of
from jaxvae.data.reading import Images, Reading
from jaxvae.errors import InputError

PREFIX = "hf:"


def hub_dataset(name: str, reading: Reading) -> ImageData:
    """The images of a dataset, and their labels if it has them.

    The first column of images and the first of class labels count; labels that are secret in a split are left out.
    Every tenth image is held out if there is no split called ``test``.

    Raises:
      InputError: the package is not installed, or the dataset cannot be read; it has no images, or of several sizes.
    """
    try:
        import datasets
    except ImportError:
        raise InputError(f"--dataset {name}: needs the package datasets: pip install 'jaxvae[hf]'") from None
    told = f"--dataset {name}"
    path, _, configuration = name.removeprefix(PREFIX).partition(":")
    with blaming(told):
        found: Any = datasets.load_dataset(path, configuration or None)
    splits = used_splits(found, told)
    features = found["train"].features
    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if not images:
        raise InputError(f"{told}: has no column of images, but {', '.join(features)}")
    with blaming(told):
        # Those of a competition's test set are -1 or missing.
        values = [value for key in labels[:1] for split in splits for value in found[split][key]]
        labels = labels[:1] if all(value is not None and value >= 0 for value in values) else []

    def split(key: str) -> Split:
        rows = found[key].select_columns([images[0], *labels])
        examples: dict[str, np.ndarray[Any, Any]] = {"image": _images(rows, images[0], reading, f"{told}: {key}")}
        if labels:
            examples["label"] = to_labels(np.array(rows[labels[0]]), len(rows), f"{told}: {key}")
        return examples

    names = tuple(features[labels[0]].names) if labels else ()
    return of_splits(name, f"Hugging Face dataset {path}", {key: split(key) for key in splits}, names)


def _picture(found: dict[str, Any], reading: Reading, told: str) -> Images:
    """The picture of a row: its bytes, or a file, as in folders of pictures."""
    path = Path(found["path"] or "")
    if found["bytes"] is None and not path.is_file():
        raise InputError(f"{told}: has neither bytes nor a file")
    file = path.open("rb") if found["bytes"] is None else io.BytesIO(found["bytes"])
    with file, opened_stream(file, told) as image:
        return picture_of(image, reading, told)


def _images(rows: Any, column: str, reading: Reading, told: str) -> Images:
    """The images of a split, uint8 [N, H, W, C]."""
    import datasets

    # As bytes: the package would open any format that Pillow knows, and any path or address.
    encoded = rows.cast_column(column, datasets.Image(decode=False))
    pictures = (_picture(row[column], reading, f"{told}: image {number}") for number, row in enumerate(encoded))
    return of_one_size(pictures, reading, told)
