"""Counts of FLOP against closed forms, and against sums of ones: each product of ones that is not padding adds one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae.config import PRESETS, Config
from jaxvae.flops import product_flops
from jaxvae.models.build import build_model
from jaxvae.models.convolution import convolve
from jaxvae.objectives.build import build_objective
from jaxvae.optimizer import build_optimizer
from jaxvae.train.step import abstract_state, make_train_step


def flops(function: Any, *arguments: Any) -> int:
    found, missed = product_flops(jax.make_jaxpr(function)(*arguments).jaxpr)
    assert missed == []
    return found


@pytest.mark.parametrize(
    ("lhs", "rhs", "dimensions", "products"),
    [
        ((5, 7), (7, 3), (((1,), (0,)), ((), ())), 5 * 7 * 3),
        ((2, 5, 7), (2, 3, 7), (((2,), (2,)), ((0,), (0,))), 2 * 5 * 7 * 3),
        ((4, 6), (6, 4), (((0, 1), (1, 0)), ((), ())), 4 * 6),
        ((4,), (6,), (((), ()), ((), ())), 4 * 6),
    ],
)
def test_matrix_products(lhs: Any, rhs: Any, dimensions: Any, products: int) -> None:
    assert flops(lambda a, b: jax.lax.dot_general(a, b, dimensions), jnp.ones(lhs), jnp.ones(rhs)) == 2 * products


CONVOLUTIONS: list[dict[str, Any]] = [
    {"window_strides": (2, 2), "padding": "VALID"},
    {"window_strides": (2, 1), "padding": [(1, 2), (0, 3)]},
    {"window_strides": (1, 1), "padding": [(2, 2), (-1, 1)], "lhs_dilation": (2, 3)},
    {"window_strides": (1, 2), "padding": "SAME", "rhs_dilation": (2, 1)},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", CONVOLUTIONS)
@pytest.mark.parametrize("groups", [{}, {"feature_group_count": 2}, {"batch_group_count": 2}])
def test_convolutions(options: dict[str, Any], groups: dict[str, int]) -> None:
    features = 4 // groups.get("feature_group_count", 1)
    image, kernel = jnp.ones((6, 4, 9, 8)), jnp.ones((2, features, 3, 4))

    def convolve(image: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(image, kernel, **options, **groups)

    assert flops(convolve, image, kernel) == 2 * int(convolve(image, kernel).sum())


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_each_gradient_of_a_convolution_takes_as_many_as_the_convolution(options: dict[str, Any]) -> None:
    image, kernel = jnp.ones((6, 4, 9, 8)), jnp.ones((2, 4, 3, 4))

    def convolve(image: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(image, kernel, **options)

    out, forward = convolve(image, kernel), flops(convolve, image, kernel)
    by_image = jax.linear_transpose(lambda image: convolve(image, kernel), image)
    assert flops(by_image, out) == forward
    by_kernel = jax.linear_transpose(lambda kernel: convolve(image, kernel), kernel)
    assert flops(by_kernel, out) == forward


def test_what_calls_products() -> None:
    a, once = jnp.ones((3, 3)), 2 * 3**3
    product = jax.jit(lambda x: x @ a)
    assert flops(lambda x: jax.lax.scan(lambda x, _: (product(x), None), x, None, length=5)[0], a) == 5 * once
    assert flops(lambda x: jax.lax.fori_loop(0, 7, lambda _, x: x @ a, x), a) == 7 * once
    assert flops(lambda x: jax.lax.map(lambda row: row @ a, x), jnp.ones((4, 3, 3))) == 4 * once
    assert flops(jax.vmap(product), jnp.ones((4, 3, 3))) == 4 * once
    assert flops(lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ a, lambda x: product(x) @ a, x), a) == 2 * once
    assert (
        flops(jax.value_and_grad(jax.checkpoint(lambda x: jnp.sin(x @ a).sum())), a) == 3 * once
    )  # One of them again.
    assert flops(lambda x: (x @ a, x)[1], a) == 0
    nested = jax.lax.fori_loop
    assert flops(lambda x: nested(0, 2, lambda _, y: nested(0, 3, lambda _, z: z @ a, y), x), a) == 6 * once


def test_what_cannot_be_counted_is_reported() -> None:
    a = jnp.ones((3, 3))

    def until_small(x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: x @ a / 100, x)

    found, missed = product_flops(jax.make_jaxpr(until_small)(a).jaxpr)
    assert found == 2 * 3**3 and missed == ["a loop with an unknown number of iterations counts as one iteration"]
    # A loop with nothing to count in it is not reported.
    assert product_flops(jax.make_jaxpr(lambda n: jax.lax.fori_loop(0, n, lambda _, x: x + 1, 0))(3).jaxpr) == (0, [])

    def of_the_host(x: jax.Array) -> jax.Array:
        return jax.pure_callback(lambda x: np.asarray(x), x, x)

    _, missed = product_flops(jax.make_jaxpr(of_the_host)(a).jaxpr)
    assert missed == ["what JAX does not look into (pure_callback) is not counted"]


def step_flops(config: Config, shape: tuple[int, int, int]) -> tuple[int, float]:
    """Of a train step: of its products, and of everything, as XLA counts it."""
    model, optimizer = build_model(config, shape), build_optimizer(config)
    step = make_train_step(model, build_objective(config), optimizer)
    batch, key = jax.ShapeDtypeStruct((config.batch_size, *shape), jnp.uint8), jax.random.key(0)
    example = abstract_state(model, optimizer), batch, key
    analysis: Any = jax.jit(step).lower(*example).cost_analysis()
    return flops(step, *example), analysis["flops"]


# Multiplications of a step of the notes' models, an image: forward, for the weights, and for all inputs but the first.
ENCODER = (784 * 256, 256 * 64, 64 * 20)
NOTES_AE = 3 * 2 * sum(ENCODER) - 784 * 256
NOTES_VAE = 3 * (2 * sum(ENCODER) - 20 * 64 + 10 * 64) - 784 * 256


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "products"), [("notes-ae", NOTES_AE), ("notes-vae", NOTES_VAE)])
def test_flops_of_a_step_are_those_of_the_layers(preset: str, products: int) -> None:
    found, of_everything = step_flops(PRESETS[preset], (28, 28, 1))
    assert found == 2 * 32 * products
    # XLA counts all the rest too: Adam, losses, noise.
    assert found < of_everything < 1.25 * found


def test_a_convolution_is_counted_once_whatever_a_device_makes_of_it() -> None:
    x, kernel = jnp.zeros((5, 9, 7, 3)), jnp.zeros((1, 1, 3, 7))
    flops, missed = product_flops(jax.make_jaxpr(lambda x, kernel: convolve(x, kernel, 2))(x, kernel).jaxpr)
    assert flops == 2 * (5 * 5 * 4 * 7) * 3
    assert not missed
