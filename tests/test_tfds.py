"""Folders that TensorFlow Datasets prepared, written by that package itself. No test needs TensorFlow or a network."""

import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from numpy.typing import NDArray
from PIL import Image
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorflow_datasets.core.utils import tqdm_utils

from jaxvae import data
from jaxvae.data.reading import Reading
from jaxvae.errors import InputError


@pytest.fixture(autouse=True)
def no_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tqdm_utils, "_active", False)


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(image: NDArray[np.uint8]) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, "PNG")
    file.seek(0)
    return file


def prepare(folder: Path, splits: Mapping[str, Sequence[NDArray[np.uint8]]], **labels: Sequence[int]) -> Path:
    """Prepare a dataset of images, with labels and features of other kinds. Where it is."""
    channels = next(iter(splits.values()))[0].shape[2]

    class Noise(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[misc, call-arg]
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features: dict[str, Any] = {
                "caption": tfds.features.Text(),
                "picture": tfds.features.Image(shape=(None, None, channels)),
                "box": {"corners": tfds.features.Tensor(shape=(2,), dtype=np.float32)},
            }
            if labels:
                features["kind"] = tfds.features.ClassLabel(names=["cat", "dog"])
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager: Any) -> Any:
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split: str) -> Iterator[tuple[str, Any]]:
            for number, image in enumerate(splits[split]):
                example: dict[str, Any] = {"caption": "a text", "box": {"corners": [0.0, 1.0]}}
                example["picture"] = encoded(image)
                if labels:
                    example["kind"] = labels[split][number]
                yield f"{number:04}", example

    builder = Noise(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def as_tfrecords(folder: Path) -> Path:
    """The same folder with TFRecord files, TFDS's default, as TensorBoard's package writes them."""
    builder: Any = tfds.builder_from_directory(folder)
    for split in builder.info.splits:
        (old,) = builder.info.splits[split].filepaths
        records = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        with Path(str(old).replace("array_record", "tfrecord")).open("wb") as file:
            writer = RecordWriter(file)
            for number in range(len(records)):
                writer.write(records[number])
        Path(old).unlink()
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    assert json.loads(info.read_text())["fileFormat"] == "tfrecord"
    return folder


def by_bytes(images: NDArray[np.uint8], labels: NDArray[np.int32]) -> list[tuple[bytes, int]]:
    """Pairs of images and labels, sorted: TFDS shuffles what it writes."""
    return sorted((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))


@pytest.mark.parametrize("tfrecord", [False, True])
def test_images_labels_and_classes(tfrecord: bool, tmp_path: Path) -> None:
    splits = {"train": noise(12, 6, 5, 3), "test": noise(4, 6, 5, 3, seed=1), "validation": noise(3, 6, 5, 3, seed=2)}
    labels = {split: np.arange(len(images)) % 2 for split, images in splits.items()}
    folder = prepare(tmp_path, {split: list(images) for split, images in splits.items()}, **labels)
    found = data.load(str(as_tfrecords(folder) if tfrecord else folder))
    for split, images in splits.items():
        read = found.split(split)
        assert by_bytes(read["image"], read["label"]) == by_bytes(images, labels[split])
        assert read["image"].shape == images.shape and read["label"].dtype == np.int32
    assert found.classes == ("cat", "dog") and str(folder) in found.source
    assert "tensorflow" not in sys.modules


def test_one_split_of_grey_images_without_labels(tmp_path: Path) -> None:
    images = noise(20, 6, 5, 1)
    found = data.load(str(prepare(tmp_path, {"train": list(images)})))
    assert (found.train.shape, found.test.shape, found.others) == ((18, 6, 5, 1), (2, 6, 5, 1), {})
    whole = [image.tobytes() for part in (found.train, found.test) for image in part]
    assert sorted(whole) == sorted(image.tobytes() for image in images)


def test_labels_that_are_secret_are_left_out(tmp_path: Path) -> None:
    images = list(noise(10, 6, 5, 3))
    found = data.load(str(prepare(tmp_path, {"train": images, "test": images}, train=[0, 1] * 5, test=[-1] * 10)))
    assert list(found.split("train")) == list(found.split("test")) == ["image"] and found.classes == ()


def test_images_of_several_sizes_need_one(tmp_path: Path) -> None:
    folder = prepare(tmp_path, {"train": [noise(6 + i % 2, 5, 3) for i in range(10)]})
    with pytest.raises(InputError, match="train: images of several sizes, such as . x 5 and . x 5: give them one with"):
        data.load(str(folder))
    assert data.load(str(folder), reading=Reading((4, 3), channels=1)).train.shape == (9, 4, 3, 1)


def test_what_cannot_be_used(tmp_path: Path) -> None:
    def refused(message: str, folder: Path) -> None:
        with pytest.raises(InputError, match=message) as caught:
            data.load(str(folder))
        assert "\n" not in str(caught.value)

    images = list(noise(12, 6, 5, 3))
    refused("has no split train, but test", prepare(tmp_path / "test", {"test": images}))
    folder = as_tfrecords(prepare(tmp_path / "cut", {"train": images}))
    (record,) = folder.glob("*.tfrecord*")
    whole = record.read_bytes()
    for cut in (whole[:-1], whole[:5], whole[: len(whole) // 2 + 9]):
        record.write_bytes(cut)
        refused(rf"{record.name}: truncated", folder)
    record.write_bytes(whole[: len(whole) // 12 * 6])  # Half of the records: all are alike.
    refused(rf"{record.name}: holds 6 records, where dataset_info\.json says 12", folder)
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"tfrecord"', '"riegeli"'))
    refused("holds riegeli files: prepare it with file_format='array_record'", folder)
    info.write_text("{")
    refused(f"{folder}: cannot be read", folder)


def test_an_array_record_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    folder = prepare(tmp_path, {"train": list(noise(12, 6, 5, 3))})
    (record,) = folder.glob("*.array_record*")
    whole = record.read_bytes()
    for part in (whole[: len(whole) // 2], b"", b"x" * len(whole)):
        record.write_bytes(part)
        with pytest.raises(InputError, match=record.name):
            data.load(str(folder))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("features.json", "tensorflow_datasets.core.features.text_feature.Text", "antigravity.Text"),
        ("features.json", '"text": {}', '"python_class_name": "antigravity.Text"'),
        ("dataset_info.json", '"moduleName"', '"features": {"pythonClassName": "antigravity.Text"}, "moduleName"'),
    ],
)
def test_what_a_folder_names_is_not_imported(file: str, old: str, new: str, tmp_path: Path) -> None:
    folder = prepare(tmp_path, {"train": list(noise(20, 6, 5, 3))})
    written = (folder / file).read_text()
    assert written.count(old) == 1
    (folder / file).write_text(written.replace(old, new))
    assert len(data.load(str(folder)).test) == 2
    assert "antigravity" not in sys.modules


def test_only_one_picture_of_an_example_is_decoded(tmp_path: Path) -> None:
    """The one called image, whatever else there is; here the other is not even a picture."""
    folder = prepare(tmp_path, {"train": list(noise(20, 6, 5, 3))})
    features = folder / "features.json"
    written = json.loads(features.read_text())
    inner = written["featuresDict"]["features"]
    inner["caption"] = inner["picture"]  # Before it, by name.
    features.write_text(json.dumps(written))
    with pytest.raises(InputError, match="image 0: not a PNG"):
        data.load(str(folder))
    inner["image"] = inner.pop("picture")
    features.write_text(json.dumps(written))
    with pytest.raises(InputError, match="image 0: the record holds no image"):
        data.load(str(folder))


def test_odd_but_harmless_folders(tmp_path: Path) -> None:
    folder = prepare(tmp_path, {"train": list(noise(20, 6, 5, 3))})
    info, features = folder / "dataset_info.json", folder / "features.json"
    written = json.loads(info.read_text())
    written["splits"].append({"name": "unsupervised"})  # One that is not used may lack its files.
    info.write_text(json.dumps(written))
    assert len(data.load(str(folder)).test) == 2
    features.write_text("{}")
    with pytest.raises(InputError, match="has no feature that is an image, but none"):
        data.load(str(folder))


def test_a_file_of_a_prepared_folder_must_be_one(tmp_path: Path) -> None:
    folder = as_tfrecords(prepare(tmp_path, {"train": list(noise(20, 6, 5, 3))}))
    (record,) = folder.glob("*.tfrecord*")
    record.unlink()
    os.mkfifo(record)
    with pytest.raises(InputError, match=f"{record.name}: there is no such file"):
        data.load(str(folder))


def test_files_outside_the_folder_are_refused(tmp_path: Path) -> None:
    folder = prepare(tmp_path, {"train": list(noise(12, 6, 5, 3))})
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("{DATASET}-", "../{DATASET}-"))
    with pytest.raises(InputError, match=r"dataset_info\.json names a file outside of it: \.\./noise-train"):
        data.load(str(folder))


def test_names_of_classes_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    images = list(noise(12, 6, 5, 3))
    folder = prepare(tmp_path, {"train": images}, train=[0] * 12)
    features = folder / "features.json"
    features.write_text(features.read_text().replace('"kind"', '"../kind"'))
    with pytest.raises(InputError, match=r"features\.json names a file outside of it: \.\./kind\.labels\.txt"):
        data.load(str(folder))
