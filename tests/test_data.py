"""`jaxvae.data.sources`: every format against bytes written by other means than the code under test."""

import dataclasses
import gzip
import hashlib
import io
import math
import os
import pickle
import re
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import FUZZ, loads_or_refuses, mutated, noise, refuses, save, whole

from jaxvae import data
from jaxvae.config import PRESETS, Config
from jaxvae.data import download
from jaxvae.errors import InputError

TRAIN, TEST = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte"


def idx(images: data.Images) -> bytes:
    return struct.pack(">BBBB", 0, 0, 8, 3) + struct.pack(">III", *images.shape) + images.tobytes()


# --- Names and flags ----------------------------------------------------------------------------------------


def test_unknown_name_lists_the_known_ones() -> None:
    families = [name for name in data.DATASETS if "/" not in name]
    refuses("--dataset", "'minst'", *families, "emnist/SPLIT", ".npy", "hf:NAME", dataset="minst")


@pytest.mark.parametrize("dataset", ["", "\0", "x" * 5000, "no/such/file.npy"])
def test_names_that_are_not_paths(dataset: str) -> None:
    refuses("--dataset", repr(dataset), dataset=dataset)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("1,2,3")
    refuses("--dataset", path, ".npy", dataset=str(path))


@pytest.mark.parametrize("dataset", ["digits", "images.npy", "nonsense"])
def test_data_dir_goes_with_datasets_of_known_files_only(dataset: str, tmp_path: Path) -> None:
    refuses("--data-dir", "mnist", repr(dataset), dataset=dataset, data_dir=tmp_path)


# --- IDX ----------------------------------------------------------------------------------------------------


def write_pair(folder: Path, train: bytes, test: bytes | None = None) -> None:
    (folder / TRAIN).write_bytes(train)
    (folder / TEST).write_bytes(idx(noise(3, 5, 4)) if test is None else test)


@pytest.mark.parametrize("dataset", ["auto", *download.IDX_DATASETS])
@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_idx_round_trip(dataset: str, dotted: bool, zipped: bool, tmp_path: Path) -> None:
    train, test = noise(7, 5, 4), noise(3, 5, 4, seed=1)
    for name, images in ((TRAIN, train), (TEST, test)):
        name = name.replace("-idx3", ".idx3") if dotted else name
        content = idx(images)
        (tmp_path / (name + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)
    loaded = data.load(dataset, tmp_path, warn=lambda message: pytest.fail(message))
    np.testing.assert_array_equal(loaded.train, train[..., None])
    np.testing.assert_array_equal(loaded.test, test[..., None])
    assert loaded.train.dtype == loaded.test.dtype == np.uint8
    assert loaded.name == ("mnist" if dataset == "auto" else dataset)
    assert loaded.source == f"IDX files in {tmp_path}"


def test_gzip_is_recognised_by_content_not_by_name(tmp_path: Path) -> None:
    images = noise(3, 5, 4)
    (tmp_path / f"{TRAIN}.gz").write_bytes(idx(images))
    (tmp_path / TEST).write_bytes(gzip.compress(idx(images)))
    loaded = data.load("mnist", tmp_path)
    np.testing.assert_array_equal(loaded.train, loaded.test)


GOOD = idx(noise(7, 5, 4))
BAD_IDX: dict[str, tuple[Any, ...]] = {
    "no content": (b"",),
    "half a header": (GOOD[:15],),
    "one byte short": (GOOD[:-1],),
    "header only": (GOOD[:16],),
    "one byte long": (GOOD + b"\0",),
    "labels": (struct.pack(">II", 0x801, 7) + bytes(range(20)), "0x00000801"),
    "little endian": (b"\3\x08\0\0" + GOOD[4:], "0x03080000"),
    "no images": (struct.pack(">4I", 0x803, 0, 28, 28),),
    "no pixels": (struct.pack(">4I", 0x803, 5, 28, 0),),
    "huge claim": (struct.pack(">4I", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1) + b"x" * 99,),
    "large claim": (struct.pack(">4I", 0x803, 2**14, 2**10, 2**10) + b"x" * 99,),
    "a web page": (b"<!DOCTYPE html><html>Not found</html>", "0x3c21444f"),
}


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("case", BAD_IDX)
@pytest.mark.parametrize("which", [TRAIN, TEST])
def test_bad_idx(case: str, zipped: bool, which: str, tmp_path: Path) -> None:
    content, *fragments = BAD_IDX[case]
    write_pair(tmp_path, idx(noise(7, 5, 4)))
    (tmp_path / which).write_bytes(gzip.compress(content) if zipped else content)
    refuses(tmp_path / which, *fragments, dataset="mnist", data_dir=tmp_path)


def crc_flipped() -> bytes:
    content = bytearray(gzip.compress(GOOD))
    content[-5] ^= 1
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        b"\x1f\x8b",
        b"\x1f\x8b" + b"junk" * 9,
        gzip.compress(GOOD)[:-30],
        gzip.compress(GOOD)[:-4],
        crc_flipped(),
        gzip.compress(GOOD) + b"junk after the end",
    ],
    ids=["magic only", "junk", "cut in the data", "cut in the checksum", "wrong checksum", "junk after"],
)
def test_bad_gzip(content: bytes, tmp_path: Path) -> None:
    write_pair(tmp_path, content)
    refuses(tmp_path / TRAIN, dataset="mnist", data_dir=tmp_path)


def test_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    bomb = gzip.compress(GOOD + bytes(64 << 20))
    write_pair(tmp_path, bomb)
    data.load("digits")  # Imports on first use must not count below.
    tracemalloc.start()
    try:
        refuses(tmp_path / TRAIN, dataset="mnist", data_dir=tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_idx_that_is_missing(tmp_path: Path) -> None:
    refuses("--data-dir", tmp_path / "nowhere", dataset="mnist", data_dir=tmp_path / "nowhere")
    refuses("--data-dir", tmp_path, TRAIN, dataset="auto", data_dir=tmp_path)
    (tmp_path / TRAIN).write_bytes(GOOD)
    refuses("--data-dir", tmp_path, TEST, dataset="mnist", data_dir=tmp_path)


def test_idx_sets_of_different_sizes(tmp_path: Path) -> None:
    write_pair(tmp_path, idx(noise(7, 6, 4)))
    refuses("mnist", "[6, 4, 1]", "[5, 4, 1]", dataset="mnist", data_dir=tmp_path)


@FUZZ
@given(
    content=st.one_of(
        st.binary(max_size=80),
        st.builds(lambda tail: GOOD[:4] + tail, st.binary(max_size=80)),
        st.builds(lambda tail: b"\x1f\x8b\x08" + tail, st.binary(max_size=80)),
    )
)
def test_fuzz_idx_bytes(content: bytes, tmp_path: Path) -> None:
    write_pair(tmp_path, content)
    loads_or_refuses("mnist", tmp_path)


@FUZZ
@given(edit=st.data(), zipped=st.booleans())
def test_fuzz_idx_mutated(edit: st.DataObject, zipped: bool, tmp_path: Path) -> None:
    write_pair(tmp_path, mutated(gzip.compress(GOOD) if zipped else GOOD, edit))
    loads_or_refuses("mnist", tmp_path)


# --- Digits -------------------------------------------------------------------------------------------------


def test_digits_match_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    loaded = data.load("digits")
    assert loaded.name == "digits"
    assert loaded.train.shape == (1500, 28, 28, 1)
    assert loaded.test.shape == (297, 28, 28, 1)
    images = np.concatenate([loaded.train, loaded.test])
    assert images.dtype == np.uint8
    assert (images.min(), images.max()) == (0, 255)
    # In the same order, upright and with the same greys: averages over a 4x4 grid agree.
    blocks = images.reshape(1797, 4, 7, 4, 7).mean((2, 4)) / 255
    small = load_digits().images.reshape(1797, 4, 2, 4, 2).mean((2, 4)) / 16
    assert np.abs(blocks - small).max() < 0.15
    assert np.abs(blocks - small).mean() < 0.03


# --- NumPy files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [10, 19, 20, 101])
def test_every_tenth_image_is_held_out(n: int, tmp_path: Path) -> None:
    images = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None], (n, 3, 2))
    path = save(tmp_path / "x.npy", images)
    loaded = data.load(path)
    assert loaded.test[:, 0, 0, 0].tolist() == list(range(9, n, 10))
    assert loaded.train[:, 0, 0, 0].tolist() == [i for i in range(n) if i % 10 != 9]
    assert loaded.name == path
    assert path in loaded.source


def test_nine_images_are_too_few(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npy", noise(9, 3, 2))
    refuses(path, "9", "10", dataset=path)


@pytest.mark.parametrize("shape", [(20, 5, 4), (20, 5, 4, 1), (20, 5, 4, 3), (20, 5, 4, 4)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_uint8(shape: tuple[int, ...], order: Any, tmp_path: Path) -> None:
    images = noise(*shape)
    loaded = data.load(save(tmp_path / "x.npy", np.asarray(images, order=order)))
    np.testing.assert_array_equal(whole(loaded), images.reshape(20, 5, 4, -1))
    assert loaded.train.flags.c_contiguous
    assert loaded.test.flags.c_contiguous


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f2", ">f4", ">f8"])
def test_npy_float_of_every_grey_comes_back_exactly(dtype: str, tmp_path: Path) -> None:
    greys = np.arange(256, dtype=np.uint8).reshape(16, 4, 4)
    loaded = data.load(save(tmp_path / "x.npy", (greys / 255).astype(dtype)))
    np.testing.assert_array_equal(whole(loaded)[..., 0], greys)


@pytest.mark.parametrize("dtype", ["i1", "u2", "i2", "i4", "u8", "i8", ">i4"])
def test_npy_integers(dtype: str, tmp_path: Path) -> None:
    images = noise(10, 5, 4) // 2
    loaded = data.load(save(tmp_path / "x.npy", images.astype(dtype)))
    np.testing.assert_array_equal(whole(loaded)[..., 0], images)


def test_npy_bool(tmp_path: Path) -> None:
    images = noise(10, 5, 4) > 127
    path = save(tmp_path / "x.npy", images)
    np.testing.assert_array_equal(whole(data.load(path))[..., 0], np.where(images, 255, 0))
    # A file may hold "booleans" other than 0 and 1.
    content = bytearray(Path(path).read_bytes())
    content[-200:] = bytes([7]) * 200
    Path(path).write_bytes(content)
    assert np.unique(whole(data.load(path))).tolist() == [255]


def filled(value: Any, dtype: Any) -> Any:
    array = np.zeros((10, 5, 4), dtype)
    array[3, 2, 1] = value
    return array


BAD_ARRAYS: dict[str, tuple[Any, ...]] = {
    "float above 1": (filled(1.01, "f4"), "1.01: floats must be finite and in [0, 1]"),
    "float from -1": (filled(-0.5, "f4"), "if they are from -1 to 1, take (x + 1) / 2"),
    "float below 0": (filled(-0.01, "f8"), "[0, 1]"),
    "0..255 as float": (filled(255, "f4"), "[0, 1]; if they are levels from 0 to 255, divide them by 255"),
    "NaN": (filled(np.nan, "f2"), "[0, 1]"),
    "infinity": (filled(np.inf, "f4"), "[0, 1]"),
    "256": (filled(256, "i4"), "0..255"),
    "-1": (filled(-1, "i8"), "0..255"),
    "huge": (filled(2**64 - 1, "u8"), "0..255"),
    "complex": (filled(1, "c8"), "complex64"),
    "text": (filled("a", "U3"),),
    "dates": (np.zeros((10, 5, 4), "M8[s]"),),
    "records": (np.zeros((10, 5, 4), [("a", "u1")]),),
    "no images": (np.zeros((0, 5, 4), "u1"),),
    "no pixels": (np.zeros((10, 5, 0, 3), "u1"),),
    "scalar": (np.uint8(3), "[]"),
    "two dimensions": (noise(10, 784), "[10, 784]"),
    "five dimensions": (noise(10, 2, 2, 2, 3), "[10, 2, 2, 2, 3]"),
    "two channels": (noise(10, 5, 4, 2), "[10, 5, 4, 2]"),
    "channels first": (noise(10, 3, 32, 32), "[10, 3, 32, 32]"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays(case: str, tmp_path: Path) -> None:
    array, *fragments = BAD_ARRAYS[case]
    path = save(tmp_path / "x.npy", array)
    refuses(path, *fragments, dataset=path)
    np.savez_compressed(tmp_path / "x.npz", train=noise(10, 5, 4), test=array)
    refuses(tmp_path / "x.npz", "test", *fragments, dataset=str(tmp_path / "x.npz"))


def test_values_slightly_above_1_are_not_taken_for_levels(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"floats must be finite and in \[0, 1\]$"):
        data.load(save(tmp_path / "x.npy", np.full((20, 5, 4), 1.01)))


class Payload:
    """Unpickling this creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_pickles_are_refused_and_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    array = np.full((10, 5, 4), Payload(trap), dtype=object)
    npy, npz = tmp_path / "x.npy", tmp_path / "x.npz"
    np.save(npy, array, allow_pickle=True)
    np.savez(npz, train=array, test=array)
    refuses(npy, dataset=str(npy))
    refuses(npz, dataset=str(npz))
    bare = tmp_path / "bare.npy"
    bare.write_bytes(pickle.dumps(Payload(trap)))
    refuses(bare, dataset=str(bare))
    assert not trap.exists()
    np.load(npy, allow_pickle=True)
    assert trap.exists(), "the payload works, so the test above means something"


def npy(header: str, payload: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode("latin1") + payload


def header(shape: str, descr: str = "'|u1'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n"


BAD_NPY: dict[str, tuple[Any, ...]] = {
    "no content": (b"",),
    "not NumPy": (b"P5 28 28 255" * 9,),
    "half a header": (npy(header("(10, 5, 4)"))[:30],),
    "huge claim": (npy(header("(1000000000000, 1000000, 1000000)"), b"x" * 200),),
    "large claim": (npy(header("(100000, 1000, 1000)"), b"x" * 200),),
    "one byte short": (npy(header("(10, 5, 4)"), b"x" * 199),),
    "one byte long": (npy(header("(10, 5, 4)"), b"x" * 201),),
    "negative": (npy(header("(-10, -5, 4)"), b"x" * 200),),
    "version 3": (npy(header("(10, 5, 4)"), b"x" * 200).replace(b"Y\x01", b"Y\x03"), "3.0"),
    "version 9": (npy(header("(10, 5, 4)"), b"x" * 200).replace(b"Y\x01", b"Y\x09"), "9.0"),
    "code": (npy("__import__('os').mkdir('x')"),),
    "deep": (npy("(" * 9000),),
    "long": (npy(header("(10, 5, 4)") + " " * 20000, b"x" * 200),),
    "strange dtype": (npy(header("(10, 5, 4)", "[('a', [('b', 3)])]"), b"x" * 200),),
    "long double": (npy(header("(10, 5, 4)", "'<f16'"), b"x" * 3200),),
}


@pytest.mark.parametrize("case", BAD_NPY)
def test_bad_npy(case: str, tmp_path: Path) -> None:
    content, *fragments = BAD_NPY[case]
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    refuses(path, *fragments, dataset=str(path))
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", content)
    refuses(tmp_path / "x.npz", "images", *fragments, dataset=str(tmp_path / "x.npz"))


def test_odd_but_valid_npy_headers(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(npy(header("(10L, 5, 4)"), bytes(200)))  # as Python 2 wrote them
    assert whole(data.load(str(path))).shape == (10, 5, 4, 1)
    path.write_bytes(npy(header("(10, True, 4)"), bytes(40)))
    assert whole(data.load(str(path))).shape == (10, 1, 4, 1)
    with path.open("wb") as file:
        np.lib.format.write_array(file, noise(10, 5, 4), version=(2, 0))
    np.testing.assert_array_equal(whole(data.load(str(path)))[..., 0], noise(10, 5, 4))


A, B, C = noise(12, 5, 4), noise(3, 5, 4, seed=1), noise(20, 5, 4, seed=2)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "arrays",
    [
        {"x_train": A, "x_test": B, "y_train": np.arange(12), "y_test": np.arange(3)},
        {"train": A, "test": B},
        {"x_train": A, "x_test": B, "train": C, "test": C},
        {"train": A, "test": B, "val": C, "labels": np.array(["a"], object)},
    ],
    ids=["Keras", "plain", "both", "more"],
)
def test_npz_with_two_sets(arrays: dict[str, Any], compressed: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    loaded = data.load(str(path))
    np.testing.assert_array_equal(loaded.train[..., 0], A)
    np.testing.assert_array_equal(loaded.test[..., 0], B)
    assert loaded.name == str(path)


def test_npz_with_one_array_is_split(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", C)
    np.testing.assert_array_equal(whole(data.load(str(tmp_path / "x.npz")))[..., 0], C)


@pytest.mark.parametrize("end", [{}, {"y_val": np.arange(3), "x_val": B}])
@pytest.mark.parametrize("names", [("x_train", "y_train"), ("train", "train_labels"), ("train_images", "train_labels")])
def test_npz_without_test_images_is_split(
    names: tuple[str, str], end: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = {names[0]: C, names[1]: np.arange(20)}
    ends = {name.replace("train", "val"): end[key] for name, key in zip(names, ("x_val", "y_val"), strict=True) if end}
    np.savez(tmp_path / "x.npz", **arrays, **ends)
    loaded = data.load(str(tmp_path / "x.npz"))
    assert capsys.readouterr().err == ""
    np.testing.assert_array_equal(whole(loaded)[..., 0], C)
    assert loaded.split("test")["label"].tolist() == [9, 19]
    np.testing.assert_array_equal(loaded.validation[..., 0], B if end else C[:0])
    assert not end or loaded.split("validation")["label"].tolist() == [0, 1, 2]
    assert loaded.whole == (not end)  # Then encode returns the order of the file.


@pytest.mark.parametrize(
    ("names", "unfit", "fault"),
    [
        (("x_train", "y_train", "x_test"), {}, "there is no y_test"),
        (("x_train", "x_test", "y_test"), {}, "there is no y_train"),
        (("x_train", "y_train", "x_test", "y_test", "x_val"), {}, "there is no y_val"),
        (("x_train", "y_train", "x_test"), {"y_test": np.ones((20, 14), int)}, "y_test is [20, 14], not one label"),
        (("x_train",), {"y_train": np.ones((20, 14), int)}, "y_train is [20, 14], not one label for each image"),
    ],
)
def test_npz_labels_that_do_not_fit_are_left_out(
    names: tuple[str, ...], unfit: dict[str, Any], fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, **{name: C if name[0] == "x" else np.arange(20) for name in names}, **unfit)
    loaded = data.load(str(path))
    assert loaded.split("train").keys() == loaded.split("test").keys() == {"image"}
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {path}: labels are left out: {fault}") and said.count("\n") == 1


@pytest.mark.parametrize(
    "names", [(), ("a", "b"), ("x_train", "test"), ("x_train", "y_test"), ("x_test", "y_test"), ("x_val", "y_val")]
)
def test_npz_with_unknown_keys(names: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    arrays: dict[str, Any] = dict.fromkeys(names, C)
    np.savez(path, **arrays)
    refuses(path, "x_train", "x_test", *map(repr, names), dataset=str(path))


@pytest.mark.parametrize("other", ["x_test", "test", "test_images"])
def test_a_npz_file_of_two_layouts_is_refused(other: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, images=C, **{other: C})  # type: ignore[arg-type]
    refuses(path, "holds images and", other, dataset=str(path))


def test_npz_keys_cannot_break_the_line(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a\nb.npy", b"")
        archive.writestr("c.npy", b"")
    refuses(tmp_path / "x.npz", r"'a\nb'", dataset=str(tmp_path / "x.npz"))


def test_npz_sets_of_different_sizes(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, train=noise(3, 5, 4), test=noise(3, 4, 5))
    refuses(path, "[5, 4, 1]", "[4, 5, 1]", dataset=str(path))


def stored(content: bytes, **claims: int) -> bytes:
    """A zip file with a single member, images.npy, and the `claims` in its directory entry."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", content)
        for field, value in claims.items():
            setattr(archive.filelist[0], field, value)
    return out.getvalue()


def test_npz_that_claims_an_impossible_size(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    content = npy(header("(100000, 1000, 1000)"), bytes(5000))
    claimed = len(content) - 5000 + 10**11
    path.write_bytes(stored(content, file_size=claimed))
    refuses(path, "images", claimed, dataset=str(path))
    # A size that deflate could reach, but the content is missing.
    content = npy(header("(1000, 10, 10)"), noise(5000).tobytes())
    path.write_bytes(stored(content, file_size=len(content) + 95000))
    refuses(path, "images", dataset=str(path))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a zip file",
        stored(npy(header("(10, 5, 4)"), bytes(200)))[:-30],
        stored(npy(header("(10, 5, 4)"), bytes(200)), CRC=1),
        stored(npy(header("(10, 5, 4)"), bytes(200)), flag_bits=1),
        stored(npy(header("(10, 5, 4)"), bytes(200)), compress_type=zipfile.ZIP_LZMA),
        stored(npy(header("(10, 5, 4)"), bytes(200)), header_offset=5000),
    ],
    ids=["no content", "not a zip", "truncated", "wrong checksum", "encrypted", "lzma", "offset"],
)
def test_bad_npz(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    refuses(path, dataset=str(path))


@FUZZ
@given(
    text=st.one_of(
        st.text(st.characters(max_codepoint=255), max_size=60),
        st.builds(header, st.lists(st.integers(-2, 2**70), max_size=5).map(lambda x: repr(tuple(x)))),
        st.builds(header, st.just("(10, 5, 4)"), st.text("'|<>=iufbcOSUVMm[](),0123456789 ", max_size=12)),
    ),
    payload=st.sampled_from([b"", bytes(200), bytes(1600)]),
)
def test_fuzz_npy_headers(text: str, payload: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(npy(text, payload))
    loads_or_refuses(str(path))


@FUZZ
@given(edit=st.data(), content=st.binary(max_size=60))
def test_fuzz_npy_mutated(edit: st.DataObject, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    loads_or_refuses(str(path))
    path.write_bytes(mutated(npy(header("(10, 5, 4)", "'<f4'"), bytes(800)), edit))
    loads_or_refuses(str(path))


@FUZZ
@given(edit=st.data())
def test_fuzz_npz_mutated(edit: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(mutated(stored(npy(header("(10, 5, 4)"), noise(200).tobytes())), edit))
    loads_or_refuses(str(path))


# --- Validation images --------------------------------------------------------------------------------------


def numbered(count: int) -> data.ImageData:
    """`count` training images, each of which holds its own number, and 3 test images."""
    train = np.arange(count, dtype=np.uint8)[:, None, None, None]
    return data.ImageData("numbered", "a test", train, np.full((3, 1, 1, 1), 255, np.uint8))


@pytest.mark.parametrize(("amount", "count"), [(1 / 12, 8), (0.25, 25), (1, 1), (40, 40), (99, 99), (0.994, 99)])
def test_validation_images_are_training_images(amount: float, count: int) -> None:
    images = numbered(100)
    split = data.with_validation(images, amount, seed=3)
    train, held_out = split.train.ravel().tolist(), split.validation.ravel().tolist()
    assert len(held_out) == count
    assert sorted(train + held_out) == list(range(100))
    assert train == sorted(train) and held_out == sorted(held_out)
    assert split.train.shape[1:] == split.validation.shape[1:] == (1, 1, 1)
    assert split.test is images.test


def test_mnist_keeps_a_usual_split() -> None:
    train = np.zeros((60_000, 1, 1, 1), np.uint8)
    images = data.ImageData("mnist", "a test", train, train[:1])
    for preset, count in (("notes-ae", 0), ("notes-vae", 0), ("vae", 5000), ("iwae", 5000)):
        split = data.prepared(images, PRESETS[preset])
        assert (len(split.validation), len(split.train)) == (count, 60_000 - count)


def test_which_images_are_held_out_depends_on_the_seed_and_their_number() -> None:
    def held_out(images: data.ImageData, amount: float, seed: int) -> set[int]:
        split = data.with_validation(images, amount, seed)
        train = split.train.ravel().tolist()
        return {place for place, number in enumerate(images.train.ravel().tolist()) if number not in train}

    images = numbered(100)
    backwards = dataclasses.replace(images, train=images.train[::-1].copy())
    assert held_out(images, 10, 0) == held_out(images, 0.1, 0) == held_out(backwards, 10, 0)
    assert held_out(images, 10, 0) != held_out(images, 10, 1)
    assert held_out(images, 10, 0) < held_out(images, 20, 0)


def test_each_split_that_is_not_empty_has_digests() -> None:
    images = numbered(100)
    assert data.digests(images).keys() == {"train_images_sha256", "test_images_sha256"}
    first, second = (data.digests(data.with_validation(images, 10, seed)) for seed in (0, 1))
    assert first.keys() == {"train_images_sha256", "validation_images_sha256", "test_images_sha256"}
    assert {name for name in first if first[name] == second[name]} == {"test_images_sha256"}
    assert first["test_images_sha256"] == hashlib.sha256(b"\xff" * 3).hexdigest()


def test_no_validation_leaves_the_images_as_they_are() -> None:
    images = numbered(5)
    assert images.validation.shape == (0, 1, 1, 1)
    assert data.with_validation(images, 0, seed=1) is images


@pytest.mark.parametrize(("amount", "count"), [(100, 100), (5e9, 100), (0.996, 100), (1, 1), (0.004, 100)])
def test_validation_amounts_that_do_not_fit_the_images(amount: float, count: int) -> None:
    with pytest.raises(InputError, match=f"--validation {re.escape(f'{amount:g}')}.* {count} ") as caught:
        data.with_validation(numbered(count), amount, seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("amount", [-1, -0.1, math.nan, math.inf, 1.5])
def test_validation_amounts_that_are_invalid(amount: float) -> None:
    with pytest.raises(InputError, match="--validation "):
        Config(validation=amount)
    with pytest.raises(InputError, match="--validation-seed "):
        Config(validation_seed=-1)


def test_static_pixels_do_not_depend_on_the_split() -> None:
    images = data.ImageData("grey", "a test", noise(40, 5, 4, 1), noise(10, 5, 4, 1, seed=1))
    config = Config(inputs="static", static_seed=2)
    whole = data.prepared(images, config)
    for validation, seed in ((0.1, 0), (0.1, 1), (20, 0)):
        part = data.prepared(images, dataclasses.replace(config, validation=validation, validation_seed=seed))
        expected = data.with_validation(whole, validation, seed)
        np.testing.assert_array_equal(part.train, expected.train)
        np.testing.assert_array_equal(part.validation, expected.validation)
        np.testing.assert_array_equal(part.test, whole.test)
    # Validation images of the data's own are drawn last.
    brought = dataclasses.replace(images, validation=images.test[::-1])
    own = data.prepared(brought, dataclasses.replace(config, validation=0.1))
    np.testing.assert_array_equal(own.train, whole.train)
    np.testing.assert_array_equal(own.test, whole.test)
    assert own.validation.shape == images.test.shape and set(np.unique(own.validation)) == {0, 255}
    assert len(data.prepared(brought, config).validation) == 0  # --validation 0
