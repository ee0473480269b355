"""What each operation of JAX is in ONNX."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxvae.errors import InputError
from jaxvae.export.onnx.graph import Graph, Named, Size, Value

# They add what an operation needs, and return the names of its outputs.
Elementwise = Callable[[Graph, Sequence[Value], Mapping[str, Any]], str]
Operation = Callable[[Graph, Sequence[Value], Mapping[str, Any], Sequence[Sequence[Size]]], Sequence[str]]


def _one(kind: str) -> Elementwise:
    return lambda graph, values, _: graph.node(kind, values)


def _with(graph: Graph, kind: str, value: Value, number: float) -> Named:
    """An operation on a value, float32, and a number."""
    return Named(graph.node(kind, [value, np.array(number, np.float32)]), value.shape)


def _select(graph: Graph, values: Sequence[Value], _: Mapping[str, Any]) -> str:
    chosen, *cases = values
    if len(cases) != 2:
        raise InputError("--format onnx: the model chooses between more than two values (select_n)")
    return graph.node("Where", [chosen, cases[1], cases[0]])


def _cast(graph: Graph, values: Sequence[Value], params: Mapping[str, Any]) -> str:
    from onnx import helper

    return graph.node("Cast", values, to=helper.np_dtype_to_tensor_dtype(np.dtype(params["new_dtype"])))


def _power(graph: Graph, values: Sequence[Value], params: Mapping[str, Any]) -> str:
    return _with(graph, "Pow", values[0], params["y"]).name


def _twice(outer: str, inner: str) -> Elementwise:
    return lambda graph, values, _: graph.node(outer, [Named(graph.node(inner, values), values[0].shape)])


def _clamp(graph: Graph, values: Sequence[Value], _: Mapping[str, Any]) -> str:
    low, value, high = values
    return graph.node("Min", [Named(graph.node("Max", [value, low]), value.shape), high])


def _minus_one(graph: Graph, values: Sequence[Value], _: Mapping[str, Any]) -> str:
    return _with(graph, "Sub", Named(graph.node("Exp", values), values[0].shape), 1.0).name


def _one_minus_erf(graph: Graph, values: Sequence[Value], _: Mapping[str, Any]) -> str:
    return graph.node("Sub", [np.array(1.0, np.float32), Named(graph.node("Erf", values), values[0].shape)])


def _round(graph: Graph, values: Sequence[Value], params: Mapping[str, Any]) -> str:
    if params["rounding_method"].name != "TO_NEAREST_EVEN":
        raise InputError("--format onnx: the model rounds halves away from zero, which this export does not know")
    return graph.node("Round", values)


ELEMENTWISE: Mapping[str, Elementwise] = {
    **{name: _one(name.capitalize()) for name in ("add", "sub", "mul", "div", "max", "min", "pow", "exp", "log")},
    **{name: _one(name.capitalize()) for name in ("tanh", "sqrt", "neg", "abs", "erf", "sign", "floor", "ceil")},
    **{name: _one(name.capitalize()) for name in ("sin", "cos", "and", "or", "not")},
    **{"eq": _one("Equal"), "lt": _one("Less"), "gt": _one("Greater")},
    **{"le": _one("LessOrEqual"), "ge": _one("GreaterOrEqual"), "ne": _twice("Not", "Equal")},
    **{"logistic": _one("Sigmoid"), "stop_gradient": _one("Identity"), "copy": _one("Identity")},
    "round": _round,
    "square": lambda graph, values, _: graph.node("Mul", [values[0], values[0]]),
    "rsqrt": _twice("Reciprocal", "Sqrt"),
    "log1p": lambda graph, values, _: graph.node("Log", [_with(graph, "Add", values[0], 1.0)]),
    "expm1": _minus_one,
    "erfc": _one_minus_erf,
    "integer_pow": _power,
    "select_n": _select,
    "clamp": _clamp,
    "convert_element_type": _cast,
}


def _reshape(graph: Graph, values: Sequence[Value], _: Mapping[str, Any], out: Sequence[Any]) -> Sequence[str]:
    return [graph.name(graph.reshaped(values[0], out[0]))]


def _transpose(graph: Graph, values: Sequence[Value], params: Mapping[str, Any], _: Any) -> Sequence[str]:
    return [graph.node("Transpose", values, perm=list(params["permutation"]))]


def _product(graph: Graph, values: Sequence[Value], params: Mapping[str, Any], _: Any) -> Sequence[str]:
    """`dot_general`: a MatMul where it is one, else an Einsum."""
    (left_sum, right_sum), (left_batch, right_batch) = params["dimension_numbers"]
    left, right = values
    if not left_batch and len(right.shape) == 2 and (left_sum, right_sum) == ((len(left.shape) - 1,), (0,)):
        return [graph.node("MatMul", values)]
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    first, second = ([""] * len(value.shape) for value in values)
    for one, other in (*zip(left_batch, right_batch, strict=True), *zip(left_sum, right_sum, strict=True)):
        first[one] = second[other] = next(letters)
    first, second = ([letter or next(letters) for letter in axes] for axes in (first, second))
    kept = [letter for place, letter in enumerate(first) if place not in (*left_batch, *left_sum)]
    kept += [letter for place, letter in enumerate(second) if place not in (*right_batch, *right_sum)]
    result = "".join([*(first[place] for place in left_batch), *kept])
    return [graph.node("Einsum", values, equation=f"{''.join(first)},{''.join(second)}->{result}")]


def _convolution(graph: Graph, values: Sequence[Value], params: Mapping[str, Any], _: Any) -> Sequence[str]:
    """`conv_general_dilated`: a Conv or, where the images are dilated, a ConvTranspose; both take [N, C, H, W]."""
    numbers, padding = params["dimension_numbers"], params["padding"]
    dilated = any(step != 1 for step in params["lhs_dilation"])
    groups = params["feature_group_count"]
    plain = all(step == 1 for step in params["window_strides"]) and groups == 1
    if params["batch_group_count"] != 1 or (dilated and not plain) or isinstance(values[1], Named):
        raise InputError("--format onnx: the model has a convolution that this export does not know")
    images = Named(graph.node("Transpose", values[:1], perm=list(numbers.lhs_spec)), ())
    kernel = np.transpose(np.asarray(values[1]), numbers.rhs_spec)
    window = params["rhs_dilation"]
    if dilated:
        # ONNX defines it as a convolution's gradient: the kernel is flipped, and pads are cut off.
        kernel = kernel[:, :, ::-1, ::-1].swapaxes(0, 1)
        cut = [
            [step * (size - 1) - side for side in sides]
            for step, size, sides in zip(window, kernel.shape[2:], padding, strict=True)
        ]
        pads, kind, strides = cut, "ConvTranspose", params["lhs_dilation"]
    else:
        pads, kind, strides = padding, "Conv", params["window_strides"]
    if min(side for sides in pads for side in sides) < 0:
        raise InputError("--format onnx: the model has a convolution that this export does not know")
    made = graph.node(
        kind,
        [images, kernel],
        pads=[sides[end] for end in (0, 1) for sides in pads],
        strides=list(strides),
        dilations=list(window),
        group=groups,
    )
    return [graph.node("Transpose", [Named(made, ())], perm=[int(p) for p in np.argsort(numbers.out_spec)])]


def _reduction(kind: str) -> Operation:
    def reduce(graph: Graph, values: Sequence[Value], params: Mapping[str, Any], _: Any) -> Sequence[str]:
        return [graph.node(kind, [values[0], np.array(params["axes"], np.int64)], keepdims=0)]

    return reduce


def _arg_min(graph: Graph, values: Sequence[Value], params: Mapping[str, Any], out: Sequence[Any]) -> Sequence[str]:
    found = Named(graph.node("ArgMin", values, axis=params["axes"][0], keepdims=0), out[0])
    return [_cast(graph, [found], {"new_dtype": params["index_dtype"]})]


def _concatenate(graph: Graph, values: Sequence[Value], params: Mapping[str, Any], _: Any) -> Sequence[str]:
    return [graph.node("Concat", values, axis=params["dimension"])]


def _slice(graph: Graph, values: Sequence[Value], params: Mapping[str, Any], _: Any) -> Sequence[str]:
    shape = values[0].shape
    starts, stops, steps = params["start_indices"], params["limit_indices"], params["strides"] or [1] * len(shape)
    limits = [
        (start, stop, place, step)
        for place, (start, stop, step) in enumerate(zip(starts, stops, steps, strict=True))
        if (start, stop, step) != (0, shape[place], 1)
    ]
    if not all(isinstance(number, int) for limit in limits for number in limit):
        raise InputError("--format onnx: the model has sizes that depend on the number of images")
    return [graph.node("Slice", [values[0], *(np.array(part, np.int64) for part in zip(*limits, strict=True))])]


def _window(graph: Graph, values: Sequence[Value], params: Mapping[str, Any], out: Sequence[Any]) -> Sequence[str]:
    """`gather` of one window at a place that is known, which JAX makes of ``x[:, 1:5, 0]`` where N is open."""
    value, places = values
    axes, sizes = params["dimension_numbers"].start_index_map, params["slice_sizes"]
    if isinstance(places, Named) or places.ndim != 1:
        raise InputError("--format onnx: the model looks values up by index (gather), which this export does not know")
    stops = [int(start) + sizes[axis] for start, axis in zip(places, axes, strict=True)]
    limits = [np.array(part, np.int64) for part in (places, stops, axes)]
    cut = Named(graph.node("Slice", [value, *limits]), tuple(sizes))
    return [graph.name(graph.reshaped(cut, out[0]))]


def _split(graph: Graph, values: Sequence[Value], params: Mapping[str, Any], _: Any) -> Sequence[str]:
    ends = np.cumsum([0, *params["sizes"]])
    axis = np.array([params["axis"]], np.int64)
    return [graph.node("Slice", [values[0], ends[i : i + 1], ends[i + 1 : i + 2], axis]) for i in range(len(ends) - 1)]


def _pad(graph: Graph, values: Sequence[Value], params: Mapping[str, Any], _: Any) -> Sequence[str]:
    sides = params["padding_config"]
    if any(between for _, _, between in sides):
        raise InputError("--format onnx: the model pads between values, which this export does not know")
    pads = np.array([side[end] for end in (0, 1) for side in sides], np.int64)
    return [graph.node("Pad", [values[0], pads, values[1]])]


OPERATIONS: Mapping[str, Operation] = {
    **{"reshape": _reshape, "squeeze": _reshape, "transpose": _transpose},
    **{"dot_general": _product, "conv_general_dilated": _convolution},
    **{f"reduce_{kind}": _reduction(f"Reduce{kind.capitalize()}") for kind in ("sum", "max", "min", "prod")},
    "argmin": _arg_min,
    **{"concatenate": _concatenate, "slice": _slice, "split": _split, "pad": _pad, "gather": _window},
}
