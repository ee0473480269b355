"""Folders of .npy files, against the same images in one file."""

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from runs import SMALL, train

from jaxvae import data
from jaxvae.data import shards
from jaxvae.data.images import digests
from jaxvae.data.reading import Reading
from jaxvae.data.rows import Rows
from jaxvae.errors import InputError

STREAMED = Reading(stream="always")
COUNTS = (7, 30, 1, 19)


@pytest.fixture
def whole() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (sum(COUNTS), 6, 5, 3), np.uint8)


def write(folder: Path, array: NDArray[np.generic], name: str = "images") -> None:
    """The array in files of `COUNTS` rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(np.split(array, np.cumsum(COUNTS)[:-1])):
        np.save(folder / f"{name}-{number:03}.npy", part)


@pytest.mark.parametrize("chunk", [1, 700, 2**24])
@pytest.mark.parametrize("stream", ["never", "always"])
def test_shards_are_read_one_after_the_other(
    stream: str, chunk: int, whole: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxvae.data.rows.CHUNK_BYTES", chunk)
    monkeypatch.setattr("jaxvae.data.rows.PIECE_BYTES", chunk)
    write(tmp_path / "shards", whole)
    np.save(tmp_path / "one.npy", whole)
    found, one = (data.load(str(tmp_path / name), None, Reading(stream=stream)) for name in ("shards", "one.npy"))  # type: ignore[arg-type]
    assert isinstance(found.train, Rows) == (stream == "always")
    test = np.arange(len(whole)) % 10 == 9
    for split, expected in (("train", whole[~test]), ("test", whole[test])):
        images = getattr(found, split)
        assert images.shape == expected.shape and images.nbytes == expected.nbytes
        np.testing.assert_array_equal(np.asarray(images), expected)
        np.testing.assert_array_equal(list(images), list(expected))
        places = np.random.default_rng(1).integers(0, len(expected), 40)
        np.testing.assert_array_equal(images[places], expected[places])
        np.testing.assert_array_equal(images[2], expected[2])
        np.testing.assert_array_equal(images[:0], expected[:0])
    assert digests(found) == digests(one)


@pytest.mark.parametrize("reading", [Reading(), STREAMED])
def test_splits_and_labels_come_from_the_names_of_files(
    reading: Reading, whole: NDArray[np.uint8], tmp_path: Path
) -> None:
    labels = np.random.default_rng(2).integers(0, 9, len(whole))
    for split in ("train", "test"):
        write(tmp_path / split, whole[..., 0] if split == "train" else whole[::-1, ..., 0])
        write(tmp_path / split, labels if split == "train" else labels[::-1, None], "labels")
    found = data.load(str(tmp_path), None, reading)
    np.testing.assert_array_equal(np.asarray(found.train), whole[..., :1])
    np.testing.assert_array_equal(np.asarray(found.test), whole[::-1, ..., :1])
    np.testing.assert_array_equal(found.split("train")["label"], labels)
    np.testing.assert_array_equal(found.split("test")["label"], labels[::-1])


@pytest.mark.parametrize("reading", [Reading(), STREAMED])
@pytest.mark.parametrize("tested", [False, True])
def test_a_folder_of_validation_shards(
    tested: bool, reading: Reading, whole: NDArray[np.uint8], tmp_path: Path
) -> None:
    """Without a folder for testing, every tenth image for training is held out."""
    splits = {"train": whole, "val": whole[:9], **({"test": whole[::-1]} if tested else {})}
    for split, images in splits.items():
        (tmp_path / split).mkdir()
        np.save(tmp_path / split / "images-0.npy", images)
        np.save(tmp_path / split / "labels-0.npy", np.arange(len(images)))
    found = data.load(str(tmp_path), None, reading)
    np.testing.assert_array_equal(np.asarray(found.validation), whole[:9])
    assert found.split("validation")["label"].tolist() == [*range(9)]
    np.testing.assert_array_equal(np.asarray(found.test), whole[::-1] if tested else whole[9::10])
    np.testing.assert_array_equal(found.train, whole if tested else np.delete(whole, np.s_[9::10], 0))
    (tmp_path / "val" / "labels-0.npy").unlink()
    with pytest.raises(InputError, match="only some of train, .*val have files of labels"):
        data.load(str(tmp_path))


def test_training_shards_alone_are_like_their_folder(whole: NDArray[np.uint8], tmp_path: Path) -> None:
    write(tmp_path / "train", whole)
    assert digests(data.load(str(tmp_path))) == digests(data.load(str(tmp_path / "train")))
    np.save(tmp_path / "other.npy", whole)
    with pytest.raises(InputError, match=r"arrays lie in train/ and beside it, such as other\.npy"):
        data.load(str(tmp_path))


def test_shards_are_converted_one_by_one(tmp_path: Path) -> None:
    """Files of several dtypes, as 8 bits."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "a.npy", rng.uniform(size=(8, 4, 3)))
    np.save(tmp_path / "b.npy", np.asfortranarray(rng.integers(0, 256, (9, 4, 3, 1))))
    parts = np.rint(np.float32(np.load(tmp_path / "a.npy")) * 255)[..., None], np.load(tmp_path / "b.npy")
    found = data.load(str(tmp_path))
    np.testing.assert_array_equal(found.test, np.concatenate(parts)[9::10])
    with pytest.raises(InputError, match=r"--stream always: .*a\.npy: holds float64; only uint8 in C's order"):
        data.load(str(tmp_path), None, STREAMED)


def test_a_folder_of_pictures_may_hold_arrays(whole: NDArray[np.uint8], tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "deeper").mkdir()
    np.save(tmp_path / "notes.npy", whole)
    for number in range(10):
        Image.fromarray(whole[number]).save(tmp_path / "deeper" / f"{number}.png")
    np.testing.assert_array_equal(data.load(str(tmp_path)).test, whole[9:10])


def test_shards_that_do_not_fit_together_are_refused(whole: NDArray[np.uint8], tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(InputError, match=message):
            data.load(str(tmp_path))

    write(tmp_path, whole)
    np.save(tmp_path / "labels-001.npy", np.zeros(30, int))
    refused(r"images-000\.npy: has no labels; labels-001\.npy holds those of images-001\.npy")
    write(tmp_path, np.zeros(len(whole), int), "labels")
    np.save(tmp_path / "labels-002.npy", np.zeros(2, int))
    refused(r"labels-002\.npy: 2 labels for 1 images")
    write(tmp_path, np.zeros(len(whole), int), "labels")
    np.save(tmp_path / "labels-004.npy", np.zeros(2, int))
    refused(r"labels-004\.npy: there is no images-004\.npy")
    np.save(tmp_path / "images-004.npy", whole[:2, :5])
    refused(r"images-004\.npy: images of 5 x 5 x 3, but those of images-000\.npy are 6 x 5 x 3")
    (tmp_path / "images-004.npy").write_bytes(b"\x93NUMPY")
    refused(r"images-004\.npy: cannot be read")


def test_what_is_not_an_array_is_left_alone(whole: NDArray[np.uint8], tmp_path: Path) -> None:
    write(tmp_path, whole)
    (tmp_path / "._images-000.npy").write_bytes(b"of macOS")
    (tmp_path / "._seen.png").write_bytes(b"of macOS")
    os.mkfifo(tmp_path / "queue.npy")
    assert len(data.load(str(tmp_path)).train) == len(whole) - len(whole) // 10
    with pytest.raises(InputError, match="--skip-bad has no effect: --dataset .* is not a picture folder"):
        data.load(str(tmp_path), None, Reading(skip_bad=True))


def test_too_many_shards_are_refused(whole: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MOST_FILES", 3)
    write(tmp_path, whole)
    with pytest.raises(InputError, match=r"4 \.npy files: the most are 3; join some of them"):
        data.load(str(tmp_path))


def test_a_shard_that_changes_is_refused(whole: NDArray[np.uint8], tmp_path: Path) -> None:
    write(tmp_path, whole)
    train = data.load(str(tmp_path), None, STREAMED).train
    np.save(tmp_path / "images-003.npy", whole)
    with pytest.raises(InputError, match=r"images-003\.npy: the file has changed since training began"):
        train[-1:]
    np.testing.assert_array_equal(train[:1], whole[:1])  # From another file.


@pytest.mark.long
@pytest.mark.unoptimized
def test_a_run_on_streamed_shards_writes_the_bytes_of_one_on_a_single_file(
    whole: NDArray[np.uint8], tmp_path: Path
) -> None:
    labels = np.arange(len(whole)) % 3
    write(tmp_path / "shards", whole)
    write(tmp_path / "shards", labels, "labels")
    np.savez(tmp_path / "one.npz", images=whole, labels=labels)
    flags = ["--preset", "vae", *SMALL, "--condition", "label", "--epochs", "2", "--validation", "5"]
    for name, stream in (("shards", "always"), ("one.npz", "never")):
        given = ["--dataset", str(tmp_path / name), "--stream", stream, "--run-dir", str(tmp_path / f"run-{name}")]
        assert train(*flags, *given) == 0
    lines = [(tmp_path / f"run-{name}" / "metrics.jsonl").read_bytes() for name in ("shards", "one.npz")]
    assert lines[0] == lines[1]
