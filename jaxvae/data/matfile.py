"""Read MATLAB files of version 5 (``save -v6`` and ``-v7``): arrays of numbers, and tables of texts.

SciPy reads them, too, but a few wrong bytes in a file can end its process with a segmentation fault. Here all input is
untrusted, as in `jaxvae.data.formats`. The format: "MAT-File Format", The MathWorks.
"""

import math
import struct
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from jaxvae.data.formats import blaming
from jaxvae.errors import InputError

Variable: TypeAlias = np.ndarray[Any, Any] | tuple[str, ...] | None
"""An array of numbers, the texts of a cell array, in MATLAB's order, or None: anything else."""

_HEADER = 128  # Bytes. The last four are the version and the byte order.
_ORDERS = {b"IM": "<", b"MI": ">"}
_VERSIONS = {1: "5", 2: "7.3"}
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MATRIX, _COMPRESSED = 14, 15  # Types of elements, besides those of numbers and texts.
_CLASSES, _CELL, _CHAR, _NUMERIC = range(1, 16), 1, 4, range(6, 16)  # Of arrays.
_MOST_BYTES = 2**29  # Of a compressed element: `svhn_cropped` has 225 MB in one.
_NOTHING = (0, memoryview(b""))
_COMPLEX = 0x0800
_ENCODINGS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}


def variables(path: Path, names: Collection[str]) -> Mapping[str, Variable]:
    """Some variables of a MATLAB file, by name. Those that it lacks are left out.

    Numbers have the type in which they are stored: MATLAB stores whole numbers in fewer bytes.

    Raises:
      InputError: the file cannot be read, is damaged, or is of another version.
    """
    with blaming(path):
        content = memoryview(path.read_bytes())
        order = _ORDERS.get(bytes(content[_HEADER - 2 : _HEADER]))
        version = order and struct.unpack_from(f"{order}H", content, _HEADER - 4)[0] >> 8
        if order is None or version not in _VERSIONS:
            raise InputError(f"{path}: not a MATLAB file of version 5")
        if version != 1:
            raise InputError(f"{path}: a MATLAB file of version {_VERSIONS[version]}: save it as version 7 or older")
        found: dict[str, Variable] = {}
        for kind, element in _elements(content[_HEADER:], order):
            if kind == _COMPRESSED:
                kind, element = _unpacked(element, order)
            if kind == _MATRIX:
                array = _begun(element, order)
                if array.name in names:
                    found[array.name] = _content(array, order)
    return found


def _elements(content: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """The elements one after the other: their types and contents."""
    place = 0
    while place < len(content):
        kind, size = struct.unpack_from(f"{order}II", content, place)
        start = place + 8
        if kind >> 16:  # At most four bytes, which follow at once.
            size, kind, start, place = kind >> 16, kind & 0xFFFF, place + 4, start
            fits = size <= 4
        else:
            # All but compressed elements are filled up to eight bytes.
            place = start + size + (0 if kind == _COMPRESSED else -size % 8)
            fits = start + size <= len(content)
        if not fits:
            raise ValueError(f"truncated: an element claims {size} bytes, only {len(content) - start} follow")
        yield kind, content[start : start + size]


def _unpacked(element: memoryview, order: str) -> tuple[int, memoryview]:
    """The one element in a compressed one. No more is unpacked than it claims to hold."""
    decoder = zlib.decompressobj()
    kind, size = struct.unpack(f"{order}II", decoder.decompress(element, 8))
    if size > _MOST_BYTES:
        raise ValueError(f"a compressed element claims {size:,} bytes, more than {_MOST_BYTES:,}")
    content = decoder.decompress(decoder.unconsumed_tail, size) if size else b""
    # Reading past the end is what makes zlib verify its checksum.
    if len(content) < size or decoder.decompress(decoder.unconsumed_tail, 1) or not decoder.eof:
        raise ValueError(f"a compressed element claims {size} bytes, and holds more or fewer")
    return kind, memoryview(content)


class _Array(NamedTuple):
    """An array whose content is still to be read.

    Attributes:
      kind: its class.
      is_complex: whether its numbers have two parts.
      shape: its dimensions.
      name: empty in a cell array.
      rest: the elements that follow.
    """

    kind: int
    is_complex: bool
    shape: tuple[int, ...]
    name: str
    rest: Iterator[tuple[int, memoryview]]


def _begun(matrix: memoryview, order: str) -> _Array:
    """An array, of which the first three elements are read."""
    rest = _elements(matrix, order)
    (first,) = struct.unpack_from(f"{order}I", next(rest, _NOTHING)[1])
    if (first & 0xFF) not in _CLASSES:  # Objects of MATLAB's own, which have other elements.
        return _Array(first & 0xFF, False, (), "", rest)
    (_, dims), (_, name) = next(rest, _NOTHING), next(rest, _NOTHING)
    shape = struct.unpack(f"{order}{len(dims) // 4}i", dims)
    if not shape or min(shape) < 0:
        raise ValueError(f"an array of shape {list(shape)[:8]}")
    return _Array(first & 0xFF, bool(first & _COMPLEX), shape, bytes(name).decode("latin-1"), rest)


def _content(array: _Array, order: str) -> Variable:
    """The content of an array."""
    if array.kind in _NUMERIC and not array.is_complex:
        kind, content = next(array.rest, _NOTHING)
        if kind not in _NUMBERS:
            raise ValueError(f"{array.name}: numbers of an unknown type, {kind}")
        dtype = np.dtype(f"{order}{_NUMBERS[kind]}")
        if math.prod(array.shape) * dtype.itemsize != len(content):
            raise ValueError(f"{array.name}: {len(content)} bytes are no {dtype} {list(array.shape)[:8]}")
        numbers = np.frombuffer(content, dtype).reshape(array.shape, order="F")
        return numbers if dtype.isnative else numbers.astype(dtype.newbyteorder("="))
    if array.kind == _CELL:
        texts = [_text(_begun(element, order), order) for _, element in array.rest]
        return None if None in texts else tuple(text for text in texts if text is not None)
    return None


def _text(array: _Array, order: str) -> str | None:
    """The text of an array that is one."""
    kind, content = next(array.rest, _NOTHING)
    if array.kind != _CHAR or kind not in _ENCODINGS:
        return None
    wide = {"<": "-le", ">": "-be"}[order] if kind not in (1, 2, 16) else ""
    return bytes(content).decode(_ENCODINGS[kind] + wide)
