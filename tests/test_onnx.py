"""Operations of JAX as ONNX, in onnxruntime and against JAX; whole models are in test_export."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from jax import export, lax

from jaxvae.errors import InputError
from jaxvae.export.onnx.operations import ELEMENTWISE, OPERATIONS
from jaxvae.export.onnx.trace import model_of

KERNEL = np.random.default_rng(3).normal(size=(3, 2, 4, 6)).astype(np.float32)
NUMBERS = ("NHWC", "HWIO", "NHWC")


def convolved(x: Any, strides: Any, padding: Any, **how: Any) -> Any:
    groups = how.get("feature_group_count", 1)
    return lax.conv_general_dilated(x, KERNEL[:, :, : 4 // groups], strides, padding, dimension_numbers=NUMBERS, **how)


# Functions of x, float32 [N, 5, 3, 4], by the operation that they need.
FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    **{
        name: getattr(lax, name) for name in ("exp", "tanh", "neg", "abs", "erf", "sign", "floor", "ceil", "sin", "cos")
    },
    **{name: getattr(lax, name) for name in ("logistic", "square", "expm1", "erfc", "stop_gradient")},
    **{name: (lambda x, name=name: getattr(lax, name)(lax.abs(x) + 0.1)) for name in ("log", "sqrt", "rsqrt", "log1p")},
    **{
        name: (lambda x, name=name: getattr(lax, name)(x, x[::1] * 2 + 1))
        for name in ("add", "sub", "mul", "max", "min")
    },
    **{
        name: (lambda x, name=name: getattr(lax, name)(x, lax.square(x)).astype(float))
        for name in ("lt", "gt", "le", "ge")
    },
    **{
        name: (lambda x, name=name: getattr(lax, name)(lax.floor(x), lax.sign(x)).astype(float))
        for name in ("eq", "ne")
    },
    "div": lambda x: x / jnp.arange(1.0, 5.0).reshape(1, 1, 1, 4),
    "pow": lambda x: lax.pow(lax.abs(x) + 0.1, x),
    "integer_pow": lambda x: x**3,
    "and": lambda x: ((x > 0) & (x < 1)).astype(jnp.float32),
    "or": lambda x: ((x < 0) | (x > 1)).astype(jnp.float32),
    "not": lambda x: (~(x < 0)).astype(jnp.float32),
    "copy": lambda x: jnp.copy(x),
    "select_n": lambda x: jnp.where(x > 0, 2.0, x),
    "clamp": lambda x: lax.clamp(-0.5, x, 0.5),
    "convert_element_type": lambda x: x.astype(jnp.int32),
    "reshape": lambda x: x.reshape(x.shape[0], 15, 4),
    "squeeze": lambda x: lax.squeeze(x[:, :, :1], (2,)),
    "transpose": lambda x: x.transpose(2, 0, 3, 1),
    "dot_general": lambda x: (
        x @ KERNEL[0, 0],
        jnp.einsum("nabc,bcd->nda", x, KERNEL[:, 0]),
        x @ x.transpose(0, 1, 3, 2),
    ),
    "conv_general_dilated": lambda x: (
        convolved(x, (1, 2), "SAME"),
        convolved(x, (1, 1), ((1, 2), (0, 1)), rhs_dilation=(2, 1)),
        convolved(x, (1, 1), "VALID", feature_group_count=2),
        convolved(x, (1, 1), ((1, 2), (1, 0)), lhs_dilation=(2, 3)),
    ),
    "reduce_sum": lambda x: x.sum((1, 3)),
    "reduce_max": lambda x: x.max(-1),
    "reduce_min": lambda x: x.min(2, keepdims=True),
    "reduce_prod": lambda x: x.prod(1),
    "concatenate": lambda x: jnp.concatenate([x, jnp.broadcast_to(jnp.arange(4.0), x.shape), 2 * x], axis=2),
    "slice": lambda x: lax.slice_in_dim(x, 1, 5, stride=2, axis=1),
    "argmin": lambda x: lax.argmin(x, 3, jnp.int32),
    "round": lambda x: lax.round(3 * x, lax.RoundingMethod.TO_NEAREST_EVEN),
    "split": lambda x: jnp.split(x, [1, 3], axis=3),
    "pad": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 0), (0, 1)), constant_values=7.0),
    "gather": lambda x: (x[:, 1:4, -1], x[..., 2]),
}
(N,) = export.symbolic_shape("N")


def run_onnx(function: Callable[..., Any], *forms: Any, given: Any) -> Any:
    names = [f"in_{i}" for i in range(len(forms))]
    count = len(jax.tree.leaves(jax.eval_shape(function, *forms)))
    content = model_of(function, dict(zip(names, forms, strict=True)), [f"out_{i}" for i in range(count)], {})
    return onnxruntime.InferenceSession(content).run(None, dict(zip(names, given, strict=True)))


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_operation_computes_what_jax_computes(name: str) -> None:
    form = jax.ShapeDtypeStruct((N, 5, 3, 4), jnp.float32)
    for count in (1, 6):
        x = np.random.default_rng(count).normal(size=(count, 5, 3, 4)).astype(np.float32)
        expected = jax.tree.leaves(FUNCTIONS[name](jnp.asarray(x)))
        for here, there in zip(run_onnx(FUNCTIONS[name], form, given=[x]), expected, strict=True):
            assert here.dtype == there.dtype and np.std(here) > 0
            np.testing.assert_allclose(here, there, rtol=2e-6, atol=2e-6)


def test_every_operation_is_tested() -> None:
    assert set(FUNCTIONS) >= set(ELEMENTWISE) | set(OPERATIONS)
    for name, function in FUNCTIONS.items():
        traced = str(jax.make_jaxpr(function)(jax.ShapeDtypeStruct((N, 5, 3, 4), jnp.float32)))
        assert re.search(rf"= {name}\b", traced), name


def test_what_depends_on_weights_alone_is_computed_once() -> None:
    weights = jnp.asarray(KERNEL[0, 0])

    def function(x: Any) -> Any:
        return x @ (jnp.exp(weights) / weights.sum()) + jnp.ones((1, 6))

    content = model_of(function, {"x": jax.ShapeDtypeStruct((N, 4), jnp.float32)}, ["y"], {"y": "what comes out"})
    model = onnx.load_from_string(content)
    assert [node.op_type for node in model.graph.node] == ["MatMul", "Add", "Identity"]
    assert model.graph.output[0].doc_string == "what comes out"
    assert {p.key: p.value for p in model.metadata_props} == {"y": "what comes out"}


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: jnp.sort(x), "the model computes sort, which this export does not know"),
        (lambda x: lax.fori_loop(0, 3, lambda i, x: 2 * x, x), "the model computes scan"),
        (lambda x: lax.cond(x.sum() > 0, jnp.exp, jnp.sin, x), "branches that depend on its input"),
        (lambda x: x.astype(jnp.bfloat16), "computes in bfloat16, not in float32"),
        (
            lambda x: jnp.concatenate([x.reshape(-1, 2), jnp.ones((2 * x.shape[0], 1))], 1),
            "sizes that depend on the number of images",
        ),
        (lambda x: x[:, jnp.array([0, 2])], "looks values up by index"),
        (lambda x: lax.select_n(x.astype(jnp.int32), x, x, x), "more than two values"),
        (lambda x: lax.pad(x, 0.0, ((0, 0, 0), (0, 0, 1))), "pads between values"),
    ],
)
def test_what_cannot_be_exported_is_named(function: Callable[..., Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        model_of(function, {"x": jax.ShapeDtypeStruct((N, 4), jnp.float32)}, ["y"], {})


def test_a_file_that_would_be_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxvae.export.onnx.trace.MOST_BYTES", 100)
    with pytest.raises(InputError, match="2 GiB or more, which ONNX does not allow"):
        model_of(lambda x: x @ KERNEL[0, 0], {"x": jax.ShapeDtypeStruct((N, 4), jnp.float32)}, ["y"], {})
