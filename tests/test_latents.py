"""Which latents are active, and what each costs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import subject_of

from jaxvae.config import PRESETS
from jaxvae.keys import example_keys
from jaxvae.metrics import ActiveUnits
from jaxvae.models.build import build_model
from jaxvae.noise import binarize
from jaxvae.optimizer import build_optimizer
from jaxvae.train.step import init_state

pytestmark = pytest.mark.unoptimized


@pytest.mark.parametrize("inputs", ["grey", "dynamic"])
def test_posterior_statistics_are_those_of_the_posterior(inputs: str) -> None:
    """A dimension is active if its mean varies by more than 0.01: here by just more, and by just less."""
    config = dataclasses.replace(PRESETS["vae"], hidden=(), latent_size=3, head="exp", inputs=inputs)
    model = build_model(config, (2, 2, 1))
    images = np.random.default_rng(0).integers(0, 256, (500, 2, 2, 1), np.uint8)
    x, key = jnp.asarray(images, jnp.float32) / 255, jax.random.key(3)
    if inputs == "dynamic":
        x = binarize(x, example_keys(key, 0, 500))
    flat = np.float64(x).reshape(500, 4)
    kernel = np.random.default_rng(1).normal(size=(4, 6))
    kernel[:, :3] *= np.sqrt([0.0115, 0.0085, 0.0]) / (flat @ kernel[:, :3]).std(axis=0)
    bias = np.random.default_rng(2).uniform(-0.5, 0.5, 6)
    params = {"params": {"encoder": {"mlp": {"dense_0": {"kernel": jnp.float32(kernel), "bias": jnp.float32(bias)}}}}}
    found = ActiveUnits().measure(subject_of(config, model, params), {"image": images}, key)
    mean, log_std = np.split(flat @ kernel + bias, 2, axis=1)
    expected = (0.5 * (mean**2 + np.exp(2 * log_std) - 1) - log_std).mean(axis=0)
    np.testing.assert_allclose(found["kl_per_dimension"].value, expected, rtol=1e-4)
    each = 0.5 * (mean**2 + np.exp(2 * log_std) - 1) - log_std
    errors = found["kl_per_dimension"].extra["kl_per_dimension_standard_error"]
    np.testing.assert_allclose(errors, each.std(axis=0, ddof=1) / 500**0.5, rtol=1e-2)
    assert found["active_units"].value == [1] and found["active_units"].extra == {"latent_sizes": [3]}
    assert found.keys() == {"kl_per_dimension", "active_units"}


def test_active_units_of_both_layers() -> None:
    """One unit of each layer follows the image; another of the upper layer follows the lower layer's noise alone."""
    config = dataclasses.replace(
        PRESETS["vae"], architecture="two-layer", hidden=(3, 2), latent_size=2, head="exp", activation="tanh"
    )
    model = build_model(config, (2, 2, 1))
    images = np.random.default_rng(0).integers(0, 256, (2000, 2, 2, 1), np.uint8)
    like = jax.eval_shape(lambda: init_state(model, build_optimizer(config), jax.random.key(0))).params
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    lower, upper = (params["params"][name] for name in ("encoder", "encoder_2"))
    lower = lower["mlp"]
    for layer, weights in (
        (lower["dense_0"], (4.0, 0.0)),
        (upper["dense_0"], (1.0, 3.0)),
        (upper["dense_1"], (1.0, 5.0)),
        (lower["dense_1"], (1.0, 0.0)),
        (lower["dense_2"], (5.0, 0.0)),
        (upper["dense_2"], (1.0, 2.0)),
    ):
        for unit, weight in enumerate(weights):
            layer["kernel"][unit, unit] = weight
    found = ActiveUnits().measure(subject_of(config, model, params), {"image": images}, jax.random.key(1))
    assert found["active_units"].value == [1, 1] and found["active_units"].extra == {"latent_sizes": [4, 2]}
    assert found.keys() == {"active_units"}
