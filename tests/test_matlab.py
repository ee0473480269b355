"""`jaxvae.data.matlab`: which way up images stand, labels, and files that are not what they should be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_files import OBJECTS, SILHOUETTES, caltech101_silhouettes, columns, omniglot
from hypothesis import given
from hypothesis import strategies as st
from image_files import FUZZ, loads_or_refuses, mutated, noise, refuses
from scipy.io import savemat
from scipy.sparse import csc_array

from jaxvae import data
from jaxvae.errors import InputError


def bar(rows: slice, cols: slice) -> data.Images:
    """An image [1, 28, 28, 1] with a white bar."""
    image = np.zeros((1, 28, 28, 1), np.uint8)
    image[0, rows, cols] = 255
    return image


def test_an_image_is_stored_column_by_column(tmp_path: Path) -> None:
    """A bar along the top of the image: the first pixels of every column, and so of every 28."""
    flat = np.zeros(784)
    flat[::28] = flat[1::28] = 1
    top = bar(np.s_[:2], np.s_[:])
    omniglot(tmp_path, data=flat[:, None], target=None)
    np.testing.assert_array_equal(data.load("omniglot", tmp_path).train, top)
    caltech101_silhouettes(tmp_path, train_data=1 - flat[None])
    np.testing.assert_array_equal(data.load("caltech101_silhouettes", tmp_path).train, top)


def test_grey_values_become_the_nearest_of_256(tmp_path: Path) -> None:
    exact = np.linspace(0, 1, 784)
    omniglot(tmp_path, data=np.asfortranarray(exact[:, None]))
    found = data.load("omniglot", tmp_path).train[0, ..., 0].reshape(-1, order="F")
    assert np.abs(found / 255 - exact).max() <= 0.5 / 255 + 1e-6 and set(found) == set(range(256))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, bool])
def test_matlab_may_store_zeros_and_ones_as_any_type(dtype: Any, tmp_path: Path) -> None:
    images = noise(10, 28, 28, 1) // 128 * 255
    omniglot(tmp_path, data=columns(images).astype(dtype), target=np.eye(50)[:, :10].astype(dtype))
    loaded = data.load("omniglot", tmp_path, labels=True)
    np.testing.assert_array_equal(loaded.train, images)
    assert loaded.split("train")["label"].tolist() == list(range(10))
    caltech101_silhouettes(tmp_path, train_data=1 - columns(images).T)
    np.testing.assert_array_equal(data.load("caltech101_silhouettes", tmp_path).train, images)


def test_silhouettes_bring_images_for_validation_and_names_along(tmp_path: Path) -> None:
    caltech101_silhouettes(tmp_path)
    loaded = data.load("caltech101_silhouettes", tmp_path, labels=True)
    np.testing.assert_array_equal(loaded.validation, noise(4, 28, 28, 1, seed=4) // 128 * 255)
    assert loaded.classes == OBJECTS and not loaded.whole
    for split, count in zip(("train", "validation", "test"), SILHOUETTES.values(), strict=True):
        labels = loaded.split(split)["label"]
        assert labels.dtype == np.int32 and labels.tolist() == list(range(count))
    assert data.load("caltech101_silhouettes", tmp_path).classes == ()


@pytest.mark.parametrize("names", [None, np.arange(101), np.array(OBJECTS[:7], object)[None], "text"])
def test_silhouettes_need_no_names(names: Any, tmp_path: Path) -> None:
    caltech101_silhouettes(tmp_path, classnames=names)
    loaded = data.load("caltech101_silhouettes", tmp_path, labels=True)
    assert loaded.classes == () and loaded.split("test")["label"].tolist() == [0, 1, 2]


def test_images_and_labels_of_omniglot_go_together(tmp_path: Path) -> None:
    places = np.random.default_rng(2).integers(0, 50, 10)
    omniglot(tmp_path, target=np.eye(50)[:, places])
    assert data.load("omniglot", tmp_path, labels=True).split("train")["label"].tolist() == places.tolist()


OMNIGLOT = [
    ({"data": None}, "holds no data"),
    ({"testdata": None}, "holds no testdata"),
    ({"data": np.zeros((10, 784))}, r"data: shape \[10, 784\] is not \[784, N\]"),
    ({"testdata": np.zeros((784, 2, 2))}, r"testdata: shape \[784, 2, 2\] is not \[784, N\]"),
    ({"data": np.zeros((784, 0))}, "data is empty"),
    ({"data": "text"}, "data is no array of numbers"),
    ({"data": csc_array(np.eye(784))}, "data is no array of numbers"),
    ({"data": np.full((784, 10), 1j)}, "data is no array of numbers"),
    ({"data": {"a": 1.0}}, "data is no array of numbers"),
    ({"data": np.full((784, 10), 1.01)}, r"data: .* values from 1.01 to 1.01: floats must be finite and in \[0, 1\]"),
    ({"data": np.full((784, 10), 255, np.uint8)}, r"data: .* values from 255 to 255"),
    ({"testdata": np.full((784, 3), -0.1)}, "testdata: .* values from -0.1"),
    ({"testdata": np.full((784, 3), np.nan)}, "testdata: .* values from nan"),
]
OMNIGLOT_LABELS = [
    ({"target": None}, "holds no target"),
    ({"testtarget": np.eye(50)[:, :4]}, r"testtarget: shape \[50, 4\] is not \[50, 3\]"),
    ({"target": np.eye(10)}, r"target: shape \[10, 10\] is not \[50, 10\]"),
    ({"target": np.zeros((50, 10))}, "target: each column must hold a single 1 and zeros"),
    ({"target": np.ones((50, 10))}, "target: each column must hold a single 1"),
    ({"target": np.eye(50)[:, :10] * 2}, "target: each column must hold a single 1"),
]
SILHOUETTE = [
    ({"train_data": None}, "holds no train_data"),
    ({"val_data": None}, "holds no val_data"),
    ({"test_data": np.zeros((784, 3))}, r"test_data: shape \[784, 3\] is not \[N, 784\]"),
    ({"val_data": np.full((4, 784), 2)}, "val_data: must hold only 0 and 1"),
    ({"train_data": np.full((10, 784), 0.5)}, "train_data: must hold only 0 and 1"),
    ({"test_data": np.full((3, 784), np.nan)}, "test_data: must hold only 0 and 1"),
]
SILHOUETTE_LABELS = [
    ({"val_labels": None}, "holds no val_labels"),
    ({"train_labels": np.ones((9, 1), np.uint8)}, "train_labels: 9 labels for 10 images"),
    ({"train_labels": np.ones((2, 5), np.uint8)}, r"train_labels: shape \[2, 5\] is not"),
    ({"test_labels": np.zeros((3, 1), np.uint8)}, "test_labels: values from 0 to 0: labels must be from 1 to 101"),
    ({"test_labels": np.full((3, 1), 102, np.uint8)}, "test_labels: values from 102 to 102"),
    ({"val_labels": np.full((4, 1), 1.5)}, "val_labels: float64: labels must be whole numbers"),
]


@pytest.mark.parametrize(
    ("write", "changed", "words", "labels"),
    [
        *((omniglot, *case, False) for case in OMNIGLOT),
        *((omniglot, *case, True) for case in OMNIGLOT_LABELS),
        *((caltech101_silhouettes, *case, False) for case in SILHOUETTE),
        *((caltech101_silhouettes, *case, True) for case in SILHOUETTE_LABELS),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    write: Callable[..., Any], changed: dict[str, Any], words: str, labels: bool, tmp_path: Path
) -> None:
    write(tmp_path, **changed)
    with pytest.raises(InputError, match=words) as caught:
        data.load(write.__name__, tmp_path, labels=labels)
    [file] = tmp_path.iterdir()
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    if labels:  # Without labels, nothing is wrong.
        assert data.load(write.__name__, tmp_path).image_shape == (28, 28, 1)


def test_a_file_without_variables_or_of_a_later_version(tmp_path: Path) -> None:
    path = tmp_path / "chardata.mat"
    savemat(path, {"other": np.eye(2)})
    refuses(path, "holds no data", dataset="omniglot", data_dir=tmp_path)
    path.write_bytes(b"MATLAB 7.3 MAT-file, HDF5 schema 1.00 .".ljust(124) + b"\x00\x02IM" + bytes(512))
    refuses(path, "version 7.3: save it as version 7", dataset="omniglot", data_dir=tmp_path)


@FUZZ
@given(edit=st.data())
def test_damaged_files_are_read_or_refused(edit: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "chardata.mat"
    savemat(path, {"data": columns(noise(2, 28, 28, 1)), "testdata": columns(noise(1, 28, 28, 1))})
    path.write_bytes(mutated(path.read_bytes(), edit))
    loads_or_refuses("omniglot", tmp_path)
