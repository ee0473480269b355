"""An ONNX graph while it is put together: its nodes, its constants, and values whose number of images is open."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxvae.errors import InputError

Size = Any  # A number, or the symbol N.


class Named(NamedTuple):
    """A value that is computed by the graph: its name, and its shape. An axis that is only repeated may have size 1."""

    name: str
    shape: tuple[Size, ...]


Value = Named | NDArray[Any]


class Graph:
    """Nodes and constants, as they are collected.

    Attributes:
      nodes: of ONNX, in order.
      constants: tensors of ONNX.
      batch: an input whose first axis is N.
    """

    def __init__(self) -> None:
        self.nodes, self.constants = list[Any](), list[Any]()
        self.batch: Named | None = None
        self._names: dict[tuple[Any, ...], str] = {}  # Of constants.
        self._count: Named | None = None

    def node(self, kind: str, inputs: Sequence[Value], name: str = "", **attributes: Any) -> str:
        """Add a node with one output. Returns the output's name."""
        from onnx import helper

        name = name or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [self.name(value) for value in inputs], [name], **attributes))
        return name

    def name(self, value: Value) -> str:
        """The name of a value; a constant becomes part of the file."""
        if isinstance(value, Named):
            return value.name
        from onnx import numpy_helper

        array = np.ascontiguousarray(value).reshape(value.shape)
        key = (array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).digest())
        if key not in self._names:
            self._names[key] = f"constant_{len(self.constants)}"
            self.constants.append(numpy_helper.from_array(array, self._names[key]))
        return self._names[key]

    def whole(self, value: Value, shape: Sequence[Size]) -> Value:
        """A value with every axis repeated up to `shape`."""
        if tuple(value.shape) == tuple(shape):
            return value
        wanted = [1 if there == size else size for there, size in zip(value.shape, shape, strict=True)]
        return Named(self.node("Expand", [value, self._sizes(wanted)]), tuple(shape))

    def _sizes(self, sizes: Sequence[Size]) -> Value:
        """The sizes as a vector; N is read from an input."""
        if all(isinstance(size, int) for size in sizes):
            return np.array(sizes, np.int64)
        assert self.batch is not None
        if any(not isinstance(size, int) and size != self.batch.shape[0] for size in sizes):
            raise InputError("--format onnx: the model has sizes that depend on the number of images")
        if self._count is None:
            self._count = Named(self.node("Shape", [self.batch], start=0, end=1), (1,))
        parts = [np.array([size], np.int64) if isinstance(size, int) else self._count for size in sizes]
        return Named(self.node("Concat", parts, axis=0), (len(parts),))

    def drop_unused(self) -> None:
        """Drop the constants that no node reads, which are those of branches for other devices."""
        read = {name for node in self.nodes for name in node.input}
        self.constants = [tensor for tensor in self.constants if tensor.name in read]

    def reshaped(self, value: Value, sizes: Sequence[Size]) -> Value:
        """A value with other sizes, of which one may be open."""
        if isinstance(value, np.ndarray):
            return value.reshape(sizes)
        if tuple(sizes) == value.shape:
            return value
        fixed = [size if isinstance(size, int) else -1 for size in sizes]
        if fixed.count(-1) > 1:
            raise InputError("--format onnx: the model has sizes that depend on the number of images")
        return Named(self.node("Reshape", [value, np.array(fixed, np.int64)]), tuple(sizes))
