"""`--dataset hf:NAME` on small datasets in the form of Hugging Face's hub; no test needs a network."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from jaxvae import data
from jaxvae.data.reading import Reading
from jaxvae.errors import InputError


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def write(
    folder: Path, splits: Mapping[str, Sequence[NDArray[np.uint8]]], labelled: bool = True, secret: str = ""
) -> str:
    """A dataset of Parquet files, with columns of other kinds before the images. Its name."""
    for split, images in splits.items():
        columns: dict[str, Any] = {
            "number": list(range(len(images))),
            "img": [Image.fromarray(image) for image in images],
            "caption": ["a text"] * len(images),
            "kind": [(None if len(images) % 2 else -1) if split == secret else i % 2 for i in range(len(images))],
        }
        kind: Any = datasets.ClassLabel(names=["cat", "dog"]) if labelled else datasets.Value("int64")
        features = datasets.Features(
            number=datasets.Value("int32"), img=datasets.Image(), caption=datasets.Value("string"), kind=kind
        )
        (folder / "data").mkdir(parents=True, exist_ok=True)
        written = datasets.Dataset.from_dict(columns, features)
        written.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return f"hf:{folder}"


def test_images_labels_and_classes(tmp_path: Path) -> None:
    train, test = noise(12, 6, 5, 3), noise(4, 6, 5, 3, seed=1)
    name = write(tmp_path / "set", {"train": list(train), "test": list(test), "validation": list(test[:2])})
    loaded = data.load(name)
    np.testing.assert_array_equal(loaded.train, train)
    np.testing.assert_array_equal(loaded.test, test)
    np.testing.assert_array_equal(loaded.validation, test[:2])
    np.testing.assert_array_equal(loaded.split("train")["label"], [0, 1] * 6)
    assert loaded.classes == ("cat", "dog") and loaded.name == name and data.is_named(name)


def test_a_single_split_of_grey_images_without_classes(tmp_path: Path) -> None:
    images = noise(20, 6, 5)
    loaded = data.load(write(tmp_path / "set", {"train": list(images)}, labelled=False))
    np.testing.assert_array_equal(loaded.test, images[9::10, ..., None])
    assert len(loaded.train) == 18 and list(loaded.split("train")) == ["image"]


def test_labels_that_are_secret_are_left_out(tmp_path: Path) -> None:
    images = list(noise(12, 6, 5))
    for number in (11, 12):  # Missing, and -1.
        name = write(tmp_path / str(number), {"train": images, "test": images[:number]}, secret="test")
        assert list(data.load(name).split("train")) == ["image"]


def test_a_picture_of_another_format_and_one_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for content in ({"bytes": b"%!PS-Adobe-3.0 EPSF-3.0", "path": None}, {"bytes": None, "path": "/dev/zero"}):
        features = datasets.Features(img=datasets.Image())
        table = datasets.Dataset.from_dict({"img": [content] * 10}, features)
        table.to_parquet(tmp_path / "set" / "train.parquet")
        with pytest.raises(InputError, match="image 0: (not a PNG|has neither bytes nor a file)"):
            data.load(f"hf:{tmp_path / 'set'}")


def test_images_of_several_sizes_need_one(tmp_path: Path) -> None:
    name = write(tmp_path / "set", {"train": [noise(6 + i % 2, 5, 3) for i in range(10)]})
    with pytest.raises(InputError, match="several sizes, such as 6 x 5 and 7 x 5: give them one with --image-size"):
        data.load(name)
    assert data.load(name, reading=Reading((4, 3), channels=1)).train.shape == (9, 4, 3, 1)


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        ({"test": [noise(6, 5)]}, "has no split train, but test"),
        ({"train": [noise(6, 5).astype(np.uint16)] * 10}, "more than 8 bits per channel"),
    ],
)
def test_what_cannot_be_used(splits: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        data.load(write(tmp_path / "set", splits))


def test_a_dataset_without_images(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict({"text": ["a"] * 10}).to_parquet(tmp_path / "set" / "train.parquet")
    with pytest.raises(InputError, match="has no column of images, but text"):
        data.load(f"hf:{tmp_path / 'set'}")


def test_a_dataset_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--dataset hf:no/such: cannot be read") as caught:
        data.load("hf:no/such")
    assert "\n" not in str(caught.value)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"needs the package datasets: pip install 'jaxvae\[hf\]'"):
        data.load("hf:ylecun/mnist")
