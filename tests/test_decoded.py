"""Folders of pictures that are decoded into a file, against the same folders read into memory."""

import dataclasses
import os
import shutil
import threading
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small import SMALL

from jaxvae import data, memory
from jaxvae.data import pictures
from jaxvae.data.reading import Reading
from jaxvae.data.rows import Rows
from jaxvae.errors import InputError
from jaxvae.train import loop, stream

STREAMED = Reading(stream="always")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "jaxvae-pictures"


def save(path: Path, *shape: int, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 pictures in two classes, every third grey, and two damaged ones."""
    folder = tmp_path / "photos"
    for n in range(40):
        save(folder / ("cats" if n < 15 else "dogs") / f"{n:02}.png", *((8, 8) if n % 3 == 0 else (8, 8, 3)), seed=n)
    (folder / "cats" / "03.png").write_bytes(b"")
    (folder / "dogs" / "99.png").write_bytes(b"no picture")
    return folder


def assert_same(streamed: data.ImageData, resident: data.ImageData) -> None:
    for split in ("train", "test", *(["validation"] if len(resident.validation) else [])):
        assert isinstance(getattr(streamed, split), Rows)
        for name, values in resident.split(split).items():
            np.testing.assert_array_equal(np.asarray(streamed.split(split)[name]), values)
    assert (streamed.skipped, streamed.classes) == (resident.skipped, resident.classes)


@pytest.mark.parametrize("how", [{}, {"channels": 1}, {"image_size": (5, 6)}, {"image_size": (12,), "resize": "pad"}])
def test_the_pictures_labels_and_faults_are_those_of_the_folder(how: dict[str, Any], folder: Path) -> None:
    resident = data.load(str(folder), reading=Reading(**how, skip_bad=True), warn=lambda _: None)
    for _ in range(2):  # Decoded, then found again.
        streamed = data.load(str(folder), reading=Reading(**how, skip_bad=True, stream="always"), warn=lambda _: None)
        assert_same(streamed, resident)
        assert len(streamed.skipped) == 2 and "decoded in" in streamed.source


def test_a_folder_of_grey_pictures_split_already(tmp_path: Path) -> None:
    for n in range(12):
        save(tmp_path / "d" / ("train", "val", "test")[n % 3] / f"{n}.png", 7, 6, seed=n)
    streamed = data.load(str(tmp_path / "d"), reading=STREAMED)
    assert_same(streamed, data.load(str(tmp_path / "d")))
    assert streamed.image_shape == (7, 6, 1) and len(streamed.validation) == 4


def test_pictures_are_decoded_once(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another way to read them, or a file that was changed, is decoded anew."""
    read, decoded = pictures._read_picture, list[Path]()

    def noted(path: Path, reading: Reading) -> Any:
        decoded.append(path)
        return read(path, reading)

    monkeypatch.setattr(pictures, "_read_picture", noted)
    reading = dataclasses.replace(STREAMED, skip_bad=True)
    for expected in (41, 41):
        data.load(str(folder), reading=reading, warn=lambda _: None)
        assert len(decoded) == expected
    data.load(str(folder), reading=dataclasses.replace(reading, image_size=(4,)), warn=lambda _: None)
    assert len(decoded) == 82
    save(folder / "cats" / "05.png", 8, 8, 3, seed=500)
    os.utime(folder / "cats" / "05.png", ns=(1, 1))
    again = data.load(str(folder), reading=reading, warn=lambda _: None)
    assert len(decoded) == 123
    assert_same(again, data.load(str(folder), reading=Reading(skip_bad=True), warn=lambda _: None))
    assert len(list(cache.glob("*.uint8"))) == 3 and not list(cache.glob("*.incomplete"))


def test_a_relative_path_names_the_same_pictures(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = dataclasses.replace(STREAMED, skip_bad=True)
    data.load(str(folder), reading=reading, warn=lambda _: None)
    monkeypatch.chdir(folder.parent)
    found = data.load(folder.name, reading=reading, warn=lambda _: None)
    assert len(list(cache.glob("*.uint8"))) == 1
    assert len(found.skipped) == 2


@pytest.mark.parametrize("damage", ["short", "no facts", "empty facts", "a killed process"])
def test_a_damaged_file_is_decoded_again(damage: str, folder: Path, cache: Path) -> None:
    reading = dataclasses.replace(STREAMED, skip_bad=True)
    first = data.load(str(folder), reading=reading, warn=lambda _: None)
    [file], [facts] = cache.glob("*.uint8"), cache.glob("*.json")
    if damage == "short":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "empty facts":
        facts.write_text("")
    else:
        facts.unlink()
    if damage == "a killed process":
        file.rename(file.with_name(f"{file.name}.incomplete"))
    again = data.load(str(folder), reading=reading, warn=lambda _: None)
    assert_same(again, data.load(str(folder), reading=Reading(skip_bad=True), warn=lambda _: None))
    assert first.image_shape == again.image_shape and not list(cache.glob("*.incomplete"))


def test_a_second_process_waits_and_does_not_decode(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would replace the file that the first one trains on."""
    reading = dataclasses.replace(STREAMED, skip_bad=True)
    seen: list[data.ImageData] = []
    read = pictures._read_picture

    def load() -> None:
        seen.append(data.load(str(folder), reading=reading, warn=lambda _: None))

    other, decoded = threading.Thread(target=load), list[Path]()

    def noted(path: Path, reading: Reading) -> Any:
        decoded.append(path)
        if not other.ident and path.name == "20.png":
            other.start()
        return read(path, reading)

    monkeypatch.setattr(pictures, "_read_picture", noted)
    load()
    other.join()
    assert len(decoded) == 41 and len(seen) == 2
    for found in seen:
        np.testing.assert_array_equal(np.asarray(found.train), np.asarray(seen[0].train))


def test_without_a_home_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    assert data.load(str(folder), reading=dataclasses.replace(STREAMED, skip_bad=True), warn=lambda _: None)
    monkeypatch.delenv("XDG_CACHE_HOME")
    with pytest.raises(InputError, match="no home directory .* set XDG_CACHE_HOME"):
        data.load(str(folder), reading=dataclasses.replace(STREAMED, skip_bad=True), warn=lambda _: None)


def test_a_bad_picture_does_not_decide_the_channels(tmp_path: Path) -> None:
    for n in range(12):
        save(tmp_path / "d" / f"{n:02}.png", 7, 6, seed=n)
    Image.fromarray(np.zeros((7, 6), np.uint16)).save(tmp_path / "d" / "deep.png")
    # This one's header can be read, and its pixels cannot.
    save(tmp_path / "d" / "cut.png", 7, 6, 3)
    (tmp_path / "d" / "cut.png").write_bytes((tmp_path / "d" / "cut.png").read_bytes()[:100])
    for reading in (Reading(skip_bad=True), *[dataclasses.replace(STREAMED, skip_bad=True)] * 2):
        found = data.load(str(tmp_path / "d"), reading=reading, warn=lambda _: None)
        assert found.image_shape == (7, 6, 1) and len(found.skipped) == 2


@pytest.mark.parametrize("place", [0, -1])
def test_what_is_refused_leaves_no_file(place: int, folder: Path, cache: Path) -> None:
    """Damaged pictures, and one of another size; first or last."""
    with pytest.raises(InputError, match="2 of 41 picture files cannot be read"):
        data.load(str(folder), reading=STREAMED)
    paths = sorted(folder.rglob("*.png"))
    save(paths[place], 9, 8, 3)
    with pytest.raises(InputError, match="pictures of 2 sizes"):
        data.load(str(folder), reading=dataclasses.replace(STREAMED, skip_bad=True))
    assert {path.suffix for path in cache.iterdir()} == {".lock"}


def test_a_disk_without_room_is_told_before_anything_is_written(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 2**28 + 41 * 192 - 1))
    with pytest.raises(InputError, match=r"take 7.7 KiB, and .* set XDG_CACHE_HOME"):
        data.load(str(folder), reading=dataclasses.replace(STREAMED, skip_bad=True))
    assert {path.suffix for path in cache.iterdir()} == {".lock"}


def test_a_cache_that_cannot_be_written(folder: Path, cache: Path) -> None:
    cache.parent.write_text("a file")
    with pytest.raises(InputError, match=r"--stream: .* cannot be written"):
        data.load(str(folder), reading=dataclasses.replace(STREAMED, skip_bad=True))


@pytest.mark.parametrize("size", [(), (4,)])
def test_pictures_that_might_not_fit_in_memory_are_streamed(
    size: tuple[int, ...], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 41 * 3 * (16 if size else 64)
    for free, kind in ((2 * needed, np.ndarray), (2 * needed - 2, Rows)):
        monkeypatch.setattr(memory, "host_free_bytes", lambda free=free: free)
        found = data.load(str(folder), reading=Reading(size, skip_bad=True), warn=lambda _: None)
        assert isinstance(found.train, kind)
        never = data.load(str(folder), reading=Reading(size, skip_bad=True, stream="never"), warn=lambda _: None)
        assert isinstance(never.train, np.ndarray)


@pytest.mark.long
def test_a_run_on_a_streamed_folder_writes_the_bytes_of_one_in_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conditional one, which reads labels, too; and it is resumed."""
    monkeypatch.setattr(stream, "BLOCK_BYTES", 3 * 4 * 196)
    config = dataclasses.replace(
        SMALL, dataset=str(folder), skip_bad=True, batch_size=4, epochs=2, validation=4, condition="label"
    )
    for how in ("never", "always"):
        loop.train(dataclasses.replace(config, stream=how), tmp_path / how, devices=1)  # type: ignore[arg-type]
    cut = tmp_path / "cut"
    for epochs in (1, 2):
        loop.train(dataclasses.replace(config, stream="always", epochs=epochs), cut, epochs > 1, devices=1)
    lines = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("never", "always")]
    assert lines[0] == lines[1]
    assert (cut / "metrics.jsonl").read_bytes().splitlines()[-1] == lines[0].splitlines()[-1]
