"""Read folders that TensorFlow Datasets (TFDS) prepared, without TensorFlow. All input is untrusted.

TFDS's own reader imports the modules that a folder names, and decodes all that an example holds. So the files are read
here; of TFDS come the names of their parts, and the form of an example.
"""

import io
import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxvae.data.arrays import of_splits, to_labels, used_splits
from jaxvae.data.formats import blaming
from jaxvae.data.images import ImageData, Split
from jaxvae.data.pictures import of_one_size, opened_stream, picture_of
from jaxvae.data.reading import Images, Reading
from jaxvae.errors import InputError

_INFO, _FEATURES = "dataset_info.json", "features.json"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_AT_ONCE = 256  # Records that are read at a time.


def is_prepared(folder: Path) -> bool:
    """Whether TFDS prepared a folder, such as ``~/tensorflow_datasets/NAME/1.0.0``."""
    return (folder / _INFO).is_file() and (folder / _FEATURES).is_file()


def prepared_folder(name: str, folder: Path, reading: Reading) -> ImageData:
    """The images of a folder that TFDS prepared as ArrayRecord or TFRecord files, and their labels if it has them.

    The feature called ``image`` counts, or else the first by name that is an image; and in the same way the class label
    called ``label``. Labels that are secret (-1) in a split are left out. Every tenth image is held out if there is no
    split called ``test``.

    Raises:
      InputError: the folder cannot be read, is damaged, or holds no images of 8 bits, or images of several sizes.
    """
    with blaming(folder):
        info, written = (json.loads((folder / file).read_text(encoding="utf-8")) for file in (_INFO, _FEATURES))
        features: Mapping[str, Any] = written.get("featuresDict", {}).get("features", {})
        image, label = _chosen(features, "Image", "image"), _chosen(features, "ClassLabel", "label")
        splits = {str(split["name"]): split for split in info["splits"]}
        dtype = None if image is None else features[image]["image"].get("dtype", "uint8")
    used = used_splits(splits, str(folder))
    if image is None:
        raise InputError(f"{folder}: has no feature that is an image, but {', '.join(features) or 'none'}")
    if dtype != "uint8":
        raise InputError(f"{folder}: the images hold {dtype}, not 8 bits per channel")
    with blaming(folder):
        files = {split: _files(folder, info, splits[split]) for split in used}
    found = {split: _split(files[split], image, label, reading, f"{folder}: {split}") for split in used}
    return of_splits(name, f"TensorFlow Datasets' folder {folder}", found, _classes(folder, label))


class _File(NamedTuple):
    """A file of a split: where it is, its format, and how many records it must hold."""

    path: Path
    kind: str
    records: int


def _chosen(features: Mapping[str, Any], kind: str, usual: str) -> str | None:
    """The feature of a kind that counts: the one with the usual name, or else the first."""
    found = sorted(
        name for name, each in features.items() if str(each.get("pythonClassName")).rpartition(".")[2] == kind
    )
    return usual if usual in found else next(iter(found), None)


def _files(folder: Path, info: Mapping[str, Any], split: Mapping[str, Any]) -> list[_File]:
    kind, counts = info.get("fileFormat", "tfrecord"), [int(count) for count in split["shardLengths"]]
    if kind not in ("tfrecord", "array_record"):
        raise InputError(f"{folder}: holds {kind} files: prepare it with file_format='array_record'")
    files = []
    for number, count in enumerate(counts):
        parts = {
            "DATASET": info["name"],
            "SPLIT": split["name"],
            "FILEFORMAT": kind,
            "SHARD_INDEX": f"{number:05}",
            "NUM_SHARDS": f"{len(counts):05}",
            "SHARD_X_OF_Y": f"{number:05}-of-{len(counts):05}",
        }
        name = split.get("filepathTemplate") or _TEMPLATE
        for part, value in parts.items():
            name = name.replace(f"{{{part}}}", value)
        files.append(_File(_inside(folder, name, _INFO), kind, count))
    return files


def _classes(folder: Path, label: str | None) -> tuple[str, ...]:
    """The names of the labels; empty if they have none."""
    path = _inside(folder, f"{label}.labels.txt", _FEATURES)
    with blaming(path):
        return tuple(path.read_text(encoding="utf-8").splitlines()) if label is not None and path.is_file() else ()


def _inside(folder: Path, name: str, told: str) -> Path:
    """A file of the folder, by a name that its file `told` gives."""
    if Path(name).name != name:
        raise InputError(f"{folder}: {told} names a file outside of it: {name}")
    return folder / name


def _split(files: list[_File], image: str, label: str | None, reading: Reading, told: str) -> Split:
    values = list[int]()

    def pictures() -> Iterator[Images]:
        from tensorflow_datasets.proto import tf_example_pb2

        for file in files:
            with blaming(file.path):
                for number, record in enumerate(_records(file)):
                    place = f"{file.path}: image {number}"
                    example = tf_example_pb2.Example.FromString(record).features.feature
                    if not example[image].bytes_list.value:
                        raise InputError(f"{place}: the record holds no {image}")
                    values.extend(example[label].int64_list.value[:1] if label is not None else ())
                    with opened_stream(io.BytesIO(example[image].bytes_list.value[0]), place) as picture:
                        yield picture_of(picture, reading, place)

    found: dict[str, np.ndarray[Any, Any]] = {"image": of_one_size(pictures(), reading, told)}
    if values and min(values) >= 0:
        found["label"] = to_labels(np.array(values), len(found["image"]), told)
    return found


def _records(file: _File) -> Iterator[bytes]:
    """The serialised examples of a file, in order."""
    if not file.path.is_file():
        raise InputError(f"{file.path}: there is no such file")
    found = 0
    for record in _tfrecords(file.path) if file.kind == "tfrecord" else _array_records(file.path):
        found += 1
        yield record
    if found != file.records:
        raise InputError(f"{file.path}: holds {found:,} records, where {_INFO} says {file.records:,}")


def _array_records(path: Path) -> Iterator[bytes]:
    from array_record.python.array_record_module import ArrayRecordReader  # type: ignore[import-untyped]

    reader = ArrayRecordReader(str(path))
    try:
        count = reader.num_records()
        for start in range(0, count, _AT_ONCE):
            yield from reader.read([*range(start, min(start + _AT_ONCE, count))])
    finally:
        reader.close()


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
