"""Read folders that TensorFlow Datasets (TFDS) prepared, without TensorFlow. All input is untrusted."""

import io
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxvae.data.arrays import VALIDATION, of_splits, require_train, to_labels
from jaxvae.data.formats import blaming
from jaxvae.data.images import ImageData, Split
from jaxvae.data.pictures import of_one_size, opened_stream, picture_of
from jaxvae.data.reading import Images, Reading
from jaxvae.errors import InputError

_INFO, _FEATURES = "dataset_info.json", "features.json"
_OWN = "tensorflow_datasets."


def is_prepared(folder: Path) -> bool:
    """Whether TFDS prepared a folder, such as ``~/tensorflow_datasets/NAME/1.0.0``."""
    return (folder / _INFO).is_file() and (folder / _FEATURES).is_file()


def prepared_folder(name: str, folder: Path, reading: Reading) -> ImageData:
    """The images of a folder that TFDS prepared as ArrayRecord or TFRecord files, and their labels if it has them.

    By name, the first feature that is an image counts, and the first that is a class label; labels that are secret (-1)
    in a split are left out. Every tenth image is held out if there is no split called ``test``.

    Raises:
      InputError: the folder cannot be read, is damaged, or holds no images of 8 bits, or images of several sizes.
    """
    with blaming(folder):
        _require_known_features(folder)
        import tensorflow_datasets as tfds

        builder: Any = tfds.builder_from_directory(folder)
        features = dict(builder.info.features.items())
        splits = [split for split in builder.info.splits if split in ("train", "test", *VALIDATION)]
    require_train(builder.info.splits, str(folder))
    images = sorted(key for key, feature in features.items() if isinstance(feature, tfds.features.Image))
    labels = sorted(key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel))
    if not images:
        raise InputError(f"{folder}: has no feature that is an image, but {', '.join(features)}")
    if (dtype := features[images[0]].np_dtype) != np.uint8:
        raise InputError(f"{folder}: the images hold {dtype}, not 8 bits per channel")
    found = {split: _split(builder, split, images[0], labels[:1], reading, f"{folder}: {split}") for split in splits}
    names = tuple(features[labels[0]].names or ()) if labels else ()
    return of_splits(name, f"TensorFlow Datasets' folder {folder}", found, names)


def _require_known_features(folder: Path) -> None:
    """Refuse features of other packages: to read them, TFDS would import whatever module is named."""
    waiting = [json.loads((folder / _FEATURES).read_text())]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
            kind = str(value.get("pythonClassName", _OWN))
            if not kind.startswith(_OWN):
                raise InputError(f"{folder}: has a feature of another package: {kind}")


def _split(builder: Any, split: str, image: str, labels: list[str], reading: Reading, told: str) -> Split:
    import tensorflow_datasets as tfds

    decoders, values = {image: tfds.decode.SkipDecoding()}, list[int]()

    def pictures() -> Iterator[Images]:
        for number, record in enumerate(_records(builder, split)):
            example = builder.info.features.deserialize_example_np(record, decoders=decoders)
            values.extend(int(example[key]) for key in labels)
            label = f"{told}: image {number}"
            with opened_stream(io.BytesIO(example[image]), label) as picture:
                yield picture_of(picture, reading, label)

    found: dict[str, np.ndarray[Any, Any]] = {"image": of_one_size(pictures(), reading, told)}
    count, expected = len(found["image"]), builder.info.splits[split].num_examples
    if count != expected:
        raise InputError(f"{told}: {count:,} images, but {_INFO} says {expected:,}: files are cut off")
    if labels and min(values) >= 0:
        found["label"] = to_labels(np.array(values), count, told)
    return found


def _records(builder: Any, split: str) -> Iterator[bytes]:
    """The serialised examples of a split, in order."""
    import tensorflow_datasets as tfds

    kind = str(builder.info.file_format.value)
    if kind == "tfrecord":
        for path in builder.info.splits[split].filepaths:
            yield from _tfrecords(Path(path))
    elif kind == "array_record":
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        yield from builder.as_data_source(split, deserialize_method=raw)
    else:
        raise InputError(f"{builder.data_path}: holds {kind} files: prepare it with file_format='array_record'")


def _tfrecords(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file: each a length of 8 bytes, its checksum of 4, the data, and theirs of 4.

    The checksums are not verified: pictures have their own.
    """
    left = path.stat().st_size
    with path.open("rb") as file:
        while left:
            header = file.read(12)
            size = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else left
            left -= 12 + size + 4
            if left < 0:
                raise InputError(f"{path}: truncated")
            yield file.read(size)
            file.seek(4, os.SEEK_CUR)
