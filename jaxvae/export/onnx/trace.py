"""A JAX function as an ONNX model: what JAX traces, written down operation by operation.

The number of images N stays open. Convolutions are ONNX's own `Conv` and `ConvTranspose`, not the matrix products of
`jaxvae.models.convolution`. What depends on weights alone is computed here, once.

The package jax2onnx (0.17) does the same for more functions. It asks for an Orbax of one version, which would take the
place of the one that wrote the run's checkpoints, and for a viewer and a runtime besides.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from jaxvae.errors import InputError
from jaxvae.export.onnx.graph import Graph, Named, Size, Value
from jaxvae.export.onnx.operations import ELEMENTWISE, OPERATIONS

OPSET = 18  # Of December 2022; the newest operators used, reductions with axes as an input, are from there.
IR_VERSION = 8  # Of the same time.
MOST_BYTES = 2**31 - 1  # Of a file.
CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call")  # Functions within the function.


def model_of(
    function: Callable[..., Any],
    inputs: Mapping[str, jax.ShapeDtypeStruct],
    outputs: Sequence[str],
    about: Mapping[str, str],
) -> bytes:
    """An ONNX model of a function, serialised.

    Args:
      function: of arrays.
      inputs: its arguments in order: names and forms. The first axis of each may be a symbol.
      outputs: the names of what it returns.
      about: what the names mean, and anything else, by name: the metadata of the file.

    Raises:
      InputError: the function computes something that has no form here; or the file would have 2 GiB or more.
    """
    import onnx
    from onnx import helper

    traced = jax.make_jaxpr(function)(*inputs.values())
    graph = Graph()
    arguments = [Named(name, form.shape) for name, form in inputs.items()]
    graph.batch = next((a for a in arguments if a.shape and not isinstance(a.shape[0], int)), None)
    results = _run(graph, traced.jaxpr, traced.consts, arguments)
    for name, value, var in zip(outputs, results, traced.jaxpr.outvars, strict=True):
        graph.node("Identity", [graph.whole(value, var.aval.shape)], name)
    graph.drop_unused()

    def described(name: str, form: Any) -> Any:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(form.dtype))
        shape = [size if isinstance(size, int) else str(size) for size in form.shape]
        return helper.make_tensor_value_info(name, kind, shape, about.get(name, ""))

    body = helper.make_graph(
        graph.nodes,
        "jaxvae",
        [described(name, form) for name, form in inputs.items()],
        [described(name, var.aval) for name, var in zip(outputs, traced.jaxpr.outvars, strict=True)],
        graph.constants,
    )
    model = helper.make_model(
        body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="jaxvae"
    )
    helper.set_model_props(model, dict(about))
    if model.ByteSize() > MOST_BYTES:
        raise InputError("--format onnx: the file would have 2 GiB or more, which ONNX does not allow")
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def _run(graph: Graph, jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Value]) -> list[Value]:
    """Add all that `jaxpr` computes. Returns its results."""
    env: dict[Any, Value] = dict(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
    env |= dict(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Value:
        if not isinstance(atom, Literal):
            return env[atom]
        form: Any = atom.aval
        return np.asarray(atom.val, form.dtype)

    for equation in jaxpr.eqns:
        found = _equation(graph, equation, [read(atom) for atom in equation.invars])
        env |= dict(zip(equation.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _equation(graph: Graph, equation: Any, values: list[Value]) -> Sequence[Value]:
    kind, params = equation.primitive.name, equation.params
    if any(var.aval.dtype in (jnp.bfloat16, jnp.float16) for var in equation.outvars):
        raise InputError(f"--format onnx: the model computes in {equation.outvars[0].aval.dtype}, not in float32")
    if kind == "platform_index":  # ONNX's runtimes are none of the devices that have a form of their own.
        return [np.asarray(params["platforms"].index(None), np.int32)]
    if kind == "cond":
        if isinstance(values[0], Named):
            raise InputError("--format onnx: the model has branches that depend on its input (cond)")
        branch = params["branches"][int(values[0])]
        return _run(graph, branch.jaxpr, branch.consts, values[1:])
    if kind in CALLS:
        inner: ClosedJaxpr = params.get("jaxpr", params.get("call_jaxpr"))
        return _run(graph, inner.jaxpr, inner.consts, values)
    shapes = [atom.aval.shape for atom in equation.invars]
    known = all(isinstance(value, np.ndarray) for value in values)
    out = [var.aval.shape for var in equation.outvars]
    if known and [v.shape for v in values] == shapes and all(isinstance(n, int) for shape in out for n in shape):
        with jax.ensure_compile_time_eval():
            computed = equation.primitive.bind(*map(jnp.asarray, values), **params)
        return [np.asarray(v) for v in (computed if equation.primitive.multiple_results else [computed])]
    if kind in ELEMENTWISE:
        return [_elementwise(graph, kind, values, params, equation.outvars[0].aval)]
    if kind == "broadcast_in_dim":
        return [_repeated(graph, values[0], params["shape"], params["broadcast_dimensions"])]
    if kind not in OPERATIONS:
        raise InputError(f"--format onnx: the model computes {kind}, which this export does not know")
    wholes = [graph.whole(value, shape) for value, shape in zip(values, shapes, strict=True)]
    names = OPERATIONS[kind](graph, wholes, params, out)
    return [Named(name, tuple(shape)) for name, shape in zip(names, out, strict=True)]


def _elementwise(graph: Graph, kind: str, values: Sequence[Value], params: Mapping[str, Any], aval: Any) -> Value:
    # ONNX repeats axes of size 1, so nothing needs to be repeated before.
    shape = [1] * len(aval.shape)
    for value in values:
        for place, size in enumerate(value.shape):
            shape[place] = size if shape[place] == 1 else shape[place]
    return Named(ELEMENTWISE[kind](graph, values, params), tuple(shape))


def _repeated(graph: Graph, value: Value, shape: Sequence[Size], axes: Sequence[int]) -> Value:
    sizes = [value.shape[axes.index(place)] if place in axes else 1 for place in range(len(shape))]
    return graph.reshaped(value, sizes)
