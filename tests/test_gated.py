"""Gated layers: against NumPy in float64, and their initial weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from jaxvae.config import Config
from jaxvae.errors import InputError
from jaxvae.models.build import build_model
from jaxvae.models.gated import GatedDecoder, GatedEncoder, GatedLayers

pytestmark = pytest.mark.unoptimized


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-x))


def layers(params: dict, x: NDArray[np.float64]) -> NDArray[np.float64]:  # type: ignore[type-arg]
    """h = (A x + b) * sigmoid(C x + d), written out."""
    for i in range(len(params) - 1):
        kernel, bias = (np.float64(params[f"gated_{i}"][name]) for name in ("kernel", "bias"))
        half = len(bias) // 2
        x = (x @ kernel[:, :half] + bias[:half]) * sigmoid(x @ kernel[:, half:] + bias[half:])
    return x @ np.float64(params["out"]["kernel"]) + np.float64(params["out"]["bias"])


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [(9, 4), (6,), ()])
def test_encoder_and_decoder_match_numpy(hidden: tuple[int, ...]) -> None:
    x, z = (np.random.default_rng(0).normal(size=size).astype(np.float32) for size in ((3, 4, 5, 2), (3, 6)))
    for module, given, shape in (
        (GatedEncoder(hidden, 7), x, (3, 7)),
        (GatedDecoder(hidden, (4, 5, 2)), z, (3, 4, 5, 2)),
    ):
        params = module.init(jax.random.key(1), given)
        expected = layers(params["params"]["layers"], np.float64(given).reshape(3, -1)).reshape(shape)
        np.testing.assert_allclose(module.apply(params, given), expected, rtol=1e-4, atol=1e-5)


def test_initial_weights_are_those_of_the_papers_code() -> None:
    """Normal weights of variance 2 / inputs, not truncated; biases uniform in +-1 / sqrt(inputs)."""
    params = GatedLayers((400, 50)).init(jax.random.key(2), jnp.zeros((1, 300)))["params"]
    for name, inputs in (("gated_0", 300), ("out", 400)):
        kernel, bias = (np.asarray(params[name][part]) for part in ("kernel", "bias"))
        standard = kernel / (2 / inputs) ** 0.5
        assert abs(standard.std() - 1) < 0.02 and abs(standard.mean()) < 0.02
        assert np.abs(standard).max() > 3  # A truncated normal ends at 2 / 0.88.
        assert np.abs(bias).max() <= inputs**-0.5 and np.abs(bias).max() > 0.9 * inputs**-0.5
    assert params["gated_0"]["kernel"].shape == (300, 800)


def test_the_papers_network() -> None:
    config = Config(preset="vae", architecture="gated", hidden=(300, 300), latent_size=40)
    params = jax.eval_shape(
        build_model(config, (28, 28, 1)).init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)), jax.random.key(0)
    )["params"]
    shapes = {part: {n: v["kernel"].shape for n, v in params[part]["layers"].items()} for part in params}
    assert shapes["encoder"] == {"gated_0": (784, 600), "gated_1": (300, 600), "out": (300, 80)}
    assert shapes["decoder"] == {"gated_0": (40, 600), "gated_1": (300, 600), "out": (300, 784)}


@pytest.mark.parametrize("changes", [{"activation": "tanh"}, {"init": "glorot"}])
def test_what_it_does_not_read_is_refused(changes: dict[str, str]) -> None:
    [name] = changes
    with pytest.raises(InputError, match=f"--{name} .* has no effect: it needs --architecture mlp"):
        Config(preset="vae", architecture="gated", **changes)
