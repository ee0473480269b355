"""`jaxvae.data.dsprites`: how it is split, its labels, images that stream, and damaged files."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_files import dsprites, factors
from image_files import noise
from small import SMALL

from jaxvae import data, memory
from jaxvae.data import dsprites as reader
from jaxvae.data.reading import Reading
from jaxvae.data.rows import Rows
from jaxvae.errors import InputError
from jaxvae.train import loop

STREAMED = Reading(stream="always")
FILE = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "jaxvae-pictures"


def test_a_tenth_is_drawn_for_testing_whatever_the_place_of_the_shape(tmp_path: Path) -> None:
    """Every tenth would have an odd place down the image."""
    count = 3000
    imgs = np.zeros((count, 64, 64), np.uint8)
    imgs[np.arange(count), np.arange(count) // 64, np.arange(count) % 64] = 1  # The place of its pixel tells an image.
    dsprites(tmp_path, count, imgs=imgs)
    loaded = data.load("dsprites", tmp_path, labels=True)
    train, test = (split.reshape(len(split), -1).argmax(axis=1) for split in (loaded.train, loaded.test))
    assert len(test) == 300 and sorted([*train, *test]) == list(range(count))
    assert (np.diff(train) > 0).all() and (np.diff(test) > 0).all() and not loaded.whole
    assert len(set(factors(count)[test, 5])) == 32 and len(set(factors(count)[test, 4])) == 32
    assert test[:5].tolist() == np.sort(np.random.default_rng(0).permutation(count)[:300])[:5].tolist()


def test_labels_are_shapes_and_all_factors_come_with_them(tmp_path: Path) -> None:
    count = 12000
    dsprites(tmp_path, count, imgs=np.zeros((count, 64, 64), np.uint8))
    loaded = data.load("dsprites", tmp_path, labels=True)
    assert loaded.classes == ("square", "ellipse", "heart")
    found = {name: loaded.split(name)["label"] for name in ("train", "test")}
    test = np.sort(np.random.default_rng(0).permutation(count)[:1200])
    np.testing.assert_array_equal(found["test"], test // 4096)
    np.testing.assert_array_equal(found["train"], np.delete(np.arange(count), test) // 4096)
    assert found["train"].dtype == np.int32 and loaded.train.max() == 0
    np.testing.assert_array_equal(loaded.split("test")["factors"], factors(count)[test])
    assert "factors" not in data.load("dsprites", tmp_path).split("train")


@pytest.mark.parametrize("at_once", [7, 2**12])
@pytest.mark.parametrize("how", [{}, {"channels": 3}, {"image_size": (20, 24)}])
def test_streamed_images_are_those_in_memory(
    how: dict[str, Any], at_once: int, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_AT_ONCE", at_once)
    dsprites(tmp_path)
    resident = data.load("dsprites", tmp_path, Reading(**how), labels=True)
    for _ in range(2):  # Unpacked, then found again.
        streamed = data.load("dsprites", tmp_path, Reading(**how, stream="always"), labels=True)
        for split in ("train", "test"):
            assert isinstance(getattr(streamed, split), Rows) and isinstance(getattr(resident, split), np.ndarray)
            for name, values in resident.split(split).items():
                np.testing.assert_array_equal(np.asarray(streamed.split(split)[name]), values)
        assert streamed.image_shape == resident.image_shape and streamed.classes == resident.classes
        assert "unpacked in" in streamed.source and len(list(cache.glob("*.uint8"))) == 1


def test_images_that_might_not_fit_in_memory_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dsprites(tmp_path)
    for how, needed in (({}, 30 * 64 * 64), ({"image_size": (16,), "channels": 3}, 30 * 16 * 16 * 3)):
        for free, kind in ((2 * needed, np.ndarray), (2 * needed - 2, Rows)):
            monkeypatch.setattr(memory, "host_free_bytes", lambda free=free: free)
            assert isinstance(data.load("dsprites", tmp_path, Reading(**how)).train, kind)
        never = data.load("dsprites", tmp_path, Reading(**how, stream="never"))
        assert isinstance(never.train, np.ndarray)


@pytest.mark.long
def test_a_streamed_run_writes_the_bytes_of_one_in_memory(tmp_path: Path) -> None:
    dsprites(tmp_path)
    config = dataclasses.replace(
        SMALL, dataset="dsprites", data_dir=str(tmp_path), image_size=(8,), batch_size=4, validation=4, epochs=1,
        condition="label",
    )  # fmt: skip
    for how in ("never", "always"):
        loop.train(dataclasses.replace(config, stream=how), tmp_path / how, devices=1)  # type: ignore[arg-type]
    lines = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("never", "always")]
    assert lines[0] == lines[1]


def test_pickled_metadata_is_not_read(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("unpickled",))

    train, _ = dsprites(tmp_path, metadata=np.array(Bomb(), object))
    np.testing.assert_array_equal(data.load("dsprites", tmp_path, labels=True).train, train)


BAD = [
    ({"imgs": None}, "holds no imgs"),
    ({"imgs": noise(30, 64, 63) // 128}, r"imgs: shape \[30, 64, 63\] is not \[N, 64, 64\]"),
    ({"imgs": noise(30, 64, 64, 1) // 128}, r"imgs: shape \[30, 64, 64, 1\] is not"),
    ({"imgs": noise(9, 64, 64) // 128}, "imgs: too few images to hold out a tenth for testing: 9"),
    ({"imgs": np.zeros((30, 64, 64))}, "imgs: holds float64, not uint8"),
    ({"imgs": np.asfortranarray(noise(30, 64, 64) // 128)}, "imgs: holds Fortran order, not uint8"),
    ({"imgs": noise(30, 64, 64)}, "imgs: must hold only 0 and 1"),
    ({"imgs": np.array([None] * 30)}, "imgs: holds pickled Python objects"),
]
BAD_LABELS = [
    ({"latents_classes": None}, "holds no latents_classes"),
    ({"latents_classes": factors(29)}, r"latents_classes: shape \[29, 6\] is not \[30, 6\]"),
    ({"latents_classes": factors(30) + 3}, "latents_classes: shapes up to 3: must be from 0 to 2"),
    ({"latents_classes": factors(30) - 1}, "latents_classes: int64 from -1 to [0-9]+: must be whole numbers from 0"),
    (
        {"latents_classes": factors(30) + 300},
        "latents_classes: int64 from 300 to 3[0-9]+: must be whole numbers from 0",
    ),
    ({"latents_classes": factors(30) / 2}, "latents_classes: float64 from .*: must be whole numbers from 0"),
]


@pytest.mark.parametrize(
    ("changed", "words", "labels"), [*((*case, False) for case in BAD), *((*case, True) for case in BAD_LABELS)]
)
@pytest.mark.parametrize("stream", ["never", "always"])
def test_what_is_wrong_is_told_in_one_line(
    changed: dict[str, Any], words: str, labels: bool, stream: Any, tmp_path: Path, cache: Path
) -> None:
    dsprites(tmp_path, **changed)
    with pytest.raises(InputError, match=words) as caught:
        data.load("dsprites", tmp_path, Reading(stream=stream), labels=labels)
    assert FILE in str(caught.value) and "\n" not in str(caught.value)
    assert not cache.exists() or {path.suffix for path in cache.iterdir()} == {".lock"}


@pytest.mark.parametrize("stream", ["never", "always"])
def test_a_changed_bit_is_found(stream: Any, tmp_path: Path) -> None:
    """By the checksum of the archive: the pixels would be 0 or 1 all the same."""
    dsprites(tmp_path)
    images = noise(30, 64, 64) // 128
    np.savez(tmp_path / FILE, imgs=images)  # Not compressed.
    whole = bytearray((tmp_path / FILE).read_bytes())
    place = whole.index(images[20].tobytes())
    whole[place + 5] ^= 1
    (tmp_path / FILE).write_bytes(whole)
    with pytest.raises(InputError, match="Bad CRC-32"):
        data.load("dsprites", tmp_path, Reading(stream=stream))
