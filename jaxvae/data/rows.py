"""Images that stay in files: some rows of arrays that are mapped into memory, and read as they are needed."""

import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from jaxvae.errors import InputError

CHUNK_BYTES = 2**24  # Read at a time where all rows are needed, in order.
PIECE_BYTES = 2**21  # Read before pages are given back: the system maps more of a file than is touched.
V = TypeVar("V")


class StoredArray:
    """An array in a file, uint8 [n, ...].

    This process gives the pages that it read back to the system at once, so its memory stays small. The system keeps
    them while it has room.

    Args:
      path: the file.
      offset: where the array begins in it, in bytes.
      shape: of the array, [n, ...].
    """

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...]):
        self.path, self.shape, self._offset = path, shape, offset
        self._array = np.memmap(path, np.uint8, "r", offset, shape)
        self._mapped: mmap.mmap = self._array._mmap  # type: ignore[attr-defined]
        self._state = self._file_state()
        self.row_bytes = self._array[:1].nbytes
        self._advise("MADV_RANDOM")  # Or the system would read what lies behind each row, too.

    def take(self, places: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Read the rows at `places` into `out`. Raises `InputError` if the file has changed, or is gone."""
        self._check()  # First, since reading a file that was cut would end the process.
        np.take(self._array, places, axis=0, out=out, mode="clip")  # "raise" would copy once more.
        self._check()
        self._advise("MADV_DONTNEED")

    def span(self, first: int, count: int) -> NDArray[np.uint8]:
        """Read rows that follow one another at once: much faster than a fault for every page. Raises as `take`."""
        self._check()
        size = count * self.row_bytes
        found = np.fromfile(self.path, np.uint8, size, offset=self._offset + first * self.row_bytes)
        self._check()
        if found.size != size:
            raise self._changed()
        return found.reshape(count, *self.shape[1:])

    def _check(self) -> None:
        if self._file_state() != self._state:
            raise self._changed()

    def _changed(self) -> InputError:
        return InputError(f"{self.path}: the file has changed since training began")

    def _file_state(self) -> tuple[int, int]:
        try:
            found = os.stat(self.path)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read any more: {error.strerror}") from None
        return found.st_size, found.st_mtime_ns

    def _advise(self, advice: str) -> None:
        if hasattr(mmap, advice):  # Not on every system.
            self._mapped.madvise(getattr(mmap, advice))


class Rows:
    """Rows of the arrays of files, one file after the other: uint8 [N, ...], with as much of NumPy as runs need.

    Indexing reads, and gives an array.

    Args:
      files: arrays of at least one row, with the same shape but for the first axis.
      places: which rows of all of them, ascending. Default: all.
    """

    def __init__(self, files: Sequence[StoredArray], places: NDArray[np.int64] | None = None):
        self.files = tuple(files)
        self._starts = np.cumsum([0, *(file.shape[0] for file in files)])
        self._places = np.arange(self._starts[-1]) if places is None else places
        self._row_bytes = max(1, files[0].row_bytes)
        self.dtype = np.dtype(np.uint8)
        self.shape = (len(self._places), *files[0].shape[1:])
        self.ndim = len(self.shape)
        self.nbytes = len(self._places) * files[0].row_bytes

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        """Read some rows: an array.

        Raises:
          InputError: a file has changed, or is gone.
        """
        places = np.atleast_1d(self._places[key])
        found = np.empty((len(places), *self.shape[1:]), np.uint8)
        numbers = np.searchsorted(self._starts, places, side="right") - 1  # Of their files.
        by_file = np.argsort(numbers, kind="stable")
        bounds = np.searchsorted(numbers[by_file], np.arange(len(self.files) + 1))
        for number in np.flatnonzero(np.diff(bounds)).tolist():
            self._read(number, places, by_file[bounds[number] : bounds[number + 1]], found)
        return found if np.ndim(self._places[key]) else found[0]

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for chunk in self.chunks():
            yield from chunk

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        whole = self[:]
        return whole if dtype is None else whole.astype(dtype)

    def chunks(self) -> Iterator[NDArray[np.uint8]]:
        """All rows in their order, in arrays of some megabytes."""
        count = max(1, CHUNK_BYTES // self._row_bytes)
        bounds = np.searchsorted(self._places, self._starts)
        for number, file in enumerate(self.files):
            own = self._places[bounds[number] : bounds[number + 1]] - self._starts[number]
            for start in range(0, len(own), count):
                places = own[start : start + count]
                first, size = int(places[0]), int(places[-1] - places[0]) + 1
                if size > 2 * count:
                    yield self[bounds[number] + start : bounds[number] + start + len(places)]
                else:
                    yield file.span(first, size)[places - first]

    def pick(self, places: NDArray[Any]) -> "Rows":
        """Some of these rows, ascending; nothing is read."""
        return Rows(self.files, self._places[places])

    def _read(self, number: int, places: NDArray[Any], own: NDArray[Any], out: NDArray[np.uint8]) -> None:
        """Read those of the rows at `places` that lie in a file, `own`, into `out`."""
        piece = max(1, PIECE_BYTES // self._row_bytes)
        for start in range(0, len(own), piece):
            part = own[start : start + piece]
            rows = places[part] - self._starts[number]
            if len(own) == len(places):  # In order: no copy.
                self.files[number].take(rows, out[start : start + piece])
            else:
                read = np.empty((len(part), *self.shape[1:]), np.uint8)
                self.files[number].take(rows, read)
                out[part] = read


def picked(values: V, places: NDArray[Any]) -> V:
    """Some rows of an array, or of `Rows`, which then stay in their files; `places` ascend."""
    return values.pick(places) if isinstance(values, Rows) else values[places]  # type: ignore[index,return-value]


def mean(images: Any) -> NDArray[np.float64]:
    """The mean of uint8 images [N, ...], over the first axis: float64. Its sum is exact, in any order."""
    if not isinstance(images, Rows):
        found: NDArray[np.float64] = images.mean(axis=0, dtype=np.float64)
        return found
    total = sum((chunk.sum(axis=0, dtype=np.float64) for chunk in images.chunks()), np.zeros(images.shape[1:]))
    return np.asarray(total / len(images))
