"""`jaxvae.data.matfile` against SciPy: files that MATLAB wrote, files of SciPy's, and files that are cut."""

import contextlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io.matlab
from scipy.io import loadmat, savemat

from jaxvae.data.matfile import variables
from jaxvae.errors import InputError

# Written by MATLAB 5 to 8 on several machines, in both byte orders.
WRITTEN_BY_MATLAB = sorted((Path(scipy.io.matlab.__file__).parent / "tests" / "data").glob("test*_[5678]*.mat"))


assert len(WRITTEN_BY_MATLAB) > 50


def texts(cells: Any) -> tuple[str, ...]:
    return tuple("".join(cell.ravel()) for cell in cells.ravel(order="F"))


@pytest.mark.parametrize("path", WRITTEN_BY_MATLAB, ids=lambda path: path.stem)
def test_files_that_matlab_wrote(path: Path) -> None:
    if "hdf5" in path.name:
        with pytest.raises(InputError, match=r"a MATLAB file of version 7\.3: save it as version 7"):
            variables(path, ())
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
    ours = variables(path, theirs)
    numbers = {name for name, value in theirs.items() if isinstance(value, np.ndarray) and value.dtype.kind in "biuf"}
    assert numbers <= {name for name, value in ours.items() if isinstance(value, np.ndarray)}
    for name, value in ours.items():
        expected = theirs[name]
        if isinstance(value, np.ndarray):
            assert value.dtype.isnative
            np.testing.assert_array_equal(value, expected, strict=expected.dtype.isnative and expected.dtype != bool)
        elif isinstance(value, tuple):
            assert value == texts(expected)


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_of_numbers_and_tables_of_texts(compressed: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kinds = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64, np.float32, np.float64]
    given: dict[str, Any] = {np.dtype(kind).name: (100 * rng.random((2, 3, 4))).astype(kind) for kind in kinds}
    given |= {"one": np.uint8([[7]]), "none": np.zeros((0, 3)), "a_long_name_of_a_variable": np.eye(2)}
    cells = np.array([["one", "two words"], ["", "ä ∂"]], object)
    savemat(tmp_path / "x.mat", {**given, "cells": cells, "mixed": np.array([1, "a"], object), "text": "abc"},
            do_compression=compressed)  # fmt: skip
    found = variables(tmp_path / "x.mat", (*given, "cells", "mixed", "text", "absent"))
    for name, array in given.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
    assert found["cells"] == ("one", "", "two words", "ä ∂")
    assert found["mixed"] is None and found["text"] is None and "absent" not in found
    assert variables(tmp_path / "x.mat", ("one",)).keys() == {"one"}


def test_compressed_and_plain_variables_in_one_file(tmp_path: Path) -> None:
    given = {name: np.arange(size, dtype=np.uint8)[None] for name, size in (("a", 3), ("bc", 13), ("def", 900))}
    with (tmp_path / "x.mat").open("wb") as file:
        for name, array in given.items():  # SciPy appends.
            savemat(file, {name: array}, do_compression=name != "bc")
    found = variables(tmp_path / "x.mat", given)
    assert found.keys() == given.keys()
    for name, array in given.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_that_is_cut_anywhere_gives_no_wrong_numbers(compressed: bool, tmp_path: Path) -> None:
    given = {"first": np.arange(40.0).reshape(5, 8), "second": np.arange(7, dtype=np.uint8)[None]}
    path = tmp_path / "x.mat"
    savemat(path, given, do_compression=compressed)
    whole = path.read_bytes()
    refused = 0
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with contextlib.suppress(InputError):
            for name, array in variables(path, given).items():
                np.testing.assert_array_equal(array, given[name])
            continue
        refused += 1
    assert refused > 0.9 * len(whole)


def test_what_is_no_such_file(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    savemat(path, {"x": np.eye(2)}, format="4")
    for content in (path.read_bytes(), b"", b"MATLAB 5.0", bytes(200), b"PK\x03\x04" + bytes(300)):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.mat: not a MATLAB file of version 5"):
            variables(path, ("x",))
    path.unlink()
    with pytest.raises(InputError, match=r"x\.mat: cannot be read: No such file"):
        variables(path, ("x",))
