"""Convolutions by matrix products against Flax's, which are XLA's own, in float64, forward and backward."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from numpy.typing import NDArray

from jaxvae.models.convolution import Conv, ConvTranspose, convolve, convolve_transposed

SHAPES = [(28, 28, 1), (45, 60, 3), (7, 5, 2), (1, 4, 3)]


def images(shape: tuple[int, ...], count: int = 3) -> NDArray[np.float64]:
    return np.random.default_rng(0).standard_normal((count, *shape))


def assert_same(ours: nn.Module, theirs: nn.Module, x: NDArray[np.float64]) -> None:
    """Assert equal initial parameters, outputs, and gradients with respect to the input and the parameters."""
    params = ours.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, params, theirs.init(jax.random.key(1), x))
    params = jax.tree.map(lambda p: np.random.default_rng(1).standard_normal(p.shape), params)

    def both(module: nn.Module) -> Any:
        output, pull = jax.vjp(jax.jit(module.apply), params, x)
        return output, pull(jnp.sin(jnp.arange(output.size, dtype=output.dtype)).reshape(output.shape))

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), both(ours), both(theirs))


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("size", "stride"), [(3, 2), (3, 1), (1, 1), (4, 2), (5, 3)])
def test_a_convolution_matches_flax(size: int, stride: int, shape: tuple[int, int, int]) -> None:
    with jax.enable_x64(True):
        theirs = nn.Conv(4, (size, size), strides=stride, dtype=jnp.float64)
        assert_same(Conv(4, size, stride, jnp.float64), theirs, images(shape))


@pytest.mark.slow
@pytest.mark.parametrize("features", [1, 4, 7])  # A CPU copies few channels by a product.
@pytest.mark.parametrize("shape", [*SHAPES, (4, 4, 9)])
def test_a_transposed_convolution_matches_flax(shape: tuple[int, int, int], features: int) -> None:
    with jax.enable_x64(True):
        theirs = nn.ConvTranspose(features, (4, 4), strides=(2, 2), dtype=jnp.float64)
        size = (2 * shape[0], 2 * shape[1])
        assert_same(ConvTranspose(features, size, jnp.float64), theirs, images(shape))


class Cropped(nn.Module):
    """A transposed convolution by Flax, cropped to `size`."""

    features: int
    size: tuple[int, int]

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.ConvTranspose(self.features, (4, 4), strides=(2, 2), dtype=jnp.float64, name="layer")(x)
        return x[:, : self.size[0], : self.size[1]]


class Named(nn.Module):
    """Ours, under the name that `Cropped` gives to Flax's."""

    features: int
    size: tuple[int, int]

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return ConvTranspose(self.features, self.size, jnp.float64, name="layer")(x)


@pytest.mark.slow
@pytest.mark.parametrize("features", [1, 4, 7])
@pytest.mark.parametrize("size", [(13, 9), (14, 9), (13, 10)])
def test_a_transposed_convolution_to_an_odd_size_is_a_cropped_one(size: tuple[int, int], features: int) -> None:
    with jax.enable_x64(True):
        assert_same(Named(features, size), Cropped(features, size), images((7, 5, 2)))


@pytest.mark.parametrize("size", [(12, 10), (15, 10), (14, 8), (14, 11), (7, 5)])
def test_a_transposed_convolution_refuses_other_sizes(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="cannot give"):
        convolve_transposed(jnp.zeros((3, 7, 5, 2)), jnp.zeros((4, 4, 2, 1)), size)


@pytest.mark.parametrize("function", [lambda x, k: convolve(x, k, 2), lambda x, k: convolve_transposed(x, k, (15, 16))])
def test_cpus_and_gpus_multiply_matrices_and_a_tpu_convolves(function: Any) -> None:
    x, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((4, 4, 3, 5))

    def gradients(x: Any, kernel: Any) -> Any:
        return jax.grad(lambda x, kernel: jnp.square(function(x, kernel)).sum(), (0, 1))(x, kernel)

    traced = jax.jit(gradients).trace(x, kernel)
    for platform, convolutions in (("cpu", 0), ("cuda", 0), ("tpu", 3)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.convolution") == convolutions, platform
        assert ("stablehlo.dot_general" in text) == (convolutions == 0), platform


def test_images_of_one_batch_do_not_depend_on_each_other() -> None:
    x, kernel = images((6, 7, 3), 5), images((3, 3, 4), 3)
    whole = convolve(jnp.asarray(x), jnp.asarray(kernel), 2)
    one = jax.vmap(lambda image: convolve(image[None], jnp.asarray(kernel), 2)[0])(jnp.asarray(x))
    np.testing.assert_allclose(whole, one, rtol=1e-5, atol=1e-5)
