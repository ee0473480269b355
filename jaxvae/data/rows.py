"""Images that stay in a file: some rows of an array that is mapped into memory, and read as they are needed."""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from jaxvae.errors import InputError

CHUNK_BYTES = 2**24  # Read at a time where all rows are needed, in order.
PIECE_BYTES = 2**21  # Read before pages are given back: the system maps more of a file than is touched.
V = TypeVar("V")


class Rows:
    """Rows of an array in a file, uint8 [N, ...], with as much of NumPy's interface as runs need.

    Indexing reads, and gives an array. This process gives the pages that it read back to the system at once, so its
    memory stays small. The system keeps them while it has room.

    Args:
      path: the file.
      offset: where the array begins in it, in bytes.
      shape: of the whole array, [N, ...].
      places: which rows, ascending. Default: all.
    """

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], places: NDArray[np.int64] | None = None):
        self.path, self._offset, self._whole = path, offset, shape
        self._places = np.arange(shape[0]) if places is None else places
        self._array = np.memmap(path, np.uint8, "r", offset, shape)
        self._mapped: mmap.mmap = self._array._mmap  # type: ignore[attr-defined]
        self._state = self._file_state()
        self.dtype = np.dtype(np.uint8)
        self.shape = (len(self._places), *shape[1:])
        self.ndim = len(shape)
        self.nbytes = len(self._places) * self._array[:1].nbytes
        self._advise("MADV_RANDOM")  # Or the system would read what lies behind each row, too.

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        """Read some rows: an array.

        Raises:
          InputError: the file has changed, or is gone.
        """
        if self._file_state() != self._state:
            raise InputError(f"{self.path}: the file has changed since training began")
        places = self._places[key]
        if not places.ndim:
            return np.array(self._array[places])
        found = np.empty((len(places), *self.shape[1:]), np.uint8)
        piece = max(1, PIECE_BYTES // max(1, self._array[:1].nbytes))
        for start in range(0, len(places), piece):
            part = slice(start, start + piece)
            np.take(self._array, places[part], axis=0, out=found[part], mode="clip")  # "raise" would copy once more.
            self._advise("MADV_DONTNEED")
        return found

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for chunk in self.chunks():
            yield from chunk

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        whole = self[:]
        return whole if dtype is None else whole.astype(dtype)

    def chunks(self) -> Iterator[NDArray[np.uint8]]:
        """All rows in their order, in arrays of some megabytes."""
        row = max(1, self._array[:1].nbytes)
        count = max(1, CHUNK_BYTES // row)
        for start in range(0, len(self), count):
            places = self._places[start : start + count]
            first, last = int(places[0]), int(places[-1])
            if last - first >= 2 * count:
                yield self[start : start + count]
                continue
            # A single read is much faster than a fault for every page.
            span = np.fromfile(self.path, np.uint8, (last - first + 1) * row, offset=self._offset + first * row)
            if span.size != (last - first + 1) * row:
                raise InputError(f"{self.path}: the file has changed since training began")
            yield span.reshape(-1, *self.shape[1:])[places - first]

    def pick(self, places: NDArray[Any]) -> "Rows":
        """Some of these rows, ascending; nothing is read."""
        return Rows(self.path, self._offset, self._whole, self._places[places])

    def _file_state(self) -> tuple[int, int]:
        try:
            found = os.stat(self.path)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read any more: {error.strerror}") from None
        return found.st_size, found.st_mtime_ns

    def _advise(self, advice: str) -> None:
        if hasattr(mmap, advice):  # Not on every system.
            self._mapped.madvise(getattr(mmap, advice))


def picked(values: V, places: NDArray[Any]) -> V:
    """Some rows of an array, or of `Rows`, which then stay in their file; `places` ascend."""
    return values.pick(places) if isinstance(values, Rows) else values[places]  # type: ignore[index,return-value]


def mean(images: Any) -> NDArray[np.float64]:
    """The mean of uint8 images [N, ...], over the first axis: float64. Its sum is exact, in any order."""
    if not isinstance(images, Rows):
        found: NDArray[np.float64] = images.mean(axis=0, dtype=np.float64)
        return found
    total = sum((chunk.sum(axis=0, dtype=np.float64) for chunk in images.chunks()), np.zeros(images.shape[1:]))
    return np.asarray(total / len(images))
