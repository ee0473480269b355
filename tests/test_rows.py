"""Images that stay in a file, against the same file read whole."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxvae import data
from jaxvae.data.images import digests, with_validation
from jaxvae.data.reading import Reading
from jaxvae.data.rows import Rows, mean
from jaxvae.errors import InputError

STREAMED = Reading(stream="always")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "images.npy"
    np.save(file, np.random.default_rng(0).integers(0, 256, (57, 5, 4, 3), np.uint8))
    return file


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 700, 2**24])
def test_splits_of_a_streamed_file_are_those_of_the_file_read_whole(
    path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxvae.data.rows.CHUNK_BYTES", chunk)
    whole, streamed = (with_validation(data.load(str(path), None, reading), 7, 3) for reading in (Reading(), STREAMED))
    for split in ("train", "validation", "test"):
        here, there = getattr(whole, split), getattr(streamed, split)
        assert isinstance(there, Rows) and (there.shape, there.dtype) == (here.shape, here.dtype)
        np.testing.assert_array_equal(np.asarray(there), here)
        np.testing.assert_array_equal(list(there), list(here))
        np.testing.assert_array_equal(there[[3, 0, 2]], here[[3, 0, 2]])
        np.testing.assert_array_equal(there[1:3], here[1:3])
        assert digests(streamed)[f"{split}_images_sha256"] == hashlib.sha256(here.tobytes()).hexdigest()
        np.testing.assert_array_equal(mean(there), here.mean(axis=0, dtype=np.float64))
    assert (streamed.nbytes, streamed.image_shape) == (whole.nbytes, whole.image_shape)


def test_grey_images_without_an_axis_of_channels_get_one(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 5), np.uint8)
    np.save(tmp_path / "grey.npy", images)
    found = data.load(str(tmp_path / "grey.npy"), None, STREAMED)
    np.testing.assert_array_equal(np.asarray(found.test), images[9::10, ..., None])


def test_a_file_stays_on_the_disk_by_itself_if_it_would_take_more_than_half_of_the_memory(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = np.load(path).nbytes
    for free, stays in ((2 * size, False), (2 * size - 2, True)):
        monkeypatch.setattr("jaxvae.memory.host_free_bytes", lambda free=free: free)
        assert isinstance(data.load(str(path)).train, Rows) == stays
        assert not isinstance(data.load(str(path), None, Reading(stream="never")).train, Rows)


def test_a_file_that_changes_is_refused(path: Path) -> None:
    train = data.load(str(path), None, STREAMED).train
    np.save(path, np.zeros((58, 5, 4, 3), np.uint8))
    with pytest.raises(InputError, match=r"images\.npy: the file has changed since training began"):
        train[:2]
    with pytest.raises(InputError, match=r"images\.npy: the file has changed since training began"):
        mean(train)
    path.unlink()
    with pytest.raises(InputError, match=r"images\.npy: cannot be read any more"):
        train[:2]


@pytest.mark.parametrize("reader", ["take", "fromfile"])
def test_a_file_that_changes_while_it_is_read_is_refused(
    reader: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, read = data.load(str(path), None, STREAMED).train, getattr(np, reader)

    def changed(*args: Any, **options: Any) -> Any:
        found = read(*args, **options)
        os.utime(path, ns=(0, 0))  # As if it was written to.
        return found

    monkeypatch.setattr(np, reader, changed)
    with pytest.raises(InputError, match=r"images\.npy: the file has changed since training began"):
        train[:2] if reader == "take" else mean(train)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((20, 5, 4), np.float32), "holds float32; only uint8 in C's order"),
        (np.asfortranarray(np.zeros((20, 5, 4), np.uint8)), "holds an array in Fortran's order; only"),
    ],
)
def test_what_cannot_be_streamed_is_refused(tmp_path: Path, array: np.ndarray, words: str) -> None:
    np.save(tmp_path / "images.npy", array)
    with pytest.raises(InputError, match=words):
        data.load(str(tmp_path / "images.npy"), None, STREAMED)


def test_streamed_images_are_neither_resized_nor_drawn_once(path: Path) -> None:
    with pytest.raises(InputError, match="streamed images keep their size and channels"):
        data.load(str(path), None, Reading(stream="always", image_size=(3,)))
    from jaxvae.config import Config

    config = Config("vae", dataset=str(path), stream="always", inputs="static")
    with pytest.raises(InputError, match="--inputs static needs all images in memory"):
        data.prepared(data.load_for(config), config)
